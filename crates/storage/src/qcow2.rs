//! qcow2 images.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use backend::{Disk, SECTOR};
use imago::FormatAccess;
use imago::file::File as ImageFile;
use imago::format::drivers::ShallowMapping;
use rustix::fs::{FallocateFlags, fallocate};

use crate::StorageError;

/// A qcow2 image, with what it is on top of. All files are locked while this lives. Requests are
/// executed one after the other in each thread; several threads may use it.
pub struct Qcow2Disk {
    /// Locked for writing by what takes clusters away: nobody else may have one in hand then.
    image: RwLock<FormatAccess<ImageFile>>,
    /// The file of the image itself, not of what is below it.
    file: File,
    cluster: u64,
    len: u64,
    read_only: bool,
}

/// A qcow2 image that was checked and opened.
pub(crate) struct OpenImage {
    pub(crate) image: FormatAccess<ImageFile>,
    /// The file of the image itself.
    pub(crate) file: File,
    /// Bytes of a cluster.
    pub(crate) cluster: u64,
}

impl fmt::Debug for Qcow2Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qcow2Disk").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Qcow2Disk {
    /// The disk of an image, which messages call `name`.
    pub(crate) fn new(image: OpenImage, name: &str, read_only: bool) -> Result<Self, StorageError> {
        let OpenImage { image, file, cluster } = image;
        let len = image.size();
        if len == 0 || !len.is_multiple_of(SECTOR) {
            return Err(StorageError::BadSize { name: name.to_owned(), bytes: len, unit: SECTOR });
        }
        Ok(Self { image: RwLock::new(image), file, cluster, len, read_only })
    }

    fn image(&self) -> RwLockReadGuard<'_, FormatAccess<ImageFile>> {
        self.image.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, offset: u64, len: u64, write: bool) -> io::Result<()> {
        let end = offset.checked_add(len);
        if write && self.read_only || end.is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(())
    }

    fn make_zero(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        let held = self.clusters(&image, offset, len)?;
        // Before the image gives them up: from then on they may hold other data, even of the very
        // part of a cluster that begins or ends the range. Read as zeros they are wanted anyway.
        self.free(&held);
        image.discard_to_zero(offset, len)?;
        if !held.is_empty() {
            // No table on the disk points any more to what is used again.
            image.flush()?;
        }
        Ok(())
    }

    /// The clusters of the image that belong to it alone and lie in a range of the disk as a whole:
    /// for each of their runs where it is in the file, and its length.
    fn clusters(
        &self,
        image: &FormatAccess<ImageFile>,
        offset: u64,
        len: u64,
    ) -> io::Result<Vec<(u64, u64)>> {
        let end = (offset + len) / self.cluster * self.cluster;
        let mut at = offset.next_multiple_of(self.cluster);
        let mut found = Vec::new();
        while at < end {
            let (mapping, len) = image.get_shallow_mapping(at, end - at)?;
            if len == 0 {
                break;
            }
            if let ShallowMapping::Raw { offset, writable: true, .. } = mapping {
                found.push((offset, len));
            }
            at += len;
        }
        Ok(found)
    }

    /// Makes holes of clusters, so that their space is the host's. That it cannot is no error: they
    /// are used again for other data.
    fn free(&self, clusters: &[(u64, u64)]) {
        for (place, len) in clusters {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _ = fallocate(&self.file, flags, *place, *len);
        }
    }
}

impl Disk for Qcow2Disk {
    fn len(&self) -> u64 {
        self.len
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.check(offset, to.len() as u64, false)?;
        self.image().read(to, offset)
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.check(offset, from.len() as u64, true)?;
        self.image().write(from, offset)
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        let image = self.image();
        image.flush()?;
        image.sync()
    }

    // What was discarded is read as zeros, never as what a backing file has there.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check(offset, len, true)?;
        self.make_zero(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.check(offset, len, true)?;
        match unmap {
            true => self.make_zero(offset, len),
            false => self.image().write_zeroes(offset, len),
        }
    }
}
