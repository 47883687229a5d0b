//! Interesting values of registers and memory.

use crate::layout::{HIGH, LOW, PAGE, page};
use crate::random::Random;

/// An integer: often a boundary of one of the widths.
pub fn integer(random: &mut Random) -> u64 {
    let any = random.next();
    match random.below(16) {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        3 => any & 0x3f,
        4 => 1 << (any & 63),
        5 => (1_u64 << (any & 63)).wrapping_sub(1),
        6 => random.pick(&[0x7f, 0x80, 0xff, 0x100, 0x7fff, 0x8000, 0xffff, 0x1_0000]),
        7 => random.pick(&[0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0x1_0000_0000]),
        8 => random.pick(&[i64::MAX as u64, i64::MIN as u64, i64::MIN as u64 + 1, u64::MAX - 1]),
        9 => (any as i8) as u64,
        10 => u64::from(any as u32),
        11 => (any & 0xff) * 0x0101_0101_0101_0101,
        _ => any,
    }
}

/// A linear address for an operand of `size` bytes: mostly in mapped pages and there often at an
/// edge, sometimes on a page that refuses the access, rarely non-canonical or of the kernel.
pub fn address(random: &mut Random, size: u64) -> u64 {
    let base = if random.percent(70) { HIGH } else { LOW };
    within_window(random, base, size)
}

/// As [`address`], below 4 GiB where it can be.
pub fn low_address(random: &mut Random, size: u64) -> u64 {
    within_window(random, LOW, size)
}

fn within_window(random: &mut Random, base: u64, size: u64) -> u64 {
    let at = |number: u64| base + number * PAGE;
    let inside = random.below(PAGE);
    let aligned = match random.below(4) {
        0 => inside,
        1 => inside & !7,
        _ => inside & !63,
    };
    // From wholly before an edge, over all ways to straddle it, to just behind.
    let back = random.below(2 * size.max(1) + 1);
    let around = |number: u64| at(number) - back;
    match random.below(64) {
        0..=21 => at(page::DATA) + aligned,
        22..=27 => at(page::ISLAND) + aligned,
        28..=35 => around(page::DATA + 1),
        36..=38 => around(page::CONSTANT),
        39..=42 => at(page::CONSTANT) + aligned,
        43..=44 => around(page::CONSTANT + 1),
        45 => around(page::DATA),
        46 => around(page::ISLAND),
        47 => around(page::ISLAND + 1),
        48 => at(page::ISLAND + 1).wrapping_sub(size),
        49 => at(page::CONSTANT + 1) + aligned,
        50 => at(page::CODE) + aligned,
        51 => at(page::PATCHABLE) + aligned,
        52 => random.pick(&[0, 1, 0x1000, 0xffff, u64::MAX, u64::MAX - 7]),
        53 => random.pick(&[
            0x0000_8000_0000_0000,
            0x0000_7fff_ffff_fffc,
            0x8000_0000_0000_0000,
            0xffff_7fff_ffff_fff8,
            0xffff_8000_0000_0000,
            0x1234_5678_9abc_def0,
        ]),
        _ => at(page::DATA) + 0x400 + (aligned & 0x7ff),
    }
}

/// An address of the stack pointer: room on both sides mostly, else at an edge.
pub fn stack_address(random: &mut Random) -> u64 {
    if random.percent(65) {
        let base = if random.percent(70) { HIGH } else { LOW };
        let fine = if random.one_in(8) { random.below(8) } else { 0 };
        return base + page::DATA * PAGE + 0x800 + random.below(0x100) * 8 + fine;
    }
    address(random, 8)
}

/// Where code could continue: mostly in the code pages, sometimes where it cannot be executed.
pub fn code_address(random: &mut Random, near: u64) -> u64 {
    match random.below(16) {
        0..=5 => near.wrapping_add(random.below(24)),
        6..=8 => HIGH + page::CODE * PAGE + random.below(2 * PAGE),
        9 => LOW + page::CODE * PAGE + random.below(2 * PAGE),
        10 => HIGH + (page::CODE + 2) * PAGE - random.below(2),
        11 => HIGH + page::PATCHABLE * PAGE + random.below(PAGE),
        12 => HIGH + page::DATA * PAGE + random.below(PAGE),
        13 => HIGH + (page::CODE + 2) * PAGE + random.below(PAGE),
        14 => random.pick(&[0x0000_8000_0000_0000, 0xdead_0000_0000_0000, 0xffff_8000_0000_0000]),
        _ => random.pick(&[0, LOW + page::CODE * PAGE]),
    }
}

const SINGLES: [u32; 20] = [
    0x0000_0000, // zero
    0x8000_0000,
    0x3f80_0000, // 1
    0xbf80_0000,
    0x7f80_0000, // infinity
    0xff80_0000,
    0x7fc0_0000, // quiet NaN
    0xffc1_2345,
    0x7f80_0001, // signalling NaN
    0xffa0_0001,
    0x0000_0001, // denormal
    0x807f_ffff,
    0x0080_0000, // smallest normal
    0x7f7f_ffff, // largest
    0x4f00_0000, // 2^31
    0xcf00_0000,
    0x5f00_0000, // 2^63
    0x3f00_0000, // 1/2
    0x4b7f_ffff, // 2^24 - 1
    0x3380_0000, // 2^-24
];

const DOUBLES: [u64; 20] = [
    0x0000_0000_0000_0000,
    0x8000_0000_0000_0000,
    0x3ff0_0000_0000_0000, // 1
    0xbff0_0000_0000_0000,
    0x7ff0_0000_0000_0000, // infinity
    0xfff0_0000_0000_0000,
    0x7ff8_0000_0000_0000, // quiet NaN
    0xfff8_1234_5678_9abc,
    0x7ff0_0000_0000_0001, // signalling NaN
    0xfff4_0000_0000_0001,
    0x0000_0000_0000_0001, // denormal
    0x800f_ffff_ffff_ffff,
    0x0010_0000_0000_0000, // smallest normal
    0x7fef_ffff_ffff_ffff, // largest
    0x41e0_0000_0000_0000, // 2^31
    0xc3e0_0000_0000_0000, // -2^63
    0x3fe0_0000_0000_0000, // 1/2
    0x433f_ffff_ffff_ffff,
    0x3ca0_0000_0000_0000, // 2^-53
    0x36a0_0000_0000_0000, // smallest denormal as single
];

fn single(random: &mut Random) -> u32 {
    match random.below(4) {
        0 | 1 => random.pick(&SINGLES),
        // An exponent near 1, so that sums and products are ordinary.
        2 => (random.next() as u32 & 0x83ff_ffff) | 0x3c00_0000,
        _ => random.next() as u32,
    }
}

fn double(random: &mut Random) -> u64 {
    match random.below(4) {
        0 | 1 => random.pick(&DOUBLES),
        2 => (random.next() & 0x807f_ffff_ffff_ffff) | 0x3f80_0000_0000_0000,
        _ => random.next(),
    }
}

/// 128 bits of vector register or memory: integers, singles or doubles.
pub fn vector_lane(random: &mut Random) -> u128 {
    let pair = |low: u64, high: u64| u128::from(low) | u128::from(high) << 64;
    match random.below(4) {
        0 => {
            let mut lane = || u64::from(single(random)) | u64::from(single(random)) << 32;
            pair(lane(), lane())
        }
        1 => pair(double(random), double(random)),
        2 => pair(integer(random), integer(random)),
        _ => pair(random.next(), random.next()),
    }
}

/// An 80-bit x87 value, also of the forms that no current CPU produces.
pub fn extended(random: &mut Random) -> [u8; 10] {
    let sign = (random.next() as u16) & 0x8000;
    let (exponent, significand): (u16, u64) = match random.below(16) {
        0 => (0, 0),
        1 => (0, random.next() & (u64::MAX >> 1)),
        2 => (0, random.next() | 1 << 63),
        3 => (0x7fff, 1 << 63),
        4 => (0x7fff, 0xc000_0000_0000_0000 | random.next()),
        5 => (0x7fff, 0x8000_0000_0000_0001),
        6 => (0x7fff, random.next() >> 1),
        7 => ((random.next() as u16) & 0x7fff, random.next() >> 1),
        8 => (0x3fff, 1 << 63),
        9 => (0x7ffe, u64::MAX),
        10 => (1, 1 << 63),
        11 => (0x403e, random.next() | 1 << 63),
        _ => (0x3fff - 40 + random.below(110) as u16, random.next() | 1 << 63),
    };
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&significand.to_le_bytes());
    bytes[8..].copy_from_slice(&(sign | exponent).to_le_bytes());
    bytes
}
