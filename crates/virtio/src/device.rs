//! What a kind of device has to say and do.

use std::fmt;
use std::sync::Arc;

use crate::{Chain, Dma, Requests};

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceKind {
    /// Virtio device id (virtio 1.2, chapter 5).
    pub id: u16,
    /// PCI class code: base class, subclass, programming interface.
    pub class: [u8; 3],
    /// Name for threads and statistics.
    pub name: &'static str,
}

/// A request that cannot be answered, not even with an error: the device stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceError;

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a request has no room for an answer")
    }
}

impl std::error::Error for DeviceError {}

/// One kind of virtio device, behind the transport. It has no state that the guest can change
/// besides what is behind it.
pub trait VirtioDevice: Send + Sync {
    /// What it is.
    fn kind(&self) -> DeviceKind;

    /// Feature bits 0 to 23, which are the device's own.
    fn features(&self) -> u64;

    /// Sizes of its queues: powers of two.
    fn queues(&self) -> &'static [u16];

    /// Its configuration structure; the driver can only read it.
    fn config(&self) -> &[u8];

    /// Executes a request of queue `queue` under the negotiated `features`; may take long. Returns
    /// the number of bytes that were written to its buffers.
    ///
    /// # Errors
    /// [`DeviceError`]: the driver broke the rules.
    fn execute(
        &self,
        queue: usize,
        chain: &Chain,
        dma: &Dma,
        features: u64,
    ) -> Result<u32, DeviceError>;

    /// Serves the requests of queue `queue` that wait; called by the device's thread whenever there
    /// may be some. Without an implementation of its own, a device executes one after the other.
    ///
    /// # Errors
    /// [`DeviceError`]: the driver broke the rules.
    fn serve(&self, queue: usize, requests: &mut Requests<'_>) -> Result<(), DeviceError> {
        while let Some(chain) = requests.take() {
            let written = self.execute(queue, &chain, requests.dma(), requests.features())?;
            requests.finish(chain.head, written);
        }
        Ok(())
    }

    /// Gives a device that has something to say by itself the means to have its queues served:
    /// `wake` may be called by any thread. Called once, before anything else.
    fn connect(&self, wake: Arc<dyn Fn() + Send + Sync>) {
        drop(wake);
    }

    /// The driver, or the machine, has reset the device.
    fn reset(&self) {}

    /// The device is not used any more, or for long: what it holds back goes to where it is safe.
    fn flush(&self) {}
}
