//! One counter of the 8254.
//!
//! Nothing counts while nobody looks: a counter remembers the tick at which it was loaded, and its
//! count and output are functions of the ticks since. Operations therefore take the time `now`, in
//! ticks of the PIT's clock.

/// The mode of a counter (data sheet, "Mode definitions").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// 0: interrupt on terminal count.
    TerminalCount,
    /// 1: hardware-retriggerable one-shot.
    OneShot,
    /// 2: rate generator.
    RateGenerator,
    /// 3: square wave.
    SquareWave,
    /// 4: software-triggered strobe.
    SoftwareStrobe,
    /// 5: hardware-triggered strobe.
    HardwareStrobe,
}

impl Mode {
    /// From bits 3:1 of a control word; modes 2 and 3 ignore the upper bit.
    pub(super) fn from_bits(bits: u8) -> Self {
        match bits & 7 {
            0 => Self::TerminalCount,
            1 => Self::OneShot,
            2 | 6 => Self::RateGenerator,
            3 | 7 => Self::SquareWave,
            4 => Self::SoftwareStrobe,
            _ => Self::HardwareStrobe,
        }
    }

    pub(super) fn bits(self) -> u8 {
        self as u8
    }

    /// Counting starts at a rising gate, not when a count is written.
    fn triggered(self) -> bool {
        matches!(self, Self::OneShot | Self::HardwareStrobe)
    }

    /// Counting starts over by itself.
    fn periodic(self) -> bool {
        matches!(self, Self::RateGenerator | Self::SquareWave)
    }
}

/// Which bytes of a count are transferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Low,
    High,
    LowThenHigh,
}

/// The counting element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counting {
    /// No count was written since the control word, or the trigger has not come.
    Waiting,
    /// Loaded at tick `since`.
    Running { since: u64 },
    /// Stopped by the gate, `elapsed` ticks after it was loaded.
    Stopped { elapsed: u64 },
}

/// The state of one counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Counter {
    pub(super) mode: Mode,
    pub(super) access: Access,
    pub(super) bcd: bool,
    pub(super) gate: bool,
    pub(super) counting: Counting,
    /// Ticks from load to terminal count: 1 to 65,536 (10,000 in BCD).
    pub(super) initial: u32,
    /// A written count that has not replaced `initial` yet.
    pub(super) next: Option<u32>,
    /// The first byte of a two-byte count.
    pub(super) low_written: Option<u8>,
    /// The next read gives the high byte of an unlatched two-byte count.
    pub(super) read_high: bool,
    /// What the latch command froze; its low byte has gone when `latched_high_only`.
    pub(super) latched: Option<u16>,
    pub(super) latched_high_only: bool,
    pub(super) latched_status: Option<u8>,
}

impl Counter {
    /// A counter that waits for its control word; `gate` is the level of its gate input.
    pub(super) fn new(gate: bool) -> Self {
        Self {
            mode: Mode::TerminalCount,
            access: Access::LowThenHigh,
            bcd: false,
            gate,
            counting: Counting::Waiting,
            initial: 0x1_0000,
            next: None,
            low_written: None,
            read_high: false,
            latched: None,
            latched_high_only: false,
            latched_status: None,
        }
    }

    /// A control word for this counter: access, mode and radix; it then waits for a count.
    pub(super) fn control(&mut self, access: Access, mode: Mode, bcd: bool) {
        *self = Self {
            access,
            mode,
            bcd,
            // What the counting element held shows in reads until a count is loaded.
            initial: self.initial.min(modulus(bcd)),
            ..Self::new(self.gate)
        };
    }

    /// A byte written to the counter's port.
    pub(super) fn write(&mut self, byte: u8, now: u64) {
        match self.access {
            Access::Low => self.write_count(u16::from(byte), now),
            Access::High => self.write_count(u16::from(byte) << 8, now),
            Access::LowThenHigh => match self.low_written.take() {
                Some(low) => self.write_count(u16::from_le_bytes([low, byte]), now),
                None => {
                    self.low_written = Some(byte);
                    // The first byte stops mode 0 and takes its output down.
                    if self.mode == Mode::TerminalCount {
                        self.counting = Counting::Waiting;
                    }
                }
            },
        }
    }

    fn write_count(&mut self, written: u16, now: u64) {
        let count = if self.bcd { from_bcd(written) } else { u32::from(written) };
        let count = if count == 0 { modulus(self.bcd) } else { count };
        let started = self.counting != Counting::Waiting;
        if self.mode.triggered() || self.mode.periodic() && started {
            self.advance(now);
            self.next = Some(count);
        } else {
            self.load(count, now);
        }
    }

    /// Loads the counting element at the next tick.
    fn load(&mut self, count: u32, now: u64) {
        self.initial = count;
        self.next = None;
        self.counting = match self.gate || self.mode.triggered() {
            true => Counting::Running { since: now.saturating_add(1) },
            false => Counting::Stopped { elapsed: 0 },
        };
    }

    /// The gate input changes.
    pub(super) fn set_gate(&mut self, gate: bool, now: u64) {
        if gate == self.gate {
            return;
        }
        self.advance(now);
        self.gate = gate;
        match (self.mode.triggered(), self.counting) {
            (true, _) if gate => self.trigger(now),
            (true, _) => {}
            (false, Counting::Running { since }) if !gate => {
                self.counting = Counting::Stopped { elapsed: now.saturating_sub(since) };
            }
            (false, Counting::Stopped { .. }) if gate && self.mode.periodic() => self.trigger(now),
            (false, Counting::Stopped { elapsed }) if gate => {
                self.counting = Counting::Running { since: now.saturating_sub(elapsed) };
            }
            _ => {}
        }
    }

    /// A rising gate loads the written count. Without one ever written there is nothing to count.
    fn trigger(&mut self, now: u64) {
        let loaded = self.counting != Counting::Waiting;
        match self.next {
            Some(count) => self.load(count, now),
            None if loaded => self.load(self.initial, now),
            None => {}
        }
    }

    /// A count written to a periodic counter takes over where the running period (mode 3: half
    /// period) ends. Brings that up to `now`.
    pub(super) fn advance(&mut self, now: u64) {
        if !self.mode.periodic() {
            return;
        }
        let (Some(next), Counting::Running { since }) = (self.next, self.counting) else { return };
        let Some(end) = self.boundary() else { return };
        // `end` is counted from when `next` was written: see `hand_over`.
        if now.saturating_sub(since) >= end {
            self.initial = next;
            self.next = None;
            self.counting = Counting::Running { since: since.saturating_add(end) };
        }
    }

    fn boundary(&self) -> Option<u64> {
        None
    }
}

fn modulus(bcd: bool) -> u32 {
    if bcd { 10_000 } else { 0x1_0000 }
}

fn from_bcd(value: u16) -> u32 {
    (0..4).rev().fold(0, |sum, digit| sum * 10 + u32::from(value >> (4 * digit) & 0xf))
}
