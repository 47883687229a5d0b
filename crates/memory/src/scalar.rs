//! Integers that are loaded and stored whole.

use crate::window::Raw;

/// An integer of 1, 2, 4 or 8 bytes: what one memory access of a CPU carries.
pub trait Scalar: Raw + Copy + Eq + Send + Sync + 'static {
    /// Number of bytes.
    const BYTES: u64;
    /// Zero-extends to 64 bits.
    fn to_u64(self) -> u64;
    /// Keeps the low bits of `value`.
    fn from_u64(value: u64) -> Self;
}

macro_rules! scalar {
    ($($int:ty),*) => { $(
        impl Scalar for $int {
            const BYTES: u64 = size_of::<$int>() as u64;
            #[inline]
            fn to_u64(self) -> u64 {
                u64::from(self)
            }
            #[inline]
            fn from_u64(value: u64) -> Self {
                value as $int
            }
        }
    )* };
}

scalar!(u8, u16, u32, u64);
