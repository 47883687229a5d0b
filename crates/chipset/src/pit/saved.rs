//! The PIT's saved form.

use device::Nanos;
use serde::{Deserialize, Serialize};
use state::{Persist, Saved, Section, StateError};

use super::counter::{Access, Counter, Counting, Mode, NextCount, Tick, modulus};
use super::{Pit, State};
use crate::sync::lock;

#[derive(Serialize, Deserialize)]
struct SavedPit {
    counters: [SavedCounter; 3],
    system_control: u8,
    deadline: Option<Nanos>,
    counted: Tick,
    owed: u32,
    line: bool,
}

#[derive(Serialize, Deserialize)]
struct SavedCounter {
    mode: u8,
    access: u8,
    bcd: bool,
    gate: bool,
    counting: SavedCounting,
    initial: u32,
    next: Option<SavedNextCount>,
    low_written: Option<u8>,
    read_high: bool,
    latched: Option<u16>,
    latched_status: Option<u8>,
}

#[derive(Serialize, Deserialize)]
struct SavedNextCount {
    count: u32,
    at: Option<Tick>,
}

#[derive(Serialize, Deserialize)]
enum SavedCounting {
    Waiting,
    Running { since: Tick },
    Stopped { elapsed: u64 },
}

impl Saved for SavedPit {
    const KIND: &'static str = "pit";
    const VERSION: u32 = 1;
}

impl From<&Counter> for SavedCounter {
    fn from(counter: &Counter) -> Self {
        let &Counter {
            mode,
            access,
            bcd,
            gate,
            counting,
            initial,
            next,
            low_written,
            read_high,
            latched,
            latched_status,
        } = counter;
        Self {
            mode: mode as u8,
            access: access.bits(),
            bcd,
            gate,
            counting: match counting {
                Counting::Waiting => SavedCounting::Waiting,
                Counting::Running { since } => SavedCounting::Running { since },
                Counting::Stopped { elapsed } => SavedCounting::Stopped { elapsed },
            },
            initial,
            next: next.map(|NextCount { count, at }| SavedNextCount { count, at }),
            low_written,
            read_high,
            latched,
            latched_status,
        }
    }
}

impl SavedCounter {
    fn restore(self) -> Result<Counter, &'static str> {
        let counts = 1..=modulus(self.bcd);
        let next = self.next.map(|SavedNextCount { count, at }| NextCount { count, at });
        if !counts.contains(&self.initial) || next.is_some_and(|n| !counts.contains(&n.count)) {
            return Err("a count is out of range");
        }
        if self.mode > 5 {
            return Err("there is no such mode");
        }
        Ok(Counter {
            mode: Mode::from_bits(self.mode),
            access: Access::from_bits(self.access)
                .filter(|_| self.access < 4)
                .ok_or("there is no such access mode")?,
            bcd: self.bcd,
            gate: self.gate,
            counting: match self.counting {
                SavedCounting::Waiting => Counting::Waiting,
                SavedCounting::Running { since } => Counting::Running { since },
                SavedCounting::Stopped { elapsed } => Counting::Stopped { elapsed },
            },
            initial: self.initial,
            next,
            low_written: self.low_written,
            read_high: self.read_high,
            latched: self.latched,
            latched_status: self.latched_status,
        })
    }
}

impl Persist for Pit {
    fn kind(&self) -> &'static str {
        SavedPit::KIND
    }

    fn save(&self, instance: &str) -> Result<Section, StateError> {
        let state = lock(&self.shared.state).clone();
        let State { counters, system_control, deadline, counted, owed, line } = &state;
        let saved = SavedPit {
            counters: counters.each_ref().map(SavedCounter::from),
            system_control: *system_control,
            deadline: *deadline,
            counted: *counted,
            owed: *owed,
            line: *line,
        };
        Section::encode(instance, &saved)
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let SavedPit { counters, system_control, deadline, counted, owed, line } =
            section.decode()?;
        let [a, b, c] = counters.map(SavedCounter::restore);
        let invalid = |cause: &'static str| section.invalid(cause);
        let counters = [a.map_err(invalid)?, b.map_err(invalid)?, c.map_err(invalid)?];
        if system_control & 0xf0 != 0 || (system_control & 1 != 0) != counters[2].gate {
            return Err(invalid("port 0x61 does not agree with the counters"));
        }
        if counted < 0 {
            return Err(invalid("edges were counted before time began"));
        }
        let restored = State { counters, system_control, deadline, counted, owed, line };
        *lock(&self.shared.state) = restored;
        self.shared.line.set(line);
        self.shared.arm();
        Ok(())
    }
}
