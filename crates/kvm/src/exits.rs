//! Into the kernel and out of it: interrupts before, exits after.

use std::time::Duration;

use device::{Answer, Width};
use engine::{Activity, CpuBus, EngineError, TraceEvent, Traced};
use kvm_bindings as kvm;
use lapic::{Effects, Event};
use x86::msr;

use crate::KvmError;
use crate::vcpu::{Handover, KvmVcpu};

/// Size of the xAPIC page.
const PAGE: u64 = 4096;
/// Longest sleep in HLT without a deadline; a kick or an interrupt ends it anyway.
const LONG_SLEEP: Duration = Duration::from_secs(3600);
/// A guest whose wake-ups the kernel swallows looks again after this time.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// An exit's name, for a trace.
fn reason(number: u32) -> &'static str {
    match number {
        kvm::KVM_EXIT_IO => "port",
        kvm::KVM_EXIT_MMIO => "mmio",
        kvm::KVM_EXIT_HLT => "hlt",
        kvm::KVM_EXIT_INTR => "signal",
        kvm::KVM_EXIT_IRQ_WINDOW_OPEN => "interrupt window",
        kvm::KVM_EXIT_X86_RDMSR => "rdmsr",
        kvm::KVM_EXIT_X86_WRMSR => "wrmsr",
        kvm::KVM_EXIT_INTERNAL_ERROR => "emulation failed",
        kvm::KVM_EXIT_SHUTDOWN => "shutdown",
        kvm::KVM_EXIT_DEBUG => "debug",
        _ => "other",
    }
}

impl KvmVcpu {
    /// Runs the guest until the next exit and serves it.
    pub(crate) fn enter(&mut self, bus: &dyn CpuBus) -> Result<(), EngineError> {
        // Whoever wakes the vCPU after this line ends KVM_RUN; who did before is seen below.
        self.handle.set_immediate_exit(false);
        if self.mailbox.has_work() {
            self.drain()?;
        }
        if self.handover.is_some() {
            return Ok(());
        }
        let distance = self.serve_timer(bus)?;
        self.alarm.set(distance);
        self.arrange_interrupt(bus)?;
        if self.waker.is_kicked() {
            return Ok(());
        }
        let vm = std::sync::Arc::clone(&self.vm);
        let _inside = vm.inside(self.index);
        self.run_once(bus)
    }

    /// Completes the instruction that the kernel is in the middle of.
    pub(crate) fn complete(&mut self, bus: &dyn CpuBus) -> Result<(), EngineError> {
        while self.incomplete {
            self.handle.set_immediate_exit(true);
            self.run_once(bus)?;
        }
        Ok(())
    }

    pub(crate) fn run_once(&mut self, bus: &dyn CpuBus) -> Result<(), EngineError> {
        self.counters.runs += 1;
        // The kernel takes it over first, whatever else it does.
        self.handle.page().cr8 = u64::from(self.apic.cr8());
        self.nmi_posted = false;
        let before = self.carrier.observer().enter(Activity::Direct);
        let result = self.handle.fd.run().map(drop);
        self.carrier.observer().enter(before);
        match result {
            Ok(()) => {
                if self.carrier.observer().traces(Traced::EXITS) {
                    let reason = reason(self.handle.page().exit_reason);
                    self.carrier.observer().tell(TraceEvent::Exit { reason, rip: None });
                }
                (self.incomplete, self.window_known) = (false, true);
                self.take_priority();
                self.serve_exit(bus)
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                self.counters.signals += 1;
                (self.incomplete, self.window_known) = (false, true);
                self.take_priority();
                Ok(())
            }
            Err(error) => Err(KvmError::call("KVM_RUN")(error).into()),
        }
    }

    /// The guest may have written CR8.
    fn take_priority(&mut self) {
        let cr8 = self.handle.page().cr8 as u8 & 0xf;
        if cr8 != self.apic.cr8() {
            self.apic.set_cr8(cr8);
        }
    }

    /// Takes what others have posted. INIT and start-up IPIs are for the interpreter.
    fn drain(&mut self) -> Result<(), EngineError> {
        let mailbox = std::sync::Arc::clone(&self.mailbox);
        let mut again = Vec::new();
        let mut nmi = false;
        mailbox.drain(|event| match event {
            Event::Interrupt { vector, level } => self.apic.accept(vector, level),
            Event::Nmi => nmi = true,
            Event::Wake => self.woken = true,
            Event::Init | Event::Sipi(_) => again.push(event),
        });
        if nmi {
            self.handle.fd.nmi().map_err(KvmError::call("KVM_NMI"))?;
            self.nmi_posted = true;
        }
        for event in again {
            self.handover = Some(Handover::ONE);
            match event {
                Event::Init => mailbox.post_init(),
                Event::Sipi(vector) => mailbox.post_sipi(vector),
                _ => {}
            }
        }
        Ok(())
    }

    /// HLT was executed: sleeps until something ends it, or somebody wants the vCPU.
    pub(crate) fn halt(&mut self, bus: &dyn CpuBus) -> Result<(), EngineError> {
        let interruptible = self.handle.page().if_flag != 0;
        loop {
            if self.mailbox.has_work() {
                self.drain()?;
            }
            let distance = self.serve_timer(bus)?;
            if self.handover.is_some() || self.waker.is_kicked() {
                return Ok(());
            }
            let waits = self.apic.pending().is_some() || self.extint_waits();
            if interruptible && waits || std::mem::take(&mut self.woken) || self.nmi_waits()? {
                self.halted = false;
                return Ok(());
            }
            // Rounded up: waking early would only mean sleeping again.
            let sleep =
                distance.map_or(LONG_SLEEP, |ns| Duration::from_nanos(ns.saturating_add(1)));
            let loses = self.vm.may_lose_wakes();
            let longest = if loses { LOOK_AGAIN } else { LONG_SLEEP };
            let before = self.carrier.observer().enter(Activity::Idle);
            std::thread::park_timeout(sleep.min(longest));
            self.carrier.observer().enter(before);
            if loses {
                // HLT may end by itself; whoever waits for a lock looks again.
                self.halted = false;
            }
        }
    }

    fn extint_waits(&self) -> bool {
        self.mailbox.extint() && self.apic.accepts_extint()
    }

    /// Whether an NMI that the kernel was handed ends HLT.
    fn nmi_waits(&self) -> Result<bool, EngineError> {
        if !self.nmi_posted {
            return Ok(false);
        }
        let events = self.handle.fd.get_vcpu_events();
        Ok(events.map_err(KvmError::call("KVM_GET_VCPU_EVENTS"))?.nmi.masked == 0)
    }

    /// Lets the APIC's timer fire when it is due; the nanoseconds until it will be.
    fn serve_timer(&mut self, bus: &dyn CpuBus) -> Result<Option<u64>, EngineError> {
        let Some(due) = self.apic.deadline() else { return Ok(None) };
        let now = self.handle.tsc()?;
        self.apic.tick(now);
        if due <= now {
            bus.timer_fired(self.index);
        }
        Ok(self.apic.deadline().map(|at| self.scale.ticks_to_ns(at.saturating_sub(now))))
    }

    /// Delivers an interrupt that the guest can take now; for one that it cannot, asks the kernel
    /// to come back when it can.
    fn arrange_interrupt(&mut self, bus: &dyn CpuBus) -> Result<(), EngineError> {
        let external = self.extint_waits();
        let waits = external || self.apic.pending().is_some();
        let known = self.window_known && !self.incomplete;
        let page = self.handle.page();
        let open = known && page.ready_for_interrupt_injection != 0 && page.if_flag != 0;
        page.request_interrupt_window = u8::from(waits && !open);
        if !waits || !open {
            return Ok(());
        }
        let vector =
            if external { Some(bus.acknowledge_extint()) } else { self.apic.acknowledge() };
        if let Some(vector) = vector {
            self.counters.interrupts += 1;
            if self.carrier.observer().traces(Traced::INTERRUPTS) {
                self.carrier.observer().tell(TraceEvent::Interrupt { vector, rip: None });
            }
            self.window_known = false;
            self.handle.interrupt(vector)?;
        }
        let more = self.extint_waits() || self.apic.pending().is_some();
        self.handle.page().request_interrupt_window = u8::from(more);
        Ok(())
    }

    fn serve_exit(&mut self, bus: &dyn CpuBus) -> Result<(), EngineError> {
        match self.handle.page().exit_reason {
            kvm::KVM_EXIT_IO => self.serve_ports(bus),
            kvm::KVM_EXIT_MMIO => self.serve_mmio(bus)?,
            kvm::KVM_EXIT_X86_RDMSR => self.serve_msr(bus, false)?,
            kvm::KVM_EXIT_X86_WRMSR => self.serve_msr(bus, true)?,
            kvm::KVM_EXIT_HLT => {
                self.counters.halts += 1;
                self.halted = true;
            }
            kvm::KVM_EXIT_SHUTDOWN => self.handover = Some(Handover::Shutdown),
            kvm::KVM_EXIT_INTERNAL_ERROR => {
                self.counters.failures += 1;
                self.handover = Some(Handover::FAILED);
            }
            kvm::KVM_EXIT_FAIL_ENTRY => {
                self.counters.entry_failures += 1;
                self.handover = Some(Handover::FAILED);
            }
            kvm::KVM_EXIT_IRQ_WINDOW_OPEN => self.counters.windows += 1,
            kvm::KVM_EXIT_SET_TPR | kvm::KVM_EXIT_INTR => {}
            other => return Err(KvmError::UnexpectedExit(other).into()),
        }
        Ok(())
    }

    /// Keeps a cause to stop that came with an answer. A fault reads as all-ones: KVM cannot raise
    /// an exception for a port or memory access, and no device of a PC asks for one.
    fn take<T>(&mut self, answer: Answer<T>) -> Option<T> {
        match answer {
            Answer::Done(value) => Some(value),
            Answer::Fault => None,
            Answer::StopAfterInstruction(value, cause) => {
                self.stop = Some(cause);
                Some(value)
            }
        }
    }

    fn serve_ports(&mut self, bus: &dyn CpuBus) {
        self.counters.ports += 1;
        self.incomplete = true;
        let (exit, data) = self.handle.port_exit();
        let width = match exit.size {
            1 => Width::Byte,
            2 => Width::Word,
            _ => Width::Dword,
        };
        let mut stop = None;
        for item in data.chunks_mut(exit.size.max(1)) {
            let mut bytes = [0; 4];
            let len = item.len().min(4);
            bytes[..len].copy_from_slice(&item[..len]);
            if exit.write {
                let answer = bus.port_write(exit.port, width, u32::from_le_bytes(bytes));
                stop = stop.or(cause_of(&answer));
            } else {
                let answer = bus.port_read(exit.port, width);
                stop = stop.or(cause_of(&answer));
                let value = match answer {
                    Answer::Done(value) | Answer::StopAfterInstruction(value, _) => value,
                    Answer::Fault => width.mask(),
                };
                item[..len].copy_from_slice(&value.to_le_bytes()[..len]);
            }
        }
        self.stop = self.stop.take().or(stop);
    }

    fn serve_mmio(&mut self, bus: &dyn CpuBus) -> Result<(), EngineError> {
        self.counters.mmio += 1;
        self.incomplete = true;
        // SAFETY: KVM_EXIT_MMIO was seen; all fields are integers.
        let mmio = unsafe { self.handle.page().__bindgen_anon_1.mmio };
        let (gpa, len) = (mmio.phys_addr, (mmio.len as usize).min(8));
        let mut data = mmio.data;
        let apic = self.apic.mmio_window() == Some(gpa & !(PAGE - 1));
        match (apic, mmio.is_write != 0) {
            (true, true) => self.write_apic(bus, gpa % PAGE, &data[..len])?,
            (true, false) => self.read_apic(gpa % PAGE, &mut data[..len])?,
            (false, true) => {
                let answer = bus.mmio_write(gpa, &data[..len]);
                self.take(answer);
            }
            (false, false) => {
                let answer = bus.mmio_read(gpa, &mut data[..len]);
                if self.take(answer).is_none() {
                    data.fill(0xff);
                }
            }
        }
        self.handle.page().__bindgen_anon_1.mmio.data = data;
        Ok(())
    }

    /// As the interpreter: 32-bit registers, of which narrow accesses read bytes.
    fn read_apic(&mut self, offset: u64, to: &mut [u8]) -> Result<(), EngineError> {
        let now = self.handle.tsc()?;
        let value = self.apic.mmio_read((offset & !3) as u32, now).to_le_bytes();
        for (index, byte) in to.iter_mut().enumerate() {
            *byte = value.get((offset & 3) as usize + index).copied().unwrap_or(0);
        }
        Ok(())
    }

    /// Only aligned 32-bit writes have an effect.
    fn write_apic(
        &mut self,
        bus: &dyn CpuBus,
        offset: u64,
        from: &[u8],
    ) -> Result<(), EngineError> {
        if let Some(value) = from.first_chunk::<4>()
            && offset.is_multiple_of(4)
        {
            let now = self.handle.tsc()?;
            let effects = self.apic.mmio_write(offset as u32, u32::from_le_bytes(*value), now);
            self.apply(bus, effects);
        }
        Ok(())
    }

    fn apply(&mut self, bus: &dyn CpuBus, effects: Effects) {
        if let Some(ipi) = effects.ipi {
            bus.send_ipi(self.index, ipi);
        }
        if let Some(vector) = effects.eoi {
            bus.end_of_interrupt(vector);
        }
        if effects.destination_changed {
            self.mailbox.publish(self.apic.destination());
        }
    }

    /// The local APIC's are served here, all others by the interpreter.
    fn serve_msr(&mut self, bus: &dyn CpuBus, write: bool) -> Result<(), EngineError> {
        self.counters.msrs += 1;
        self.incomplete = true;
        // SAFETY: KVM_EXIT_X86_RDMSR or _WRMSR was seen; all fields are integers.
        let access = unsafe { self.handle.page().__bindgen_anon_1.msr };
        if !matches!(access.index, msr::TSC_DEADLINE | msr::X2APIC_FIRST..=msr::X2APIC_LAST) {
            return self.abandon(bus);
        }
        let now = self.handle.tsc()?;
        let answer = if write {
            let effects = self.apic.msr_write(access.index, access.data, now);
            effects.map(|effects| {
                self.apply(bus, effects);
                access.data
            })
        } else {
            self.apic.msr_read(access.index, now)
        };
        let page = self.handle.page();
        page.__bindgen_anon_1.msr.error = u8::from(answer.is_err());
        if let Ok(value) = answer {
            page.__bindgen_anon_1.msr.data = value;
        }
        Ok(())
    }
}

fn cause_of<T>(answer: &Answer<T>) -> Option<device::StopCause> {
    match answer {
        Answer::StopAfterInstruction(_, cause) => Some(*cause),
        _ => None,
    }
}
