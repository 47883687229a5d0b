//! Hardware task switches (SDM vol. 3A chapter 8): by JMP and CALL to a TSS or task gate, by an
//! interrupt or exception through a task gate, and back by IRET with EFLAGS.NT.
//!
//! A switch has two halves. Until the old task is saved, a fault leaves everything as it was and
//! belongs to the old task. From then on the new task is the present one: its selectors are checked
//! as they are loaded, and a fault is raised in its context, before its first instruction. Such a
//! late fault is the `Some` of [`Cpu::switch_task`].
//!
//! Neighbours: `ops::far` and `events` decide that a task is to be switched to.

use x86::cr::{cr0, dr, rflags};
use x86::exception::{Exception, vector};
use x86::segment::{Segment, TssLayout, seg, system};

use crate::cpu::{Bus, Cpu, Raised, Step};
use crate::events::NewStack;
use crate::ops::segment::{Descriptor, error_of, is_null};

/// What starts a task switch; it decides about busy flags, NT and the link (table 8-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switch {
    /// JMP: the old task is left for good.
    Jump,
    /// CALL: the new task returns by IRET.
    Call,
    /// An event through a task gate.
    Interrupt {
        /// EXT bit of error codes.
        external: u32,
        /// Pushed on the stack of the new task.
        error_code: Option<u32>,
    },
    /// IRET to the task that the link names.
    Return,
}

impl Switch {
    /// Whether the new task is nested in the old one.
    fn nests(self) -> bool {
        matches!(self, Self::Call | Self::Interrupt { .. })
    }

    fn external(self) -> u32 {
        match self {
            Self::Interrupt { external, .. } => external,
            _ => 0,
        }
    }
}

/// The state of a task as its TSS has it.
struct Image {
    cr3: Option<u64>,
    ip: u64,
    flags: u64,
    registers: [u64; 8],
    /// ES, CS, SS, DS, FS, GS.
    selectors: [u16; 6],
    ldt: u16,
    traps: bool,
}

/// Bits of the access byte that tell busy from available.
const BUSY: u64 = 1 << 1;

impl Cpu {
    /// The descriptor of a TSS that can be switched to by JMP, CALL or a task gate.
    pub(crate) fn available_task(
        &mut self,
        bus: Bus<'_>,
        selector: u16,
        external: u32,
    ) -> Result<Descriptor, Raised> {
        let code = error_of(selector) | external;
        if selector & 4 != 0 {
            return self.fault(Exception::gp(code));
        }
        let found = self.descriptor(bus, selector, vector::GP, external)?;
        match found.system_type() {
            Some(system::TSS_AVAILABLE | system::TSS16_AVAILABLE) => {}
            _ => return self.fault(Exception::gp(code)),
        }
        if !found.segment.present() {
            return self.fault(Exception::with_code(vector::NP, code));
        }
        Ok(found)
    }

    /// IRET with EFLAGS.NT: back to the task that the link of the present one names.
    pub(crate) fn return_from_task(&mut self, bus: Bus<'_>) -> Step {
        let link = self.read_tss(bus, 0, 2, 0)? as u16;
        let bad = Exception::with_code(vector::TS, error_of(link));
        if link & 4 != 0 {
            return self.fault(bad);
        }
        let found = self.descriptor(bus, link, vector::TS, 0)?;
        if !matches!(found.system_type(), Some(system::TSS_BUSY | system::TSS16_BUSY)) {
            return self.fault(bad);
        }
        if !found.segment.present() {
            return self.fault(Exception::with_code(vector::NP, error_of(link)));
        }
        self.switch_by_instruction(bus, &found, Switch::Return)
    }

    /// A switch by an instruction, which is complete once the switch is: a late fault is delivered
    /// here, with RIP in the new task.
    pub(crate) fn switch_by_instruction(
        &mut self,
        bus: Bus<'_>,
        found: &Descriptor,
        how: Switch,
    ) -> Step {
        let flags = self.rflags();
        if self.switch_task(bus, found, how, flags)?.is_some() {
            self.deliver_raised(bus);
        }
        Ok(())
    }

    /// Switches to the task of the TSS `found`; RIP and `flags` are what the old task goes on with.
    /// The steps are those of SDM vol. 3A 8.3. `Some` is a fault of the new task.
    pub(crate) fn switch_task(
        &mut self,
        bus: Bus<'_>,
        found: &Descriptor,
        how: Switch,
        flags: u64,
    ) -> Result<Option<Raised>, Raised> {
        self.leave_block = true;
        let (old, new) = (TssLayout::of(self.tr.kind()), TssLayout::of(found.segment.kind()));
        for (tss, layout) in [(found.segment, &new), (self.tr, &old)] {
            if tss.limit < layout.minimum_limit {
                let code = error_of(tss.selector) | how.external();
                return self.fault(Exception::with_code(vector::TS, code));
            }
        }
        let image = self.read_task(bus, found.segment.base, &new)?;
        let old_descriptor = self.gdtr.base.wrapping_add(u64::from(self.tr.selector & !7) + 5);
        self.check_task_writable(found, how, &old, old_descriptor)?;

        let kept = if how == Switch::Return { flags & !rflags::NT } else { flags };
        self.save_task(bus, &old, kept)?;
        if !how.nests() {
            let access = self.read_system(bus, old_descriptor, 1)?;
            self.write_system(bus, old_descriptor, 1, access & !BUSY)?;
        } else {
            self.write_system(bus, found.segment.base, 2, u64::from(self.tr.selector))?;
        }
        if how != Switch::Return {
            self.write_system(bus, found.at.wrapping_add(5), 1, found.raw >> 40 & 0xff | BUSY)?;
        }
        self.tr = found.segment;
        self.tr.attributes |= BUSY as u16;
        Ok(self.load_task(bus, &image, how, new.slot).err())
    }

    /// Checks that all that a switch writes before its commitment can be written.
    fn check_task_writable(
        &mut self,
        found: &Descriptor,
        how: Switch,
        old: &TssLayout,
        old_descriptor: u64,
    ) -> Step {
        let saved = old.segments + old.segment_count as u64 * old.slot - old.ip;
        self.check_system_write(self.tr.base.wrapping_add(old.ip), saved)?;
        if how.nests() {
            self.check_system_write(found.segment.base, 2)?;
        } else {
            self.check_system_write(old_descriptor, 1)?;
        }
        self.check_system_write(found.at.wrapping_add(5), 1)
    }

    fn read_task(&mut self, bus: Bus<'_>, base: u64, layout: &TssLayout) -> Result<Image, Raised> {
        let mut read = |at: u64, size: u64| self.read_system(bus, base.wrapping_add(at), size);
        let mut image = Image {
            cr3: None,
            ip: read(layout.ip, layout.slot)?,
            flags: read(layout.flags, layout.slot)?,
            registers: [0; 8],
            selectors: [0; 6],
            ldt: read(layout.ldt, 2)? as u16,
            traps: false,
        };
        for (index, register) in image.registers.iter_mut().enumerate() {
            *register = read(layout.registers + index as u64 * layout.slot, layout.slot)?;
        }
        for (index, selector) in image.selectors[..layout.segment_count].iter_mut().enumerate() {
            *selector = read(layout.segments + index as u64 * layout.slot, 2)? as u16;
        }
        if let Some(at) = layout.cr3 {
            image.cr3 = Some(read(at, 4)?);
        }
        if let Some(at) = layout.trap {
            image.traps = read(at, 2)? & 1 != 0;
        }
        Ok(image)
    }

    fn save_task(&mut self, bus: Bus<'_>, layout: &TssLayout, flags: u64) -> Step {
        let base = self.tr.base;
        let slot = layout.slot;
        self.write_system(bus, base.wrapping_add(layout.ip), slot, self.rip())?;
        self.write_system(bus, base.wrapping_add(layout.flags), slot, flags)?;
        for index in 0..8_u8 {
            let at = base.wrapping_add(layout.registers + u64::from(index) * slot);
            self.write_system(bus, at, slot, self.reg(index))?;
        }
        for index in 0..layout.segment_count {
            let at = base.wrapping_add(layout.segments + index as u64 * slot);
            self.write_system(bus, at, 2, u64::from(self.segment[index].selector))?;
        }
        Ok(())
    }

    /// The second half: the new task's state, then its segments. Faults are the new task's.
    fn load_task(&mut self, bus: Bus<'_>, image: &Image, how: Switch, slot: u64) -> Step {
        self.cr0 |= cr0::TS;
        self.dr7 &= !dr::DR7_LOCAL;
        if image.traps {
            self.debug_trap |= dr::DR6_BT;
            self.attention = true;
        }
        for (index, value) in (0..8).zip(image.registers) {
            self.set_reg(index, value);
        }
        self.set_rip(image.ip);
        let nested = if how.nests() { rflags::NT } else { 0 };
        self.set_rflags(image.flags | nested);
        // Until they are loaded, segment registers hold their selectors, and cannot be used.
        for (index, selector) in image.selectors.into_iter().enumerate() {
            self.segment[index] = Segment { selector, ..Segment::default() };
        }
        self.segment[seg::SS].attributes = (image.selectors[seg::CS] & 3) << 5;
        self.ldtr = Segment { selector: image.ldt, ..Segment::default() };
        self.shadow = engine::Shadow::None;
        self.refresh();
        if let Some(cr3) = image.cr3
            && self.cr0 & cr0::PG != 0
        {
            self.load_task_cr3(cr3)?;
        }
        self.load_task_segments(bus, image, how.external())?;
        if let Switch::Interrupt { external, error_code: Some(code) } = how {
            let mut stack = NewStack { overflow: external, ..self.present_stack(slot, false) };
            self.push_new(bus, &mut stack, u64::from(code))?;
            self.commit_stack(&stack);
        }
        if image.ip > u64::from(self.segment[seg::CS].limit) {
            return self.fault(Exception::gp(how.external()));
        }
        Ok(())
    }

    /// CR3 of the new task; a reserved bit in a PDPTE is #TS here (SDM vol. 3A 4.4.1).
    fn load_task_cr3(&mut self, cr3: u64) -> Step {
        self.cr3 = cr3;
        self.tlb.flush_pcid(0);
        let loaded = self.reload_pdptr(self.cr4, cr3);
        self.refresh();
        if loaded.is_err() {
            let code = error_of(self.tr.selector);
            return self.fault(Exception::with_code(vector::TS, code));
        }
        Ok(())
    }

    /// Loads LDTR and the segment registers; what is wrong with them is #TS (table 6-6).
    fn load_task_segments(&mut self, bus: Bus<'_>, image: &Image, external: u32) -> Step {
        self.load_task_ldt(bus, image.ldt, external)?;
        if self.virtual_8086() {
            self.segment = image.selectors.map(Segment::virtual_8086);
            self.refresh();
            return Ok(());
        }
        let cs = image.selectors[seg::CS];
        self.segment[seg::CS] = self.task_code(bus, cs, external)?;
        self.refresh();
        let ss = image.selectors[seg::SS];
        self.segment[seg::SS] = self.stack_segment(bus, ss, self.cpl, vector::TS, external)?;
        self.refresh();
        for index in [seg::DS, seg::ES, seg::FS, seg::GS] {
            let selector = image.selectors[index];
            self.segment[index] = self.data_segment(bus, selector, vector::TS, external)?;
        }
        Ok(())
    }

    fn load_task_ldt(&mut self, bus: Bus<'_>, selector: u16, external: u32) -> Step {
        if is_null(selector) {
            return Ok(());
        }
        let bad = Exception::with_code(vector::TS, error_of(selector) | external);
        if selector & 4 != 0 {
            return self.fault(bad);
        }
        let found = self.descriptor(bus, selector, vector::TS, external)?;
        if found.system_type() != Some(system::LDT) || !found.segment.present() {
            return self.fault(bad);
        }
        self.ldtr = found.segment;
        Ok(())
    }

    /// The code segment of a task, whose privilege level is the selector's RPL.
    fn task_code(&mut self, bus: Bus<'_>, selector: u16, external: u32) -> Result<Segment, Raised> {
        let code = error_of(selector) | external;
        if is_null(selector) {
            return self.fault(Exception::with_code(vector::TS, external));
        }
        let mut found = self.descriptor(bus, selector, vector::TS, external)?;
        let segment = found.segment;
        let rpl = selector as u8 & 3;
        let allowed =
            if segment.is_conforming() { segment.dpl() <= rpl } else { segment.dpl() == rpl };
        if !segment.is_code() || !allowed {
            return self.fault(Exception::with_code(vector::TS, code));
        }
        if !segment.present() {
            return self.fault(Exception::with_code(vector::NP, code));
        }
        self.mark_accessed(bus, &mut found)?;
        Ok(found.segment)
    }
}
