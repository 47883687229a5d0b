//! Profiles and traces of a VM that runs.
//!
//! Nothing of this exists until [`crate::Vm::observe`] is called: then each vCPU tells an
//! [`engine::Observer`] what it does, and reaches devices through an [`ObservedBus`].
//!
//! A profile is made of samples. A [`Profiler`]'s thread looks at each vCPU's activity so often a
//! second, which is exact, and kicks the vCPU. At its next instruction boundary the vCPU leaves
//! `run`, says where it is, and goes on; the driver does not hear of it. So where translated code
//! looks up, at the beginning of its blocks, is where the samples are. Sleeping vCPUs are counted
//! without waking them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use device::{Answer, GuestClock, Width};
use engine::{
    Activity, CpuBus, HypercallFrame, Kick, Observer, TraceEvent, Traced, VcpuExit, VcpuState,
};
use lapic::Ipi;
use x86::msr;
use x86::segment::seg;

use crate::VmError;

/// Takes the events of all vCPUs, with the index of the vCPU, on its thread.
pub type TraceSink = Arc<dyn Fn(u32, TraceEvent) + Send + Sync>;

/// What is wanted of [`crate::Vm::observe`].
#[derive(Clone, Default)]
pub struct Observation {
    /// A profile of so many samples a second, at least 1.
    pub samples_per_second: Option<u32>,
    /// A trace of events of these kinds, and who takes them.
    pub trace: Option<(Traced, TraceSink)>,
}

impl Observation {
    pub(crate) fn watches(&self, vcpus: u32) -> Vec<Arc<Watch>> {
        let observer = |index: u32| match self.trace.clone() {
            None => Observer::default(),
            Some((traced, sink)) => {
                Observer::tracing(traced, Box::new(move |event| sink(index, event)))
            }
        };
        (0..vcpus).map(|index| Arc::new(Watch::new(index, observer(index)))).collect()
    }
}

/// Where a vCPU was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sample {
    /// Index of the vCPU.
    pub vcpu: u32,
    /// What it was doing.
    pub activity: Activity,
    /// Whether it was in user code (CPL 3); false while idle.
    pub user: bool,
    /// Its next instruction; 0 while idle.
    pub rip: u64,
}

/// What a profile has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// Where the vCPUs were and how often, in order.
    pub samples: Vec<(Sample, u64)>,
    /// Where the guest's kernel is entered by SYSCALL (the MSR LSTAR), 0 if nowhere: from this and
    /// its symbols follows where the kernel is.
    pub syscall_entry: u64,
}

/// One vCPU being watched.
pub(crate) struct Watch {
    index: u32,
    observer: Arc<Observer>,
    kick: OnceLock<Arc<dyn Kick>>,
    /// Whether the vCPU is in `run`.
    runs: AtomicBool,
    /// Samples that the vCPU has still to give, by activity.
    due: [AtomicU32; Activity::ALL.len()],
    samples: Mutex<HashMap<Sample, u64>>,
    syscall_entry: AtomicU64,
}

impl Watch {
    fn new(index: u32, observer: Observer) -> Self {
        Self {
            index,
            observer: Arc::new(observer),
            kick: OnceLock::new(),
            runs: AtomicBool::new(false),
            due: Default::default(),
            samples: Mutex::default(),
            syscall_entry: AtomicU64::new(0),
        }
    }

    pub(crate) fn observer(&self) -> &Arc<Observer> {
        &self.observer
    }

    /// How the vCPU is reached.
    pub(crate) fn set_kick(&self, kick: Arc<dyn Kick>) {
        // Once: a vCPU is not watched twice by the same.
        let _ = self.kick.set(kick);
    }

    /// The vCPU enters or leaves `run`.
    pub(crate) fn set_runs(&self, runs: bool) {
        self.runs.store(runs, Ordering::Relaxed);
    }

    /// Tells of a run that ended for more than a sample.
    pub(crate) fn tell_exit(&self, exit: &VcpuExit) {
        if self.observer.traces(Traced::EXITS) {
            let reason = match exit {
                VcpuExit::Paused => "pause",
                VcpuExit::Stop(_) => "stop",
                VcpuExit::TripleFault(_) => "triple fault",
                VcpuExit::Debug(_) => "debug",
                _ => "other",
            };
            self.observer.tell(TraceEvent::Exit { reason, rip: None });
        }
    }

    /// Looks what the vCPU does; has it say where.
    fn look(&self) {
        if !self.runs.load(Ordering::Relaxed) {
            return;
        }
        let activity = self.observer.activity();
        if activity == Activity::Idle {
            return self.add(Sample { vcpu: self.index, activity, user: false, rip: 0 }, 1);
        }
        self.due[activity as usize].fetch_add(1, Ordering::Relaxed);
        if let Some(kick) = self.kick.get() {
            kick.kick();
        }
    }

    /// Whether the vCPU has to say where it is.
    pub(crate) fn is_due(&self) -> bool {
        self.due.iter().any(|due| due.load(Ordering::Relaxed) != 0)
    }

    /// The vCPU says where it is.
    pub(crate) fn take(&self, state: &VcpuState) {
        let user = state.segments.segment[seg::SS].dpl() == 3;
        let lstar = state.msrs.iter().find(|(number, _)| *number == msr::LSTAR);
        if let Some((_, entry)) = lstar.filter(|(_, entry)| *entry != 0) {
            self.syscall_entry.store(*entry, Ordering::Relaxed);
        }
        for (due, activity) in self.due.iter().zip(Activity::ALL) {
            let count = due.swap(0, Ordering::Relaxed);
            let sample = Sample { vcpu: self.index, activity, user, rip: state.general.rip };
            if count != 0 {
                self.add(sample, count.into());
            }
        }
    }

    fn add(&self, sample: Sample, count: u64) {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        *samples.entry(sample).or_default() += count;
    }
}

/// Takes samples until it is finished.
pub struct Profiler {
    watches: Vec<Arc<Watch>>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Profiler {
    pub(crate) fn start(watches: Vec<Arc<Watch>>, per_second: u32) -> Result<Self, VmError> {
        let interval = Duration::from_secs(1) / per_second.max(1);
        let (stop, stopped) = channel::<()>();
        let watched = watches.clone();
        let sample = move || {
            while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                watched.iter().for_each(|watch| watch.look());
            }
        };
        let thread = thread::Builder::new().name("profiler".to_owned()).spawn(sample);
        let thread = thread
            .map_err(|cause| VmError::Host { action: "start the profiler's thread", cause })?;
        Ok(Self { watches, stop: Some(stop), thread: Some(thread) })
    }

    /// Samples that have been taken so far.
    pub fn taken(&self) -> u64 {
        let of = |watch: &Arc<Watch>| {
            watch.samples.lock().unwrap_or_else(PoisonError::into_inner).values().sum::<u64>()
        };
        self.watches.iter().map(of).sum()
    }

    /// Ends the profile; what has been found.
    pub fn finish(mut self) -> Profile {
        self.end();
        let mut profile = Profile::default();
        for watch in &self.watches {
            let samples = watch.samples.lock().unwrap_or_else(PoisonError::into_inner);
            profile.samples.extend(samples.iter().map(|(sample, count)| (*sample, *count)));
            let entry = watch.syscall_entry.load(Ordering::Relaxed);
            profile.syscall_entry = profile.syscall_entry.max(entry);
        }
        profile.samples.sort_unstable();
        profile
    }

    fn end(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // It does nothing that panics.
            let _ = thread.join();
        }
    }
}

impl Drop for Profiler {
    fn drop(&mut self) {
        self.end();
    }
}

/// The machine as seen by a vCPU that is watched.
pub(crate) struct ObservedBus {
    bus: Arc<dyn CpuBus>,
    observer: Arc<Observer>,
}

impl ObservedBus {
    pub(crate) fn new(bus: Arc<dyn CpuBus>, observer: Arc<Observer>) -> Self {
        Self { bus, observer }
    }

    /// Has devices do something, and tells of the access that it was.
    fn access<T>(
        &self,
        access: impl FnOnce(&dyn CpuBus) -> T,
        event: impl FnOnce(&T) -> Option<TraceEvent>,
    ) -> T {
        let before = self.observer.enter(Activity::Devices);
        let answer = access(&*self.bus);
        self.observer.enter(before);
        if self.observer.traces(Traced::IO)
            && let Some(event) = event(&answer)
        {
            self.observer.tell(event);
        }
        answer
    }
}

/// The value of an answer that has one.
fn value<T: Copy>(answer: &Answer<T>) -> Option<T> {
    match answer {
        Answer::Done(value) | Answer::StopAfterInstruction(value, _) => Some(*value),
        Answer::Fault => None,
    }
}

/// Up to 8 bytes as a number.
fn number(data: &[u8]) -> u64 {
    data.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

impl CpuBus for ObservedBus {
    fn port_read(&self, port: u16, width: Width) -> Answer<u32> {
        let size = width.bytes();
        let event = |answer: &Answer<u32>| {
            let value = value(answer)? & width.mask();
            Some(TraceEvent::Port { port, write: false, size, value })
        };
        self.access(|bus| bus.port_read(port, width), event)
    }

    fn port_write(&self, port: u16, width: Width, value: u32) -> Answer<()> {
        let (size, value) = (width.bytes(), value & width.mask());
        let event = TraceEvent::Port { port, write: true, size, value };
        self.access(|bus| bus.port_write(port, width, value), |_| Some(event))
    }

    fn mmio_read(&self, gpa: u64, data: &mut [u8]) -> Answer<()> {
        let size = data.len();
        let (answer, _) = self.access(
            |bus| {
                let answer = bus.mmio_read(gpa, data);
                (answer, number(data))
            },
            |(_, value)| Some(TraceEvent::Mmio { gpa, write: false, size, value: *value }),
        );
        answer
    }

    fn mmio_write(&self, gpa: u64, data: &[u8]) -> Answer<()> {
        let event = TraceEvent::Mmio { gpa, write: true, size: data.len(), value: number(data) };
        self.access(|bus| bus.mmio_write(gpa, data), |_| Some(event))
    }

    fn msr_read(&self, vcpu: u32, msr: u32) -> Answer<u64> {
        self.access(|bus| bus.msr_read(vcpu, msr), |_| None)
    }

    fn msr_write(&self, vcpu: u32, msr: u32, value: u64) -> Answer<()> {
        self.access(|bus| bus.msr_write(vcpu, msr, value), |_| None)
    }

    fn hypercall(&self, vcpu: u32, frame: &mut HypercallFrame) -> Answer<()> {
        self.access(|bus| bus.hypercall(vcpu, frame), |_| None)
    }

    fn send_ipi(&self, from: u32, ipi: Ipi) {
        self.bus.send_ipi(from, ipi);
    }

    fn end_of_interrupt(&self, vector: u8) {
        self.bus.end_of_interrupt(vector);
    }

    fn acknowledge_extint(&self) -> u8 {
        self.bus.acknowledge_extint()
    }

    fn timer_fired(&self, vcpu: u32) {
        self.bus.timer_fired(vcpu);
    }

    fn clock(&self) -> &dyn GuestClock {
        self.bus.clock()
    }
}
