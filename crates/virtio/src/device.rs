//! What a kind of device has to say and do.

use std::fmt;

use crate::{Chain, Dma};

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

    /// The device is not used any more, or for long: what it holds back goes to where it is safe.
    fn flush(&self) {}
}
