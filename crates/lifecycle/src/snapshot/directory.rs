//! The directory of a snapshot, held open: after that no path is needed.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{MANIFEST, Manifest, SnapshotError};

/// An open directory for one snapshot.
#[derive(Debug)]
pub struct SnapshotDir {
    fd: OwnedFd,
    name: String,
    /// The snapshot that this one is a difference to.
    base: Option<Box<SnapshotDir>>,
}

/// A manifest is some kilobytes.
const MAX_MANIFEST: u64 = 16 << 20;

impl SnapshotDir {
    /// Opens the directory `path` for a new snapshot; it is made if missing.
    ///
    /// # Errors
    /// [`SnapshotError::Exists`], [`SnapshotError::Io`].
    pub fn create(path: &Path) -> Result<Self, SnapshotError> {
        let name = path.display().to_string();
        fs::create_dir_all(path).map_err(|e| SnapshotError::io("make directory", &name, e))?;
        let dir = Self::open(path)?;
        dir.expect_unfinished()?;
        Ok(dir)
    }

    /// Opens the directory `path` of a snapshot.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        let name = path.display().to_string();
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|e| SnapshotError::io("open directory", &name, e))?;
        Ok(Self { fd, name, base: None })
    }

    /// The same with the snapshot that this one is a difference to.
    pub(super) fn with_base(self, base: Self) -> Self {
        Self { base: Some(Box::new(base)), ..self }
    }

    /// The snapshot that this one is a difference to, if it was opened with it.
    pub(super) fn base(&self) -> Option<&Self> {
        self.base.as_deref()
    }

    /// What the snapshot says of itself.
    ///
    /// # Errors
    /// [`SnapshotError::NotFinished`], [`SnapshotError::Newer`], [`SnapshotError::Damaged`],
    /// [`SnapshotError::Io`].
    pub fn manifest(&self) -> Result<Manifest, SnapshotError> {
        match self.read_file(MANIFEST, MAX_MANIFEST) {
            Ok(text) => Manifest::decode(&text),
            Err(SnapshotError::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {
                Err(SnapshotError::NotFinished { dir: self.name.clone() })
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn expect_unfinished(&self) -> Result<(), SnapshotError> {
        match rustix::fs::statat(&self.fd, MANIFEST, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            Ok(_) => Err(SnapshotError::Exists { dir: self.name.clone() }),
            Err(e) => Err(self.io("look for", MANIFEST, e)),
        }
    }

    /// Makes the file `name`: `fill` writes it under another name, then it is synced and renamed.
    pub(super) fn create_file<T>(
        &self,
        name: &'static str,
        fill: impl FnOnce(&File) -> io::Result<T>,
    ) -> Result<T, SnapshotError> {
        let file = self.begin_file(name)?;
        let result = fill(&file).map_err(|e| self.io("write", name, e))?;
        self.finish_file(name, &file)?;
        Ok(result)
    }

    /// Makes the file `name` under another name, for reading and writing.
    pub(super) fn begin_file(&self, name: &'static str) -> Result<File, SnapshotError> {
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::RDWR | OFlags::CLOEXEC;
        // Guest memory is nobody else's business.
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::openat(&self.fd, &*unfinished(name), flags | OFlags::NOFOLLOW, mode)
            .map(File::from)
            .map_err(|e| self.io("create", name, e))
    }

    /// Syncs a file and gives it its name.
    pub(super) fn finish_file(&self, name: &'static str, file: &File) -> Result<(), SnapshotError> {
        file.sync_all().map_err(|e| self.io("sync", name, e))?;
        rustix::fs::renameat(&self.fd, &*unfinished(name), &self.fd, name)
            .map_err(|e| self.io("rename", name, e))
    }

    /// Makes the names of the files durable.
    pub(super) fn sync(&self) -> Result<(), SnapshotError> {
        rustix::fs::fsync(&self.fd).map_err(|e| SnapshotError::io("sync", &self.name, e))
    }

    pub(super) fn open_file(&self, name: &'static str) -> Result<File, SnapshotError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(&self.fd, name, flags, Mode::empty())
            .map(File::from)
            .map_err(|e| self.io("open", name, e))
    }

    /// Reads the file `name`, at most `limit` bytes of it.
    pub(super) fn read_file(
        &self,
        name: &'static str,
        limit: u64,
    ) -> Result<Vec<u8>, SnapshotError> {
        let mut content = Vec::new();
        // One byte more shows a file that is too long.
        let mut input = self.open_file(name)?.take(limit.saturating_add(1));
        input.read_to_end(&mut content).map_err(|e| self.io("read", name, e))?;
        if content.len() as u64 > limit {
            return Err(SnapshotError::damaged(name, "it is longer than it should be"));
        }
        Ok(content)
    }

    pub(super) fn io(
        &self,
        action: &'static str,
        file: &str,
        cause: impl Into<io::Error>,
    ) -> SnapshotError {
        SnapshotError::io(action, &format!("{}/{file}", self.name), cause)
    }
}

fn unfinished(name: &str) -> String {
    format!("{name}.new")
}
