//! ACPI fixed hardware: power-management events, control, timer and general-purpose events (ACPI
//! specification 6.5, 4.8 "ACPI hardware features"), laid out as in the ICH9 (Intel data sheet
//! 316972, 13.8.3).
//!
//! The machine is always in ACPI mode: SCI_EN reads one and there is no SMI command port. The
//! FADT is to say so (SMI_CMD 0), and that the timer has 24 bits (TMR_VAL_EXT clear).
//!
//! Sleeping: writing SLP_EN with [`AcpiPm::SLP_TYP_S5`] powers the machine off. Other sleep types
//! do nothing, since no other `\_Sx` object exists.
//!
//! Neighbours: `boot` writes the FADT and the DSDT from the constants here; [`crate::I8042`] has
//! the reset register.

mod saved;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Weak};

use device::{
    Answer, Device, GuestClock, InterruptLine, Nanos, PortIo, StopCause, Timer, Timers, Width,
};

use crate::ports;
use crate::rate::{self, Rate};
use crate::sync::{Driven, arm};

const RATE: Rate = rate::ACPI_TIMER;
/// TMR_STS is set whenever the highest of the timer's 24 bits changes.
const HALF_PERIOD: u64 = 1 << 23;

/// Bits of PM1_STS and PM1_EN (ACPI 4.8.3.1).
mod event {
    pub(super) const TIMER: u16 = 1 << 0;
    pub(super) const BUS_MASTER: u16 = 1 << 4;
    pub(super) const GLOBAL: u16 = 1 << 5;
    pub(super) const POWER_BUTTON: u16 = 1 << 8;
    pub(super) const SLEEP_BUTTON: u16 = 1 << 9;
    pub(super) const RTC: u16 = 1 << 10;
    pub(super) const PCIE_WAKE: u16 = 1 << 14;
    pub(super) const WAKE: u16 = 1 << 15;

    /// Events that raise the SCI.
    pub(super) const INTERRUPTS: u16 = TIMER | GLOBAL | POWER_BUTTON | SLEEP_BUTTON | RTC;
    pub(super) const STATUS: u16 = INTERRUPTS | BUS_MASTER | PCIE_WAKE | WAKE;
    pub(super) const ENABLE: u16 = INTERRUPTS | PCIE_WAKE;
}

/// Bits of PM1_CNT (ACPI 4.8.3.2).
mod control {
    pub(super) const SCI_ENABLE: u16 = 1 << 0;
    pub(super) const BUS_MASTER_RELOAD: u16 = 1 << 1;
    pub(super) const SLEEP_TYPE_SHIFT: u32 = 10;
    pub(super) const SLEEP_TYPE: u16 = 7 << SLEEP_TYPE_SHIFT;
    pub(super) const SLEEP_ENABLE: u16 = 1 << 13;

    /// Bits that keep what was written.
    pub(super) const STORED: u16 = BUS_MASTER_RELOAD | SLEEP_TYPE;
}

/// The ACPI fixed hardware at [`AcpiPm::BASE`].
pub struct AcpiPm {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Arc<dyn GuestClock>,
    timer: Arc<dyn Timer>,
    state: Driven<State>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: [u8; GPE_BYTES],
    gpe_enable: [u8; GPE_BYTES],
    /// Tick of the timer at which TMR_STS is set next.
    next_overflow: u64,
}

const GPE_BYTES: usize = AcpiPm::GPE0_LENGTH as usize / 2;

/// A register byte, by its offset from the base.
#[derive(Clone, Copy)]
enum Register {
    /// Byte 0 or 1 of PM1_STS, PM1_EN, PM1_CNT.
    Status(usize),
    Enable(usize),
    Control(usize),
    Timer(usize),
    GpeStatus(usize),
    GpeEnable(usize),
    None,
}

impl AcpiPm {
    /// First port, the ICH9's PMBASE as firmware sets it.
    pub const BASE: u16 = 0x600;
    /// PM1a event block: status and enable, 4 bytes.
    pub const EVENT_BLOCK: u16 = Self::BASE;
    /// PM1a control block, 2 bytes.
    pub const CONTROL_BLOCK: u16 = Self::BASE + 0x04;
    /// Power-management timer, 4 bytes.
    pub const TIMER_BLOCK: u16 = Self::BASE + 0x08;
    /// General-purpose event block 0: as many bytes of status as of enable.
    pub const GPE0_BLOCK: u16 = Self::BASE + 0x20;
    /// Bytes of [`AcpiPm::GPE0_BLOCK`]: 64 events.
    pub const GPE0_LENGTH: u16 = 0x10;
    /// Ports, as (first, count).
    pub const PORTS: [(u16, u16); 2] = [(Self::BASE, 0x0c), (Self::GPE0_BLOCK, Self::GPE0_LENGTH)];
    /// The SCI's ISA interrupt: level-triggered, active high.
    pub const SCI_IRQ: u8 = 9;
    /// The sleep type that powers off: what `\_S5` holds.
    pub const SLP_TYP_S5: u8 = 5;

    /// Fixed hardware whose timer counts by `clock` and whose SCI is `sci`.
    pub fn new(
        clock: Arc<dyn GuestClock>,
        timers: &dyn Timers,
        sci: Arc<dyn InterruptLine>,
    ) -> Self {
        let shared = Arc::new_cyclic(|shared: &Weak<Shared>| {
            let shared = shared.clone();
            let fire = move |_| {
                if let Some(shared) = shared.upgrade() {
                    shared.update(|_| ());
                }
            };
            let timer = timers.create("acpi-pm", Box::new(fire));
            let state = State::at(RATE.ticks_at(clock.now()));
            Shared { clock, timer, state: Driven::new(state, sci, State::sci) }
        });
        Self { shared }
    }

    /// The user presses the power button for a moment. What follows is the guest's decision.
    pub fn press_power_button(&self) {
        self.shared.update(|state| state.status |= event::POWER_BUTTON);
    }

    /// General-purpose event `number`, 0 to 63, happens.
    ///
    /// # Panics
    /// When there is no such event.
    pub fn raise_gpe(&self, number: u8) {
        let byte = usize::from(number / 8);
        assert!(byte < GPE_BYTES, "there is no general-purpose event {number}");
        self.shared.update(|state| state.gpe_status[byte] |= 1 << (number % 8));
    }
}

impl Shared {
    /// Changes the state after the timer's overflow was taken into account.
    fn update<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let tick = RATE.ticks_at(self.clock.now());
        let result = self.state.update(|state| {
            state.advance(tick);
            change(state)
        });
        self.arm();
        result
    }

    fn arm(&self) {
        arm(&*self.timer, || self.state.read(State::deadline));
    }
}

impl State {
    fn at(tick: u64) -> Self {
        Self {
            status: 0,
            enable: 0,
            control: 0,
            gpe_status: [0; GPE_BYTES],
            gpe_enable: [0; GPE_BYTES],
            next_overflow: following_overflow(tick),
        }
    }

    fn sci(&self) -> bool {
        let gpe = self.gpe_status.iter().zip(self.gpe_enable).any(|(s, e)| s & e != 0);
        gpe || self.status & self.enable & event::INTERRUPTS != 0
    }

    fn deadline(&self) -> Option<Nanos> {
        let waits = self.enable & !self.status & event::TIMER != 0;
        waits.then(|| RATE.time_of(self.next_overflow))
    }

    fn advance(&mut self, tick: u64) {
        if tick >= self.next_overflow {
            self.status |= event::TIMER;
            self.next_overflow = following_overflow(tick);
        }
    }

    fn read(&self, register: Register) -> u8 {
        let control = self.control | control::SCI_ENABLE;
        match register {
            Register::Status(byte) => self.status.to_le_bytes()[byte],
            Register::Enable(byte) => self.enable.to_le_bytes()[byte],
            Register::Control(byte) => control.to_le_bytes()[byte],
            Register::GpeStatus(byte) => self.gpe_status[byte],
            Register::GpeEnable(byte) => self.gpe_enable[byte],
            Register::Timer(_) | Register::None => 0xff,
        }
    }

    /// Writes a register byte; whether that powers the machine off.
    fn write(&mut self, register: Register, value: u8) -> bool {
        match register {
            Register::Status(byte) => self.status &= !(u16::from(value) << (8 * byte)),
            Register::Enable(byte) => set_byte(&mut self.enable, byte, value, event::ENABLE),
            Register::Control(byte) => {
                set_byte(&mut self.control, byte, value, control::STORED);
                let sleeps = u16::from(value) << (8 * byte) & control::SLEEP_ENABLE != 0;
                return sleeps && self.sleep_type() == AcpiPm::SLP_TYP_S5;
            }
            Register::GpeStatus(byte) => self.gpe_status[byte] &= !value,
            Register::GpeEnable(byte) => self.gpe_enable[byte] = value,
            Register::Timer(_) | Register::None => {}
        }
        false
    }

    fn sleep_type(&self) -> u8 {
        ((self.control & control::SLEEP_TYPE) >> control::SLEEP_TYPE_SHIFT) as u8
    }
}

/// Replaces one byte of a 16-bit register.
fn set_byte(register: &mut u16, byte: usize, value: u8, writable: u16) {
    let mut bytes = register.to_le_bytes();
    bytes[byte] = value;
    *register = u16::from_le_bytes(bytes) & writable;
}

/// The first tick after `tick` at which the timer's highest bit changes.
fn following_overflow(tick: u64) -> u64 {
    (tick / HALF_PERIOD).saturating_add(1).saturating_mul(HALF_PERIOD)
}

fn register(port: u16) -> Register {
    let offset = usize::from(port.wrapping_sub(AcpiPm::BASE));
    match offset {
        0x00..0x02 => Register::Status(offset),
        0x02..0x04 => Register::Enable(offset - 0x02),
        0x04..0x06 => Register::Control(offset - 0x04),
        0x08..0x0c => Register::Timer(offset - 0x08),
        0x20..0x28 => Register::GpeStatus(offset - 0x20),
        0x28..0x30 => Register::GpeEnable(offset - 0x28),
        _ => Register::None,
    }
}

impl PortIo for AcpiPm {
    fn port_read(&self, port: u16, width: Width) -> Answer<u32> {
        // The timer is read often, and all bytes of one read are of one moment.
        let timer = RATE.ticks_at(self.shared.clock.now()) % (2 * HALF_PERIOD);
        let read = |port| match register(port) {
            Register::Timer(byte) => timer.to_le_bytes()[byte],
            other => self.shared.update(|state| state.read(other)),
        };
        Answer::Done(ports::read_bytes(port, width, read))
    }

    fn port_write(&self, port: u16, width: Width, value: u32) -> Answer<()> {
        let mut off = false;
        ports::write_bytes(port, width, value, |port, byte| {
            off |= self.shared.update(|state| state.write(register(port), byte));
        });
        if off { Answer::StopAfterInstruction((), StopCause::PowerOff) } else { Answer::Done(()) }
    }
}

impl Device for AcpiPm {
    fn reset(&self) {
        let tick = RATE.ticks_at(self.shared.clock.now());
        self.shared.update(|state| *state = State::at(tick));
        self.shared.state.publish();
    }
}
