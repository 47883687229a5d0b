//! The vCPU: the loop that executes blocks, HLT, kicks, saving and restoring.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use engine::{
    Activity, CpuBus, DebugStop, Debugging, EngineError, Kick, Observer, RunState, Shadow,
    TripleFault, Vcpu, VcpuConfig, VcpuExit, VcpuState, VcpuStats,
};
use hostexec::Executor;
use lapic::{LocalApic, LocalApicConfig};
use memory::RamOffset;
use x86::cr::{dr, rflags};
use x86::exception::Exception;
use x86::segment::seg;

use crate::access::{Linear, Place};
use crate::blocks::Blocks;
use crate::cpu::{Bus, CodeSize, Cpu, RIP, Raised};
use crate::decode::{Decoded, MAX_LENGTH, decode};
use crate::fallback::KeptOp;
use crate::op::{Op, REP, REPNE};
use crate::tlb::Use;

/// Instructions between two looks at the clock: some 20 microseconds.
const CLOCK_INTERVAL: u64 = 2048;
/// Frequency of the local APIC's timer, in kHz: the one KVM's interface reports.
const APIC_BUS_KHZ: u32 = 1_000_000;
/// Longest sleep in HLT without a deadline; a kick or an interrupt ends it anyway.
const LONG_SLEEP: Duration = Duration::from_secs(3600);

/// A vCPU of the interpreter.
pub struct InterpreterVcpu {
    pub(crate) cpu: Cpu,
    pub(crate) blocks: Blocks,
    pub(crate) signal: Arc<Signal>,
    pub(crate) retired: u64,
    pub(crate) next_clock: u64,
    pub(crate) budget: Option<u64>,
    /// Instructions kept for a translator, and the generation that they belong to.
    pub(crate) kept: Vec<KeptOp>,
    pub(crate) kept_at: u32,
    /// How often the instructions kept were dropped because they were many.
    pub(crate) kept_rounds: u32,
}

/// How other threads reach the vCPU's thread.
#[derive(Default)]
pub(crate) struct Signal {
    kicked: AtomicBool,
    thread: Mutex<Option<Thread>>,
    /// Called besides, when another engine executes most of the guest.
    pub(crate) hook: OnceLock<Arc<dyn Fn() + Send + Sync>>,
}

impl Signal {
    fn wake(&self) {
        if let Some(hook) = self.hook.get() {
            hook();
        }
        if let Some(thread) = &*self.thread.lock().unwrap_or_else(PoisonError::into_inner) {
            thread.unpark();
        }
    }
}

impl Kick for Signal {
    fn kick(&self) {
        self.kicked.store(true, Ordering::Release);
        self.wake();
    }
}

impl InterpreterVcpu {
    /// A vCPU in its power-on state.
    ///
    /// # Errors
    /// [`EngineError::Host`] when the host gives no executable memory for vector instructions.
    pub fn new(config: VcpuConfig) -> Result<Self, EngineError> {
        let executor = Executor::new()
            .map_err(|e| EngineError::Host { engine: crate::NAME, cause: e.to_string() })?;
        let khz = |value: u32| {
            std::num::NonZeroU32::new(value.max(1)).unwrap_or(std::num::NonZeroU32::MIN)
        };
        let apic = LocalApic::new(LocalApicConfig {
            apic_id: config.apic_id,
            bsp: config.index == 0,
            physical_address_bits: config.profile.physical_bits() as u8,
            tsc_khz: khz(config.profile.tsc_khz()),
            bus_khz: khz(APIC_BUS_KHZ),
        });
        config.mailbox.publish(apic.destination());
        let signal = Arc::new(Signal::default());
        let waking = Arc::clone(&signal);
        config.mailbox.set_waker(Arc::new(move || waking.wake()));
        Ok(Self {
            cpu: Cpu::new(config, apic, executor),
            blocks: Blocks::new(),
            signal,
            retired: 0,
            next_clock: 0,
            budget: None,
            kept: Vec::new(),
            kept_at: 0,
            kept_rounds: 0,
        })
    }

    /// Who is told what the vCPU does.
    #[inline(always)]
    pub fn observer(&self) -> &Observer {
        &self.cpu.observer
    }

    /// The calling thread executes guest code from now on, until [`InterpreterVcpu::end_run`].
    pub fn begin_run(&mut self) {
        self.bind_thread();
        self.cpu.enter();
    }

    /// The vCPU is parked from now on.
    pub fn end_run(&mut self) {
        self.cpu.leave();
    }

    /// The calling thread is the vCPU's from now on.
    pub fn bind_thread(&mut self) {
        *self.signal.thread.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(std::thread::current());
        // Whatever changed while the vCPU did not run is looked at first.
        self.cpu.attention = true;
    }

    /// What to do at an instruction boundary before going on; `Some` leaves `run`.
    #[inline(always)]
    pub(crate) fn boundary(&mut self, bus: Bus<'_>) -> Option<VcpuExit> {
        if self.retired >= self.next_clock
            || self.cpu.attention
            || self.cpu.shadow != Shadow::None
            || self.cpu.mailbox.has_work()
        {
            return self.boundary_slow(bus);
        }
        None
    }

    #[cold]
    fn boundary_slow(&mut self, bus: Bus<'_>) -> Option<VcpuExit> {
        loop {
            self.cpu.attention = false;
            if self.cpu.mailbox.has_work() {
                self.cpu.drain_mailbox();
                self.cpu.serve_others();
            }
            if self.retired >= self.next_clock
                || std::mem::take(&mut self.cpu.clock_due)
                || self.cpu.run_state != RunState::Running
            {
                self.next_clock = self.retired + CLOCK_INTERVAL;
                self.tick(bus);
            }
            if let Some(exit) = self.leave_reason() {
                return Some(exit);
            }
            if self.cpu.run_state != RunState::Running
                && let Some(exit) = self.sleep(bus)
            {
                return Some(exit);
            }
            let shadowed = self.cpu.shadow != Shadow::None;
            // The shadow must still be there when the debugger lets the CPU go on.
            if shadowed && self.cpu.debugged && self.cpu.stops_before(self.code_address().0) {
                continue;
            }
            self.cpu.deliver_pending(bus);
            let waits = self.cpu.has_blocked_event();
            self.cpu.attention |= waits || self.cpu.shutdown || self.cpu.debug_stop.is_some();
            if !(shadowed && waits) {
                return None;
            }
            // What STI or MOV SS held off is due behind the one instruction that follows, which
            // may close the window again.
            let (linear, _) = self.code_address();
            self.execute_singly(bus, linear);
        }
    }

    fn tick(&mut self, bus: Bus<'_>) {
        if let Some(deadline) = self.cpu.apic.deadline() {
            let now = self.cpu.tsc(bus);
            if deadline <= now {
                self.cpu.apic.tick(now);
                bus.timer_fired(self.cpu.index);
            }
        }
    }

    /// A reason to leave `run` that stands at this boundary.
    fn leave_reason(&mut self) -> Option<VcpuExit> {
        if let Some(cause) = self.cpu.take_stop() {
            self.cpu.attention = true;
            return Some(VcpuExit::Stop(cause));
        }
        if self.cpu.shutdown {
            self.cpu.run_state = RunState::Shutdown;
        }
        if self.cpu.run_state == RunState::Shutdown {
            self.cpu.attention = true;
            return Some(VcpuExit::TripleFault(TripleFault {
                vcpu: self.cpu.index,
                rip: self.cpu.rip(),
                cr3: self.cpu.cr3,
            }));
        }
        if let Some(stop) = self.cpu.debug_stop.take() {
            self.cpu.attention = true;
            return Some(VcpuExit::Debug(stop));
        }
        if self.signal.kicked.swap(false, Ordering::Acquire) {
            self.cpu.attention = true;
            return Some(VcpuExit::Paused);
        }
        if self.budget == Some(0) {
            self.cpu.attention = true;
            return Some(VcpuExit::BudgetSpent);
        }
        None
    }

    /// HLT or waiting for SIPI: sleeps until an event. `Some` leaves `run`, still halted.
    fn sleep(&mut self, bus: Bus<'_>) -> Option<VcpuExit> {
        self.cpu.leave();
        let before = self.cpu.observer.enter(Activity::Idle);
        let exit = self.sleep_outside(bus);
        self.cpu.observer.enter(before);
        self.cpu.enter();
        exit
    }

    fn sleep_outside(&mut self, bus: Bus<'_>) -> Option<VcpuExit> {
        loop {
            self.cpu.drain_mailbox();
            self.tick(bus);
            if self.cpu.run_state == RunState::Halted && self.cpu.has_wake_event() {
                self.cpu.run_state = RunState::Running;
            }
            if self.cpu.run_state == RunState::Running {
                return None;
            }
            if self.signal.kicked.swap(false, Ordering::Acquire) {
                self.cpu.attention = true;
                return Some(VcpuExit::Paused);
            }
            let sleep = self.cpu.apic.deadline().map_or(LONG_SLEEP, |deadline| {
                let ticks = deadline.saturating_sub(self.cpu.tsc(bus));
                // Rounded up: waking early would only mean sleeping again.
                Duration::from_nanos(self.cpu.tsc_scale.ticks_to_ns(ticks).saturating_add(1))
            });
            std::thread::park_timeout(sleep.min(LONG_SLEEP));
        }
    }

    /// Executes one block, at most `limit` instructions of it, or one instruction where each must
    /// be looked at.
    #[inline(always)]
    pub(crate) fn execute(&mut self, bus: Bus<'_>, limit: usize) {
        let (linear, plain) = self.code_address();
        if !plain || self.cpu.steps_singly() {
            return self.execute_singly(bus, linear);
        }
        let at = match self.cpu.translate(Linear::system(linear), Use::Fetch, self.cpu.mode) {
            Ok(Place::Ram(at)) => at,
            Ok(Place::Device(_)) => return self.execute_singly(bus, linear),
            Err(_) => return self.fetch_faulted(bus),
        };
        let mut ops = self.blocks.find(&mut self.cpu, at);
        if ops.is_empty() {
            return self.execute_singly(bus, linear);
        }
        ops = &ops[..ops.len().min(limit)];
        let (executed, _) = run_ops(&mut self.cpu, ops, bus);
        self.count(executed);
    }

    /// Linear address of the next instruction, and whether code there meets no limit: a block ends
    /// with its page.
    #[inline(always)]
    fn code_address(&self) -> (u64, bool) {
        let cs = &self.cpu.segment[seg::CS];
        let rip = self.cpu.rip();
        match self.cpu.code_size {
            CodeSize::Bits64 => (rip, true),
            _ => {
                let linear = cs.base.wrapping_add(rip) & 0xffff_ffff;
                (linear, rip.saturating_add(4095 - linear % 4096) <= u64::from(cs.limit))
            }
        }
    }

    /// An instruction could not even be fetched. It counts, so that a guest that jumped into
    /// nothing is interrupted and ends like any other.
    #[cold]
    fn fetch_faulted(&mut self, bus: Bus<'_>) {
        self.cpu.deliver_raised(bus);
        self.cpu.attention |= self.cpu.shutdown;
        self.count(1);
    }

    pub(crate) fn count(&mut self, executed: u64) {
        self.retired += executed;
        if let Some(budget) = &mut self.budget {
            *budget = budget.saturating_sub(executed);
            if *budget == 0 {
                self.cpu.attention = true;
            }
        }
    }

    /// One instruction, with breakpoint and single-step checks; also for instructions across two
    /// pages, in device memory or near a segment limit.
    #[cold]
    fn execute_singly(&mut self, bus: Bus<'_>, linear: u64) {
        if !self.cpu.debugged {
            return self.execute_one(bus, linear);
        }
        if self.cpu.stops_before(linear) {
            return;
        }
        self.execute_one(bus, linear);
        if self.cpu.debugger.step {
            self.cpu.debug_stop.get_or_insert(DebugStop::Stepped);
        }
        self.cpu.attention |= self.cpu.debug_stop.is_some();
    }

    fn execute_one(&mut self, bus: Bus<'_>, linear: u64) {
        let stepping = self.cpu.system_flags & rflags::TF != 0;
        if self.cpu.check_code_breakpoint(linear).is_err() {
            return self.fetch_faulted(bus);
        }
        let op = match self.fetch(bus, linear) {
            Ok(op) => op,
            Err(_) => return self.fetch_faulted(bus),
        };
        self.cpu.step_suppressed = false;
        let start = self.cpu.rip();
        let held_off = self.cpu.debug_trap;
        let (executed, completed) = run_ops(&mut self.cpu, std::slice::from_ref(&op), bus);
        self.count(executed);
        if !completed {
            // What a faulting instruction has touched is touched again when it is restarted.
            self.cpu.debug_trap = held_off;
        }
        let steps = stepping && (!self.cpu.msrs.steps_on_branches() || self.branched(&op, start));
        if steps && completed && !self.cpu.step_suppressed {
            // MOV SS holds the trap off; the next instruction gives its own.
            if self.cpu.shadow != Shadow::MovSs {
                self.cpu.debug_trap |= dr::DR6_BS;
            }
        }
        self.cpu.attention |= self.cpu.debug_trap != 0;
    }

    /// Whether `op`, executed at RIP `start`, has branched.
    fn branched(&self, op: &Op, start: u64) -> bool {
        let rip = self.cpu.rip();
        let repeats = rip == start && op.has(REP | REPNE);
        rip != start.wrapping_add(u64::from(op.len)) && !repeats
    }

    /// Fetches and decodes one instruction at `linear`.
    fn fetch(&mut self, bus: Bus<'_>, linear: u64) -> Result<Op, Raised> {
        let mut code = [0; MAX_LENGTH];
        let in_page = (4096 - linear % 4096).min(MAX_LENGTH as u64) as usize;
        self.fetch_bytes(bus, linear, &mut code[..in_page])?;
        let mut decoded = self.decode_one(&code[..in_page]);
        if matches!(decoded, Decoded::Truncated) {
            let mut next = linear.wrapping_add(in_page as u64);
            if self.cpu.code_size != CodeSize::Bits64 {
                next &= 0xffff_ffff;
            }
            self.fetch_bytes(bus, next, &mut code[in_page..])?;
            decoded = self.decode_one(&code);
        }
        let Decoded::Op(op, _) = decoded else {
            return self.cpu.fault(Exception::GP0);
        };
        let last = self.cpu.rip().wrapping_add(u64::from(op.len) - 1);
        let limit = u64::from(self.cpu.segment[seg::CS].limit);
        if self.cpu.code_size != CodeSize::Bits64 && last > limit {
            return self.cpu.fault(Exception::GP0);
        }
        Ok(op)
    }

    pub(crate) fn decode_one(&mut self, code: &[u8]) -> Decoded {
        match decode(&mut self.cpu, code) {
            Ok(decoded) => decoded,
            Err(_) => {
                // The buffer of native stubs is full: drop it with the blocks that use it.
                self.blocks.clear();
                self.cpu.executor.reset();
                decode(&mut self.cpu, code).unwrap_or(Decoded::Truncated)
            }
        }
    }

    fn fetch_bytes(&mut self, bus: Bus<'_>, linear: u64, to: &mut [u8]) -> Result<(), Raised> {
        match self.cpu.translate(Linear::system(linear), Use::Fetch, self.cpu.mode)? {
            Place::Ram(from) => self.cpu.ram.read_at(RamOffset(from.0), to),
            Place::Device(gpa) => self.cpu.fetch_device(bus, gpa, to),
        }
        Ok(())
    }
}

/// Executes ops until one ends the block; gives how many were executed and whether the last one
/// completed without a fault.
#[inline(always)]
pub(crate) fn run_ops(cpu: &mut Cpu, ops: &[Op], bus: Bus<'_>) -> (u64, bool) {
    cpu.leave_block = false;
    cpu.system_flags &= !rflags::RF;
    let mut executed = 0;
    // RIP is kept here, too: each instruction but the last goes on behind itself.
    let mut next = cpu.rip();
    for op in ops {
        next = next.wrapping_add(u64::from(op.len));
        cpu.set_reg(RIP, next);
        if (op.exec)(cpu, op, bus).is_err() {
            cpu.set_rip(next.wrapping_sub(u64::from(op.len)));
            cpu.forget_watched();
            cpu.deliver_raised(bus);
            cpu.attention |= cpu.shutdown || cpu.debug_stop.is_some();
            // A fault is progress too: a budget must end a guest that only faults.
            return (executed + 1, false);
        }
        executed += 1;
        if cpu.leave_block {
            leave_block(cpu, op);
            break;
        }
    }
    (executed, true)
}

#[cold]
fn leave_block(cpu: &mut Cpu, op: &Op) {
    if std::mem::take(&mut cpu.repeating) {
        cpu.set_rip(cpu.rip().wrapping_sub(u64::from(op.len)));
        // An interruption of a repeated instruction pushes RF (SDM vol. 3B 18.3.1.1).
        cpu.system_flags |= rflags::RF;
        (cpu.clock_due, cpu.attention) = (true, true);
    }
    cpu.attention |= cpu.stop.is_some()
        || cpu.shutdown
        || cpu.debug_trap != 0
        || cpu.debug_stop.is_some()
        || cpu.run_state != RunState::Running
        || cpu.apic_changed;
    cpu.apic_changed = false;
}

impl Vcpu for InterpreterVcpu {
    fn run(&mut self, bus: &dyn CpuBus) -> Result<VcpuExit, EngineError> {
        self.begin_run();
        self.cpu.observer.enter(Activity::Interpreter);
        let exit = loop {
            if let Some(exit) = self.boundary(bus) {
                break exit;
            }
            let limit =
                self.budget.map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
            self.execute(bus, limit);
        };
        self.end_run();
        Ok(exit)
    }

    fn set_budget(&mut self, instructions: Option<u64>) {
        self.budget = instructions;
    }

    fn set_debugging(&mut self, debugging: Debugging) {
        let mut stops: Vec<_> = debugging.breakpoints.iter().map(|at| at % 4096).collect();
        stops.sort_unstable();
        stops.dedup();
        if stops != self.blocks.stops {
            self.blocks.stops = stops;
            self.blocks.clear();
            self.cpu.executor.reset();
        }
        self.cpu.set_debugging(debugging);
    }

    fn observe(&mut self, observer: Arc<Observer>) {
        self.cpu.observer = observer;
    }

    fn save(&mut self, bus: &dyn CpuBus) -> Result<VcpuState, EngineError> {
        self.cpu.drain_mailbox();
        Ok(self.cpu.save(bus))
    }

    fn restore(&mut self, state: &VcpuState, bus: &dyn CpuBus) -> Result<(), EngineError> {
        self.cpu.mailbox.set_extint(state.events.extint);
        self.replace(state, bus)
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.signal) as Arc<dyn Kick>
    }

    fn stats(&self) -> VcpuStats {
        let c = &self.cpu.counters;
        VcpuStats {
            instructions: Some(self.retired),
            counters: vec![
                ("exceptions", c.exceptions),
                ("interrupts", c.interrupts),
                ("undefined_instructions", c.undefined),
                ("halts", c.halts),
                ("port_accesses", c.port_accesses),
                ("mmio_accesses", c.mmio_accesses),
                ("tlb_misses", self.cpu.tlb.misses),
                ("tlb_flushes", self.cpu.tlb.flushes),
                ("instructions_decoded", self.blocks.decoded),
                ("decode_cache_drops", self.blocks.drops),
                ("writes_to_code_pages", c.code_writes),
                ("split_locks", c.split_locks),
            ],
            exit_sites: Vec::new(),
        }
    }
}
