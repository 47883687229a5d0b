//! The memory that the runner and its worker share.

use std::sync::atomic::AtomicU32;

use crate::case::Memory;
use crate::image::CpuImage;

/// Cases of a batch.
pub(super) const BATCH: usize = 64;

/// Values of [`Header::turn`].
pub(super) mod turn {
    /// The worker is starting.
    pub const STARTING: u32 = 0;
    /// The runner fills the slots or reads results.
    pub const RUNNER: u32 = 1;
    /// The worker executes the slots.
    pub const WORKER: u32 = 2;
}

/// Values of [`Slot::status`].
pub(super) mod status {
    /// The case has not ended.
    pub const UNFINISHED: u32 = 0;
    /// The case ended in an exception.
    pub const EXCEPTION: u32 = 1;
    /// The case was stopped.
    pub const TIMEOUT: u32 = 2;
    /// The case made a system call.
    pub const SYSTEM_CALL: u32 = 3;
}

/// Whose turn it is, and how far the batch is.
#[repr(C, align(64))]
pub(super) struct Header {
    /// Futex word: one of [`turn`].
    pub turn: AtomicU32,
    /// Number of slots of the batch.
    pub count: AtomicU32,
    /// First slot to execute.
    pub first: AtomicU32,
}

/// One case, then its result.
#[repr(C, align(64))]
pub(super) struct Slot {
    /// Registers at the start.
    pub input: CpuImage,
    /// Registers at the end.
    pub output: CpuImage,
    /// One of [`status`].
    pub status: u32,
    /// Vector of the exception.
    pub vector: u32,
    /// Error code.
    pub error_code: u32,
    /// CR2.
    pub address: u64,
    /// Memory at the start, then at the end.
    pub memory: Memory,
}

/// All shared memory.
#[repr(C)]
pub(super) struct Shared {
    pub header: Header,
    pub slots: [Slot; BATCH],
}
