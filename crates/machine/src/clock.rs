//! The guest's clocks.
//!
//! [`VmClock`] is guest real time: the host's monotonic clock minus the time that the VM was
//! paused, counted from the VM's creation and carried over by save and restore. [`HostWallClock`]
//! is the host's time of day.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use device::{GuestClock, Nanos, WallClock};

/// Guest real time. Made paused; see [`device::Nanos`] for what it promises.
///
/// Reading takes no lock: engines read it for every RDTSC.
///
/// ```
/// use device::GuestClock;
/// let clock = machine::VmClock::new(7);
/// assert_eq!(clock.now(), 7); // paused
/// clock.resume();
/// assert!(clock.now() >= 7);
/// ```
#[derive(Debug)]
pub struct VmClock {
    /// The host's monotonic clock counts from here.
    anchor: Instant,
    /// Odd while `running` and `base` change.
    generation: AtomicU64,
    running: AtomicBool,
    /// Paused: the time. Running: the time minus the nanoseconds since `anchor`, wrapping.
    base: AtomicU64,
    /// Held by whoever changes the clock.
    change: Mutex<()>,
}

impl VmClock {
    /// A paused clock at `now`.
    pub fn new(now: Nanos) -> Self {
        Self {
            anchor: Instant::now(),
            generation: AtomicU64::new(0),
            running: AtomicBool::new(false),
            base: AtomicU64::new(now),
            change: Mutex::new(()),
        }
    }

    /// Stops the clock where it is.
    pub fn pause(&self) {
        self.update(|running, base| match running {
            true => (false, base.wrapping_add(self.host_ns())),
            false => (false, base),
        });
    }

    /// Lets the clock go on from where it stopped.
    pub fn resume(&self) {
        self.update(|running, base| match running {
            true => (true, base),
            false => (true, base.wrapping_sub(self.host_ns())),
        });
    }

    /// Stops the clock at `now`: the time of a saved machine.
    pub fn set(&self, now: Nanos) {
        self.update(|_, _| (false, now));
    }

    /// Whether the clock advances.
    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }

    fn update(&self, change: impl FnOnce(bool, u64) -> (bool, u64)) {
        let _held = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let old = (self.running.load(Ordering::Relaxed), self.base.load(Ordering::Relaxed));
        // Sequentially consistent, as the reads in `now`: a reader that sees the same even
        // generation before and after has seen a consistent pair and a host time between.
        self.generation.fetch_add(1, Ordering::SeqCst);
        let (running, base) = change(old.0, old.1);
        self.running.store(running, Ordering::SeqCst);
        self.base.store(base, Ordering::SeqCst);
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    fn host_ns(&self) -> u64 {
        // 584 years of uptime fit.
        self.anchor.elapsed().as_nanos() as u64
    }
}

impl GuestClock for VmClock {
    fn now(&self) -> Nanos {
        loop {
            let before = self.generation.load(Ordering::SeqCst);
            let base = self.base.load(Ordering::SeqCst);
            let now = match self.running.load(Ordering::SeqCst) {
                true => base.wrapping_add(self.host_ns()),
                false => base,
            };
            if before.is_multiple_of(2) && self.generation.load(Ordering::SeqCst) == before {
                return now;
            }
            std::hint::spin_loop();
        }
    }
}

/// The host's time of day (CLOCK_REALTIME).
#[derive(Clone, Copy, Debug, Default)]
pub struct HostWallClock;

impl WallClock for HostWallClock {
    fn since_epoch(&self) -> Duration {
        // A host set to a time before 1970 shows the guest 1970.
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    const PAUSE: Duration = Duration::from_millis(20);

    #[test]
    fn stands_still_while_paused() {
        let clock = VmClock::new(1_000);
        thread::sleep(PAUSE);
        assert_eq!(clock.now(), 1_000);
        clock.resume();
        clock.pause();
        let stopped = clock.now();
        assert!(stopped < PAUSE.as_nanos() as u64, "the first pause was counted: {stopped}");
        thread::sleep(PAUSE);
        clock.pause();
        assert_eq!(clock.now(), stopped);
    }

    #[test]
    fn follows_the_host_while_it_runs() {
        let clock = VmClock::new(0);
        clock.resume();
        let (guest, host) = (clock.now(), Instant::now());
        thread::sleep(PAUSE);
        let elapsed = clock.now() - guest;
        assert!(elapsed >= PAUSE.as_nanos() as u64);
        assert!(elapsed <= host.elapsed().as_nanos() as u64 + 1_000_000);
        clock.resume();
        assert!(clock.now() >= guest + elapsed, "resuming twice moved it back");
    }

    #[test]
    fn goes_on_from_a_time_ahead_of_the_host() {
        let year = 31_536_000_000_000_000;
        let clock = VmClock::new(0);
        clock.resume();
        clock.set(year);
        assert_eq!(clock.now(), year);
        assert!(!clock.is_running());
        clock.resume();
        assert!((year..year + 1_000_000_000).contains(&clock.now()));
    }

    #[test]
    fn never_jumps_back_across_pauses() {
        let clock = Arc::new(VmClock::new(0));
        let reader = {
            let clock = Arc::clone(&clock);
            thread::spawn(move || {
                let mut last = 0;
                while last < 20_000_000 {
                    let now = clock.now();
                    assert!(now >= last, "{now} after {last}");
                    last = now;
                }
            })
        };
        while !reader.is_finished() {
            clock.resume();
            thread::sleep(Duration::from_micros(50));
            clock.pause();
        }
        reader.join().expect("reader");
    }

    #[test]
    fn the_wall_clock_is_the_hosts() {
        assert!(HostWallClock.since_epoch() > Duration::from_secs(1_700_000_000));
    }
}
