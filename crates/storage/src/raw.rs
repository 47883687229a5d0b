//! Raw images.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use backend::{Buffer, Disk, DiskDone, DiskRequest, SECTOR};
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::Errno;

use crate::uring::Uring;
use crate::{StorageError, file};

/// The block size of disks that have no smaller one.
const LARGE_BLOCK: u64 = 4096;

/// A raw image, locked while this lives.
#[derive(Debug)]
pub struct RawDisk {
    image: Arc<RawFile>,
    ring: Option<Uring>,
}

/// The file of a raw image, as those who execute requests share it.
#[derive(Debug)]
pub(crate) struct RawFile {
    file: File,
    len: u64,
    read_only: bool,
    block_size: u64,
    /// Whether something was written since the last flush began.
    unflushed: AtomicBool,
}

impl RawDisk {
    /// The image in `file`, which messages call `name`; open for reading, and for writing unless
    /// `read_only`. Requests are executed one after the other.
    ///
    /// # Errors
    /// [`StorageError`] for what is in use, is no disk, or cannot be looked at.
    pub fn open(file: File, name: &str, read_only: bool) -> Result<Self, StorageError> {
        let len = file::lock(&file, name, read_only)?;
        let block_size = block_size(&file).map_err(|e| StorageError::host("read", name, e))?;
        if len == 0 || !len.is_multiple_of(block_size) {
            let (name, unit) = (name.to_owned(), block_size);
            return Err(StorageError::BadSize { name, bytes: len, unit });
        }
        let unflushed = AtomicBool::new(false);
        let image = Arc::new(RawFile { file, len, read_only, block_size, unflushed });
        Ok(Self { image, ring: None })
    }

    /// Lets the kernel execute requests by io_uring, many at once.
    ///
    /// # Errors
    /// What the kernel says, when it has none, or none for this process; the disk is as before.
    pub fn use_io_uring(&mut self) -> io::Result<()> {
        self.ring = Some(Uring::new(Arc::clone(&self.image))?);
        Ok(())
    }
}

/// The smallest block that can be read alone: without the page cache, that of the device.
fn block_size(file: &File) -> io::Result<u64> {
    if !rustix::fs::fcntl_getfl(file)?.contains(OFlags::DIRECT) {
        return Ok(SECTOR);
    }
    let mut buffer = Buffer::new(SECTOR as usize);
    match file.read_at(&mut buffer, 0) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(LARGE_BLOCK),
        Err(error) => Err(error),
        Ok(_) => Ok(SECTOR),
    }
}

impl RawFile {
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Whether a flush has anything to do; then it is done by who asks.
    pub(crate) fn begin_flush(&self) -> bool {
        self.unflushed.swap(false, Ordering::AcqRel)
    }

    /// There is something to flush.
    pub(crate) fn note_written(&self) {
        self.unflushed.store(true, Ordering::Release);
    }

    /// Whether a write may be done at all; one beyond the end would let the file grow.
    pub(crate) fn check_write(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.checked_add(len);
        if self.read_only || end.is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(())
    }

    fn allocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> Result<(), Errno> {
        let result = fallocate(&self.file, flags, offset, len);
        self.note_written();
        result
    }
}

impl Disk for RawFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn block_size(&self) -> u32 {
        self.block_size as u32
    }

    fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(to, offset)
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.check_write(offset, from.len() as u64)?;
        let result = self.file.write_all_at(from, offset);
        self.note_written();
        result
    }

    fn flush(&self) -> io::Result<()> {
        if !self.begin_flush() {
            return Ok(());
        }
        self.file.sync_data().inspect_err(|_| self.note_written())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_write(offset, len)?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match self.allocate(flags, offset, len) {
            // The space stays taken.
            Err(error) if is_unsupported(error) => Ok(()),
            result => Ok(result?),
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.check_write(offset, len)?;
        let how = match unmap {
            true => FallocateFlags::PUNCH_HOLE,
            false => FallocateFlags::ZERO_RANGE,
        };
        match self.allocate(how | FallocateFlags::KEEP_SIZE, offset, len) {
            Err(error) if is_unsupported(error) => backend::write_zeros(self, offset, len),
            result => Ok(result?),
        }
    }
}

/// Whether the file system, or the device, cannot do it at all.
fn is_unsupported(error: Errno) -> bool {
    [Errno::OPNOTSUPP, Errno::NOSYS, Errno::INVAL, Errno::NODEV].contains(&error)
}

impl Disk for RawDisk {
    fn len(&self) -> u64 {
        self.image.len()
    }

    fn is_read_only(&self) -> bool {
        self.image.is_read_only()
    }

    fn block_size(&self) -> u32 {
        self.image.block_size()
    }

    fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.image.read(offset, to)
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.image.write(offset, from)
    }

    fn flush(&self) -> io::Result<()> {
        self.image.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.image.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.image.write_zeroes(offset, len, unmap)
    }

    fn submit(&self, request: DiskRequest, done: DiskDone) {
        match &self.ring {
            Some(ring) => ring.submit(request, done),
            None => backend::submit_now(self, request, done),
        }
    }

    fn commit(&self) {
        if let Some(ring) = &self.ring {
            ring.commit();
        }
    }
}

#[cfg(test)]
mod tests;
