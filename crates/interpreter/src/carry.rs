//! What an engine needs that executes most of the guest natively and hands the interpreter single
//! instructions (crate `kvm`).

use engine::{CpuBus, EngineError, VcpuState};

use crate::vcpu::InterpreterVcpu;

impl InterpreterVcpu {
    /// Goes on with `state`, which was executed natively until now: as after
    /// [`restore`](engine::Vcpu::restore), but with the INTR line as it is, and without any code
    /// that was decoded before.
    ///
    /// # Errors
    /// [`EngineError::BadState`] for values that no such vCPU can hold.
    pub fn take_over(&mut self, state: &VcpuState, bus: &dyn CpuBus) -> Result<(), EngineError> {
        self.replace(state, bus)?;
        self.forget_code();
        Ok(())
    }

    /// Replaces all of the state but the INTR line, which is the mailbox's.
    pub(crate) fn replace(
        &mut self,
        state: &VcpuState,
        bus: &dyn CpuBus,
    ) -> Result<(), EngineError> {
        self.cpu.restore(state, bus).map_err(EngineError::BadState)?;
        self.cpu.debug_stop = None;
        self.next_clock = 0;
        Ok(())
    }

    /// Forgets all decoded code: somebody may have written to guest RAM without
    /// `GuestRam::prepare_write`, as a guest does that runs natively.
    pub fn forget_code(&mut self) {
        self.blocks.clear();
    }

    /// Instructions executed so far.
    pub fn retired(&self) -> u64 {
        self.retired
    }

    /// The TSC.
    pub fn tsc(&self, bus: &dyn CpuBus) -> u64 {
        self.cpu.tsc(bus)
    }

    /// What is added to the ticks of the guest's time to give the TSC.
    pub fn tsc_offset(&self) -> u64 {
        self.cpu.tsc_offset
    }

    /// Moves the TSC by `ticks`, modulo 2^64; IA32_TSC_ADJUST stays as it is.
    pub fn shift_tsc(&mut self, ticks: u64, bus: &dyn CpuBus) {
        let old = self.cpu.tsc(bus);
        self.cpu.tsc_offset = self.cpu.tsc_offset.wrapping_add(ticks);
        self.cpu.apic.tsc_changed(old, old.wrapping_add(ticks));
        self.cpu.attention = true;
    }
}
