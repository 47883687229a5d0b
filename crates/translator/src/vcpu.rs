//! The vCPU: the dispatcher between translated code and the interpreter.
//!
//! The interpreter's CPU is the one owner of the guest's state. The dispatcher serves events at
//! block boundaries, finds or translates the block at RIP, and runs translated code until it is
//! left for good; what the exits on the way ask for is in [`crate::exits`].

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ::direct::Handle;
use engine::{
    Activity, CpuBus, Debugging, EngineError, Kick, Observer, Vcpu, VcpuConfig, VcpuExit,
    VcpuState, VcpuStats,
};
use iced_x86::InstructionInfoFactory;
use interpreter::{Alarm, InterpreterVcpu, TlbChange};
use memory::{GuestRam, RamOffset};

use crate::Options;
use crate::blocks::{Block, Blocks, Key};
use crate::cache::CodeCache;
use crate::context::{Context, Frame};
use crate::direct::Direct;
use crate::enter;
use crate::glue::Glue;
use crate::mode::{CodeMode, Mode};
use crate::records::Record;
use crate::statistics::Counters;
use crate::tables::AddressSpaces;
use crate::translate::{MAX_BLOCK_BYTES, Request, Surroundings, Translation, translate};
use crate::verify;

/// Longest instruction, in bytes.
const MAX_LENGTH: usize = 15;

/// A vCPU of the translator.
pub struct TranslatorVcpu {
    pub(crate) interpreter: InterpreterVcpu,
    pub(crate) ram: Arc<GuestRam>,
    frame: Arc<SharedFrame>,
    pub(crate) spaces: AddressSpaces,
    blocks: Blocks,
    pub(crate) cache: CodeCache,
    pub(crate) records: Vec<Record>,
    pub(crate) glue: Glue,
    glue_size: usize,
    longest_block: u32,
    info: InstructionInfoFactory,
    alarm: Alarm,
    changes: Vec<TlbChange>,
    watch_epoch: u64,
    pub(crate) counters: Counters,
    pub(crate) direct: Direct,
}

/// The frame, shared with the threads that set the context's poll word.
struct SharedFrame(std::cell::UnsafeCell<Frame>);

// SAFETY: other threads touch only the atomic poll word; the rest belongs to the vCPU's thread.
unsafe impl Sync for SharedFrame {}
// SAFETY: as for Sync.
unsafe impl Send for SharedFrame {}

impl SharedFrame {
    /// Makes translated code leave at its next block.
    fn poll(&self) {
        // SAFETY: the field is atomic and lives as long as the frame; no reference to the whole
        // context is made.
        unsafe { (*std::ptr::addr_of!((*self.0.get()).context.poll)).store(1, Ordering::Release) }
    }

    fn context(&self) -> *mut Context {
        // SAFETY: the frame is live; this only computes an address.
        unsafe { std::ptr::addr_of_mut!((*self.0.get()).context) }
    }
}

/// The poll word of a vCPU.
pub(crate) struct Poll(Arc<SharedFrame>);

impl Poll {
    /// Whether the vCPU is to look up.
    pub(crate) fn is_set(&self) -> bool {
        // SAFETY: as in `SharedFrame::poll`.
        unsafe { (*std::ptr::addr_of!((*self.0.0.get()).context.poll)).load(Ordering::SeqCst) != 0 }
    }
}

impl TranslatorVcpu {
    /// A vCPU in its power-on state.
    ///
    /// # Errors
    /// [`EngineError::Host`] when the host gives no executable memory.
    pub fn new(config: VcpuConfig, options: &Options) -> Result<Self, EngineError> {
        let host = |cause: String| EngineError::Host { engine: crate::NAME, cause };
        let ram = Arc::clone(&config.ram);
        let mut interpreter = InterpreterVcpu::new(config)?;
        interpreter.serve_translator();
        let mut cache = CodeCache::new(options.cache_bytes.max(2 * MAX_BLOCK_BYTES))
            .map_err(|e| host(format!("no memory for translated code: {e}")))?;
        let glue = Glue::emit(&mut cache);
        let frame = Arc::new(SharedFrame(std::cell::UnsafeCell::new(Frame::new())));
        let polled = Arc::clone(&frame);
        let handle = Arc::new(Handle::default());
        let entered = Arc::clone(&handle);
        let wake: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
            polled.poll();
            entered.interrupt();
        });
        interpreter.on_wake(Arc::clone(&wake));
        Ok(Self {
            spaces: AddressSpaces::new(&ram),
            blocks: Blocks::default(),
            glue_size: cache.used(),
            watch_epoch: ram.watch_epoch(),
            alarm: Alarm::new(wake).map_err(|e| host(format!("no timer thread: {e}")))?,
            interpreter,
            frame,
            cache,
            records: Vec::new(),
            glue,
            longest_block: options.longest_block.max(1),
            info: InstructionInfoFactory::new(),
            changes: Vec::new(),
            counters: Counters::default(),
            direct: Direct::new(options.direct, &ram, handle),
            ram,
        })
    }

    /// The context, for the vCPU's own thread while translated code does not run.
    pub(crate) fn context(&mut self) -> &mut Context {
        // SAFETY: `&mut self` makes this the only access but for the poll word, which other
        // threads reach through a raw pointer and which is atomic.
        unsafe { &mut *self.frame.context() }
    }

    /// The context's poll word.
    pub(crate) fn poll_word(&self) -> Poll {
        Poll(Arc::clone(&self.frame))
    }

    /// The part of the stack below the context that translated code never writes.
    #[cfg(test)]
    pub(crate) fn canary_stack(&mut self) -> &mut [u8] {
        // SAFETY: as for `context`.
        unsafe { (*self.frame.0.get()).unused_stack() }
    }

    /// Panics unless the tables lead to guest RAM and to the code cache only.
    #[cfg(test)]
    pub(crate) fn inspect_tables(&self) {
        let window = self.ram.host_window() as u64;
        self.spaces.inspect(window..window + self.ram.size(), self.cache.executable());
    }

    /// Serves events and finds out whether translated code may run; runs it until it leaves for
    /// good. `Some` leaves `run`.
    fn dispatch(&mut self, bus: &dyn CpuBus) -> Result<Option<VcpuExit>, EngineError> {
        self.counters.dispatches += 1;
        self.interpreter.observer().enter(Activity::Helpers);
        let in_user_code = self.is_in_user_code();
        self.counters.kernel_dispatches += u64::from(!in_user_code);
        if self.context().poll.load(Ordering::Relaxed) != 0 {
            self.context().poll.store(0, Ordering::SeqCst);
            self.interpreter.expire_clock();
            if in_user_code {
                let calls = self.context().system_calls;
                self.direct.sample(self.counters.kernel_dispatches.wrapping_add(calls));
            }
        }
        if let Some(exit) = self.interpreter.serve_events(bus) {
            return Ok(Some(exit));
        }
        self.follow_changes();
        self.set_alarm(bus);
        if self.goes_direct() {
            self.run_directly(bus)?;
            return Ok(None);
        }
        if self.interpreter.must_interpret() {
            self.interpreter.observer().enter(Activity::Interpreter);
            return Ok(self.interpreter.interpret(bus));
        }
        let rip = self.interpreter.registers().rip;
        let mode = self.mode();
        let counts = self.interpreter.budget().is_some();
        if !counts && let Some(host) = self.spaces.find_jump(mode, rip) {
            self.execute(bus, host, rip);
            return Ok(None);
        }
        let found = self.interpreter.locate_code().and_then(|at| self.enter_jump(at, rip));
        let affordable = |block: &Block| {
            self.interpreter.budget().is_none_or(|left| left >= u64::from(block.instructions))
        };
        match found.filter(affordable) {
            Some(block) => self.execute(bus, if counts { block.entry } else { block.body }, rip),
            None => {
                self.counters.interpreted_blocks += 1;
                self.interpreter.step(bus);
            }
        }
        Ok(None)
    }

    /// Follows changes of address translation, of code pages and of watched pages.
    fn follow_changes(&mut self) {
        if self.interpreter.has_tlb_changes() {
            self.interpreter.take_tlb_changes(&mut self.changes);
            for change in self.changes.drain(..) {
                self.spaces.apply(change);
                self.direct.apply(change);
            }
        }
        if self.blocks.drop_changed(&self.ram) {
            self.spaces.flush_all_jumps();
        }
        let epoch = self.ram.watch_epoch();
        if epoch != self.watch_epoch {
            self.watch_epoch = epoch;
            self.spaces.flush_all();
            self.direct.apply(TlbChange::All);
        }
    }

    /// Pages have become watched, by this vCPU or by another: translated code may not write to them
    /// any more without looking.
    pub(crate) fn withdraw_rights(&mut self) {
        if let Some(withdrawn) = self.interpreter.take_withdrawn() {
            self.direct.withdraw(&withdrawn);
            match withdrawn.all {
                true => self.spaces.flush_all(),
                false => withdrawn.pages.iter().for_each(|page| self.spaces.protect(*page)),
            }
        }
    }

    fn set_alarm(&mut self, bus: &dyn CpuBus) {
        let deadline = self.interpreter.timer_deadline();
        if self.alarm.is_news(deadline) {
            self.alarm.set(self.interpreter.timer_distance_ns(bus));
        }
    }

    /// The code that executes now.
    pub(crate) fn mode(&self) -> Mode {
        let bits32 = !self.interpreter.has_64bit_code();
        Mode { access: self.interpreter.access_mode(), bits32 }
    }

    /// The block at `at`, translated if need be.
    pub(crate) fn block(&mut self, at: RamOffset, plain: bool) -> Option<Block> {
        let key = Key { at, mode: self.mode().code(), plain };
        match self.blocks.find(key) {
            Some(block) => Some(block),
            None => self.translate(key),
        }
    }

    /// The block of the instruction at `first` that goes on in the page of `second`.
    pub(crate) fn straddling_block(
        &mut self,
        first: RamOffset,
        second: RamOffset,
    ) -> Option<Block> {
        let mode = self.mode().code();
        match self.blocks.find_straddling(first, second, mode) {
            Some(block) => Some(block),
            None => self.translate_straddling(first, second, mode),
        }
    }

    #[cold]
    fn translate(&mut self, key: Key) -> Option<Block> {
        let begin = std::time::Instant::now();
        self.make_room();
        let version = self.watch(key.at);
        let mut page = [0; 4096];
        self.ram.read_at(RamOffset(key.at.0 & !0xfff), &mut page);
        let request = self.request(key.at, key.mode, key.plain);
        let translation = translate(&mut self.surroundings(), &page, request)?;
        let block = self.append(translation);
        self.blocks.insert(key, version, block);
        self.counters.translating_ns += begin.elapsed().as_nanos() as u64;
        Some(block)
    }

    #[cold]
    fn translate_straddling(
        &mut self,
        first: RamOffset,
        second: RamOffset,
        mode: CodeMode,
    ) -> Option<Block> {
        self.make_room();
        let versions = [self.watch(first), self.watch(second)];
        let mut pages = [0; 4096 + MAX_LENGTH];
        self.ram.read_at(RamOffset(first.0 & !0xfff), &mut pages[..4096]);
        self.ram.read_at(RamOffset(second.0 & !0xfff), &mut pages[4096..]);
        let request = Request { longest: 1, ..self.request(first, mode, true) };
        let translation = translate(&mut self.surroundings(), &pages, request)?;
        let block = self.append(translation);
        self.blocks.insert_straddling(first, second, mode, versions, block);
        Some(block)
    }

    fn make_room(&mut self) {
        if !self.cache.has_room(MAX_BLOCK_BYTES) {
            self.drop_all();
        }
    }

    /// Watches the page of `at`, before it is read: a write from now on changes the version, which
    /// this gives.
    pub(crate) fn watch(&mut self, at: RamOffset) -> u32 {
        let page = RamOffset(at.0 & !0xfff);
        match self.blocks.has_page(at) {
            true => self.ram.watch_code(page),
            false => self.interpreter.watch_code(page),
        }
    }

    fn request(&self, at: RamOffset, mode: CodeMode, plain: bool) -> Request {
        Request {
            start: (at.0 % 4096) as u32,
            mode,
            plain,
            counts: self.interpreter.budget().is_some(),
            longest: self.longest_block,
        }
    }

    fn surroundings(&mut self) -> Surroundings<'_> {
        Surroundings {
            glue: self.glue,
            base: self.cache.next(),
            first_record: self.records.len() as u32,
            interpreter: &self.interpreter,
            info: &mut self.info,
        }
    }

    fn append(&mut self, translation: Translation) -> Block {
        if cfg!(debug_assertions) {
            verify::demand(&verify::Candidate {
                host: &translation.host,
                base: self.cache.next(),
                body: translation.body,
                records: &translation.records,
                first_record: self.records.len() as u32,
                glue: &self.glue,
            });
        }
        let entry = self.cache.append(&translation.host);
        let body = entry + translation.body as u64;
        if cfg!(debug_assertions) {
            self.cache.allow_entry(entry);
            self.cache.allow_entry(body);
        }
        self.records.extend(translation.records);
        self.counters.translated += 1;
        self.counters.guest_bytes += u64::from(translation.guest_bytes);
        self.counters.host_bytes += translation.host.len() as u64;
        Block {
            entry,
            body,
            instructions: translation.instructions,
            straddles: translation.straddles,
        }
    }

    /// How often the code cache has been emptied: addresses from before are gone.
    pub(crate) fn cache_drops(&self) -> u64 {
        self.counters.cache_drops
    }

    /// Starts with an empty code cache.
    fn drop_all(&mut self) {
        self.counters.cache_drops += 1;
        self.counters.sites.add(&self.records);
        self.blocks.clear();
        self.records.clear();
        self.spaces.flush_all_jumps();
        self.cache.truncate(self.glue_size);
    }

    /// Runs translated code from `host`, which is that of the guest's `rip`, until something has
    /// to be decided.
    fn execute(&mut self, bus: &dyn CpuBus, host: u64, rip: u64) {
        self.context().page = rip & !0xfff;
        self.load_context();
        let mut at = host;
        let mut enter = self.glue.enter;
        let context = self.frame.context();
        loop {
            self.withdraw_rights();
            self.interpreter.observer().enter(Activity::Translated);
            enter::run(enter, at, context);
            self.interpreter.observer().enter(Activity::Helpers);
            match self.after_exit(bus) {
                Some(resumed) => at = resumed,
                None => return,
            }
            let vectors = self.context().vectors_were_loaded != 0;
            enter = if vectors { self.glue.enter_with_vectors } else { self.glue.enter };
        }
    }
}

impl Vcpu for TranslatorVcpu {
    fn run(&mut self, bus: &dyn CpuBus) -> Result<VcpuExit, EngineError> {
        self.interpreter.begin_run();
        let exit = loop {
            match self.dispatch(bus) {
                Ok(None) => {}
                Ok(Some(exit)) => break Ok(exit),
                Err(failed) => break Err(failed),
            }
        };
        self.interpreter.end_run();
        exit
    }

    fn set_budget(&mut self, instructions: Option<u64>) {
        if instructions.is_some() != self.interpreter.budget().is_some() {
            // Blocks count, or do not.
            self.drop_all();
        }
        self.interpreter.set_budget(instructions);
    }

    /// While somebody debugs, the interpreter executes everything.
    fn set_debugging(&mut self, debugging: Debugging) {
        self.interpreter.set_debugging(debugging);
    }

    fn observe(&mut self, observer: Arc<Observer>) {
        self.interpreter.observe(observer);
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
        self.counters.report(&self.records, &mut stats);
        self.direct.report(&mut stats);
        stats
    }
}
