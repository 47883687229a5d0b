//! The pair of 8259A interrupt controllers (Intel 8259A data sheet).

use crate::port::{in8, out8};

/// Command port of the first controller.
pub const MASTER: u16 = 0x20;
/// Command port of the second controller.
pub const SLAVE: u16 = 0xa0;

/// Initialises both controllers (edge triggered, cascade on IRQ 2, normal
/// EOI) with these vector bases, all lines masked.
pub fn init(master_base: u8, slave_base: u8) {
    for (port, base, cascade) in [(MASTER, master_base, 4), (SLAVE, slave_base, 2)] {
        out8(port, 0x11);
        out8(port + 1, base);
        out8(port + 1, cascade);
        out8(port + 1, 0x01);
        out8(port + 1, 0xff);
    }
}

/// Initialises with vectors 0x20 and 0x28, all lines masked.
pub fn mask_all() {
    init(0x20, 0x28);
}

/// Sets the masks: bit n = line n masked.
pub fn set_mask(lines: u16) {
    out8(MASTER + 1, lines as u8);
    out8(SLAVE + 1, (lines >> 8) as u8);
}

/// Reads the masks.
pub fn mask() -> u16 {
    u16::from(in8(MASTER + 1)) | u16::from(in8(SLAVE + 1)) << 8
}

/// Non-specific end of interrupt for a line.
pub fn eoi(line: u8) {
    if line >= 8 {
        out8(SLAVE, 0x20);
    }
    out8(MASTER, 0x20);
}

/// Reads the interrupt request registers.
pub fn irr() -> u16 {
    read(0x0a)
}

/// Reads the in-service registers.
pub fn isr() -> u16 {
    read(0x0b)
}

fn read(ocw3: u8) -> u16 {
    out8(MASTER, ocw3);
    out8(SLAVE, ocw3);
    u16::from(in8(MASTER)) | u16::from(in8(SLAVE)) << 8
}
