//! Disks.

use std::io;
use std::sync::{Mutex, PoisonError};

/// Bytes of a sector: the unit in which disks are sized and addressed.
pub const SECTOR: u64 = 512;

/// A disk image. Its methods may take long: they are called by a device's own thread, never by
/// that of a vCPU.
#[expect(clippy::len_without_is_empty, reason = "a disk is never empty")]
pub trait Disk: Send + Sync {
    /// Bytes, a multiple of [`SECTOR`], not zero; fixed while the disk is in use.
    fn len(&self) -> u64;

    /// Whether writing is refused.
    fn is_read_only(&self) -> bool;

    /// Reads `to.len()` bytes at `offset`.
    ///
    /// # Errors
    /// What the host said; `to` is then undefined.
    fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()>;

    /// Writes `from` at `offset`. It may be lost when the host fails, until it is flushed.
    ///
    /// # Errors
    /// What the host said; a part may have been written. Also for a read-only disk and a place
    /// beyond its end.
    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()>;

    /// Returns when everything that was written before will survive a failure of the host.
    ///
    /// # Errors
    /// What the host said; what was written may be lost.
    fn flush(&self) -> io::Result<()>;
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
