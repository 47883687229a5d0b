//! The interval timer: an 8254 (Intel data sheet 231164) with the PC's port 0x61 (Intel ICH9 data
//! sheet 316972, 13.7.1 "NMI status and control").
//!
//! Counter 0 drives interrupt 0, counter 1 was for memory refresh, counter 2 belongs to the
//! speaker and is gated and read through port 0x61, which kernels use to calibrate the TSC.
//! Counts and outputs are computed from the guest's clock when they are asked for; the only timer
//! is for the next rising edge of counter 0.
//!
//! An interrupt that comes late, because the host was busy, is not lost: edges that were missed
//! are made up for at twice the programmed rate, at most a second's worth of them. Edges are
//! never closer than [`SHORTEST_GAP`]; a guest that programs more gets fewer.
//!
//! Neighbours: `machine` leads the interrupt through [`crate::IsaLine`] and gives the clock.

mod counter;
mod saved;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use device::{Answer, Device, GuestClock, InterruptLine, Nanos, PortIo, Timer, Timers, Width};

use crate::rate;
use crate::sync::{arm, lock};
use crate::{ports, rate::Rate};
use counter::{Access, Counter, Mode, Tick};

const RATE: Rate = rate::PIT;
const COUNTERS: u16 = 0x40;
const COUNTER_1: u16 = 0x41;
const CONTROL: u16 = 0x43;
const SYSTEM_CONTROL: u16 = 0x61;
/// Counter 1 made a refresh request every 18 ticks; bit 4 of port 0x61 toggles with each.
const REFRESH_TICKS: Tick = 18;
/// Edges of interrupt 0 are at least this far apart, in nanoseconds.
const SHORTEST_GAP: Nanos = 100_000;
/// Edges that are made up for, in nanoseconds of missed time.
const LONGEST_BACKLOG: Nanos = 1_000_000_000;

/// An 8254 at ports 0x40 to 0x43, and port 0x61.
pub struct Pit {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Arc<dyn GuestClock>,
    line: Arc<dyn InterruptLine>,
    timer: Arc<dyn Timer>,
    state: Mutex<State>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    counters: [Counter; 3],
    /// Bits 3:0 of port 0x61: gate 2, speaker, two NMI masks.
    system_control: u8,
    /// When counter 0 next interrupts.
    deadline: Option<Nanos>,
    /// Rising edges of counter 0 up to this tick were delivered or are owed.
    counted: Tick,
    /// Edges to make up for.
    owed: u32,
    /// Level at which the line was left.
    line: bool,
}

impl Pit {
    /// Ports, as (first, count).
    pub const PORTS: [(u16, u16); 2] = [(COUNTERS, 4), (SYSTEM_CONTROL, 1)];

    /// A timer that counts by `clock` and interrupts through `line`.
    pub fn new(
        clock: Arc<dyn GuestClock>,
        timers: &dyn Timers,
        line: Arc<dyn InterruptLine>,
    ) -> Self {
        let shared = Arc::new_cyclic(|shared: &std::sync::Weak<Shared>| {
            let shared = shared.clone();
            let fire = move |_| {
                if let Some(shared) = shared.upgrade() {
                    shared.fire();
                }
            };
            let timer = timers.create("pit", Box::new(fire));
            Shared { clock, line, timer, state: Mutex::new(State::new()) }
        });
        Self { shared }
    }
}

impl Shared {
    /// Changes the state at the present tick, then drives the interrupt as counter 0 does now.
    fn update<R>(&self, change: impl FnOnce(&mut State, Tick) -> R) -> R {
        let mut state = lock(&self.state);
        let now = ticks(self.clock.now());
        change(&mut state, now)
    }

    /// As `update`, for changes of counter 0.
    fn update_interrupt(&self, change: impl FnOnce(&mut Counter, Tick)) {
        let (before, after) = self.update(|state, now| {
            let before = state.counters[0].output(now);
            change(&mut state.counters[0], now);
            state.reschedule(now);
            let after = state.counters[0].output(now);
            if before != after {
                state.line = after;
            }
            (before, after)
        });
        match (before, after) {
            (false, true) => self.raise_edge(),
            (true, false) => self.line.set(false),
            _ => {}
        }
        self.arm();
    }

    fn arm(&self) {
        arm(&*self.timer, || lock(&self.state).deadline);
    }

    /// The line may still be high from the last edge: the low pulse of a rate generator is too
    /// short to be shown.
    fn raise_edge(&self) {
        self.line.set(false);
        self.line.set(true);
    }

    fn fire(&self) {
        let now = self.clock.now();
        let edge = lock(&self.state).fire(now);
        if edge {
            self.raise_edge();
        }
        self.arm();
    }
}

impl State {
    fn new() -> Self {
        Self {
            counters: [Counter::new(true), Counter::new(true), Counter::new(false)],
            system_control: 0,
            deadline: None,
            counted: 0,
            owed: 0,
            line: false,
        }
    }

    /// Counter 0 was programmed: forgets what was owed for its former course.
    fn reschedule(&mut self, now: Tick) {
        self.owed = 0;
        self.counted = now;
        self.deadline = self.counters[0].next_rise(now).map(time_of);
    }

    /// The timer fired: whether to raise an edge now. Plans the next.
    fn fire(&mut self, now: Nanos) -> bool {
        let Some(deadline) = self.deadline else { return false };
        if now < deadline {
            return false;
        }
        let tick = ticks(now);
        let rises = self.rises_until(tick);
        self.counters[0].advance(tick);
        self.counted = self.counted.max(tick);
        let pending = u64::from(self.owed) + rises;
        let edge = pending > 0;
        self.line |= edge;
        let period = self.counters[0].period().map_or(Nanos::MAX, |p| time_of(Tick::from(p)));
        let longest = if period > SHORTEST_GAP { LONGEST_BACKLOG / period } else { 0 };
        self.owed = pending.saturating_sub(1).min(longest) as u32;
        let next = if self.owed > 0 {
            Some(now.saturating_add(period / 2))
        } else {
            self.counters[0].next_rise(tick).map(time_of)
        };
        self.deadline = next.map(|next| next.max(now.saturating_add(SHORTEST_GAP)));
        edge
    }

    /// Rising edges of counter 0 after those that were counted.
    fn rises_until(&self, tick: Tick) -> u64 {
        let counter = &self.counters[0];
        let Some(first) = counter.next_rise(self.counted).filter(|rise| *rise <= tick) else {
            return 0;
        };
        let Some(second) = counter.next_rise(first).filter(|rise| *rise <= tick) else {
            return 1;
        };
        // From its second rise on, a new count has taken over and the period is regular.
        let third = counter.next_rise(second).map_or(0, |third| third - second);
        if third <= 0 { 2 } else { 2 + ((tick - second) / third).unsigned_abs() }
    }

    fn read_system_control(&self, now: Tick) -> u8 {
        let refresh = (now / REFRESH_TICKS) & 1 != 0;
        self.system_control | u8::from(refresh) << 4 | u8::from(self.counters[2].output(now)) << 5
    }

    fn write_system_control(&mut self, value: u8, now: Tick) {
        self.system_control = value & 0x0f;
        self.counters[2].set_gate(value & 1 != 0, now);
    }

    fn read_back(&mut self, command: u8, now: Tick) {
        for (i, counter) in self.counters.iter_mut().enumerate() {
            if command & 2 << i == 0 {
                continue;
            }
            if command & 0x20 == 0 {
                counter.latch_count(now);
            }
            if command & 0x10 == 0 {
                counter.latch_status(now);
            }
        }
    }
}

impl Shared {
    fn read(&self, port: u16) -> u8 {
        self.update(|state, now| match port {
            COUNTERS..CONTROL => state.counters[usize::from(port - COUNTERS)].read(now),
            SYSTEM_CONTROL => state.read_system_control(now),
            // The control word register cannot be read.
            _ => 0xff,
        })
    }

    fn write(&self, port: u16, value: u8) {
        match port {
            COUNTERS => self.update_interrupt(|counter, now| counter.write(value, now)),
            COUNTER_1..CONTROL => self.update(|state, now| {
                state.counters[usize::from(port - COUNTERS)].write(value, now);
            }),
            CONTROL => self.write_control(value),
            SYSTEM_CONTROL => self.update(|state, now| state.write_system_control(value, now)),
            _ => {}
        }
    }

    fn write_control(&self, value: u8) {
        let select = usize::from(value >> 6);
        let Some(access) = Access::from_bits(value >> 4).filter(|_| select < 3) else {
            return self.update(|state, now| match state.counters.get_mut(select) {
                Some(counter) => counter.latch_count(now),
                None => state.read_back(value, now),
            });
        };
        let (mode, bcd) = (Mode::from_bits(value >> 1), value & 1 != 0);
        if select == 0 {
            self.update_interrupt(|counter, _| counter.control(access, mode, bcd));
        } else {
            self.update(|state, _| state.counters[select].control(access, mode, bcd));
        }
    }
}

fn ticks(now: Nanos) -> Tick {
    Tick::try_from(RATE.ticks_at(now)).unwrap_or(Tick::MAX)
}

fn time_of(tick: Tick) -> Nanos {
    RATE.time_of(tick.max(0).unsigned_abs())
}

impl PortIo for Pit {
    fn port_read(&self, port: u16, width: Width) -> Answer<u32> {
        Answer::Done(ports::read_bytes(port, width, |port| self.shared.read(port)))
    }

    fn port_write(&self, port: u16, width: Width, value: u32) -> Answer<()> {
        ports::write_bytes(port, width, value, |port, byte| self.shared.write(port, byte));
        Answer::Done(())
    }
}

impl Device for Pit {
    fn reset(&self) {
        *lock(&self.shared.state) = State::new();
        self.shared.line.set(false);
        self.shared.arm();
    }
}
