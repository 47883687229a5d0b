//! Contracts between device front ends and their back ends.
//!
//! A front end (a UART, virtio, later the Xen split drivers) is what the guest sees; a back end is
//! what the host offers: a terminal, a file, a network. Front ends depend on these traits, never
//! on files or sockets.
//!
//! Key types: [`ConsoleOutput`], [`ConsoleInput`], [`Disk`] with [`DiskRequest`], [`Entropy`],
//! [`NetBackend`].
//!
//! Neighbours: `chipset` (UART) and `virtio` are front ends; `cli` and `lifecycle` provide the
//! terminal, `storage` disks, `network` networks.

#![forbid(unsafe_code)]

mod buffer;
mod disk;
mod entropy;
mod net;

pub use buffer::Buffer;
pub use disk::{
    Disk, DiskDone, DiskOperation, DiskRequest, MemoryDisk, RateLimit, SECTOR, submit_now,
    write_zeros,
};
pub use entropy::{Entropy, HostEntropy};
pub use net::{
    Counter, Frame, MAX_FRAME, MacAddress, NetBackend, Offload, PartialChecksum, Segmentation,
    SegmentationKind, Wake,
};

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Where a console device sends what the guest writes.
///
/// Called with the device's lock held, by vCPU threads: it may write to a terminal or pipe but
/// must not call back into the device.
pub trait ConsoleOutput: Send + Sync {
    /// Takes `bytes`; what cannot be delivered (a closed pipe) is dropped.
    fn write(&self, bytes: &[u8]);
}

/// A console device's receiving end: whoever reads the user's keys pushes them here.
pub trait ConsoleInput: Send + Sync {
    /// Offers bytes to the guest; returns how many were taken. The rest is to be offered again
    /// later.
    fn push(&self, bytes: &[u8]) -> usize;

    /// Bytes that [`ConsoleInput::push`] would take now.
    fn room(&self) -> usize;
}

/// A console that keeps what the guest wrote; for tests and for logs.
///
/// ```
/// use backend::{CaptureConsole, ConsoleOutput};
/// let console = CaptureConsole::new(4);
/// console.write(b"hello");
/// assert_eq!(console.text(), "ello");
/// ```
#[derive(Debug)]
pub struct CaptureConsole {
    limit: usize,
    kept: Mutex<VecDeque<u8>>,
}

impl CaptureConsole {
    /// Keeps the last `limit` bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, kept: Mutex::new(VecDeque::new()) })
    }

    /// What was kept, as text.
    pub fn text(&self) -> String {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(kept.make_contiguous()).into_owned()
    }
}

impl ConsoleOutput for CaptureConsole {
    fn write(&self, bytes: &[u8]) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(bytes);
        let excess = kept.len().saturating_sub(self.limit);
        kept.drain(..excess);
    }
}
