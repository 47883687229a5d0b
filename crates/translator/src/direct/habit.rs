//! Whether direct execution pays for an address space.
//!
//! Entering and leaving a sandbox costs some tens of microseconds, a system call in translated code
//! less than one; translated user code takes two to five times as long as the host's own. So user
//! code that runs long between two entries into its kernel is to run directly, and other code is
//! not. Each stretch of direct execution earns what translation would have lost and pays for its
//! stop; when the credit is used up, the address space goes back to translation for a while.
//!
//! A sandbox begins empty, and each page that is missed is a stop too. They are an investment: what
//! may be spent on them is what half of the time that the code has already run would pay for, and
//! an address space that has spent its credit on them alone need not pause, but earns more.

use std::time::{Duration, Instant};

/// What entering and stopping cost, in nanoseconds of CPU time.
const STOP_COST: i64 = 40_000;
/// The most credit that an address space can have.
const MOST_CREDIT: i64 = 2_000_000;
/// The most that is left when it may have become another process's.
const DOUBTFUL_CREDIT: i64 = 100_000;
/// An address space whose kernel is busy less often than once in so long begins.
const QUIET: Duration = Duration::from_micros(20);
/// Samples shorter than this tell nothing.
const SHORTEST_SAMPLE: Duration = Duration::from_micros(500);
/// How long it is translated after direct execution has not paid: first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The habits of one address space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Habit {
    direct: bool,
    credit: i64,
    /// Stops since it began, and those of them for a page that was not mapped.
    stops: u32,
    mappings: u32,
    pause: Duration,
    not_before: Option<Instant>,
}

impl Default for Habit {
    fn default() -> Self {
        Self {
            direct: false,
            credit: 0,
            stops: 0,
            mappings: 0,
            pause: FIRST_PAUSE,
            not_before: None,
        }
    }
}

impl Habit {
    /// Whether user code is to be executed directly.
    #[inline]
    pub(crate) fn is_direct(&self) -> bool {
        self.direct
    }

    /// User code was found running `since` the last sample, during which its kernel had `busy`
    /// things to do.
    pub(crate) fn sample(&mut self, now: Instant, since: Duration, busy: u64) {
        let quiet = since >= SHORTEST_SAMPLE
            && u32::try_from(busy).is_ok_and(|busy| since >= QUIET.saturating_mul(busy));
        if !self.direct && quiet && self.not_before.is_none_or(|begin| now >= begin) {
            let earned = i64::try_from(since.as_nanos() / 2).unwrap_or(MOST_CREDIT);
            self.credit = earned.min(MOST_CREDIT);
            (self.direct, self.stops, self.mappings) = (true, 0, 0);
        }
    }

    /// The address space may be that of another process from now on.
    pub(crate) fn doubt(&mut self) {
        self.credit = self.credit.min(DOUBTFUL_CREDIT);
    }

    /// Direct execution has stopped after so much CPU time.
    pub(crate) fn stopped(&mut self, after: Duration) {
        let gain = i64::try_from(after.as_nanos()).unwrap_or(MOST_CREDIT) - STOP_COST;
        self.credit = self.credit.saturating_add(gain).min(MOST_CREDIT);
        self.stops = self.stops.saturating_add(1);
        if self.credit >= MOST_CREDIT {
            self.pause = FIRST_PAUSE;
        }
        if self.credit < 0 {
            self.direct = false;
            if self.mappings < self.stops / 2 {
                self.not_before = Instant::now().checked_add(self.pause);
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// The last stop was for a page that is mapped now.
    pub(crate) fn mapped(&mut self) {
        self.mappings = self.mappings.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(4);

    #[test]
    fn long_stretches_begin_and_stay() {
        let (mut habit, now) = (Habit::default(), Instant::now());
        habit.sample(now, TICK, 1000);
        assert!(!habit.is_direct(), "a busy kernel");
        habit.sample(now, Duration::from_micros(100), 0);
        assert!(!habit.is_direct(), "too short to tell");
        habit.sample(now, TICK, 20);
        assert!(habit.is_direct());
        for _ in 0..10_000 {
            habit.stopped(Duration::from_micros(41));
        }
        assert!(habit.is_direct());
    }

    #[test]
    fn short_stretches_end_it_for_longer_each_time() {
        let mut habit = Habit::default();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let long_after = Instant::now() + 2 * LONGEST_PAUSE;
            habit.sample(long_after, TICK, 0);
            assert!(habit.is_direct());
            pauses.push(habit.pause);
            while habit.is_direct() {
                habit.stopped(Duration::from_micros(1));
            }
            habit.sample(Instant::now(), TICK, 0);
            assert!(!habit.is_direct(), "it pauses");
        }
        assert_eq!(pauses[0], FIRST_PAUSE);
        assert!(pauses.is_sorted() && pauses[11] == LONGEST_PAUSE, "{pauses:?}");
    }

    #[test]
    fn pages_that_are_missed_are_paid_from_what_has_been_earned() {
        let (mut habit, now) = (Habit::default(), Instant::now());
        for _ in 0..3 {
            habit.sample(now, TICK, 0);
            assert!(habit.is_direct(), "it need not pause");
            let mut stops = 0;
            while habit.is_direct() {
                habit.stopped(Duration::ZERO);
                habit.mapped();
                stops += 1;
            }
            assert!((40..80).contains(&stops), "half of a tick's worth: {stops}");
        }
    }
}
