//! When a device's thread works: it is kicked, paused and ended by others.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The state of a device's thread.
#[derive(Default)]
pub(crate) struct Control {
    flags: Mutex<Flags>,
    changed: Condvar,
}

#[derive(Default)]
struct Flags {
    /// There may be something to do.
    kicked: bool,
    /// It may be done.
    running: bool,
    /// When there may be something to do although nobody says so.
    alarm: Option<Instant>,
    /// It is being done.
    busy: bool,
    ended: bool,
}

/// Marks the thread as idle again, also when the work panics: nobody waits for it for ever.
struct Busy<'a>(&'a Control);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.lock().busy = false;
        self.0.changed.notify_all();
    }
}

impl Control {
    /// There may be something to do.
    pub(crate) fn kick(&self) {
        self.lock().kicked = true;
        self.changed.notify_all();
    }

    /// There may be something to do at this time.
    pub(crate) fn kick_at(&self, at: Instant) {
        let mut flags = self.lock();
        flags.alarm = Some(flags.alarm.map_or(at, |alarm| alarm.min(at)));
    }

    /// Lets the thread work. It looks for what came before.
    pub(crate) fn resume(&self) {
        let mut flags = self.lock();
        flags.running = true;
        flags.kicked = true;
        self.changed.notify_all();
    }

    /// Keeps the thread from working; returns when it does not.
    pub(crate) fn pause(&self) {
        let mut flags = self.lock();
        flags.running = false;
        while flags.busy {
            flags = self.wait(flags);
        }
    }

    /// Ends the thread.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// Whether work is to be left undone.
    pub(crate) fn must_stop(&self) -> bool {
        let flags = self.lock();
        !flags.running || flags.ended
    }

    /// The thread: works whenever it was kicked and may, until it is ended.
    pub(crate) fn serve(&self, work: impl Fn()) {
        let mut flags = self.lock();
        while !flags.ended {
            let now = Instant::now();
            let rung = flags.alarm.is_some_and(|at| at <= now);
            if !(flags.running && (flags.kicked || rung)) {
                flags = match flags.alarm.filter(|_| flags.running) {
                    Some(at) => self.wait_until(flags, at.saturating_duration_since(now)),
                    None => self.wait(flags),
                };
                continue;
            }
            flags.kicked = false;
            flags.alarm = None;
            flags.busy = true;
            drop(flags);
            let busy = Busy(self);
            work();
            drop(busy);
            flags = self.lock();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Flags> {
        self.flags.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until<'a>(
        &self,
        flags: MutexGuard<'a, Flags>,
        time: Duration,
    ) -> MutexGuard<'a, Flags> {
        self.changed.wait_timeout(flags, time).unwrap_or_else(PoisonError::into_inner).0
    }

    fn wait<'a>(&self, flags: MutexGuard<'a, Flags>) -> MutexGuard<'a, Flags> {
        self.changed.wait(flags).unwrap_or_else(PoisonError::into_inner)
    }
}
