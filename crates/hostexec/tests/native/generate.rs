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
                    bits & 0x803f_ffff_ffff_ffff | 0x3fc0_0000_0000_0000
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

/// General registers with the address of the memory operand in RCX.
pub fn gprs(random: &mut Random, memory: u64) -> [u64; 16] {
    let mut gprs: [u64; 16] = std::array::from_fn(|_| random.next());
    gprs[1] = memory;
    gprs
}

/// The six status flags, and bit 1.
pub fn rflags(random: &mut Random) -> u64 {
    random.next() & 0x8d5 | 0x2
}

/// 512 bytes of operands.
pub fn memory(random: &mut Random) -> [u8; 512] {
    let mut memory = [0; 512];
    for chunk in memory.chunks_exact_mut(32) {
        chunk.copy_from_slice(&vector(random));
    }
    memory
}

/// Every combination of prefix, map, opcode, W and L that this crate might
/// take, with a register and with a memory operand at [rcx].
pub fn every_form(mut each: impl FnMut(&[u8])) {
    for modrm in 0..=255_u8 {
        if modrm < 0xc0 && modrm & 0xc7 != 0x01 {
            continue;
        }
        for opcode in 0xd8..=0xdf {
            each(&[opcode, modrm]);
            each(&[0x66, opcode, modrm]);
        }
        // Every register form of groups (0F 71 and the like, 0F AE).
        for opcode in 0..=255_u8 {
            every_prefix(opcode, modrm, &mut each);
        }
    }
    each(&[0x9b]);
    each(&[0x0f, 0x77]);
}

fn every_prefix(opcode: u8, modrm: u8, each: &mut impl FnMut(&[u8])) {
    let register = modrm >= 0xc0;
    // One register will do for instructions outside groups.
    if register && modrm & 7 != 2 {
        return;
    }
    for (number, prefix) in [None, Some(0x66), Some(0xf3), Some(0xf2)].into_iter().enumerate() {
        for map in 1..=3_u8 {
            for w in [0, 0x80] {
                let mut legacy: Vec<u8> = prefix.into_iter().collect();
                legacy.extend((w != 0).then_some(0x48));
                legacy.push(0x0f);
                legacy.extend([None, Some(0x38), Some(0x3a)][usize::from(map) - 1]);
                legacy.extend([opcode, modrm, 0x1b]);
                each(&legacy);
                for l in [0, 4] {
                    for vvvv in [0x78, 0x68] {
                        let rest = w | vvvv | l | number as u8;
                        each(&[0xc4, 0xe0 | map, rest, opcode, modrm, 0x1b]);
                    }
                }
            }
        }
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
