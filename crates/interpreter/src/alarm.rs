//! Interrupts an engine when the local APIC's timer is due, for engines whose guest code does not
//! look at the clock: translated code, and code that runs natively.
//!
//! A thread sleeps until the deadline and then calls the wake function. A later deadline does not
//! wake the thread: it finds out when its earlier one comes.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The thread and the deadline that it has been given. It ends with the alarm.
pub struct Alarm {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// The deadline last set.
    present: Option<u64>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    at: Option<Instant>,
    /// When the thread will look next, if it sleeps.
    looks: Option<Instant>,
    ended: bool,
}

impl Alarm {
    /// An alarm without a deadline, which will call `wake` from its thread.
    ///
    /// # Errors
    /// When the host has no thread for it.
    pub fn new(wake: Arc<dyn Fn() + Send + Sync>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("vcpu-alarm".to_owned())
            .spawn(move || theirs.serve(&*wake))?;
        Ok(Self { shared, thread: Some(thread), present: None })
    }

    /// Whether `deadline`, in whatever unit, is another one than last time.
    pub fn is_news(&mut self, deadline: Option<u64>) -> bool {
        std::mem::replace(&mut self.present, deadline) != deadline
    }

    /// Wakes `distance` nanoseconds from now, or not at all.
    pub fn set(&mut self, distance: Option<u64>) {
        let at = distance.and_then(|ns| Instant::now().checked_add(Duration::from_nanos(ns)));
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.at = at;
        if let Some(at) = at
            && state.looks.is_none_or(|looks| at < looks)
        {
            // Until the thread has looked it need not be woken again for a later deadline.
            state.looks = Some(at);
            self.shared.changed.notify_one();
        }
    }
}

impl Shared {
    fn serve(&self, wake: &(dyn Fn() + Send + Sync)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.ended {
            let now = Instant::now();
            match state.at {
                Some(at) if at <= now => {
                    state.at = None;
                    wake();
                }
                Some(at) => {
                    state.looks = Some(at);
                    let slept = self.changed.wait_timeout(state, at - now);
                    state = slept.unwrap_or_else(PoisonError::into_inner).0;
                }
                None => {
                    state.looks = None;
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported; there is nothing to add.
            let _ = thread.join();
        }
    }
}
