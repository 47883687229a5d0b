//! Why the store could not do what was asked.

use std::fmt::Display;
use std::io;

use thiserror::Error;

/// Why the store could not do what was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// There is nowhere to keep VMs.
    #[error("there is no folder for VMs: set HOME or XDG_DATA_HOME")]
    NoFolder,
    /// A name that no VM can have.
    #[error("{name:?} cannot be a name: {}", crate::NAME_RULE)]
    BadName {
        /// The name.
        name: String,
    },
    /// No such VM.
    #[error("there is no VM {name}; `ringfence ps` lists what there is")]
    NotFound {
        /// The name that was asked for.
        name: String,
    },
    /// The name is taken.
    #[error(
        "there is a VM {name} already; remove it with `ringfence rm {name}`, or take another name"
    )]
    Exists {
        /// The name.
        name: String,
    },
    /// Another command works on the VM.
    #[error("VM {name} is busy: {holder} has not finished; try again")]
    Busy {
        /// The VM.
        name: String,
        /// The command and its process.
        holder: String,
    },
    /// The VM has a process, and this is for one that has none.
    #[error("VM {name} is {state}; stop it first with `ringfence stop {name}`")]
    Alive {
        /// The VM.
        name: String,
        /// `running` or `paused`.
        state: &'static str,
    },
    /// A file is not what it should be.
    #[error(
        "VM {name}: {file} is damaged: {cause}; remove the VM with `ringfence rm --force {name}`"
    )]
    Damaged {
        /// The VM.
        name: String,
        /// The file.
        file: &'static str,
        /// What is wrong with it.
        cause: String,
    },
    /// The host failed.
    #[error("cannot {action} {file}: {cause}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        file: String,
        /// What the host said.
        cause: io::Error,
    },
}

impl Error {
    pub(crate) fn io(
        action: &'static str,
        file: &dyn Display,
        cause: impl Into<io::Error>,
    ) -> Self {
        Self::Io { action, file: file.to_string(), cause: cause.into() }
    }
}
