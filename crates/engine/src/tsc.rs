//! From guest real time to time-stamp counter ticks and back.
//!
//! The guest's TSC is a function of its real time: `base ticks + offset`, where the base ticks are
//! [`TscScale::ns_to_ticks`] of `device::GuestClock::now` and the offset belongs to the vCPU (it is
//! zero until the guest writes IA32_TIME_STAMP_COUNTER or IA32_TSC_ADJUST). Engines and the
//! paravirtual clock use the same function, so that both clocks of the guest agree to the tick.

/// A TSC frequency, with exact and monotone conversions between nanoseconds and ticks.
///
/// ```
/// let scale = engine::TscScale::new(2_500_000); // 2.5 GHz
/// assert_eq!(scale.ns_to_ticks(3), 7);
/// assert_eq!(scale.ticks_to_ns(7), 3);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscScale {
    khz: u32,
}

const NS_PER_MS: u64 = 1_000_000;

impl TscScale {
    /// A counter of `khz` thousand ticks a second; 0 is taken as 1.
    pub const fn new(khz: u32) -> Self {
        Self { khz: if khz == 0 { 1 } else { khz } }
    }

    /// The frequency in kHz.
    pub const fn khz(self) -> u32 {
        self.khz
    }

    /// Whole ticks in `ns` nanoseconds: `ns * khz / 1,000,000`, rounded down; saturates.
    #[inline]
    pub const fn ns_to_ticks(self, ns: u64) -> u64 {
        let khz = self.khz as u64;
        // Whole milliseconds are exact; the rest is below 2^52.
        let whole = (ns / NS_PER_MS).saturating_mul(khz);
        whole.saturating_add(ns % NS_PER_MS * khz / NS_PER_MS)
    }

    /// The first nanosecond at which the counter shows at least `ticks`: `ticks * 1,000,000 / khz`,
    /// rounded up; saturates. A timer armed for it fires when the counter has reached its deadline,
    /// never before.
    #[inline]
    pub const fn ticks_to_ns(self, ticks: u64) -> u64 {
        let khz = self.khz as u64;
        let whole = (ticks / khz).saturating_mul(NS_PER_MS);
        whole.saturating_add((ticks % khz * NS_PER_MS).div_ceil(khz))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: [u32; 7] = [1, 999, 1_000_000, 1_000_001, 2_399_996, 3_700_000, u32::MAX];
    const NANOS: [u64; 9] = [
        0,
        1,
        999_999,
        1_000_000,
        1_000_001,
        86_400_000_000_123,
        1 << 52,
        31_536_000_000_000_000,
        315_360_000_000_000_007,
    ];

    #[test]
    fn agrees_with_wide_arithmetic() {
        for khz in RATES {
            let scale = TscScale::new(khz);
            for ns in NANOS {
                let wide = u128::from(ns) * u128::from(khz) / 1_000_000;
                let expected = u64::try_from(wide).unwrap_or(u64::MAX);
                assert_eq!(scale.ns_to_ticks(ns), expected, "{ns} ns at {khz} kHz");
                let back = (u128::from(ns) * 1_000_000).div_ceil(u128::from(khz));
                let expected = u64::try_from(back).unwrap_or(u64::MAX);
                assert_eq!(scale.ticks_to_ns(ns), expected, "{ns} ticks at {khz} kHz");
            }
        }
    }

    #[test]
    fn is_monotone() {
        for khz in RATES {
            let scale = TscScale::new(khz);
            for at in NANOS {
                let ticks = (at..at + 2000).map(|ns| scale.ns_to_ticks(ns));
                assert!(ticks.is_sorted(), "{khz} kHz around {at} ns");
                let nanos = (at..at + 2000).map(|t| scale.ticks_to_ns(t));
                assert!(nanos.is_sorted(), "{khz} kHz around {at} ticks");
            }
        }
    }

    #[test]
    fn a_deadline_is_reached_at_its_nanosecond_and_not_before() {
        for khz in [1_000, 1_000_000, 2_399_996, 3_700_000] {
            let scale = TscScale::new(khz);
            for deadline in [1, 17, 1 << 33, (1 << 50) + 3] {
                let ns = scale.ticks_to_ns(deadline);
                assert!(scale.ns_to_ticks(ns) >= deadline);
                assert!(scale.ns_to_ticks(ns - 1) < deadline);
            }
        }
    }

    #[test]
    fn saturates_instead_of_overflowing() {
        assert_eq!(TscScale::new(u32::MAX).ns_to_ticks(u64::MAX), u64::MAX);
        assert_eq!(TscScale::new(1).ticks_to_ns(u64::MAX), u64::MAX);
        assert_eq!(TscScale::new(0).khz(), 1);
    }
}
