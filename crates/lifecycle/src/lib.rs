//! The VM driver: one VM from its first instruction to its end.
//!
//! A [`Vm`] is a machine, one thread for each vCPU, and one driver thread that owns the VM's
//! state. Everybody else sends the driver requests; the driver decides and acts:
//!
//! ```text
//!            start, resume                 guest ends, kill, error
//!  Created ────────────────► Running ─────────────────────────────► Stopped(Outcome)
//!     ▲                      │     ▲                                   ▲
//!     │ create     pause,    │     │ resume, run_for                   │
//!            budget spent    ▼     │                                   │
//!                            Paused ───────────────────────────────────┘
//!                              ▲                  kill
//!                              │ restore
//! ```
//!
//! `Created` and `Paused` differ only in whether the guest has executed anything. A reset goes
//! through parked vCPUs and back to where it came from. [`Vm::save`] pauses a running VM for as
//! long as it takes; [`Vm::snapshot`] writes its memory while it goes on. [`Vm::hop`] puts vCPUs of
//! another engine in the place of those that there are.
//!
//! Order of a pause: vCPUs leave guest code, then devices finish the requests that they execute, then
//! timers stop, then the clock. From then on nothing
//! changes the machine, and it can be saved or reset. Going on is the reverse.
//!
//! Key types: [`Vm`], [`VmConfig`], [`Policy`], [`Outcome`], [`VmStats`], [`SnapshotDir`],
//! [`SnapshotTree`].
//!
//! Neighbours: `machine` builds what is driven; engines execute; the command line starts a VM,
//! turns signals into requests and an [`Outcome`] into an exit status.
//!
//! Invariants:
//! - A vCPU is touched only by its own thread, the machine as a whole only by the driver.
//! - The driver never waits for anything but its queue, for vCPUs to park, for requests that devices
//!   execute, and at the end for disks to be flushed.
//! - A VM ends once; its outcome never changes.

#![forbid(unsafe_code)]

mod config;
mod driver;
mod error;
mod live;
mod observed;
mod outcome;
mod snapshot;
#[cfg(test)]
mod snapshot_tests;
mod stats;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod vcpu_thread;
mod vm;

pub use backend::{
    ConsoleInput, ConsoleOutput, Counter, Disk, Frame, MacAddress, NetBackend, Offload, Wake,
};
pub use config::{Policy, RestoreOptions, TripleFaultPolicy, VmConfig};
pub use driver::{DebugListener, DebugNotice};
pub use engine::{Activity, TraceEvent, Traced};
pub use error::VmError;
pub use live::{SnapshotOrder, SnapshotTaken, WhileParked};
pub use machine::{
    BootFiles, CpuLevel, EngineChoice, KvmOffer, Machine, MachineError, MachineSpec, MachineStats,
    NamedFile, NetPort, NetStats, Platform, RawDisk, RequestCount, Selected, StorageError,
    TimerCount, bootdisk, direct_execution, host, import, kvm_features, network, storage,
};
pub use observed::{Observation, Profile, Profiler, Sample, TraceSink};
pub use outcome::{Outcome, Progress};
pub use snapshot::{
    BaseEntry, CpuEntry, DiskEntry, FileEntry, Manifest, PendingSnapshot, SectionEntry,
    SnapshotDir, SnapshotError, SnapshotTree,
};
pub use stats::VmStats;
pub use vm::Vm;
