//! The APIC timer (Intel SDM vol. 3A 11.5.4).
//!
//! The countdown is kept as the moment at which it reaches zero, in units that make every
//! computation exact: one *subtick* is a TSC tick divided by the bus frequency in kHz, so a TSC
//! tick is `bus_khz` subticks and a bus tick is `tsc_khz` subticks. Periods therefore never
//! drift, whatever the ratio of the two clocks.

use std::num::NonZeroU32;

use crate::registers::DIVIDE_WRITABLE;
use crate::saved::SavedCountdown;
use crate::{LocalApicConfig, Tsc};

/// Timer mode: bits 18:17 of the LVT timer entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
    /// Counts as one-shot does, but has no meaning of its own; nothing uses it.
    Reserved,
}

impl Mode {
    pub(crate) const fn from_lvt(lvt: u32) -> Self {
        match lvt >> 17 & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }
}

/// What the timer counts and when it is due. Whether it is masked is not its business.
#[derive(Clone, Debug)]
pub(crate) struct Timer {
    tsc_khz: NonZeroU32,
    bus_khz: NonZeroU32,
    pub(crate) mode: Mode,
    pub(crate) initial_count: u32,
    /// Divide configuration register.
    pub(crate) divide: u32,
    /// When the count reaches zero, in subticks since TSC zero; `None` when it stands at zero.
    zero_at: Option<u128>,
    /// IA32_TSC_DEADLINE; zero when disarmed.
    pub(crate) tsc_deadline: Tsc,
}

impl Timer {
    pub(crate) fn new(config: &LocalApicConfig) -> Self {
        Self {
            tsc_khz: config.tsc_khz,
            bus_khz: config.bus_khz,
            mode: Mode::OneShot,
            initial_count: 0,
            divide: 0,
            zero_at: None,
            tsc_deadline: 0,
        }
    }

    /// Power-on state.
    pub(crate) fn reset(&mut self) {
        self.mode = Mode::OneShot;
        self.initial_count = 0;
        self.divide = 0;
        self.zero_at = None;
        self.tsc_deadline = 0;
    }

    /// The divisor: bits 3, 1 and 0 of the divide configuration register select 2, 4, 8, 16, 32,
    /// 64, 128 and 1 (figure 11-10).
    fn divisor(&self) -> u128 {
        let code = self.divide >> 1 & 4 | self.divide & 3;
        1 << ((code + 1) & 7)
    }

    /// Subticks of one count.
    fn step(&self) -> u128 {
        u128::from(self.tsc_khz.get()) * self.divisor()
    }

    /// Subticks of a whole countdown from the initial count.
    fn period(&self) -> u128 {
        self.step() * u128::from(self.initial_count)
    }

    fn subticks(&self, tsc: Tsc) -> u128 {
        u128::from(tsc) * u128::from(self.bus_khz.get())
    }

    /// Writes the initial count, which starts the countdown; zero stops it. Ignored in
    /// TSC-deadline mode.
    pub(crate) fn set_initial_count(&mut self, count: u32, now: Tsc) {
        if self.mode == Mode::TscDeadline {
            return;
        }
        self.initial_count = count;
        self.zero_at = (count != 0).then(|| self.subticks(now) + self.period());
    }

    /// The current count at `now`, to which the timer has been [advanced](Self::advance).
    pub(crate) fn current_count(&self, now: Tsc) -> u32 {
        let left = self.left(now).unwrap_or(0).div_ceil(self.step());
        u32::try_from(left).unwrap_or(u32::MAX)
    }

    /// Subticks until the count reaches zero; never more than a whole countdown, which a TSC that
    /// goes backwards would show.
    fn left(&self, now: Tsc) -> Option<u128> {
        Some(self.zero_at?.saturating_sub(self.subticks(now)).min(self.period()))
    }

    /// Writes the divide configuration. The count goes on from where it is, at the new rate.
    pub(crate) fn set_divide(&mut self, value: u32, now: Tsc) {
        let left = self.left(now);
        let old = self.divisor();
        self.divide = value & DIVIDE_WRITABLE;
        self.zero_at = left.map(|left| self.subticks(now) + left * self.divisor() / old);
    }

    /// Follows a write to the LVT timer entry. Going into or out of TSC-deadline mode disarms
    /// (11.5.4.1).
    pub(crate) fn set_mode(&mut self, mode: Mode) {
        if (mode == Mode::TscDeadline) != (self.mode == Mode::TscDeadline) {
            self.zero_at = None;
            self.initial_count = 0;
            self.tsc_deadline = 0;
        }
        self.mode = mode;
    }

    /// Writes IA32_TSC_DEADLINE: zero disarms; ignored in the other modes.
    pub(crate) fn set_tsc_deadline(&mut self, deadline: Tsc) {
        if self.mode == Mode::TscDeadline {
            self.tsc_deadline = deadline;
        }
    }

    /// When the timer next fires.
    pub(crate) fn deadline(&self) -> Option<Tsc> {
        if self.mode == Mode::TscDeadline {
            return (self.tsc_deadline != 0).then_some(self.tsc_deadline);
        }
        let tsc = self.zero_at?.div_ceil(u128::from(self.bus_khz.get()));
        Some(Tsc::try_from(tsc).unwrap_or(Tsc::MAX))
    }

    /// Brings the timer to `now`: whether it fired since. Periods that were missed count as one;
    /// the next one ends where it would have without the delay.
    pub(crate) fn advance(&mut self, now: Tsc) -> bool {
        if self.mode == Mode::TscDeadline {
            let due = self.tsc_deadline != 0 && self.tsc_deadline <= now;
            if due {
                self.tsc_deadline = 0;
            }
            return due;
        }
        let reached = self.subticks(now);
        let Some(zero_at) = self.zero_at.filter(|zero_at| *zero_at <= reached) else {
            return false;
        };
        let period = self.period();
        self.zero_at = (self.mode == Mode::Periodic && period != 0)
            .then(|| zero_at + ((reached - zero_at) / period + 1) * period);
        true
    }

    /// Moves the countdown with a TSC that was set from `old` to `new`: bus time goes on as it
    /// did. A TSC deadline stays, since it is about the TSC itself.
    pub(crate) fn tsc_changed(&mut self, old: Tsc, new: Tsc) {
        self.zero_at = self.left(old).map(|left| self.subticks(new) + left);
    }

    /// The countdown for saving, at a `now` to which the timer has been advanced.
    pub(crate) fn save_countdown(&self, now: Tsc) -> Option<SavedCountdown> {
        let left = self.left(now)?;
        let per_tick = u128::from(self.bus_khz.get());
        Some(SavedCountdown {
            tsc_ticks: u64::try_from(left / per_tick).unwrap_or(u64::MAX),
            fraction: (left % per_tick) as u32,
        })
    }

    /// Continues a saved countdown at `now`; `None` when it is longer than from the initial count
    /// or its fraction is not one.
    pub(crate) fn restore_countdown(&mut self, saved: SavedCountdown, now: Tsc) -> Option<()> {
        let per_tick = self.bus_khz.get();
        let left = self.subticks(saved.tsc_ticks) + u128::from(saved.fraction);
        if saved.fraction >= per_tick || left > self.period() {
            return None;
        }
        self.zero_at = Some(self.subticks(now) + left);
        Some(())
    }
}
