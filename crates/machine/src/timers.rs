//! The timer thread.
//!
//! All devices of a machine share one thread that sleeps until the earliest deadline; without one
//! it sleeps for good, so an idle guest costs nothing. Deadlines are in guest real time. The
//! thread runs callbacks only between [`TimerThread::start`] and [`TimerThread::stop`], while the
//! clock runs; what is armed meanwhile waits.
//!
//! Neighbours: `device` defines the contract; `lifecycle` starts and stops the thread with the
//! clock.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use device::{GuestClock, Nanos, Timer, TimerCallback, Timers};

use crate::{MachineError, VmClock};

/// The timers of a machine, with the thread that serves them. Dropping it ends the thread and
/// drops all callbacks, so that devices that own timers and callbacks that own devices do not
/// keep each other alive.
pub struct TimerThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    clock: Arc<VmClock>,
    state: Mutex<State>,
    /// Signalled when the thread has something to look at, and when a callback has ended.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    timers: Vec<Entry>,
    /// (deadline, index into `timers`) of each armed timer.
    queue: BTreeSet<(Nanos, usize)>,
    running: bool,
    in_callback: bool,
    ended: bool,
}

struct Entry {
    name: &'static str,
    deadline: Option<Nanos>,
    fired: u64,
    callback: Option<Arc<TimerCallback>>,
}

impl TimerThread {
    /// Starts the thread, with timers stopped.
    ///
    /// # Errors
    /// [`MachineError::Host`] when the host has no thread for it.
    pub fn new(clock: Arc<VmClock>) -> Result<Self, MachineError> {
        let state = Mutex::new(State::default());
        let shared = Arc::new(Shared { clock, state, changed: Condvar::new() });
        let served = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("timers".to_owned())
            .spawn(move || served.serve())
            .map_err(|cause| MachineError::Host { action: "start the timer thread", cause })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Lets timers fire. The clock is running.
    pub fn start(&self) {
        self.shared.lock().running = true;
        self.shared.changed.notify_all();
    }

    /// Keeps timers from firing; returns when no callback runs any more. Deadlines stay armed.
    /// Not to be called from a callback.
    pub fn stop(&self) {
        let mut state = self.shared.lock();
        state.running = false;
        while state.in_callback {
            state = self.shared.wait(state);
        }
    }

    /// Instead of the thread, lets the timers fire that are due up to guest time `end`, in order of
    /// their deadlines, each with the clock set to its deadline. Not between [`TimerThread::start`]
    /// and [`TimerThread::stop`].
    pub fn fire_until(&self, end: Nanos) {
        let mut state = self.shared.lock();
        while let Some((deadline, index)) = state.queue.first().copied()
            && deadline <= end
        {
            self.shared.clock.set(deadline.max(self.shared.clock.now()));
            state = self.shared.fire(state, deadline, index);
        }
    }

    /// The earliest deadline.
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.shared.lock().queue.first().map(|(deadline, _)| *deadline)
    }

    /// How often each timer fired, by name in order of creation.
    pub fn fired(&self) -> Vec<(&'static str, u64)> {
        self.shared.lock().timers.iter().map(|t| (t.name, t.fired)).collect()
    }
}

impl Timers for TimerThread {
    fn create(&self, name: &'static str, callback: TimerCallback) -> Arc<dyn Timer> {
        let mut state = self.shared.lock();
        let callback = Some(Arc::new(callback));
        state.timers.push(Entry { name, deadline: None, fired: 0, callback });
        let index = state.timers.len() - 1;
        Arc::new(Handle { shared: Arc::clone(&self.shared), index })
    }
}

impl Drop for TimerThread {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
        // When the last owner is a callback itself, the thread cannot wait for its own end.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            // The thread ends normally unless a callback panicked, which was reported then.
            let _ = thread.join();
        }
        let callbacks: Vec<_> =
            self.shared.lock().timers.iter_mut().map(|t| t.callback.take()).collect();
        drop(callbacks);
    }
}

struct Handle {
    shared: Arc<Shared>,
    index: usize,
}

impl Timer for Handle {
    fn arm(&self, deadline: Nanos) {
        self.shared.set_deadline(self.index, Some(deadline));
    }

    fn disarm(&self) {
        self.shared.set_deadline(self.index, None);
    }
}

impl Shared {
    fn set_deadline(&self, index: usize, deadline: Option<Nanos>) {
        let mut state = self.lock();
        let old = std::mem::replace(&mut state.timers[index].deadline, deadline);
        if let Some(old) = old {
            state.queue.remove(&(old, index));
        }
        let Some(deadline) = deadline else { return };
        state.queue.insert((deadline, index));
        // A later end of the present sleep only makes the thread look once too often.
        if state.running && state.queue.first() == Some(&(deadline, index)) {
            self.changed.notify_all();
        }
    }

    /// The thread.
    fn serve(&self) {
        let mut state = self.lock();
        while !state.ended {
            let next = if state.running { state.queue.first().copied() } else { None };
            let Some((deadline, index)) = next else {
                state = self.wait(state);
                continue;
            };
            let now = self.clock.now();
            if now < deadline {
                state = self.wait_for(state, Duration::from_nanos(deadline - now));
            } else {
                state = self.fire(state, deadline, index);
            }
        }
    }

    /// Runs one callback without the lock.
    fn fire<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        deadline: Nanos,
        index: usize,
    ) -> MutexGuard<'a, State> {
        state.queue.remove(&(deadline, index));
        let timer = &mut state.timers[index];
        timer.deadline = None;
        timer.fired += 1;
        let callback = timer.callback.clone();
        state.in_callback = true;
        drop(state);
        if let Some(callback) = callback {
            callback(deadline);
        }
        let mut state = self.lock();
        state.in_callback = false;
        self.changed.notify_all();
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Instant;

    use super::*;

    const MS: Nanos = 1_000_000;
    const LONG: Duration = Duration::from_secs(10);

    fn timers() -> (Arc<VmClock>, TimerThread) {
        let clock = Arc::new(VmClock::new(0));
        let timers = TimerThread::new(Arc::clone(&clock)).unwrap();
        (clock, timers)
    }

    /// A timer that reports (deadline, time of the call).
    fn reporting(
        clock: &Arc<VmClock>,
        timers: &TimerThread,
    ) -> (Arc<dyn Timer>, Receiver<(Nanos, Nanos)>) {
        let (sender, receiver) = channel();
        let clock = Arc::clone(clock);
        let callback = Box::new(move |deadline| {
            sender.send((deadline, clock.now())).unwrap();
        });
        (timers.create("test", callback), receiver)
    }

    fn run(clock: &VmClock, timers: &TimerThread) {
        clock.resume();
        timers.start();
    }

    #[test]
    fn fires_in_order_and_never_early() {
        let (clock, timers) = timers();
        let (late, late_fired) = reporting(&clock, &timers);
        let (early, early_fired) = reporting(&clock, &timers);
        late.arm(12 * MS);
        early.arm(3 * MS);
        run(&clock, &timers);
        let (deadline, first) = early_fired.recv_timeout(LONG).unwrap();
        assert!(deadline == 3 * MS && first >= deadline);
        let (deadline, second) = late_fired.recv_timeout(LONG).unwrap();
        assert!(deadline == 12 * MS && second >= deadline && second >= first);
        assert_eq!(timers.fired(), [("test", 1), ("test", 1)]);
    }

    #[test]
    fn arming_again_replaces_and_disarming_forgets() {
        let (clock, timers) = timers();
        let (timer, fired) = reporting(&clock, &timers);
        let (other, never) = reporting(&clock, &timers);
        run(&clock, &timers);
        timer.arm(u64::MAX);
        other.arm(5 * MS);
        timer.arm(2 * MS);
        other.disarm();
        assert_eq!(fired.recv_timeout(LONG).unwrap().0, 2 * MS);
        assert!(never.recv_timeout(Duration::from_millis(20)).is_err());
    }

    #[test]
    fn nothing_fires_while_stopped() {
        let (clock, timers) = timers();
        let (timer, fired) = reporting(&clock, &timers);
        run(&clock, &timers);
        timers.stop();
        timer.arm(0);
        assert!(fired.recv_timeout(Duration::from_millis(20)).is_err());
        timers.start();
        assert_eq!(fired.recv_timeout(LONG).unwrap().0, 0);
    }

    #[test]
    fn stopping_waits_for_a_running_callback() {
        let (clock, timers) = timers();
        let (entered, started) = channel();
        let done = Arc::new(Mutex::new(false));
        let finished = Arc::clone(&done);
        let timer = timers.create(
            "slow",
            Box::new(move |_| {
                entered.send(()).unwrap();
                thread::sleep(Duration::from_millis(20));
                *finished.lock().unwrap() = true;
            }),
        );
        run(&clock, &timers);
        timer.arm(0);
        started.recv_timeout(LONG).unwrap();
        timers.stop();
        assert!(*done.lock().unwrap());
    }

    #[test]
    fn a_callback_arms_its_own_timer_again() {
        let (clock, timers) = timers();
        let own: Arc<Mutex<Option<Arc<dyn Timer>>>> = Arc::default();
        let again = Arc::clone(&own);
        let (sender, receiver) = channel();
        let timer = timers.create(
            "periodic",
            Box::new(move |deadline| {
                sender.send(deadline).unwrap();
                again.lock().unwrap().as_ref().unwrap().arm(deadline + MS);
            }),
        );
        *own.lock().unwrap() = Some(Arc::clone(&timer));
        run(&clock, &timers);
        timer.arm(MS);
        let deadlines: Vec<_> = (0..5).map(|_| receiver.recv_timeout(LONG).unwrap()).collect();
        assert_eq!(deadlines, [MS, 2 * MS, 3 * MS, 4 * MS, 5 * MS]);
    }

    #[test]
    fn timers_fire_by_hand_at_their_deadlines() {
        let (clock, timers) = timers();
        let own: Arc<Mutex<Option<Arc<dyn Timer>>>> = Arc::default();
        let (again, time) = (Arc::clone(&own), Arc::clone(&clock));
        let (sender, receiver) = channel();
        let timer = timers.create(
            "periodic",
            Box::new(move |deadline| {
                sender.send((deadline, time.now())).unwrap();
                again.lock().unwrap().as_ref().unwrap().arm(deadline + MS);
            }),
        );
        *own.lock().unwrap() = Some(Arc::clone(&timer));
        timer.arm(MS);
        timers.fire_until(3 * MS + 1);
        let fired: Vec<_> = receiver.try_iter().collect();
        assert_eq!(fired, [(MS, MS), (2 * MS, 2 * MS), (3 * MS, 3 * MS)]);
        assert_eq!(timers.next_deadline(), Some(4 * MS));
    }

    #[test]
    fn dropping_ends_the_thread_and_breaks_cycles() {
        let (clock, timers) = timers();
        let owner: Arc<Mutex<Option<Arc<dyn Timer>>>> = Arc::default();
        let watch: Weak<_> = Arc::downgrade(&owner);
        let owned = Arc::clone(&owner);
        let timer = timers.create("cycle", Box::new(move |_| drop(owned.lock())));
        timer.arm(u64::MAX);
        *owner.lock().unwrap() = Some(timer);
        drop(owner);
        run(&clock, &timers);
        let start = Instant::now();
        drop(timers);
        assert!(start.elapsed() < LONG);
        assert!(watch.upgrade().is_none());
    }
}
