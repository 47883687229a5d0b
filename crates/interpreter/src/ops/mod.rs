//! The instructions, by family. Each family has a `lower` that picks the handler for a decoded
//! instruction, so that operand kinds and widths are decided once, when a block is decoded.

pub(crate) mod alu;
pub(crate) mod bits;
pub(crate) mod control;
pub(crate) mod data;
pub(crate) mod far;
pub(crate) mod flow;
pub(crate) mod legacy;
pub(crate) mod muldiv;
pub(crate) mod segment;
pub(crate) mod shift;
pub(crate) mod stack;
pub(crate) mod string;
pub(crate) mod syscall;
pub(crate) mod system;

use iced_x86::{Instruction, OpKind};
use memory::Scalar;

use crate::cpu::{Bus, Cpu, Exec, Raised, Step};
use crate::op::{LOCKED, Op, read_reg, write_reg};

/// A source operand of width `W`, zero-extended to 64 bits.
pub(crate) trait Operand {
    fn read<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Result<u64, Raised>;
}

/// An operand that can be written.
pub(crate) trait Target: Operand {
    fn write<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>, value: u64) -> Step;

    /// Replaces the operand by `change` of it; gives the old value. Atomic with LOCK.
    fn update<W: Scalar>(
        cpu: &mut Cpu,
        op: &Op,
        bus: Bus<'_>,
        change: impl Fn(u64) -> u64,
    ) -> Result<u64, Raised>;
}

/// The register in [`Op::reg`].
pub(crate) struct Reg;
/// The register in [`Op::src`].
pub(crate) struct Src;
/// The memory operand.
pub(crate) struct Mem;
/// The immediate.
pub(crate) struct Imm;

impl Operand for Reg {
    #[inline(always)]
    fn read<W: Scalar>(cpu: &mut Cpu, op: &Op, _bus: Bus<'_>) -> Result<u64, Raised> {
        Ok(read_reg::<W>(cpu, op.reg))
    }
}

impl Target for Reg {
    #[inline(always)]
    fn write<W: Scalar>(cpu: &mut Cpu, op: &Op, _bus: Bus<'_>, value: u64) -> Step {
        write_reg::<W>(cpu, op.reg, value);
        Ok(())
    }

    #[inline(always)]
    fn update<W: Scalar>(
        cpu: &mut Cpu,
        op: &Op,
        _bus: Bus<'_>,
        change: impl Fn(u64) -> u64,
    ) -> Result<u64, Raised> {
        let old = read_reg::<W>(cpu, op.reg);
        write_reg::<W>(cpu, op.reg, change(old));
        Ok(old)
    }
}

impl Operand for Src {
    #[inline(always)]
    fn read<W: Scalar>(cpu: &mut Cpu, op: &Op, _bus: Bus<'_>) -> Result<u64, Raised> {
        Ok(read_reg::<W>(cpu, op.src))
    }
}

impl Operand for Imm {
    #[inline(always)]
    fn read<W: Scalar>(_cpu: &mut Cpu, op: &Op, _bus: Bus<'_>) -> Result<u64, Raised> {
        Ok(W::from_u64(op.imm).to_u64())
    }
}

impl Operand for Mem {
    #[inline(always)]
    fn read<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Result<u64, Raised> {
        let at = op.linear(cpu, W::BYTES, false)?;
        cpu.read::<W>(bus, at)
    }
}

impl Target for Mem {
    #[inline(always)]
    fn write<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>, value: u64) -> Step {
        let at = op.linear(cpu, W::BYTES, true)?;
        cpu.write::<W>(bus, at, value)
    }

    #[inline(always)]
    fn update<W: Scalar>(
        cpu: &mut Cpu,
        op: &Op,
        bus: Bus<'_>,
        change: impl Fn(u64) -> u64,
    ) -> Result<u64, Raised> {
        let at = op.linear(cpu, W::BYTES, true)?;
        cpu.update::<W>(bus, at, op.has(LOCKED), change)
    }
}

/// Number of bits of `W`.
#[inline(always)]
pub(crate) const fn bits<W: Scalar>() -> u32 {
    W::BYTES as u32 * 8
}

/// All ones in the width of `W`.
#[inline(always)]
pub(crate) const fn mask<W: Scalar>() -> u64 {
    u64::MAX >> (64 - bits::<W>())
}

/// Sign-extends from the width of `W`.
#[inline(always)]
pub(crate) const fn sign_extend<W: Scalar>(value: u64) -> u64 {
    let up = 64 - bits::<W>();
    ((value << up) as i64 >> up) as u64
}

/// Bytes of operand `index`, by its register or by the memory operand.
pub(crate) fn operand_size(instruction: &Instruction, index: u32) -> usize {
    match instruction.op_kind(index) {
        OpKind::Register => instruction.op_register(index).size(),
        _ => instruction.memory_size().size(),
    }
}

/// Whether operand `index` is the memory operand.
pub(crate) fn is_memory(instruction: &Instruction, index: u32) -> bool {
    instruction.op_kind(index) == OpKind::Memory
}

/// Whether operand `index` is a register.
pub(crate) fn is_register(instruction: &Instruction, index: u32) -> bool {
    instruction.op_kind(index) == OpKind::Register
}

/// The handler for operands of `size` bytes, from those for 1, 2, 4 and 8.
pub(crate) fn by_size(size: usize, handlers: [Exec; 4]) -> Option<Exec> {
    match size {
        1 => Some(handlers[0]),
        2 => Some(handlers[1]),
        4 => Some(handlers[2]),
        8 => Some(handlers[3]),
        _ => None,
    }
}

/// `[f::<P..., u8>, f::<P..., u16>, f::<P..., u32>, f::<P..., u64>]`.
macro_rules! widths {
    ($f:ident $(, $p:ty)*) => {
        [$f::<$($p,)* u8> as Exec, $f::<$($p,)* u16>, $f::<$($p,)* u32>, $f::<$($p,)* u64>]
    };
}
pub(crate) use widths;
