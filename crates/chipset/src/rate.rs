//! Counters driven by crystals, in exact arithmetic.
//!
//! All timers of a PC derive from the 14.318 MHz crystal, which is 315/22 MHz by definition (four
//! times the NTSC colour subcarrier): the PIT counts at a twelfth, 105/88 MHz, the ACPI timer at a
//! quarter, 315/88 MHz.

use device::Nanos;

/// A frequency as ticks per nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    ticks: u64,
    nanos: u64,
}

/// The 8254's clock: 105/88 MHz, about 1,193,182 Hz.
pub(crate) const PIT: Rate = Rate { ticks: 105, nanos: 88_000 };

/// The ACPI power-management timer's clock: 315/88 MHz, about 3,579,545 Hz.
pub(crate) const ACPI_TIMER: Rate = Rate { ticks: 315, nanos: 88_000 };

/// The real-time clock's crystal: 32,768 Hz.
pub(crate) const RTC: Rate = Rate { ticks: 32_768, nanos: 1_000_000_000 };

impl Rate {
    /// Ticks completed at guest time `now`.
    pub(crate) fn ticks_at(self, now: Nanos) -> u64 {
        let ticks = u128::from(now) * u128::from(self.ticks) / u128::from(self.nanos);
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    /// First nanosecond at which `tick` is complete.
    pub(crate) fn time_of(self, tick: u64) -> Nanos {
        let nanos = (u128::from(tick) * u128::from(self.nanos)).div_ceil(u128::from(self.ticks));
        Nanos::try_from(nanos).unwrap_or(Nanos::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_is_complete_exactly_at_its_time() {
        for rate in [PIT, ACPI_TIMER, RTC] {
            for tick in (1..100_000).chain([1 << 40, (1 << 40) + 1]) {
                let time = rate.time_of(tick);
                assert_eq!(rate.ticks_at(time), tick);
                assert_eq!(rate.ticks_at(time - 1), tick - 1);
            }
        }
    }

    #[test]
    fn an_hour_has_no_rounding_drift() {
        assert_eq!(PIT.ticks_at(3_600_000_000_000), 105_000_000 * 3600 / 88);
        assert_eq!(RTC.ticks_at(3_600_000_000_000), 32_768 * 3600);
        assert_eq!(PIT.ticks_at(Nanos::MAX), (u128::from(u64::MAX) * 105 / 88_000) as u64);
    }
}
