//! The registers that a case starts with.

use x86::{cr::rflags, gpr};

use crate::image::CpuImage;
use crate::random::Random;
use crate::values;

/// Registers of a case, before the operands of its instructions are arranged.
pub(super) fn image(random: &mut Random) -> CpuImage {
    let mut image = CpuImage::default();
    for (index, register) in image.gpr.iter_mut().enumerate() {
        let address_percent = match index {
            gpr::RSI | gpr::RDI => 75,
            _ => 30,
        };
        *register = if random.percent(address_percent) {
            values::address(random, 8)
        } else {
            values::integer(random)
        };
    }
    image.gpr[gpr::RSP] = values::stack_address(random);
    image.rflags = flags(random);
    for index in 0..16 {
        let lanes = [values::vector_lane(random), values::vector_lane(random)];
        image.set_ymm(index, lanes);
    }
    image.set_mxcsr(mxcsr(random));
    x87(random, &mut image);
    image
}

fn flags(random: &mut Random) -> u64 {
    let mut flags = rflags::IF | 2 | random.next() & rflags::ARITHMETIC;
    for (flag, odds) in [(rflags::DF, 8), (rflags::ID, 32), (rflags::AC, 64), (rflags::TF, 64)] {
        if random.one_in(odds) {
            flags |= flag;
        }
    }
    flags
}

/// MXCSR: mostly the default, else any rounding, flush mode, flags and masks.
pub(super) fn mxcsr(random: &mut Random) -> u32 {
    let any = random.next() as u32;
    match random.below(8) {
        0..=2 => x86::xsave::MXCSR_INIT,
        3 => x86::xsave::MXCSR_INIT | any & 0x3f,
        4..=6 => x86::xsave::MXCSR_INIT | any & 0xe07f,
        _ => any & 0xffff,
    }
}

/// An x87 control word: mostly with all exceptions masked.
pub(super) fn control_word(random: &mut Random) -> u16 {
    let any = random.next() as u16;
    match random.below(8) {
        0..=2 => 0x037f,
        3..=6 => 0x007f | any & 0x0f00,
        _ => 0x0040 | any & 0x0f3f,
    }
}

/// x87 registers. Error summary and busy flag agree with exception flags and masks, as the CPU
/// would have set them.
fn x87(random: &mut Random, image: &mut CpuImage) {
    let control = control_word(random);
    let mut status = random.next() as u16 & 0x7f00;
    if random.one_in(4) {
        status |= random.next() as u16 & 0x7f;
    }
    if status & !control & 0x3f != 0 {
        if random.percent(80) {
            status &= !0x3f;
        } else {
            status |= 0x8080;
        }
    }
    let tags = match random.below(4) {
        0 => 0,
        1 => 0xff,
        _ => (random.next() | random.next()) as u8,
    };
    image.put(0, &control.to_le_bytes());
    image.put(2, &status.to_le_bytes());
    image.put(4, &[tags]);
    for index in 0..8 {
        let value = values::extended(random);
        image.set_st(index, &value);
    }
}
