//! The keyboard controller (IBM PS/2 hardware interface technical reference, "Keyboard and
//! auxiliary device controller") with nothing attached to it, and the ways to reset a PC: command
//! 0xfe to port 0x64, port 0x92, and the reset control register 0xcf9 (Intel ICH9 data sheet
//! 316972, 13.7.2 and 13.7.5).
//!
//! A byte sent to a device that is not there is answered as by the controller itself: 0xfe with
//! the time-out bit, at once. Drivers thus find in microseconds that keyboard and mouse are
//! missing, where silence would cost them half a second for each command. The machine is still
//! best described in the FADT without an 8042 (IAPC_BOOT_ARCH bit 1 clear): Linux then does not
//! probe at all, and can reset through the ports nevertheless.
//!
//! The A20 gate is shown in its two places and has no effect: address line 20 is always enabled,
//! as on processors and chipsets since 2008.
//!
//! vm-superio's `I8042Device` was considered and not taken: it knows the reset command only.

mod saved;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use device::{Answer, Device, InterruptLine, PortIo, StopCause, Width};

use crate::ports;
use crate::sync::lock;

const DATA: u16 = 0x60;
const COMMAND: u16 = 0x64;
const FAST: u16 = 0x92;
const RESET_CONTROL: u16 = 0xcf9;
/// Bytes that wait to be read; a real controller has one and lets devices wait.
const OUTPUT_DEPTH: usize = 8;
/// What a device that does not answer is reported as: "resend".
const NO_DEVICE: u8 = 0xfe;
/// Input port: keyboard not locked, colour display, 512 KiB, no jumper set.
const INPUT_PORT: u8 = 0xb0;

mod status {
    pub(super) const OUTPUT_FULL: u8 = 1 << 0;
    pub(super) const SYSTEM: u8 = 1 << 2;
    pub(super) const COMMAND: u8 = 1 << 3;
    pub(super) const UNLOCKED: u8 = 1 << 4;
    pub(super) const AUXILIARY: u8 = 1 << 5;
    pub(super) const TIME_OUT: u8 = 1 << 6;
}

/// Bits of the command byte, which is byte 0 of the controller's memory.
mod command_byte {
    pub(super) const KEYBOARD_INTERRUPT: u8 = 1 << 0;
    pub(super) const AUXILIARY_INTERRUPT: u8 = 1 << 1;
    pub(super) const SYSTEM: u8 = 1 << 2;
    pub(super) const KEYBOARD_DISABLED: u8 = 1 << 4;
    pub(super) const AUXILIARY_DISABLED: u8 = 1 << 5;
    pub(super) const TRANSLATE: u8 = 1 << 6;
}

/// Bits of the output port.
mod output_port {
    /// Low resets the processor.
    pub(super) const NO_RESET: u8 = 1 << 0;
    pub(super) const A20: u8 = 1 << 1;
    pub(super) const KEYBOARD_INTERRUPT: u8 = 1 << 4;
    pub(super) const AUXILIARY_INTERRUPT: u8 = 1 << 5;
    pub(super) const KEYBOARD_DATA: u8 = 1 << 7;
    pub(super) const KEYBOARD_CLOCK: u8 = 1 << 6;
}

/// Bits of port 0x92.
mod fast {
    pub(super) const RESET: u8 = 1 << 0;
    pub(super) const A20: u8 = 1 << 1;
}

/// Bits of port 0xcf9.
mod reset_control {
    pub(super) const RESET: u8 = 1 << 2;
    /// System reset (1) and full reset (3) say how thorough a reset is; here all are.
    pub(super) const STORED: u8 = 1 << 1 | 1 << 3;
}

/// A keyboard controller without devices, and the reset registers.
pub struct I8042 {
    keyboard_line: Arc<dyn InterruptLine>,
    auxiliary_line: Arc<dyn InterruptLine>,
    state: Mutex<State>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    /// The controller's memory; byte 0 is the command byte.
    memory: [u8; 32],
    /// The command whose data byte is awaited.
    awaiting: Option<u8>,
    /// What the guest can read.
    output: VecDeque<Output>,
    self_tested: bool,
    last_was_command: bool,
    a20: bool,
    reset_control: u8,
}

/// A byte in the output buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Output {
    byte: u8,
    /// It counts as the auxiliary device's.
    auxiliary: bool,
    timed_out: bool,
}

/// Whether a write asks for a reset.
type Reset = bool;

impl I8042 {
    /// Ports, as (first, count). 0xcf9 lies within PCI's configuration ports and is told from
    /// them by its width: a byte access is the reset control register.
    pub const PORTS: [(u16, u16); 4] = [(DATA, 1), (COMMAND, 1), (FAST, 1), (RESET_CONTROL, 1)];
    /// The reset control register, for the FADT, and the value that resets.
    pub const RESET_REGISTER: (u16, u8) = (RESET_CONTROL, 0x06);
    /// ISA interrupts of keyboard and auxiliary device.
    pub const IRQS: (u8, u8) = (1, 12);

    /// A controller with these interrupts for its two ports.
    pub fn new(keyboard: Arc<dyn InterruptLine>, auxiliary: Arc<dyn InterruptLine>) -> Self {
        let state = Mutex::new(State::new());
        Self { keyboard_line: keyboard, auxiliary_line: auxiliary, state }
    }

    fn update<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = lock(&self.state);
        let before = state.interrupts();
        let result = change(&mut state);
        let after = state.interrupts();
        drop(state);
        if before != after {
            self.publish();
        }
        result
    }

    /// Sets both lines to the levels of the state, until they agree.
    fn publish(&self) {
        loop {
            let levels = lock(&self.state).interrupts();
            self.keyboard_line.set(levels.0);
            self.auxiliary_line.set(levels.1);
            if lock(&self.state).interrupts() == levels {
                return;
            }
        }
    }
}

impl State {
    fn new() -> Self {
        let mut memory = [0; 32];
        memory[0] = command_byte::KEYBOARD_DISABLED
            | command_byte::AUXILIARY_DISABLED
            | command_byte::TRANSLATE;
        Self {
            memory,
            awaiting: None,
            output: VecDeque::new(),
            self_tested: false,
            last_was_command: false,
            a20: true,
            reset_control: 0,
        }
    }

    /// Levels of the keyboard's and the auxiliary device's interrupt.
    fn interrupts(&self) -> (bool, bool) {
        let enabled = |bit| self.memory[0] & bit != 0;
        match self.output.front() {
            None => (false, false),
            Some(Output { auxiliary: false, .. }) => {
                (enabled(command_byte::KEYBOARD_INTERRUPT), false)
            }
            Some(Output { auxiliary: true, .. }) => {
                (false, enabled(command_byte::AUXILIARY_INTERRUPT))
            }
        }
    }

    fn read(&mut self, port: u16) -> u8 {
        match port {
            DATA => self.output.pop_front().map_or(0, |output| output.byte),
            COMMAND => self.status(),
            FAST => {
                if self.a20 {
                    fast::A20
                } else {
                    0
                }
            }
            RESET_CONTROL => self.reset_control,
            _ => 0xff,
        }
    }

    fn write(&mut self, port: u16, value: u8) -> Reset {
        match port {
            DATA => self.write_data(value),
            COMMAND => self.command(value),
            FAST => {
                self.a20 = value & fast::A20 != 0;
                value & fast::RESET != 0
            }
            RESET_CONTROL => {
                self.reset_control = value & reset_control::STORED;
                value & reset_control::RESET != 0
            }
            _ => false,
        }
    }

    fn status(&self) -> u8 {
        let front = match self.output.front() {
            None => 0,
            Some(output) => {
                let auxiliary = if output.auxiliary { status::AUXILIARY } else { 0 };
                let timed_out = if output.timed_out { status::TIME_OUT } else { 0 };
                status::OUTPUT_FULL | auxiliary | timed_out
            }
        };
        let system = self.self_tested || self.memory[0] & command_byte::SYSTEM != 0;
        front
            | if system { status::SYSTEM } else { 0 }
            | if self.last_was_command { status::COMMAND } else { 0 }
            | status::UNLOCKED
    }

    fn command(&mut self, command: u8) -> Reset {
        self.last_was_command = true;
        self.awaiting = None;
        match command {
            0x20..=0x3f => self.answer(self.memory[usize::from(command & 0x1f)]),
            // A data byte follows: memory, output port, output buffers, auxiliary device.
            0x60..=0x7f | 0xd1..=0xd4 => self.awaiting = Some(command),
            0xa7 => self.memory[0] |= command_byte::AUXILIARY_DISABLED,
            0xa8 => self.memory[0] &= !command_byte::AUXILIARY_DISABLED,
            // The interfaces of both devices are in order.
            0xa9 | 0xab => self.answer(0x00),
            0xaa => {
                self.self_tested = true;
                self.output.clear();
                self.answer(0x55);
            }
            0xad => self.memory[0] |= command_byte::KEYBOARD_DISABLED,
            0xae => self.memory[0] &= !command_byte::KEYBOARD_DISABLED,
            0xc0 => self.answer(INPUT_PORT),
            0xd0 => self.answer(self.output_port()),
            0xdd => self.a20 = false,
            0xdf => self.a20 = true,
            // Test inputs: clocks of both devices.
            0xe0 => self.answer(0x00),
            // Pulses the output port's bits that are 0 here.
            0xf0..=0xff => return command & output_port::NO_RESET == 0,
            _ => {}
        }
        false
    }

    fn write_data(&mut self, value: u8) -> Reset {
        self.last_was_command = false;
        let Some(command) = self.awaiting.take() else {
            // For the keyboard; sending to it enables it.
            self.memory[0] &= !command_byte::KEYBOARD_DISABLED;
            self.put(Output { byte: NO_DEVICE, auxiliary: false, timed_out: true });
            return false;
        };
        match command {
            0x60..=0x7f => self.memory[usize::from(command & 0x1f)] = value,
            0xd1 => {
                self.a20 = value & output_port::A20 != 0;
                return value & output_port::NO_RESET == 0;
            }
            0xd2 => self.answer(value),
            0xd3 => self.put(Output { byte: value, auxiliary: true, timed_out: false }),
            // For the auxiliary device.
            _ => {
                self.memory[0] &= !command_byte::AUXILIARY_DISABLED;
                self.put(Output { byte: NO_DEVICE, auxiliary: true, timed_out: true });
            }
        }
        false
    }

    fn output_port(&self) -> u8 {
        let (keyboard, auxiliary) = self.interrupts();
        output_port::NO_RESET
            | output_port::KEYBOARD_CLOCK
            | output_port::KEYBOARD_DATA
            | if self.a20 { output_port::A20 } else { 0 }
            | if keyboard { output_port::KEYBOARD_INTERRUPT } else { 0 }
            | if auxiliary { output_port::AUXILIARY_INTERRUPT } else { 0 }
    }

    /// The controller's own answer, which counts as the keyboard's.
    fn answer(&mut self, byte: u8) {
        self.put(Output { byte, auxiliary: false, timed_out: false });
    }

    fn put(&mut self, output: Output) {
        if self.output.len() < OUTPUT_DEPTH {
            self.output.push_back(output);
        }
    }
}

impl PortIo for I8042 {
    fn port_read(&self, port: u16, width: Width) -> Answer<u32> {
        let read = |port: u16| self.update(|state| state.read(port));
        Answer::Done(ports::read_bytes(port, width, read))
    }

    fn port_write(&self, port: u16, width: Width, value: u32) -> Answer<()> {
        let mut reset = false;
        ports::write_bytes(port, width, value, |port, byte| {
            reset |= self.update(|state| state.write(port, byte));
        });
        if reset { Answer::StopAfterInstruction((), StopCause::Reset) } else { Answer::Done(()) }
    }
}

impl Device for I8042 {
    fn reset(&self) {
        *lock(&self.state) = State::new();
        self.publish();
    }
}
