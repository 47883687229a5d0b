//! The TSC's rate as the paravirtual clock states it.

/// How to convert TSC ticks to nanoseconds: shift the ticks left by `shift` (right when it is
/// negative), multiply by `multiplier`, drop the low 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PvclockScale {
    /// `tsc_shift`.
    pub(super) shift: i8,
    /// `tsc_to_system_mul`; the highest bit is set, so that it is as exact as can be.
    pub(super) multiplier: u32,
}

impl PvclockScale {
    /// The scale of a TSC of `khz` kHz. Rounds down, so that time never runs ahead; 0 counts as 1.
    pub(super) fn from_khz(khz: u32) -> Self {
        let hertz = u128::from(khz.max(1)) * 1000;
        // Nanoseconds per tick with 96 fractional bits: from 2^64 up for any 32-bit rate.
        let ratio = (1_000_000_000 << 96) / hertz;
        // The multiplier takes the highest 32 bits of it.
        let dropped = 128 - 32 - ratio.leading_zeros();
        let multiplier = (ratio >> dropped) as u32;
        // multiplier / 2^32 * 2^shift = ratio / 2^96
        let shift = dropped as i32 - 64;
        Self { shift: shift as i8, multiplier }
    }

    /// What a guest computes for `ticks`.
    #[cfg(test)]
    pub(super) fn nanos(self, ticks: u64) -> u64 {
        let shifted = match self.shift {
            0.. => u128::from(ticks) << self.shift,
            _ => u128::from(ticks >> self.shift.unsigned_abs()),
        };
        ((shifted * u128::from(self.multiplier)) >> 32) as u64
    }
}
