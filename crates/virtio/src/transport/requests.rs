//! The requests of one queue, as its device takes and returns them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Shared;
use crate::{Chain, Dma, Pending};

/// A driver is told of finished requests when nothing is left to do, or after this time.
const OVERDUE: Duration = Duration::from_micros(100);

/// The requests of one queue, while the device's thread serves it. What was taken is returned by
/// [`Requests::finish`] or [`Requests::untake`] before the thread leaves the queue, or it is begun by
/// [`Requests::begin`] and returned at any time: a request that is not, counts as one with which
/// the driver broke the rules.
pub struct Requests<'a> {
    shared: &'a Arc<Shared>,
    queue: usize,
    features: u64,
    /// The device's life in which the requests were taken.
    life: u64,
    /// Requests that were taken and not returned.
    taken: usize,
    /// When the first request was returned of which the driver is not told.
    untold: Option<Instant>,
}

/// A request that is under way when the thread has left its queue.
pub(crate) struct Job {
    pub(crate) chain: Chain,
    /// Negotiated features.
    pub(crate) features: u64,
    /// Index of its queue.
    pub(crate) queue: usize,
    /// The device's life that it belongs to.
    pub(super) life: u64,
}

impl<'a> Requests<'a> {
    /// Lets the device serve a queue, and tells the driver.
    pub(super) fn serve(shared: &'a Arc<Shared>, queue: usize) {
        let (features, life) = {
            let state = shared.lock();
            (state.common.driver_features, state.life)
        };
        let mut requests = Self { shared, queue, features, life, taken: 0, untold: None };
        let served = shared.device.serve(queue, &mut requests);
        let Self { taken, .. } = requests;
        if served.is_err() || taken != 0 {
            shared.update(|state, effects| state.refuse(life, taken, effects));
        }
        requests.tell();
    }

    /// Guest memory.
    pub fn dma(&self) -> &'a Dma {
        &self.shared.dma
    }

    /// The negotiated features.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The next request, if there is one and the device may work. Without one, the driver will
    /// tell of the next.
    pub fn take(&mut self) -> Option<Chain> {
        if self.shared.control.must_stop() {
            return None;
        }
        let (dma, queue, life) = (&self.shared.dma, self.queue, self.life);
        let chain = self.shared.update(|state, effects| {
            // A driver that has begun anew may have agreed on other features.
            if state.life == life { state.take(queue, dma, effects) } else { None }
        });
        self.taken += usize::from(chain.is_some());
        chain
    }

    /// Returns the request that began with descriptor `head`, into which `written` bytes were
    /// written.
    pub fn finish(&mut self, head: u16, written: u32) {
        self.finish_all(&[(head, written)]);
    }

    /// Returns several requests, of which the driver sees all or none.
    pub fn finish_all(&mut self, done: &[(u16, u32)]) {
        let (dma, at) = (&self.shared.dma, (self.queue, self.life));
        self.taken -= done.len();
        self.shared.requests.fetch_add(done.len() as u64, Ordering::Relaxed);
        self.shared.update(|state, effects| state.finish(at, done, dma, effects));
        if self.untold.get_or_insert_with(Instant::now).elapsed() >= OVERDUE {
            self.tell();
        }
    }

    /// Puts back the last `count` requests that were taken: they are the next again.
    ///
    /// # Panics
    /// When fewer are under way.
    pub fn untake(&mut self, count: u16) {
        self.taken = self.taken.checked_sub(count.into()).expect("requests that were taken");
        let at = (self.queue, self.life);
        self.shared.update(|state, effects| state.untake(at, count, effects));
    }

    /// Begins a request that was taken: it is returned later, by any thread.
    pub fn begin(&mut self, chain: Chain) -> Pending {
        self.taken -= 1;
        let (features, queue, life) = (self.features, self.queue, self.life);
        Pending::new(Arc::clone(self.shared), Job { chain, features, queue, life })
    }

    /// Has the device's queues served again at this time.
    pub fn come_again_at(&self, at: Instant) {
        self.shared.control.kick_at(at);
    }

    /// Has the device's queues served again when the thread is through with them: for a device that
    /// lets another queue go first.
    pub fn come_again(&self) {
        self.shared.control.kick();
    }

    /// Interrupts the driver, if it wants to know, for what was returned.
    pub fn tell(&mut self) {
        self.untold = None;
        let (dma, queue) = (&self.shared.dma, self.queue);
        self.shared.update(|state, effects| state.tell(queue, dma, effects));
    }
}
