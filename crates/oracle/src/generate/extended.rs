//! XSAVE and XRSTOR: the one sequence that needs its own arrangement.
//!
//! Which components XSAVE calls in use is the CPU's choice for those in their initial state, and
//! how much it has written before a page fault is too; XSAVEC and XSAVEOPT depend on such choices
//! altogether. Therefore: components that hold something, areas that fault as a whole or not at
//! all, and only components of the guest's CPU.

use x86::{gpr, xsave};

use super::{Builder, registers};
use crate::image::CpuImage;
use crate::layout::{HIGH, PAGE, page};
use crate::values;

/// Components that the host may have beside the guest's: AVX-512 and protection keys.
const HOST_COMPONENTS: u64 = 0x2e0;

impl Builder<'_> {
    /// `mov eax, imm; mov edx, imm; xsave [rdi]`, or `xrstor`.
    pub(super) fn append_extended_state(&mut self) {
        let is_save = self.random.percent(50);
        let mut mask = self.random.below(8);
        if self.random.one_in(4) {
            mask |= self.random.next() & !HOST_COMPONENTS;
        }
        let modrm = if is_save { 0x27 } else { 0x2f };
        let load = |opcode: u8, value: u64| {
            let value = value as u32;
            [&[opcode], &value.to_le_bytes()[..]].concat()
        };
        self.instructions.push(load(0xb8, mask));
        self.instructions.push(load(0xba, mask >> 32));
        let wide = self.random.percent(50);
        self.instructions.push(match wide {
            true => vec![0x48, 0x0f, 0xae, modrm],
            false => vec![0x0f, 0xae, modrm],
        });
        let area = self.area();
        self.image.gpr[gpr::RDI] = area;
        // Header: XSTATE_BV, XCOMP_BV, reserved.
        let mut header = [0; 8];
        header[0] = self.random.below(8);
        if self.random.one_in(12) {
            let wrong = self.random.below(8) as usize;
            header[wrong] |= random_bit(self.random.below(64)) & !HOST_COMPONENTS;
        }
        for (at, word) in (0_u64..).zip(header) {
            self.pokes.push((area.wrapping_add(xsave::XSTATE_BV as u64 + at * 8), word));
        }
        if self.random.percent(80) {
            let mxcsr = registers::mxcsr(self.random);
            self.pokes.push((area.wrapping_add(xsave::MXCSR as u64), mxcsr.into()));
        }
    }

    /// Where the area lies: mostly well inside writable pages.
    fn area(&mut self) -> u64 {
        let inside = HIGH + page::DATA * PAGE + self.random.below(2 * PAGE - 0x400);
        match self.random.below(16) {
            0 => inside,
            1 => HIGH + page::CONSTANT * PAGE + (self.random.below(0xc00) & !63),
            2 => HIGH + (page::ISLAND + 1) * PAGE + (self.random.below(0x800) & !63),
            3 => values::address(self.random, 1) | 1,
            _ => inside & !63,
        }
    }
}

fn random_bit(bit: u64) -> u64 {
    1 << bit
}

/// Whether every component holds something, so that XSAVE must call it in use.
pub(super) fn is_in_use(image: &CpuImage) -> bool {
    let holds = |high: usize| (0..16).any(|index| image.ymm(index)[high] != 0);
    image.st(0) != [0; 10] && holds(0) && holds(1)
}
