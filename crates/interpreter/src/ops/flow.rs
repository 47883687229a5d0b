//! Near control transfer: Jcc, JMP, CALL, RET, LOOP, JRCXZ.

use iced_x86::{ConditionCode, Instruction, Mnemonic};
use memory::Scalar;
use x86::exception::Exception;
use x86::gpr;
use x86::is_canonical;

use super::{Mem, Operand, Reg, by_size, is_memory, is_register, operand_size, widths};
use crate::cpu::{Bus, CodeSize, Cpu, Exec, Step};
use crate::op::Op;

const RCX: u8 = gpr::RCX as u8;

/// The number of a condition in opcodes, 0 to 15 (SDM vol. 1 appendix B); `None` for no condition.
pub fn condition_number(condition: ConditionCode) -> Option<u8> {
    use ConditionCode as C;
    Some(match condition {
        C::o => 0,
        C::no => 1,
        C::b => 2,
        C::ae => 3,
        C::e => 4,
        C::ne => 5,
        C::be => 6,
        C::a => 7,
        C::s => 8,
        C::ns => 9,
        C::p => 10,
        C::np => 11,
        C::l => 12,
        C::ge => 13,
        C::le => 14,
        C::g => 15,
        C::None => return None,
    })
}

impl Cpu {
    /// Continues at `target`, an offset in CS: #GP(0) outside the canonical range or the limit.
    #[inline(always)]
    pub(crate) fn jump(&mut self, target: u64) -> Step {
        if self.is_64bit() {
            if !is_canonical(target) {
                return self.fault(Exception::GP0);
            }
        } else if target > u64::from(self.segment[x86::segment::seg::CS].limit) {
            return self.fault(Exception::GP0);
        }
        self.set_rip(target);
        Ok(())
    }

    /// Truncates a branch target to the operand size of `W`.
    #[inline(always)]
    fn relative<W: Scalar>(&self, displacement: u64) -> u64 {
        W::from_u64(self.rip().wrapping_add(displacement)).to_u64()
    }
}

fn jcc<const CC: u8, W: Scalar>(cpu: &mut Cpu, op: &Op, _bus: Bus<'_>) -> Step {
    if cpu.flags.condition(CC) {
        let target = cpu.relative::<W>(op.imm);
        return cpu.jump(target);
    }
    Ok(())
}

fn jcc_handlers<W: Scalar>() -> [Exec; 16] {
    [
        jcc::<0, W>,
        jcc::<1, W>,
        jcc::<2, W>,
        jcc::<3, W>,
        jcc::<4, W>,
        jcc::<5, W>,
        jcc::<6, W>,
        jcc::<7, W>,
        jcc::<8, W>,
        jcc::<9, W>,
        jcc::<10, W>,
        jcc::<11, W>,
        jcc::<12, W>,
        jcc::<13, W>,
        jcc::<14, W>,
        jcc::<15, W>,
    ]
}

fn jmp_relative<W: Scalar>(cpu: &mut Cpu, op: &Op, _bus: Bus<'_>) -> Step {
    let target = cpu.relative::<W>(op.imm);
    cpu.jump(target)
}

fn jmp_indirect<S: Operand, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let target = S::read::<W>(cpu, op, bus)?;
    cpu.jump(target)
}

fn call_relative<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let target = cpu.relative::<W>(op.imm);
    call_to::<W>(cpu, bus, target)
}

fn call_indirect<S: Operand, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let target = S::read::<W>(cpu, op, bus)?;
    call_to::<W>(cpu, bus, target)
}

/// The return address is written before the target is checked; RSP moves only when both succeed.
#[inline(always)]
fn call_to<W: Scalar>(cpu: &mut Cpu, bus: Bus<'_>, target: u64) -> Step {
    let top = cpu.reg(gpr::RSP as u8).wrapping_sub(W::BYTES);
    let at = cpu.stack_linear(top, W::BYTES, true)?;
    cpu.write::<W>(bus, at, cpu.rip())?;
    cpu.jump(target)?;
    cpu.set_stack_pointer(top);
    Ok(())
}

/// RET, with the immediate that releases arguments.
fn ret<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let target = cpu.peek::<W>(bus, 0)?;
    cpu.jump(target)?;
    cpu.release_stack(W::BYTES + op.imm);
    Ok(())
}

/// The counter of LOOP and JRCXZ has the width of an address.
fn counter(cpu: &Cpu, op: &Op) -> u64 {
    cpu.reg(RCX) & op.address_mask
}

fn jrcxz(cpu: &mut Cpu, op: &Op, _bus: Bus<'_>) -> Step {
    if counter(cpu, op) != 0 {
        return Ok(());
    }
    let target = branch_target(cpu, op);
    cpu.jump(target)
}

/// LOOP (`WANTED` 2), LOOPE (1), LOOPNE (0).
fn loop_while<const WANTED: u8>(cpu: &mut Cpu, op: &Op, _bus: Bus<'_>) -> Step {
    let count = counter(cpu, op).wrapping_sub(1) & op.address_mask;
    let condition = WANTED == 2 || cpu.flags.zf() == (WANTED == 1);
    if count != 0 && condition {
        let target = branch_target(cpu, op);
        cpu.jump(target)?;
    }
    let kept = if op.address_mask == 0xffff { cpu.reg(RCX) & !0xffff } else { 0 };
    cpu.set_reg(RCX, kept | count);
    Ok(())
}

/// Target of a branch that is rare enough not to be specialised by size; `reg` holds the operand
/// size in bytes.
fn branch_target(cpu: &Cpu, op: &Op) -> u64 {
    let target = cpu.rip().wrapping_add(op.imm);
    match op.reg {
        2 => target & 0xffff,
        4 => target & 0xffff_ffff,
        _ => target,
    }
}

/// Bytes of a near branch's operand: of its target.
fn branch_size(instruction: &Instruction) -> usize {
    use iced_x86::OpKind::{NearBranch16, NearBranch32, NearBranch64};
    match instruction.op0_kind() {
        NearBranch16 => 2,
        NearBranch32 => 4,
        NearBranch64 => 8,
        _ => 0,
    }
}

/// Operand size of a near RET: that of the stack slot that it pops.
fn return_size(instruction: &Instruction) -> usize {
    let released = i64::from(instruction.stack_pointer_increment())
        - if instruction.op_count() == 1 { i64::from(instruction.immediate16()) } else { 0 };
    released as usize
}

pub(crate) fn lower(instruction: &Instruction, op: &mut Op, code: CodeSize) -> Option<Exec> {
    use Mnemonic as M;
    let size = branch_size(instruction);
    if size != 0 {
        // Kept relative, so that a block serves every address that its page is mapped at.
        op.imm = instruction.near_branch_target().wrapping_sub(instruction.next_ip());
        op.reg = size as u8;
    }
    match instruction.mnemonic() {
        M::Jmp if size != 0 => by_size(size, widths!(jmp_relative)),
        M::Jmp if is_register(instruction, 0) => {
            by_size(operand_size(instruction, 0), widths!(jmp_indirect, Reg))
        }
        M::Jmp if near_memory(instruction) => {
            by_size(operand_size(instruction, 0), widths!(jmp_indirect, Mem))
        }
        M::Call if size != 0 => by_size(size, widths!(call_relative)),
        M::Call if is_register(instruction, 0) => {
            by_size(operand_size(instruction, 0), widths!(call_indirect, Reg))
        }
        M::Call if near_memory(instruction) => {
            by_size(operand_size(instruction, 0), widths!(call_indirect, Mem))
        }
        M::Ret => {
            op.imm =
                if instruction.op_count() == 1 { u64::from(instruction.immediate16()) } else { 0 };
            by_size(return_size(instruction), widths!(ret))
        }
        M::Jrcxz | M::Jecxz | M::Jcxz => {
            op.address_mask = counter_mask(instruction, code);
            Some(jrcxz)
        }
        M::Loop | M::Loope | M::Loopne => {
            op.address_mask = counter_mask(instruction, code);
            Some(match instruction.mnemonic() {
                M::Loop => loop_while::<2>,
                M::Loope => loop_while::<1>,
                _ => loop_while::<0>,
            })
        }
        _ if instruction.is_jcc_short_or_near() => {
            let condition = usize::from(condition_number(instruction.condition_code())?);
            Some(match size {
                8 => jcc_handlers::<u64>()[condition],
                4 => jcc_handlers::<u32>()[condition],
                _ => jcc_handlers::<u16>()[condition],
            })
        }
        _ => None,
    }
}

/// A near indirect branch through memory; a far one is in `far`.
fn near_memory(instruction: &Instruction) -> bool {
    is_memory(instruction, 0)
        && !instruction.is_jmp_far_indirect()
        && !instruction.is_call_far_indirect()
}

/// Width of the counter of LOOP and JRCXZ, from the code: the address size.
fn counter_mask(instruction: &Instruction, code: CodeSize) -> u64 {
    use iced_x86::Code as C;
    match instruction.code() {
        C::Jcxz_rel8_16
        | C::Jcxz_rel8_32
        | C::Loop_rel8_16_CX
        | C::Loop_rel8_32_CX
        | C::Loope_rel8_16_CX
        | C::Loope_rel8_32_CX
        | C::Loopne_rel8_16_CX
        | C::Loopne_rel8_32_CX => 0xffff,
        C::Jrcxz_rel8_16
        | C::Jrcxz_rel8_64
        | C::Loop_rel8_16_RCX
        | C::Loop_rel8_64_RCX
        | C::Loope_rel8_16_RCX
        | C::Loope_rel8_64_RCX
        | C::Loopne_rel8_16_RCX
        | C::Loopne_rel8_64_RCX => {
            debug_assert_eq!(code, CodeSize::Bits64, "a 64-bit counter outside 64-bit code");
            u64::MAX
        }
        _ => 0xffff_ffff,
    }
}
