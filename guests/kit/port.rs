//! Port input and output.

use core::arch::asm;

macro_rules! port_pair {
    ($read:ident, $write:ident, $int:ty, $reg:tt, $bits:literal) => {
        #[doc = concat!("Reads ", $bits, " bits from an I/O port.")]
        pub fn $read(port: u16) -> $int {
            let value: $int;
            // SAFETY: port input does not touch memory that Rust knows of.
            unsafe {
                asm!(concat!("in ", $reg, ", dx"), in("dx") port, out($reg) value,
                     options(nostack, preserves_flags));
            }
            value
        }

        #[doc = concat!("Writes ", $bits, " bits to an I/O port.")]
        pub fn $write(port: u16, value: $int) {
            // SAFETY: as for input; no device here is programmed to do DMA.
            unsafe {
                asm!(concat!("out dx, ", $reg), in("dx") port, in($reg) value,
                     options(nostack, preserves_flags));
            }
        }
    };
}

port_pair!(in8, out8, u8, "al", "8");
port_pair!(in16, out16, u16, "ax", "16");
port_pair!(in32, out32, u32, "eax", "32");
