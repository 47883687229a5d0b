//! Raw images.

use std::fs::{File, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::atomic::{AtomicBool, Ordering};

use backend::Disk;
use thiserror::Error;

/// Why a file cannot be a disk.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StorageError {
    /// Somebody else has it.
    #[error(
        "disk image {name} is in use by another VM or program; end that first, or let both open \
         it with readonly"
    )]
    InUse {
        /// The image.
        name: String,
    },
    /// It is neither a file nor a block device.
    #[error("disk image {name} is neither a file nor a block device; give one of these")]
    NoFile {
        /// The image.
        name: String,
    },
    /// Its size is no disk's.
    #[error(
        "disk image {name} has {bytes} bytes, and a disk has a multiple of {}, and not none; set \
         its size with `truncate --size`",
        backend::SECTOR
    )]
    BadSize {
        /// The image.
        name: String,
        /// Its size.
        bytes: u64,
    },
    /// The host failed.
    #[error("cannot {action} disk image {name}: {cause}")]
    Host {
        /// What was tried, as a verb.
        action: &'static str,
        /// The image.
        name: String,
        /// What the host said.
        cause: io::Error,
    },
}

/// A raw image, locked while this lives.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    len: u64,
    read_only: bool,
    /// Whether something was written since the last flush.
    unflushed: AtomicBool,
}

impl RawDisk {
    /// The image in `file`, which messages call `name`; open for reading, and for writing unless
    /// `read_only`.
    ///
    /// # Errors
    /// [`StorageError`] for what is in use, is no disk, or cannot be looked at.
    pub fn open(file: File, name: &str, read_only: bool) -> Result<Self, StorageError> {
        let host = |action, cause| StorageError::Host { action, name: name.to_owned(), cause };
        let kind = file.metadata().map_err(|e| host("look at", e))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(StorageError::NoFile { name: name.to_owned() });
        }
        let locked = if read_only { file.try_lock_shared() } else { file.try_lock() };
        locked.map_err(|error| match error {
            TryLockError::WouldBlock => StorageError::InUse { name: name.to_owned() },
            TryLockError::Error(cause) => host("lock", cause),
        })?;
        // Unlike the metadata's, this size is also that of a block device.
        let len = (&file).seek(SeekFrom::End(0)).map_err(|e| host("find the size of", e))?;
        if len == 0 || !len.is_multiple_of(backend::SECTOR) {
            return Err(StorageError::BadSize { name: name.to_owned(), bytes: len });
        }
        Ok(Self { file, len, read_only, unflushed: AtomicBool::new(false) })
    }
}

impl Disk for RawDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(to, offset)
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(from.len() as u64);
        if self.read_only || end.is_none_or(|end| end > self.len) {
            // A write beyond the end would let the file grow.
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.unflushed.store(true, Ordering::Release);
        self.file.write_all_at(from, offset)
    }

    fn flush(&self) -> io::Result<()> {
        if !self.unflushed.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        self.file.sync_data().inspect_err(|_| self.unflushed.store(true, Ordering::Release))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tempfile::TempDir;

    use super::*;

    fn image(bytes: usize) -> (TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        std::fs::write(&path, vec![0; bytes]).unwrap();
        (folder, path)
    }

    fn open(path: &Path, read_only: bool) -> Result<RawDisk, StorageError> {
        let file = File::options().read(true).write(!read_only).open(path).unwrap();
        RawDisk::open(file, &path.display().to_string(), read_only)
    }

    #[test]
    fn bytes_come_back_and_stay() {
        let (_folder, path) = image(4096);
        let disk = open(&path, false).unwrap();
        assert_eq!((disk.len(), disk.is_read_only()), (4096, false));
        disk.write(1000, b"hello").unwrap();
        disk.flush().unwrap();
        let mut read = [0; 7];
        disk.read(999, &mut read).unwrap();
        assert_eq!(&read, b"\0hello\0");
        drop(disk);
        assert_eq!(&std::fs::read(&path).unwrap()[1000..1005], b"hello");
    }

    #[test]
    fn a_second_opening_is_refused_by_name() {
        let (_folder, path) = image(512);
        let first = open(&path, false).unwrap();
        for read_only in [false, true] {
            let error = open(&path, read_only).unwrap_err().to_string();
            assert!(error.contains("disk.img is in use"), "{error}");
        }
        drop(first);
        let readers = [open(&path, true).unwrap(), open(&path, true).unwrap()];
        assert!(matches!(open(&path, false), Err(StorageError::InUse { .. })));
        drop(readers);
        open(&path, false).unwrap();
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        for bytes in [0, 1, 511, 513] {
            let (_folder, path) = image(bytes);
            let error = open(&path, true).unwrap_err().to_string();
            assert!(error.contains(&format!("{bytes} bytes")), "{error}");
        }
        let (folder, _) = image(512);
        let error = open(folder.path(), true).unwrap_err();
        assert!(matches!(error, StorageError::NoFile { .. }), "{error}");
        assert!(matches!(open(Path::new("/dev/null"), true), Err(StorageError::NoFile { .. })));
    }

    #[test]
    fn nothing_is_written_where_nothing_may_be() {
        let (_folder, path) = image(512);
        let disk = open(&path, true).unwrap();
        assert!(disk.write(0, &[1]).is_err());
        drop(disk);
        let disk = open(&path, false).unwrap();
        assert!(disk.write(511, &[1, 2]).is_err());
        assert!(disk.write(u64::MAX, &[1]).is_err());
        assert!(disk.read(512, &mut [0]).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), [0; 512]);
    }
}
