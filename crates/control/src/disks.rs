//! The content of disks in snapshots: copies of the files that they are in.
//!
//! The copies are made while the guest stands still and its writes are flushed, so that they are of
//! the same moment as memory. Where the file system can share blocks between files (Btrfs, XFS) that
//! takes no time; elsewhere as long as copying what is not a hole.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::ControlError;

/// A disk of the VM, as a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSource {
    /// Which disk of the machine, from 0.
    pub index: u32,
    /// The file.
    pub path: PathBuf,
    /// Whether the guest can only read it: its content is then not saved.
    pub read_only: bool,
}

impl DiskSource {
    /// Opens the file for copying.
    ///
    /// # Errors
    /// [`ControlError::Disk`] for what cannot be copied, [`ControlError::Io`].
    pub(crate) fn open(&self) -> Result<File, ControlError> {
        let file = File::open(&self.path).map_err(ControlError::io("open a disk to save it"))?;
        let kind = file.metadata().map_err(ControlError::io("look at a disk"))?.file_type();
        if kind.is_block_device() {
            return Err(ControlError::Disk {
                disk: self.path.display().to_string(),
                cause: "it is a block device, which cannot be copied in a moment; put the disk \
                        into a file",
            });
        }
        Ok(file)
    }
}

/// Copies a file, holes as holes, sharing blocks where the file system can.
///
/// # Errors
/// What the host says; there may be part of a copy then.
pub fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    copy_open_file(&File::open(from)?, to).map(|_| ())
}

/// The same for an open file; gives the copy.
pub(crate) fn copy_open_file(from: &File, to: &Path) -> io::Result<File> {
    let copy = File::options().read(true).write(true).create_new(true).open(to)?;
    match rustix::fs::ioctl_ficlone(&copy, from) {
        Ok(()) => return Ok(copy),
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::NOTTY) => {}
        Err(e) => return Err(e.into()),
    }
    let len = from.metadata()?.len();
    let (mut source, mut target) = (from, &copy);
    let mut at = 0;
    while let Some((start, end)) = next_data(from, at, len)? {
        source.seek(SeekFrom::Start(start))?;
        target.seek(SeekFrom::Start(start))?;
        io::copy(&mut source.take(end - start), &mut target)?;
        at = end;
    }
    copy.set_len(len)?;
    Ok(copy)
}

/// Begin and end of the first data from `at` on.
fn next_data(file: &File, at: u64, len: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= len {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let end = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(start))?;
    Ok(Some((start, end)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_copy_has_the_bytes_and_the_holes() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("a"), folder.path().join("b"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"first", 1 << 20).unwrap();
        file.write_all_at(b"second", 40 << 20).unwrap();
        copy_file(&from, &to).unwrap();
        let copy = File::open(&to).unwrap();
        let mut bytes = [0; 6];
        copy.read_exact_at(&mut bytes, 40 << 20).unwrap();
        assert_eq!(&bytes, b"second");
        let metadata = copy.metadata().unwrap();
        assert_eq!(metadata.len(), 64 << 20);
        assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
        assert!(copy_file(&from, &to).is_err(), "nothing is overwritten");
    }

    #[test]
    fn a_disk_that_cannot_be_copied_is_refused_by_name() {
        let missing = DiskSource { index: 0, path: "/no/disk".into(), read_only: false };
        assert!(matches!(missing.open(), Err(ControlError::Io { .. })));
    }
}
