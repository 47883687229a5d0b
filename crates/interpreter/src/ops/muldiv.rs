//! MUL, IMUL, DIV, IDIV and MULX.
//!
//! Flags that the manual leaves undefined after a multiplication (SF, ZF, AF, PF) are as current
//! Intel CPUs give them: SF and PF of the low half, ZF and AF clear.

use iced_x86::{Instruction, Mnemonic};
use memory::Scalar;
use x86::exception::Exception;
use x86::gpr;

use super::shift::third_register;
use super::{
    Mem, Operand, Reg, Src, bits, by_size, is_memory, mask, operand_size, sign_extend, widths,
};
use crate::cpu::{Bus, Cpu, Exec, Step};
use crate::op::{Op, read_reg, write_reg};

const RAX: u8 = gpr::RAX as u8;
const RDX: u8 = gpr::RDX as u8;

/// Writes a double-width product: AX for bytes, RDX:RAX otherwise.
fn write_product<W: Scalar>(cpu: &mut Cpu, product: u128) {
    let (low, high) = (product as u64 & mask::<W>(), (product >> bits::<W>()) as u64);
    if W::BYTES == 1 {
        write_reg::<u16>(cpu, RAX, product as u64);
    } else {
        write_reg::<W>(cpu, RAX, low);
        write_reg::<W>(cpu, RDX, high);
    }
}

fn multiply_flags<W: Scalar>(cpu: &mut Cpu, low: u64, overflow: bool) {
    cpu.flags.logic(bits::<W>(), low & mask::<W>());
    cpu.flags.set_zf(false);
    cpu.flags.set_cf_of(overflow, overflow);
}

fn mul<S: Operand, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let b = S::read::<W>(cpu, op, bus)?;
    let product = u128::from(read_reg::<W>(cpu, RAX)) * u128::from(b);
    write_product::<W>(cpu, product);
    multiply_flags::<W>(cpu, product as u64, product >> bits::<W>() != 0);
    Ok(())
}

fn signed<W: Scalar>(value: u64) -> i128 {
    i128::from(sign_extend::<W>(value) as i64)
}

fn imul<S: Operand, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let b = S::read::<W>(cpu, op, bus)?;
    let product = signed::<W>(read_reg::<W>(cpu, RAX)) * signed::<W>(b);
    write_product::<W>(cpu, product as u128);
    multiply_flags::<W>(cpu, product as u64, product != signed::<W>(product as u64));
    Ok(())
}

/// IMUL with two or three operands: `IMMEDIATE` is the third.
fn imul_into<const IMMEDIATE: bool, S: Operand, W: Scalar>(
    cpu: &mut Cpu,
    op: &Op,
    bus: Bus<'_>,
) -> Step {
    let a = S::read::<W>(cpu, op, bus)?;
    let b = if IMMEDIATE { op.imm } else { read_reg::<W>(cpu, op.reg) };
    let product = signed::<W>(a) * signed::<W>(b);
    write_reg::<W>(cpu, op.reg, product as u64);
    multiply_flags::<W>(cpu, product as u64, product != signed::<W>(product as u64));
    Ok(())
}

/// The dividend: AX for bytes, RDX:RAX otherwise.
fn dividend<W: Scalar>(cpu: &Cpu) -> u128 {
    if W::BYTES == 1 {
        u128::from(read_reg::<u16>(cpu, RAX))
    } else {
        u128::from(read_reg::<W>(cpu, RDX)) << bits::<W>() | u128::from(read_reg::<W>(cpu, RAX))
    }
}

fn write_quotient<W: Scalar>(cpu: &mut Cpu, quotient: u64, remainder: u64) {
    if W::BYTES == 1 {
        write_reg::<u16>(cpu, RAX, (remainder & 0xff) << 8 | quotient & 0xff);
    } else {
        write_reg::<W>(cpu, RAX, quotient);
        write_reg::<W>(cpu, RDX, remainder);
    }
}

fn div<S: Operand, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let divisor = u128::from(S::read::<W>(cpu, op, bus)?);
    let dividend = dividend::<W>(cpu);
    if divisor == 0 || dividend / divisor > u128::from(mask::<W>()) {
        return cpu.fault(Exception::DE);
    }
    write_quotient::<W>(cpu, (dividend / divisor) as u64, (dividend % divisor) as u64);
    Ok(())
}

fn idiv<S: Operand, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let divisor = signed::<W>(S::read::<W>(cpu, op, bus)?);
    let unused = 128 - 2 * bits::<W>();
    let dividend = (dividend::<W>(cpu) << unused) as i128 >> unused;
    // The most negative 128-bit dividend by -1 does not even fit the host's division.
    let (Some(quotient), Some(remainder)) =
        (dividend.checked_div(divisor), dividend.checked_rem(divisor))
    else {
        return cpu.fault(Exception::DE);
    };
    if quotient != signed::<W>(quotient as u64) {
        return cpu.fault(Exception::DE);
    }
    write_quotient::<W>(cpu, quotient as u64, remainder as u64);
    Ok(())
}

/// MULX: RDX times the source, high half to the first register, low half to the second; when
/// they are the same, the high half stays.
fn mulx<S: Operand, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let b = S::read::<W>(cpu, op, bus)?;
    let product = u128::from(read_reg::<W>(cpu, RDX)) * u128::from(b);
    write_reg::<W>(cpu, third_register(op), product as u64);
    write_reg::<W>(cpu, op.reg, (product >> bits::<W>()) as u64);
    Ok(())
}

fn lower_imul(instruction: &Instruction) -> Option<Exec> {
    let size = operand_size(instruction, 0);
    match (instruction.op_count(), is_memory(instruction, instruction.op_count().min(2) - 1)) {
        (1, true) => by_size(size, widths!(imul, Mem)),
        (1, false) => by_size(size, widths!(imul, Reg)),
        (2, true) => by_size(size, imul_handlers::<false, Mem>()),
        (2, false) => by_size(size, imul_handlers::<false, Src>()),
        (_, true) => by_size(size, imul_handlers::<true, Mem>()),
        (_, false) => by_size(size, imul_handlers::<true, Src>()),
    }
}

fn imul_handlers<const IMMEDIATE: bool, S: Operand>() -> [Exec; 4] {
    [
        imul_into::<IMMEDIATE, S, u8>,
        imul_into::<IMMEDIATE, S, u16>,
        imul_into::<IMMEDIATE, S, u32>,
        imul_into::<IMMEDIATE, S, u64>,
    ]
}

fn lower_mulx(instruction: &Instruction, op: &mut Op) -> Option<Exec> {
    op.imm = instruction.op1_register().number() as u64;
    let size = operand_size(instruction, 0);
    if is_memory(instruction, 2) {
        return by_size(size, widths!(mulx, Mem));
    }
    op.src = instruction.op2_register().number() as u8;
    by_size(size, widths!(mulx, Src))
}

pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Exec> {
    let size = operand_size(instruction, 0);
    let memory = is_memory(instruction, 0);
    match instruction.mnemonic() {
        Mnemonic::Mul if memory => by_size(size, widths!(mul, Mem)),
        Mnemonic::Mul => by_size(size, widths!(mul, Reg)),
        Mnemonic::Imul => lower_imul(instruction),
        Mnemonic::Div if memory => by_size(size, widths!(div, Mem)),
        Mnemonic::Div => by_size(size, widths!(div, Reg)),
        Mnemonic::Idiv if memory => by_size(size, widths!(idiv, Mem)),
        Mnemonic::Idiv => by_size(size, widths!(idiv, Reg)),
        Mnemonic::Mulx => lower_mulx(instruction, op),
        _ => None,
    }
}
