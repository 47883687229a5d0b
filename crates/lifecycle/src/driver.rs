//! The driver thread: owns the VM's state, takes requests and what the vCPUs report.

use std::collections::VecDeque;
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use engine::{StopReason, VcpuExit, VcpuState};
use machine::Machine;
use state::Archive;

use crate::snapshot::{self, Manifest, SnapshotDir};
use crate::vcpu_thread::{RunResult, VcpuThread};
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
    Reset(Reply<()>),
    RunFor(u64, Reply<Progress>),
    Save(SnapshotDir, Reply<()>),
    Stats(Reply<VmStats>),
    Kill,
}

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

pub(crate) struct Driver {
    pub(crate) machine: Arc<Machine>,
    pub(crate) engine: &'static str,
    pub(crate) vcpus: Vec<VcpuThread>,
    pub(crate) policy: Policy,
    pub(crate) events: Receiver<Event>,
    pub(crate) ending: Arc<Ending>,
    phase: Phase,
    /// Requests that came while the driver waited for vCPUs to park.
    deferred: VecDeque<Request>,
    /// Who waits for the instruction budget to be spent.
    budget: Option<Reply<Progress>>,
    resets: u64,
}

impl Driver {
    pub(crate) fn new(
        machine: Arc<Machine>,
        engine: &'static str,
        vcpus: Vec<VcpuThread>,
        policy: Policy,
        events: Receiver<Event>,
        ending: Arc<Ending>,
    ) -> Self {
        Self {
            machine,
            engine,
            vcpus,
            policy,
            events,
            ending,
            phase: Phase::Paused,
            deferred: VecDeque::new(),
            budget: None,
            resets: 0,
        }
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
        self.ending.set(outcome, stats);
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
                self.go();
                let _ = reply.send(Ok(()));
            }
            Request::RunFor(instructions, reply) => return self.run_for(instructions, reply),
            Request::Reset(reply) => {
                return self.parked(&reply, |driver| driver.reset());
            }
            Request::Save(dir, reply) => {
                return self.parked(&reply, |driver| driver.save(&dir));
            }
            Request::Stats(reply) => return self.parked(&reply, |driver| driver.stats()),
        }
        None
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
            Verdict::Reset => self.halt().or_else(|| self.reboot()),
            Verdict::End(outcome) => Some(outcome),
        }
    }

    fn judge(&self, vcpu: usize, result: RunResult) -> Verdict {
        let exit = match result {
            Ok(exit) => exit,
            Err(cause) => return Verdict::End(Outcome::Failed(format!("vCPU {vcpu}: {cause}"))),
        };
        match exit {
            // A kick that came too late, or a vCPU that parked so that addresses could change.
            VcpuExit::Paused | VcpuExit::Stop(StopReason::Reconfigure) => Verdict::Continue,
            VcpuExit::BudgetSpent => Verdict::Pause,
            VcpuExit::Stop(StopReason::PowerOff) => Verdict::End(Outcome::PoweredOff),
            VcpuExit::Stop(StopReason::DebugExit { value }) => {
                Verdict::End(Outcome::DebugExit(value))
            }
            VcpuExit::Stop(StopReason::Reset) if self.policy.no_reboot => {
                Verdict::End(Outcome::Reset)
            }
            VcpuExit::Stop(StopReason::Reset) => Verdict::Reset,
            VcpuExit::TripleFault(fault) => match self.policy.triple_fault {
                TripleFaultPolicy::Stop => Verdict::End(Outcome::TripleFault(fault)),
                TripleFaultPolicy::Reset if self.policy.no_reboot => Verdict::End(Outcome::Reset),
                TripleFaultPolicy::Reset => Verdict::Reset,
            },
            other => Verdict::End(Outcome::Failed(format!("vCPU {vcpu}: unexpected {other:?}"))),
        }
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
        let states = self.machine.boot()?;
        self.restore_vcpus(states)?;
        self.resets += 1;
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
        self.machine.start_time();
        for vcpu in &mut self.vcpus {
            vcpu.run();
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
        self.phase = Phase::Paused;
        self.settle(verdicts)
    }

    /// Does what vCPUs asked for in the moment when they were parked.
    fn settle(&mut self, verdicts: Vec<Verdict>) -> Option<Outcome> {
        let mut reset = false;
        for verdict in verdicts {
            match verdict {
                Verdict::End(outcome) => return Some(outcome),
                Verdict::Reset => reset = true,
                Verdict::Pause | Verdict::Continue => {}
            }
        }
        if !reset {
            return None;
        }
        self.reset().err().map(|error| Outcome::Failed(error.to_string()))
    }

    fn save(&mut self, dir: &SnapshotDir) -> Result<(), VmError> {
        let mut archive = Archive::new();
        for (index, vcpu) in (0..).zip(&self.vcpus) {
            archive.push(vcpu.save()?.to_section(index)?)?;
        }
        self.machine.save(&mut archive)?;
        // A snapshot that survives a failure of the host is of no use with disks that do not.
        self.machine.flush_disks();
        let machine = &self.machine;
        let manifest =
            Manifest::new(self.engine, machine.spec(), machine.profile(), machine.guest_time());
        snapshot::write(dir, manifest, archive, machine.ram())?;
        Ok(())
    }

    fn stats(&mut self) -> Result<VmStats, VmError> {
        Ok(VmStats {
            engine: self.engine.to_owned(),
            guest_time_ns: self.machine.guest_time(),
            resets: self.resets,
            vcpus: self.vcpus.iter().map(VcpuThread::stats).collect::<Result<_, _>>()?,
            machine: self.machine.stats(),
        })
    }
}

/// What an exit of a vCPU means for the VM.
enum Verdict {
    Continue,
    Pause,
    Reset,
    End(Outcome),
}
