//! Runs cases on the host CPU.
//!
//! A worker process is forked for many cases. It maps the pages of [`crate::layout`] from a memory
//! file, enters a case with IRETQ after loading every register, and leaves it in the handler of
//! the signal that the case's exception becomes. Cases and results travel through shared memory,
//! a batch at a time.
//!
//! The worker is sealed before it executes anything: no system calls but those that the batch loop
//! needs, and those not from the windows; no core files; killed with its parent. A case that loops
//! is stopped by a timer that counts the worker's CPU time.
//!
//! All unsafe code of this crate is in this module.

mod entry;
mod host;
mod runner;
mod sandbox;
mod shared;
mod worker;

pub use host::{Choices, choices, host_has, is_mapped};
pub use runner::NativeRunner;

use crate::case::Observation;

/// What came of a case on the host CPU.
#[derive(Clone, Debug)]
pub enum NativeOutcome {
    /// It ended in an exception.
    Observed(Box<Observation>),
    /// It was stopped because it ran too long.
    Timeout,
    /// It made a system call, which is not for an engine of user-mode instructions.
    SystemCall,
    /// It damaged the worker process.
    WorkerDied,
}

/// Why cases cannot run on the host.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NativeError {
    /// A system call failed.
    #[error("native oracle: {call} failed: {cause}")]
    System {
        /// The call.
        call: &'static str,
        /// Its error.
        cause: std::io::Error,
    },
    /// The host CPU or kernel lacks something.
    #[error(
        "native oracle: this host lacks {missing}; run it on an x86-64-v3 CPU with Linux 5.14 or newer"
    )]
    HostLacks {
        /// What is missing.
        missing: &'static str,
    },
    /// The worker could not be set up.
    #[error(
        "native oracle: the worker process ended with wait status {status:#x} before its first case"
    )]
    WorkerFailed {
        /// As `waitpid` gives it.
        status: i32,
    },
}
