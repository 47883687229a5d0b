//! What is compared with the host CPU.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use device::{Answer, StopCause};
use engine::testing::EmptyBus;
use engine::{
    CpuProfile, Engine, EngineError, Kick, Level, Vcpu, VcpuConfig, VcpuExit, VcpuState, Vendor,
};
use memory::{GuestRam, MemoryError};
use x86::cpuid::Feature;

use crate::case::{Case, Memory, Observation};
use crate::layout::MEMORY;
use crate::native::host_has;
use crate::supervisor;

/// What came of a case on a subject.
#[derive(Clone, Debug)]
pub enum SubjectOutcome {
    /// It ended in an exception.
    Observed(Box<Observation>),
    /// It did not end within the instructions it was given.
    BudgetSpent,
}

/// Why a subject could not run a case. The guest code of a case has no way to cause it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubjectError {
    /// The engine refused.
    #[error("oracle: {0}")]
    Engine(#[from] EngineError),
    /// The supervisor does not fit into its RAM.
    #[error("oracle: {0}")]
    Memory(#[from] MemoryError),
    /// The CPU profile does not fit the host.
    #[error("oracle: {0}")]
    Profile(#[from] engine::ProfileError),
    /// The vCPU ended a case in another way than by an exception handler.
    #[error("oracle: the vCPU stopped with {exit:?} instead of in an exception handler")]
    UnexpectedExit {
        /// How it stopped.
        exit: VcpuExit,
    },
}

/// Something that executes cases as a CPU would.
pub trait Subject {
    /// Executes a case, at most `instructions` of it.
    ///
    /// # Errors
    /// [`SubjectError`].
    fn run(&mut self, case: &Case, instructions: u64) -> Result<SubjectOutcome, SubjectError>;
}

/// A vCPU of an engine, in user mode under a minimal supervisor.
pub struct VcpuSubject {
    vcpu: Box<dyn Vcpu>,
    ram: Arc<GuestRam>,
    state: VcpuState,
    memory: Box<Memory>,
    bus: EmptyBus,
}

impl VcpuSubject {
    /// A vCPU of `engine` with profile `v3` and the accelerators that the host has.
    ///
    /// # Errors
    /// [`SubjectError`].
    pub fn new(engine: &dyn Engine) -> Result<Self, SubjectError> {
        const TSC_KHZ: u32 = 1_000_000;
        let host = |feature: Feature| host_has(feature);
        let profile = Arc::new(CpuProfile::new(Level::V3, Vendor::Intel, TSC_KHZ, &host)?);
        let ram = Arc::new(GuestRam::new(&[(0, supervisor::RAM_SIZE)])?);
        let mut vcpu = engine.create_vcpu(VcpuConfig::alone(profile, Arc::clone(&ram)))?;
        let bus = HANDLER_PORTS;
        let power_on = vcpu.save(&bus)?;
        let state = supervisor::install(&ram, power_on)?;
        let memory = vec![0; MEMORY].into_boxed_slice();
        let memory = memory.try_into().expect("the size is the array's");
        Ok(Self { vcpu, ram, state, memory, bus })
    }
}

impl VcpuSubject {
    /// Executes a case on a vCPU whose TLB is empty.
    fn run_cold(&mut self, case: &Case, instructions: u64) -> Result<Ran, SubjectError> {
        supervisor::load_memory(&self.ram, case, &mut self.memory)?;
        supervisor::load_registers(&mut self.state, &case.image);
        self.vcpu.restore(&self.state, &self.bus)?;
        self.finish(Some(instructions))
    }

    /// Executes a case on a vCPU that stands in a handler and keeps what it knows.
    fn run_warm(&mut self, case: &Case, instructions: Option<u64>) -> Result<Ran, SubjectError> {
        supervisor::reload_memory(&self.ram, case, &mut self.memory)?;
        supervisor::prepare_launch(&self.ram, &case.image)?;
        self.finish(instructions.map(|count| count + supervisor::LAUNCH_INSTRUCTIONS))
    }

    /// Executes until a handler has been entered. Gives the vCPU's state and the observation;
    /// `None` when that takes too long.
    fn finish(&mut self, instructions: Option<u64>) -> Result<Ran, SubjectError> {
        self.vcpu.set_budget(instructions);
        let exit = self.vcpu.run(&self.bus)?;
        let vector = match &exit {
            VcpuExit::BudgetSpent => return Ok(None),
            VcpuExit::Stop(cause) => supervisor::vector_of(*cause),
            _ => None,
        };
        let Some(vector) = vector else { return Err(SubjectError::UnexpectedExit { exit }) };
        let state = self.vcpu.save(&self.bus)?;
        let observation = supervisor::observe(&self.ram, &state, vector)?;
        Ok(Some((state, Box::new(observation))))
    }
}

/// State and observation in a handler, if one was reached.
type Ran = Option<(VcpuState, Box<Observation>)>;

fn outcome(ran: Ran) -> SubjectOutcome {
    ran.map_or(SubjectOutcome::BudgetSpent, |(_, observation)| {
        SubjectOutcome::Observed(observation)
    })
}

impl Subject for VcpuSubject {
    fn run(&mut self, case: &Case, instructions: u64) -> Result<SubjectOutcome, SubjectError> {
        Ok(outcome(self.run_cold(case, instructions)?))
    }
}

/// A vCPU that executes every case three times, and shows what the last time gave: by then the
/// pages that the case reaches are in its TLB, and its code is decoded or translated. The last time
/// is without a limit of instructions, as machines run.
pub struct WarmSubject {
    vcpu: VcpuSubject,
    watchdog: Watchdog,
}

impl WarmSubject {
    /// As [`VcpuSubject::new`].
    ///
    /// # Errors
    /// [`SubjectError`].
    pub fn new(engine: &dyn Engine) -> Result<Self, SubjectError> {
        let vcpu = VcpuSubject::new(engine)?;
        let watchdog = Watchdog::new(vcpu.vcpu.kicker());
        Ok(Self { vcpu, watchdog })
    }
}

impl Subject for WarmSubject {
    fn run(&mut self, case: &Case, instructions: u64) -> Result<SubjectOutcome, SubjectError> {
        let mut ran = self.vcpu.run_cold(case, instructions)?;
        for limit in [Some(instructions), None] {
            match &ran {
                Some((state, _)) if supervisor::can_launch(state, &self.vcpu.state) => {
                    self.watchdog.feed();
                    ran = self.vcpu.run_warm(case, limit)?;
                }
                _ => break,
            }
        }
        Ok(outcome(ran))
    }
}

/// Kicks a vCPU that does not come to its next case: then it has stopped for no exception.
struct Watchdog {
    fed: Arc<AtomicU64>,
    /// Dropped to end the thread.
    _end: Sender<()>,
}

impl Watchdog {
    const PATIENCE: Duration = Duration::from_secs(20);

    fn new(kick: Arc<dyn Kick>) -> Self {
        let fed = Arc::new(AtomicU64::new(0));
        let (end, ended) = channel::<()>();
        let seen = Arc::clone(&fed);
        thread::spawn(move || {
            let mut last = u64::MAX;
            while ended.recv_timeout(Self::PATIENCE) == Err(RecvTimeoutError::Timeout) {
                let now = seen.load(Ordering::Relaxed);
                if now == last {
                    kick.kick();
                }
                last = now;
            }
        });
        Self { fed, _end: end }
    }

    fn feed(&self) {
        self.fed.fetch_add(1, Ordering::Relaxed);
    }
}

/// A bus on which every port stops the vCPU and tells its number: the exception handlers write to
/// the port of their vector. There is nothing else.
const HANDLER_PORTS: EmptyBus = EmptyBus::with_ports(|port, _| {
    Answer::StopAfterInstruction((), StopCause::DebugExit { value: port as u8 })
});
