//! Why a VM could not do what was asked.

use engine::EngineError;
use machine::MachineError;
use state::StateError;
use thiserror::Error;

use crate::{Outcome, SnapshotError};

/// Why a VM could not do what was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VmError {
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The VM has ended.
    #[error("the VM has ended: {0}")]
    Ended(Outcome),
    /// The VM is running, and this is for a paused one.
    #[error("the VM is running; pause it first")]
    Running,
    /// The engine runs the TSC at another frequency than the guest was promised.
    #[error(
        "the {engine} engine runs a guest's TSC at {fixed} kHz on this host and the guest was \
         promised {wanted} kHz; take another engine"
    )]
    OtherTsc {
        /// The engine.
        engine: &'static str,
        /// The frequency that it has, kHz.
        fixed: u32,
        /// The frequency of the VM's CPU profile, kHz.
        wanted: u32,
    },
    /// The engine cannot be changed under a debugger.
    #[error("a debugger is attached; let it detach first")]
    Debugged,
    /// The vCPUs could not be made again: the VM ends.
    #[error("the guest's vCPUs are lost: {0}")]
    Lost(String),
    /// A vCPU failed or is lost.
    #[error("vCPU {vcpu}: {cause}")]
    Vcpu {
        /// Its index.
        vcpu: u32,
        /// What happened.
        cause: String,
    },
    /// The host failed.
    #[error("cannot {action}: {cause}")]
    Host {
        /// What was tried, as a verb.
        action: &'static str,
        /// What the host said.
        cause: std::io::Error,
    },
}

impl From<EngineError> for VmError {
    fn from(error: EngineError) -> Self {
        Self::Machine(error.into())
    }
}

impl From<StateError> for VmError {
    fn from(error: StateError) -> Self {
        Self::Snapshot(error.into())
    }
}
