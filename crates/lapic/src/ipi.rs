//! Interrupt messages that one APIC sends to others, and the decoding of the interrupt command
//! register (Intel SDM vol. 3A 11.6.1).

use crate::Destination;

/// What a message asks of its destinations (Intel SDM vol. 3A 11.6.1, "Delivery Mode").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The vector, to every destination.
    Fixed,
    /// The vector, to the one destination that runs at the lowest priority.
    LowestPriority,
    /// System-management interrupt.
    Smi,
    /// Non-maskable interrupt; the vector is ignored.
    Nmi,
    /// INIT; the vector is ignored.
    Init,
    /// Start-up IPI: a processor that waits for it starts at physical address `vector << 12`.
    Startup,
    /// The vector is to be fetched from the 8259; the message's own vector is ignored.
    ExtInt,
}

impl Delivery {
    /// The meaning of the three-bit field in the interrupt command register; `None` for the
    /// reserved values 3 and 7.
    pub const fn from_icr(field: u32) -> Option<Self> {
        match field & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            2 => Some(Self::Smi),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::Startup),
            _ => None,
        }
    }

    /// The meaning of the three-bit field in the data of an interrupt message from a device or
    /// I/O APIC (Intel SDM vol. 3A 11.11.2); `None` for the reserved values 3 and 6.
    pub const fn from_message(field: u8) -> Option<Self> {
        match field & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            2 => Some(Self::Smi),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            7 => Some(Self::ExtInt),
            _ => None,
        }
    }

    /// Whether the vector goes through IRR, so that it must not be below 16 and that a
    /// software-disabled APIC does not take it.
    pub const fn is_maskable(self) -> bool {
        matches!(self, Self::Fixed | Self::LowestPriority)
    }
}

/// An interprocessor interrupt on its way to [`Fabric::deliver`](crate::Fabric::deliver).
///
/// Interprocessor interrupts are edge-triggered: the trigger mode of the interrupt command
/// register only matters for the INIT level de-assert, which processors since the Pentium 4
/// ignore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipi {
    /// APIC id of the sender, which [`Destination::AllButSelf`] leaves out.
    pub source: u32,
    /// Who is to get it.
    pub destination: Destination,
    /// What it asks.
    pub delivery: Delivery,
    /// The vector; for [`Delivery::Startup`] the page number of the start address.
    pub vector: u8,
}
