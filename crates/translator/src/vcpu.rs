//! The vCPU: the dispatcher between translated code and the interpreter.
//!
//! The interpreter's CPU is the one owner of the guest's state. The dispatcher serves events at
//! block boundaries, finds or translates the block at RIP, runs translated code until it exits,
//! and lets the interpreter execute what an exit is about. Most exits resume in the middle of
//! their block.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use engine::{CpuBus, EngineError, Kick, Vcpu, VcpuConfig, VcpuExit, VcpuState, VcpuStats};
use interpreter::{InterpreterVcpu, Registers, TlbChange};
use memory::{GuestRam, RamOffset};

use crate::alarm::Alarm;
use crate::blocks::{Block, Blocks};
use crate::cache::CodeCache;
use crate::context::Context;
use crate::emit::ExitInfo;
use crate::enter;
use crate::glue::{Exit, Glue};
use crate::tables::AddressSpaces;
use crate::translate::{MAX_BLOCK_BYTES, translate};

/// Size of the code cache unless configured otherwise, in bytes; committed as it fills.
pub(crate) const DEFAULT_CACHE: usize = 256 << 20;

/// A vCPU of the translator.
pub struct TranslatorVcpu {
    interpreter: InterpreterVcpu,
    ram: Arc<GuestRam>,
    context: Arc<SharedContext>,
    spaces: AddressSpaces,
    blocks: Blocks,
    cache: CodeCache,
    glue: Glue,
    glue_size: usize,
    alarm: Alarm,
    changes: Vec<TlbChange>,
    watch_epoch: u64,
    counters: Counters,
}

/// The context, shared with the threads that set its poll word.
struct SharedContext(std::cell::UnsafeCell<Context>);

// SAFETY: other threads touch only the atomic poll word; the rest belongs to the vCPU's thread.
unsafe impl Sync for SharedContext {}
// SAFETY: as for Sync.
unsafe impl Send for SharedContext {}

impl SharedContext {
    /// Makes translated code leave at its next block.
    fn poll(&self) {
        // SAFETY: the field is atomic and lives as long as the context; no reference to the whole
        // context is made.
        unsafe { (*std::ptr::addr_of!((*self.0.get()).poll)).store(1, Ordering::Release) }
    }
}

#[derive(Default)]
struct Counters {
    translated: u64,
    guest_bytes: u64,
    host_bytes: u64,
    cache_drops: u64,
    exits: [u64; 5],
    resumed: u64,
    tlb_fills: u64,
    interpreted_blocks: u64,
    translating_ns: u64,
}

impl TranslatorVcpu {
    /// A vCPU in its power-on state, with a code cache of `cache_size` bytes.
    ///
    /// # Errors
    /// [`EngineError::Host`] when the host gives no executable memory.
    pub fn new(config: VcpuConfig, cache_size: usize) -> Result<Self, EngineError> {
        let host = |cause: String| EngineError::Host { engine: crate::NAME, cause };
        let ram = Arc::clone(&config.ram);
        let mut interpreter = InterpreterVcpu::new(config)?;
        interpreter.serve_translator();
        let mut cache = CodeCache::new(cache_size.max(2 * MAX_BLOCK_BYTES))
            .map_err(|e| host(format!("no memory for translated code: {e}")))?;
        let glue = Glue::emit(&mut cache);
        let context = Arc::new(SharedContext(std::cell::UnsafeCell::new(Context::new())));
        let polled = Arc::clone(&context);
        let wake: Arc<dyn Fn() + Send + Sync> = Arc::new(move || polled.poll());
        interpreter.on_wake(Arc::clone(&wake));
        Ok(Self {
            spaces: AddressSpaces::new(&ram),
            blocks: Blocks::default(),
            glue_size: cache.used(),
            watch_epoch: ram.watch_epoch(),
            alarm: Alarm::new(wake).map_err(|e| host(format!("no timer thread: {e}")))?,
            interpreter,
            ram,
            context,
            cache,
            glue,
            changes: Vec::new(),
            counters: Counters::default(),
        })
    }

    /// The context, for the vCPU's own thread while translated code does not run.
    fn context(&mut self) -> &mut Context {
        // SAFETY: `&mut self` makes this the only access but for the poll word, which other
        // threads reach through a raw pointer and which is atomic.
        unsafe { &mut *self.context.0.get() }
    }

    /// Serves events and finds out whether translated code may run; runs it until it leaves for
    /// good. `Some` leaves `run`.
    fn dispatch(&mut self, bus: &dyn CpuBus) -> Option<VcpuExit> {
        if self.context().poll.swap(0, Ordering::AcqRel) != 0 {
            self.interpreter.expire_clock();
        }
        if let Some(exit) = self.interpreter.serve_events(bus) {
            return Some(exit);
        }
        self.follow_changes();
        self.set_alarm(bus);
        if self.interpreter.must_interpret() {
            return self.interpreter.interpret(bus);
        }
        let found = self.interpreter.locate_code().and_then(|at| self.block(at));
        let short = |block: &Block| {
            self.interpreter.budget().is_none_or(|left| left >= u64::from(block.instructions))
        };
        match found.filter(short) {
            Some(block) => self.execute(bus, block),
            None => {
                self.counters.interpreted_blocks += 1;
                self.interpreter.step(bus);
            }
        }
        None
    }

    /// Follows changes of address translation, of code pages and of watched pages.
    fn follow_changes(&mut self) {
        if self.interpreter.has_tlb_changes() {
            self.interpreter.take_tlb_changes(&mut self.changes);
            for change in self.changes.drain(..) {
                self.spaces.apply(change);
            }
        }
        if self.blocks.drop_changed(&self.ram) {
            self.spaces.flush_all_jumps();
        }
        let epoch = self.ram.watch_epoch();
        if epoch != self.watch_epoch {
            self.watch_epoch = epoch;
            self.spaces.flush_all();
        }
    }

    fn set_alarm(&mut self, bus: &dyn CpuBus) {
        if let Some(deadline) = self.interpreter.timer_deadline_ns(bus) {
            self.alarm.set(deadline, bus.clock().now());
        }
    }

    /// The block at `at`, translated if need be.
    fn block(&mut self, at: RamOffset) -> Option<Block> {
        match self.blocks.find(at) {
            Some(block) => Some(block),
            None => self.translate(at),
        }
    }

    #[cold]
    fn translate(&mut self, at: RamOffset) -> Option<Block> {
        let begin = std::time::Instant::now();
        if !self.cache.has_room(MAX_BLOCK_BYTES) {
            self.drop_all();
        }
        let page_start = RamOffset(at.0 & !0xfff);
        let known = self.blocks.has_page(at);
        // Watched before it is read: a write from now on changes the version.
        let version = self.ram.watch_code(page_start);
        if !known {
            self.spaces.protect(page_start);
        }
        let mut page = [0; 4096];
        self.ram.read_at(page_start, &mut page);
        let interpreter = &self.interpreter;
        let offers = |instruction: &iced_x86::Instruction| interpreter.offers(instruction);
        let start = (at.0 % 4096) as u32;
        let translation = translate(self.glue, self.cache.next(), &page, start, &offers)?;
        let entry = self.cache.append(&translation.host);
        self.counters.translated += 1;
        self.counters.guest_bytes += u64::from(translation.guest_bytes);
        self.counters.host_bytes += translation.host.len() as u64;
        let block = Block {
            entry,
            body: entry + translation.body as u64,
            instructions: translation.instructions,
        };
        self.blocks.insert(at, version, block);
        self.counters.translating_ns += begin.elapsed().as_nanos() as u64;
        Some(block)
    }

    /// Starts with an empty code cache.
    fn drop_all(&mut self) {
        self.counters.cache_drops += 1;
        self.blocks.clear();
        self.spaces.flush_all_jumps();
        self.cache.truncate(self.glue_size);
    }

    /// Runs translated code from `block` until something has to be decided.
    fn execute(&mut self, bus: &dyn CpuBus, block: Block) {
        let registers = self.interpreter.registers();
        let mode = self.interpreter.access_mode();
        self.spaces.fill_jump(mode, registers.rip, block.entry);
        self.context().page = registers.rip & !0xfff;
        self.context().last = 0;
        self.load_context(&registers);
        if self.interpreter.budget().is_some() {
            // One block at a time, so that the instructions can be counted.
            self.context().poll.store(1, Ordering::Release);
        }
        let mut at = block.body;
        let mut enter = self.glue.enter;
        loop {
            enter::run(enter, at);
            match self.after_exit(bus) {
                Some(Resume { host, vectors }) => {
                    at = host;
                    enter = if vectors { self.glue.enter_with_vectors } else { self.glue.enter };
                }
                None => return,
            }
        }
    }

    /// Puts the registers and what else translated code needs into the context.
    fn load_context(&mut self, registers: &Registers) {
        let mode = self.interpreter.access_mode();
        let tables = self.spaces.address(mode);
        let allowed = u64::from(self.interpreter.vectors_enabled());
        let (fs_base, gs_base) = self.interpreter.segment_bases();
        let vectors = self.interpreter.fpu_mut().area_mut().as_mut_ptr() as u64;
        let context = self.context();
        context.gpr = registers.gpr;
        // Bit 1 of RFLAGS is always set; interrupts are the host's own matter.
        context.flags = registers.flags | 2;
        context.tables = tables;
        context.vectors_allowed = allowed;
        (context.fs_base, context.gs_base) = (fs_base, gs_base);
        context.vectors = vectors;
    }

    /// Does what an exit asks for; where to resume, if translated code goes on.
    fn after_exit(&mut self, bus: &dyn CpuBus) -> Option<Resume> {
        let context = self.context();
        let kind = context.exit_kind;
        let data = context.exit_data;
        let page = context.page;
        let last = context.last;
        let (word, second) = (self.cache.word(data), self.cache.word(data + 4));
        self.counters.exits[(kind as usize).min(4)] += 1;
        if kind == Exit::Poll as u64 {
            self.store_registers(page.wrapping_add(u64::from(word)), last);
            return None;
        }
        if kind == Exit::Chain as u64 {
            self.store_registers(page.wrapping_add(u64::from(word)), last);
            return self.link(data - u64::from(second));
        }
        let info = ExitInfo::unpack(word);
        let rip = page.wrapping_add(u64::from(info.offset));
        self.store_registers(rip, u64::from(info.executed));
        self.interpret(bus, info, data, second)
    }

    fn store_registers(&mut self, rip: u64, executed: u64) {
        let context = self.context();
        let registers =
            Registers { gpr: context.gpr, rip, flags: context.flags & interpreter::CARRIED_FLAGS };
        self.interpreter.set_registers(&registers);
        if self.interpreter.budget().is_some() {
            self.interpreter.account(executed);
        }
    }

    /// A direct jump whose site is at `site` has no target yet: links it.
    fn link(&mut self, site: u64) -> Option<Resume> {
        if self.interpreter.budget().is_some() || self.interpreter.needs_attention() {
            return None;
        }
        let drops = self.counters.cache_drops;
        let at = self.interpreter.locate_code()?;
        let block = self.block(at)?;
        if self.counters.cache_drops != drops {
            // The site is gone with the cache.
            return None;
        }
        // Every loop jumps backwards in the cache somewhere, and polls there; jumps forward need not.
        let target = if block.entry > site { block.body } else { block.entry };
        let distance = target.wrapping_sub(site + 4) as i64;
        self.cache.patch(site, i32::try_from(distance).ok()?);
        let vectors = self.context().vectors_were_loaded != 0;
        Some(Resume { host: target, vectors })
    }

    /// Lets the interpreter execute the instruction of an exit.
    fn interpret(
        &mut self,
        bus: &dyn CpuBus,
        info: ExitInfo,
        data: u64,
        resume: u32,
    ) -> Option<Resume> {
        if self.interpreter.must_interpret() || self.interpreter.budget() == Some(0) {
            return None;
        }
        let mode = self.interpreter.access_mode();
        let page = self.context().page;
        let linear = self.context().linear;
        let epoch = self.ram.code_epoch();
        let next = self.interpreter.step_to_next(bus);
        if let Some(access) = info.access {
            self.fill(mode, linear, access == crate::allow::Access::Write);
        }
        let straight = next == Some(self.interpreter.registers().rip);
        let calm = !self.interpreter.needs_attention()
            && !self.interpreter.must_interpret()
            && !self.interpreter.has_tlb_changes()
            && self.interpreter.budget().is_none()
            && self.interpreter.access_mode() == mode
            && self.ram.code_epoch() == epoch;
        if resume == 0 || !straight || !calm {
            return None;
        }
        let vectors = self.context().vectors_were_loaded != 0;
        if vectors && !self.interpreter.vectors_enabled() {
            return None;
        }
        self.counters.resumed += 1;
        debug_assert_eq!(self.context().page, page, "the page of a block does not change");
        let registers = self.interpreter.registers();
        self.load_context(&registers);
        Some(Resume { host: data + u64::from(resume), vectors })
    }

    /// Enters the page that an access has just reached by way of the interpreter.
    fn fill(&mut self, mode: interpreter::AccessMode, linear: u64, write: bool) {
        if self.interpreter.has_tlb_changes() || self.interpreter.access_mode() != mode {
            return;
        }
        let Some(ram) = self.interpreter.cached_page(linear, write) else { return };
        let quiet = self.ram.is_quiet(ram);
        if write && !quiet {
            return;
        }
        self.counters.tlb_fills += 1;
        self.spaces.fill(mode, linear, ram, write);
    }
}

/// Where translated code goes on after an exit.
struct Resume {
    host: u64,
    /// The guest's vector registers must be loaded first.
    vectors: bool,
}

impl Vcpu for TranslatorVcpu {
    fn run(&mut self, bus: &dyn CpuBus) -> Result<VcpuExit, EngineError> {
        self.interpreter.bind_thread();
        enter::bind(self.context());
        loop {
            if let Some(exit) = self.dispatch(bus) {
                return Ok(exit);
            }
        }
    }

    fn set_budget(&mut self, instructions: Option<u64>) {
        if instructions.is_some() && self.interpreter.budget().is_none() {
            // Jumps that were linked without a budget pass polls, where instructions are counted.
            self.drop_all();
        }
        self.interpreter.set_budget(instructions);
    }

    fn save(&mut self, bus: &dyn CpuBus) -> Result<VcpuState, EngineError> {
        self.interpreter.save(bus)
    }

    fn restore(&mut self, state: &VcpuState, bus: &dyn CpuBus) -> Result<(), EngineError> {
        self.interpreter.restore(state, bus)
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.interpreter.kicker()
    }

    fn stats(&self) -> VcpuStats {
        let mut stats = self.interpreter.stats();
        // Translated code does not count.
        stats.instructions = None;
        let c = &self.counters;
        let [_, interpret, chain, poll, _] = c.exits;
        stats.counters.extend([
            ("blocks_translated", c.translated),
            ("guest_bytes_translated", c.guest_bytes),
            ("host_bytes_emitted", c.host_bytes),
            ("translating_ns", c.translating_ns),
            ("code_cache_drops", c.cache_drops),
            ("exits_to_interpreter", interpret),
            ("exits_resumed", c.resumed),
            ("exits_to_link", chain),
            ("exits_by_poll", poll),
            ("inline_tlb_fills", c.tlb_fills),
            ("interpreted_alone", c.interpreted_blocks),
        ]);
        stats
    }
}
