//! Where a function is.

use std::fmt;

/// Slot and function on bus 0.
///
/// ```
/// let lpc = pci::Address::new(0x1f, 0);
/// assert_eq!(lpc.to_string(), "00:1f.0");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(u8);

impl Address {
    /// `slot` (device number), 0 to 31, and `function`, 0 to 7.
    ///
    /// # Panics
    /// When there is no such place: both are constants of a machine.
    pub const fn new(slot: u8, function: u8) -> Self {
        assert!(slot < 32 && function < 8, "no such slot or function");
        Self(slot << 3 | function)
    }

    /// The place that configuration addresses give in 8 bits: slot in 7:3, function in 2:0.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// The slot, 0 to 31.
    pub const fn slot(self) -> u8 {
        self.0 >> 3
    }

    /// The function, 0 to 7.
    pub const fn function(self) -> u8 {
        self.0 & 7
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00:{:02x}.{}", self.slot(), self.function())
    }
}
