//! The devices of a PC that a stock kernel probes on its way to a shell.
//!
//! Each device is a module of its own with a runtime type, a private saved type and its tests.
//! Devices know no bus, no engine and no other device: they are reached through
//! [`device::PortIo`] or [`device::Mmio`], raise interrupts through lines or messages that they
//! got at construction, and read time from a [`device::GuestClock`]. The values that a device
//! shows are derived from that clock when it is asked; a timer is armed only where an interrupt
//! has to come by itself, so an idle guest costs nothing.
//!
//! Key types: [`Uart`], [`Pic`], [`Pit`], [`IoApic`] with [`IsaLine`], [`AcpiPm`], [`KvmClock`],
//! [`StealTime`], [`Rtc`], [`I8042`], [`FwCfg`], [`DebugExit`].
//!
//! Neighbours: `device` and `backend` hold the contracts, `state` the saved form; `machine` builds
//! the devices, routes accesses to them and gives them clocks, timers and lines; `boot` describes
//! them to the guest in ACPI tables.

#![forbid(unsafe_code)]

mod acpi_pm;
mod debug_exit;
mod fw_cfg;
#[cfg(test)]
mod hammer;
mod i8042;
mod ioapic;
mod kvm_clock;
mod kvm_steal;
mod pic;
mod pit;
mod ports;
mod rate;
mod rtc;
mod sync;
mod uart;

pub use acpi_pm::AcpiPm;
pub use debug_exit::DebugExit;
pub use fw_cfg::{DmaMemory, FwCfg, FwCfgItems, MAX_TRANSFER};
pub use i8042::I8042;
pub use ioapic::{IoApic, IsaLine};
pub use kvm_clock::{CpuidLeaf, GuestMemoryWriter, GuestTsc, KvmClock};
pub use kvm_steal::{StealTime, StolenTime};
pub use pic::Pic;
pub use pit::Pit;
pub use rtc::{MemorySize, Rtc};
pub use uart::Uart;
