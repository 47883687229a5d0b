//! A decoded instruction in the form that is executed, and its memory operand.

use iced_x86::Instruction;
use memory::Scalar;

use crate::access::Linear;
use crate::cpu::{Cpu, Exec, Raised};
use crate::fpu::VectorOp;

/// Segment number that means: no base to add, no limit to check.
pub(crate) const FLAT: u8 = 0xff;
/// Marks a byte register as AH, CH, DH or BH in a register field.
pub(crate) const HIGH_BYTE: u8 = 0x80;

/// A decoded instruction. Small and flat, because the loop that executes blocks streams through
/// them; what rare instructions need besides is behind [`Op::detail`].
pub(crate) struct Op {
    /// What to do.
    pub(crate) exec: Exec,
    /// Immediate operand, sign-extended; for near branches the displacement.
    pub(crate) imm: u64,
    /// Displacement of the memory operand, sign-extended; relative to the next instruction when
    /// the base is RIP.
    pub(crate) disp: u64,
    /// Address size: all ones for 64, else 32 or 16 ones.
    pub(crate) address_mask: u64,
    /// Decoded form and vector stub, for the handlers that need them.
    pub(crate) detail: Option<Box<Detail>>,
    /// Bytes of the instruction, 1 to 15.
    pub(crate) len: u8,
    /// First register operand (destination), or condition.
    pub(crate) reg: u8,
    /// Second register operand (source).
    pub(crate) src: u8,
    /// Base register of the memory operand, or `ZERO`.
    pub(crate) base: u8,
    /// Index register of the memory operand, or `ZERO`.
    pub(crate) index: u8,
    /// Shift of the index: 0 to 3.
    pub(crate) scale: u8,
    /// Segment of the memory operand, or [`FLAT`].
    pub(crate) segment: u8,
    /// Prefixes and the like.
    pub(crate) bits: u8,
}

/// [`Op::bits`]: LOCK (or XCHG with memory): the update is atomic.
pub(crate) const LOCKED: u8 = 1 << 0;
/// [`Op::bits`]: REP or REPE.
pub(crate) const REP: u8 = 1 << 1;
/// [`Op::bits`]: REPNE.
pub(crate) const REPNE: u8 = 1 << 2;
/// [`Op::bits`]: the segment is SS, also when it is flat: faults are #SS.
pub(crate) const STACK: u8 = 1 << 3;

/// [`Op::bits`]: the count of a shift is in CL, not in the immediate.
pub(crate) const COUNT_IN_CL: u8 = 1 << 4;

/// What only rare instructions need.
pub(crate) struct Detail {
    pub(crate) instruction: Instruction,
    pub(crate) vector: Option<VectorOp>,
}

impl Op {
    /// Offset of the memory operand in its segment.
    #[inline(always)]
    pub(crate) fn offset(&self, cpu: &Cpu) -> u64 {
        cpu.reg(self.base)
            .wrapping_add(cpu.reg(self.index) << (self.scale & 3))
            .wrapping_add(self.disp)
            & self.address_mask
    }

    /// Linear address of `size` bytes of the memory operand.
    #[inline(always)]
    pub(crate) fn linear(&self, cpu: &mut Cpu, size: u64, write: bool) -> Result<Linear, Raised> {
        self.linear_at(cpu, self.offset(cpu), size, write)
    }

    /// Linear address of `size` bytes at `offset` of the memory operand's segment.
    #[inline(always)]
    pub(crate) fn linear_at(
        &self,
        cpu: &mut Cpu,
        offset: u64,
        size: u64,
        write: bool,
    ) -> Result<Linear, Raised> {
        if self.segment == FLAT {
            return Ok(Linear { address: offset, stack: self.bits & STACK != 0 });
        }
        cpu.segmented(usize::from(self.segment), offset, size, write)
    }

    /// The decoded instruction of a rare handler.
    ///
    /// # Panics
    /// When the decoder made an op without detail for a handler that needs it.
    pub(crate) fn instruction(&self) -> &Instruction {
        &self
            .detail
            .as_ref()
            .expect("the decoder keeps the instruction for this handler")
            .instruction
    }

    #[inline(always)]
    pub(crate) fn has(&self, bit: u8) -> bool {
        self.bits & bit != 0
    }
}

/// Reads a general register operand of the width of `W`.
#[inline(always)]
pub(crate) fn read_reg<W: Scalar>(cpu: &Cpu, reg: u8) -> u64 {
    if W::BYTES == 1 && reg & HIGH_BYTE != 0 {
        return cpu.reg(reg & 3) >> 8 & 0xff;
    }
    W::from_u64(cpu.reg(reg)).to_u64()
}

/// Writes a general register operand: 32 bits clear the upper half, 8 and 16 bits keep the rest.
#[inline(always)]
pub(crate) fn write_reg<W: Scalar>(cpu: &mut Cpu, reg: u8, value: u64) {
    let new = match W::BYTES {
        8 => value,
        4 => value & 0xffff_ffff,
        2 => cpu.reg(reg) & !0xffff | value & 0xffff,
        _ if reg & HIGH_BYTE != 0 => {
            let full = reg & 3;
            let kept = cpu.reg(full) & !0xff00;
            cpu.set_reg(full, kept | (value & 0xff) << 8);
            return;
        }
        _ => cpu.reg(reg) & !0xff | value & 0xff,
    };
    cpu.set_reg(reg, new);
}
