//! Bit instructions: BT and its relatives, BSF, BSR, TZCNT, LZCNT, POPCNT, BMI1, BMI2, CRC32.
//!
//! Undefined flags are as current Intel CPUs give them; BSF and BSR with a zero source leave the
//! destination as it was.

use iced_x86::{Instruction, Mnemonic, OpKind};
use memory::Scalar;

use super::shift::third_register;
use super::{Mem, Operand, Src, bits, by_size, is_memory, mask, operand_size, sign_extend};
use crate::cpu::{Bus, Cpu, Exec, Step};
use crate::op::{LOCKED, Op, read_reg, write_reg};

/// BT, BTS, BTR, BTC.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BitChange {
    Test,
    Set,
    Reset,
    Complement,
}

impl BitChange {
    #[inline(always)]
    const fn apply(self, value: u64, bit: u32) -> u64 {
        match self {
            Self::Test => value,
            Self::Set => value | 1 << bit,
            Self::Reset => value & !(1 << bit),
            Self::Complement => value ^ 1 << bit,
        }
    }
}

/// Which BT instruction, as const parameter.
const TEST: u8 = 0;
const SET: u8 = 1;
const RESET: u8 = 2;
const COMPLEMENT: u8 = 3;

const fn change(kind: u8) -> BitChange {
    match kind {
        TEST => BitChange::Test,
        SET => BitChange::Set,
        RESET => BitChange::Reset,
        _ => BitChange::Complement,
    }
}

/// The bit index: from the register in `src`, or the immediate.
#[inline(always)]
fn bit_index<W: Scalar>(cpu: &Cpu, op: &Op, immediate: bool) -> u64 {
    if immediate { op.imm } else { read_reg::<W>(cpu, op.src) }
}

fn bit_register<const KIND: u8, const IMMEDIATE: bool, W: Scalar>(
    cpu: &mut Cpu,
    op: &Op,
    _bus: Bus<'_>,
) -> Step {
    let bit = bit_index::<W>(cpu, op, IMMEDIATE) as u32 & (bits::<W>() - 1);
    let value = read_reg::<W>(cpu, op.reg);
    if KIND != TEST {
        write_reg::<W>(cpu, op.reg, change(KIND).apply(value, bit));
    }
    cpu.flags.set_cf(value >> bit & 1 != 0);
    Ok(())
}

/// With a register index the bit string extends in both directions from the memory operand.
fn bit_memory<const KIND: u8, const IMMEDIATE: bool, W: Scalar>(
    cpu: &mut Cpu,
    op: &Op,
    bus: Bus<'_>,
) -> Step {
    let index = bit_index::<W>(cpu, op, IMMEDIATE);
    let bit = index as u32 & (bits::<W>() - 1);
    let mut offset = op.offset(cpu);
    if !IMMEDIATE {
        let element = sign_extend::<W>(index) as i64 >> bits::<W>().trailing_zeros();
        offset = offset.wrapping_add((element * W::BYTES as i64) as u64) & op.address_mask;
    }
    let at = op.linear_at(cpu, offset, W::BYTES, KIND != TEST)?;
    let value = if KIND == TEST {
        cpu.read::<W>(bus, at)?
    } else {
        cpu.update::<W>(bus, at, op.has(LOCKED), |a| change(KIND).apply(a, bit))?
    };
    cpu.flags.set_cf(value >> bit & 1 != 0);
    Ok(())
}

fn lower_bit<const KIND: u8>(instruction: &Instruction) -> Option<Exec> {
    let size = operand_size(instruction, 0);
    let immediate = instruction.op1_kind() != OpKind::Register;
    match (is_memory(instruction, 0), immediate) {
        (true, true) => by_size(size, bit_memory_handlers::<KIND, true>()),
        (true, false) => by_size(size, bit_memory_handlers::<KIND, false>()),
        (false, true) => by_size(size, bit_register_handlers::<KIND, true>()),
        (false, false) => by_size(size, bit_register_handlers::<KIND, false>()),
    }
}

fn bit_memory_handlers<const KIND: u8, const IMMEDIATE: bool>() -> [Exec; 4] {
    [
        bit_memory::<KIND, IMMEDIATE, u8>,
        bit_memory::<KIND, IMMEDIATE, u16>,
        bit_memory::<KIND, IMMEDIATE, u32>,
        bit_memory::<KIND, IMMEDIATE, u64>,
    ]
}

fn bit_register_handlers<const KIND: u8, const IMMEDIATE: bool>() -> [Exec; 4] {
    [
        bit_register::<KIND, IMMEDIATE, u8>,
        bit_register::<KIND, IMMEDIATE, u16>,
        bit_register::<KIND, IMMEDIATE, u32>,
        bit_register::<KIND, IMMEDIATE, u64>,
    ]
}

/// BSF (`FORWARD`) and BSR.
fn bit_scan<const FORWARD: bool, S: Operand, W: Scalar>(
    cpu: &mut Cpu,
    op: &Op,
    bus: Bus<'_>,
) -> Step {
    let value = S::read::<W>(cpu, op, bus)?;
    if value == 0 {
        // ZF only; the destination keeps all 64 bits.
        cpu.flags.logic(bits::<W>(), 0);
        return Ok(());
    }
    let index = if FORWARD { value.trailing_zeros() } else { 63 - value.leading_zeros() };
    write_reg::<W>(cpu, op.reg, u64::from(index));
    cpu.flags.logic(bits::<W>(), u64::from(index));
    cpu.flags.set_zf(false);
    Ok(())
}

/// TZCNT (`TRAILING`) and LZCNT: CF for a zero source, ZF for a zero result.
fn count_zeros<const TRAILING: bool, S: Operand, W: Scalar>(
    cpu: &mut Cpu,
    op: &Op,
    bus: Bus<'_>,
) -> Step {
    let value = S::read::<W>(cpu, op, bus)?;
    let count = match (value, TRAILING) {
        (0, _) => bits::<W>(),
        (_, true) => value.trailing_zeros(),
        (_, false) => value.leading_zeros() - (64 - bits::<W>()),
    };
    write_reg::<W>(cpu, op.reg, u64::from(count));
    cpu.flags.logic(bits::<W>(), u64::from(count));
    cpu.flags.set_cf(value == 0);
    Ok(())
}

fn popcnt<S: Operand, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let value = S::read::<W>(cpu, op, bus)?;
    write_reg::<W>(cpu, op.reg, u64::from(value.count_ones()));
    // All flags but ZF are clear; 1 has odd parity and no sign.
    cpu.flags.logic(bits::<W>(), 1);
    cpu.flags.set_zf(value == 0);
    Ok(())
}

/// ANDN: not the second operand, and the third.
fn andn<S: Operand, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let b = S::read::<W>(cpu, op, bus)?;
    let r = !read_reg::<W>(cpu, third_register(op)) & b;
    write_reg::<W>(cpu, op.reg, r);
    cpu.flags.logic(bits::<W>(), r & mask::<W>());
    Ok(())
}

/// BLSI, BLSMSK, BLSR, and the carry that each gives.
const BLSI: u8 = 0;
const BLSMSK: u8 = 1;
const BLSR: u8 = 2;

fn lowest_bit<const KIND: u8, S: Operand, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let a = S::read::<W>(cpu, op, bus)?;
    let r = match KIND {
        BLSI => a & a.wrapping_neg(),
        BLSMSK => a ^ a.wrapping_sub(1),
        _ => a & a.wrapping_sub(1),
    } & mask::<W>();
    write_reg::<W>(cpu, op.reg, r);
    cpu.flags.logic(bits::<W>(), r);
    cpu.flags.set_cf((a == 0) != (KIND == BLSI));
    Ok(())
}

fn bextr<S: Operand, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let a = S::read::<W>(cpu, op, bus)?;
    let control = cpu.reg(third_register(op));
    let (start, len) = (control as u32 & 0xff, control as u32 >> 8 & 0xff);
    let shifted = a.checked_shr(start).unwrap_or(0);
    let r = if len >= 64 { shifted } else { shifted & ((1 << len) - 1) };
    write_reg::<W>(cpu, op.reg, r);
    cpu.flags.logic(bits::<W>(), r);
    Ok(())
}

fn bzhi<S: Operand, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let a = S::read::<W>(cpu, op, bus)?;
    let index = cpu.reg(third_register(op)) as u32 & 0xff;
    let all = index >= bits::<W>();
    let r = if all { a } else { a & ((1 << index) - 1) };
    write_reg::<W>(cpu, op.reg, r);
    cpu.flags.logic(bits::<W>(), r);
    cpu.flags.set_cf(all);
    Ok(())
}

/// PDEP (`DEPOSIT`) and PEXT; the mask is the last operand.
fn deposit_extract<const DEPOSIT: bool, S: Operand, W: Scalar>(
    cpu: &mut Cpu,
    op: &Op,
    bus: Bus<'_>,
) -> Step {
    let mut selected = S::read::<W>(cpu, op, bus)?;
    let a = read_reg::<W>(cpu, third_register(op));
    let mut r = 0_u64;
    let mut packed = 0;
    while selected != 0 {
        let place = selected.trailing_zeros();
        selected &= selected - 1;
        let (from, to) = if DEPOSIT { (packed, place) } else { (place, packed) };
        r |= (a >> from & 1) << to;
        packed += 1;
    }
    write_reg::<W>(cpu, op.reg, r);
    Ok(())
}

/// CRC32 with the Castagnoli polynomial, bit-reflected.
fn crc32<S: Operand, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    const REFLECTED: u32 = 0x82f6_3b78;
    let value = S::read::<W>(cpu, op, bus)?;
    let mut crc = cpu.reg(op.reg) as u32;
    for byte in &value.to_le_bytes()[..W::BYTES as usize] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { REFLECTED } else { 0 };
        }
    }
    cpu.set_reg(op.reg, u64::from(crc));
    Ok(())
}

/// Handlers of a family with const parameter `$k`, for a memory or register source.
macro_rules! source {
    ($instruction:expr, $index:expr, $f:ident $(, $k:expr)?) => {{
        let handlers: [Exec; 4] = if is_memory($instruction, $index) {
            [$f::<$($k,)? Mem, u8>, $f::<$($k,)? Mem, u16>, $f::<$($k,)? Mem, u32>, $f::<$($k,)? Mem, u64>]
        } else {
            [$f::<$($k,)? Src, u8>, $f::<$($k,)? Src, u16>, $f::<$($k,)? Src, u32>, $f::<$($k,)? Src, u64>]
        };
        handlers
    }};
}

/// VEX forms: the operand that is neither destination nor register-or-memory source goes to `imm`.
fn third(instruction: &Instruction, op: &mut Op, source: u32, other: u32) {
    op.imm = instruction.op_register(other).number() as u64;
    if !is_memory(instruction, source) {
        op.src = instruction.op_register(source).number() as u8;
    }
}

pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Exec> {
    use Mnemonic as M;
    let size = operand_size(instruction, 0);
    match instruction.mnemonic() {
        M::Bt => lower_bit::<TEST>(instruction),
        M::Bts => lower_bit::<SET>(instruction),
        M::Btr => lower_bit::<RESET>(instruction),
        M::Btc => lower_bit::<COMPLEMENT>(instruction),
        M::Bsf => by_size(size, source!(instruction, 1, bit_scan, true)),
        M::Bsr => by_size(size, source!(instruction, 1, bit_scan, false)),
        M::Tzcnt => by_size(size, source!(instruction, 1, count_zeros, true)),
        M::Lzcnt => by_size(size, source!(instruction, 1, count_zeros, false)),
        M::Popcnt => by_size(size, source!(instruction, 1, popcnt)),
        M::Crc32 => by_size(operand_size(instruction, 1), source!(instruction, 1, crc32)),
        M::Andn => {
            third(instruction, op, 2, 1);
            by_size(size, source!(instruction, 2, andn))
        }
        M::Pdep => {
            third(instruction, op, 2, 1);
            by_size(size, source!(instruction, 2, deposit_extract, true))
        }
        M::Pext => {
            third(instruction, op, 2, 1);
            by_size(size, source!(instruction, 2, deposit_extract, false))
        }
        M::Bextr => {
            third(instruction, op, 1, 2);
            by_size(size, source!(instruction, 1, bextr))
        }
        M::Bzhi => {
            third(instruction, op, 1, 2);
            by_size(size, source!(instruction, 1, bzhi))
        }
        M::Blsi => by_size(size, source!(instruction, 1, lowest_bit, BLSI)),
        M::Blsmsk => by_size(size, source!(instruction, 1, lowest_bit, BLSMSK)),
        M::Blsr => by_size(size, source!(instruction, 1, lowest_bit, BLSR)),
        _ => None,
    }
}
