//! Contracts between engines, which execute guest code, and the machine around them.
//!
//! An [`Engine`] makes [`Vcpu`]s; a vCPU runs on a thread of the machine and reaches the rest of
//! the world only through a [`CpuBus`] (ports, memory-mapped devices, platform MSRs, hypercalls)
//! and its `lapic::Mailbox` (interrupts from others). Its whole state is a [`VcpuState`], the same
//! for every engine. What the CPU claims to be is a [`CpuProfile`], which belongs to the VM.
//!
//! Invariants:
//! - No engine names a device, a bus or a guest ABI; no device names an engine.
//! - [`Vcpu::run`] returns only at instruction boundaries.
//! - A bus call never blocks and never waits for another vCPU.
//!
//! Neighbours: `interpreter`, `translator` and `kvm` implement [`Engine`]; `machine`
//! implements [`CpuBus`]; `lifecycle` drives [`Vcpu`]s.

#![forbid(unsafe_code)]

mod bus;
mod contract;
mod debugging;
mod observation;
mod profile;
mod rendezvous;
mod speculation;
mod state;
pub mod testing;
mod tsc;

pub use bus::{CpuBus, HypercallFrame};
pub use contract::{
    Engine, EngineError, ExitSite, Kick, StopReason, TripleFault, Vcpu, VcpuConfig, VcpuExit,
    VcpuStats, WriteLog,
};
pub use debugging::{DebugStop, Debugging, WatchKind, Watchpoint};
pub use observation::{Activity, Observer, Sink, TraceEvent, Traced};
pub use profile::{CpuProfile, Level, ProfileError, Vendor};
pub use rendezvous::{Rendezvous, Withdrawn};
pub use state::{
    Control, Debug, General, PendingEvent, PendingEvents, RunState, Segments, Shadow, VcpuState,
};
pub use tsc::TscScale;
