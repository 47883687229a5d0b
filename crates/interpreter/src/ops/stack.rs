//! The stack: PUSH, POP, PUSHF, POPF, ENTER, LEAVE and the primitives that calls and gates use.

use iced_x86::{Code, Instruction, Mnemonic};
use memory::Scalar;
use x86::cr::rflags;
use x86::gpr;
use x86::segment::seg;

use super::{Imm, Mem, Operand, Reg, Target, by_size, is_memory, is_register, widths};
use crate::access::Linear;
use crate::cpu::{Bus, Cpu, Exec, Raised, Step};
use crate::op::{Op, read_reg, write_reg};

const RSP: u8 = gpr::RSP as u8;
const RBP: u8 = gpr::RBP as u8;

impl Cpu {
    /// Bits of RSP that address the stack: by SS.B, all in 64-bit code.
    #[inline(always)]
    pub(crate) fn stack_mask(&self) -> u64 {
        if self.is_64bit() {
            u64::MAX
        } else if self.segment[seg::SS].big() {
            0xffff_ffff
        } else {
            0xffff
        }
    }

    /// Linear address of `size` bytes at stack offset `offset`.
    #[inline(always)]
    pub(crate) fn stack_linear(
        &mut self,
        offset: u64,
        size: u64,
        write: bool,
    ) -> Result<Linear, Raised> {
        if self.is_64bit() {
            return Ok(Linear { address: offset, stack: true });
        }
        self.segmented(seg::SS, offset & self.stack_mask(), size, write)
    }

    /// Sets RSP as far as the stack's address size reaches.
    #[inline(always)]
    pub(crate) fn set_stack_pointer(&mut self, value: u64) {
        let mask = self.stack_mask();
        let new = match mask {
            0xffff => self.reg(RSP) & !0xffff | value & 0xffff,
            _ => value & mask,
        };
        self.set_reg(RSP, new);
    }

    /// Pushes `value`; RSP changes only when the write succeeds.
    #[inline(always)]
    pub(crate) fn push<W: Scalar>(&mut self, bus: Bus<'_>, value: u64) -> Step {
        let top = self.reg(RSP).wrapping_sub(W::BYTES);
        let at = self.stack_linear(top, W::BYTES, true)?;
        self.write::<W>(bus, at, value)?;
        self.set_stack_pointer(top);
        Ok(())
    }

    /// Reads the stack `offset` bytes above RSP.
    #[inline(always)]
    pub(crate) fn peek<W: Scalar>(&mut self, bus: Bus<'_>, offset: u64) -> Result<u64, Raised> {
        let at = self.stack_linear(self.reg(RSP).wrapping_add(offset), W::BYTES, false)?;
        self.read::<W>(bus, at)
    }

    /// Moves RSP up by `bytes`.
    #[inline(always)]
    pub(crate) fn release_stack(&mut self, bytes: u64) {
        let top = self.reg(RSP).wrapping_add(bytes);
        self.set_stack_pointer(top);
    }

    /// Pops.
    #[inline(always)]
    pub(crate) fn pop<W: Scalar>(&mut self, bus: Bus<'_>) -> Result<u64, Raised> {
        let value = self.peek::<W>(bus, 0)?;
        self.release_stack(W::BYTES);
        Ok(value)
    }
}

fn push<S: Operand, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let value = S::read::<W>(cpu, op, bus)?;
    cpu.push::<W>(bus, value)
}

/// POP into a register: POP RSP leaves the popped value, not an incremented one.
fn pop_reg<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let value = cpu.pop::<W>(bus)?;
    write_reg::<W>(cpu, op.reg, value);
    Ok(())
}

/// POP into memory: an address that uses RSP uses it after the increment (SDM vol. 2B, POP).
fn pop_mem<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let before = cpu.reg(RSP);
    let value = cpu.pop::<W>(bus)?;
    let stored = Mem::write::<W>(cpu, op, bus, value);
    if stored.is_err() {
        cpu.set_reg(RSP, before);
    }
    stored
}

fn push_segment<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let selector = cpu.segment[usize::from(op.reg) % 6].selector;
    if W::BYTES != 4 {
        return cpu.push::<W>(bus, u64::from(selector));
    }
    // A 32-bit push of a segment register writes only 16 bits (SDM vol. 2B, PUSH).
    let top = cpu.reg(RSP).wrapping_sub(4);
    let at = cpu.stack_linear(top, 4, true)?;
    cpu.write::<u16>(bus, at, u64::from(selector))?;
    cpu.set_stack_pointer(top);
    Ok(())
}

fn pop_segment<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let selector = cpu.peek::<W>(bus, 0)? as u16;
    // The old stack decides how far RSP moves, also when SS is what is loaded.
    let top = cpu.reg(RSP).wrapping_add(W::BYTES);
    cpu.load_segment(bus, usize::from(op.reg) % 6, selector)?;
    cpu.set_stack_pointer(top);
    Ok(())
}

fn pushf<W: Scalar>(cpu: &mut Cpu, _op: &Op, bus: Bus<'_>) -> Step {
    cpu.check_virtual_8086_iopl()?;
    // RF and VM are pushed as zero.
    let value = cpu.rflags() & !(rflags::RF | rflags::VM);
    cpu.push::<W>(bus, value)
}

/// POPF: IOPL changes only at CPL 0, IF only when CPL <= IOPL, silently otherwise.
fn popf<W: Scalar>(cpu: &mut Cpu, _op: &Op, bus: Bus<'_>) -> Step {
    cpu.check_virtual_8086_iopl()?;
    let value = cpu.pop::<W>(bus)?;
    let mut writable =
        rflags::ARITHMETIC | rflags::TF | rflags::DF | rflags::NT | rflags::AC | rflags::ID;
    if cpu.cpl == 0 {
        writable |= rflags::IOPL;
    }
    if cpu.cpl <= cpu.iopl() {
        writable |= rflags::IF;
    }
    let mut cleared = rflags::RF;
    if W::BYTES == 2 {
        writable &= 0xffff;
    } else if !cpu.virtual_8086() {
        cleared |= rflags::VIF | rflags::VIP;
    }
    let kept = cpu.rflags() & !writable & !cleared;
    cpu.set_rflags(kept | value & writable);
    cpu.leave_block = true;
    Ok(())
}

fn leave<W: Scalar>(cpu: &mut Cpu, _op: &Op, bus: Bus<'_>) -> Step {
    let frame = cpu.reg(RBP);
    let at = cpu.stack_linear(frame, W::BYTES, false)?;
    let value = cpu.read::<W>(bus, at)?;
    cpu.set_stack_pointer(frame.wrapping_add(W::BYTES));
    write_reg::<W>(cpu, RBP, value);
    Ok(())
}

/// ENTER with nesting (SDM vol. 2A). `imm`: bytes of locals; `reg`: nesting level, 0 to 31.
fn enter<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let before = cpu.reg(RSP);
    let result = enter_frame::<W>(cpu, op, bus);
    if result.is_err() {
        cpu.set_reg(RSP, before);
    }
    result
}

fn enter_frame<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let level = op.reg & 31;
    let old_frame = read_reg::<W>(cpu, RBP);
    cpu.push::<W>(bus, old_frame)?;
    let frame = cpu.reg(RSP);
    if level > 0 {
        let mut link = cpu.reg(RBP);
        for _ in 1..level {
            link = link.wrapping_sub(W::BYTES);
            let at = cpu.stack_linear(link, W::BYTES, false)?;
            let value = cpu.read::<W>(bus, at)?;
            cpu.push::<W>(bus, value)?;
        }
        cpu.push::<W>(bus, frame)?;
    }
    let top = cpu.reg(RSP).wrapping_sub(op.imm);
    // The new top of stack must be writable though nothing is written there yet.
    let at = cpu.stack_linear(top, W::BYTES, true)?;
    cpu.probe_write(at, W::BYTES)?;
    cpu.set_stack_pointer(top);
    write_reg::<W>(cpu, RBP, frame);
    Ok(())
}

/// PUSHA in 16- and 32-bit code.
fn pusha<W: Scalar>(cpu: &mut Cpu, _op: &Op, bus: Bus<'_>) -> Step {
    let before = cpu.reg(RSP);
    for register in 0..8_u8 {
        let value = if register == RSP { before } else { cpu.reg(register) };
        if let Err(raised) = cpu.push::<W>(bus, value) {
            cpu.set_reg(RSP, before);
            return Err(raised);
        }
    }
    Ok(())
}

/// POPA in 16- and 32-bit code; the saved stack pointer is skipped.
fn popa<W: Scalar>(cpu: &mut Cpu, _op: &Op, bus: Bus<'_>) -> Step {
    let mut values = [0; 8];
    for (slot, value) in values.iter_mut().enumerate() {
        *value = cpu.peek::<W>(bus, slot as u64 * W::BYTES)?;
    }
    for (slot, value) in values.into_iter().enumerate() {
        let register = 7 - slot as u8;
        if register != RSP {
            write_reg::<W>(cpu, register, value);
        }
    }
    cpu.release_stack(8 * W::BYTES);
    Ok(())
}

/// Bytes that a push moves RSP by; iced knows it for every form of PUSH and POP.
fn slot_size(instruction: &Instruction) -> usize {
    instruction.stack_pointer_increment().unsigned_abs() as usize
}

pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Exec> {
    use Mnemonic as M;
    let slot = slot_size(instruction);
    let segment = is_register(instruction, 0) && instruction.op0_register().is_segment_register();
    match instruction.mnemonic() {
        M::Push if segment => by_size(slot, widths!(push_segment)),
        M::Push if is_register(instruction, 0) => by_size(slot, widths!(push, Reg)),
        M::Push if is_memory(instruction, 0) => by_size(slot, widths!(push, Mem)),
        M::Push => by_size(slot, widths!(push, Imm)),
        M::Pop if segment => by_size(slot, widths!(pop_segment)),
        M::Pop if is_register(instruction, 0) => by_size(slot, widths!(pop_reg)),
        M::Pop => by_size(slot, widths!(pop_mem)),
        M::Pushf | M::Pushfd | M::Pushfq => by_size(slot, widths!(pushf)),
        M::Popf | M::Popfd | M::Popfq => by_size(slot, widths!(popf)),
        M::Pusha => Some(pusha::<u16>),
        M::Pushad => Some(pusha::<u32>),
        M::Popa => Some(popa::<u16>),
        M::Popad => Some(popa::<u32>),
        M::Leave => match instruction.code() {
            Code::Leaveq => Some(leave::<u64>),
            Code::Leaved => Some(leave::<u32>),
            _ => Some(leave::<u16>),
        },
        M::Enter => {
            op.imm = u64::from(instruction.immediate16());
            op.reg = instruction.immediate8_2nd();
            match instruction.code() {
                Code::Enterq_imm16_imm8 => Some(enter::<u64>),
                Code::Enterd_imm16_imm8 => Some(enter::<u32>),
                _ => Some(enter::<u16>),
            }
        }
        _ => None,
    }
}
