//! The VM as `gdbstub` sees it: vCPUs as threads, breakpoints, and how they go on.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use engine::{DebugStop, Debugging, RunState, VcpuState, WatchKind, Watchpoint};
use gdbstub::common::{Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    self, Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint,
    HwWatchpointOps, SwBreakpoint, SwBreakpointOps,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps, outputln};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use lifecycle::{DebugNotice, Vm, VmError};

use crate::memory_access;
use crate::monitor::{self, Command};
use crate::registers::{self, GuestRegisters, X86};
use crate::server::Event;
use crate::session::end_of;

type StopReason = MultiThreadStopReason<u64>;

/// Most breakpoints and watchpoints of each kind: each costs a comparison.
const MOST_POINTS: usize = 1000;

/// How a vCPU goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Motion {
    Continue,
    Step,
}

/// A VM that is being debugged. It is paused but between [`MultiThreadResume::resume`] and the
/// next notice.
pub(crate) struct Guest {
    vm: Arc<Vm>,
    /// States of vCPUs that were looked at since the VM was paused.
    states: Vec<Option<VcpuState>>,
    software: BTreeSet<u64>,
    hardware: BTreeSet<u64>,
    watchpoints: Vec<Watchpoint>,
    motions: Vec<Option<Motion>>,
    /// vCPUs without a motion stay where they are.
    locked: bool,
    /// What the vCPUs were told last.
    told: Vec<Debugging>,
    /// Watchpoints of vCPUs that stopped together with the one reported.
    pending: VecDeque<(u32, DebugStop)>,
    /// The vCPU that stopped last.
    current: u32,
}

/// The debugger's number of vCPU `index`.
pub(crate) fn thread_of(index: u32) -> Tid {
    Tid::MIN.saturating_add(index as usize)
}

fn index_of(tid: Tid) -> u32 {
    u32::try_from(tid.get() - 1).unwrap_or(u32::MAX)
}

impl Guest {
    /// Pauses the VM for a debugger; `None` when it has ended.
    pub(crate) fn attach(vm: &Arc<Vm>, events: &Sender<Event>) -> Option<Self> {
        let events = events.clone();
        // A server that is gone does not want to know.
        let listener = move |notice| drop(events.send(Event::Notice(notice)));
        vm.set_debugger(Some(Box::new(listener))).ok()?;
        vm.pause().ok()?;
        let vcpus = vm.machine().spec().cpus as usize;
        Some(Self {
            vm: Arc::clone(vm),
            states: vec![None; vcpus],
            software: BTreeSet::new(),
            hardware: BTreeSet::new(),
            watchpoints: Vec::new(),
            motions: vec![None; vcpus],
            locked: false,
            told: vec![Debugging::default(); vcpus],
            pending: VecDeque::new(),
            current: 0,
        })
    }

    /// Lets the VM go on as if there had been no debugger.
    pub(crate) fn detach(&mut self) {
        self.software.clear();
        self.hardware.clear();
        self.watchpoints.clear();
        self.motions.fill(None);
        // A VM that has ended needs none of this.
        let _ = self.vm.pause();
        let _ = self.tell_vcpus();
        let _ = self.vm.set_debugger(None);
        let _ = self.vm.resume();
    }

    pub(crate) fn pause(&mut self) {
        // A VM that has ended says so by a notice.
        let _ = self.vm.pause();
    }

    /// The vCPU that stopped last.
    pub(crate) fn current(&self) -> u32 {
        self.current
    }

    /// Turns a notice into what the debugger is told.
    pub(crate) fn stopped(&mut self, notice: &DebugNotice) -> StopReason {
        match notice {
            DebugNotice::Stopped { vcpu, stop } => self.reason(*vcpu, *stop),
            DebugNotice::TripleFault(fault) => {
                self.current = fault.vcpu;
                let tid = thread_of(fault.vcpu);
                StopReason::SignalWithThread { tid, signal: Signal::SIGSEGV }
            }
            DebugNotice::Ended(outcome) => end_of(outcome),
        }
    }

    /// Keeps a notice that comes while the debugger looks at another one. A breakpoint or a triple
    /// fault comes again when the vCPU goes on; what a watchpoint saw is over.
    pub(crate) fn keep(&mut self, notice: &DebugNotice) {
        if let DebugNotice::Stopped { vcpu, stop: stop @ DebugStop::Watchpoint(_) } = notice {
            self.pending.push_back((*vcpu, *stop));
        }
    }

    /// What was kept.
    pub(crate) fn take_pending(&mut self) -> Option<StopReason> {
        let (vcpu, stop) = self.pending.pop_front()?;
        Some(self.reason(vcpu, stop))
    }

    fn reason(&mut self, vcpu: u32, stop: DebugStop) -> StopReason {
        self.current = vcpu;
        let tid = thread_of(vcpu);
        match stop {
            DebugStop::Watchpoint(watchpoint) => {
                let kind = match watchpoint.kind {
                    WatchKind::Read => breakpoints::WatchKind::Read,
                    WatchKind::Write => breakpoints::WatchKind::Write,
                    WatchKind::Access => breakpoints::WatchKind::ReadWrite,
                };
                StopReason::Watch { tid, kind, addr: watchpoint.address }
            }
            DebugStop::Stepped => StopReason::SignalWithThread { tid, signal: Signal::SIGTRAP },
            DebugStop::Breakpoint => {
                let rip = self.state(vcpu).map_or(0, |state| state.general.rip);
                match self.software.contains(&rip) {
                    true => StopReason::SwBreak(tid),
                    false => StopReason::HwBreak(tid),
                }
            }
        }
    }

    /// The state of a vCPU of the paused VM.
    fn state(&mut self, vcpu: u32) -> Result<&VcpuState, VmError> {
        let missing = || VmError::Vcpu { vcpu, cause: "there is none".to_owned() };
        let slot = self.states.get_mut(vcpu as usize).ok_or_else(missing)?;
        if slot.is_none() {
            let saved = self.vm.with_vcpu(vcpu, |vcpu, bus| vcpu.save(bus))?;
            *slot = Some(saved.map_err(|e| VmError::Vcpu { vcpu, cause: e.to_string() })?);
        }
        slot.as_ref().ok_or_else(missing)
    }

    fn set_state(&mut self, vcpu: u32, state: VcpuState) -> Result<(), VmError> {
        let theirs = state.clone();
        let restored = self.vm.with_vcpu(vcpu, move |vcpu, bus| vcpu.restore(&theirs, bus))?;
        restored.map_err(|e| VmError::Vcpu { vcpu, cause: e.to_string() })?;
        self.states[vcpu as usize] = Some(state);
        Ok(())
    }

    /// Tells each vCPU what is wanted of it, if that has changed.
    fn tell_vcpus(&mut self) -> Result<(), VmError> {
        let breakpoints: Vec<_> = self.software.union(&self.hardware).copied().collect();
        for (index, told) in (0..).zip(&mut self.told) {
            let wanted = Debugging {
                breakpoints: breakpoints.clone(),
                watchpoints: self.watchpoints.clone(),
                step: self.motions[index as usize] == Some(Motion::Step),
            };
            if *told != wanted {
                let theirs = wanted.clone();
                self.vm.with_vcpu(index, move |vcpu, _| vcpu.set_debugging(theirs))?;
                *told = wanted;
            }
        }
        Ok(())
    }

    fn add(set: &mut BTreeSet<u64>, address: u64) -> bool {
        set.len() < MOST_POINTS && (set.insert(address) || set.contains(&address))
    }

    fn set_motion(&mut self, tid: Tid, motion: Motion) {
        if let Some(slot) = self.motions.get_mut(index_of(tid) as usize) {
            *slot = Some(motion);
        }
    }
}

/// What the debugger asked for cannot be done; it goes on.
fn refused<E>(_: E) -> TargetError<VmError> {
    TargetError::NonFatal
}

impl Target for Guest {
    type Arch = X86;
    type Error = VmError;

    fn base_ops(&mut self) -> BaseOps<'_, X86, VmError> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Guest {
    fn read_registers(&mut self, to: &mut GuestRegisters, tid: Tid) -> TargetResult<(), Self> {
        *to = registers::of(self.state(index_of(tid)).map_err(refused)?);
        Ok(())
    }

    fn write_registers(&mut self, from: &GuestRegisters, tid: Tid) -> TargetResult<(), Self> {
        let vcpu = index_of(tid);
        let mut state = self.state(vcpu).map_err(refused)?.clone();
        let machine = self.vm.machine();
        registers::apply(from, &mut state, machine.ram(), machine.profile()).map_err(refused)?;
        self.set_state(vcpu, state).map_err(refused)
    }

    fn read_addrs(&mut self, start: u64, to: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let vm = Arc::clone(&self.vm);
        let state = self.state(index_of(tid)).map_err(refused)?;
        match memory_access::read(vm.machine(), state, start, to) {
            0 if !to.is_empty() => Err(TargetError::NonFatal),
            read => Ok(read),
        }
    }

    fn write_addrs(&mut self, start: u64, from: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let vm = Arc::clone(&self.vm);
        let state = self.state(index_of(tid)).map_err(refused)?;
        memory_access::write(vm.machine(), state, start, from).map_err(refused)
    }

    fn list_active_threads(&mut self, active: &mut dyn FnMut(Tid)) -> Result<(), VmError> {
        (0..).zip(&self.told).for_each(|(index, _)| active(thread_of(index)));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl ThreadExtraInfo for Guest {
    fn thread_extra_info(&self, tid: Tid, to: &mut [u8]) -> Result<usize, VmError> {
        let index = index_of(tid);
        let saved = self.vm.with_vcpu(index, |vcpu, bus| vcpu.save(bus).map(|s| s.run_state));
        let doing = match saved {
            Ok(Ok(RunState::Running)) => "executes",
            Ok(Ok(RunState::Halted)) => "is halted",
            Ok(Ok(RunState::WaitForSipi)) => "waits for a start-up IPI",
            Ok(Ok(RunState::Shutdown)) => "is shut down by a triple fault",
            Ok(Err(_)) | Err(_) => "is lost",
        };
        let text = format!("vCPU {index} {doing}");
        let len = text.len().min(to.len());
        to[..len].copy_from_slice(&text.as_bytes()[..len]);
        Ok(len)
    }
}

impl MultiThreadResume for Guest {
    fn resume(&mut self) -> Result<(), VmError> {
        if !self.pending.is_empty() {
            return Ok(());
        }
        self.tell_vcpus()?;
        self.states.fill(None);
        let held = self.motions.iter().map(|motion| self.locked && motion.is_none()).collect();
        self.vm.resume_without(held)
    }

    fn clear_resume_actions(&mut self) -> Result<(), VmError> {
        self.motions.fill(None);
        self.locked = false;
        Ok(())
    }

    /// Signals mean nothing to a machine.
    fn set_resume_action_continue(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), VmError> {
        self.set_motion(tid, Motion::Continue);
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Guest {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), VmError> {
        self.set_motion(tid, Motion::Step);
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Guest {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), VmError> {
        self.locked = true;
        Ok(())
    }
}

impl Breakpoints for Guest {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Guest {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(Self::add(&mut self.software, address))
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.software.remove(&address))
    }
}

impl HwBreakpoint for Guest {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(Self::add(&mut self.hardware, address))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.hardware.remove(&address))
    }
}

fn watchpoint(address: u64, len: u64, kind: breakpoints::WatchKind) -> Watchpoint {
    let kind = match kind {
        breakpoints::WatchKind::Read => WatchKind::Read,
        breakpoints::WatchKind::Write => WatchKind::Write,
        breakpoints::WatchKind::ReadWrite => WatchKind::Access,
    };
    Watchpoint { address, len, kind }
}

impl HwWatchpoint for Guest {
    fn add_hw_watchpoint(
        &mut self,
        address: u64,
        len: u64,
        kind: breakpoints::WatchKind,
    ) -> TargetResult<bool, Self> {
        let fits = len > 0 && self.watchpoints.len() < MOST_POINTS;
        if fits {
            self.watchpoints.push(watchpoint(address, len, kind));
        }
        Ok(fits)
    }

    fn remove_hw_watchpoint(
        &mut self,
        address: u64,
        len: u64,
        kind: breakpoints::WatchKind,
    ) -> TargetResult<bool, Self> {
        let wanted = watchpoint(address, len, kind);
        let found = self.watchpoints.iter().position(|there| *there == wanted);
        if let Some(at) = found {
            self.watchpoints.remove(at);
        }
        Ok(found.is_some())
    }
}

impl MonitorCmd for Guest {
    fn handle_monitor_cmd(
        &mut self,
        text: &[u8],
        mut out: ConsoleOutput<'_>,
    ) -> Result<(), VmError> {
        match monitor::parse(text) {
            Some(Command::Help) => outputln!(out, "{}", monitor::HELP),
            Some(Command::Reset) => {
                self.vm.reset()?;
                self.states.fill(None);
                self.pending.clear();
                outputln!(out, "the guest is reset; `maintenance flush register-cache` shows it");
            }
            Some(Command::Kill) => {
                self.vm.kill();
                outputln!(out, "the VM has ended");
            }
            Some(Command::PowerButton) => {
                self.vm.press_power_button();
                outputln!(out, "the power button is pressed; the guest sees it when it goes on");
            }
            None => outputln!(out, "unknown command; `monitor help` lists them"),
        }
        Ok(())
    }
}
