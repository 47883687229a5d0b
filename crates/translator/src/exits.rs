//! What the exits of translated code ask for.
//!
//! A TLB miss and a jump miss fill a table and begin the instruction anew; a direct branch is
//! linked; everything else is the interpreter's. As long as nothing happened that concerns more
//! than the instruction, translated code goes on in the middle of its block.

use std::sync::atomic::Ordering;

use engine::{Activity, CpuBus, TraceEvent, Traced};
use iced_x86::Code;
use interpreter::{AccessMode, Registers, SystemState};
use memory::RamOffset;
use x86::cr::rflags;

use crate::allow::Access;
use crate::blocks::Block;
use crate::glue::Exit;
use crate::mode::Mode;
use crate::records::{Checked, Record, Sharing};
use crate::statistics;
use crate::translate::PAGE;
use crate::vcpu::TranslatorVcpu;

/// Added to an address, makes it one that 32-bit code cannot have, and no page does.
const REFUSED: u64 = 1 << 40;

impl TranslatorVcpu {
    /// Puts the registers and what else translated code needs into the context.
    pub(crate) fn load_context(&mut self) {
        let mode = self.mode();
        let mut tables = |access| self.spaces.address(Mode { access, ..mode });
        let supervisor = tables(AccessMode::Supervisor);
        let supervisor_ac = tables(AccessMode::SupervisorAc);
        let user = tables(AccessMode::User);
        let syscall = self.interpreter.plain_syscall();
        // User code that is to be executed directly is entered by the dispatcher.
        let sysret = self.interpreter.sysret_enabled() && !self.direct.is_wanted();
        let fsgsbase = self.interpreter.fsgsbase_enabled();
        let held = self.interpreter.needs_attention();
        let vectors = self.interpreter.fpu_mut().area_mut().as_mut_ptr() as u64;
        let context = self.context();
        context.tables_supervisor = supervisor;
        context.tables_supervisor_ac = supervisor_ac;
        context.tables_user = user;
        context.tables = match mode.access {
            AccessMode::Supervisor => supervisor,
            AccessMode::SupervisorAc => supervisor_ac,
            AccessMode::User => user,
        };
        context.syscall_target = syscall.unwrap_or(0);
        context.syscall_plain = u64::from(syscall.is_some());
        context.sysret_enabled = u64::from(sysret);
        context.fsgsbase_enabled = u64::from(fsgsbase);
        context.held = u64::from(held);
        context.vectors = vectors;
        self.load_registers();
    }

    /// The part of [`TranslatorVcpu::load_context`] that an instruction may change which goes on
    /// straight behind itself, with nothing that concerns the dispatcher.
    fn load_registers(&mut self) {
        let registers = self.interpreter.registers();
        let system = self.interpreter.system();
        let other = self.interpreter.other_flags();
        let allowed = self.interpreter.vectors_enabled();
        let selectors = self.interpreter.selectors();
        let budget = self.interpreter.budget();
        let spans_all = self.interpreter.fs_gs_span_all();
        let context = self.context();
        [context.fs_refusal, context.gs_refusal] =
            spans_all.map(|spans_all| if spans_all { 0 } else { REFUSED });
        context.selectors = selectors;
        context.set_general(&registers.gpr);
        // Bit 1 of RFLAGS is always set; interrupts are the host's own matter.
        context.flags = registers.flags | rflags::FIXED;
        context.interrupt_flag = system.interrupt_flag;
        context.access_flag = system.access_flag;
        context.level = system.level;
        (context.fs_base, context.gs_base) = (system.fs_base, system.gs_base);
        context.kernel_gs_base = system.kernel_gs_base;
        (context.other_flags, context.not_other_flags) = (other, !other);
        context.vectors_allowed = u64::from(allowed);
        context.budget = budget.unwrap_or(0);
    }

    /// Does what an exit asks for; the host address where translated code goes on, if it does.
    pub(crate) fn after_exit(&mut self, bus: &dyn CpuBus) -> Option<u64> {
        let context = self.context();
        let (kind, number) = (context.exit_kind, context.exit_record as usize);
        let (linear, page) = (context.linear, context.page);
        self.follow_system();
        self.counters.exits[kind as usize] += 1;
        let drops = self.cache_drops();
        let entry = &mut self.records[number];
        entry.taken = entry.taken.saturating_add(1);
        entry.taken_as = kind as u8;
        let record = *entry;
        if self.interpreter.observer().traces(Traced::EXITS) {
            let rip = Some(page.wrapping_add(u64::from(record.offset)));
            let reason = statistics::reason(kind as u8);
            self.interpreter.observer().tell(TraceEvent::Exit { reason, rip });
        }
        if kind == Exit::Miss as u64 {
            self.counters.count_miss(record.checked);
            if let Some(resumed) = self.serve_miss(&record, linear) {
                self.counters.resumed += 1;
                return Some(resumed);
            }
        } else if kind == Exit::Jump as u64 {
            if let Some(resumed) = self.serve_jump(&record, linear) {
                self.counters.resumed += 1;
                return Some(resumed);
            }
        } else if kind == Exit::Chain as u64 || kind == Exit::Poll as u64 {
            self.store_registers(page.wrapping_add(u64::from(record.offset)));
            self.settle_budget(0);
            if kind == Exit::Poll as u64 {
                return None;
            }
            let linked = self.link(record.site);
            self.counters.links[usize::from(linked.is_some())] += 1;
            return linked;
        }
        self.store_registers(page.wrapping_add(u64::from(record.offset)));
        self.settle_budget(u64::from(record.left));
        if self.cache_drops() != drops {
            // The record is gone with the cache; the dispatcher goes on from the registers.
            return None;
        }
        self.interpret(bus, &record, number)
    }

    /// Tells the interpreter what translated code has done to the system's state.
    fn follow_system(&mut self) {
        let context = self.context();
        let state = SystemState {
            interrupt_flag: context.interrupt_flag,
            access_flag: context.access_flag,
            level: context.level,
            fs_base: context.fs_base,
            gs_base: context.gs_base,
            kernel_gs_base: context.kernel_gs_base,
        };
        self.interpreter.set_system(&state);
    }

    fn store_registers(&mut self, rip: u64) {
        let context = self.context();
        let registers = Registers {
            gpr: context.general(),
            rip,
            flags: context.flags & interpreter::CARRIED_FLAGS,
        };
        self.interpreter.set_registers(&registers);
    }

    /// Accounts for what the blocks have charged, but for `unused` instructions.
    fn settle_budget(&mut self, unused: u64) {
        if let Some(before) = self.interpreter.budget() {
            let left = self.context().budget.saturating_add(unused);
            self.interpreter.account(before.saturating_sub(left));
        }
    }

    /// Enters the page of an access that missed. `None`: the interpreter has to look at it.
    fn serve_miss(&mut self, record: &Record, linear: u64) -> Option<u64> {
        let Some(checked) = record.checked else { return self.serve_string_miss(record, linear) };
        let entered = match checked.group {
            Sharing::ReadFirst => {
                let read = Checked { access: Access::Read, ..checked };
                let mode = self.mode();
                self.enter_page(read, linear) && self.spaces.has(mode, linear, true)
            }
            _ => self.enter_page(checked, linear),
        };
        if entered {
            return Some(record.retry);
        }
        if checked.group == Sharing::Alone {
            return None;
        }
        self.split_group(record, checked)
    }

    /// The range of a group does not pass, or not yet: goes on where each access is checked.
    fn split_group(&mut self, record: &Record, checked: Checked) -> Option<u64> {
        /// So often a page may turn out not to be written yet; then it never is.
        const PATIENCE: u32 = 32;
        self.counters.groups_split += 1;
        let page = self.context().page;
        self.store_registers(page.wrapping_add(u64::from(record.offset)));
        let drops = self.cache_drops();
        let at = self.interpreter.locate_code()?;
        let block = self.block(at, true)?;
        if self.interpreter.budget().is_some() {
            // The new block charges for the same instructions.
            self.context().budget = self.context().budget.saturating_add(u64::from(record.left));
        } else if self.cache_drops() == drops
            && (checked.group == Sharing::Group || record.taken > PATIENCE)
        {
            // It enters pages as well as this one would: from now on go there directly.
            self.cache.patch_with_jump(record.site, block.entry);
        }
        Some(block.entry)
    }

    /// REP MOVS and REP STOS: the page at RSI or RDI.
    fn serve_string_miss(&mut self, record: &Record, linear: u64) -> Option<u64> {
        let target = self.context().string_target != 0;
        let [.., mut source, _] = *self.context().gpr.first_chunk::<8>()?;
        let mode = self.mode();
        if mode.bits32 {
            source &= 0xffff_ffff;
        }
        if target && self.spaces.collide(source, linear) {
            // One would push the other out, for ever.
            return None;
        }
        let access = if target { Access::Write } else { Access::Read };
        // Elements are aligned, or the check fails again and the interpreter looks at it.
        let checked =
            Checked { access, len: 8 - (linear % 8) as u16, alignment: 1, group: Sharing::Alone };
        let known = self.spaces.has(mode, linear, target);
        (!known && self.enter_page(checked, linear)).then_some(record.retry)
    }

    /// Enters the page of an access, if the access is then certain to pass.
    fn enter_page(&mut self, checked: Checked, linear: u64) -> bool {
        let mode = self.mode();
        let crosses = linear % 4096 + u64::from(checked.len) > 4096;
        if crosses || !mode.reaches(linear) || !linear.is_multiple_of(u64::from(checked.alignment))
        {
            return false;
        }
        let write = checked.access == Access::Write;
        let Some(page) = self.interpreter.data_page(linear, write) else { return false };
        let quiet = self.ram.is_quiet(page.ram);
        if self.interpreter.has_tlb_changes() || write && !quiet {
            return false;
        }
        let writable = quiet && (write || self.interpreter.may_write(linear));
        self.counters.tlb_fills += 1;
        self.spaces.fill(mode, linear, page, writable);
        true
    }

    /// Enters a jump's target.
    fn serve_jump(&mut self, record: &Record, target: u64) -> Option<u64> {
        if self.interpreter.needs_attention() {
            return None;
        }
        let drops = self.cache_drops();
        let at = self.interpreter.locate_code_at(target)?;
        self.enter_jump(at, target)?;
        (self.cache_drops() == drops).then_some(record.retry)
    }

    /// Enters `target`, which lies at `at` in guest RAM, in the jump table; gives its block.
    pub(crate) fn enter_jump(&mut self, at: RamOffset, target: u64) -> Option<Block> {
        let mode = self.mode();
        if !mode.translates(target) {
            return None;
        }
        let mut global = self.interpreter.is_global(target);
        let mut block = self.block(at, false)?;
        if block.straddles {
            let next = (target | 0xfff).wrapping_add(1);
            let second = self.interpreter.locate_code_at(next)?;
            global &= self.interpreter.is_global(next);
            block = self.straddling_block(at, second)?;
        }
        self.spaces.fill_jump(mode, target, block.entry, global);
        Some(block)
    }

    /// A direct jump whose displacement is at `site` has no target yet: links it.
    fn link(&mut self, site: u64) -> Option<u64> {
        if self.interpreter.needs_attention() {
            return None;
        }
        let drops = self.cache_drops();
        let at = self.interpreter.locate_code()?;
        let block = self.block(at, false)?;
        if self.cache_drops() != drops {
            // The site is gone with the cache.
            return None;
        }
        // Every loop jumps backwards in the cache somewhere, and polls there; jumps forward need
        // not, unless blocks count.
        let forward = block.entry > site && self.interpreter.budget().is_none();
        let target = if forward { block.body } else { block.entry };
        let distance = target.wrapping_sub(site + 4) as i64;
        self.cache.patch(site, i32::try_from(distance).ok()?);
        self.counters.resumed += 1;
        Some(target)
    }

    /// Lets the interpreter execute the instruction of an exit.
    fn interpret(&mut self, bus: &dyn CpuBus, record: &Record, number: usize) -> Option<u64> {
        if self.interpreter.must_interpret() || self.interpreter.budget() == Some(0) {
            return None;
        }
        self.interpreter.observer().enter(Activity::Interpreter);
        let mode = self.mode();
        let epoch = self.ram.code_epoch();
        let mut kept = record.kept;
        let straight = if u64::from(record.offset) >= PAGE {
            // Behind the page stands what is mapped there just now.
            self.interpreter.step(bus);
            false
        } else if record.straddles {
            self.interpreter.step_straddling(&mut kept, bus)
        } else {
            self.interpreter.step_kept(&mut kept, bus)
        };
        self.records[number].kept = kept;
        let polled = self.context().poll.load(Ordering::Relaxed) != 0;
        let calm = !polled
            && !self.interpreter.needs_attention()
            && !self.interpreter.must_interpret()
            && !self.interpreter.has_tlb_changes()
            && self.mode() == mode
            && self.ram.code_epoch() == epoch;
        if record.resume == 0 || !straight || !calm {
            return None;
        }
        if self.context().vectors_were_loaded != 0 && !self.interpreter.vectors_enabled() {
            return None;
        }
        let rest = u64::from(record.left) - 1;
        if self.interpreter.budget().is_some_and(|left| left <= rest) {
            return None;
        }
        self.counters.interpreted_resumed += 1;
        if matches!(
            record.instruction,
            Code::Wrmsr
                | Code::Popfq
                | Code::Popfd
                | Code::Popfw
                | Code::Mov_cr_r64
                | Code::Mov_cr_r32
        ) {
            self.load_context();
        } else {
            self.load_registers();
        }
        if self.interpreter.budget().is_some() {
            // Charged for the rest of the block, which the interpreter does not know yet.
            self.context().budget -= rest;
        }
        Some(record.resume)
    }
}
