//! Disks.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::Buffer;

/// Bytes of a sector: the unit in which disks are sized and addressed.
pub const SECTOR: u64 = 512;

/// Bytes of zeros that are written at once where the host cannot make zeros by itself.
const ZEROS: usize = 256 << 10;

/// What is asked of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskOperation {
    /// Fill the buffer from `offset` on.
    Read,
    /// Write the buffer to `offset`.
    Write,
    /// As [`Disk::flush`].
    Flush,
    /// As [`Disk::discard`].
    Discard,
    /// As [`Disk::write_zeroes`].
    WriteZeroes {
        /// Whether the space may be freed.
        unmap: bool,
    },
}

/// A request to a disk, which owns its memory until it is done.
#[derive(Debug)]
pub struct DiskRequest {
    /// What is asked.
    pub operation: DiskOperation,
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes of a discard or of zeros; otherwise the buffer says how many.
    pub len: u64,
    /// What is read or written.
    pub buffer: Buffer,
}

impl DiskRequest {
    /// Executes the request and waits for it.
    ///
    /// # Errors
    /// What the disk said.
    pub fn execute<D: Disk + ?Sized>(&mut self, disk: &D) -> io::Result<()> {
        match self.operation {
            DiskOperation::Read => disk.read(self.offset, &mut self.buffer),
            DiskOperation::Write => disk.write(self.offset, &self.buffer),
            DiskOperation::Flush => disk.flush(),
            DiskOperation::Discard => disk.discard(self.offset, self.len),
            DiskOperation::WriteZeroes { unmap } => disk.write_zeroes(self.offset, self.len, unmap),
        }
    }
}

/// How much may be asked of a disk; without a number as much as the host can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests per second, not 0.
    pub operations: Option<u64>,
    /// Bytes per second, not 0.
    pub bytes: Option<u64>,
    /// What was not used of the two can be used later, as much as for this time.
    pub burst: Duration,
}

/// What is called when a request is done: with the request, how it went, and whether other
/// requests that are done follow at once, so that the guest need not be told yet.
pub type DiskDone = Box<dyn FnOnce(DiskRequest, io::Result<()>, bool) + Send>;

/// A disk image. Its methods may take long: they are called by a device's own thread, never by
/// that of a vCPU.
#[expect(clippy::len_without_is_empty, reason = "a disk is never empty")]
pub trait Disk: Send + Sync {
    /// Bytes, a multiple of [`SECTOR`], not zero; fixed while the disk is in use.
    fn len(&self) -> u64;

    /// Whether writing is refused.
    fn is_read_only(&self) -> bool;

    /// Bytes that can be read and written alone, at a multiple of themselves: a power of two from
    /// [`SECTOR`] to 4096.
    fn block_size(&self) -> u32 {
        SECTOR as u32
    }

    /// The serial number that the guest is told, if one was chosen; at most 20 bytes count.
    fn serial(&self) -> Option<&str> {
        None
    }

    /// How much may be asked of it.
    fn limit(&self) -> RateLimit {
        RateLimit::default()
    }

    /// Reads `to.len()` bytes at `offset`.
    ///
    /// # Errors
    /// What the host said; `to` is then undefined.
    fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()>;

    /// Writes `from` at `offset`. It may be lost when the host fails, until it is flushed.
    ///
    /// # Errors
    /// What the host said; a part may have been written. Also for a read-only disk and a place
    /// beyond its end. [`io::ErrorKind::StorageFull`] and [`io::ErrorKind::QuotaExceeded`] mean
    /// that the same request can succeed later.
    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()>;

    /// Returns when everything that was written before will survive a failure of the host.
    ///
    /// # Errors
    /// What the host said; what was written may be lost.
    fn flush(&self) -> io::Result<()>;

    /// The content of `len` bytes at `offset` is not needed any more: the host may take the space.
    /// What is read there afterwards is undefined, but never another file's. A disk that cannot
    /// give space back does nothing.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let _ = (offset, len);
        Ok(())
    }

    /// Makes `len` bytes at `offset` zero; with `unmap` so that they take no space, if possible.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let _ = unmap;
        write_zeros(self, offset, len)
    }

    /// Begins a request, and calls `done` when it is done: before this returns, or later from a
    /// thread of the disk. Requests that are under way together may be done in any order. It may
    /// wait for [`commit`](Self::commit) to begin.
    fn submit(&self, request: DiskRequest, done: DiskDone) {
        submit_now(self, request, done);
    }

    /// Everything that was submitted begins now.
    fn commit(&self) {}
}

/// Executes a request and waits for it: [`Disk::submit`] of disks that have no other means.
pub fn submit_now<D: Disk + ?Sized>(disk: &D, mut request: DiskRequest, done: DiskDone) {
    let result = request.execute(disk);
    done(request, result, false);
}

/// Writes zeros one by one: [`Disk::write_zeroes`] of disks that have no other means.
///
/// # Errors
/// As [`Disk::write`].
pub fn write_zeros<D: Disk + ?Sized>(disk: &D, offset: u64, len: u64) -> io::Result<()> {
    let zeros = Buffer::new(len.min(ZEROS as u64) as usize);
    let mut done = 0;
    while done < len {
        let part = (len - done).min(ZEROS as u64);
        disk.write(offset + done, &zeros[..part as usize])?;
        done += part;
    }
    Ok(())
}

/// A disk in memory; for tests.
///
/// ```
/// use backend::{Disk, MemoryDisk};
/// let disk = MemoryDisk::new(1);
/// disk.write(510, b"ab")?;
/// assert!(disk.write(511, b"ab").is_err());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct MemoryDisk {
    bytes: Mutex<Vec<u8>>,
    flushes: Mutex<u64>,
    read_only: bool,
}

impl MemoryDisk {
    /// A disk of zeros with so many sectors.
    pub fn new(sectors: usize) -> Self {
        let bytes = Mutex::new(vec![0; sectors * SECTOR as usize]);
        Self { bytes, flushes: Mutex::new(0), read_only: false }
    }

    /// The same, read-only.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { read_only: true, ..self }
    }

    /// A copy of the content.
    pub fn content(&self) -> Vec<u8> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often it was flushed.
    pub fn flushes(&self) -> u64 {
        *self.flushes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn range(bytes: &mut [u8], offset: u64, len: usize) -> io::Result<&mut [u8]> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let range = start..start.saturating_add(len);
        bytes.get_mut(range).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

impl Disk for MemoryDisk {
    fn len(&self) -> u64 {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        to.copy_from_slice(Self::range(&mut bytes, offset, to.len())?);
        Ok(())
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        Self::range(&mut bytes, offset, from.len())?.copy_from_slice(from);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        *self.flushes.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Ok(())
    }
}
