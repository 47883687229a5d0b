//! Locks on files: the kernel releases them when the holder ends, however it ends.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// How often a lock that somebody holds is tried again.
const RETRY: Duration = Duration::from_millis(2);

/// A lock, held until this is dropped or the process ends.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Takes the lock for this process alone, waiting for it for at most `patience`. None when
    /// somebody else still holds it.
    ///
    /// # Errors
    /// What the host says.
    pub fn exclusive(path: &Path, patience: Duration) -> io::Result<Option<Self>> {
        let file = open(path)?;
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(Self(file))),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if start.elapsed() >= patience => return Ok(None),
                Err(TryLockError::WouldBlock) => thread::sleep(RETRY),
            }
        }
    }

    /// Whether somebody holds the lock alone.
    ///
    /// # Errors
    /// What the host says.
    pub fn is_held(path: &Path) -> io::Result<bool> {
        match open(path)?.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Waits until nobody holds the lock alone.
    ///
    /// # Errors
    /// What the host says.
    pub fn wait_until_free(path: &Path) -> io::Result<()> {
        open(path)?.lock_shared()
    }

    /// Locks a folder. None when somebody else has it.
    ///
    /// # Errors
    /// What the host says.
    pub fn folder(path: &Path) -> io::Result<Option<Self>> {
        let file = File::open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Locks a folder, waiting for it: for what takes moments only.
    ///
    /// # Errors
    /// What the host says.
    pub fn folder_wait(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        file.lock()?;
        Ok(Self(file))
    }

    pub(crate) fn file(&self) -> &File {
        &self.0
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        assert!(!Lock::is_held(&path).unwrap());
        let held = Lock::exclusive(&path, Duration::ZERO).unwrap().unwrap();
        assert!(Lock::is_held(&path).unwrap());
        assert!(Lock::exclusive(&path, Duration::from_millis(5)).unwrap().is_none());
        drop(held);
        Lock::wait_until_free(&path).unwrap();
        assert!(Lock::exclusive(&path, Duration::ZERO).unwrap().is_some());
    }
}
