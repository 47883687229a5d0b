//! A redirection entry (82093AA data sheet, 3.2.4 "I/O redirection table registers").

use device::Message;

const VECTOR: u64 = 0xff;
const DELIVERY_MODE: u64 = 7 << 8;
const LOGICAL: u64 = 1 << 11;
const DELIVERY_STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL_TRIGGERED: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const DESTINATION_SHIFT: u32 = 56;

/// Bits that software writes; 55:17 are reserved.
const WRITABLE: u64 = 0xff00_0000_0001_afff;
const READ_ONLY: u64 = DELIVERY_STATUS | REMOTE_IRR;

const LOWEST_PRIORITY: u64 = 1 << 8;
const MESSAGE_BASE: u64 = 0xfee0_0000;
const MESSAGE_ASSERT: u32 = 1 << 14;
const MESSAGE_LEVEL: u32 = 1 << 15;

/// One redirection entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry(u64);

impl Entry {
    /// As after power-on.
    pub(super) const MASKED: Self = Self(MASKED);

    /// The entry of these bits, if an entry can hold them.
    pub(super) fn from_bits(bits: u64) -> Option<Self> {
        (bits & !(WRITABLE | REMOTE_IRR) == 0).then_some(Self(bits))
    }

    pub(super) fn bits(self) -> u64 {
        self.0
    }

    pub(super) fn low(self) -> u32 {
        self.0 as u32
    }

    pub(super) fn high(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub(super) fn set_low(&mut self, value: u32) {
        let writable = WRITABLE & !READ_ONLY & 0xffff_ffff;
        self.0 = self.0 & !writable | u64::from(value) & writable;
        // An edge-triggered entry waits for no EOI; software switches to edge and back to end an
        // interrupt where there is no EOI register.
        if !self.level_triggered() {
            self.0 &= !REMOTE_IRR;
        }
    }

    pub(super) fn set_high(&mut self, value: u32) {
        self.0 = self.0 & 0xffff_ffff | u64::from(value) << 32 & WRITABLE;
    }

    pub(super) fn level_triggered(self) -> bool {
        self.0 & LEVEL_TRIGGERED != 0
    }

    /// The input rose, or is sampled high: the message to send, if the entry sends one now.
    pub(super) fn asserted(&mut self) -> Option<Message> {
        if self.0 & (MASKED | REMOTE_IRR) != 0 {
            return None;
        }
        if self.level_triggered() && self.awaits_eoi() {
            self.0 |= REMOTE_IRR;
        }
        Some(self.message())
    }

    /// The end of interrupt `vector`: whether this entry waited for it.
    pub(super) fn end(&mut self, vector: u8) -> bool {
        let ends = self.0 & REMOTE_IRR != 0 && self.0 & VECTOR == u64::from(vector);
        if ends {
            self.0 &= !REMOTE_IRR;
        }
        ends
    }

    /// Only fixed and lowest-priority interrupts are ended; NMI, SMI, INIT and ExtINT are edges
    /// whatever the trigger mode says.
    fn awaits_eoi(self) -> bool {
        self.0 & DELIVERY_MODE <= LOWEST_PRIORITY
    }

    fn message(self) -> Message {
        let destination = self.0 >> DESTINATION_SHIFT;
        let logical = u64::from(self.0 & LOGICAL != 0);
        let level = self.level_triggered() && self.awaits_eoi();
        Message {
            address: MESSAGE_BASE | destination << 12 | logical << 2,
            data: (self.0 & (VECTOR | DELIVERY_MODE)) as u32
                | MESSAGE_ASSERT
                | if level { MESSAGE_LEVEL } else { 0 },
        }
    }
}
