//! Makes folders appear whole or not at all.
//!
//! A [`Staging`] is a folder below the store's `.build`, held under a lock of
//! its own. [`Staging::publish`] syncs what is in it and renames it to its
//! place. A process that dies leaves a folder in `.build`, where nothing looks
//! for images, and no lock, since the kernel drops those; the next holder of
//! the lock clears the folder.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::{Error, Progress, Result};

/// Where locks live in a store. They are never removed: removing a lock file
/// while another process waits on it would let two processes in.
const LOCKS: &str = ".locks";

/// Where unfinished folders live in a store.
const BUILD: &str = ".build";

/// A lock between processes (and threads), released when dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
    /// Whether somebody else held the lock at first.
    pub waited: bool,
}

impl Lock {
    /// Waits until the lock `key` is free. The first time that it is not,
    /// `progress` is told that `what` is waited for.
    pub(crate) fn acquire(
        store: &Path,
        key: &str,
        what: &str,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let (file, path) = open(store, key)?;
        match file.try_lock() {
            Ok(()) => return Ok(Self { _file: file, waited: false }),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(source)) => return Err(Error::io("lock", &path)(source)),
        }
        progress.message(&format!("waiting for another process that is {what}"));
        file.lock().map_err(Error::io("lock", &path))?;
        Ok(Self { _file: file, waited: true })
    }

    /// The lock `key`, or `None` when somebody else holds it.
    pub(crate) fn try_acquire(store: &Path, key: &str) -> Result<Option<Self>> {
        let (file, path) = open(store, key)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file, waited: false })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(Error::io("lock", &path)(source)),
        }
    }
}

fn open(store: &Path, key: &str) -> Result<(File, PathBuf)> {
    let folder = store.join(LOCKS);
    let not_writable =
        |path: &Path, source| Error::StoreNotWritable { path: path.to_owned(), source };
    fs::create_dir_all(&folder).map_err(|source| not_writable(&folder, source))?;
    let path = folder.join(key);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| not_writable(&path, source))?;
    Ok((file, path))
}

/// An unfinished folder; removed when dropped without being published.
#[derive(Debug)]
pub(crate) struct Staging {
    folder: PathBuf,
    discarded: PathBuf,
    _lock: Lock,
}

impl Staging {
    /// An empty folder for `key`, whose lock the caller holds.
    pub(crate) fn new(store: &Path, key: &str, lock: Lock) -> Result<Self> {
        let folder = store.join(BUILD).join(key);
        let discarded = store.join(BUILD).join(format!("{key}.discarded"));
        // Whatever is here was left by a process that died.
        remove_all(&folder)?;
        remove_all(&discarded)?;
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        Ok(Self { folder, discarded, _lock: lock })
    }

    /// The folder to build in.
    pub(crate) fn path(&self) -> &Path {
        &self.folder
    }

    /// Syncs the folder's files and moves the folder to `place`, replacing what
    /// is there in one step.
    pub(crate) fn publish(self, place: &Path) -> Result<()> {
        sync_tree(&self.folder)?;
        let parent = place.parent().unwrap_or(place);
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        // Fails when nothing is there yet, and on file systems that cannot
        // exchange; moving reports whatever else is wrong.
        if renameat_with(CWD, &self.folder, CWD, place, RenameFlags::EXCHANGE).is_err() {
            self.move_to(place)?;
        }
        sync_folder(parent)?;
        // What was replaced, if anything, goes when `self` is dropped.
        Ok(())
    }

    /// Removes the folder at `place` so that it never appears half removed.
    pub(crate) fn retire(&self, place: &Path) -> Result<()> {
        fs::rename(place, &self.discarded).map_err(Error::io("remove", place))?;
        sync_folder(place.parent().unwrap_or(place))?;
        remove_all(&self.discarded)
    }

    fn move_to(&self, place: &Path) -> Result<()> {
        if place.exists() {
            self.retire(place)?;
        }
        fs::rename(&self.folder, place).map_err(Error::io("create", place))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // A leftover is harmless and is cleared by the next build.
        let _ = remove_all(&self.folder);
        let _ = remove_all(&self.discarded);
    }
}

/// Removes a file or folder, if there is one.
fn remove_all(path: &Path) -> Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(source))
        }
        _ => Ok(()),
    }
}

/// Syncs a folder's files, then the folder. Images hold plain files only.
fn sync_tree(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let path = entry.map_err(Error::io("read", folder))?.path();
        File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io("sync", &path))?;
    }
    sync_folder(folder)
}

fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(Error::io("sync", folder))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::Silent;

    fn staging(store: &Path) -> Staging {
        let lock = Lock::acquire(store, "key", "testing", &Silent).expect("lock");
        Staging::new(store, "key", lock).expect("staging")
    }

    fn publish(store: &Path, content: &str) {
        let staging = staging(store);
        fs::write(staging.path().join("file"), content).expect("write");
        staging.publish(&store.join("place")).expect("publish");
    }

    #[test]
    fn publishing_replaces_and_cleans_up() {
        let store = tempfile::tempdir().expect("tempdir");
        for content in ["one", "two"] {
            publish(store.path(), content);
            let file = store.path().join("place/file");
            assert_eq!(fs::read_to_string(file).expect("published"), content);
            let left = fs::read_dir(store.path().join(BUILD)).expect("build folder").count();
            assert_eq!(left, 0);
        }
    }

    #[test]
    fn moving_works_where_exchanging_does_not() {
        let store = tempfile::tempdir().expect("tempdir");
        publish(store.path(), "old");
        let staging = staging(store.path());
        fs::write(staging.path().join("file"), "new").expect("write");
        staging.move_to(&store.path().join("place")).expect("move");
        let file = store.path().join("place/file");
        assert_eq!(fs::read_to_string(file).expect("moved"), "new");
    }

    #[test]
    fn an_abandoned_build_leaves_nothing() {
        let store = tempfile::tempdir().expect("tempdir");
        let staging = staging(store.path());
        fs::write(staging.path().join("file"), "x").expect("write");
        let folder = staging.path().to_owned();
        drop(staging);
        assert!(!folder.exists());
    }

    #[test]
    fn a_killed_build_is_cleared_by_the_next() {
        let store = tempfile::tempdir().expect("tempdir");
        let left = store.path().join(BUILD).join("key");
        fs::create_dir_all(left.join("deep")).expect("leftover");
        fs::write(left.join("deep/file"), "half").expect("leftover");
        let staging = staging(store.path());
        assert_eq!(fs::read_dir(staging.path()).expect("folder").count(), 0);
    }

    #[test]
    fn a_second_builder_waits_and_says_so() {
        struct Heard<'a>(&'a Mutex<Vec<String>>, std::sync::mpsc::Sender<()>);
        impl Progress for Heard<'_> {
            fn step(&self, _name: &str) {}
            fn bytes(&self, _done: u64, _total: Option<u64>) {}
            fn message(&self, text: &str) {
                self.0.lock().expect("mutex").push(text.to_owned());
                self.1.send(()).expect("receiver lives");
            }
        }
        let store = tempfile::tempdir().expect("tempdir");
        let first = Lock::acquire(store.path(), "key", "testing", &Silent).expect("first");
        assert!(!first.waited);
        assert!(Lock::try_acquire(store.path(), "key").expect("try").is_none());
        let heard = Mutex::new(Vec::new());
        let (sender, waiting) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| {
                let progress = Heard(&heard, sender);
                Lock::acquire(store.path(), "key", "building it", &progress).expect("second").waited
            });
            waiting.recv().expect("the second says that it waits");
            drop(first);
            assert!(second.join().expect("no panic"));
        });
        let heard = heard.into_inner().expect("mutex");
        assert_eq!(heard, ["waiting for another process that is building it"]);
    }
}
