//! A hostile guest in a loop, for every device: random accesses and random time never panic, and
//! a device that was saved and restored in the middle behaves as the one that was not.

use std::sync::Arc;

use device::testing::{ManualTime, RecordingLine};
use device::{Answer, Device, GuestClock, PortIo, Width};

const STEPS: u64 = 100_000;
const SAVE_EVERY: u64 = 1_000;
const COMPARED: u64 = 300;
const RESET_ONE_IN: u64 = 3_000;
const STEPS_AFTER_DAMAGE: u64 = 30;

/// Reproducible random numbers (splitmix64).
#[derive(Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// How far time moves between two steps: mostly within a few ticks, now and then a long wait.
    pub(crate) fn pause(&mut self) -> u64 {
        match self.below(100) {
            0..40 => 0,
            40..90 => self.below(3_000),
            90..99 => self.below(1_000_000),
            _ => self.below(40_000_000),
        }
    }
}

/// A device with what surrounds it in a test.
pub(crate) trait Subject {
    /// Does one random thing to the device and returns what it showed: all that a guest or the
    /// outside could have seen of it.
    fn step(&self, random: &mut Random) -> u64;

    /// The device.
    fn device(&self) -> &dyn Device;
}

/// Hammers the devices that `new` makes on a clock.
pub(crate) fn hammer<S: Subject>(seed: u64, new: impl Fn(&Arc<ManualTime>) -> S) {
    let mut random = Random::new(seed);
    let mut time = ManualTime::new();
    let mut subject = new(&time);
    for step in 0..STEPS {
        time.advance(random.pause());
        subject.step(&mut random);
        if random.below(RESET_ONE_IN) == 0 {
            subject.device().reset();
        }
        if step % SAVE_EVERY == SAVE_EVERY - 1 {
            survives_damage(&subject, &time, &mut random, &new);
            (subject, time) = compare(&subject, &time, &mut random, &new, step);
        }
    }
}

/// Restores `old` into a new device and drives both alike; returns the new one.
fn compare<S: Subject>(
    old: &S,
    old_time: &Arc<ManualTime>,
    random: &mut Random,
    new: &impl Fn(&Arc<ManualTime>) -> S,
    at: u64,
) -> (S, Arc<ManualTime>) {
    let (restored, time) = successor(old_time, new);
    let section = old.device().save("0").expect("save");
    restored.device().restore(&section).expect("restore");
    let mut same = random.clone();
    for step in 0..COMPARED {
        old_time.advance(random.pause());
        time.advance(same.pause());
        let shown = (old.step(random), restored.step(&mut same));
        assert_eq!(shown.0, shown.1, "differs {step} steps after a restore at step {at}");
    }
    (restored, time)
}

/// A device restored from damaged state either refuses or lives with it.
fn survives_damage<S: Subject>(
    old: &S,
    old_time: &Arc<ManualTime>,
    random: &mut Random,
    new: &impl Fn(&Arc<ManualTime>) -> S,
) {
    let (restored, time) = successor(old_time, new);
    let mut section = old.device().save("0").expect("save");
    for _ in 0..=random.below(3) {
        let at = random.below(section.payload.len() as u64) as usize;
        section.payload[at] ^= 1 << random.below(8);
    }
    if restored.device().restore(&section).is_ok() {
        for _ in 0..STEPS_AFTER_DAMAGE {
            time.advance(random.pause());
            restored.step(random);
        }
    }
}

fn successor<S: Subject>(
    old: &Arc<ManualTime>,
    new: &impl Fn(&Arc<ManualTime>) -> S,
) -> (S, Arc<ManualTime>) {
    let time = ManualTime::new();
    time.advance(old.now());
    (new(&time), time)
}

/// One random access to one of `ports`; returns what was read and how it was answered.
pub(crate) fn access(device: &dyn PortIo, ports: &[u16], random: &mut Random) -> u64 {
    let port = random.pick(ports);
    let width = random.pick(&[Width::Byte, Width::Byte, Width::Byte, Width::Word, Width::Dword]);
    if random.below(2) == 0 {
        return answer(device.port_read(port, width));
    }
    let value = random.next() as u32 & random.pick(&[u32::MAX, 0xff, 0x0f, 0x33]);
    answer(match device.port_write(port, width, value) {
        Answer::Done(()) => Answer::Done(0),
        Answer::Fault => Answer::Fault,
        Answer::StopAfterInstruction((), cause) => Answer::StopAfterInstruction(0, cause),
    })
}

fn answer(answer: Answer<u32>) -> u64 {
    match answer {
        Answer::Done(value) => u64::from(value),
        Answer::Fault => 1 << 32,
        Answer::StopAfterInstruction(value, _) => 1 << 33 | u64::from(value),
    }
}

/// Runs `act` and adds to what it showed the level of `line` and the edges that it made on it.
pub(crate) fn watch(line: &RecordingLine, act: impl FnOnce() -> u64) -> u64 {
    let edges = line.edges();
    let shown = act();
    shown ^ u64::from(line.level()) << 63 ^ (line.edges() - edges) << 40
}
