//! Contracts between devices and the machine that holds them.
//!
//! A device sees no engine, no bus and no other device. It is reached through [`PortIo`] and
//! [`Mmio`], raises interrupts through an [`InterruptLine`] or a [`MsiSender`], reads time from a
//! [`GuestClock`] and asks to be called later through a [`Timer`]. Its life is [`Device`]: reset,
//! save, restore.
//!
//! Rules for an implementation:
//! - Calls come concurrently from several vCPUs and from timer and back-end threads: state is
//!   behind a lock of its own, taken for a short time and **never held while an interrupt line is
//!   set or a timer is armed from another device's lock** (lines lead into other devices).
//! - A call never blocks and never waits for a vCPU.
//! - Every register index and value is the guest's choice: unknown reads give all-ones, unknown
//!   writes do nothing.
//!
//! Neighbours: `chipset`, `pci`, `virtio` implement devices; `machine` implements lines, clocks
//! and timers and routes accesses; `engine` speaks of the same [`Answer`].

#![forbid(unsafe_code)]

mod access;
mod interrupt;
mod lifecycle;
pub mod testing;
mod time;

pub use access::{Answer, Mmio, PortIo, StopCause, Width};
pub use interrupt::{InterruptLine, Message, MsiSender, NoLine};
pub use lifecycle::Device;
pub use time::{GuestClock, Nanos, Timer, TimerCallback, Timers, WallClock};
