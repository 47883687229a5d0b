//! The I/O APIC (Intel 82093AA data sheet 290566) in the version of PCI chipsets (version 0x20,
//! with an EOI register; Intel ICH9 data sheet 316972, 13.5).
//!
//! Each of the 24 inputs has a redirection entry that makes a [`Message`] of an interrupt. Lines
//! carry "asserted" and not a voltage, so the polarity bit is stored and has no effect. A
//! level-triggered entry sends once and then waits, with Remote IRR set, for the EOI of its vector:
//! a write to the EOI register, or the broadcast of a local APIC through [`IoApic::eoi`]. A line
//! that is then still asserted sends again. An edge on a masked entry is lost, as on the chip.
//!
//! [`IsaLine`] leads an ISA interrupt to the PIC and to the I/O APIC, as a PC's board does.
//!
//! Neighbours: `lapic` receives the messages through the machine; `boot` describes the inputs in
//! the MADT.

mod entry;
mod isa;
mod saved;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use device::{Answer, Device, InterruptLine, Message, Mmio, MsiSender};

use crate::sync::lock;
use entry::Entry;
pub use isa::IsaLine;

/// Inputs.
const INPUTS: usize = 24;
/// The version register: 24 entries, version 0x20.
const VERSION: u32 = (INPUTS as u32 - 1) << 16 | 0x20;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;

const REGISTER_ID: u8 = 0x00;
const REGISTER_VERSION: u8 = 0x01;
const REGISTER_ARBITRATION: u8 = 0x02;
const FIRST_ENTRY: u8 = 0x10;
const ID_MASK: u32 = 0x0f00_0000;

/// An I/O APIC with 24 inputs.
pub struct IoApic {
    shared: Arc<Shared>,
}

struct Shared {
    sender: Arc<dyn MsiSender>,
    state: Mutex<State>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    select: u8,
    id: u32,
    /// Bit n: input n is asserted.
    asserted: u32,
    entries: [Entry; INPUTS],
}

struct Line {
    shared: Arc<Shared>,
    input: usize,
}

impl IoApic {
    /// Where a PC has it, in guest-physical memory.
    pub const BASE: u64 = 0xfec0_0000;
    /// Bytes that its registers take.
    pub const SIZE: u64 = 0x1000;
    /// Number of inputs; the global interrupts of the PC's only I/O APIC are 0 to 23.
    pub const INPUTS: u8 = INPUTS as u8;

    /// An I/O APIC that sends its interrupts through `sender`.
    pub fn new(sender: Arc<dyn MsiSender>) -> Self {
        Self { shared: Arc::new(Shared { sender, state: Mutex::new(State::new()) }) }
    }

    /// Input `gsi`, 0 to 23.
    ///
    /// # Panics
    /// When there is no such input.
    pub fn line(&self, gsi: u8) -> Arc<dyn InterruptLine> {
        assert!(gsi < Self::INPUTS, "the I/O APIC has no input {gsi}");
        Arc::new(Line { shared: Arc::clone(&self.shared), input: usize::from(gsi) })
    }

    /// A local APIC broadcasts the end of the level-triggered interrupt `vector`.
    pub fn eoi(&self, vector: u8) {
        self.shared.update(|state, messages| state.eoi(vector, messages));
    }
}

/// Messages of one operation, sent after the lock is released.
type Messages = Vec<Message>;

impl Shared {
    fn update(&self, change: impl FnOnce(&mut State, &mut Messages)) {
        // Does not allocate until a message is pushed.
        let mut messages = Messages::new();
        change(&mut lock(&self.state), &mut messages);
        for message in messages {
            self.sender.send(message);
        }
    }
}

impl State {
    fn new() -> Self {
        Self { select: 0, id: 0, asserted: 0, entries: [Entry::MASKED; INPUTS] }
    }

    fn set_input(&mut self, input: usize, level: bool, messages: &mut Messages) {
        let bit = 1 << input;
        let rises = level && self.asserted & bit == 0;
        self.asserted = if level { self.asserted | bit } else { self.asserted & !bit };
        if rises {
            messages.extend(self.entries[input].asserted());
        }
    }

    fn eoi(&mut self, vector: u8, messages: &mut Messages) {
        for input in 0..INPUTS {
            if self.entries[input].end(vector) {
                self.resample(input, messages);
            }
        }
    }

    /// A level-triggered entry that became ready takes the line as it is.
    fn resample(&mut self, input: usize, messages: &mut Messages) {
        let entry = &mut self.entries[input];
        if entry.level_triggered() && self.asserted & 1 << input != 0 {
            messages.extend(entry.asserted());
        }
    }

    fn read(&self) -> u32 {
        match self.select {
            REGISTER_ID | REGISTER_ARBITRATION => self.id,
            REGISTER_VERSION => VERSION,
            _ => match self.selected_entry() {
                Some((input, false)) => self.entries[input].low(),
                Some((input, true)) => self.entries[input].high(),
                None => u32::MAX,
            },
        }
    }

    fn write(&mut self, value: u32, messages: &mut Messages) {
        if self.select == REGISTER_ID {
            self.id = value & ID_MASK;
            return;
        }
        match self.selected_entry() {
            Some((input, false)) => {
                self.entries[input].set_low(value);
                self.resample(input, messages);
            }
            Some((input, true)) => self.entries[input].set_high(value),
            None => {}
        }
    }

    /// The input whose redirection entry is selected, and whether its upper half is.
    fn selected_entry(&self) -> Option<(usize, bool)> {
        let index = usize::from(self.select.checked_sub(FIRST_ENTRY)?);
        (index / 2 < INPUTS).then_some((index / 2, index % 2 == 1))
    }
}

impl InterruptLine for Line {
    fn set(&self, level: bool) {
        self.shared.update(|state, messages| state.set_input(self.input, level, messages));
    }
}

impl Mmio for IoApic {
    fn mmio_read(&self, offset: u64, data: &mut [u8]) -> Answer<()> {
        let value = match offset {
            SELECT => u32::from(lock(&self.shared.state).select),
            WINDOW => lock(&self.shared.state).read(),
            _ => u32::MAX,
        };
        data.fill(0xff);
        let bytes = value.to_le_bytes();
        let length = data.len().min(bytes.len());
        data[..length].copy_from_slice(&bytes[..length]);
        Answer::Done(())
    }

    fn mmio_write(&self, offset: u64, data: &[u8]) -> Answer<()> {
        let mut bytes = [0; 4];
        let length = data.len().min(bytes.len());
        bytes[..length].copy_from_slice(&data[..length]);
        let value = u32::from_le_bytes(bytes);
        self.shared.update(|state, messages| match offset {
            SELECT => state.select = value as u8,
            WINDOW => state.write(value, messages),
            EOI => state.eoi(value as u8, messages),
            _ => {}
        });
        Answer::Done(())
    }
}

impl Device for IoApic {
    /// Inputs keep the level at which their devices drive them.
    fn reset(&self) {
        let mut state = lock(&self.shared.state);
        *state = State { asserted: state.asserted, ..State::new() };
    }
}
