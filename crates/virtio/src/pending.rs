//! A request that is under way.

use std::sync::Arc;

use crate::transport::{Job, Shared};
use crate::{Chain, DeviceError, Dma};

/// A request that a device has begun ([`Requests::begin`](crate::Requests::begin)). It ends with [`finish`](Self::finish) or
/// [`put_off`](Self::put_off), from any thread; until then the device can neither be paused nor
/// reset, so it must not get lost.
#[must_use = "the driver waits for it"]
pub struct Pending {
    transport: Arc<Shared>,
    job: Job,
}

impl Pending {
    pub(crate) fn new(transport: Arc<Shared>, job: Job) -> Self {
        Self { transport, job }
    }

    /// Index of its queue.
    pub fn queue(&self) -> usize {
        self.job.queue
    }

    /// Its buffers.
    pub fn chain(&self) -> &Chain {
        &self.job.chain
    }

    /// The features that the driver has negotiated.
    pub fn features(&self) -> u64 {
        self.job.features
    }

    /// Guest memory.
    pub fn dma(&self) -> &Dma {
        self.transport.dma()
    }

    /// Returns the request to its driver, with the number of bytes that were written to its
    /// buffers. With `more`, other requests are finished at once, so that the driver need not be
    /// told yet. An error stops the device.
    pub fn finish(self, result: Result<u32, DeviceError>, more: bool) {
        self.transport.finish(&self.job, result, more);
    }

    /// It cannot be done now. It is started again when the device was paused and is resumed, also
    /// by another process that has restored its state.
    pub fn put_off(self) {
        self.transport.put_off(&self.job);
    }
}
