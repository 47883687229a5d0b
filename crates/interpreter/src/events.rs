//! Delivery of exceptions and interrupts through the IDT (SDM vol. 3A chapter 6; 6.14 for
//! 64-bit mode, vol. 3B 21.1.4 for real mode, 21.3 for virtual-8086 mode).
//!
//! A delivery that faults becomes another exception: the rules of table 6-5 decide whether it
//! replaces the first, becomes a double fault, or shuts the CPU down (triple fault). Registers
//! change only when a delivery succeeds.

use x86::cr::{dr, rflags};
use x86::exception::{Exception, selector_error, vector};
use x86::is_canonical;
use x86::segment::{Segment, seg, system};

use crate::access::Linear;
use crate::cpu::{Bus, Cpu, Raised, Step};
use crate::ops::segment::{error_of, is_null, null_stack};
use crate::task::Switch;
use crate::tlb::Mode;

/// Where an event comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// An interrupt controller, or an NMI.
    External,
    /// An exception of class fault: RF is set in the pushed image.
    Fault,
    /// An exception of class trap.
    Trap,
    /// INT n, INT3, INTO: the gate's DPL is checked.
    Software,
    /// INT1: a trap by an instruction, without a check of the gate's DPL.
    Int1,
}

/// An event to deliver. RIP is what is to be pushed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) vector: u8,
    pub(crate) error_code: Option<u32>,
    pub(crate) source: Source,
}

/// A gate of the IDT.
struct Gate {
    selector: u16,
    offset: u64,
    ist: u8,
    /// Bytes of each pushed value: 2, 4 or 8.
    slot: u64,
    clears_if: bool,
}

/// What an entry of the IDT leads to.
enum Entry {
    /// A handler in the present task.
    Handler(Gate),
    /// A task of its own; the selector of its TSS.
    Task(u16),
}

/// A stack being written by a delivery or a far call, before RSP and SS are committed.
pub(crate) struct NewStack {
    pub(crate) segment: Segment,
    pub(crate) pointer: u64,
    pub(crate) mode: Mode,
    /// Mask of the stack pointer.
    pub(crate) mask: u64,
    /// Bytes of each push.
    pub(crate) slot: u64,
    /// Addressed as in 64-bit code: without base and limit.
    pub(crate) flat: bool,
    /// Error code of the #SS when the stack overflows.
    pub(crate) overflow: u32,
}

impl Cpu {
    /// Delivers the exception that an instruction raised; RIP is at the instruction.
    pub(crate) fn deliver_raised(&mut self, bus: Bus<'_>) {
        let Some(exception) = self.raised.take() else { return };
        self.deliver_exception(bus, exception, Source::Fault);
    }

    /// Delivers an exception, with what may come of it.
    pub(crate) fn deliver_exception(&mut self, bus: Bus<'_>, first: Exception, source: Source) {
        let (mut current, mut source) = (first, source);
        // Each round either succeeds, escalates towards shutdown, or replaces a benign exception:
        // the bound is for a benign one that raises itself for ever.
        for _ in 0..8 {
            self.counters.exceptions += 1;
            if current.vector == vector::PF {
                self.cr2 = current.address;
            }
            let event = Event { vector: current.vector, error_code: current.error_code, source };
            if self.deliver(bus, event).is_ok() {
                return;
            }
            let Some(second) = self.raised.take() else { break };
            if current.vector == vector::DF {
                break;
            }
            let page_faults = current.vector == vector::PF && second.vector == vector::PF;
            let escalates = second.is_contributory()
                && (current.is_contributory() || current.vector == vector::PF);
            current = if escalates || page_faults {
                if second.vector == vector::PF {
                    self.cr2 = second.address;
                }
                Exception::with_code(vector::DF, 0)
            } else {
                second
            };
            source = Source::Fault;
        }
        self.shutdown = true;
        self.leave_block = true;
    }

    /// Delivers an interrupt, NMI or software interrupt; a fault on the way is delivered instead.
    pub(crate) fn deliver_event(&mut self, bus: Bus<'_>, event: Event) {
        if self.deliver(bus, event).is_err()
            && let Some(exception) = self.raised.take()
        {
            self.deliver_exception(bus, exception, Source::Fault);
        }
    }

    /// One attempt to deliver `event`.
    pub(crate) fn deliver(&mut self, bus: Bus<'_>, event: Event) -> Step {
        self.leave_block = true;
        if self.cr0 & x86::cr::cr0::PE == 0 {
            self.deliver_real(bus, event)?;
        } else {
            let external = u32::from(event.source != Source::Software);
            match self.gate(bus, event, external)? {
                Entry::Handler(gate) => self.enter_handler(bus, event, &gate, external)?,
                Entry::Task(selector) => self.enter_task(bus, event, selector, external)?,
            }
        }
        if event.vector == vector::DB {
            self.dr7 &= !dr::DR7_GD;
            self.msrs.debug_exception();
        }
        self.shadow = engine::Shadow::None;
        self.refresh_level();
        Ok(())
    }

    /// Continues at the handler of an interrupt or trap gate.
    fn enter_handler(&mut self, bus: Bus<'_>, event: Event, gate: &Gate, external: u32) -> Step {
        let target = self.handler_segment(bus, gate, external)?;
        let new_cpl = if target.is_conforming() { self.cpl } else { target.dpl() };
        let leaves_8086 = self.virtual_8086();
        if leaves_8086 && new_cpl != 0 {
            return self.fault(Exception::gp(error_of(gate.selector) | external));
        }
        let mut stack = self.event_stack(bus, gate, new_cpl, external)?;
        self.push_frame(bus, &mut stack, event, new_cpl)?;
        self.check_entry(&target, gate.offset)?;
        self.commit_stack(&stack);
        if leaves_8086 {
            for index in [seg::ES, seg::DS, seg::FS, seg::GS] {
                self.segment[index] = Segment::default();
            }
        }
        self.segment[seg::CS] =
            Segment { selector: gate.selector & !3 | u16::from(new_cpl), ..target };
        self.set_rip(gate.offset);
        let mut cleared = rflags::TF | rflags::NT | rflags::RF | rflags::VM;
        if gate.clears_if {
            cleared |= rflags::IF;
        }
        self.system_flags &= !cleared;
        Ok(())
    }

    /// Pushes what the handler returns to. Out of virtual-8086 mode the data segments go first: the
    /// handler gets null selectors, IRET brings them back (SDM vol. 3B 21.3.1.1).
    fn push_frame(
        &mut self,
        bus: Bus<'_>,
        stack: &mut NewStack,
        event: Event,
        new_cpl: u8,
    ) -> Step {
        if self.virtual_8086() {
            for index in [seg::GS, seg::FS, seg::DS, seg::ES] {
                self.push_new(bus, stack, u64::from(self.segment[index].selector))?;
            }
        }
        if self.long_mode() || new_cpl != self.cpl {
            self.push_new(bus, stack, u64::from(self.segment[seg::SS].selector))?;
            self.push_new(bus, stack, self.reg(x86::gpr::RSP as u8))?;
        }
        self.push_new(bus, stack, self.pushed_flags(event))?;
        self.push_new(bus, stack, u64::from(self.segment[seg::CS].selector))?;
        self.push_new(bus, stack, self.rip())?;
        match event.error_code {
            Some(code) => self.push_new(bus, stack, u64::from(code)),
            None => Ok(()),
        }
    }

    /// Switches to the task that a task gate names (SDM vol. 3A 6.12.2).
    fn enter_task(&mut self, bus: Bus<'_>, event: Event, selector: u16, external: u32) -> Step {
        let found = self.available_task(bus, selector, external)?;
        let how = Switch::Interrupt { external, error_code: event.error_code };
        let flags = self.pushed_flags(event);
        match self.switch_task(bus, &found, how, flags)? {
            None => Ok(()),
            // An instruction is complete once the switch is: the fault belongs to the new task.
            Some(_) if matches!(event.source, Source::Software | Source::Int1) => {
                self.deliver_raised(bus);
                Ok(())
            }
            Some(raised) => Err(raised),
        }
    }

    /// Real mode: a table of far pointers, 16-bit pushes, no error codes (SDM vol. 3B 21.1.4).
    fn deliver_real(&mut self, bus: Bus<'_>, event: Event) -> Step {
        let entry = u64::from(event.vector) * 4;
        if entry + 3 > u64::from(self.idtr.limit) {
            return self.fault(Exception::with_code(vector::GP, 0));
        }
        let pointer = self.read_system(bus, self.idtr.base.wrapping_add(entry), 4)?;
        let before = self.reg(x86::gpr::RSP as u8);
        let offset = pointer & 0xffff;
        self.require(offset <= u64::from(self.segment[seg::CS].limit))?;
        let frame = [self.rflags(), u64::from(self.segment[seg::CS].selector), self.rip()];
        for value in frame {
            if let Err(raised) = self.push::<u16>(bus, value) {
                self.set_reg(x86::gpr::RSP as u8, before);
                return Err(raised);
            }
        }
        self.load_real_segment(seg::CS, (pointer >> 16) as u16);
        self.set_rip(offset);
        self.system_flags &= !(rflags::IF | rflags::TF | rflags::RF | rflags::AC);
        Ok(())
    }

    /// Reads and checks the gate.
    fn gate(&mut self, bus: Bus<'_>, event: Event, external: u32) -> Result<Entry, Raised> {
        let size = if self.long_mode() { 16 } else { 8 };
        let entry = u64::from(event.vector) * size;
        let code = (u32::from(event.vector) << 3) | selector_error::IDT | external;
        if entry + size - 1 > u64::from(self.idtr.limit) {
            return self.fault(Exception::gp(code));
        }
        let at = self.idtr.base.wrapping_add(entry);
        let low = self.read_system(bus, at, 8)?;
        let high = if self.long_mode() { self.read_system(bus, at.wrapping_add(8), 8)? } else { 0 };
        let kind = (low >> 40 & 0x1f) as u8;
        let long = self.long_mode();
        let slot = match kind {
            system::INTERRUPT_GATE | system::TRAP_GATE if long => 8,
            system::INTERRUPT_GATE | system::TRAP_GATE => 4,
            system::INTERRUPT_GATE16 | system::TRAP_GATE16 if !long => 2,
            system::TASK_GATE if !long => 0,
            _ => return self.fault(Exception::gp(code)),
        };
        let dpl = (low >> 45 & 3) as u8;
        if event.source == Source::Software && dpl < self.cpl {
            return self.fault(Exception::gp(code));
        }
        if low & 1 << 47 == 0 {
            return self.fault(Exception::with_code(vector::NP, code));
        }
        if kind == system::TASK_GATE {
            return Ok(Entry::Task((low >> 16) as u16));
        }
        let mut offset = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
        if slot == 2 {
            offset &= 0xffff;
        }
        Ok(Entry::Handler(Gate {
            selector: (low >> 16) as u16,
            offset,
            ist: if long { (low >> 32 & 7) as u8 } else { 0 },
            slot,
            clears_if: kind & 1 == 0,
        }))
    }

    /// The code segment of a handler.
    fn handler_segment(
        &mut self,
        bus: Bus<'_>,
        gate: &Gate,
        external: u32,
    ) -> Result<Segment, Raised> {
        if is_null(gate.selector) {
            return self.fault(Exception::gp(external));
        }
        let code = error_of(gate.selector) | external;
        let mut found = self.descriptor(bus, gate.selector, vector::GP, external)?;
        let segment = found.segment;
        let mode_ok = !self.long_mode() || segment.long() && !segment.big();
        if !segment.is_code() || segment.dpl() > self.cpl || !mode_ok {
            return self.fault(Exception::gp(code));
        }
        if !segment.present() {
            return self.fault(Exception::with_code(vector::NP, code));
        }
        self.mark_accessed(bus, &mut found)?;
        Ok(found.segment)
    }

    /// Chooses the stack: an IST slot, the TSS's stack for an inner level, or the present one.
    fn event_stack(
        &mut self,
        bus: Bus<'_>,
        gate: &Gate,
        new_cpl: u8,
        external: u32,
    ) -> Result<NewStack, Raised> {
        let mut stack = if gate.ist != 0 || new_cpl != self.cpl {
            self.inner_stack(bus, gate.ist, new_cpl, gate.slot, external)?
        } else {
            NewStack { overflow: external, ..self.present_stack(gate.slot, self.long_mode()) }
        };
        if self.long_mode() {
            if !is_canonical(stack.pointer) {
                return self.fault(Exception::with_code(vector::SS, external));
            }
            stack.pointer &= !15;
        }
        Ok(stack)
    }

    /// The present stack, for pushes of `slot` bytes, addressed as by 64-bit code when `flat`.
    pub(crate) fn present_stack(&self, slot: u64, flat: bool) -> NewStack {
        let mask = if flat { u64::MAX } else { self.stack_mask() };
        NewStack {
            segment: self.segment[seg::SS],
            pointer: self.reg(x86::gpr::RSP as u8) & mask,
            mode: self.mode,
            mask,
            slot,
            flat,
            overflow: 0,
        }
    }

    /// The stack for privilege level `cpl` (or IST slot `ist`) from the TSS.
    pub(crate) fn inner_stack(
        &mut self,
        bus: Bus<'_>,
        ist: u8,
        cpl: u8,
        slot: u64,
        external: u32,
    ) -> Result<NewStack, Raised> {
        let mode = if cpl == 3 { Mode::User } else { Mode::Supervisor };
        if self.long_mode() {
            let offset = if ist != 0 { 0x1c + u64::from(ist) * 8 } else { 4 + u64::from(cpl) * 8 };
            let pointer = self.read_tss(bus, offset, 8, external)?;
            let segment = if cpl == self.cpl {
                self.segment[seg::SS]
            } else {
                null_stack(u16::from(cpl), cpl)
            };
            let mask = u64::MAX;
            return Ok(NewStack {
                segment,
                pointer,
                mode,
                mask,
                slot,
                flat: true,
                overflow: external,
            });
        }
        let wide = self.tr.kind() & 8 != 0;
        let (pointer, selector) = if wide {
            let at = 4 + u64::from(cpl) * 8;
            (self.read_tss(bus, at, 4, external)?, self.read_tss(bus, at + 4, 2, external)?)
        } else {
            let at = 2 + u64::from(cpl) * 4;
            (self.read_tss(bus, at, 2, external)?, self.read_tss(bus, at + 2, 2, external)?)
        };
        let segment = self.stack_segment(bus, selector as u16, cpl, vector::TS, external)?;
        let mask = if segment.big() { 0xffff_ffff } else { 0xffff };
        let overflow = error_of(selector as u16) | external;
        Ok(NewStack { segment, pointer: pointer & mask, mode, mask, slot, flat: false, overflow })
    }

    pub(crate) fn read_tss(
        &mut self,
        bus: Bus<'_>,
        offset: u64,
        size: u64,
        external: u32,
    ) -> Result<u64, Raised> {
        if offset + size - 1 > u64::from(self.tr.limit) {
            let code = error_of(self.tr.selector) | external;
            return self.fault(Exception::with_code(vector::TS, code));
        }
        self.read_system(bus, self.tr.base.wrapping_add(offset), size)
    }

    /// Pushes onto a stack that is not committed yet.
    pub(crate) fn push_new(&mut self, bus: Bus<'_>, stack: &mut NewStack, value: u64) -> Step {
        let pointer = stack.pointer.wrapping_sub(stack.slot) & stack.mask;
        let mut address = pointer;
        if !stack.flat {
            if !self.in_limit(&stack.segment, pointer, stack.slot) {
                return self.fault(Exception::with_code(vector::SS, stack.overflow));
            }
            address = stack.segment.base.wrapping_add(pointer) & 0xffff_ffff;
        }
        self.write_slow(bus, Linear { address, stack: true }, stack.slot, value, stack.mode)?;
        stack.pointer = pointer;
        Ok(())
    }

    /// Makes a new stack the present one.
    pub(crate) fn commit_stack(&mut self, stack: &NewStack) {
        self.segment[seg::SS] = stack.segment;
        let kept = if stack.mask == 0xffff { self.reg(x86::gpr::RSP as u8) & !0xffff } else { 0 };
        self.set_reg(x86::gpr::RSP as u8, kept | stack.pointer);
    }

    /// Entry point in the canonical range or inside the limit.
    pub(crate) fn check_entry(&mut self, target: &Segment, offset: u64) -> Step {
        let inside = if self.long_mode() && target.long() {
            is_canonical(offset)
        } else {
            offset <= u64::from(target.limit)
        };
        self.require(inside)
    }

    /// The image of RFLAGS that an event pushes (SDM vol. 3B 18.3.1.1 for RF).
    fn pushed_flags(&self, event: Event) -> u64 {
        let flags = self.rflags();
        match event.source {
            Source::Fault if event.vector != vector::DB => flags | rflags::RF,
            _ => flags,
        }
    }
}
