//! Moves between registers and memory: MOV, MOVZX, MOVSX, LEA, XCHG, CMOVcc, SETcc, BSWAP,
//! MOVBE, XLAT, sign extensions, LAHF, SAHF and the flag instructions.

use iced_x86::{ConditionCode, FlowControl, Instruction, Mnemonic};
use memory::Scalar;
use x86::cr::rflags::DF;
use x86::gpr;

use super::{
    Imm, Mem, Operand, Reg, Src, Target, bits, by_size, is_memory, is_register, operand_size,
    sign_extend, widths,
};
use crate::cpu::{Bus, Cpu, Exec, Step};
use crate::flags::Flags;
use crate::op::{Op, read_reg, write_reg};
use crate::sharing::pause;

const RAX: u8 = gpr::RAX as u8;
const RDX: u8 = gpr::RDX as u8;

fn mov<D: Target, S: Operand, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let value = S::read::<W>(cpu, op, bus)?;
    D::write::<W>(cpu, op, bus, value)
}

fn extend<const SIGNED: bool, S: Operand, F: Scalar, W: Scalar>(
    cpu: &mut Cpu,
    op: &Op,
    bus: Bus<'_>,
) -> Step {
    let value = S::read::<F>(cpu, op, bus)?;
    write_reg::<W>(cpu, op.reg, if SIGNED { sign_extend::<F>(value) } else { value });
    Ok(())
}

fn lower_extend<const SIGNED: bool>(instruction: &Instruction) -> Option<Exec> {
    let from = operand_size(instruction, 1);
    let to = operand_size(instruction, 0);
    match (is_memory(instruction, 1), from) {
        (true, 1) => by_size(to, extends::<SIGNED, Mem, u8>()),
        (true, 2) => by_size(to, extends::<SIGNED, Mem, u16>()),
        (true, _) => by_size(to, extends::<SIGNED, Mem, u32>()),
        (false, 1) => by_size(to, extends::<SIGNED, Src, u8>()),
        (false, 2) => by_size(to, extends::<SIGNED, Src, u16>()),
        (false, _) => by_size(to, extends::<SIGNED, Src, u32>()),
    }
}

fn extends<const SIGNED: bool, S: Operand, F: Scalar>() -> [Exec; 4] {
    [
        extend::<SIGNED, S, F, u8>,
        extend::<SIGNED, S, F, u16>,
        extend::<SIGNED, S, F, u32>,
        extend::<SIGNED, S, F, u64>,
    ]
}

fn lea<W: Scalar>(cpu: &mut Cpu, op: &Op, _bus: Bus<'_>) -> Step {
    write_reg::<W>(cpu, op.reg, op.offset(cpu));
    Ok(())
}

/// XCHG; with memory it is atomic with or without LOCK.
fn xchg<D: Target, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let new = read_reg::<W>(cpu, op.src);
    let old = D::update::<W>(cpu, op, bus, |_| new)?;
    write_reg::<W>(cpu, op.src, old);
    Ok(())
}

/// CMOVcc reads its source whether or not the condition holds; a 32-bit destination is
/// zero-extended either way.
fn cmov<S: Operand, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let value = S::read::<W>(cpu, op, bus)?;
    let old = read_reg::<W>(cpu, op.reg);
    let met = cpu.flags.condition(op.imm as u8);
    write_reg::<W>(cpu, op.reg, if met { value } else { old });
    Ok(())
}

fn setcc<D: Target>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let met = cpu.flags.condition(op.imm as u8);
    D::write::<u8>(cpu, op, bus, u64::from(met))
}

fn bswap<W: Scalar>(cpu: &mut Cpu, op: &Op, _bus: Bus<'_>) -> Step {
    let value = read_reg::<W>(cpu, op.reg);
    // With a 16-bit operand the result is undefined; hardware gives zero.
    let swapped = if W::BYTES == 2 { 0 } else { value.swap_bytes() >> (64 - bits::<W>()) };
    write_reg::<W>(cpu, op.reg, swapped);
    Ok(())
}

fn movbe_load<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let value = Mem::read::<W>(cpu, op, bus)?;
    write_reg::<W>(cpu, op.reg, value.swap_bytes() >> (64 - bits::<W>()));
    Ok(())
}

fn movbe_store<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let value = read_reg::<W>(cpu, op.src);
    Mem::write::<W>(cpu, op, bus, value.swap_bytes() >> (64 - bits::<W>()))
}

/// XLAT: the decoder gives base RBX and index AL as the memory operand.
fn xlat(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let offset = cpu.reg(op.base).wrapping_add(cpu.reg(RAX) & 0xff) & op.address_mask;
    let at = op.linear_at(cpu, offset, 1, false)?;
    let value = cpu.read::<u8>(bus, at)?;
    write_reg::<u8>(cpu, RAX, value);
    Ok(())
}

/// CBW, CWDE, CDQE: the accumulator from its lower half `F`.
fn widen<F: Scalar, W: Scalar>(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    let value = sign_extend::<F>(read_reg::<F>(cpu, RAX));
    write_reg::<W>(cpu, RAX, value);
    Ok(())
}

/// CWD, CDQ, CQO: the sign of the accumulator into RDX.
fn sign_to_rdx<W: Scalar>(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    let negative = (sign_extend::<W>(read_reg::<W>(cpu, RAX)) as i64) < 0;
    write_reg::<W>(cpu, RDX, if negative { u64::MAX } else { 0 });
    Ok(())
}

fn lahf(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    let flags = cpu.rflags() & 0xff;
    let rax = cpu.reg(RAX) & !0xff00 | flags << 8;
    cpu.set_reg(RAX, rax);
    Ok(())
}

fn sahf(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    let of = cpu.flags.of();
    cpu.flags = Flags::unpack(cpu.reg(RAX) >> 8 & 0xff);
    cpu.flags.set_of(of);
    Ok(())
}

fn clc(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    cpu.flags.set_cf(false);
    Ok(())
}

fn stc(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    cpu.flags.set_cf(true);
    Ok(())
}

fn cmc(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    let cf = cpu.flags.cf();
    cpu.flags.set_cf(!cf);
    Ok(())
}

fn cld(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    cpu.system_flags &= !DF;
    Ok(())
}

fn std(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    cpu.system_flags |= DF;
    Ok(())
}

/// MFENCE: the host's loads must not overtake its stores either.
fn mfence(_cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    Ok(())
}

/// NOP, prefetches, LFENCE, SFENCE, ENDBR, CLDEMOTE, RDSSP without shadow stacks: no effect that a
/// guest could see here.
pub(crate) fn nop(_cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    Ok(())
}

/// CLFLUSH, CLFLUSHOPT, CLWB: no cache, but the address is checked like a one-byte read.
fn cache_line(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    Mem::read::<u8>(cpu, op, bus).map(|_| ())
}

fn lower_mov(instruction: &Instruction) -> Option<Exec> {
    let special = |i: u32| {
        let r = instruction.op_register(i);
        is_register(instruction, i)
            && (r.is_segment_register() || r.is_cr() || r.is_dr() || r.is_tr())
    };
    if special(0) || special(1) {
        return None;
    }
    let size = operand_size(instruction, 0);
    let immediate = !is_memory(instruction, 1) && !is_register(instruction, 1);
    let handlers = match (is_memory(instruction, 0), is_memory(instruction, 1)) {
        (true, _) if immediate => widths!(mov, Mem, Imm),
        (true, _) => widths!(mov, Mem, Src),
        (false, true) => widths!(mov, Reg, Mem),
        (false, false) if immediate => widths!(mov, Reg, Imm),
        (false, false) => widths!(mov, Reg, Src),
    };
    by_size(size, handlers)
}

fn lower_conditional(instruction: &Instruction, op: &mut Op) -> Option<Exec> {
    let condition = super::flow::condition_number(instruction.condition_code())?;
    op.imm = u64::from(condition);
    let memory = (0..2).any(|i| is_memory(instruction, i));
    if instruction.op_count() == 1 {
        return Some(if memory { setcc::<Mem> } else { setcc::<Reg> });
    }
    let size = operand_size(instruction, 0);
    by_size(size, if memory { widths!(cmov, Mem) } else { widths!(cmov, Src) })
}

pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Exec> {
    use Mnemonic as M;
    let size = operand_size(instruction, 0);
    let memory = is_memory(instruction, 0);
    match instruction.mnemonic() {
        M::Mov | M::Movnti => lower_mov(instruction),
        M::Movzx => lower_extend::<false>(instruction),
        M::Movsx | M::Movsxd => lower_extend::<true>(instruction),
        M::Lea => by_size(operand_size(instruction, 0), widths!(lea)),
        M::Xchg if memory => by_size(size, widths!(xchg, Mem)),
        M::Xchg if is_memory(instruction, 1) => None,
        M::Xchg => by_size(size, widths!(xchg, Reg)),
        M::Bswap => by_size(size, widths!(bswap)),
        M::Movbe if memory => by_size(size, widths!(movbe_store)),
        M::Movbe => by_size(size, widths!(movbe_load)),
        M::Xlatb => Some(xlat),
        M::Cbw => Some(widen::<u8, u16>),
        M::Cwde => Some(widen::<u16, u32>),
        M::Cdqe => Some(widen::<u32, u64>),
        M::Cwd => Some(sign_to_rdx::<u16>),
        M::Cdq => Some(sign_to_rdx::<u32>),
        M::Cqo => Some(sign_to_rdx::<u64>),
        M::Lahf => Some(lahf),
        M::Sahf => Some(sahf),
        M::Clc => Some(clc),
        M::Stc => Some(stc),
        M::Cmc => Some(cmc),
        M::Cld => Some(cld),
        M::Std => Some(std),
        M::Nop
        | M::Reservednop
        | M::Lfence
        | M::Sfence
        | M::Endbr64
        | M::Endbr32
        | M::Cldemote
        | M::Rdsspd
        | M::Rdsspq
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchw
        | M::Prefetch
        | M::Prefetchwt1 => Some(nop),
        M::Mfence => Some(mfence),
        M::Pause => Some(pause),
        M::Clflush | M::Clflushopt | M::Clwb => Some(cache_line),
        _ if is_conditional(instruction) => lower_conditional(instruction, op),
        _ => None,
    }
}

/// SETcc or CMOVcc of general registers (FCMOVcc belongs to the x87 unit).
fn is_conditional(instruction: &Instruction) -> bool {
    let general = instruction.op_count() > 0
        && (is_memory(instruction, 0) || instruction.op0_register().is_gpr());
    let branch = instruction.flow_control() != FlowControl::Next;
    general && !branch && instruction.condition_code() != ConditionCode::None
}
