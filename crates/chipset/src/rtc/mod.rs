//! The real-time clock and CMOS memory: an MC146818A (Motorola data sheet ADI1199) at ports 0x70
//! and 0x71 with 128 bytes, of which 14 are the clock's, and the century at 0x32 as the FADT says.
//!
//! The clock shows the host's wall clock plus an offset that the guest chooses by setting the
//! time. What it shows is computed when the guest looks; flags of register C are brought up to
//! date then too, and a timer runs only for interrupts that are enabled. Time of day and alarm
//! follow the wall clock, periodic interrupts the guest's clock.
//!
//! An update takes the whole of its 1,984 us after the 244 us for which UIP announces it, and the
//! new time shows at its end, as with the chip's 32.768 kHz crystal. The day of the week is always
//! that of the date. Daylight saving, the square-wave output and other crystals do not exist.
//!
//! Neighbours: `boot` names the century register in the FADT; `machine` asks
//! [`Rtc::nmi_masked`].

mod calendar;
mod cells;
mod saved;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Weak};

use device::{
    Answer, Device, GuestClock, InterruptLine, Nanos, PortIo, Timer, Timers, WallClock, Width,
};

use crate::ports;
use crate::rate::{self, Rate};
use crate::sync::{Driven, arm};
use calendar::{Alarm, Date, Format};
pub use cells::MemorySize;
use cells::{
    ALARM_HOURS, ALARM_MINUTES, ALARM_SECONDS, CENTURY, Cells, DAY, DAY_OF_WEEK, HOURS, MINUTES,
    MONTH, REGISTER_A, REGISTER_B, REGISTER_C, REGISTER_D, SECONDS, TIME_CELLS, YEAR,
};

const RATE: Rate = rate::RTC;
const INDEX_PORT: u16 = 0x70;
const DATA_PORT: u16 = 0x71;
const NMI_MASK: u8 = 0x80;
const SECOND: i128 = 1_000_000_000;
/// From the rise of UIP to the new time.
const UPDATE: i128 = 244_000 + 1_984_000;
/// From the end of a divider reset to the first update.
const AFTER_DIVIDER_RESET: i128 = SECOND / 2;
/// Offsets from the wall clock, in seconds: the years 0 to 9999 and far more.
const LARGEST_OFFSET: i64 = 1_000_000_000_000;

mod a {
    pub(super) const UIP: u8 = 1 << 7;
    /// Divider bits 6:4 that hold the divider in reset: 110 and 111.
    pub(super) const DIVIDER_RESET: u8 = 0x60;
    pub(super) const RATE: u8 = 0x0f;
}

mod b {
    pub(super) const SET: u8 = 1 << 7;
    pub(super) const SQUARE_WAVE: u8 = 1 << 3;
    pub(super) const BINARY: u8 = 1 << 2;
    pub(super) const HOURS_24: u8 = 1 << 1;
}

/// Flags of register C and, at the same bits, their enables in register B.
mod flag {
    pub(super) const ANY: u8 = 1 << 7;
    pub(super) const PERIODIC: u8 = 1 << 6;
    pub(super) const ALARM: u8 = 1 << 5;
    pub(super) const UPDATE: u8 = 1 << 4;
    pub(super) const SOURCES: u8 = PERIODIC | ALARM | UPDATE;
}

/// A real-time clock with 128 bytes of CMOS memory.
pub struct Rtc {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Arc<dyn GuestClock>,
    wall: Arc<dyn WallClock>,
    timer: Arc<dyn Timer>,
    state: Driven<State>,
}

/// A moment on both clocks.
#[derive(Clone, Copy)]
struct Moment {
    guest: Nanos,
    /// Nanoseconds since 1970.
    wall: i128,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    index: u8,
    nmi_masked: bool,
    cells: Cells,
    /// The time that is shown minus the wall clock, in nanoseconds.
    offset: i128,
    /// The shown second up to which updates and alarms were noticed.
    seen_second: i64,
    /// The crystal's tick up to which periodic interrupts were noticed.
    seen_tick: u64,
    /// When an interrupt may be due; follows from the rest.
    deadline: Option<Nanos>,
}

impl Rtc {
    /// Index and data port, as (first, count).
    pub const PORTS: (u16, u16) = (INDEX_PORT, 2);
    /// ISA interrupt.
    pub const IRQ: u8 = 8;
    /// Where the century is, for the FADT.
    pub const CENTURY: u8 = CENTURY;

    /// A clock that interrupts through `line`, showing `wall`, with the size of guest memory in
    /// CMOS where firmware looks for it.
    pub fn new(
        clock: Arc<dyn GuestClock>,
        wall: Arc<dyn WallClock>,
        timers: &dyn Timers,
        line: Arc<dyn InterruptLine>,
        memory: MemorySize,
    ) -> Self {
        let shared = Arc::new_cyclic(|shared: &Weak<Shared>| {
            let shared = shared.clone();
            let fire = move |_| {
                if let Some(shared) = shared.upgrade() {
                    shared.update(|_, _| ());
                }
            };
            let timer = timers.create("rtc", Box::new(fire));
            let state = State::new(Cells::new(memory), Moment::now(&*clock, &*wall));
            Shared { clock, wall, timer, state: Driven::new(state, line, State::irq) }
        });
        Self { shared }
    }

    /// Whether the guest masks non-maskable interrupts: bit 7 of what it wrote to port 0x70.
    pub fn nmi_masked(&self) -> bool {
        self.shared.state.read(|state| state.nmi_masked)
    }
}

impl Moment {
    fn now(clock: &dyn GuestClock, wall: &dyn WallClock) -> Self {
        let wall = i128::try_from(wall.since_epoch().as_nanos()).unwrap_or(i128::MAX / 4);
        Self { guest: clock.now(), wall }
    }

    fn tick(self) -> u64 {
        RATE.ticks_at(self.guest)
    }
}

impl Shared {
    /// Changes the state after what happened meanwhile was noticed.
    fn update<R>(&self, change: impl FnOnce(&mut State, Moment) -> R) -> R {
        let result = self.state.update(|state| {
            let now = Moment::now(&*self.clock, &*self.wall);
            state.advance(now);
            let result = change(state, now);
            state.deadline = state.next_interrupt(now);
            result
        });
        arm(&*self.timer, || self.state.read(|state| state.deadline));
        result
    }
}

impl State {
    fn new(cells: Cells, now: Moment) -> Self {
        let mut state = Self {
            index: 0,
            nmi_masked: false,
            cells,
            offset: 0,
            seen_second: 0,
            seen_tick: now.tick(),
            deadline: None,
        };
        state.seen_second = state.second(now);
        state
    }

    /// The level of the interrupt line.
    fn irq(&self) -> bool {
        self.cells[REGISTER_C] & self.cells[REGISTER_B] & flag::SOURCES != 0
    }

    /// The time stands still: SET is set, or the divider is in reset.
    fn halted(&self) -> bool {
        self.cells[REGISTER_B] & b::SET != 0 || self.divider_reset()
    }

    fn divider_reset(&self) -> bool {
        self.cells[REGISTER_A] & a::DIVIDER_RESET == a::DIVIDER_RESET
    }

    /// The time that is shown, in nanoseconds since 1970; while halted, what the divider counts.
    fn time(&self, now: Moment) -> i128 {
        now.wall.saturating_add(self.offset)
    }

    fn second(&self, now: Moment) -> i64 {
        let limit = i128::from(2 * LARGEST_OFFSET);
        self.time(now).div_euclid(SECOND).clamp(-limit, limit) as i64
    }

    fn until_update(&self, now: Moment) -> i128 {
        SECOND - self.time(now).rem_euclid(SECOND)
    }

    /// Ticks of the crystal between periodic interrupts (data sheet, table 5).
    fn period(&self) -> Option<u64> {
        match self.cells[REGISTER_A] & a::RATE {
            _ if self.divider_reset() => None,
            0 => None,
            // The two lowest rates continue the scale from the other end: 256 and 128 Hz.
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    fn alarm(&self) -> Alarm {
        let format = self.format();
        let field = |cell: u8, decode: fn(Format, u8) -> u8| {
            let value = self.cells[cell];
            (value < 0xc0).then(|| decode(format, value))
        };
        Alarm {
            hour: field(ALARM_HOURS, Format::decode_hour),
            minute: field(ALARM_MINUTES, Format::decode),
            second: field(ALARM_SECONDS, Format::decode),
        }
    }

    fn format(&self) -> Format {
        let register = self.cells[REGISTER_B];
        Format { binary: register & b::BINARY != 0, hours_24: register & b::HOURS_24 != 0 }
    }

    /// Notices the updates, alarms and periodic interrupts that happened until `now`.
    fn advance(&mut self, now: Moment) {
        let tick = now.tick();
        if self.period().is_some_and(|period| tick / period > self.seen_tick / period) {
            self.cells[REGISTER_C] |= flag::PERIODIC;
        }
        self.seen_tick = tick;
        if self.halted() {
            return;
        }
        let second = self.second(now);
        if second > self.seen_second {
            self.cells[REGISTER_C] |= flag::UPDATE;
            if self.alarm().next_after(self.seen_second).is_some_and(|due| due <= second) {
                self.cells[REGISTER_C] |= flag::ALARM;
            }
        }
        // Also when the host's clock was set back.
        self.seen_second = second;
    }

    /// The earliest guest time at which an enabled interrupt can come. While one is pending no
    /// other can be told from it.
    fn next_interrupt(&self, now: Moment) -> Option<Nanos> {
        if self.irq() {
            return None;
        }
        let enabled = |bit| self.cells[REGISTER_B] & bit != 0;
        let after = |nanos: i128| {
            let nanos = Nanos::try_from(nanos.max(1)).unwrap_or(Nanos::MAX);
            now.guest.saturating_add(nanos)
        };
        let periodic = self
            .period()
            .filter(|_| enabled(flag::PERIODIC))
            .map(|period| RATE.time_of((now.tick() / period + 1) * period));
        let running = !self.halted();
        let update = (running && enabled(flag::UPDATE)).then(|| after(self.until_update(now)));
        let alarm = (running && enabled(flag::ALARM))
            .then(|| self.alarm().next_after(self.seen_second))
            .flatten()
            .map(|due| after(i128::from(due) * SECOND - self.time(now)));
        [periodic, update, alarm].into_iter().flatten().min()
    }

    fn read_data(&mut self, now: Moment) -> u8 {
        match self.index {
            REGISTER_A => {
                let updating = !self.halted() && self.until_update(now) <= UPDATE;
                self.cells[REGISTER_A] | if updating { a::UIP } else { 0 }
            }
            REGISTER_C => {
                let any = if self.irq() { flag::ANY } else { 0 };
                std::mem::take(&mut self.cells[REGISTER_C]) | any
            }
            index if TIME_CELLS.contains(&index) && !self.halted() => {
                self.shown(index, Date::from_seconds(self.second(now)))
            }
            index => self.cells[index],
        }
    }

    fn write_data(&mut self, value: u8, now: Moment) {
        match self.index {
            REGISTER_A => self.control(now, |cells| cells[REGISTER_A] = value & !a::UIP),
            REGISTER_B => self.control(now, |cells| {
                // Stopping the updates disables their interrupt.
                let stops = value & b::SET != 0;
                cells[REGISTER_B] = if stops { value & !flag::UPDATE } else { value };
            }),
            REGISTER_C | REGISTER_D => {}
            index if TIME_CELLS.contains(&index) && !self.halted() => {
                self.show_in_cells(now);
                self.cells[index] = value;
                self.set_from_cells(now);
            }
            index => self.cells[index] = value,
        }
    }

    /// Writes a control register; the time stops or goes on with it.
    fn control(&mut self, now: Moment, write: impl FnOnce(&mut Cells)) {
        let (halted, divider_reset) = (self.halted(), self.divider_reset());
        if !halted {
            // If it stops now, this is what stays to be seen.
            self.show_in_cells(now);
        }
        write(&mut self.cells);
        if divider_reset && !self.divider_reset() {
            let phase = self.time(now).rem_euclid(SECOND);
            self.offset += SECOND - AFTER_DIVIDER_RESET - phase;
        }
        if halted && !self.halted() {
            self.set_from_cells(now);
        }
    }

    /// What `cell` shows at `date`.
    fn shown(&self, cell: u8, date: Date) -> u8 {
        let format = self.format();
        match cell {
            SECONDS => format.encode(date.second),
            MINUTES => format.encode(date.minute),
            HOURS => format.encode_hour(date.hour),
            DAY_OF_WEEK => format.encode(date.day_of_week()),
            DAY => format.encode(date.day),
            MONTH => format.encode(date.month),
            YEAR => format.encode(date.year.rem_euclid(100) as u8),
            _ => format.encode((date.year.div_euclid(100)).rem_euclid(100) as u8),
        }
    }

    fn show_in_cells(&mut self, now: Moment) {
        let date = Date::from_seconds(self.second(now));
        for cell in TIME_CELLS {
            self.cells[cell] = self.shown(cell, date);
        }
    }

    /// Goes on from the time in the cells, within the second as the divider stands.
    fn set_from_cells(&mut self, now: Moment) {
        let format = self.format();
        let number = |cell: u8| format.decode(self.cells[cell]);
        let date = Date {
            year: i64::from(number(CENTURY)) * 100 + i64::from(number(YEAR)),
            month: number(MONTH),
            day: number(DAY),
            hour: format.decode_hour(self.cells[HOURS]),
            minute: number(MINUTES),
            second: number(SECONDS),
        };
        let wanted = date.to_seconds();
        self.offset += i128::from(wanted - self.second(now)) * SECOND;
        self.seen_second = wanted;
    }
}

impl PortIo for Rtc {
    fn port_read(&self, port: u16, width: Width) -> Answer<u32> {
        let read = |port: u16| match port {
            DATA_PORT => self.shared.update(State::read_data),
            // The index cannot be read.
            _ => 0xff,
        };
        Answer::Done(ports::read_bytes(port, width, read))
    }

    fn port_write(&self, port: u16, width: Width, value: u32) -> Answer<()> {
        ports::write_bytes(port, width, value, |port, byte| match port {
            INDEX_PORT => self.shared.state.update(|state| {
                state.index = byte & !NMI_MASK;
                state.nmi_masked = byte & NMI_MASK != 0;
            }),
            DATA_PORT => self.shared.update(|state, now| state.write_data(byte, now)),
            _ => {}
        });
        Answer::Done(())
    }
}

impl Device for Rtc {
    /// What the battery keeps stays: the time, the alarm and the memory.
    fn reset(&self) {
        self.shared.update(|state, _| {
            state.index = 0;
            state.nmi_masked = false;
            state.cells[REGISTER_B] &= !(flag::SOURCES | b::SQUARE_WAVE);
            state.cells[REGISTER_C] = 0;
        });
        self.shared.state.publish();
    }
}
