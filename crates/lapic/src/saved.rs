//! The saved form of a local APIC: part of an engine's vCPU state.
//!
//! Engine-neutral: it names registers as the SDM does, so that it converts to and from the
//! register page that a kernel's APIC saves, and keeps time relative to the moment of saving.

use serde::{Deserialize, Serialize};

use crate::apic::LocalApic;
use crate::registers::{DFR_ONES, DIVIDE_WRITABLE, LDR_WRITABLE, esr, icr, lvt, svr};
use crate::timer::{Mode, Timer};
use crate::vectors::VectorSet;
use crate::{ApicMode, Tsc};

/// The whole state of a [`LocalApic`](crate::LocalApic), as
/// [`LocalApic::save`](crate::LocalApic::save) gives it. Registers have the values that a guest
/// would read, except where noted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedLocalApic {
    /// APIC id, 32 bits in every mode (offset 0x20 has it in bits 31:24 in xAPIC mode).
    pub apic_id: u32,
    /// IA32_APIC_BASE.
    pub base_msr: u64,
    /// Task priority register, offset 0x80.
    pub tpr: u8,
    /// Logical destination register of xAPIC mode, offset 0xd0; in x2APIC mode the value that was
    /// there before, which the guest cannot see.
    pub ldr: u32,
    /// Destination format register, offset 0xe0.
    pub dfr: u32,
    /// Spurious-interrupt vector register, offset 0xf0.
    pub svr: u32,
    /// In-service register, offsets 0x100 to 0x170, vectors 0 to 31 first.
    pub isr: [u32; 8],
    /// Trigger mode register, offsets 0x180 to 0x1f0.
    pub tmr: [u32; 8],
    /// Interrupt request register, offsets 0x200 to 0x270.
    pub irr: [u32; 8],
    /// Error status register as last latched, offset 0x280.
    pub esr: u32,
    /// Errors since then, which the next write to the error status register latches.
    pub pending_errors: u32,
    /// Interrupt command register: offset 0x300 in bits 31:0; in bits 63:32 offset 0x310, with the
    /// destination in bits 63:56 in xAPIC mode and in bits 63:32 in x2APIC mode.
    pub icr: u64,
    /// LVT timer entry, offset 0x320.
    pub lvt_timer: u32,
    /// LVT thermal sensor entry, offset 0x330.
    pub lvt_thermal: u32,
    /// LVT performance counter entry, offset 0x340.
    pub lvt_performance: u32,
    /// LVT LINT0 entry, offset 0x350.
    pub lvt_lint0: u32,
    /// LVT LINT1 entry, offset 0x360.
    pub lvt_lint1: u32,
    /// LVT error entry, offset 0x370.
    pub lvt_error: u32,
    /// Initial count of the timer, offset 0x380.
    pub timer_initial_count: u32,
    /// Divide configuration of the timer, offset 0x3e0.
    pub timer_divide: u32,
    /// What is left of the countdown of one-shot and periodic mode; the current count of offset
    /// 0x390 is this in bus ticks, divided and rounded up. `None` when the timer is not counting.
    pub timer_countdown: Option<SavedCountdown>,
    /// IA32_TSC_DEADLINE in ticks of the guest TSC; 0 when disarmed.
    pub tsc_deadline: u64,
}

/// Time until a countdown ends, in guest TSC ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedCountdown {
    /// Whole ticks.
    pub tsc_ticks: u64,
    /// And a fraction of a tick, as a multiple of one over the bus frequency in kHz.
    pub fraction: u32,
}

/// A saved state that no local APIC of this configuration can be in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The state is of another APIC.
    #[error(
        "saved local APIC has id {found} where {expected} is expected; restore each vCPU from its own state"
    )]
    WrongId {
        /// Id in the saved state.
        found: u32,
        /// Id of this APIC.
        expected: u32,
    },
    /// A register has a value that cannot be.
    #[error(
        "saved local APIC {apic_id}: {register} cannot be {value:#x}; the saved state is damaged"
    )]
    Register {
        /// Id of the APIC.
        apic_id: u32,
        /// Name of the register.
        register: &'static str,
        /// The value; of a 256-bit register the first 32 bits.
        value: u64,
    },
}

impl LocalApic {
    /// Saves the APIC at time `now`. Interrupts that are due by then are in IRR.
    pub fn save(&mut self, now: Tsc) -> SavedLocalApic {
        self.tick(now);
        let [lvt_timer, lvt_thermal, lvt_performance, lvt_lint0, lvt_lint1, lvt_error] = self.lvt;
        SavedLocalApic {
            apic_id: self.config.apic_id,
            base_msr: self.base_msr,
            tpr: self.tpr,
            ldr: self.ldr,
            dfr: self.dfr,
            svr: self.svr,
            isr: self.isr.words(),
            tmr: self.tmr.words(),
            irr: self.irr.words(),
            esr: self.esr,
            pending_errors: self.pending_errors,
            icr: self.icr,
            lvt_timer,
            lvt_thermal,
            lvt_performance,
            lvt_lint0,
            lvt_lint1,
            lvt_error,
            timer_initial_count: self.timer.initial_count,
            timer_divide: self.timer.divide,
            timer_countdown: self.timer.save_countdown(now),
            tsc_deadline: self.timer.tsc_deadline,
        }
    }

    /// Replaces the state by `saved`, at time `now`: the countdown goes on from here.
    ///
    /// The caller [publishes](crate::Mailbox::publish) [`destination`](Self::destination)
    /// afterwards.
    ///
    /// # Errors
    /// [`RestoreError`] for values that no APIC of this configuration can have; the APIC is
    /// unchanged then.
    pub fn restore(&mut self, saved: &SavedLocalApic, now: Tsc) -> Result<(), RestoreError> {
        saved.check_id(self.config.apic_id)?;
        let mode = self.valid_mode(saved.base_msr);
        let mode = mode.ok_or_else(|| saved.wrong("IA32_APIC_BASE", saved.base_msr))?;
        saved.check_registers(mode)?;
        saved.check_local_vectors()?;
        saved.check_timer()?;

        let mut timer = Timer::new(&self.config);
        timer.mode = Mode::from_lvt(saved.lvt_timer);
        timer.initial_count = saved.timer_initial_count;
        timer.divide = saved.timer_divide;
        timer.tsc_deadline = saved.tsc_deadline;
        if let Some(countdown) = saved.timer_countdown {
            let restored = timer.restore_countdown(countdown, now);
            restored.ok_or_else(|| saved.wrong("timer countdown", countdown.tsc_ticks))?;
        }

        self.base_msr = saved.base_msr;
        self.tpr = saved.tpr;
        self.ldr = saved.ldr;
        self.dfr = saved.dfr;
        self.svr = saved.svr;
        self.isr = VectorSet::from_words(saved.isr);
        self.tmr = VectorSet::from_words(saved.tmr);
        self.irr = VectorSet::from_words(saved.irr);
        self.esr = saved.esr;
        self.pending_errors = saved.pending_errors;
        self.icr = saved.icr;
        self.lvt = saved.local_vectors();
        self.timer = timer;
        self.update_priority();
        Ok(())
    }
}

impl SavedLocalApic {
    fn wrong(&self, register: &'static str, value: u64) -> RestoreError {
        RestoreError::Register { apic_id: self.apic_id, register, value }
    }

    /// The error that `register` has `value`, if it sets bits outside `allowed`.
    fn check_bits(
        &self,
        register: &'static str,
        value: u64,
        allowed: u64,
    ) -> Result<(), RestoreError> {
        if value & !allowed == 0 { Ok(()) } else { Err(self.wrong(register, value)) }
    }

    fn check_id(&self, expected: u32) -> Result<(), RestoreError> {
        if self.apic_id == expected {
            return Ok(());
        }
        Err(RestoreError::WrongId { found: self.apic_id, expected })
    }

    fn check_registers(&self, mode: ApicMode) -> Result<(), RestoreError> {
        let destination = match mode {
            ApicMode::X2apic => u64::from(u32::MAX) << 32,
            ApicMode::Xapic | ApicMode::Disabled => 0xff << 56,
        };
        self.check_bits("ICR", self.icr, destination | u64::from(icr::WRITABLE))?;
        self.check_bits("LDR", self.ldr.into(), LDR_WRITABLE.into())?;
        self.check_bits("SVR", self.svr.into(), svr::WRITABLE.into())?;
        self.check_bits("ESR", self.esr.into(), esr::DEFINED.into())?;
        self.check_bits("pending errors", self.pending_errors.into(), esr::DEFINED.into())?;
        if self.dfr & DFR_ONES != DFR_ONES {
            return Err(self.wrong("DFR", self.dfr.into()));
        }
        for (register, words) in [("ISR", self.isr), ("TMR", self.tmr), ("IRR", self.irr)] {
            if VectorSet::from_words(words).has_illegal() {
                return Err(self.wrong(register, words[0].into()));
            }
        }
        Ok(())
    }

    /// The local vector table, in the order of the register offsets.
    fn local_vectors(&self) -> [u32; 6] {
        [
            self.lvt_timer,
            self.lvt_thermal,
            self.lvt_performance,
            self.lvt_lint0,
            self.lvt_lint1,
            self.lvt_error,
        ]
    }

    fn check_local_vectors(&self) -> Result<(), RestoreError> {
        const NAMES: [&str; 6] =
            ["LVT timer", "LVT thermal", "LVT performance", "LVT LINT0", "LVT LINT1", "LVT error"];
        let must_mask = self.svr & svr::ENABLE == 0;
        for (index, value) in self.local_vectors().into_iter().enumerate() {
            self.check_bits(NAMES[index], value.into(), lvt::WRITABLE[index].into())?;
            if must_mask && value & lvt::MASKED == 0 {
                return Err(self.wrong(NAMES[index], value.into()));
            }
        }
        Ok(())
    }

    fn check_timer(&self) -> Result<(), RestoreError> {
        self.check_bits("timer divide", self.timer_divide.into(), DIVIDE_WRITABLE.into())?;
        let counting = self.timer_initial_count != 0 || self.timer_countdown.is_some();
        if Mode::from_lvt(self.lvt_timer) == Mode::TscDeadline {
            if counting {
                return Err(self.wrong("timer initial count", self.timer_initial_count.into()));
            }
        } else if self.tsc_deadline != 0 {
            return Err(self.wrong("IA32_TSC_DEADLINE", self.tsc_deadline));
        }
        Ok(())
    }
}
