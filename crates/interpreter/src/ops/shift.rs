//! Shifts and rotates: SHL, SHR, SAR, ROL, ROR, RCL, RCR, SHLD, SHRD and the flagless BMI2 forms.
//!
//! Where the manual leaves a flag undefined (OF for counts above one), the value that current
//! CPUs give is taken: it keeps the comparison with the host simple, and programs that depend on
//! it by mistake working.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use memory::Scalar;
use x86::gpr;

use super::{
    Mem, Operand, Reg, Src, Target, bits, by_size, is_memory, mask, operand_size, sign_extend,
    widths,
};
use crate::cpu::{Bus, Cpu, Exec, Step};
use crate::op::{COUNT_IN_CL, Op, read_reg, write_reg};

const RCX: u8 = gpr::RCX as u8;

/// The count, masked to 5 bits, or 6 for 64-bit operands.
#[inline(always)]
fn count<W: Scalar>(cpu: &Cpu, op: &Op) -> u32 {
    let raw = if op.has(COUNT_IN_CL) { cpu.reg(RCX) } else { op.imm };
    raw as u32 & if W::BYTES == 8 { 63 } else { 31 }
}

trait Shift {
    /// Result for `count` of 1 and more; `cf` is the carry flag before.
    fn compute<W: Scalar>(a: u64, count: u32, cf: bool) -> u64;
    fn flags<W: Scalar>(cpu: &mut Cpu, a: u64, count: u32, r: u64);
}

struct Shl;
struct Shr;
struct Sar;
struct Rol;
struct Ror;
struct Rcl;
struct Rcr;

fn top<W: Scalar>(value: u64) -> bool {
    value >> (bits::<W>() - 1) & 1 != 0
}

impl Shift for Shl {
    #[inline(always)]
    fn compute<W: Scalar>(a: u64, count: u32, _cf: bool) -> u64 {
        a << count & mask::<W>()
    }
    #[inline(always)]
    fn flags<W: Scalar>(cpu: &mut Cpu, a: u64, count: u32, r: u64) {
        let cf = count <= bits::<W>() && a >> (bits::<W>() - count) & 1 != 0;
        cpu.flags.logic(bits::<W>(), r);
        cpu.flags.set_cf_of(cf, top::<W>(r) != cf);
    }
}

impl Shift for Shr {
    #[inline(always)]
    fn compute<W: Scalar>(a: u64, count: u32, _cf: bool) -> u64 {
        a >> count
    }
    #[inline(always)]
    fn flags<W: Scalar>(cpu: &mut Cpu, a: u64, count: u32, r: u64) {
        let cf = a >> (count - 1) & 1 != 0;
        cpu.flags.logic(bits::<W>(), r);
        // OF is the sign before; for longer shifts hardware gives the same of the last step.
        let of = count == 1 && top::<W>(a);
        cpu.flags.set_cf_of(cf, of);
    }
}

impl Shift for Sar {
    #[inline(always)]
    fn compute<W: Scalar>(a: u64, count: u32, _cf: bool) -> u64 {
        (sign_extend::<W>(a) as i64 >> count) as u64 & mask::<W>()
    }
    #[inline(always)]
    fn flags<W: Scalar>(cpu: &mut Cpu, a: u64, count: u32, r: u64) {
        let cf = sign_extend::<W>(a) as i64 >> (count - 1) & 1 != 0;
        cpu.flags.logic(bits::<W>(), r);
        cpu.flags.set_cf_of(cf, false);
    }
}

impl Shift for Rol {
    #[inline(always)]
    fn compute<W: Scalar>(a: u64, count: u32, _cf: bool) -> u64 {
        let n = count % bits::<W>();
        if n == 0 { a } else { (a << n | a >> (bits::<W>() - n)) & mask::<W>() }
    }
    #[inline(always)]
    fn flags<W: Scalar>(cpu: &mut Cpu, _a: u64, _count: u32, r: u64) {
        let cf = r & 1 != 0;
        cpu.flags.set_cf_of(cf, top::<W>(r) != cf);
    }
}

impl Shift for Ror {
    #[inline(always)]
    fn compute<W: Scalar>(a: u64, count: u32, _cf: bool) -> u64 {
        let n = count % bits::<W>();
        if n == 0 { a } else { (a >> n | a << (bits::<W>() - n)) & mask::<W>() }
    }
    #[inline(always)]
    fn flags<W: Scalar>(cpu: &mut Cpu, _a: u64, _count: u32, r: u64) {
        let cf = top::<W>(r);
        cpu.flags.set_cf_of(cf, cf != (r >> (bits::<W>() - 2) & 1 != 0));
    }
}

/// The operand with the carry above it, as one number of `bits + 1` bits.
fn with_carry<W: Scalar>(a: u64, cf: bool) -> u128 {
    u128::from(cf) << bits::<W>() | u128::from(a)
}

fn rotate_left<W: Scalar>(wide: u128, count: u32) -> u128 {
    let size = bits::<W>() + 1;
    let n = count % size;
    if n == 0 { wide } else { (wide << n | wide >> (size - n)) & ((1 << size) - 1) }
}

impl Shift for Rcl {
    fn compute<W: Scalar>(a: u64, count: u32, cf: bool) -> u64 {
        rotate_left::<W>(with_carry::<W>(a, cf), count) as u64 & mask::<W>()
    }
    fn flags<W: Scalar>(cpu: &mut Cpu, a: u64, count: u32, r: u64) {
        let wide = rotate_left::<W>(with_carry::<W>(a, cpu.flags.cf()), count);
        let cf = wide >> bits::<W>() & 1 != 0;
        cpu.flags.set_cf_of(cf, top::<W>(r) != cf);
    }
}

impl Shift for Rcr {
    fn compute<W: Scalar>(a: u64, count: u32, cf: bool) -> u64 {
        let size = bits::<W>() + 1;
        rotate_left::<W>(with_carry::<W>(a, cf), size - count % size) as u64 & mask::<W>()
    }
    fn flags<W: Scalar>(cpu: &mut Cpu, a: u64, count: u32, r: u64) {
        let size = bits::<W>() + 1;
        let wide = rotate_left::<W>(with_carry::<W>(a, cpu.flags.cf()), size - count % size);
        let cf = wide >> bits::<W>() & 1 != 0;
        cpu.flags.set_cf_of(cf, top::<W>(r) != (r >> (bits::<W>() - 2) & 1 != 0));
    }
}

/// A count of zero changes no flag; a 32-bit register is zero-extended all the same, and memory
/// is written.
fn shift<O: Shift, D: Target, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let count = count::<W>(cpu, op);
    if count == 0 {
        return D::update::<W>(cpu, op, bus, |a| a).map(|_| ());
    }
    let cf = cpu.flags.cf();
    let a = D::update::<W>(cpu, op, bus, |a| O::compute::<W>(a, count, cf))?;
    O::flags::<W>(cpu, a, count, O::compute::<W>(a, count, cf));
    Ok(())
}

fn lower_shift<O: Shift>(instruction: &Instruction) -> Option<Exec> {
    let size = operand_size(instruction, 0);
    let memory = is_memory(instruction, 0);
    by_size(size, if memory { widths!(shift, O, Mem) } else { widths!(shift, O, Reg) })
}

/// SHLD (`LEFT`) and SHRD. For 16-bit operands with a count above 16 the result is undefined;
/// current CPUs shift through the pair cyclically.
fn double_shift<const LEFT: bool, D: Target, W: Scalar>(
    cpu: &mut Cpu,
    op: &Op,
    bus: Bus<'_>,
) -> Step {
    let raw = if op.has(COUNT_IN_CL) { cpu.reg(RCX) } else { op.imm };
    let count = raw as u32 & if W::BYTES == 8 { 63 } else { 31 };
    if count == 0 {
        return D::update::<W>(cpu, op, bus, |a| a).map(|_| ());
    }
    let filler = read_reg::<W>(cpu, op.src);
    let compute = |a: u64| double_shifted::<LEFT, W>(a, filler, count).0;
    let a = D::update::<W>(cpu, op, bus, compute)?;
    let (r, cf) = double_shifted::<LEFT, W>(a, filler, count);
    cpu.flags.logic(bits::<W>(), r);
    cpu.flags.set_cf_of(cf, top::<W>(a) != top::<W>(r));
    Ok(())
}

/// The result and the last bit shifted out.
fn double_shifted<const LEFT: bool, W: Scalar>(a: u64, filler: u64, count: u32) -> (u64, bool) {
    let size = bits::<W>();
    let (a, filler) = (u128::from(a), u128::from(filler));
    if LEFT {
        // a : filler : a, so that counts above 16 wrap for 16-bit operands.
        let wide = a << size | filler;
        let wide = if W::BYTES == 2 { wide << size | a } else { wide };
        let total = if W::BYTES == 2 { 3 * size } else { 2 * size };
        let shifted = wide >> (total - size - count);
        (shifted as u64 & mask::<W>(), shifted >> size & 1 != 0)
    } else {
        let wide = filler << size | a;
        let wide = if W::BYTES == 2 { a << (2 * size) | wide } else { wide };
        ((wide >> count) as u64 & mask::<W>(), wide >> (count - 1) & 1 != 0)
    }
}

/// RORX, SARX, SHLX, SHRX: no flags.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flagless {
    Ror,
    Sar,
    Shl,
    Shr,
}

fn flagless<S: Operand, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>, kind: Flagless) -> Step {
    let a = S::read::<W>(cpu, op, bus)?;
    let raw = if kind == Flagless::Ror { op.imm } else { cpu.reg(third_register(op)) };
    let count = raw as u32 & (bits::<W>() - 1);
    let r = match kind {
        Flagless::Ror if count == 0 => a,
        Flagless::Ror => a >> count | a << (bits::<W>() - count),
        Flagless::Sar => (sign_extend::<W>(a) as i64 >> count) as u64,
        Flagless::Shl => a << count,
        Flagless::Shr => a >> count,
    };
    write_reg::<W>(cpu, op.reg, r);
    Ok(())
}

/// The register of a VEX-encoded third operand; the decoder leaves it in `imm`.
pub(crate) fn third_register(op: &Op) -> u8 {
    op.imm as u8
}

macro_rules! flagless {
    ($($name:ident $kind:ident),*) => { $(
        fn $name<S: Operand, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
            flagless::<S, W>(cpu, op, bus, Flagless::$kind)
        }
    )* };
}
flagless!(rorx Ror, sarx Sar, shlx Shl, shrx Shr);

fn lower_flagless(instruction: &Instruction, op: &mut Op) -> Option<Exec> {
    if instruction.op_kind(2) == OpKind::Register {
        op.imm = instruction.op2_register().number() as u64;
    }
    let memory = is_memory(instruction, 1);
    let handlers = match (instruction.mnemonic(), memory) {
        (Mnemonic::Rorx, true) => widths!(rorx, Mem),
        (Mnemonic::Rorx, false) => widths!(rorx, Src),
        (Mnemonic::Sarx, true) => widths!(sarx, Mem),
        (Mnemonic::Sarx, false) => widths!(sarx, Src),
        (Mnemonic::Shlx, true) => widths!(shlx, Mem),
        (Mnemonic::Shlx, false) => widths!(shlx, Src),
        (_, true) => widths!(shrx, Mem),
        (_, false) => widths!(shrx, Src),
    };
    by_size(operand_size(instruction, 0), handlers)
}

fn lower_double<const LEFT: bool>(instruction: &Instruction, op: &mut Op) -> Option<Exec> {
    if instruction.op2_kind() == OpKind::Register {
        op.bits |= COUNT_IN_CL;
    }
    let size = operand_size(instruction, 0);
    let handlers = if is_memory(instruction, 0) {
        double_handlers::<LEFT, Mem>()
    } else {
        double_handlers::<LEFT, Reg>()
    };
    by_size(size, handlers)
}

fn double_handlers<const LEFT: bool, D: Target>() -> [Exec; 4] {
    [
        double_shift::<LEFT, D, u8>,
        double_shift::<LEFT, D, u16>,
        double_shift::<LEFT, D, u32>,
        double_shift::<LEFT, D, u64>,
    ]
}

pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Exec> {
    use Mnemonic as M;
    let shifts = matches!(
        instruction.mnemonic(),
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr
    );
    if shifts && instruction.op1_register() == Register::CL {
        op.bits |= COUNT_IN_CL;
    }
    match instruction.mnemonic() {
        M::Shl | M::Sal => lower_shift::<Shl>(instruction),
        M::Shr => lower_shift::<Shr>(instruction),
        M::Sar => lower_shift::<Sar>(instruction),
        M::Rol => lower_shift::<Rol>(instruction),
        M::Ror => lower_shift::<Ror>(instruction),
        M::Rcl => lower_shift::<Rcl>(instruction),
        M::Rcr => lower_shift::<Rcr>(instruction),
        M::Shld => lower_double::<true>(instruction, op),
        M::Shrd => lower_double::<false>(instruction, op),
        M::Rorx | M::Sarx | M::Shlx | M::Shrx => lower_flagless(instruction, op),
        _ => None,
    }
}
