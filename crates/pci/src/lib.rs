//! PCI Express in the shape of q35 (PCI Local Bus 3.0, PCI Express Base 4.0; Intel 82G33 data
//! sheet 316966 and ICH9 data sheet 316972 for the two bridges).
//!
//! One bus, 0, with functions on it and nothing behind bridges. The guest reaches configuration
//! space through ports 0xcf8 and 0xcfc and through ECAM, and the functions' memory where it has
//! put their BARs. Addresses of RAM and of platform devices come before BARs: a BAR that lies over
//! them, or over another function's, is simply not reached there.
//!
//! What a function is made of: [`ConfigSpace`] with its [`Bar`]s and capabilities, [`Msix`],
//! [`SharedLine`]. What functions are reached through: [`Root`], [`Function`]. The bridges of the
//! platform: [`HostBridge`], [`LpcBridge`].
//!
//! Neighbours: `virtio` implements functions; `machine` puts the bus at its ports and addresses
//! and wires the interrupts; `boot` describes both in the ACPI tables.
//!
//! Invariants:
//! - Every register offset, width and value is the guest's choice; nobody there reads as all-ones.
//! - A function never calls the bus.
//! - The map of BARs is made from the functions' registers alone: it is no state of its own.

#![forbid(unsafe_code)]

mod address;
mod config;
mod express;
mod firmware;
mod intx;
mod msix;
mod q35;
mod root;

pub use address::Address;
pub use config::{Bar, ConfigSpace, Identity, MappedBar};
pub use firmware::Assignment;
pub use intx::SharedLine;
pub use msix::{Msix, MsixCapability, SavedVector};
pub use q35::{HostBridge, LpcBridge, PIRQS, ShadowRam, pirq};
pub use root::{Function, Root, Window};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Offsets of registers of every function (PCI Local Bus 3.0, 6.1).
pub mod register {
    /// Command, 16 bits.
    pub const COMMAND: u16 = 0x04;
    /// Status, 16 bits.
    pub const STATUS: u16 = 0x06;
    /// The first of six BARs.
    pub const BAR0: u16 = 0x10;
    /// Interrupt line, 8 bits: software's.
    pub const INTERRUPT_LINE: u16 = 0x3c;
    /// Interrupt pin, 8 bits: 0 for none, 1 for INTA#.
    pub const INTERRUPT_PIN: u16 = 0x3d;
}

/// Bits of the command register.
pub mod command {
    /// Memory BARs are decoded.
    pub const MEMORY: u16 = 1 << 1;
    /// The function may access memory, and send messages.
    pub const BUS_MASTER: u16 = 1 << 2;
    /// INTx# is not asserted.
    pub const INTX_DISABLE: u16 = 1 << 10;
}

/// Status register: INTx# is pending.
pub const STATUS_INTERRUPT: u16 = 1 << 3;

/// A panic elsewhere is no reason to panic here too: every state of a device is one that a guest
/// could have produced.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
