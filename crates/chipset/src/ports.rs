//! Accesses that are wider than a device's registers.
//!
//! Most devices of a PC sit on an 8-bit bus: the chipset splits a wider access into one access
//! per byte, at ascending ports.

use device::Width;

/// Reads a byte at each port of the access.
pub(crate) fn read_bytes(port: u16, width: Width, mut read: impl FnMut(u16) -> u8) -> u32 {
    (0..width.bytes())
        .map(|i| u32::from(read(port.wrapping_add(i))) << (8 * i))
        .fold(0, |value, byte| value | byte)
}

/// Writes a byte to each port of the access.
pub(crate) fn write_bytes(port: u16, width: Width, value: u32, mut write: impl FnMut(u16, u8)) {
    for i in 0..width.bytes() {
        write(port.wrapping_add(i), (value >> (8 * i)) as u8);
    }
}
