//! Delivery of exceptions and interrupts through the IDT (SDM vol. 3A chapter 6; 6.14 for
//! 64-bit mode).
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

/// A stack being written by a delivery or a far call, before RSP and SS are committed.
pub(crate) struct NewStack {
    pub(crate) segment: Segment,
    pub(crate) pointer: u64,
    pub(crate) mode: Mode,
    /// Mask of the stack pointer.
    mask: u64,
    slot: u64,
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
        if !self.protected_mode() && self.cr0 & x86::cr::cr0::PE == 0 {
            return self.deliver_real(bus, event);
        }
        let external = u32::from(event.source != Source::Software);
        let gate = self.gate(bus, event, external)?;
        let target = self.handler_segment(bus, &gate, external)?;
        let new_cpl = if target.is_conforming() { self.cpl } else { target.dpl() };
        let mut stack = self.event_stack(bus, &gate, new_cpl, external)?;
        let flags = self.pushed_flags(event);
        if self.long_mode() || new_cpl != self.cpl {
            let selector = self.segment[seg::SS].selector;
            self.push_new(bus, &mut stack, u64::from(selector))?;
            let rsp = self.reg(x86::gpr::RSP as u8);
            self.push_new(bus, &mut stack, rsp)?;
        }
        self.push_new(bus, &mut stack, flags)?;
        self.push_new(bus, &mut stack, u64::from(self.segment[seg::CS].selector))?;
        self.push_new(bus, &mut stack, self.rip())?;
        if let Some(code) = event.error_code {
            self.push_new(bus, &mut stack, u64::from(code))?;
        }
        self.check_entry(&target, gate.offset)?;
        self.commit_stack(&stack);
        self.segment[seg::CS] =
            Segment { selector: gate.selector & !3 | u16::from(new_cpl), ..target };
        self.set_rip(gate.offset);
        let mut cleared = rflags::TF | rflags::NT | rflags::RF | rflags::VM;
        if gate.clears_if {
            cleared |= rflags::IF;
        }
        self.system_flags &= !cleared;
        if event.vector == vector::DB {
            self.dr7 &= !dr::DR7_GD;
            self.msrs.debug_exception();
        }
        self.shadow = engine::Shadow::None;
        self.refresh_level();
        Ok(())
    }

    /// Real mode: a table of far pointers, 16-bit pushes, no error codes (SDM vol. 3B 21.1.4).
    fn deliver_real(&mut self, bus: Bus<'_>, event: Event) -> Step {
        let entry = u64::from(event.vector) * 4;
        if entry + 3 > u64::from(self.idtr.limit) {
            return self.fault(Exception::with_code(vector::GP, 0));
        }
        let pointer = self.read_system(bus, self.idtr.base.wrapping_add(entry), 4)?;
        let before = self.reg(x86::gpr::RSP as u8);
        let frame = [self.rflags(), u64::from(self.segment[seg::CS].selector), self.rip()];
        for value in frame {
            if let Err(raised) = self.push::<u16>(bus, value) {
                self.set_reg(x86::gpr::RSP as u8, before);
                return Err(raised);
            }
        }
        self.segment[seg::CS].selector = (pointer >> 16) as u16;
        self.segment[seg::CS].base = pointer >> 16 << 4;
        self.set_rip(pointer & 0xffff);
        self.system_flags &= !(rflags::IF | rflags::TF | rflags::RF | rflags::AC);
        self.refresh_level();
        Ok(())
    }

    /// Reads and checks the gate.
    fn gate(&mut self, bus: Bus<'_>, event: Event, external: u32) -> Result<Gate, Raised> {
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
            // Task gates switch tasks only outside long mode, which this engine does not do yet.
            _ => return self.fault(Exception::gp(code)),
        };
        let dpl = (low >> 45 & 3) as u8;
        if event.source == Source::Software && dpl < self.cpl {
            return self.fault(Exception::gp(code));
        }
        if low & 1 << 47 == 0 {
            return self.fault(Exception::with_code(vector::NP, code));
        }
        let mut offset = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
        if slot == 2 {
            offset &= 0xffff;
        }
        Ok(Gate {
            selector: (low >> 16) as u16,
            offset,
            ist: if long { (low >> 32 & 7) as u8 } else { 0 },
            slot,
            clears_if: kind & 1 == 0,
        })
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
            self.present_stack(gate.slot)
        };
        if self.long_mode() {
            if !is_canonical(stack.pointer) {
                return self.fault(Exception::with_code(vector::SS, external));
            }
            stack.pointer &= !15;
        }
        Ok(stack)
    }

    /// The present stack, for pushes of `slot` bytes.
    pub(crate) fn present_stack(&self, slot: u64) -> NewStack {
        let mask = if self.long_mode() { u64::MAX } else { self.stack_mask() };
        NewStack {
            segment: self.segment[seg::SS],
            pointer: self.reg(x86::gpr::RSP as u8) & mask,
            mode: self.mode,
            mask,
            slot,
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
            return Ok(NewStack { segment, pointer, mode, mask: u64::MAX, slot });
        }
        let wide = self.tr.kind() & 8 != 0;
        let (pointer, selector) = if wide {
            let at = 4 + u64::from(cpl) * 8;
            (self.read_tss(bus, at, 4, external)?, self.read_tss(bus, at + 4, 2, external)?)
        } else {
            let at = 2 + u64::from(cpl) * 4;
            (self.read_tss(bus, at, 2, external)?, self.read_tss(bus, at + 2, 2, external)?)
        };
        let segment = self.stack_segment(bus, selector as u16, cpl, vector::TS)?;
        let mask = if segment.big() { 0xffff_ffff } else { 0xffff };
        Ok(NewStack { segment, pointer, mode, mask, slot })
    }

    fn read_tss(
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
        let base = if self.long_mode() { 0 } else { stack.segment.base };
        if !self.long_mode()
            && pointer.wrapping_add(stack.slot - 1) > u64::from(stack.segment.limit)
            && !stack.segment.is_expand_down()
        {
            return self.fault(Exception::SS0);
        }
        let mut address = base.wrapping_add(pointer);
        if !self.long_mode() {
            address &= 0xffff_ffff;
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
