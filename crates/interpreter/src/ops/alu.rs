//! Arithmetic and logic with two operands or one: ADD to CMP, TEST, INC, DEC, NEG, NOT, XADD,
//! CMPXCHG, ADCX, ADOX.

use iced_x86::{Instruction, Mnemonic};
use memory::Scalar;
use x86::exception::Exception;
use x86::gpr;

use super::{
    Imm, Mem, Operand, Reg, Src, Target, bits, by_size, is_memory, is_register, mask, operand_size,
    widths,
};
use crate::cpu::{Bus, Cpu, Exec, Step};
use crate::op::{LOCKED, Op, read_reg, write_reg};

/// What a two-operand instruction computes.
trait Binary {
    /// Whether the result is written (not CMP, TEST).
    const WRITES: bool = true;
    /// Carry flag as an operand.
    fn carry(_cpu: &Cpu) -> u64 {
        0
    }
    fn compute(a: u64, b: u64, carry: u64) -> u64;
    fn flags(cpu: &mut Cpu, bits: u32, a: u64, b: u64, r: u64);
}

macro_rules! binary {
    ($name:ident, $flags:ident, |$a:ident, $b:ident, $c:ident| $r:expr
     $(, writes $writes:literal)? $(, carry $carry:expr)?) => {
        struct $name;
        impl Binary for $name {
            $(const WRITES: bool = $writes;)?
            $(#[inline(always)]
            fn carry(cpu: &Cpu) -> u64 {
                let carry: fn(&Cpu) -> u64 = $carry;
                carry(cpu)
            })?
            #[inline(always)]
            fn compute($a: u64, $b: u64, $c: u64) -> u64 {
                let _ = $c;
                $r
            }
            #[inline(always)]
            fn flags(cpu: &mut Cpu, bits: u32, a: u64, b: u64, r: u64) {
                $flags(cpu, bits, a, b, r)
            }
        }
    };
}

#[inline(always)]
fn add_flags(cpu: &mut Cpu, bits: u32, a: u64, b: u64, r: u64) {
    cpu.flags.add(bits, a, b, r);
}

#[inline(always)]
fn sub_flags(cpu: &mut Cpu, bits: u32, a: u64, b: u64, r: u64) {
    cpu.flags.sub(bits, a, b, r);
}

#[inline(always)]
fn logic_flags(cpu: &mut Cpu, bits: u32, _a: u64, _b: u64, r: u64) {
    cpu.flags.logic(bits, r);
}

#[inline(always)]
fn carry_flag(cpu: &Cpu) -> u64 {
    u64::from(cpu.flags.cf())
}

binary!(Add, add_flags, |a, b, c| a.wrapping_add(b));
binary!(Adc, add_flags, |a, b, c| a.wrapping_add(b).wrapping_add(c), carry carry_flag);
binary!(Sub, sub_flags, |a, b, c| a.wrapping_sub(b));
binary!(Sbb, sub_flags, |a, b, c| a.wrapping_sub(b).wrapping_sub(c), carry carry_flag);
binary!(Cmp, sub_flags, |a, b, c| a.wrapping_sub(b), writes false);
binary!(And, logic_flags, |a, b, c| a & b);
binary!(Or, logic_flags, |a, b, c| a | b);
binary!(Xor, logic_flags, |a, b, c| a ^ b);
binary!(Test, logic_flags, |a, b, c| a & b, writes false);

fn binary<O: Binary, D: Target, S: Operand, W: Scalar>(
    cpu: &mut Cpu,
    op: &Op,
    bus: Bus<'_>,
) -> Step {
    let b = S::read::<W>(cpu, op, bus)?;
    let carry = O::carry(cpu);
    let a = if O::WRITES {
        D::update::<W>(cpu, op, bus, |a| O::compute(a, b, carry))?
    } else {
        D::read::<W>(cpu, op, bus)?
    };
    O::flags(cpu, bits::<W>(), a, b, O::compute(a, b, carry) & mask::<W>());
    Ok(())
}

fn lower_binary<O: Binary>(instruction: &Instruction) -> Option<Exec> {
    let size = operand_size(instruction, 0);
    let handlers = match (is_memory(instruction, 0), is_memory(instruction, 1)) {
        (true, _) if is_register(instruction, 1) => widths!(binary, O, Mem, Src),
        (true, _) => widths!(binary, O, Mem, Imm),
        (false, true) => widths!(binary, O, Reg, Mem),
        (false, false) if is_register(instruction, 1) => widths!(binary, O, Reg, Src),
        (false, false) => widths!(binary, O, Reg, Imm),
    };
    by_size(size, handlers)
}

/// What a one-operand instruction computes.
trait Unary {
    fn compute(a: u64) -> u64;
    fn flags(cpu: &mut Cpu, bits: u32, a: u64, r: u64);
}

struct Inc;
struct Dec;
struct Neg;
struct Not;

impl Unary for Inc {
    #[inline(always)]
    fn compute(a: u64) -> u64 {
        a.wrapping_add(1)
    }
    #[inline(always)]
    fn flags(cpu: &mut Cpu, bits: u32, a: u64, r: u64) {
        cpu.flags.inc(bits, a, r);
    }
}

impl Unary for Dec {
    #[inline(always)]
    fn compute(a: u64) -> u64 {
        a.wrapping_sub(1)
    }
    #[inline(always)]
    fn flags(cpu: &mut Cpu, bits: u32, a: u64, r: u64) {
        cpu.flags.dec(bits, a, r);
    }
}

impl Unary for Neg {
    #[inline(always)]
    fn compute(a: u64) -> u64 {
        a.wrapping_neg()
    }
    #[inline(always)]
    fn flags(cpu: &mut Cpu, bits: u32, a: u64, r: u64) {
        cpu.flags.sub(bits, 0, a, r);
    }
}

impl Unary for Not {
    #[inline(always)]
    fn compute(a: u64) -> u64 {
        !a
    }
    #[inline(always)]
    fn flags(_cpu: &mut Cpu, _bits: u32, _a: u64, _r: u64) {}
}

fn unary<O: Unary, D: Target, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let a = D::update::<W>(cpu, op, bus, O::compute)?;
    O::flags(cpu, bits::<W>(), a, O::compute(a) & mask::<W>());
    Ok(())
}

fn lower_unary<O: Unary>(instruction: &Instruction) -> Option<Exec> {
    let size = operand_size(instruction, 0);
    let handlers =
        if is_memory(instruction, 0) { widths!(unary, O, Mem) } else { widths!(unary, O, Reg) };
    by_size(size, handlers)
}

/// XADD: the destination gets the sum, the source register the old destination.
fn xadd<D: Target + TargetKind, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let b = read_reg::<W>(cpu, op.src);
    let a = D::update::<W>(cpu, op, bus, |a| a.wrapping_add(b))?;
    let r = a.wrapping_add(b) & mask::<W>();
    // With both operands in one register the sum wins.
    if !(op.reg == op.src && D::IS_REGISTER) {
        write_reg::<W>(cpu, op.src, a);
    }
    cpu.flags.add(bits::<W>(), a, b, r);
    Ok(())
}

/// Tells register and memory targets apart where the order of writes matters.
trait TargetKind {
    const IS_REGISTER: bool;
}
impl TargetKind for Reg {
    const IS_REGISTER: bool = true;
}
impl TargetKind for Mem {
    const IS_REGISTER: bool = false;
}

/// CMPXCHG. A memory destination is always written, also when unequal (SDM vol. 2A); a register
/// then keeps all its bits.
fn cmpxchg<D: Target + TargetKind, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let expected = read_reg::<W>(cpu, gpr::RAX as u8);
    let new = read_reg::<W>(cpu, op.src);
    let kept = cpu.reg(op.reg);
    let found = D::update::<W>(cpu, op, bus, |a| if a == expected { new } else { a })?;
    if found != expected {
        if D::IS_REGISTER {
            cpu.set_reg(op.reg & 15, kept);
        }
        write_reg::<W>(cpu, gpr::RAX as u8, found);
    }
    cpu.flags.sub(bits::<W>(), expected, found, expected.wrapping_sub(found) & mask::<W>());
    Ok(())
}

/// CMPXCHG8B.
fn cmpxchg8b(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let pair = |cpu: &Cpu, high: usize, low: usize| {
        cpu.reg(high as u8) << 32 | cpu.reg(low as u8) & 0xffff_ffff
    };
    let expected = pair(cpu, gpr::RDX, gpr::RAX);
    let new = pair(cpu, gpr::RCX, gpr::RBX);
    let at = op.linear(cpu, 8, true)?;
    let found =
        cpu.update::<u64>(bus, at, op.has(LOCKED), |a| if a == expected { new } else { a })?;
    let equal = found == expected;
    if !equal {
        cpu.set_reg(gpr::RAX as u8, found & 0xffff_ffff);
        cpu.set_reg(gpr::RDX as u8, found >> 32);
    }
    cpu.flags.set_zf(equal);
    Ok(())
}

/// CMPXCHG16B: the operand must be aligned.
fn cmpxchg16b(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let at = op.linear(cpu, 16, true)?;
    if at.address % 16 != 0 {
        return cpu.fault(Exception::GP0);
    }
    let pair = |cpu: &Cpu, high: usize, low: usize| {
        u128::from(cpu.reg(high as u8)) << 64 | u128::from(cpu.reg(low as u8))
    };
    let (expected, new) = (pair(cpu, gpr::RDX, gpr::RAX), pair(cpu, gpr::RCX, gpr::RBX));
    let found = cpu.exchange_pair(bus, at, expected, new)?;
    let equal = found == expected;
    if !equal {
        cpu.set_reg(gpr::RAX as u8, found as u64);
        cpu.set_reg(gpr::RDX as u8, (found >> 64) as u64);
    }
    cpu.flags.set_zf(equal);
    Ok(())
}

/// ADCX (through CF) and ADOX (through OF): the other flags stay.
fn adx<const OVERFLOW: bool, S: Operand, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let b = S::read::<W>(cpu, op, bus)?;
    let a = read_reg::<W>(cpu, op.reg);
    let carry = if OVERFLOW { cpu.flags.of() } else { cpu.flags.cf() };
    let sum = u128::from(a) + u128::from(b) + u128::from(carry);
    write_reg::<W>(cpu, op.reg, sum as u64);
    let out = sum >> bits::<W>() != 0;
    if OVERFLOW {
        cpu.flags.set_of(out);
    } else {
        cpu.flags.set_cf(out);
    }
    Ok(())
}

fn adx_handler<const OVERFLOW: bool>(instruction: &Instruction) -> Exec {
    match (is_memory(instruction, 1), operand_size(instruction, 0)) {
        (true, 8) => adx::<OVERFLOW, Mem, u64>,
        (true, _) => adx::<OVERFLOW, Mem, u32>,
        (false, 8) => adx::<OVERFLOW, Src, u64>,
        (false, _) => adx::<OVERFLOW, Src, u32>,
    }
}

pub(crate) fn lower(instruction: &Instruction) -> Option<Exec> {
    let memory = is_memory(instruction, 0);
    let size = operand_size(instruction, 0);
    match instruction.mnemonic() {
        Mnemonic::Add => lower_binary::<Add>(instruction),
        Mnemonic::Adc => lower_binary::<Adc>(instruction),
        Mnemonic::Sub => lower_binary::<Sub>(instruction),
        Mnemonic::Sbb => lower_binary::<Sbb>(instruction),
        Mnemonic::Cmp => lower_binary::<Cmp>(instruction),
        Mnemonic::And => lower_binary::<And>(instruction),
        Mnemonic::Or => lower_binary::<Or>(instruction),
        Mnemonic::Xor => lower_binary::<Xor>(instruction),
        Mnemonic::Test => lower_binary::<Test>(instruction),
        Mnemonic::Inc => lower_unary::<Inc>(instruction),
        Mnemonic::Dec => lower_unary::<Dec>(instruction),
        Mnemonic::Neg => lower_unary::<Neg>(instruction),
        Mnemonic::Not => lower_unary::<Not>(instruction),
        Mnemonic::Xadd if memory => by_size(size, widths!(xadd, Mem)),
        Mnemonic::Xadd => by_size(size, widths!(xadd, Reg)),
        Mnemonic::Cmpxchg if memory => by_size(size, widths!(cmpxchg, Mem)),
        Mnemonic::Cmpxchg => by_size(size, widths!(cmpxchg, Reg)),
        Mnemonic::Cmpxchg8b => Some(cmpxchg8b),
        Mnemonic::Cmpxchg16b => Some(cmpxchg16b),
        Mnemonic::Adcx => Some(adx_handler::<false>(instruction)),
        Mnemonic::Adox => Some(adx_handler::<true>(instruction)),
        _ => None,
    }
}
