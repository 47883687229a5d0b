//! Far control transfer: JMP, CALL and RET far, call gates, IRET, INT n and its relatives
//! (SDM vol. 3A 5.8, vol. 3B 21.2 for virtual-8086 mode).

use iced_x86::{Code, Instruction, Mnemonic};
use memory::Scalar;
use x86::cr::rflags;
use x86::exception::{Exception, vector};
use x86::gpr;
use x86::segment::{Segment, seg, system};

use super::segment::{Descriptor, error_of, is_null};
use super::{is_memory, widths};
use crate::cpu::{Bus, Cpu, Exec, Raised, Step};
use crate::events::{Event, NewStack, Source};
use crate::op::Op;
use crate::task::Switch;

const RSP: u8 = gpr::RSP as u8;

/// Whether a far transfer leaves a return address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Link {
    Jump,
    Call,
}

impl Cpu {
    /// Far JMP or CALL to `selector:offset`; `slot` is the operand size in bytes.
    fn far_transfer(
        &mut self,
        bus: Bus<'_>,
        selector: u16,
        offset: u64,
        slot: u64,
        link: Link,
    ) -> Step {
        self.leave_block = true;
        if !self.protected_mode() {
            return self.far_real(bus, selector, offset, slot, link);
        }
        if is_null(selector) {
            return self.fault(Exception::GP0);
        }
        let found = self.descriptor(bus, selector, vector::GP, 0)?;
        match found.system_type() {
            None if found.segment.is_code() => {
                self.far_to_code(bus, found, selector, offset, slot, link)
            }
            Some(system::CALL_GATE) => self.far_through_gate(bus, &found, selector, link),
            Some(system::CALL_GATE16) if !self.long_mode() => {
                self.far_through_gate(bus, &found, selector, link)
            }
            Some(
                system::TSS_AVAILABLE
                | system::TSS_BUSY
                | system::TSS16_AVAILABLE
                | system::TSS16_BUSY
                | system::TASK_GATE,
            ) if !self.long_mode() => self.far_to_task(bus, &found, selector, link),
            _ => self.fault(Exception::gp(error_of(selector))),
        }
    }

    /// JMP or CALL to a TSS or task gate (SDM vol. 3A 8.3). A task gate's own DPL is what counts.
    fn far_to_task(&mut self, bus: Bus<'_>, found: &Descriptor, selector: u16, link: Link) -> Step {
        let rpl = selector as u8 & 3;
        if found.segment.dpl() < self.cpl || found.segment.dpl() < rpl {
            return self.fault(Exception::gp(error_of(selector)));
        }
        let mut target = selector;
        if found.system_type() == Some(system::TASK_GATE) {
            if !found.segment.present() {
                return self.fault(Exception::with_code(vector::NP, error_of(selector)));
            }
            target = (found.raw >> 16) as u16;
        }
        let tss = self.available_task(bus, target, 0)?;
        let how = if link == Link::Call { Switch::Call } else { Switch::Jump };
        self.switch_by_instruction(bus, &tss, how)
    }

    fn far_real(
        &mut self,
        bus: Bus<'_>,
        selector: u16,
        offset: u64,
        slot: u64,
        link: Link,
    ) -> Step {
        if offset > u64::from(self.segment[seg::CS].limit) {
            return self.fault(Exception::GP0);
        }
        if link == Link::Call {
            let mut stack = self.present_stack(slot, false);
            self.push_new(bus, &mut stack, u64::from(self.segment[seg::CS].selector))?;
            self.push_new(bus, &mut stack, self.rip())?;
            self.commit_stack(&stack);
        }
        self.load_real_segment(seg::CS, selector);
        self.set_rip(offset);
        self.refresh_level();
        Ok(())
    }

    /// Far RET and IRET in real and virtual-8086 mode, with the frame's bytes to release.
    fn return_real(&mut self, selector: u16, offset: u64, released: u64) -> Step {
        if offset > u64::from(self.segment[seg::CS].limit) {
            return self.fault(Exception::GP0);
        }
        self.release_stack(released);
        self.load_real_segment(seg::CS, selector);
        self.set_rip(offset);
        Ok(())
    }

    fn far_to_code(
        &mut self,
        bus: Bus<'_>,
        mut found: Descriptor,
        selector: u16,
        offset: u64,
        slot: u64,
        link: Link,
    ) -> Step {
        let segment = found.segment;
        let rpl = selector as u8 & 3;
        let allowed = if segment.is_conforming() {
            segment.dpl() <= self.cpl
        } else {
            rpl <= self.cpl && segment.dpl() == self.cpl
        };
        self.check_code(&segment, selector, allowed)?;
        self.mark_accessed(bus, &mut found)?;
        let offset = truncate(offset, slot);
        self.check_entry(&segment, offset)?;
        if link == Link::Call {
            let mut stack = self.present_stack(slot, self.is_64bit());
            self.push_new(bus, &mut stack, u64::from(self.segment[seg::CS].selector))?;
            self.push_new(bus, &mut stack, self.rip())?;
            self.commit_stack(&stack);
        }
        self.enter_code(found.segment, selector, self.cpl, offset);
        Ok(())
    }

    /// The checks that every code segment passes; `allowed` is the privilege check.
    fn check_code(&mut self, segment: &Segment, selector: u16, allowed: bool) -> Step {
        let mode_ok = !(self.long_mode() && segment.long() && segment.big());
        if !segment.is_code() || !allowed || !mode_ok {
            return self.fault(Exception::gp(error_of(selector)));
        }
        if !segment.present() {
            return self.fault(Exception::with_code(vector::NP, error_of(selector)));
        }
        Ok(())
    }

    fn enter_code(&mut self, segment: Segment, selector: u16, cpl: u8, offset: u64) {
        self.segment[seg::CS] = Segment { selector: selector & !3 | u16::from(cpl), ..segment };
        self.set_rip(offset);
        self.refresh_level();
    }

    /// JMP or CALL through a call gate (SDM vol. 3A 5.8.3 to 5.8.5).
    fn far_through_gate(
        &mut self,
        bus: Bus<'_>,
        gate: &Descriptor,
        selector: u16,
        link: Link,
    ) -> Step {
        let rpl = selector as u8 & 3;
        if gate.segment.dpl() < self.cpl || gate.segment.dpl() < rpl {
            return self.fault(Exception::gp(error_of(selector)));
        }
        if !gate.segment.present() {
            return self.fault(Exception::with_code(vector::NP, error_of(selector)));
        }
        let (offset, slot) = self.gate_offset(bus, gate, selector)?;
        let target = (gate.raw >> 16) as u16;
        if is_null(target) {
            return self.fault(Exception::GP0);
        }
        let mut found = self.descriptor(bus, target, vector::GP, 0)?;
        let segment = found.segment;
        let inner = link == Link::Call && !segment.is_conforming() && segment.dpl() < self.cpl;
        let same = if link == Link::Jump && !segment.is_conforming() {
            segment.dpl() == self.cpl
        } else {
            segment.dpl() <= self.cpl
        };
        let long_ok = !self.long_mode() || segment.long() && !segment.big();
        self.check_code(&segment, target, (inner || same) && long_ok)?;
        self.mark_accessed(bus, &mut found)?;
        self.check_entry(&segment, offset)?;
        let cpl = if inner { segment.dpl() } else { self.cpl };
        if link == Link::Call {
            let stack = self.gate_stack(bus, gate, inner, cpl, slot)?;
            self.commit_stack(&stack);
        }
        self.enter_code(found.segment, target, cpl, offset);
        Ok(())
    }

    /// Offset and slot size of a call gate; 16 bytes long in long mode.
    fn gate_offset(
        &mut self,
        bus: Bus<'_>,
        gate: &Descriptor,
        selector: u16,
    ) -> Result<(u64, u64), Raised> {
        let low = gate.raw & 0xffff | gate.raw >> 32 & 0xffff_0000;
        if self.long_mode() {
            let high = self.descriptor_high(bus, selector, vector::GP)?;
            if high >> 40 & 0x1f != 0 {
                return self.fault(Exception::gp(error_of(selector)));
            }
            return Ok((low | high << 32, 8));
        }
        if gate.segment.kind() == system::CALL_GATE { Ok((low, 4)) } else { Ok((low & 0xffff, 2)) }
    }

    /// The stack of a CALL through a gate, with the return address and, on a change of level, the
    /// outer stack pointer and the parameters.
    fn gate_stack(
        &mut self,
        bus: Bus<'_>,
        gate: &Descriptor,
        inner: bool,
        cpl: u8,
        slot: u64,
    ) -> Result<NewStack, Raised> {
        let mut stack = self.present_stack(slot, self.long_mode());
        if inner {
            stack = self.inner_stack(bus, 0, cpl, slot, 0)?;
            self.push_new(bus, &mut stack, u64::from(self.segment[seg::SS].selector))?;
            self.push_new(bus, &mut stack, self.reg(RSP))?;
            let parameters = if self.long_mode() { 0 } else { gate.raw >> 32 & 0x1f };
            for index in (0..parameters).rev() {
                let value = if slot == 4 {
                    self.peek::<u32>(bus, index * 4)?
                } else {
                    self.peek::<u16>(bus, index * 2)?
                };
                self.push_new(bus, &mut stack, value)?;
            }
        }
        self.push_new(bus, &mut stack, u64::from(self.segment[seg::CS].selector))?;
        self.push_new(bus, &mut stack, self.rip())?;
        Ok(stack)
    }

    /// Continues at `selector:offset` with the stack above the popped frame: the second half of
    /// far RET and IRET. `outer_stack` is read when the level changes or, for 64-bit IRET, always.
    fn return_to(
        &mut self,
        bus: Bus<'_>,
        selector: u16,
        offset: u64,
        outer_stack: Option<(u16, u64)>,
        released: u64,
    ) -> Step {
        let rpl = selector as u8 & 3;
        if is_null(selector) {
            return self.fault(Exception::GP0);
        }
        let mut found = self.descriptor(bus, selector, vector::GP, 0)?;
        let segment = found.segment;
        let allowed = rpl >= self.cpl
            && if segment.is_conforming() { segment.dpl() <= rpl } else { segment.dpl() == rpl };
        self.check_code(&segment, selector, allowed)?;
        self.check_entry(&segment, offset)?;
        let new_stack = match outer_stack {
            Some((ss, rsp)) => Some((self.returned_stack(bus, ss, &segment, rpl)?, rsp)),
            None => None,
        };
        self.mark_accessed(bus, &mut found)?;
        let old_cpl = self.cpl;
        match new_stack {
            Some((ss, rsp)) => {
                self.segment[seg::SS] = ss;
                self.enter_code(found.segment, selector, rpl, offset);
                self.set_stack_pointer(rsp);
            }
            None => {
                self.release_stack(released);
                self.enter_code(found.segment, selector, rpl, offset);
            }
        }
        if rpl > old_cpl {
            self.drop_inner_segments();
        }
        Ok(())
    }

    /// Checks SS on return to `cpl`; the mode of the code returned to decides about null.
    fn returned_stack(
        &mut self,
        bus: Bus<'_>,
        selector: u16,
        code: &Segment,
        cpl: u8,
    ) -> Result<Segment, Raised> {
        let to_64bit = self.long_mode() && code.long();
        if is_null(selector) {
            if to_64bit && cpl < 3 && selector as u8 & 3 == cpl {
                return Ok(super::segment::null_stack(selector, cpl));
            }
            return self.fault(Exception::GP0);
        }
        self.stack_segment(bus, selector, cpl, vector::GP, 0)
    }

    /// #GP(0) for what is sensitive to IOPL in virtual-8086 mode: PUSHF, POPF, INT n and IRET (SDM
    /// vol. 3B 21.2.7). CLI, STI and port accesses have checks that cover this mode.
    pub(crate) fn check_virtual_8086_iopl(&mut self) -> Step {
        self.require(!self.virtual_8086() || self.iopl() == 3)
    }

    /// On return to an outer level, data segments that it may not use become null.
    fn drop_inner_segments(&mut self) {
        for index in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let segment = &mut self.segment[index];
            if !segment.is_conforming() && segment.dpl() < self.cpl {
                *segment = Segment { base: segment.base, ..Segment::default() };
            }
        }
    }
}

const fn truncate(value: u64, bytes: u64) -> u64 {
    if bytes == 8 { value } else { value & ((1 << (bytes * 8)) - 1) }
}

/// Far JMP and CALL through memory: offset of the operand size, then selector.
fn far_indirect<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>, link: Link) -> Step {
    let at = op.linear(cpu, W::BYTES + 2, false)?;
    let offset = cpu.read::<W>(bus, at)?;
    let selector = cpu.read::<u16>(bus, at.plus(W::BYTES))? as u16;
    cpu.far_transfer(bus, selector, offset, W::BYTES, link)
}

fn jmp_far_indirect<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    far_indirect::<W>(cpu, op, bus, Link::Jump)
}

fn call_far_indirect<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    far_indirect::<W>(cpu, op, bus, Link::Call)
}

/// Far JMP and CALL to an immediate pointer, outside 64-bit code.
fn far_direct(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let instruction = op.instruction();
    let (offset, slot) = match instruction.op0_kind() {
        iced_x86::OpKind::FarBranch16 => (u64::from(instruction.far_branch16()), 2),
        _ => (u64::from(instruction.far_branch32()), 4),
    };
    let selector = instruction.far_branch_selector();
    let link = if instruction.mnemonic() == Mnemonic::Call { Link::Call } else { Link::Jump };
    cpu.far_transfer(bus, selector, offset, slot, link)
}

/// Far RET, with the immediate that releases arguments.
fn ret_far<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    cpu.leave_block = true;
    let offset = cpu.peek::<W>(bus, 0)?;
    let selector = cpu.peek::<W>(bus, W::BYTES)? as u16;
    let released = 2 * W::BYTES + op.imm;
    if !cpu.protected_mode() {
        return cpu.return_real(selector, offset, released);
    }
    let outer = if selector as u8 & 3 > cpu.cpl {
        let rsp = cpu.peek::<W>(bus, released)?;
        let ss = cpu.peek::<W>(bus, released + W::BYTES)? as u16;
        Some((ss, rsp.wrapping_add(op.imm)))
    } else {
        None
    };
    cpu.return_to(bus, selector, offset, outer, released)
}

/// IRET, IRETD, IRETQ.
fn iret<W: Scalar>(cpu: &mut Cpu, _op: &Op, bus: Bus<'_>) -> Step {
    cpu.leave_block = true;
    cpu.check_virtual_8086_iopl()?;
    if cpu.protected_mode() && cpu.system_flags & rflags::NT != 0 {
        cpu.require(!cpu.long_mode())?;
        cpu.return_from_task(bus)?;
        cpu.nmi_blocked = false;
        return Ok(());
    }
    let offset = cpu.peek::<W>(bus, 0)?;
    let selector = cpu.peek::<W>(bus, W::BYTES)? as u16;
    let flags = cpu.peek::<W>(bus, 2 * W::BYTES)?;
    let writable = iret_flags::<W>(cpu);
    if !cpu.protected_mode() {
        cpu.return_real(selector, offset, 3 * W::BYTES)?;
    } else if flags & rflags::VM != 0 && cpu.cpl == 0 && !cpu.long_mode() {
        return return_to_8086(cpu, bus, selector, offset, flags);
    } else {
        let outer = if cpu.is_64bit() || selector as u8 & 3 > cpu.cpl {
            let rsp = cpu.peek::<W>(bus, 3 * W::BYTES)?;
            Some((cpu.peek::<W>(bus, 4 * W::BYTES)? as u16, rsp))
        } else {
            None
        };
        cpu.return_to(bus, selector, offset, outer, 3 * W::BYTES)?;
    }
    let kept = cpu.rflags() & !writable;
    cpu.set_rflags(kept | flags & writable);
    cpu.nmi_blocked = false;
    Ok(())
}

/// IRETD at CPL 0 to virtual-8086 mode: above EFLAGS lie ESP, SS, ES, DS, FS and GS (SDM vol. 3B
/// 21.2.5).
fn return_to_8086(cpu: &mut Cpu, bus: Bus<'_>, cs: u16, offset: u64, flags: u64) -> Step {
    const ESP: u64 = 12;
    const SELECTORS: [(usize, u64); 5] =
        [(seg::SS, 16), (seg::ES, 20), (seg::DS, 24), (seg::FS, 28), (seg::GS, 32)];
    let pointer = cpu.peek::<u32>(bus, ESP)?;
    let mut loaded = [Segment::virtual_8086(cs); 6];
    for (index, at) in SELECTORS {
        loaded[index] = Segment::virtual_8086(cpu.peek::<u32>(bus, at)? as u16);
    }
    cpu.require(offset <= u64::from(loaded[seg::CS].limit))?;
    cpu.segment = loaded;
    cpu.set_reg(RSP, pointer);
    cpu.set_rip(offset);
    cpu.set_rflags(flags);
    cpu.nmi_blocked = false;
    cpu.refresh();
    Ok(())
}

/// The flags that IRET restores, by mode and level it runs at.
fn iret_flags<W: Scalar>(cpu: &Cpu) -> u64 {
    let mut writable = rflags::ARITHMETIC | rflags::TF | rflags::DF | rflags::NT;
    if W::BYTES > 2 {
        writable |= rflags::RF | rflags::AC | rflags::ID;
    }
    if cpu.cpl == 0 {
        writable |= rflags::IOPL;
        if W::BYTES > 2 && cpu.protected_mode() {
            writable |= rflags::VIF | rflags::VIP;
        }
    }
    if cpu.cpl <= cpu.iopl() {
        writable |= rflags::IF;
    }
    writable
}

/// INT n, INT3, INTO. RIP is already behind the instruction, as is pushed; when the delivery
/// faults, the instruction itself has faulted.
fn software(cpu: &mut Cpu, bus: Bus<'_>, vector: u8) -> Step {
    cpu.step_suppressed = true;
    cpu.deliver(bus, Event { vector, error_code: None, source: Source::Software })
}

fn int(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    cpu.check_virtual_8086_iopl()?;
    software(cpu, bus, op.imm as u8)
}

fn int3(cpu: &mut Cpu, _op: &Op, bus: Bus<'_>) -> Step {
    software(cpu, bus, vector::BP)
}

/// INT1: a debug trap without DPL check.
fn int1(cpu: &mut Cpu, _op: &Op, bus: Bus<'_>) -> Step {
    cpu.deliver(bus, Event { vector: vector::DB, error_code: None, source: Source::Int1 })
}

fn into(cpu: &mut Cpu, _op: &Op, bus: Bus<'_>) -> Step {
    if cpu.flags.of() { software(cpu, bus, vector::OF) } else { Ok(()) }
}

pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Exec> {
    use Mnemonic as M;
    let by_size = |handlers: [Exec; 4]| match instruction.code() {
        Code::Jmp_m1616 | Code::Call_m1616 | Code::Iretw | Code::Retfw | Code::Retfw_imm16 => {
            Some(handlers[1])
        }
        Code::Jmp_m1632 | Code::Call_m1632 | Code::Iretd | Code::Retfd | Code::Retfd_imm16 => {
            Some(handlers[2])
        }
        Code::Jmp_m1664 | Code::Call_m1664 | Code::Iretq | Code::Retfq | Code::Retfq_imm16 => {
            Some(handlers[3])
        }
        _ => None,
    };
    match instruction.mnemonic() {
        M::Jmp | M::Call if instruction.is_jmp_far() || instruction.is_call_far() => {
            Some(far_direct)
        }
        M::Jmp if is_memory(instruction, 0) => by_size(widths!(jmp_far_indirect)),
        M::Call if is_memory(instruction, 0) => by_size(widths!(call_far_indirect)),
        M::Retf => {
            let immediate = if instruction.op_count() == 1 { instruction.immediate16() } else { 0 };
            op.imm = u64::from(immediate);
            by_size(widths!(ret_far))
        }
        M::Iret | M::Iretd | M::Iretq => by_size(widths!(iret)),
        M::Int => {
            op.imm = u64::from(instruction.immediate8());
            Some(int)
        }
        M::Int3 => Some(int3),
        M::Int1 => Some(int1),
        M::Into => Some(into),
        _ => None,
    }
}
