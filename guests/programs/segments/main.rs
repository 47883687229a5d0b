//! Segment registers and what goes with them: descriptor checks on loads,
//! FS and GS bases, the verification instructions, table registers, UMIP,
//! IOPL and the I/O permission bitmap (Intel SDM vol. 3A chapter 5; vol. 1
//! chapter 19).

#![no_std]
#![no_main]

mod bases;
mod flags;
mod loads;
mod ports;
mod tables;
mod verify;

use kit::Report;

kit::program!(main);

fn main(t: &mut Report) {
    loads::run(t);
    bases::run(t);
    verify::run(t);
    tables::run(t);
    flags::run(t);
    ports::run(t);
}

/// Selector for descriptors that a check builds.
const SPARE: u16 = kit::tables::FREE_SELECTOR;
/// Descriptor bit: present.
const PRESENT: u64 = kit::tables::field::PRESENT;

/// A flat descriptor with this type field (bit 4 = S) and DPL.
const fn described(kind: u64, dpl: u64) -> u64 {
    let base = kit::tables::DATA & !(0x1f << 40) & !(3 << 45);
    // Code: no default size bits that would be invalid in long mode.
    let base = if kind & 0x18 == 0x18 { base & !(1 << 54) | 1 << 53 } else { base };
    base | kind << 40 | dpl << 45
}
