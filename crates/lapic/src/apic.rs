//! The state of a local APIC: construction, reset, modes, and the path of an interrupt from
//! acceptance to end of interrupt. Register accesses are in `access`, the local vector table in
//! `local`, the timer in `timer`.

use std::num::NonZeroU32;

use crate::destination::{ApicMode, DestinationInfo};
use crate::local::Entry;
use crate::registers::{DFR_ONES, DFR_RESET, base, esr, lvt, svr};
use crate::timer::Timer;
use crate::vectors::VectorSet;
use crate::{Ipi, Tsc};

/// What a local APIC is built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalApicConfig {
    /// Initial APIC id. xAPIC mode shows the low 8 bits. Guests cannot change it.
    pub apic_id: u32,
    /// Whether this is the bootstrap processor, which bit 8 of IA32_APIC_BASE tells.
    pub bsp: bool,
    /// Physical address width that CPUID leaf 0x80000008 tells, at most 52: the bits of
    /// IA32_APIC_BASE above it are reserved.
    pub physical_address_bits: u8,
    /// Frequency of the guest TSC.
    pub tsc_khz: NonZeroU32,
    /// Frequency of the bus clock, which the timer divides and counts.
    pub bus_khz: NonZeroU32,
}

impl Default for LocalApicConfig {
    /// The bootstrap processor with id 0, TSC and bus at 1 GHz, 46 physical address bits.
    fn default() -> Self {
        const GIGAHERTZ: NonZeroU32 = NonZeroU32::new(1_000_000).unwrap();
        Self {
            apic_id: 0,
            bsp: true,
            physical_address_bits: 46,
            tsc_khz: GIGAHERTZ,
            bus_khz: GIGAHERTZ,
        }
    }
}

/// The access raises a general-protection exception with error code 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("access to a local APIC register that raises #GP(0)")]
pub struct Fault;

/// What a register write asks of the world outside the APIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// An interprocessor interrupt for [`Fabric::deliver`](crate::Fabric::deliver). It may name
    /// the sender among others.
    pub ipi: Option<Ipi>,
    /// The vector of a level-triggered interrupt whose end is to be broadcast to the I/O APICs.
    pub eoi: Option<u8>,
    /// [`LocalApic::destination`] has changed and is to be
    /// [published](crate::Mailbox::publish).
    pub destination_changed: bool,
}

/// A local APIC. See the crate's documentation for how an engine drives it.
#[derive(Clone, Debug)]
pub struct LocalApic {
    pub(crate) config: LocalApicConfig,
    pub(crate) base_msr: u64,
    pub(crate) tpr: u8,
    pub(crate) ldr: u32,
    pub(crate) dfr: u32,
    pub(crate) svr: u32,
    pub(crate) isr: VectorSet,
    pub(crate) tmr: VectorSet,
    pub(crate) irr: VectorSet,
    pub(crate) esr: u32,
    /// Errors since the guest last wrote the error status register.
    pub(crate) pending_errors: u32,
    pub(crate) icr: u64,
    /// Local vector table, indexed by [`Entry`].
    pub(crate) lvt: [u32; 6],
    pub(crate) timer: Timer,
    /// Derived: processor priority.
    ppr: u8,
    /// Derived: the vector that would be delivered now.
    pending: Option<u8>,
}

impl LocalApic {
    /// An APIC after power-on: xAPIC mode with its page at `0xfee0_0000`, software-disabled.
    pub fn new(config: LocalApicConfig) -> Self {
        let mut apic = Self {
            config,
            base_msr: 0,
            tpr: 0,
            ldr: 0,
            dfr: DFR_RESET,
            svr: svr::RESET,
            isr: VectorSet::default(),
            tmr: VectorSet::default(),
            irr: VectorSet::default(),
            esr: 0,
            pending_errors: 0,
            icr: 0,
            lvt: [lvt::RESET; 6],
            timer: Timer::new(&config),
            ppr: 0,
            pending: None,
        };
        apic.reset();
        apic
    }

    /// RESET: the power-on state.
    pub fn reset(&mut self) {
        let bsp = if self.config.bsp { base::BSP } else { 0 };
        self.base_msr = base::DEFAULT_PAGE | base::ENABLE | bsp;
        self.init();
    }

    /// INIT: as RESET, but IA32_APIC_BASE keeps its value and with it the mode (Intel SDM
    /// vol. 3A 11.4.7.3, 11.12.5.1).
    pub fn init(&mut self) {
        self.tpr = 0;
        self.ldr = 0;
        self.dfr = DFR_RESET;
        self.svr = svr::RESET;
        self.isr = VectorSet::default();
        self.tmr = VectorSet::default();
        self.irr = VectorSet::default();
        self.esr = 0;
        self.pending_errors = 0;
        self.icr = 0;
        self.lvt = [lvt::RESET; 6];
        self.timer.reset();
        self.update_priority();
    }

    /// APIC id.
    pub fn id(&self) -> u32 {
        self.config.apic_id
    }

    /// IA32_APIC_BASE (MSR 0x1b).
    pub fn base_msr(&self) -> u64 {
        self.base_msr
    }

    /// Writes IA32_APIC_BASE. The caller publishes [`destination`](Self::destination) afterwards
    /// and looks at [`mmio_window`](Self::mmio_window) again.
    ///
    /// Disabling the APIC resets its registers, which the SDM permits (vol. 3A 11.4.3) and x2APIC
    /// mode requires (11.12.5).
    ///
    /// # Errors
    /// [`Fault`] for reserved bits and for the transitions that 11.12.5, figure 11-27 excludes:
    /// x2APIC without enable, from disabled to x2APIC, and from x2APIC to xAPIC.
    pub fn set_base_msr(&mut self, value: u64) -> Result<(), Fault> {
        let old = self.mode();
        let Some(new) = self.valid_mode(value) else { return Err(Fault) };
        match (old, new) {
            (ApicMode::Disabled, ApicMode::X2apic) | (ApicMode::X2apic, ApicMode::Xapic) => {
                return Err(Fault);
            }
            _ => self.base_msr = value,
        }
        if old != new {
            if new == ApicMode::Disabled {
                self.init();
            }
            // The destination is in other bits of the two modes' ICR.
            self.icr &= u64::from(u32::MAX);
            // A restored state may hold requests that were waiting for the APIC to be enabled.
            self.update_priority();
        }
        Ok(())
    }

    /// The mode that a value of IA32_APIC_BASE selects; `None` if it sets reserved bits or is the
    /// invalid combination.
    pub(crate) fn valid_mode(&self, value: u64) -> Option<ApicMode> {
        let width = u32::from(self.config.physical_address_bits.min(52));
        let page = base::PAGE & ((1 << width) - 1);
        let reserved = !(page | base::BSP | base::X2APIC | base::ENABLE);
        if value & reserved != 0 {
            return None;
        }
        match (value & base::ENABLE != 0, value & base::X2APIC != 0) {
            (false, false) => Some(ApicMode::Disabled),
            (true, false) => Some(ApicMode::Xapic),
            (true, true) => Some(ApicMode::X2apic),
            (false, true) => None,
        }
    }

    /// The mode of operation.
    pub fn mode(&self) -> ApicMode {
        match (self.base_msr & base::ENABLE != 0, self.base_msr & base::X2APIC != 0) {
            (false, _) => ApicMode::Disabled,
            (true, false) => ApicMode::Xapic,
            (true, true) => ApicMode::X2apic,
        }
    }

    pub(crate) fn hardware_enabled(&self) -> bool {
        self.base_msr & base::ENABLE != 0
    }

    pub(crate) fn software_enabled(&self) -> bool {
        self.svr & svr::ENABLE != 0
    }

    /// Guest-physical address of the 4 KiB register page; `None` outside xAPIC mode, where the
    /// page is ordinary address space.
    pub fn mmio_window(&self) -> Option<u64> {
        (self.mode() == ApicMode::Xapic).then_some(self.base_msr & base::PAGE)
    }

    /// What other APICs need to address this one.
    pub fn destination(&self) -> DestinationInfo {
        DestinationInfo {
            apic_id: self.config.apic_id,
            mode: self.mode(),
            software_enabled: self.software_enabled(),
            logical_id: (self.ldr >> 24) as u8,
            cluster: self.dfr | DFR_ONES != u32::MAX,
            priority: self.ppr,
        }
    }

    /// The task priority register: class in bits 7:4, subclass in bits 3:0. CR8 is
    /// [`cr8`](Self::cr8).
    pub fn tpr(&self) -> u8 {
        self.tpr
    }

    /// Writes the task priority register.
    pub fn set_tpr(&mut self, tpr: u8) {
        self.tpr = tpr;
        self.update_priority();
    }

    /// CR8: the task priority class, 0 to 15 (Intel SDM vol. 3A 11.8.6).
    pub fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// Writes CR8: bits 3:0 of `cr8` become the task priority class, the subclass becomes 0. The
    /// engine raises #GP for larger values.
    pub fn set_cr8(&mut self, cr8: u8) {
        self.set_tpr(cr8 << 4);
    }

    /// Processor priority register.
    pub fn ppr(&self) -> u8 {
        self.ppr
    }

    /// Accepts a maskable interrupt that arrives at this APIC: sets it in IRR, and in TMR if it is
    /// level-triggered. A disabled APIC takes none; vectors below 16 are an error that the error
    /// status register shows (Intel SDM vol. 3A 11.5.2, 11.8.4).
    pub fn accept(&mut self, vector: u8, level: bool) {
        if !self.hardware_enabled() || !self.software_enabled() {
            return;
        }
        if vector < 16 {
            self.record_error(esr::RECEIVE_ILLEGAL_VECTOR);
            return;
        }
        self.irr.set(vector, true);
        self.tmr.set(vector, level);
        self.update_pending();
    }

    /// The vector that is to be delivered: the highest in IRR, if its class is above the processor
    /// priority and the APIC is enabled. A field read, for polling between instructions.
    #[inline]
    pub fn pending(&self) -> Option<u8> {
        self.pending
    }

    /// The processor takes the [pending](Self::pending) interrupt: it moves from IRR to ISR.
    ///
    /// `None` when there is none. Between `pending` and here nothing can intervene on the vCPU's
    /// own thread, so the spurious interrupt of Intel SDM vol. 3A 11.9 does not arise; an engine
    /// that latches an interrupt request earlier uses [`spurious_vector`](Self::spurious_vector).
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending?;
        self.irr.set(vector, false);
        self.isr.set(vector, true);
        self.update_priority();
        Some(vector)
    }

    /// The vector that stands for an interrupt that went away before it was acknowledged.
    pub fn spurious_vector(&self) -> u8 {
        (self.svr & svr::VECTOR) as u8
    }

    /// End of interrupt: clears the highest vector in ISR. Gives the vector if it was
    /// level-triggered and its end is to be broadcast to the I/O APICs (Intel SDM vol. 3A
    /// 11.8.5). Also what a write to the EOI register does.
    pub fn eoi(&mut self) -> Option<u8> {
        let vector = self.isr.highest()?;
        self.isr.set(vector, false);
        self.update_priority();
        self.tmr.contains(vector).then_some(vector)
    }

    /// Whether the 8259's INTR reaches the processor: LINT0 is an unmasked ExtINT, or the APIC is
    /// disabled by IA32_APIC_BASE, so that the pin is INTR itself.
    pub fn accepts_extint(&self) -> bool {
        let lint0 = self.lvt[Entry::Lint0 as usize];
        let extint = lint0 & lvt::MASKED == 0 && lint0 >> lvt::DELIVERY_SHIFT & 7 == 7;
        !self.hardware_enabled() || extint
    }

    /// When [`tick`](Self::tick) is next needed, in guest TSC ticks: the timer is armed and its
    /// interrupt is not masked. May be in the past.
    pub fn deadline(&self) -> Option<Tsc> {
        if self.lvt[Entry::Timer as usize] & lvt::MASKED != 0 {
            return None;
        }
        self.timer.deadline()
    }

    /// Brings the timer to `now`, raising its interrupt if it is due. Periods that were missed
    /// count as one.
    pub fn tick(&mut self, now: Tsc) {
        if self.timer.advance(now) {
            self.signal_fixed(Entry::Timer);
        }
    }

    /// Follows a change of the guest TSC from `old` to `new` at one moment, by a write to IA32_TSC
    /// or IA32_TSC_ADJUST: the bus clock goes on undisturbed, while a TSC deadline is met earlier
    /// or later.
    pub fn tsc_changed(&mut self, old: Tsc, new: Tsc) {
        self.tick(old);
        self.timer.tsc_changed(old, new);
    }

    /// Recomputes the processor priority (Intel SDM vol. 3A 11.8.3.1) and what it lets through.
    pub(crate) fn update_priority(&mut self) {
        let in_service = self.isr.highest().unwrap_or(0) & 0xf0;
        self.ppr = if self.tpr & 0xf0 >= in_service { self.tpr } else { in_service };
        self.update_pending();
    }

    pub(crate) fn update_pending(&mut self) {
        let deliverable = |vector: &u8| vector & 0xf0 > self.ppr & 0xf0;
        let highest = self.irr.highest().filter(deliverable);
        self.pending = highest.filter(|_| self.hardware_enabled() && self.software_enabled());
    }
}
