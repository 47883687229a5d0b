//! Composition: from a machine specification to a machine with its devices and memory.
#![forbid(unsafe_code)]

mod bus;
mod clock;
mod engines;
mod error;
pub mod host;
mod spec;
mod timers;

pub use bus::{AccessCount, MmioMap, PortMap};
pub use clock::{HostWallClock, VmClock};
pub use engines::{EngineChoice, Selected};
pub use error::MachineError;
pub use spec::{CpuLevel, MachineSpec, Platform};
pub use timers::TimerThread;
