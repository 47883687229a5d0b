//! Output on COM1 by polling (16550 UART, no interrupts).

use crate::port::{in8, out8};
use core::fmt;

const COM1: u16 = 0x3f8;
/// Line status: transmit holding register empty.
const THRE: u8 = 1 << 5;

/// 115200 baud, 8 data bits, no parity, no interrupts.
pub fn init() {
    out8(COM1 + 1, 0);
    out8(COM1 + 3, 0x80);
    out8(COM1, 1);
    out8(COM1 + 1, 0);
    out8(COM1 + 3, 0x03);
    out8(COM1 + 2, 0x07);
    out8(COM1 + 4, 0x03);
}

/// The serial port as a text sink. Line feeds go out alone.
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while in8(COM1 + 5) & THRE == 0 {
                core::hint::spin_loop();
            }
            out8(COM1, byte);
        }
        Ok(())
    }
}

/// Prints formatted text without a line feed.
pub fn print(text: fmt::Arguments<'_>) {
    // The serial port's writer never fails.
    let _ = fmt::Write::write_fmt(&mut Serial, text);
}

/// Prints a formatted line.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => { $crate::serial::print(format_args!("{}\n", format_args!($($arg)*))) };
}
