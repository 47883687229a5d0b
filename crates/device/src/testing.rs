//! Stand-ins for a machine, to test a device alone: a clock that is set by hand, timers that fire
//! by hand, a line that records its levels.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::{GuestClock, InterruptLine, Nanos, Timer, TimerCallback, Timers, WallClock};

/// A clock that stands still until it is advanced; also its own [`Timers`].
#[derive(Default)]
pub struct ManualTime {
    now: AtomicU64,
    timers: Mutex<Vec<Arc<ManualTimer>>>,
}

struct ManualTimer {
    deadline: Mutex<Option<Nanos>>,
    callback: TimerCallback,
}

impl ManualTime {
    /// A clock at zero.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Moves time forward by `delta`, firing timers in order at their deadlines.
    pub fn advance(&self, delta: Nanos) {
        let end = self.now() + delta;
        while let Some((deadline, timer)) = self.next_before(end) {
            self.now.fetch_max(deadline, Ordering::Relaxed);
            (timer.callback)(deadline);
        }
        self.now.store(end, Ordering::Relaxed);
    }

    /// The earliest armed deadline.
    pub fn next_deadline(&self) -> Option<Nanos> {
        lock(&self.timers).iter().filter_map(|t| *lock(&t.deadline)).min()
    }

    fn next_before(&self, end: Nanos) -> Option<(Nanos, Arc<ManualTimer>)> {
        let timers = lock(&self.timers);
        let armed = timers.iter().filter_map(|t| lock(&t.deadline).map(|d| (d, t)));
        let (deadline, timer) = armed.filter(|(d, _)| *d <= end).min_by_key(|(d, _)| *d)?;
        *lock(&timer.deadline) = None;
        Some((deadline, Arc::clone(timer)))
    }
}

impl GuestClock for ManualTime {
    fn now(&self) -> Nanos {
        self.now.load(Ordering::Relaxed)
    }
}

impl WallClock for ManualTime {
    /// 2026-01-01T00:00:00Z plus the manual time.
    fn since_epoch(&self) -> Duration {
        Duration::from_secs(1_767_225_600) + Duration::from_nanos(self.now())
    }
}

impl Timers for ManualTime {
    fn create(&self, _name: &'static str, callback: TimerCallback) -> Arc<dyn Timer> {
        let timer = Arc::new(ManualTimer { deadline: Mutex::new(None), callback });
        lock(&self.timers).push(Arc::clone(&timer));
        timer
    }
}

impl Timer for ManualTimer {
    fn arm(&self, deadline: Nanos) {
        *lock(&self.deadline) = Some(deadline);
    }

    fn disarm(&self) {
        *lock(&self.deadline) = None;
    }
}

/// A line that counts its rising edges.
#[derive(Default, Debug)]
pub struct RecordingLine {
    level: AtomicBool,
    edges: AtomicU64,
}

impl RecordingLine {
    /// A low line.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// The level now.
    pub fn level(&self) -> bool {
        self.level.load(Ordering::Relaxed)
    }

    /// Rising edges so far.
    pub fn edges(&self) -> u64 {
        self.edges.load(Ordering::Relaxed)
    }
}

impl InterruptLine for RecordingLine {
    fn set(&self, level: bool) {
        if !self.level.swap(level, Ordering::Relaxed) && level {
            self.edges.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
