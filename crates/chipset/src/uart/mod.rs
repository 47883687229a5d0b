//! The serial port: a 16550A UART (TI/National Semiconductor PC16550D data sheet, SNLS378).
//!
//! The line is infinitely fast: a byte written to THR is at the back end at once, so THRE and TEMT
//! are always set, and received bytes below the FIFO's trigger level are reported as a time-out at
//! once instead of after four character times. Baud rate, word length and parity are stored and
//! have no effect. INTR reaches the interrupt line only while OUT2 is set, as on every PC.
//!
//! Input of the back end waits in a queue of its own and moves into the guest-visible FIFO of 16
//! bytes (1 byte while FIFOs are off) as the guest makes room, so that host input never overruns.
//!
//! vm-superio's `Serial` was considered and not taken: it has no FCR (so no trigger level, no FIFO
//! reset and a 16550A that cannot be switched to a 16450), combines THRE and data interrupts into
//! an IIR value that means line status, drops a pending data interrupt when RBR or IIR is read
//! with bytes left, knows no overrun, modem-status or time-out interrupt, shows a FIFO of 64 bytes
//! in loopback, which Linux takes for another chip, and raises edges instead of driving a level.
//!
//! Neighbours: `backend` ([`ConsoleOutput`], [`ConsoleInput`]) is the host side.

mod registers;
mod saved;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use backend::{ConsoleInput, ConsoleOutput};
use device::{Answer, Device, InterruptLine, PortIo, Width};

use crate::ports;
use crate::sync::Driven;
use registers::{Fcr, Ier, Iir, Lcr, Lsr, Mcr, Msr, Register};

/// Depth of the 16550's FIFOs, in bytes.
const FIFO: usize = 16;
/// Bytes of host input that wait for the guest to make room.
const BACKLOG: usize = 1024;
/// Divisor for 9,600 baud at 1.8432 MHz, as firmware leaves it.
const DEFAULT_DIVISOR: u16 = 12;

/// A 16550A UART at eight consecutive ports.
pub struct Uart {
    base: u16,
    output: Arc<dyn ConsoleOutput>,
    state: Driven<State>,
}

#[derive(Clone, Debug)]
struct State {
    ier: u8,
    /// FCR as last written; its two reset bits clear themselves.
    fcr: u8,
    lcr: u8,
    mcr: u8,
    /// Only the error bits; the rest of LSR is derived.
    lsr_errors: u8,
    /// Only the delta bits; the inputs are derived.
    msr_deltas: u8,
    scratch: u8,
    divisor: u16,
    /// THR became empty, or its interrupt was enabled, since IIR last reported it.
    thre_pending: bool,
    /// What the guest can read.
    fifo: VecDeque<u8>,
    /// What the host offered and the FIFO had no room for.
    backlog: VecDeque<u8>,
}

impl Uart {
    /// First port of COM1, whose interrupt is [`Uart::COM1_IRQ`].
    pub const COM1: u16 = 0x3f8;
    /// ISA interrupt of COM1.
    pub const COM1_IRQ: u8 = 4;
    /// Ports that a UART takes.
    pub const PORTS: u16 = 8;

    /// A UART at `base`, interrupting through `line` and sending to `output`.
    pub fn new(base: u16, line: Arc<dyn InterruptLine>, output: Arc<dyn ConsoleOutput>) -> Self {
        let level = |state: &State| state.intr();
        Self { base, output, state: Driven::new(State::default(), line, level) }
    }

    fn write_register(&self, register: Register, value: u8) {
        self.state.update(|state| match register {
            Register::Data => self.transmit(state, value),
            _ => state.write(register, value),
        });
    }

    fn transmit(&self, state: &mut State, value: u8) {
        if state.divisor_latched() {
            state.divisor = state.divisor & 0xff00 | u16::from(value);
        } else {
            state.thre_pending = true;
            match state.loopback() {
                true => state.receive_looped(value),
                false => self.output.write(&[value]),
            }
        }
    }
}

impl PortIo for Uart {
    fn port_read(&self, port: u16, width: Width) -> Answer<u32> {
        let read = |port: u16| match Register::at(port.wrapping_sub(self.base)) {
            Some(register) => self.state.update(|state| state.read(register)),
            None => 0xff,
        };
        Answer::Done(ports::read_bytes(port, width, read))
    }

    fn port_write(&self, port: u16, width: Width, value: u32) -> Answer<()> {
        ports::write_bytes(port, width, value, |port, byte| {
            if let Some(register) = Register::at(port.wrapping_sub(self.base)) {
                self.write_register(register, byte);
            }
        });
        Answer::Done(())
    }
}

impl ConsoleInput for Uart {
    fn push(&self, bytes: &[u8]) -> usize {
        self.state.update(|state| {
            let taken = bytes.len().min(BACKLOG - state.backlog.len());
            state.backlog.extend(&bytes[..taken]);
            state.refill();
            taken
        })
    }

    fn room(&self) -> usize {
        self.state.read(|state| BACKLOG - state.backlog.len())
    }
}

impl Device for Uart {
    fn reset(&self) {
        self.state.update(|state| *state = State::default());
        self.state.publish();
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            lsr_errors: 0,
            msr_deltas: 0,
            scratch: 0,
            divisor: DEFAULT_DIVISOR,
            thre_pending: false,
            fifo: VecDeque::with_capacity(FIFO),
            backlog: VecDeque::new(),
        }
    }
}

impl State {
    fn read(&mut self, register: Register) -> u8 {
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        match register {
            Register::Data if self.divisor_latched() => divisor_low,
            Register::InterruptEnable if self.divisor_latched() => divisor_high,
            Register::Data => self.take_received(),
            Register::InterruptEnable => self.ier,
            Register::InterruptIdOrFifo => self.identify(),
            Register::LineControl => self.lcr,
            Register::ModemControl => self.mcr,
            Register::LineStatus => {
                let status = self.line_status();
                self.lsr_errors = 0;
                status
            }
            Register::ModemStatus => {
                let status = self.modem_inputs() | self.msr_deltas;
                self.msr_deltas = 0;
                status
            }
            Register::Scratch => self.scratch,
        }
    }

    fn write(&mut self, register: Register, value: u8) {
        match register {
            Register::InterruptEnable if self.divisor_latched() => {
                self.divisor = self.divisor & 0xff | u16::from(value) << 8;
            }
            Register::InterruptEnable => self.enable_interrupts(value & Ier::ALL),
            Register::InterruptIdOrFifo => self.control_fifo(value),
            Register::LineControl => self.lcr = value,
            Register::ModemControl => self.control_modem(value & Mcr::ALL),
            Register::Scratch => self.scratch = value,
            // The status registers are read-only (writing them is for factory tests).
            Register::Data | Register::LineStatus | Register::ModemStatus => {}
        }
    }

    /// The level of the interrupt line.
    fn intr(&self) -> bool {
        let gate = self.mcr & Mcr::OUT2 != 0 && !self.loopback();
        gate && self.pending() != Iir::NONE
    }

    /// The pending interrupt of the highest priority, as IIR bits 3:0 (data sheet, table 4).
    fn pending(&self) -> u8 {
        let enabled = |bit: u8| self.ier & bit != 0;
        if enabled(Ier::LINE_STATUS) && self.lsr_errors != 0 {
            Iir::LINE_STATUS
        } else if enabled(Ier::RECEIVED) && !self.fifo.is_empty() {
            if self.fifo.len() >= self.trigger_level() { Iir::RECEIVED } else { Iir::TIME_OUT }
        } else if enabled(Ier::TRANSMITTER_EMPTY) && self.thre_pending {
            Iir::TRANSMITTER_EMPTY
        } else if enabled(Ier::MODEM_STATUS) && self.msr_deltas != 0 {
            Iir::MODEM_STATUS
        } else {
            Iir::NONE
        }
    }

    fn identify(&mut self) -> u8 {
        let pending = self.pending();
        if pending == Iir::TRANSMITTER_EMPTY {
            self.thre_pending = false;
        }
        if self.fifo_enabled() { pending | Iir::FIFO_ENABLED } else { pending }
    }

    fn enable_interrupts(&mut self, ier: u8) {
        // The holding register is empty whenever the guest can look, so that enabling its
        // interrupt raises it; Linux tests for this (serial8250_THRE_test).
        if ier & !self.ier & Ier::TRANSMITTER_EMPTY != 0 {
            self.thre_pending = true;
        }
        self.ier = ier;
    }

    fn control_fifo(&mut self, value: u8) {
        let toggled = (value ^ self.fcr) & Fcr::ENABLE != 0;
        if toggled || value & Fcr::CLEAR_RECEIVED != 0 && value & Fcr::ENABLE != 0 {
            self.fifo.clear();
        }
        // With FIFOs off the other bits are not programmed.
        self.fcr = if value & Fcr::ENABLE != 0 { value & Fcr::STORED } else { 0 };
        self.refill();
    }

    fn control_modem(&mut self, mcr: u8) {
        let before = self.modem_inputs();
        self.mcr = mcr;
        let after = self.modem_inputs();
        let changed = before ^ after;
        // The ring indicator reports only its trailing edge.
        let ring_ended = changed & before & Msr::RI;
        self.msr_deltas |= (changed & !Msr::RI | ring_ended) >> 4;
        self.refill();
    }

    fn take_received(&mut self) -> u8 {
        let byte = self.fifo.pop_front().unwrap_or(0);
        self.refill();
        byte
    }

    fn receive_looped(&mut self, byte: u8) {
        if self.fifo.len() < self.fifo_depth() {
            self.fifo.push_back(byte);
        } else {
            self.lsr_errors |= Lsr::OVERRUN;
            // Without FIFOs the new character replaces the one that was not read in time.
            if !self.fifo_enabled() {
                self.fifo[0] = byte;
            }
        }
    }

    /// Moves host input into the FIFO; the line is cut while in loopback.
    fn refill(&mut self) {
        if self.loopback() {
            return;
        }
        let room = self.fifo_depth().saturating_sub(self.fifo.len());
        let count = room.min(self.backlog.len());
        self.fifo.extend(self.backlog.drain(..count));
    }

    fn line_status(&self) -> u8 {
        let ready = if self.fifo.is_empty() { 0 } else { Lsr::DATA_READY };
        ready | self.lsr_errors | Lsr::HOLDING_EMPTY | Lsr::TRANSMITTER_EMPTY
    }

    /// MSR bits 7:4: a terminal that is always there, or the own outputs in loopback.
    fn modem_inputs(&self) -> u8 {
        if !self.loopback() {
            return Msr::CTS | Msr::DSR | Msr::DCD;
        }
        let wires = [
            (Mcr::RTS, Msr::CTS),
            (Mcr::DTR, Msr::DSR),
            (Mcr::OUT1, Msr::RI),
            (Mcr::OUT2, Msr::DCD),
        ];
        wires.iter().filter(|(from, _)| self.mcr & from != 0).map(|(_, to)| to).sum()
    }

    fn trigger_level(&self) -> usize {
        if !self.fifo_enabled() {
            return 1;
        }
        [1, 4, 8, 14][usize::from(self.fcr >> Fcr::TRIGGER_SHIFT)]
    }

    fn fifo_depth(&self) -> usize {
        if self.fifo_enabled() { FIFO } else { 1 }
    }

    fn fifo_enabled(&self) -> bool {
        self.fcr & Fcr::ENABLE != 0
    }

    fn divisor_latched(&self) -> bool {
        self.lcr & Lcr::DIVISOR_LATCH != 0
    }

    fn loopback(&self) -> bool {
        self.mcr & Mcr::LOOPBACK != 0
    }
}
