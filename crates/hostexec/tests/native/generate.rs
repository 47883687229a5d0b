//! Instructions and register states for the comparisons.

use hostexec::FpuState;

/// A xorshift generator: the same cases in every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn byte(&mut self) -> u8 {
        (self.next() >> 56) as u8
    }
}

/// Single precision: zeros, ones, denormals, extremes, infinities, NaNs.
const SINGLES: [u32; 20] = [
    0,
    0x8000_0000,
    0x3f80_0000,
    0xbf80_0000,
    1,
    0x8000_0001,
    0x007f_ffff,
    0x0080_0000,
    0x0080_0001,
    0x7f7f_ffff,
    0xff7f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffc0_0001,
    0x7f80_0001,
    0x4b00_0001,
    0x3f00_0000,
    0x4f00_0000,
    0x3eaa_aaab,
];

/// The same for double precision.
const DOUBLES: [u64; 20] = [
    0,
    1 << 63,
    0x3ff0_0000_0000_0000,
    0xbff0_0000_0000_0000,
    1,
    0x8000_0000_0000_0001,
    0x000f_ffff_ffff_ffff,
    0x0010_0000_0000_0000,
    0x0010_0000_0000_0001,
    0x7fef_ffff_ffff_ffff,
    0xffef_ffff_ffff_ffff,
    0x7ff0_0000_0000_0000,
    0xfff0_0000_0000_0000,
    0x7ff8_0000_0000_0000,
    0xfff8_0000_0000_0001,
    0x7ff0_0000_0000_0001,
    0x4330_0000_0000_0001,
    0x3810_0000_0000_0000,
    0x47ef_ffff_f000_0000,
    0x36a0_0000_0000_0000,
];

/// 32 bytes that mean something as floats, or as integers, or nothing.
pub fn vector(random: &mut Random) -> [u8; 32] {
    let mut out = [0; 32];
    match random.below(4) {
        0 => out.iter_mut().for_each(|byte| *byte = random.byte()),
        1 => {
            let small = random.below(4) as u32;
            for chunk in out.chunks_exact_mut(4) {
                let lane = SINGLES[random.below(SINGLES.len())] ^ (random.next() as u32 & small);
                chunk.copy_from_slice(&lane.to_le_bytes());
            }
        }
        2 => {
            let small = random.below(4) as u64;
            for chunk in out.chunks_exact_mut(8) {
                let lane = DOUBLES[random.below(DOUBLES.len())] ^ (random.next() & small);
                chunk.copy_from_slice(&lane.to_le_bytes());
            }
        }
        _ => {
            // Ordinary numbers around one, double or single.
            let double = random.one_in(2);
            for chunk in out.chunks_exact_mut(8) {
                let bits = random.next();
                let lane = if double {
                    bits & 0x800f_ffff_ffff_ffff | 0x3fe0_0000_0000_0000 + (bits >> 7 & 0x3f << 52)
                } else {
                    bits & 0x80ff_ffff_80ff_ffff | 0x3f00_0000_3f00_0000
                };
                chunk.copy_from_slice(&lane.to_le_bytes());
            }
        }
    }
    out
}

/// Extended precision, also unnormal and pseudo-denormal numbers.
fn extended(random: &mut Random) -> [u8; 10] {
    let exponent = [0, 1, 0x3ffe, 0x3fff, 0x4000, 0x403e, 0x7ffe, 0x7fff][random.below(8)];
    let fraction = match random.below(6) {
        0 => 1 << 63,
        1 => 0,
        2 => random.next() | 1 << 63,
        3 => u64::MAX << random.below(63),
        4 => 3 << 62,
        _ => random.next(),
    };
    let sign = if random.one_in(2) { 0x8000 } else { 0 };
    let mut out = [0; 10];
    out[..8].copy_from_slice(&fraction.to_le_bytes());
    out[8..].copy_from_slice(&(exponent | sign as u16).to_le_bytes());
    out
}

/// A register state. Rounding, flushing and masks are anything; no x87
/// exception is pending.
pub fn state(random: &mut Random) -> FpuState {
    let mut state = FpuState::new();
    for index in 0..16 {
        state.set_ymm(index, &vector(random));
    }
    let masks = if random.one_in(2) { 0x1f80 } else { (random.next() as u32 & 0x3f) << 7 };
    let modes = if random.one_in(2) { 0 } else { random.next() as u32 & 0xe040 };
    let flags = if random.one_in(2) { 0 } else { random.next() as u32 & 0x3f };
    state.set_mxcsr(masks | modes | flags).expect("all bits are allowed");
    let x87_masks = if random.one_in(2) { 0x3f } else { random.next() as u16 & 0x3f };
    state.set_fcw(x87_masks | [0, 0x200, 0x300][random.below(3)] | (random.next() as u16 & 0xc00));
    state.set_fsw((random.next() as u16) & (0x7f40 | x87_masks));
    state.set_ftw(if random.one_in(3) { random.byte() } else { 0xff });
    for index in 0..8 {
        state.set_st(index, &extended(random));
    }
    state.set_x87_pointers(random.next() as u16, random.next() >> 17, random.next() >> 17);
    state
}

/// Bytes that may be an instruction of this crate; its memory operand, if any,
/// is at [rcx].
pub fn instruction(random: &mut Random) -> Vec<u8> {
    match random.below(8) {
        0 => {
            let modrm = modrm(random);
            vec![0xd8 + random.below(8) as u8, modrm]
        }
        1..=3 => legacy(random),
        _ => vex(random),
    }
}

fn modrm(random: &mut Random) -> u8 {
    if random.one_in(2) { random.byte() | 0xc0 } else { random.byte() & 0x38 | 0x01 }
}

fn legacy(random: &mut Random) -> Vec<u8> {
    let mut out = Vec::new();
    match random.below(4) {
        0 => out.push(0x66),
        1 => out.push(0xf3),
        2 => out.push(0xf2),
        _ => {}
    }
    let modrm = modrm(random);
    if random.one_in(2) {
        // REX.B would make the base R9.
        let mask = if modrm < 0xc0 { 0x4c } else { 0x4d };
        out.push(0x40 | random.byte() & mask);
    }
    out.push(0x0f);
    match random.below(4) {
        0 => out.push(0x38),
        1 => out.push(0x3a),
        _ => {}
    }
    out.extend([random.byte(), modrm, random.byte()]);
    out
}

fn vex(random: &mut Random) -> Vec<u8> {
    let modrm = modrm(random);
    let b = if modrm < 0xc0 || random.one_in(2) { 0x20 } else { 0 };
    let rx = if random.one_in(2) { 0xc0 } else { 0x40 };
    let map = 1 + random.below(3) as u8;
    let vvvv = if random.one_in(3) { 0x78 } else { random.byte() & 0x78 };
    let rest = random.byte() & 0x87 | vvvv;
    vec![0xc4, rx | b | map, rest, random.byte(), modrm, random.byte()]
}
