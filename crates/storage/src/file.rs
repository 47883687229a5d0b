//! Files of images: opened without waiting, and locked.

use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::StorageError;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) read_only: bool,
    /// Past the page cache of the host.
    pub(crate) direct: bool,
}

/// Opens a file without waiting for anybody, whatever it turns out to be.
pub(crate) fn open(path: &Path, access: Access) -> Result<File, StorageError> {
    let mode = if access.read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let direct = if access.direct { OFlags::DIRECT } else { OFlags::empty() };
    let flags = mode | direct | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => Ok(file.into()),
        Err(cause) => {
            let cause = io::Error::from(cause);
            let way_out = way_out(&cause, access);
            let name = path.display().to_string();
            Err(StorageError::Host { action: "open", name, cause, way_out })
        }
    }
}

fn way_out(error: &io::Error, access: Access) -> &'static str {
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem if !access.read_only => {
            "; append `,readonly` or `,overlay` if it is not to be written"
        }
        ErrorKind::InvalidInput if access.direct => {
            "; its file system has no direct I/O, so leave out `direct`"
        }
        _ => "; check --disk",
    }
}

/// Locks the file of an image, for writing or for reading, and returns its size.
pub(crate) fn lock(file: &File, name: &str, read_only: bool) -> Result<u64, StorageError> {
    let host = |action, cause| StorageError::host(action, name, cause);
    let kind = file.metadata().map_err(|e| host("look at", e))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(StorageError::NoFile { name: name.to_owned() });
    }
    let locked = if read_only { file.try_lock_shared() } else { file.try_lock() };
    locked.map_err(|error| match error {
        TryLockError::WouldBlock => StorageError::InUse { name: name.to_owned() },
        TryLockError::Error(cause) => host("lock", cause),
    })?;
    size(file).map_err(|e| host("find the size of", e))
}

/// The size of a file or, unlike its metadata, of a block device.
pub(crate) fn size(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}
