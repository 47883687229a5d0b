//! What the process of a VM gives up before the guest's first instruction.
//!
//! Whoever breaks out of a guest gets what its process can do. So the process first opens what the
//! VM needs, and then keeps to:
//!
//! - [`files`]: the files and folders that it opens later ([`Files`], by Landlock), and signals to
//!   nobody but its own processes;
//! - [`calls`]: the system calls that it makes (seccomp): no other program, no new namespace, and no
//!   new socket unless the VM has a network of this process's ([`Network`]).
//!
//! What direct execution does while the guest runs stays possible (crate `direct`): forking, being
//! traced, confining itself further.
//!
//! Both hold for the whole process and all that it forks, and nobody can undo them. A filter for
//! each thread would not confine more: threads share their memory, so who commands one commands
//! all. What a kernel lacks is told of ([`Done`]), and the rest is done.
//!
//! Neighbours: the command line says which files and which network. See docs/safety.md.

#![forbid(unsafe_code)]

mod calls;
mod files;

pub use calls::{Network, restrict_calls};
pub use files::{Files, restrict_files};

use std::fs;

use rustix::process::{Resource, Rlimit, setrlimit};
use thiserror::Error;

/// What came of a restriction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// It holds.
    Whole,
    /// It holds but for what this kernel does not know: the text says what.
    Partly(String),
    /// This kernel has no such thing: the text says which.
    Not(String),
}

/// Why the process cannot be isolated.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IsolationError {
    /// Landlock would hold for one thread only.
    #[error("the process has {0} threads already, and Landlock would hold for one of them")]
    TooManyThreads(usize),
    /// The kernel refuses what it says it can do.
    #[error("cannot isolate the process: {what}: {cause}; --no-isolation does without")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        cause: String,
    },
}

impl IsolationError {
    pub(crate) fn refused(what: &'static str) -> impl FnOnce(Box<dyn std::error::Error>) -> Self {
        move |cause| Self::Refused { what, cause: cause.to_string() }
    }
}

/// Gives up new privileges (prctl(2), `PR_SET_NO_NEW_PRIVS`), and core dumps, which would have the
/// guest's memory in them.
///
/// # Errors
/// [`IsolationError::Refused`].
pub fn give_up_privileges() -> Result<(), IsolationError> {
    rustix::thread::set_no_new_privs(true)
        .map_err(|e| IsolationError::refused("no new privileges")(e.into()))?;
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, none).map_err(|e| IsolationError::refused("no core dumps")(e.into()))
}

/// What this host offers for isolation, in words.
///
/// # Errors
/// What is missing, in words.
pub fn offer() -> Result<String, String> {
    match (calls::is_there(), files::version()) {
        (true, Some(version)) => Ok(format!("seccomp filters, Landlock version {version}")),
        (true, None) => Err("the kernel has no Landlock: VMs can open the user's files; seccomp \
                             filters are there"
            .to_owned()),
        (false, Some(version)) => Err(format!(
            "the kernel has no seccomp filters: VMs can make any system call; Landlock version \
             {version} is there"
        )),
        (false, None) => Err("the kernel has neither seccomp filters nor Landlock: VMs have all \
                              the rights of their user"
            .to_owned()),
    }
}

/// Threads of this process.
fn threads() -> usize {
    fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}
