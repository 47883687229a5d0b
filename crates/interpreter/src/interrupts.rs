//! The local APIC seen from the CPU: register accesses, their effects on the machine, the mailbox,
//! and which event comes next at an instruction boundary.

use device::StopCause;
use engine::{RunState, Shadow, TraceEvent, Traced};
use lapic::{Effects, Event as Posted};
use x86::exception::{Exception, vector};
use x86::segment::{Segment, seg};

use crate::cpu::{Bus, Cpu, Step};
use crate::events::{Event, Source};

impl Cpu {
    /// Reads of the xAPIC page: registers are 32 bits at 16-byte steps; other widths and offsets
    /// are undefined (SDM vol. 3A 11.4.1) and give bytes of the register.
    pub(crate) fn read_apic(&mut self, offset: u64, to: &mut [u8], now: u64) {
        let value = self.apic.mmio_read((offset & !3) as u32, now).to_le_bytes();
        for (index, byte) in to.iter_mut().enumerate() {
            *byte = value.get((offset & 3) as usize + index).copied().unwrap_or(0);
        }
    }

    /// Writes to the xAPIC page; only aligned 32-bit ones have an effect.
    pub(crate) fn write_apic(&mut self, bus: Bus<'_>, offset: u64, from: &[u8]) {
        if let Some(value) = from.first_chunk::<4>()
            && offset.is_multiple_of(4)
        {
            let now = self.tsc(bus);
            let effects = self.apic.mmio_write(offset as u32, u32::from_le_bytes(*value), now);
            self.apply(bus, effects);
        }
    }

    pub(crate) fn write_apic_msr(&mut self, bus: Bus<'_>, number: u32, value: u64) -> Step {
        let now = self.tsc(bus);
        match self.apic.msr_write(number, value, now) {
            Ok(effects) => {
                self.apply(bus, effects);
                Ok(())
            }
            Err(_) => self.fault(Exception::GP0),
        }
    }

    pub(crate) fn write_apic_base(&mut self, value: u64) -> Step {
        if self.apic.set_base_msr(value).is_err() {
            return self.fault(Exception::GP0);
        }
        // The window of the xAPIC page may have moved onto or away from cached pages.
        self.tlb.flush_all();
        self.mailbox.publish(self.apic.destination());
        Ok(())
    }

    fn apply(&mut self, bus: Bus<'_>, effects: Effects) {
        self.leave_block = true;
        self.apic_changed = true;
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

    /// Takes what others have posted.
    pub(crate) fn drain_mailbox(&mut self) {
        let mailbox = std::sync::Arc::clone(&self.mailbox);
        mailbox.drain(|posted| match posted {
            Posted::Interrupt { vector, level } => self.apic.accept(vector, level),
            Posted::Nmi => self.nmi_pending = true,
            Posted::Init => self.init(),
            Posted::Sipi(vector) => self.start_up(vector),
            Posted::Wake => self.woken = true,
        });
    }

    /// INIT: everything as after reset but the APIC's base and id, and caches.
    fn init(&mut self) {
        self.apic.init();
        self.reset_registers();
        self.mailbox.publish(self.apic.destination());
        self.run_state = if self.index == 0 { RunState::Running } else { RunState::WaitForSipi };
    }

    /// SIPI: ignored unless waited for; starts in real mode at page `vector`.
    fn start_up(&mut self, vector: u8) {
        if self.run_state != RunState::WaitForSipi {
            return;
        }
        self.segment[seg::CS] = Segment {
            selector: u16::from(vector) << 8,
            base: u64::from(vector) << 12,
            ..self.segment[seg::CS]
        };
        self.set_rip(0);
        self.run_state = RunState::Running;
        self.refresh();
    }

    /// Whether an event would end HLT now.
    pub(crate) fn has_wake_event(&mut self) -> bool {
        std::mem::take(&mut self.woken)
            || self.nmi_pending && !self.nmi_blocked
            || self.interrupts_enabled() && (self.apic.pending().is_some() || self.extint_waits())
    }

    /// Whether an event waits that could not be delivered at this boundary.
    pub(crate) fn has_blocked_event(&mut self) -> bool {
        self.debug_trap != 0
            || self.nmi_pending
            || self.apic.pending().is_some()
            || self.extint_waits()
    }

    fn extint_waits(&self) -> bool {
        self.mailbox.extint() && self.apic.accepts_extint()
    }

    /// At an instruction boundary: delivers the event of highest priority (SDM vol. 3A table 6-2).
    /// Debug traps come first, then NMI, then interrupts.
    pub(crate) fn deliver_pending(&mut self, bus: Bus<'_>) {
        let shadow = std::mem::take(&mut self.shadow);
        if self.debug_trap != 0 && shadow != Shadow::MovSs {
            self.dr6 |= std::mem::take(&mut self.debug_trap);
            self.deliver_exception(bus, Exception::new(vector::DB), Source::Trap);
            return;
        }
        // A debugger's step goes through the code that it shows, not into a handler.
        if shadow == Shadow::MovSs || self.debugged && self.debugger.step {
            return;
        }
        if self.nmi_pending && !self.nmi_blocked {
            self.nmi_pending = false;
            self.nmi_blocked = true;
            self.interrupt(bus, vector::NMI);
            return;
        }
        if shadow != Shadow::None || !self.interrupts_enabled() {
            return;
        }
        if self.extint_waits() {
            let vector = bus.acknowledge_extint();
            self.interrupt(bus, vector);
        } else if let Some(vector) = self.apic.acknowledge() {
            self.interrupt(bus, vector);
        }
    }

    fn interrupt(&mut self, bus: Bus<'_>, vector: u8) {
        self.counters.interrupts += 1;
        if self.observer.traces(Traced::INTERRUPTS) {
            self.observer.tell(TraceEvent::Interrupt { vector, rip: Some(self.rip()) });
        }
        self.run_state = RunState::Running;
        self.deliver_event(bus, Event { vector, error_code: None, source: Source::External });
    }

    /// A cause to leave `run`, if an access gave one.
    pub(crate) fn take_stop(&mut self) -> Option<StopCause> {
        self.stop.take()
    }
}
