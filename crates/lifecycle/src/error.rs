//! Why a VM could not do what was asked.

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

impl From<StateError> for VmError {
    fn from(error: StateError) -> Self {
        Self::Snapshot(error.into())
    }
}
