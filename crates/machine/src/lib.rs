//! Composition: from a machine specification to a machine with its devices, memory and clocks.
//!
//! This is the one place that knows all parts. A [`MachineSpec`] says what a machine is to be, a
//! [`Machine`] is one: guest RAM, the devices of the platform wired to each other, the clock that
//! they share and the timer thread. Its vCPUs are made by an `engine::Engine` and run on threads of
//! `lifecycle`, which also decides when time passes and when the machine is reset or saved.
//!
//! Parts: [`PortMap`] and [`MmioMap`] route accesses, [`VmClock`] and [`TimerThread`] are time,
//! `pc` and `pci_bus` are the wiring, `cpu_bus` what vCPUs see, `save` the machine's own sections, `stolen` what the host takes from vCPUs, [`host`] what
//! the host offers, [`EngineChoice`] which engine executes.
//!
//! Neighbours: `chipset`, `pci`, `virtio`, `storage` and `boot` are the parts, `interpreter` the engine; `lifecycle` drives.
//!
//! Invariants:
//! - Only this crate knows which device is where and which line leads where.
//! - What is built here never changes its shape while vCPUs run.
//! - Guest time passes only between [`Machine::start_time`] and [`Machine::stop_time`].

#![forbid(unsafe_code)]

mod boot_files;
mod bus;
mod clock;
mod cpu_bus;
mod engines;
mod error;
mod fw_cfg;
pub mod host;
mod listening;
mod machine;
mod pc;
mod pci_bus;
mod save;
mod spec;
mod stolen;
mod timers;

pub use boot_files::{BootFiles, NamedFile};
pub use bootdisk;
pub use bus::{AccessCount, MmioMap, PortMap};
pub use clock::{HostWallClock, VmClock};
pub use engines::{EngineChoice, KvmOffer, Selected, direct_execution, kvm_features};
pub use error::MachineError;
pub use import;
pub use machine::{HostSide, Machine, MachineStats, NetStats, RequestCount, TimerCount};
pub use network;
pub use spec::{CpuLevel, DiskSpec, MachineSpec, NetPort, NetSpec, Platform};
pub use storage::{self, RawDisk, StorageError};
pub use timers::TimerThread;
