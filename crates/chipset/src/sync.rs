//! Locks of devices and the lines that they drive.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device::{InterruptLine, Nanos, Timer};

/// Locks `mutex`. A panic elsewhere is no reason to panic here too: every state of a device is
/// one that a guest could have produced.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// State behind a lock, and a line whose level is a function of that state.
///
/// Lines lead into other devices, so the level is set after the lock is released. Two threads
/// that change the state may then set the line in the wrong order; each therefore looks again
/// after it set the line, and whoever set it last sets it right.
pub(crate) struct Driven<S> {
    state: Mutex<S>,
    line: Arc<dyn InterruptLine>,
    level: fn(&S) -> bool,
    /// Threads between a change of the state and the line's.
    changing: AtomicU32,
}

impl<S> Driven<S> {
    /// `state`, driving `line` at the level that `level` computes.
    pub(crate) fn new(state: S, line: Arc<dyn InterruptLine>, level: fn(&S) -> bool) -> Self {
        Self { state: Mutex::new(state), line, level, changing: AtomicU32::new(0) }
    }

    /// Looks at the state.
    pub(crate) fn read<R>(&self, look: impl FnOnce(&S) -> R) -> R {
        look(&lock(&self.state))
    }

    /// Changes the state, then sets the line if its level changed.
    pub(crate) fn update<R>(&self, change: impl FnOnce(&mut S) -> R) -> R {
        self.changing.fetch_add(1, Ordering::Acquire);
        let mut state = lock(&self.state);
        let before = (self.level)(&state);
        let result = change(&mut state);
        let after = (self.level)(&state);
        drop(state);
        if before != after {
            self.publish();
        }
        self.changing.fetch_sub(1, Ordering::Release);
        result
    }

    /// Waits until the line follows every change made so far, which takes other threads a moment:
    /// a guest that has read a request from a register may expect its interrupt.
    pub(crate) fn settle(&self) {
        while self.changing.load(Ordering::Acquire) != 0 {
            std::thread::yield_now();
        }
    }

    /// Sets the line to the level of the state now.
    pub(crate) fn publish(&self) {
        loop {
            let level = (self.level)(&lock(&self.state));
            self.line.set(level);
            if (self.level)(&lock(&self.state)) == level {
                return;
            }
        }
    }
}

/// Arms `timer` to the deadline that `deadline` reads from a device's state.
///
/// As with lines, this happens with the state unlocked, and each thread looks again.
pub(crate) fn arm(timer: &dyn Timer, deadline: impl Fn() -> Option<Nanos>) {
    loop {
        let wanted = deadline();
        match wanted {
            Some(at) => timer.arm(at),
            None => timer.disarm(),
        }
        if deadline() == wanted {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use device::testing::RecordingLine;

    use super::*;

    #[test]
    fn a_line_ends_at_the_level_of_the_state_whoever_was_last() {
        for _ in 0..200 {
            let line = RecordingLine::new();
            let driven = Driven::new(0u32, line.clone(), |count| *count % 3 != 0);
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| (0..101).for_each(|_| driven.update(|count| *count += 1)));
                }
            });
            assert_eq!(driven.read(|count| *count), 303);
            assert!(!line.level());
        }
    }
}
