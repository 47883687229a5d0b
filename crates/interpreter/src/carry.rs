//! What an engine needs that executes most of the guest natively and hands the interpreter single
//! instructions (crate `kvm`).

use crate::vcpu::InterpreterVcpu;

impl InterpreterVcpu {
    /// Forgets all decoded code: somebody may have written to guest RAM without
    /// `GuestRam::prepare_write`, as a guest does that runs natively.
    pub fn forget_code(&mut self) {
        self.blocks.clear();
    }

    /// Instructions executed so far.
    pub fn retired(&self) -> u64 {
        self.retired
    }
}
