//! Register accesses: the xAPIC page and the x2APIC MSRs, which are two views of the same
//! registers with different rules for what is reserved (Intel SDM vol. 3A 11.4.1, 11.12.1).

use crate::Tsc;
use crate::apic::{Effects, Fault, LocalApic};
use crate::destination::{ApicMode, Destination};
use crate::ipi::{Delivery, Ipi};
use crate::local::Entry;
use crate::registers::{
    DFR_ONES, DIVIDE_WRITABLE, LDR_WRITABLE, VERSION, esr, icr, lvt, offset, svr,
};
use crate::timer::Mode;

/// IA32_TSC_DEADLINE.
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// First and last MSR of the x2APIC range.
const MSR_X2APIC: std::ops::RangeInclusive<u32> = 0x800..=0x8ff;

impl LocalApic {
    /// Reads the 32-bit register at `offset` in the xAPIC page; registers are 16 bytes apart.
    ///
    /// Reserved offsets give zero and are an error that the error status register shows; so do
    /// offsets that are not multiples of 16, which the SDM leaves undefined.
    pub fn mmio_read(&mut self, offset: u32, now: Tsc) -> u32 {
        match offset {
            offset::ID => self.config.apic_id << 24,
            offset::LDR => self.ldr,
            offset::DFR => self.dfr,
            // Registers of older processors, and the write-only EOI: they exist but show nothing.
            offset::APR | offset::RRD | offset::EOI => 0,
            offset::ICR_HIGH => (self.icr >> 32) as u32,
            _ => self.read(offset, now).unwrap_or_else(|| {
                self.record_error(esr::ILLEGAL_REGISTER);
                0
            }),
        }
    }

    /// Writes the 32-bit register at `offset` in the xAPIC page. Writes to read-only registers and
    /// reserved bits have no effect; reserved offsets are an error as with
    /// [`mmio_read`](Self::mmio_read).
    pub fn mmio_write(&mut self, offset: u32, value: u32, now: Tsc) -> Effects {
        let before = self.destination();
        let mut effects = Effects::default();
        match offset {
            offset::LDR => self.ldr = value & LDR_WRITABLE,
            offset::DFR => self.dfr = value | DFR_ONES,
            offset::ICR_HIGH => {
                self.icr = self.icr & u64::from(u32::MAX) | u64::from(value & 0xff00_0000) << 32;
            }
            offset::ICR_LOW => {
                let high = self.icr & !u64::from(u32::MAX);
                effects.ipi = self.write_icr(high | u64::from(value));
            }
            offset::ID | offset::VERSION | offset::PPR | offset::CURRENT_COUNT => {}
            offset::APR | offset::RRD | offset::ISR..=offset::IRR_LAST if offset & 0xf == 0 => {}
            _ => match self.write(offset, value, now) {
                Some(eoi) => effects.eoi = eoi,
                None => self.record_error(esr::ILLEGAL_REGISTER),
            },
        }
        effects.destination_changed = self.destination() != before;
        effects
    }

    /// Reads an x2APIC MSR (0x800 to 0x8ff) or IA32_TSC_DEADLINE (0x6e0), at time `now`.
    ///
    /// # Errors
    /// [`Fault`] for another MSR, an x2APIC MSR outside x2APIC mode, and reserved and write-only
    /// registers.
    pub fn msr_read(&mut self, msr: u32, now: Tsc) -> Result<u64, Fault> {
        if msr == MSR_TSC_DEADLINE {
            self.tick(now);
            return Ok(self.timer.tsc_deadline);
        }
        match self.x2apic_offset(msr)? {
            offset::ID => Ok(u64::from(self.config.apic_id)),
            offset::LDR => Ok(u64::from(self.destination().x2apic_logical_id())),
            offset::ICR_LOW => Ok(self.icr),
            offset => self.read(offset, now).map(u64::from).ok_or(Fault),
        }
    }

    /// Writes an x2APIC MSR (0x800 to 0x8ff) or IA32_TSC_DEADLINE (0x6e0), at time `now`.
    ///
    /// # Errors
    /// [`Fault`] for another MSR, an x2APIC MSR outside x2APIC mode, reserved and read-only
    /// registers, and values that set reserved bits; EOI and ESR take only zero. Nothing has
    /// changed then.
    pub fn msr_write(&mut self, msr: u32, value: u64, now: Tsc) -> Result<Effects, Fault> {
        if msr == MSR_TSC_DEADLINE {
            self.tick(now);
            self.timer.set_tsc_deadline(value);
            self.tick(now);
            return Ok(Effects::default());
        }
        let offset = self.x2apic_offset(msr)?;
        if value & !x2apic_writable(offset).ok_or(Fault)? != 0 {
            return Err(Fault);
        }
        let before = self.destination();
        let mut effects = Effects::default();
        match offset {
            offset::ICR_LOW => effects.ipi = self.write_icr(value),
            offset::SELF_IPI => self.send_to_self(value as u8),
            _ => effects.eoi = self.write(offset, value as u32, now).ok_or(Fault)?,
        }
        effects.destination_changed = self.destination() != before;
        Ok(effects)
    }

    /// The offset that has the register of an x2APIC MSR.
    fn x2apic_offset(&self, msr: u32) -> Result<u32, Fault> {
        if self.mode() != ApicMode::X2apic || !MSR_X2APIC.contains(&msr) {
            return Err(Fault);
        }
        Ok((msr - MSR_X2APIC.start()) << 4)
    }

    /// Reads a register that is the same in both modes; `None` if there is no such register.
    fn read(&mut self, offset: u32, now: Tsc) -> Option<u32> {
        if offset & 0xf != 0 {
            return None;
        }
        let value = match offset {
            offset::VERSION => VERSION,
            offset::TPR => u32::from(self.tpr),
            offset::PPR => u32::from(self.ppr()),
            offset::SVR => self.svr,
            offset::ISR..=offset::ISR_LAST => self.isr.word(offset >> 4),
            offset::TMR..=offset::TMR_LAST => self.tmr.word(offset >> 4),
            offset::IRR..=offset::IRR_LAST => {
                self.tick(now);
                self.irr.word(offset >> 4)
            }
            offset::ESR => self.esr,
            offset::ICR_LOW => self.icr as u32,
            offset::LVT_TIMER..=offset::LVT_ERROR => self.lvt[lvt_index(offset)],
            offset::INITIAL_COUNT => self.timer.initial_count,
            offset::CURRENT_COUNT => {
                self.tick(now);
                self.timer.current_count(now)
            }
            offset::DIVIDE => self.timer.divide,
            _ => return None,
        };
        Some(value)
    }

    /// Writes a register that is the same in both modes, with what an EOI is to broadcast; `None`
    /// if there is no such writable register.
    fn write(&mut self, offset: u32, value: u32, now: Tsc) -> Option<Option<u8>> {
        match offset {
            offset::TPR => self.set_tpr(value as u8),
            offset::EOI => return Some(self.eoi()),
            offset::SVR => self.write_svr(value, now),
            offset::ESR => self.esr = std::mem::take(&mut self.pending_errors),
            offset::LVT_TIMER..=offset::LVT_ERROR if offset & 0xf == 0 => {
                self.write_lvt(lvt_index(offset), value, now);
            }
            offset::INITIAL_COUNT => {
                self.tick(now);
                self.timer.set_initial_count(value, now);
            }
            offset::DIVIDE => {
                self.tick(now);
                self.timer.set_divide(value, now);
            }
            _ => return None,
        }
        Some(None)
    }

    fn write_svr(&mut self, value: u32, now: Tsc) {
        self.tick(now);
        self.svr = value & svr::WRITABLE;
        if !self.software_enabled() {
            self.mask_local_vectors();
        }
        self.update_pending();
    }

    fn write_lvt(&mut self, index: usize, value: u32, now: Tsc) {
        // What came due while the entry was as before is delivered, or not, as it says.
        self.tick(now);
        let masked = if self.software_enabled() { 0 } else { lvt::MASKED };
        self.lvt[index] = value & lvt::WRITABLE[index] | masked;
        if index == Entry::Timer as usize {
            self.timer.set_mode(Mode::from_lvt(value));
        }
    }

    /// Writes the interrupt command register, which sends the interrupt.
    fn write_icr(&mut self, value: u64) -> Option<Ipi> {
        let low = value as u32 & icr::WRITABLE;
        self.icr = value & !u64::from(u32::MAX) | u64::from(low);
        let delivery = Delivery::from_icr(low >> icr::DELIVERY_SHIFT)?;
        let vector = low as u8;
        // The INIT level de-assert message means nothing to processors since the Pentium 4.
        if delivery == Delivery::Init && low & icr::LEVEL != 0 && low & icr::ASSERT == 0 {
            return None;
        }
        let logical = low & icr::LOGICAL != 0;
        let destination = match low >> icr::SHORTHAND_SHIFT & 3 {
            0 if self.mode() == ApicMode::X2apic => {
                Destination::from_x2apic(logical, (value >> 32) as u32)
            }
            0 => Destination::from_xapic(logical, (value >> 56) as u8),
            1 => {
                // Only fixed interrupts can be sent to oneself by the shorthand (table 11-3).
                if delivery == Delivery::Fixed {
                    self.send_to_self(vector);
                }
                return None;
            }
            2 => Destination::All,
            _ => Destination::AllButSelf,
        };
        if delivery.is_maskable() && vector < 16 {
            self.record_error(esr::SEND_ILLEGAL_VECTOR);
            return None;
        }
        Some(Ipi { source: self.config.apic_id, destination, delivery, vector })
    }

    fn send_to_self(&mut self, vector: u8) {
        if vector < 16 {
            self.record_error(esr::SEND_ILLEGAL_VECTOR);
        } else {
            self.accept(vector, false);
        }
    }
}

/// Index in the local vector table of the register at `offset`, one of the six.
fn lvt_index(offset: u32) -> usize {
    ((offset - offset::LVT_TIMER) >> 4) as usize
}

/// The bits that may be set in a write to an x2APIC register, including those that are ignored;
/// `None` for registers that cannot be written (Intel SDM vol. 3A 11.12.1.2, table 11-6).
fn x2apic_writable(offset: u32) -> Option<u64> {
    let bits = match offset {
        offset::TPR | offset::SELF_IPI => 0xff,
        offset::EOI | offset::ESR => 0,
        offset::SVR => svr::WRITABLE,
        offset::ICR_LOW => {
            return Some(u64::from(u32::MAX) << 32 | u64::from(icr::WRITABLE | icr::BUSY));
        }
        offset::LVT_TIMER..=offset::LVT_ERROR => {
            let remote_irr = match offset {
                offset::LVT_LINT0 | offset::LVT_LINT1 => lvt::REMOTE_IRR,
                _ => 0,
            };
            lvt::WRITABLE[lvt_index(offset)] | lvt::DELIVERY_STATUS | remote_irr
        }
        offset::INITIAL_COUNT => u32::MAX,
        offset::DIVIDE => DIVIDE_WRITABLE,
        _ => return None,
    };
    Some(u64::from(bits))
}
