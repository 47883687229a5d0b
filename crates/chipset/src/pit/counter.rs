//! One counter of the 8254.
//!
//! Nothing counts while nobody looks: a counter remembers the tick at which it was loaded, and its
//! count and output are functions of the ticks since. Operations therefore take the time `now`, in
//! ticks of the PIT's clock.

/// A point in time, in ticks of the PIT's clock. Signed: the start of a period that was taken over
/// in its middle may lie before tick 0.
pub(super) type Tick = i64;

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

impl Access {
    /// From bits 5:4 of a control word; 0 is the latch command.
    pub(super) fn from_bits(bits: u8) -> Option<Self> {
        [None, Some(Self::Low), Some(Self::High), Some(Self::LowThenHigh)][usize::from(bits & 3)]
    }

    pub(super) fn bits(self) -> u8 {
        self as u8 + 1
    }
}

/// The counting element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counting {
    /// No count was written since the control word, or the first trigger has not come.
    Waiting,
    /// Loaded at tick `since`.
    Running { since: Tick },
    /// Stopped by the gate, `elapsed` ticks after it was loaded.
    Stopped { elapsed: u64 },
}

/// A written count that waits to be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NextCount {
    pub(super) count: u32,
    /// When it takes over from the running period; none where a rising gate will load it.
    pub(super) at: Option<Tick>,
}

/// The state of one counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Counter {
    pub(super) mode: Mode,
    pub(super) access: Access,
    pub(super) bcd: bool,
    /// Level of the gate input.
    pub(super) gate: bool,
    pub(super) counting: Counting,
    /// Ticks from load to terminal count: 1 to 65,536 (10,000 in BCD).
    pub(super) initial: u32,
    pub(super) next: Option<NextCount>,
    /// The first byte of a two-byte count.
    pub(super) low_written: Option<u8>,
    /// The next read of a two-byte count gives its high byte.
    pub(super) read_high: bool,
    /// What the latch command froze.
    pub(super) latched: Option<u16>,
    pub(super) latched_status: Option<u8>,
}

impl Counter {
    /// A counter that waits for its control word.
    pub(super) fn new(gate: bool) -> Self {
        Self {
            mode: Mode::TerminalCount,
            access: Access::LowThenHigh,
            bcd: false,
            gate,
            counting: Counting::Waiting,
            initial: modulus(false),
            next: None,
            low_written: None,
            read_high: false,
            latched: None,
            latched_status: None,
        }
    }

    /// A control word for this counter; it then waits for a count.
    pub(super) fn control(&mut self, access: Access, mode: Mode, bcd: bool) {
        let initial = modulus(bcd);
        *self = Self { access, mode, bcd, initial, ..Self::new(self.gate) };
    }

    /// A byte written to the counter's port.
    pub(super) fn write(&mut self, byte: u8, now: Tick) {
        match (self.access, self.low_written.take()) {
            (Access::Low, _) => self.write_count(u16::from(byte), now),
            (Access::High, _) => self.write_count(u16::from(byte) << 8, now),
            (Access::LowThenHigh, Some(low)) => {
                self.write_count(u16::from_le_bytes([low, byte]), now);
            }
            (Access::LowThenHigh, None) => {
                self.low_written = Some(byte);
                // The first byte stops mode 0 and takes its output down.
                if self.mode == Mode::TerminalCount {
                    self.counting = Counting::Waiting;
                }
            }
        }
    }

    /// A byte read from the counter's port: latched status, latched count, or the count now.
    pub(super) fn read(&mut self, now: Tick) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched.unwrap_or_else(|| self.count(now)).to_le_bytes();
        let (byte, last) = match self.access {
            Access::Low => (low, true),
            Access::High => (high, true),
            Access::LowThenHigh => {
                self.read_high = !self.read_high;
                if self.read_high { (low, false) } else { (high, true) }
            }
        };
        if last {
            self.latched = None;
        }
        byte
    }

    /// Freezes the count for the next read. A frozen one stays.
    pub(super) fn latch_count(&mut self, now: Tick) {
        if self.latched.is_none() {
            self.latched = Some(self.count(now));
        }
    }

    /// Freezes the status for the next read. A frozen one stays.
    pub(super) fn latch_status(&mut self, now: Tick) {
        if self.latched_status.is_none() {
            self.latched_status = Some(self.status(now));
        }
    }

    /// The gate input is driven to `gate`.
    pub(super) fn set_gate(&mut self, gate: bool, now: Tick) {
        if gate == self.gate {
            return;
        }
        self.advance(now);
        self.gate = gate;
        match self.counting {
            _ if self.mode.triggered() && gate => self.trigger(now),
            _ if self.mode.triggered() => {}
            Counting::Running { .. } if !gate => {
                self.counting = Counting::Stopped { elapsed: self.elapsed(now) };
            }
            Counting::Stopped { .. } if gate && self.mode.periodic() => self.trigger(now),
            Counting::Stopped { elapsed } if gate => {
                let since = now.saturating_sub_unsigned(elapsed);
                self.counting = Counting::Running { since };
            }
            _ => {}
        }
    }

    /// The output.
    pub(super) fn output(&self, now: Tick) -> bool {
        let counter = self.at(now);
        let initial = u64::from(counter.initial);
        let elapsed = match counter.counting {
            Counting::Waiting => return counter.mode != Mode::TerminalCount,
            Counting::Stopped { .. } if counter.mode.periodic() => return true,
            _ => counter.elapsed(now),
        };
        match counter.mode {
            Mode::TerminalCount | Mode::OneShot => elapsed >= initial,
            // A count of 1 is illegal here; the output then stays high.
            Mode::RateGenerator => initial == 1 || elapsed % initial != initial - 1,
            Mode::SquareWave => elapsed % initial < initial.div_ceil(2),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => elapsed != initial,
        }
    }

    /// The first tick after `now` at which the output rises by counting.
    pub(super) fn next_rise(&self, now: Tick) -> Option<Tick> {
        let counter = self.at(now);
        let rise = counter.rise_of_this_period(now);
        match counter.next {
            Some(NextCount { at: Some(at), .. }) if rise.is_none_or(|rise| rise > at) => {
                let successor = counter.at(at);
                // Taking over in the middle of a square wave is no rise; at its end it is.
                let rises = successor.output(at) && !counter.output(at - 1);
                if rises { Some(at) } else { successor.rise_of_this_period(at) }
            }
            _ => rise,
        }
    }

    fn rise_of_this_period(&self, now: Tick) -> Option<Tick> {
        let Counting::Running { since } = self.counting else { return None };
        let initial = Tick::from(self.initial);
        let rise = match self.mode {
            Mode::TerminalCount | Mode::OneShot => since.saturating_add(initial),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => since.saturating_add(initial + 1),
            Mode::RateGenerator | Mode::SquareWave => {
                if initial == 1 {
                    return None;
                }
                let periods = now.saturating_sub(since).max(0) / initial + 1;
                since.saturating_add(periods.saturating_mul(initial))
            }
        };
        (rise > now).then_some(rise)
    }

    /// Ticks between two rises, of a counter that counts over and over.
    pub(super) fn period(&self) -> Option<u32> {
        let counts = self.mode.periodic() && matches!(self.counting, Counting::Running { .. });
        (counts && self.initial > 1).then_some(self.initial)
    }

    fn write_count(&mut self, written: u16, now: Tick) {
        let modulus = modulus(self.bcd);
        let count = if self.bcd { from_bcd(written) % modulus } else { u32::from(written) };
        let count = if count == 0 { modulus } else { count };
        self.advance(now);
        match self.counting {
            _ if self.mode.triggered() => self.next = Some(NextCount { count, at: None }),
            Counting::Stopped { .. } if self.mode.periodic() => {
                self.next = Some(NextCount { count, at: None });
            }
            Counting::Running { since } if self.mode.periodic() => {
                let at = Some(self.end_of_part(since, now));
                self.next = Some(NextCount { count, at });
            }
            _ => self.load(count, now),
        }
    }

    /// When the running period ends, of a square wave its running half.
    fn end_of_part(&self, since: Tick, now: Tick) -> Tick {
        let initial = Tick::from(self.initial);
        let elapsed = now.saturating_sub(since).max(0);
        let (start, position) =
            (now.saturating_sub(elapsed % initial).max(since), elapsed % initial);
        let half = initial - initial / 2;
        match self.mode {
            Mode::SquareWave if position < half => start.saturating_add(half),
            _ => start.saturating_add(initial),
        }
    }

    /// Loads the counting element at the next tick.
    fn load(&mut self, count: u32, now: Tick) {
        self.initial = count;
        self.next = None;
        self.counting = if self.gate || self.mode.triggered() {
            Counting::Running { since: now.saturating_add(1) }
        } else {
            Counting::Stopped { elapsed: 0 }
        };
    }

    /// A rising gate loads the last written count, if there ever was one.
    fn trigger(&mut self, now: Tick) {
        match self.next {
            Some(NextCount { count, .. }) => self.load(count, now),
            None if self.counting != Counting::Waiting => self.load(self.initial, now),
            None => {}
        }
    }

    /// Lets a waiting count take over if its time has come.
    pub(super) fn advance(&mut self, now: Tick) {
        let Some(NextCount { count, at: Some(at) }) = self.next else { return };
        if now < at {
            return;
        }
        // A square wave that is taken over in its middle goes on with its low half.
        let low_half = self.mode == Mode::SquareWave && !self.output_unadvanced(at);
        let high_ticks = Tick::from(count.div_ceil(2));
        let since = if low_half { at.saturating_sub(high_ticks) } else { at };
        self.initial = count;
        self.next = None;
        self.counting = Counting::Running { since };
    }

    /// The output of a square wave by its running count.
    fn output_unadvanced(&self, now: Tick) -> bool {
        let initial = u64::from(self.initial);
        self.elapsed(now) % initial < initial.div_ceil(2)
    }

    /// The counter with a waiting count taken over if its time has come.
    fn at(&self, now: Tick) -> Self {
        let mut counter = self.clone();
        counter.advance(now);
        counter
    }

    fn elapsed(&self, now: Tick) -> u64 {
        match self.counting {
            Counting::Waiting => 0,
            Counting::Running { since } => now.saturating_sub(since).max(0).unsigned_abs(),
            Counting::Stopped { elapsed } => elapsed,
        }
    }

    /// The counting element, as it is read.
    fn count(&self, now: Tick) -> u16 {
        let counter = self.at(now);
        let (initial, elapsed) = (u64::from(counter.initial), counter.elapsed(now));
        let modulus = u64::from(modulus(counter.bcd));
        let count = match counter.mode {
            Mode::RateGenerator => initial - elapsed % initial,
            Mode::SquareWave => {
                // Counts by two from the even part of the count, once per half.
                let (position, half) = (elapsed % initial, initial.div_ceil(2));
                let into_half = if position < half { position } else { position - half };
                (initial & !1).saturating_sub(2 * into_half)
            }
            _ => initial + modulus - elapsed % modulus,
        };
        let count = (count % modulus) as u16;
        if counter.bcd { to_bcd(count) } else { count }
    }

    /// The status byte of the read-back command.
    fn status(&self, now: Tick) -> u8 {
        let counter = self.at(now);
        let unloaded = match counter.counting {
            Counting::Waiting => true,
            Counting::Running { since } => since > now,
            Counting::Stopped { .. } => false,
        };
        u8::from(counter.output(now)) << 7
            | u8::from(unloaded || counter.next.is_some()) << 6
            | counter.access.bits() << 4
            | (counter.mode as u8) << 1
            | u8::from(counter.bcd)
    }
}

/// What a count of 0 stands for.
pub(super) fn modulus(bcd: bool) -> u32 {
    if bcd { 10_000 } else { 0x1_0000 }
}

fn from_bcd(value: u16) -> u32 {
    (0..4).rev().fold(0, |sum, digit| sum * 10 + u32::from(value >> (4 * digit) & 0xf))
}

fn to_bcd(value: u16) -> u16 {
    let digit = |weight: u16| value / weight % 10;
    digit(1) | digit(10) << 4 | digit(100) << 8 | digit(1000) << 12
}
