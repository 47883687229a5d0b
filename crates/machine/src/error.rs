//! Why a machine cannot be made, saved or restored.

use std::io;

use boot::BootError;
use engine::{EngineError, ProfileError};
use memory::MemoryError;
use state::StateError;
use thiserror::Error;

/// Why a machine cannot be made, saved or restored.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MachineError {
    /// More memory than the host could ever give.
    #[error(
        "guest memory of {asked_mib} MiB is more than this host has ({host_mib} MiB of RAM and \
         swap); use a smaller --memory"
    )]
    MoreThanHost {
        /// Memory asked for, MiB, rounded up.
        asked_mib: u64,
        /// RAM and swap of the host, MiB.
        host_mib: u64,
    },
    /// A number of vCPUs that no machine has.
    #[error("a machine has at least 1 CPU; use --cpus 1 or more")]
    NoCpus,
    /// More vCPUs than a machine can have.
    #[error("{count} CPUs are more than a machine can have; use --cpus {most} or less")]
    TooManyCpus {
        /// CPUs asked for.
        count: u32,
        /// The most that there can be.
        most: u32,
    },
    /// More disks than a machine has slots for.
    #[error("{count} disks are more than a machine has slots for; use --disk at most {most} times")]
    TooManyDisks {
        /// Disks asked for.
        count: usize,
        /// The most that there can be.
        most: usize,
    },
    /// There are no slots for so many.
    #[error("{count} network cards are more than there are slots for, {most}; leave out a --net")]
    TooManyNets {
        /// Networks asked for.
        count: usize,
        /// The most that there can be.
        most: usize,
    },
    /// The disks are not those that the machine was made with.
    #[error(
        "the machine has {wanted} and was given {given}; restore it with the disks that it had, in \
         the same order"
    )]
    OtherDisks {
        /// The disks of the specification.
        wanted: String,
        /// The disks that were opened.
        given: String,
    },
    /// The network cards are not those that the machine was made with.
    #[error(
        "the machine has {wanted} and was given {given}; restore it with the networks that it had, \
         in the same order"
    )]
    OtherNets {
        /// The cards of the specification.
        wanted: String,
        /// The networks that were given.
        given: String,
    },
    /// The guest was restored without its kernel and wants to be reset.
    #[error("the guest cannot be reset: this machine was made without a kernel")]
    NoKernel,
    /// Two devices at one address: a bug in the wiring.
    #[error("devices {device} and {other} overlap at address {address:#x}")]
    Overlap {
        /// The device that is added.
        device: &'static str,
        /// The device that is there.
        other: &'static str,
        /// First address of the former.
        address: u64,
    },
    /// A saved machine needs a CPU feature that this host lacks.
    #[error("the saved machine uses CPU feature {feature}, which this host lacks")]
    SavedFeature {
        /// The feature's name.
        feature: &'static str,
    },
    /// The host failed.
    #[error("cannot {action}: {cause}")]
    Host {
        /// What was tried, as a verb.
        action: &'static str,
        /// What the host said.
        cause: io::Error,
    },
    /// Kernel, initramfs, command line or memory size.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Guest RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The CPU profile.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Saved state.
    #[error(transparent)]
    State(#[from] StateError),
}
