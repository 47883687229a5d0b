//! Engines and vCPUs.

use std::sync::Arc;

use device::StopCause;
use lapic::{LocalApic, LocalApicConfig, Mailbox};
use memory::GuestRam;
use serde::Serialize;
use thiserror::Error;

use crate::{CpuBus, CpuProfile, DebugStop, Debugging, Observer, Rendezvous, VcpuState};

/// Why an engine could not do what was asked. Not for what the guest does: that is an exception
/// in the guest or a [`VcpuExit`].
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The host lacks something the engine needs.
    #[error("engine {engine}: {missing}; choose another --engine")]
    Unsupported {
        /// The engine.
        engine: &'static str,
        /// What is missing.
        missing: String,
    },
    /// A saved state does not fit this vCPU.
    #[error("vcpu state: {0}")]
    BadState(String),
    /// The host failed.
    #[error("engine {engine}: {cause}")]
    Host {
        /// The engine.
        engine: &'static str,
        /// What failed.
        cause: String,
    },
}

/// What a vCPU is made of.
#[derive(Clone)]
pub struct VcpuConfig {
    /// Index in the VM, from 0; 0 is the boot processor.
    pub index: u32,
    /// Local APIC id.
    pub apic_id: u32,
    /// What CPUID tells, and what may be used.
    pub profile: Arc<CpuProfile>,
    /// Guest RAM.
    pub ram: Arc<GuestRam>,
    /// Where others post interrupts for this vCPU.
    pub mailbox: Arc<Mailbox>,
    /// Where the VM's vCPUs meet.
    pub rendezvous: Arc<Rendezvous>,
}

impl VcpuConfig {
    /// The only vCPU of a VM, with APIC id 0.
    pub fn alone(profile: Arc<CpuProfile>, ram: Arc<GuestRam>) -> Self {
        let apic = LocalApic::new(LocalApicConfig::default());
        let mailbox = Arc::new(Mailbox::new(apic.destination()));
        let rendezvous = Arc::new(Rendezvous::new(std::slice::from_ref(&mailbox)));
        Self { index: 0, apic_id: 0, profile, ram, mailbox, rendezvous }
    }
}

/// A way to execute guest code.
pub trait Engine: Send + Sync {
    /// Name on the command line: `interpreter`, `translator`, `kvm`.
    fn name(&self) -> &'static str;

    /// The frequency in kHz at which a guest's TSC runs whatever its profile says, when the engine
    /// cannot choose it.
    fn fixed_tsc_khz(&self) -> Option<u32> {
        None
    }

    /// Whether all writes of its vCPUs to guest RAM go through the hooks of `memory`, so that others
    /// can act before a page is written, and the pages that they write are known. Where not, a
    /// [`WriteLog`] tells afterwards.
    fn tracks_writes(&self) -> bool {
        true
    }

    /// Makes a vCPU in its power-on state.
    ///
    /// # Errors
    /// [`EngineError`].
    fn create_vcpu(&self, config: VcpuConfig) -> Result<Box<dyn Vcpu>, EngineError>;
}

/// Why [`Vcpu::run`] returned.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VcpuExit {
    /// [`Kick::kick`] was called.
    Paused,
    /// The instruction budget of [`Vcpu::set_budget`] is used up.
    BudgetSpent,
    /// A bus access asked for it; the instruction is complete.
    Stop(StopReason),
    /// The guest triple-faulted; the vCPU is in the shutdown state.
    TripleFault(TripleFault),
    /// What [`Vcpu::set_debugging`] asked for.
    Debug(DebugStop),
}

/// What made a vCPU stop after an instruction: the cause that a bus access gave.
pub type StopReason = StopCause;

/// Where a triple fault happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TripleFault {
    /// Index of the vCPU.
    pub vcpu: u32,
    /// RIP of the instruction that led to it.
    pub rip: u64,
    /// CR3 at that time.
    pub cr3: u64,
}

/// Interrupts a [`Vcpu::run`] from another thread.
pub trait Kick: Send + Sync {
    /// Makes the current or next `run` return [`VcpuExit::Paused`] at the next instruction
    /// boundary, also out of HLT; a software engine answers within 5 ms.
    fn kick(&self);
}

/// Knows afterwards which pages of guest RAM were written without the hooks of `memory`, by all vCPUs
/// of a VM.
pub trait WriteLog: Send + Sync {
    /// Begins to keep account, if it does not yet, or ends.
    ///
    /// # Errors
    /// [`EngineError::Host`].
    fn keep(&self, on: bool) -> Result<(), EngineError>;

    /// Marks as dirty in guest RAM what was written since the account began or was last collected.
    /// What is written while this runs is in this answer or in the next one.
    ///
    /// # Errors
    /// [`EngineError::Host`].
    fn collect(&self) -> Result<(), EngineError>;
}

/// One virtual CPU. Owned by one thread at a time.
pub trait Vcpu: Send {
    /// Executes guest code until there is something for the thread's owner to decide. HLT sleeps
    /// inside.
    ///
    /// # Errors
    /// [`EngineError::Host`].
    fn run(&mut self, bus: &dyn CpuBus) -> Result<VcpuExit, EngineError>;

    /// Lets `run` execute at most `instructions` more, then return [`VcpuExit::BudgetSpent`];
    /// `None` removes the limit. For tests and record and replay; engines that cannot count
    /// instructions return after about that many.
    fn set_budget(&mut self, instructions: Option<u64>);

    /// Replaces what a debugger wants of this vCPU; it holds across [`Vcpu::restore`]. `run` is not
    /// active.
    fn set_debugging(&mut self, debugging: Debugging);

    /// From now on the vCPU tells `observer` what it does; one that does not do this tells nobody.
    /// `run` is not active.
    fn observe(&mut self, _observer: Arc<Observer>) {}

    /// The whole state. `run` is not active. `bus` gives the time.
    ///
    /// # Errors
    /// [`EngineError::Host`].
    fn save(&mut self, bus: &dyn CpuBus) -> Result<VcpuState, EngineError>;

    /// Replaces the whole state. The TSC goes on from the saved value.
    ///
    /// # Errors
    /// [`EngineError::BadState`] for values that no such vCPU can hold.
    fn restore(&mut self, state: &VcpuState, bus: &dyn CpuBus) -> Result<(), EngineError>;

    /// A handle with which other threads interrupt `run`.
    fn kicker(&self) -> Arc<dyn Kick>;

    /// What knows the pages that were written without hooks, for engines that write so
    /// ([`Engine::tracks_writes`]) and can tell.
    fn write_log(&self) -> Option<Arc<dyn WriteLog>> {
        None
    }

    /// What the vCPU did so far.
    fn stats(&self) -> VcpuStats;
}

/// Counters of a vCPU, for `--stats`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VcpuStats {
    /// Guest instructions executed, where the engine counts them.
    pub instructions: Option<u64>,
    /// Events by name, in a fixed order: exits by reason, TLB misses, interrupts and so on.
    pub counters: Vec<(&'static str, u64)>,
    /// Where an engine's fast path is left most, most often first, at most 20; empty where there is
    /// no such thing.
    pub exit_sites: Vec<ExitSite>,
}

/// Instructions of one kind at which an engine leaves its fast path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExitSite {
    /// Mnemonic and kinds of operands, such as `mov r64, rm64`; empty between instructions.
    pub instruction: String,
    /// Why it is left.
    pub reason: &'static str,
    /// How often.
    pub count: u64,
}
