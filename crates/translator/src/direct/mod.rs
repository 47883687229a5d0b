//! Direct execution of user code: when, and what of guest RAM it sees.
//!
//! Kernel code is translated; user code that runs for long between two entries into its kernel
//! executes on the host CPU itself, in a sandbox (crate `direct`) with the guest's pages mapped at
//! the guest's addresses. The page tables of the host thus do what the checks in translated code
//! do, and hold to the same rules as the tables of [`crate::tables`]: a page is mapped only when the
//! access would set no accessed or dirty bit, writably only when nobody watches it, and goes when
//! the guest invalidates its translation, when it is watched or when its code has changed. Whatever
//! the host refuses the interpreter executes, instruction by instruction.
//!
//! - [`Direct`]: the sandboxes of a vCPU;
//! - [`space`]: what is mapped in one of them;
//! - [`habit`]: whether it pays;
//! - [`eligible`]: code that must not see the host.

mod eligible;
mod habit;
mod space;

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Instant;

use ::direct::{DirectError, Handle, Rights, Sandbox, Stop, UserState, is_in_reach};
use engine::{Activity, CpuBus, EngineError, VcpuStats, Withdrawn};
use interpreter::{AccessMode, TlbChange, UserPage};
use memory::{GuestRam, RamOffset};

use self::space::{Space, Wanted};
use crate::vcpu::TranslatorVcpu;

/// Address spaces that have sandboxes at a time.
const SPACES: usize = 12;
/// Pages around one that is accessed which are mapped with it, when they have been accessed before.
const AROUND_DATA: u64 = 16;
/// The same for code, which has to be looked through.
const AROUND_CODE: u64 = 4;
/// Longest instruction, in bytes.
const MAX_LENGTH: u64 = 15;
const PAGE: u64 = 4096;

/// When user code is executed directly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirectPolicy {
    /// Where the host allows it and it pays.
    #[default]
    WhenItPays,
    /// Wherever the host allows it: for tests.
    Always,
    /// Never.
    Never,
}

/// What has been done, for statistics.
#[derive(Clone, Copy, Debug, Default)]
struct DirectCounters {
    runs: u64,
    ns: u64,
    system_calls: u64,
    interrupts: u64,
    pages_mapped: u64,
    interpreted: u64,
    pages_refused: u64,
}

/// The sandboxes of a vCPU.
pub(crate) struct Direct {
    policy: DirectPolicy,
    /// Why the host does not allow it.
    refused: Option<DirectError>,
    handle: Arc<Handle>,
    spaces: Vec<Space>,
    /// Index of the present one.
    present: usize,
    /// The thread that the sandboxes belong to.
    owner: Option<ThreadId>,
    /// The next code is translated, since it may not be executed directly.
    skip: bool,
    /// Pages that have been looked through: their code version and [`eligible::stops`].
    eligible: HashMap<usize, (u32, Option<Vec<u16>>)>,
    /// When user code was last found running, and what its kernel had done by then.
    sampled: Option<(Instant, u64)>,
    counters: DirectCounters,
}

/// What an access that no mapping allows has come to.
enum Access {
    /// The page is mapped now.
    Mapped,
    /// The instruction is the interpreter's.
    Interpret,
    /// The code is to be translated.
    Translate,
}

impl Direct {
    pub(crate) fn new(policy: DirectPolicy, ram: &GuestRam, handle: Arc<Handle>) -> Self {
        let policy = if ram.file().is_some() { policy } else { DirectPolicy::Never };
        Self {
            policy,
            refused: None,
            handle,
            spaces: vec![Space::new(0)],
            present: 0,
            owner: None,
            skip: false,
            eligible: HashMap::new(),
            sampled: None,
            counters: DirectCounters::default(),
        }
    }

    fn space(&mut self) -> &mut Space {
        &mut self.spaces[self.present]
    }

    /// Whether user code of the present address space is to be executed directly.
    #[inline]
    pub(crate) fn is_wanted(&self) -> bool {
        match self.policy {
            DirectPolicy::WhenItPays => self.spaces[self.present].habit.is_direct(),
            DirectPolicy::Always => self.refused.is_none(),
            DirectPolicy::Never => false,
        }
    }

    /// User code was found running; its kernel has had `busy` things to do so far.
    pub(crate) fn sample(&mut self, busy: u64) {
        if self.policy != DirectPolicy::WhenItPays {
            return;
        }
        let now = Instant::now();
        if let Some((before, busy_before)) = self.sampled.replace((now, busy)) {
            let since = now.duration_since(before);
            self.space().habit.sample(now, since, busy.wrapping_sub(busy_before));
        }
    }

    /// Follows what the guest did to its address translation.
    pub(crate) fn apply(&mut self, change: TlbChange) {
        match change {
            TlbChange::All | TlbChange::NonGlobal => {
                self.spaces.iter_mut().for_each(Space::drop_all);
            }
            TlbChange::Pcid(pcid) => {
                if let Some(space) = self.spaces.iter_mut().find(|space| space.pcid == pcid) {
                    space.drop_all();
                    // It may be that of another process from now on.
                    space.habit.doubt();
                }
            }
            TlbChange::Page(linear) | TlbChange::PageOfPcid(linear, _) => {
                self.spaces.iter_mut().for_each(|space| space.drop_page(linear & !0xfff));
            }
            TlbChange::Select(pcid) => self.select(pcid),
        }
    }

    /// Pages may not be written any more without a look at their state.
    pub(crate) fn withdraw(&mut self, withdrawn: &Withdrawn) {
        for space in &mut self.spaces {
            match withdrawn.all {
                true => space.drop_all(),
                false => withdrawn.pages.iter().for_each(|page| space.protect(*page)),
            }
        }
    }

    fn select(&mut self, pcid: u16) {
        self.sampled = None;
        if let Some(found) = self.spaces.iter().position(|space| space.pcid == pcid) {
            self.present = found;
            return;
        }
        if self.spaces.len() < SPACES {
            self.spaces.push(Space::new(pcid));
            self.present = self.spaces.len() - 1;
            return;
        }
        let oldest = (0..SPACES).min_by_key(|index| self.spaces[*index].entered);
        self.present = oldest.unwrap_or(0);
        self.spaces[self.present] = Space::new(pcid);
    }

    /// The present space's sandbox, ready to be entered.
    fn ready(&mut self, ram: &GuestRam) -> Result<&mut Sandbox, DirectError> {
        let thread = std::thread::current().id();
        if self.owner.replace(thread) != Some(thread) {
            self.spaces.iter_mut().for_each(Space::close);
        }
        self.counters.runs += 1;
        let handle = &self.handle;
        let space = &mut self.spaces[self.present];
        space.entered = self.counters.runs;
        space.ready(ram, || {
            let Some(file) = ram.file() else { unreachable!("the policy is to have it") };
            Sandbox::new(file, Arc::clone(handle))
        })
    }

    /// Adds what has been done.
    pub(crate) fn report(&self, stats: &mut VcpuStats) {
        let counters = &self.counters;
        stats.counters.extend([
            ("direct_refused_by_host", u64::from(self.refused.is_some())),
            ("direct_runs", counters.runs),
            ("direct_cpu_ns", counters.ns),
            ("direct_system_calls", counters.system_calls),
            ("direct_interruptions", counters.interrupts),
            ("direct_pages_mapped", counters.pages_mapped),
            ("direct_code_refused", counters.pages_refused),
            ("direct_interpreted", counters.interpreted),
        ]);
    }

    /// Direct execution does not work here, or not any more.
    fn give_up(&mut self, cause: DirectError) {
        self.policy = DirectPolicy::Never;
        self.refused = Some(cause);
        self.spaces.iter_mut().for_each(Space::close);
    }
}

impl TranslatorVcpu {
    /// Whether the next code is user code that is to be executed directly.
    #[inline]
    pub(crate) fn goes_direct(&mut self) -> bool {
        self.direct.is_wanted()
            && !std::mem::take(&mut self.direct.skip)
            && self.interpreter.fits_directly()
    }

    /// Executes user code directly until something concerns the dispatcher.
    pub(crate) fn run_directly(&mut self, bus: &dyn CpuBus) -> Result<(), EngineError> {
        loop {
            self.withdraw_rights();
            let Some((stop, state)) = self.enter_directly()? else { return Ok(()) };
            match stop {
                Stop::Interrupted => {
                    self.direct.counters.interrupts += 1;
                    return Ok(());
                }
                Stop::Access(linear) => match self.serve_access(linear, state.rip) {
                    Ok(Access::Mapped) => self.direct.space().habit.mapped(),
                    Ok(Access::Interpret) => self.step_directly(bus),
                    Ok(Access::Translate) => return Ok(()),
                    Err(cause) => {
                        self.direct.give_up(cause);
                        return Ok(());
                    }
                },
                Stop::SystemCall => {
                    self.direct.counters.system_calls += 1;
                    self.step_back(&state, 2);
                    self.interpreter.step(bus);
                    return Ok(());
                }
                Stop::Breakpoint => {
                    // INT3, or the two bytes of INT 3.
                    let short = self.code_byte(state.rip.wrapping_sub(1)) == Some(0xcc);
                    self.step_back(&state, if short { 1 } else { 2 });
                    self.step_directly(bus);
                }
                Stop::Trap if state.rflags & x86::cr::rflags::TF != 0 => {
                    self.interpreter.trap_single_step();
                }
                Stop::Trap => {
                    // INT1.
                    self.step_back(&state, 1);
                    self.step_directly(bus);
                }
                Stop::Fault | Stop::Watched => self.step_directly(bus),
                Stop::Segments => self.interpreter.refuse_segments(bus),
            }
            if !self.stays_direct() {
                return Ok(());
            }
        }
    }

    /// Runs user code to its next stop. `None`: the host does not allow it.
    fn enter_directly(&mut self) -> Result<Option<(Stop, UserState)>, EngineError> {
        let mut state = self.user_state();
        let poll = self.poll_word();
        let sandbox = match self.direct.ready(&self.ram) {
            Ok(sandbox) => sandbox,
            Err(cause) => {
                self.direct.give_up(cause);
                return Ok(None);
            }
        };
        let before = sandbox.cpu_time();
        self.interpreter.observer().enter(Activity::Direct);
        let vectors = self.interpreter.fpu_mut().area_mut();
        let stop = sandbox
            .run(&mut state, vectors, || !poll.is_set())
            .map_err(|e| EngineError::Host { engine: crate::NAME, cause: e.to_string() })?;
        self.interpreter.observer().enter(Activity::Helpers);
        let after = sandbox.cpu_time().saturating_sub(before);
        self.direct.counters.ns += after.as_nanos() as u64;
        if self.direct.policy == DirectPolicy::WhenItPays {
            self.direct.space().habit.stopped(after);
        }
        self.take_user_state(&state);
        Ok(Some((stop, state)))
    }

    /// Whether nothing concerns the dispatcher.
    fn stays_direct(&self) -> bool {
        self.direct.is_wanted()
            && !self.interpreter.needs_attention()
            && !self.interpreter.has_tlb_changes()
            && self.interpreter.fits_directly()
    }

    fn step_directly(&mut self, bus: &dyn CpuBus) {
        self.direct.counters.interpreted += 1;
        self.interpreter.step(bus);
    }

    /// The instruction before RIP, of `length` bytes, is to be executed by the interpreter.
    fn step_back(&mut self, state: &UserState, length: u64) {
        self.take_user_state(&UserState { rip: state.rip.wrapping_sub(length), ..*state });
    }

    fn code_byte(&mut self, rip: u64) -> Option<u8> {
        let at = self.interpreter.locate_code_at(rip)?;
        Some(self.ram.load(at))
    }

    fn user_state(&self) -> UserState {
        let registers = self.interpreter.registers();
        let system = self.interpreter.system();
        UserState {
            gpr: registers.gpr,
            rip: registers.rip,
            rflags: self.interpreter.user_rflags(),
            fs_base: system.fs_base,
            gs_base: system.gs_base,
        }
    }

    fn take_user_state(&mut self, state: &UserState) {
        let mut registers = self.interpreter.registers();
        (registers.gpr, registers.rip) = (state.gpr, state.rip);
        registers.flags = state.rflags & interpreter::CARRIED_FLAGS;
        self.interpreter.set_registers(&registers);
        let mut system = self.interpreter.system();
        (system.fs_base, system.gs_base) = (state.fs_base, state.gs_base);
        self.interpreter.set_system(&system);
        self.interpreter.set_user_rflags(state.rflags);
    }

    /// The instruction at `rip` accesses `linear`, where no mapping allows it.
    fn serve_access(&mut self, linear: u64, rip: u64) -> Result<Access, DirectError> {
        let page = linear & !(PAGE - 1);
        let has = self.direct.space().rights(page);
        let fetches = linear.wrapping_sub(rip) < MAX_LENGTH && has != Some(Rights::Execute);
        let Some(first) = self.wanted(page, fetches) else { return Ok(Access::Interpret) };
        if fetches && first.rights != Rights::Execute {
            self.direct.counters.pages_refused += 1;
            self.direct.skip = true;
            return Ok(Access::Translate);
        }
        if has == Some(first.rights) || has == Some(Rights::Execute) {
            // A write to a page that is clean, watched or not to be written.
            return Ok(Access::Interpret);
        }
        let around = if fetches { AROUND_CODE } else { AROUND_DATA } * PAGE;
        let begin = page & !(around - 1);
        let mut wanted = vec![first];
        for near in (begin..begin + around).step_by(PAGE as usize) {
            if self.direct.space().rights(near).is_none() && near != page {
                // Breakpoints are for code that runs.
                wanted.extend(self.wanted(near, fetches).filter(|near| near.stops.is_empty()));
            }
        }
        self.direct.counters.pages_mapped += wanted.len() as u64;
        // Looking at code may have taken rights to write.
        self.withdraw_rights();
        let ram = Arc::clone(&self.ram);
        self.direct.ready(&ram)?;
        self.direct.space().map(&wanted)?;
        Ok(Access::Mapped)
    }

    /// How the page at `linear` is to be mapped, if it is.
    fn wanted(&mut self, linear: u64, code: bool) -> Option<Wanted> {
        if !is_in_reach(linear) {
            return None;
        }
        let found = self.interpreter.user_page(linear).filter(|found| found.accessed)?;
        let UserPage { ram, .. } = found;
        if code && found.executable {
            let version = self.watch(ram);
            let stops = self.stops(ram, version);
            let rights = if stops.is_some() { Rights::Execute } else { Rights::Read };
            return Some(Wanted { linear, ram, rights, version, stops: stops.unwrap_or_default() });
        }
        let rights = if found.writable { Rights::Write } else { Rights::Read };
        (!code).then_some(Wanted { linear, ram, rights, version: 0, stops: Vec::new() })
    }

    /// Where direct execution of the page of code at `ram` has to stop, if it may be executed.
    fn stops(&mut self, ram: RamOffset, version: u32) -> Option<Vec<u16>> {
        if let Some((looked, stops)) = self.direct.eligible.get(&ram.page())
            && *looked == version
        {
            return stops.clone();
        }
        let mut page = [0; 4096];
        self.ram.read_at(ram, &mut page);
        let stops = eligible::stops(&page);
        self.direct.eligible.insert(ram.page(), (version, stops.clone()));
        stops
    }

    /// Whether user code runs now, for [`Direct::sample`].
    pub(crate) fn is_in_user_code(&self) -> bool {
        self.interpreter.access_mode() == AccessMode::User
    }
}
