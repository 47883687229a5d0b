//! The driver thread: owns the VM's state, takes requests and what the vCPUs report.

use std::collections::VecDeque;
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};

use std::time::{Duration, Instant};

use engine::{DebugStop, Engine, StopReason, TripleFault, Vcpu, VcpuExit, VcpuState, WriteLog};
use machine::Machine;
use memory::DirtyConsumer;
use state::Archive;

use crate::live::{Order, Parked, PauseClock};
use crate::observed::Watch;
use crate::snapshot::{self, LiveMemory, Manifest, PageSet, SnapshotDir};
use crate::vcpu_thread::{RunResult, VcpuAct, VcpuThread};
use crate::{Outcome, Policy, Progress, TripleFaultPolicy, VmError, VmStats};

/// Where an answer goes.
pub(crate) type Reply<T> = Sender<Result<T, VmError>>;

/// What the driver's queue holds.
pub(crate) enum Event {
    /// A vCPU has parked.
    Exit(usize, RunResult),
    /// Somebody wants something.
    Request(Request),
}

/// What can be asked of a VM.
pub(crate) enum Request {
    Pause(Reply<()>),
    Resume(Reply<()>),
    /// The same, but some vCPUs stay where they are: those whose index gives true.
    ResumeWithout(Vec<bool>, Reply<()>),
    /// Does something with a vCPU; an answer that is not sent is an error.
    Act(u32, VcpuAct, Reply<()>),
    /// From now on somebody is told what happens to the vCPUs, or nobody.
    Debugger(Option<DebugListener>, Reply<()>),
    Reset(Reply<()>),
    /// Has each vCPU tell what it does.
    Observe(Vec<Arc<Watch>>, Reply<()>),
    RunFor(u64, Reply<Progress>),
    Save(SnapshotDir, Reply<()>),
    /// Begins to note what is written while memory is copied ahead of a snapshot, with or without a
    /// base: gives what knows it, where that is of use.
    CopyAhead(bool, Reply<Option<Arc<dyn WriteLog>>>),
    /// Begins a snapshot behind the running guest.
    Snapshot(Order, Reply<Parked>),
    /// Lets another engine execute the guest.
    Hop(Arc<dyn Engine>, Reply<Duration>),
    IsRunning(Reply<bool>),
    Stats(Reply<VmStats>),
    Kill,
}

/// What a debugger is told. The VM is paused then, or has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DebugNotice {
    /// A vCPU stopped as the debugger had asked it to.
    Stopped {
        /// Its index.
        vcpu: u32,
        /// Why.
        stop: DebugStop,
    },
    /// A vCPU has triple-faulted; if the VM goes on, that does what the policy says.
    TripleFault(TripleFault),
    /// The VM has ended.
    Ended(Outcome),
}

/// Called by the driver with what happens; it must not wait for the driver.
pub type DebugListener = Box<dyn Fn(DebugNotice) + Send>;

/// What is left of a VM when its driver has ended.
#[derive(Default)]
pub(crate) struct Ending {
    result: Mutex<Option<(Outcome, VmStats)>>,
    known: Condvar,
}

impl Ending {
    /// The outcome, waiting for it.
    pub(crate) fn wait(&self) -> (Outcome, VmStats) {
        let mut result = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match &*result {
                Some(ended) => return ended.clone(),
                None => result = self.known.wait(result).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// The outcome, if it is known.
    pub(crate) fn get(&self) -> Option<(Outcome, VmStats)> {
        self.result.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, outcome: Outcome, stats: VmStats) {
        let mut result = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        result.get_or_insert((outcome, stats));
        self.known.notify_all();
    }
}

/// The state machine of the crate's header; `Stopped` is the driver's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Created or paused.
    Paused,
    Running,
}

/// What a driver is made of.
pub(crate) struct Parts {
    pub(crate) machine: Arc<Machine>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) vcpus: Vec<VcpuThread>,
    pub(crate) policy: Policy,
    pub(crate) channel: (Sender<Event>, Receiver<Event>),
    /// For a restored VM, the time since it was saved.
    pub(crate) skipped: Option<Duration>,
}

pub(crate) struct Driver {
    pub(crate) machine: Arc<Machine>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) vcpus: Vec<VcpuThread>,
    pub(crate) policy: Policy,
    pub(crate) events: Receiver<Event>,
    /// For the vCPUs of another engine.
    pub(crate) to_self: Sender<Event>,
    pub(crate) ending: Arc<Ending>,
    phase: Phase,
    pauses: PauseClock,
    /// Memory that is being written behind the running guest.
    live: Weak<LiveMemory>,
    /// All writes to memory since the last snapshot are in the dirty log.
    tracking: bool,
    /// Requests that came while the driver waited for vCPUs to park.
    deferred: VecDeque<Request>,
    /// Who waits for the instruction budget to be spent.
    budget: Option<Reply<Progress>>,
    resets: u64,
    /// vCPUs that a debugger keeps where they are.
    held: Vec<bool>,
    debugger: Option<DebugListener>,
    /// The debugger has seen the triple fault.
    fault_shown: bool,
}

impl Driver {
    pub(crate) fn new(parts: Parts, ending: Arc<Ending>) -> Result<Self, VmError> {
        let Parts { machine, engine, vcpus, policy, channel: (to_self, events), skipped } = parts;
        let mut driver = Self {
            machine,
            engine,
            vcpus,
            policy,
            events,
            to_self,
            ending,
            phase: Phase::Paused,
            pauses: PauseClock::new(skipped),
            live: Weak::new(),
            tracking: false,
            deferred: VecDeque::new(),
            budget: None,
            resets: 0,
            held: Vec::new(),
            debugger: None,
            fault_shown: false,
        };
        if skipped.is_some() {
            driver.track()?;
        }
        Ok(driver)
    }

    /// The driver's thread: returns when the VM has ended. A bug in it ends the VM too, so that
    /// nobody waits for ever.
    pub(crate) fn run_to_end(self) {
        let ending = Arc::clone(&self.ending);
        if panic::catch_unwind(AssertUnwindSafe(|| self.run())).is_err() {
            let outcome = Outcome::Failed("internal error in the VM driver".to_owned());
            ending.set(outcome, VmStats::default());
        }
    }

    fn run(mut self) {
        let outcome = loop {
            if let Some(outcome) = self.step() {
                break outcome;
            }
        };
        self.halt();
        self.machine.flush_disks();
        let stats = self.stats().unwrap_or_default();
        if let Some(waiter) = self.budget.take() {
            let _ = waiter.send(Ok(Progress::Ended(outcome.clone())));
        }
        // Before anybody who waits for the end takes the debugger's server away.
        self.tell(DebugNotice::Ended(outcome.clone()));
        self.ending.set(outcome, stats);
    }

    fn tell(&self, notice: DebugNotice) {
        if let Some(debugger) = &self.debugger {
            debugger(notice);
        }
    }

    /// Handles one event; gives the outcome when the VM ends.
    fn step(&mut self) -> Option<Outcome> {
        let event = match self.deferred.pop_front() {
            Some(request) => Event::Request(request),
            // Without anybody left who could ask or wait, the VM ends too.
            None => self.events.recv().unwrap_or(Event::Request(Request::Kill)),
        };
        match event {
            Event::Exit(vcpu, result) => {
                self.vcpus[vcpu].parked();
                self.on_exit(vcpu, result)
            }
            Event::Request(request) => self.on_request(request),
        }
    }

    fn on_request(&mut self, request: Request) -> Option<Outcome> {
        // Whoever asked may have gone: an answer that nobody takes is dropped.
        match request {
            Request::Kill => return Some(Outcome::Killed),
            Request::Pause(reply) => {
                let ended = self.halt();
                self.interrupt_budget();
                let _ = reply.send(self.unless_ended(ended.as_ref(), |_| Ok(())));
                return ended;
            }
            Request::Resume(reply) => {
                self.held.clear();
                self.go();
                let _ = reply.send(Ok(()));
            }
            Request::ResumeWithout(held, reply) => {
                self.held = held;
                self.go();
                let _ = reply.send(Ok(()));
            }
            Request::Act(vcpu, act, reply) => self.act(vcpu, act, &reply),
            Request::Debugger(listener, reply) => {
                self.debugger = listener;
                let _ = reply.send(Ok(()));
            }
            Request::RunFor(instructions, reply) => return self.run_for(instructions, reply),
            Request::Reset(reply) => {
                return self.parked(&reply, |driver| driver.reset());
            }
            Request::Observe(watches, reply) => {
                return self.parked(&reply, |driver| {
                    driver.vcpus.iter().zip(watches).for_each(|(vcpu, by)| vcpu.observe(by));
                    Ok(())
                });
            }
            Request::Save(dir, reply) => {
                return self.parked(&reply, |driver| driver.save(&dir));
            }
            Request::Stats(reply) => return self.parked(&reply, |driver| driver.stats()),
            Request::CopyAhead(base, reply) => {
                let _ = reply.send(self.copy_ahead(base));
            }
            Request::Snapshot(order, reply) => return self.begin_snapshot(order, &reply),
            Request::Hop(engine, reply) => return self.hop(&engine, &reply),
            Request::IsRunning(reply) => {
                let _ = reply.send(Ok(self.phase == Phase::Running));
            }
        }
        None
    }

    fn act(&self, vcpu: u32, act: VcpuAct, reply: &Reply<()>) {
        let result = match self.vcpus.get(vcpu as usize) {
            _ if self.phase == Phase::Running => Err(VmError::Running),
            None => Err(VmError::Vcpu { vcpu, cause: "there is none".to_owned() }),
            Some(thread) => {
                thread.act(act);
                Ok(())
            }
        };
        let _ = reply.send(result);
    }

    /// Does something for which the vCPUs have to be parked, then goes on as before.
    fn parked<T>(
        &mut self,
        reply: &Reply<T>,
        act: impl FnOnce(&mut Self) -> Result<T, VmError>,
    ) -> Option<Outcome> {
        let phase = self.phase;
        let ended = self.halt();
        let _ = reply.send(self.unless_ended(ended.as_ref(), act));
        if ended.is_none() && phase == Phase::Running {
            self.go();
        }
        ended
    }

    fn unless_ended<T>(
        &mut self,
        ended: Option<&Outcome>,
        act: impl FnOnce(&mut Self) -> Result<T, VmError>,
    ) -> Result<T, VmError> {
        match ended {
            Some(outcome) => Err(VmError::Ended(outcome.clone())),
            None => act(self),
        }
    }

    fn run_for(&mut self, instructions: u64, reply: Reply<Progress>) -> Option<Outcome> {
        if self.phase == Phase::Running {
            let _ = reply.send(Err(VmError::Running));
            return None;
        }
        for vcpu in &self.vcpus {
            vcpu.set_budget(Some(instructions));
        }
        self.budget = Some(reply);
        self.go();
        None
    }

    /// Ends a `run_for` that is under way: the VM is paused.
    fn interrupt_budget(&mut self) {
        if let Some(waiter) = self.budget.take() {
            for vcpu in &self.vcpus {
                vcpu.set_budget(None);
            }
            let _ = waiter.send(Ok(Progress::Paused));
        }
    }

    /// A vCPU has parked: decides how to go on.
    fn on_exit(&mut self, vcpu: usize, result: RunResult) -> Option<Outcome> {
        match self.judge(vcpu, result) {
            Verdict::Continue => {
                if self.phase == Phase::Running {
                    self.vcpus[vcpu].run();
                }
                None
            }
            Verdict::Pause => {
                let ended = self.halt();
                if ended.is_none() {
                    self.interrupt_budget();
                }
                ended
            }
            Verdict::Tell(notice) => {
                let ended = self.halt();
                if ended.is_none() {
                    self.interrupt_budget();
                    self.note_shown(&notice);
                    self.tell(notice);
                }
                ended
            }
            Verdict::Reconfigure => self.halt().or_else(|| {
                let failed = self.forget_translations();
                if failed.is_none() {
                    self.go();
                }
                failed
            }),
            Verdict::Reset => self.halt().or_else(|| self.reboot()),
            Verdict::End(outcome) => Some(outcome),
        }
    }

    fn note_shown(&mut self, notice: &DebugNotice) {
        self.fault_shown |= matches!(notice, DebugNotice::TripleFault(_));
    }

    fn judge(&self, vcpu: usize, result: RunResult) -> Verdict {
        let exit = match result {
            Ok(exit) => exit,
            Err(cause) => return Verdict::End(Outcome::Failed(format!("vCPU {vcpu}: {cause}"))),
        };
        match exit {
            // A kick that came too late.
            VcpuExit::Paused => Verdict::Continue,
            VcpuExit::Stop(StopReason::Reconfigure) => Verdict::Reconfigure,
            VcpuExit::BudgetSpent => Verdict::Pause,
            VcpuExit::Stop(StopReason::PowerOff) => Verdict::End(Outcome::PoweredOff),
            VcpuExit::Stop(StopReason::DebugExit { value }) => {
                Verdict::End(Outcome::DebugExit(value))
            }
            VcpuExit::Stop(StopReason::Reset) if self.policy.no_reboot => {
                Verdict::End(Outcome::Reset)
            }
            VcpuExit::Stop(StopReason::Reset) => Verdict::Reset,
            VcpuExit::Debug(stop) => {
                Verdict::Tell(DebugNotice::Stopped { vcpu: vcpu as u32, stop })
            }
            VcpuExit::TripleFault(fault) if self.debugger.is_some() && !self.fault_shown => {
                Verdict::Tell(DebugNotice::TripleFault(fault))
            }
            VcpuExit::TripleFault(fault) => match self.policy.triple_fault {
                TripleFaultPolicy::Stop => Verdict::End(Outcome::TripleFault(fault)),
                TripleFaultPolicy::Reset if self.policy.no_reboot => Verdict::End(Outcome::Reset),
                TripleFaultPolicy::Reset => Verdict::Reset,
            },
            other => Verdict::End(Outcome::Failed(format!("vCPU {vcpu}: unexpected {other:?}"))),
        }
    }

    /// What is at which guest-physical address has changed: restoring a vCPU empties its TLB. All
    /// is parked.
    fn forget_translations(&self) -> Option<Outcome> {
        let renewed = self.vcpus.iter().try_for_each(|vcpu| vcpu.restore(vcpu.save()?));
        renewed.err().map(|error| Outcome::Failed(error.to_string()))
    }

    fn reboot(&mut self) -> Option<Outcome> {
        match self.reset() {
            Ok(()) => {
                self.go();
                None
            }
            Err(error) => Some(Outcome::Failed(error.to_string())),
        }
    }

    /// Resets the machine and puts the vCPUs where the kernel begins. All is parked.
    fn reset(&mut self) -> Result<(), VmError> {
        self.finish_live();
        // Loading a kernel is not in the dirty log.
        self.tracking = false;
        let states = self.machine.boot()?;
        self.restore_vcpus(states)?;
        self.resets += 1;
        self.fault_shown = false;
        Ok(())
    }

    fn restore_vcpus(&self, states: Vec<VcpuState>) -> Result<(), VmError> {
        self.vcpus.iter().zip(states).try_for_each(|(vcpu, state)| vcpu.restore(state))
    }

    /// Lets the machine run: clock, timers, vCPUs.
    fn go(&mut self) {
        if self.phase == Phase::Running {
            return;
        }
        if let Some(passed) = self.pauses.end().filter(|_| self.policy.catch_up) {
            self.machine.skip_time(passed.as_nanos().try_into().unwrap_or(u64::MAX));
        }
        self.machine.start_time();
        for (index, vcpu) in self.vcpus.iter_mut().enumerate() {
            if !self.held.get(index).is_some_and(|held| *held) {
                vcpu.run();
            }
        }
        self.phase = Phase::Running;
    }

    /// Parks the vCPUs, then stops timers and clock. A vCPU may have been about to report
    /// something else than that it parks: an end of the VM is returned, a reset is done at once.
    fn halt(&mut self) -> Option<Outcome> {
        if self.phase == Phase::Paused {
            return None;
        }
        for vcpu in self.vcpus.iter().filter(|v| v.is_running()) {
            vcpu.kick();
        }
        let mut verdicts = Vec::new();
        while self.vcpus.iter().any(VcpuThread::is_running) {
            match self.events.recv() {
                Ok(Event::Exit(vcpu, result)) => {
                    self.vcpus[vcpu].parked();
                    verdicts.push(self.judge(vcpu, result));
                }
                Ok(Event::Request(request)) => self.deferred.push_back(request),
                Err(_) => return Some(Outcome::Killed),
            }
        }
        self.machine.stop_time();
        self.pauses.begin();
        self.phase = Phase::Paused;
        self.settle(verdicts)
    }

    /// Does what vCPUs asked for in the moment when they were parked.
    fn settle(&mut self, verdicts: Vec<Verdict>) -> Option<Outcome> {
        let (mut reset, mut reconfigure) = (false, false);
        for verdict in verdicts {
            match verdict {
                Verdict::End(outcome) => return Some(outcome),
                Verdict::Reset => reset = true,
                Verdict::Reconfigure => reconfigure = true,
                Verdict::Tell(notice) => {
                    self.note_shown(&notice);
                    self.tell(notice);
                }
                Verdict::Pause | Verdict::Continue => {}
            }
        }
        if !reset {
            return if reconfigure { self.forget_translations() } else { None };
        }
        self.reset().err().map(|error| Outcome::Failed(error.to_string()))
    }

    fn save(&mut self, dir: &SnapshotDir) -> Result<(), VmError> {
        let (manifest, archive) = self.state()?;
        // A snapshot that survives a failure of the host is of no use with disks that do not.
        self.machine.flush_disks();
        snapshot::write(dir, manifest, archive, self.machine.ram())?;
        Ok(())
    }

    /// Everything but memory. All is parked.
    fn state(&self) -> Result<(Manifest, Archive), VmError> {
        let mut archive = Archive::new();
        for (index, vcpu) in (0..).zip(&self.vcpus) {
            archive.push(vcpu.save()?.to_section(index)?)?;
        }
        let machine = &self.machine;
        machine.save(&mut archive)?;
        let (engine, time) = (self.engine.name(), machine.guest_time());
        Ok((Manifest::new(engine, machine.spec(), machine.profile(), time), archive))
    }

    /// Saves everything but memory, sees to it that memory can be written later as it is now, and
    /// goes on.
    fn begin_snapshot(&mut self, order: Order, reply: &Reply<Parked>) -> Option<Outcome> {
        let phase = self.phase;
        let start = Instant::now();
        let ended = self.halt();
        let begun = self.unless_ended(ended.as_ref(), |driver| driver.begin_parked(order));
        if ended.is_none() && phase == Phase::Running {
            self.go();
        }
        let _ = reply.send(begun.map(|parked| Parked { paused: start.elapsed(), ..parked }));
        ended
    }

    /// What knows the pages that were written without hooks.
    fn write_log(&self) -> Option<&Arc<dyn WriteLog>> {
        self.vcpus.first()?.write_log()
    }

    /// From now on the pages that are written are in the dirty log for snapshots, if the engine can
    /// tell. All is parked.
    fn track(&mut self) -> Result<(), VmError> {
        if let Some(log) = self.write_log() {
            log.collect()?;
            log.keep(true)?;
        }
        self.tracking = self.engine.tracks_writes() || self.write_log().is_some();
        if self.tracking {
            self.machine.ram().track_dirty(DirtyConsumer::Snapshot, true);
        }
        Ok(())
    }

    fn copy_ahead(&self, base: bool) -> Result<Option<Arc<dyn WriteLog>>, VmError> {
        // Little is written for a difference, and it is known only when the VM stands.
        let Some(log) = self.write_log().filter(|_| !(base && self.tracking)) else {
            return Ok(None);
        };
        log.keep(true)?;
        log.collect()?;
        self.machine.ram().track_dirty(DirtyConsumer::Migration, true);
        Ok(Some(Arc::clone(log)))
    }

    fn begin_parked(&mut self, order: Order) -> Result<Parked, VmError> {
        self.finish_live();
        let Order { file, ahead, base, while_parked } = order;
        let (mut manifest, archive) = self.state()?;
        if let Some(act) = while_parked {
            // What programs find in the files of disks is what the guest has written.
            self.machine.flush_disks();
            manifest.disks = act()?;
        }
        if let Some(log) = self.write_log() {
            log.collect()?;
        }
        let ram = Arc::clone(self.machine.ram());
        let pages = (ram.size() / memory::PAGE_SIZE) as usize;
        let live = match (base.filter(|_| self.tracking), ahead) {
            (Some(base), _) => {
                manifest.base = Some(base);
                let layer = PageSet::of(pages, &ram.dirty_pages(DirtyConsumer::Snapshot));
                Arc::new(LiveMemory::new(ram, file, layer))
            }
            (None, Some(live)) => {
                live.again(&ram.dirty_pages(DirtyConsumer::Migration));
                ram.track_dirty(DirtyConsumer::Migration, false);
                live
            }
            (None, None) => Arc::new(LiveMemory::new(ram, file, PageSet::full(pages))),
        };
        if manifest.base.is_none() {
            self.track()?;
        }
        if self.engine.tracks_writes() {
            live.watch();
        } else {
            live.copy_all();
        }
        self.live = Arc::downgrade(&live);
        Ok(Parked { manifest, archive, live, paused: Duration::ZERO })
    }

    /// Writes what is left of a snapshot that is being taken, before memory changes without its
    /// knowledge.
    fn finish_live(&mut self) {
        if let Some(live) = std::mem::take(&mut self.live).upgrade() {
            live.copy_all();
        }
    }

    fn hop(&mut self, engine: &Arc<dyn Engine>, reply: &Reply<Duration>) -> Option<Outcome> {
        if self.debugger.is_some() {
            // What it set would be gone with the vCPUs.
            let _ = reply.send(Err(VmError::Debugged));
            return None;
        }
        let khz = self.machine.profile().tsc_khz();
        if let Some(fixed) = engine.fixed_tsc_khz().filter(|fixed| *fixed != khz) {
            let (engine, wanted) = (engine.name(), khz);
            let _ = reply.send(Err(VmError::OtherTsc { engine, fixed, wanted }));
            return None;
        }
        let phase = self.phase;
        let start = Instant::now();
        let mut ended = self.halt();
        let mut result = self.unless_ended(ended.as_ref(), |driver| driver.switch(engine));
        if let Err(VmError::Lost(cause)) = &result {
            ended = Some(Outcome::Failed(cause.clone()));
            result = Err(VmError::Ended(Outcome::Failed(cause.clone())));
        }
        if ended.is_none() && phase == Phase::Running {
            self.go();
        }
        let _ = reply.send(result.map(|()| start.elapsed()));
        ended
    }

    /// Puts vCPUs of `engine` in the place of those that there are. All is parked. When they cannot
    /// be made, there are vCPUs of the present engine again.
    fn switch(&mut self, engine: &Arc<dyn Engine>) -> Result<(), VmError> {
        if !engine.tracks_writes() {
            self.finish_live();
            self.tracking = false;
        }
        let states: Vec<_> = self.vcpus.iter().map(VcpuThread::save).collect::<Result<_, _>>()?;
        // Before others are made: a vCPU's mailbox wakes the last one that was made for it.
        self.vcpus.clear();
        match self.install(&**engine, states.clone()) {
            Ok(()) => self.engine = Arc::clone(engine),
            Err(error) => {
                let engine = Arc::clone(&self.engine);
                self.install(&*engine, states).map_err(|e| VmError::Lost(e.to_string()))?;
                return Err(error);
            }
        }
        Ok(())
    }

    fn install(&mut self, engine: &dyn Engine, states: Vec<VcpuState>) -> Result<(), VmError> {
        let vcpus = self.machine.new_vcpus(engine)?;
        let vcpus = start_vcpus(vcpus, &self.machine, &self.to_self)?;
        vcpus.iter().zip(states).try_for_each(|(vcpu, state)| vcpu.restore(state))?;
        self.vcpus = vcpus;
        Ok(())
    }

    fn stats(&mut self) -> Result<VmStats, VmError> {
        Ok(VmStats {
            engine: self.engine.name().to_owned(),
            guest_time_ns: self.machine.guest_time(),
            resets: self.resets,
            vcpus: self.vcpus.iter().map(VcpuThread::stats).collect::<Result<_, _>>()?,
            machine: self.machine.stats(),
        })
    }
}

/// Starts the threads of vCPUs that report to `driver`.
pub(crate) fn start_vcpus(
    vcpus: Vec<Box<dyn Vcpu>>,
    machine: &Machine,
    driver: &Sender<Event>,
) -> Result<Vec<VcpuThread>, VmError> {
    let start = |(index, vcpu): (usize, _)| {
        let events = driver.clone();
        // A driver that is gone does not want to know.
        let done = move |result| drop(events.send(Event::Exit(index, result)));
        VcpuThread::start(index as u32, vcpu, machine.bus(), done)
    };
    vcpus.into_iter().enumerate().map(start).collect()
}

/// What an exit of a vCPU means for the VM.
enum Verdict {
    Continue,
    Pause,
    /// Pause, and tell the debugger why.
    Tell(DebugNotice),
    /// Addresses have changed.
    Reconfigure,
    Reset,
    End(Outcome),
}
