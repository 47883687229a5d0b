//! The pair of 8259A interrupt controllers (Intel data sheet 231468) with the edge/level control
//! registers of the PC chipset (Intel ICH9 data sheet 316972, 13.4).
//!
//! The master's output is INTR, which the machine leads to the processor as an external interrupt;
//! the processor's acknowledge cycle is [`Pic::acknowledge`]. The slave's output is the master's
//! input 2.
//!
//! One deliberate difference to the chip: a request by an edge stays latched when its line falls
//! before it is acknowledged (the chip answers with the spurious vector 7 then). Emulated devices
//! pulse their lines in no time, so that the chip's rule would lose interrupts. Level-triggered
//! requests, masks written between INTR and acknowledge, and restarts still give spurious vectors.
//!
//! The 8080 mode (CALL sequence) does not exist on a PC; its bit in ICW4 is ignored.
//!
//! Neighbours: devices drive [`Pic::line`]s, usually through [`crate::IsaLine`].

mod chip;
mod saved;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use device::{Answer, Device, InterruptLine, PortIo, Width};

use crate::ports;
use crate::sync::Driven;
use chip::Chip;

const MASTER: u16 = 0x20;
const SLAVE: u16 = 0xa0;
const ELCR: u16 = 0x4d0;
/// The master's input that the slave drives.
const CASCADE: u8 = 2;
/// Inputs that can be level-triggered: not the timer, keyboard and cascade, nor RTC and FPU.
const LEVEL_CAPABLE: [u8; 2] = [0xf8, 0xde];

/// Two cascaded 8259A: ports 0x20, 0x21, 0xa0, 0xa1, 0x4d0 and 0x4d1.
pub struct Pic {
    shared: Arc<Driven<State>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    master: Chip,
    slave: Chip,
}

struct Line {
    shared: Arc<Driven<State>>,
    irq: u8,
}

impl Pic {
    /// Ports of the two chips and of ELCR, as (first, count).
    pub const PORTS: [(u16, u16); 3] = [(MASTER, 2), (SLAVE, 2), (ELCR, 2)];

    /// A pair of controllers with output `intr`.
    pub fn new(intr: Arc<dyn InterruptLine>) -> Self {
        Self { shared: Arc::new(Driven::new(State::default(), intr, State::intr)) }
    }

    /// Input `irq`, 0 to 15. Input 2 is taken by the slave and leads nowhere.
    ///
    /// # Panics
    /// When there is no such input.
    pub fn line(&self, irq: u8) -> Arc<dyn InterruptLine> {
        assert!(irq < 16, "the PIC has no input {irq}");
        Arc::new(Line { shared: Arc::clone(&self.shared), irq })
    }

    /// Whether INTR is high.
    pub fn pending(&self) -> bool {
        self.shared.read(State::intr)
    }

    /// The processor's interrupt acknowledge: returns the vector and puts it in service. With
    /// nothing pending it is the spurious vector, input 7 of the chip that answers.
    pub fn acknowledge(&self) -> u8 {
        self.shared.update(State::acknowledge)
    }
}

impl State {
    fn intr(&self) -> bool {
        self.master.output()
    }

    /// Leads the slave's output to the master.
    fn cascade(&mut self) {
        self.master.set_input(CASCADE, self.slave.output());
    }

    /// Leads the slave's output to the master after the slave was acknowledged: its output falls
    /// meanwhile, so that a further request is a new edge.
    fn recascade(&mut self) {
        self.master.set_input(CASCADE, false);
        self.cascade();
    }

    fn set_input(&mut self, irq: u8, level: bool) {
        match irq {
            CASCADE => {}
            0..8 => self.master.set_input(irq, level),
            _ => {
                self.slave.set_input(irq - 8, level);
                self.cascade();
            }
        }
    }

    fn acknowledge(&mut self) -> u8 {
        let (input, vector) = self.master.acknowledge();
        if input != Some(CASCADE) {
            return vector;
        }
        let (_, vector) = self.slave.acknowledge();
        self.recascade();
        vector
    }

    fn read(&mut self, port: u16) -> u8 {
        let polls_slave = self.slave.poll;
        let value = match port {
            0x20 => self.master.read_command(),
            0x21 => self.master.read_data(),
            0xa0 => self.slave.read_command(),
            0xa1 => self.slave.read_data(),
            0x4d0 => self.master.level_triggered,
            0x4d1 => self.slave.level_triggered,
            _ => 0xff,
        };
        if polls_slave && !self.slave.poll {
            self.recascade();
        }
        value
    }

    fn write(&mut self, port: u16, value: u8) {
        match port {
            0x20 => self.master.write_command(value),
            0x21 => self.master.write_data(value),
            0xa0 => self.slave.write_command(value),
            0xa1 => self.slave.write_data(value),
            0x4d0 => self.master.set_level_triggered(value & LEVEL_CAPABLE[0]),
            0x4d1 => self.slave.set_level_triggered(value & LEVEL_CAPABLE[1]),
            _ => {}
        }
        self.cascade();
    }
}

impl InterruptLine for Line {
    fn set(&self, level: bool) {
        self.shared.update(|state| state.set_input(self.irq, level));
    }
}

impl PortIo for Pic {
    fn port_read(&self, port: u16, width: Width) -> Answer<u32> {
        let value = self
            .shared
            .update(|state| Answer::Done(ports::read_bytes(port, width, |port| state.read(port))));
        self.shared.settle();
        value
    }

    fn port_write(&self, port: u16, width: Width, value: u32) -> Answer<()> {
        self.shared.update(|state| {
            ports::write_bytes(port, width, value, |port, byte| state.write(port, byte));
        });
        Answer::Done(())
    }
}

impl Device for Pic {
    /// Inputs keep the level at which their devices drive them.
    fn reset(&self) {
        self.shared.update(|state| {
            state.master.reset();
            state.slave.reset();
            state.cascade();
        });
        self.shared.publish();
    }
}
