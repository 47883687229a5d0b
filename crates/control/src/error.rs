//! Why a VM's process or a caller of it could not do what was asked.

use std::io;

use lifecycle::{MachineError, SnapshotError, VmError};
use thiserror::Error;

/// Why a VM's process or a caller of it could not do what was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The VM.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// A snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The machine or its engine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The VM's folder.
    #[error(transparent)]
    Store(#[from] vms::Error),
    /// A disk whose content cannot be in a snapshot.
    #[error("the content of disk {disk} cannot be saved: {cause}")]
    Disk {
        /// The disk.
        disk: String,
        /// Why, and what can be done.
        cause: &'static str,
    },
    /// The VM's process refused, and said why.
    #[error("{0}")]
    Refused(String),
    /// The VM's process does not answer.
    #[error(
        "VM {name} does not answer: {cause}; `ringfence kill {name}` ends it, `ringfence logs \
         --messages {name}` shows what it said"
    )]
    NoAnswer {
        /// The VM.
        name: String,
        /// What happened.
        cause: String,
    },
    /// The host failed.
    #[error("cannot {action}: {cause}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// What the host said.
        cause: io::Error,
    },
}

impl ControlError {
    pub(crate) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::Io { action, cause }
    }
}
