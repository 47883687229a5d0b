//! Direct execution: guest user code on the host CPU itself, without hardware virtualization.
//!
//! A [`Sandbox`] is a process of the host whose address space is that of a guest process: the
//! guest's pages, mapped from guest RAM at the guest's linear addresses, and two pages of ours. The
//! vCPU's thread traces it (ptrace), puts the guest's registers into it, and lets it run until it
//! wants something: a system call, a fault, or because it was interrupted. None of its system calls
//! reaches the host. Privileged instructions fault there as they do for any user code, and so do
//! CPUID and RDTSC, which the host is told to withhold. What then happens is for the caller to
//! emulate. This is how VMware's first monitors ran user code (Bugnion et al., "Bringing
//! Virtualization to the x86 Architecture with the Original VMware Workstation", 2012, section 3).
//!
//! - [`Sandbox`] ([`sandbox`]): enter, map, unmap;
//! - [`child`]: how the process is made, and made harmless;
//! - [`stub`]: the two pages of ours: a loop that executes a list of mmap and munmap calls;
//! - [`trace`]: the ptrace requests.
//!
//! The crate knows memory as offsets in a file and rights; what may be mapped where, and when a
//! mapping must go, the engine decides (`translator::direct`).

pub(crate) mod child;
mod sandbox;
pub(crate) mod stub;
pub(crate) mod trace;

pub use sandbox::{Handle, MOST_WATCHED, Mapping, Rights, Sandbox, Stop, UserState, is_in_reach};

use std::os::fd::AsFd;
use std::sync::Arc;

use thiserror::Error;

/// Why direct execution is not possible, or not any more.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DirectError {
    /// The host refuses something that the sandbox needs.
    #[error("direct execution is not possible here: {what}: {cause}")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// What the host said.
        cause: std::io::Error,
    },
    /// The process ended by itself or was killed from outside, with guest registers in it.
    #[error("the process that executes guest code directly has been killed ({status:#x})")]
    Killed {
        /// The status that `waitpid` gave.
        status: i32,
    },
}

/// Whether this host allows direct execution: makes a sandbox, in about a millisecond.
///
/// # Errors
/// As [`Sandbox::new`].
pub fn probe() -> Result<(), DirectError> {
    let making = "making a file without a name";
    let file = rustix::fs::memfd_create("ringfence-probe", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|e| refused(making)(e.into()))?;
    Sandbox::new(file.as_fd(), Arc::default()).map(drop)
}

/// A system call's failure as an error; `what` tells what was tried.
pub(crate) fn refused(what: &'static str) -> impl FnOnce(std::io::Error) -> DirectError {
    move |cause| DirectError::Refused { what, cause }
}
