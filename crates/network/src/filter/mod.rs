//! The packet filter of a port: ordered rules between a guest and its network.
//!
//! A [`Filter`] is a network that stands before another one. Each frame, in either direction, is
//! compared with the rules in their order; the first that fits decides. Before the rules, frames of
//! the guest with other sources than its own are dropped: another Ethernet address, or, once the
//! guest was seen to get a lease, another IPv4 address.
//!
//! Rules are replaced as a whole while the VM runs ([`Filter::replace`]); counters begin anew with
//! them. What was allowed and rewritten is remembered in bounded memory.

mod engine;
mod flows;
mod rewrite;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use backend::{Counter, Frame, MacAddress, NetBackend, Offload, Wake};

use rules::{Network, Rewrite};
pub use rules::{Rules, RulesError};

use engine::{Engine, Verdict};

/// Answers to frames that were rejected, on their way to the guest; more are dropped.
const MAX_ANSWERS: usize = 64;

/// A packet filter before a network.
pub struct Filter {
    inner: Arc<dyn NetBackend>,
    engine: Mutex<Engine>,
    answers: Mutex<VecDeque<Frame>>,
    wake: OnceLock<Wake>,
}

impl Filter {
    /// A filter before `inner` for the guest whose card has the address `mac`, which has the IPv4
    /// address `lease` if that is known already.
    pub fn new(
        inner: Arc<dyn NetBackend>,
        rules: &Rules,
        mac: MacAddress,
        lease: Option<Ipv4Addr>,
    ) -> Self {
        let engine = Mutex::new(Engine::new(rules, mac, lease, Instant::now()));
        Self { inner, engine, answers: Mutex::default(), wake: OnceLock::new() }
    }

    /// Takes other rules, from one frame to the next.
    pub fn replace(&self, rules: &Rules) {
        lock(&self.engine).replace(rules);
    }

    /// Gives the guest an answer.
    fn answer(&self, frame: Frame) {
        let mut answers = lock(&self.answers);
        if answers.len() < MAX_ANSWERS {
            answers.push_back(frame);
        }
        drop(answers);
        if let Some(wake) = self.wake.get() {
            wake();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl NetBackend for Filter {
    fn mtu(&self) -> Option<u16> {
        self.inner.mtu()
    }

    fn send(&self, frame: &mut [u8], offload: Offload) {
        let verdict = lock(&self.engine).outgoing(frame, offload, Instant::now());
        match verdict {
            Verdict::Pass => self.inner.send(frame, offload),
            Verdict::Drop => {}
            Verdict::Answer(answer) => self.answer(answer),
        }
    }

    fn sent(&self) {
        self.inner.sent();
    }

    fn receive(&self) -> Option<Frame> {
        loop {
            if let Some(answer) = lock(&self.answers).pop_front() {
                return Some(answer);
            }
            let mut frame = self.inner.receive()?;
            let verdict = lock(&self.engine).incoming(&mut frame, Instant::now());
            match verdict {
                Verdict::Pass => return Some(frame),
                Verdict::Drop => {}
                Verdict::Answer(answer) => {
                    self.inner.send(&mut answer.to_vec(), answer.offload);
                    self.inner.sent();
                }
            }
        }
    }

    fn connect(&self, wake: Wake) {
        // There is one guest.
        let _ = self.wake.set(Arc::clone(&wake));
        self.inner.connect(wake);
    }

    fn reset(&self) {
        lock(&self.answers).clear();
        self.inner.reset();
    }

    fn counters(&self) -> Vec<Counter> {
        let mut all = lock(&self.engine).counters();
        all.extend(self.inner.counters());
        all
    }
}
