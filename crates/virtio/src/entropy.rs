//! The entropy device (virtio 1.2, 5.4).

use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use crate::{Chain, DeviceError, DeviceKind, Dma, VirtioDevice};

const QUEUE: u16 = 16;
/// The most bytes for one request: a larger buffer is filled in part, as the device may.
const MAX: u64 = 4096;

/// A source of random bytes.
pub struct Entropy {
    source: Arc<dyn backend::Entropy>,
}

impl Entropy {
    /// The front end of `source`.
    pub fn new(source: Arc<dyn backend::Entropy>) -> Self {
        Self { source }
    }
}

impl VirtioDevice for Entropy {
    fn kind(&self) -> DeviceKind {
        DeviceKind { id: VIRTIO_ID_RNG as u16, class: [0, 0xff, 0], name: "virtio-rng" }
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> &'static [u16] {
        &[QUEUE]
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn execute(
        &self,
        _queue: usize,
        chain: &Chain,
        dma: &Dma,
        _features: u64,
    ) -> Result<u32, DeviceError> {
        let mut writer = chain.writer(dma);
        let mut bytes = vec![0; writer.left().min(MAX) as usize];
        // Without random bytes none are given: the driver takes a short answer for what it is.
        if self.source.fill(&mut bytes).is_err() || writer.write(&bytes).is_err() {
            return Ok(0);
        }
        Ok(bytes.len() as u32)
    }
}
