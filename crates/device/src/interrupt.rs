//! How a device raises interrupts.

use serde::{Deserialize, Serialize};

/// An input of an interrupt controller, as its device sees it.
///
/// Setting a level twice has no further effect; an edge-triggered input acts on the change from
/// low to high.
pub trait InterruptLine: Send + Sync {
    /// Drives the line high (`true`, asserted) or low.
    fn set(&self, level: bool);

    /// Drives the line high, then low: one edge.
    fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

/// A line that leads nowhere.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoLine;

impl InterruptLine for NoLine {
    fn set(&self, _level: bool) {}
}

/// An interrupt message: the address and data that a device or I/O APIC writes to the interrupt
/// address range `0xfeex_xxxx` (Intel SDM vol. 3A 11.11, "Message Signalled Interrupts").
///
/// ```
/// let message = device::Message { address: 0xfee0_1000, data: 0x4031 };
/// assert_eq!(message.destination(), 1);
/// assert_eq!(message.vector(), 0x31);
/// assert!(!message.logical());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Address bits: 19:12 destination, 3 redirection hint, 2 destination mode.
    pub address: u64,
    /// Data bits: 7:0 vector, 10:8 delivery mode, 14 level, 15 trigger mode.
    pub data: u32,
}

impl Message {
    /// Destination APIC id or logical set, 8 bits.
    pub const fn destination(self) -> u8 {
        (self.address >> 12) as u8
    }

    /// Whether the destination is logical rather than physical.
    pub const fn logical(self) -> bool {
        self.address & 1 << 2 != 0
    }

    /// Interrupt vector.
    pub const fn vector(self) -> u8 {
        self.data as u8
    }

    /// Delivery mode field, 0 to 7 (fixed, lowest priority, SMI, -, NMI, INIT, -, ExtINT).
    pub const fn delivery_mode(self) -> u8 {
        (self.data >> 8) as u8 & 7
    }

    /// Whether the interrupt is level-triggered.
    pub const fn level_triggered(self) -> bool {
        self.data & 1 << 15 != 0
    }
}

/// Delivers interrupt messages to local APICs.
pub trait MsiSender: Send + Sync {
    /// Delivers `message`; one to nobody is dropped, as on hardware.
    fn send(&self, message: Message);
}
