//! The snapshots of one VM: a folder with a directory for each, named after it.
//!
//! Snapshots form a tree by `parent` (what the VM had gone on from) and by `base` (where the pages
//! are that a difference lacks). What is being made or removed bears a name that begins with a dot,
//! which no snapshot can; the folder itself is locked while names change.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{Manifest, SnapshotDir, SnapshotError, manifest};

/// How the name of a snapshot begins that is being made.
const NEW: &str = ".new-";
/// How the name of a snapshot begins that is being removed.
const GONE: &str = ".gone-";
/// The most differences that are based on each other.
const LONGEST_CHAIN: usize = 200;

/// The folder of a VM's snapshots.
#[derive(Clone, Debug)]
pub struct SnapshotTree {
    folder: PathBuf,
}

/// A snapshot that is being made. Dropping it removes it, unless it was committed.
#[derive(Debug)]
pub struct PendingSnapshot {
    path: PathBuf,
    /// Says that somebody works on it.
    _making: File,
}

impl SnapshotTree {
    /// The snapshots in `folder`, which is made if it is missing.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn open(folder: PathBuf) -> Result<Self, SnapshotError> {
        make_folder(&folder, true)?;
        Ok(Self { folder })
    }

    /// The names of all snapshots, in order.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn names(&self) -> Result<Vec<String>, SnapshotError> {
        let mut names = self.entries()?;
        names.retain(|name| manifest::is_name(name));
        names.sort();
        Ok(names)
    }

    /// What the snapshot `name` says of itself.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`], and every error of reading it.
    pub fn manifest(&self, name: &str) -> Result<Manifest, SnapshotError> {
        self.open_alone(name)?.manifest()
    }

    /// Bytes that the snapshot `name` takes on disk.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`], [`SnapshotError::Io`].
    pub fn size(&self, name: &str) -> Result<u64, SnapshotError> {
        let path = self.path(name)?;
        let io = |e| SnapshotError::io("look at", name, e);
        let mut bytes = 0;
        for entry in fs::read_dir(&path).map_err(io)? {
            bytes += entry.and_then(|entry| entry.metadata()).map_err(io)?.blocks() * 512;
        }
        Ok(bytes)
    }

    /// Opens the snapshot `name` with all that it is a difference to.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`], [`SnapshotError::NoBase`], and every error of reading them.
    pub fn snapshot(&self, name: &str) -> Result<SnapshotDir, SnapshotError> {
        let mut chain = vec![self.open_alone(name)?];
        let mut last = chain[0].manifest()?;
        let mut at = name.to_owned();
        while let Some(base) = last.base.take() {
            let no_base = || SnapshotError::NoBase { name: at.clone(), base: base.name.clone() };
            if chain.len() > LONGEST_CHAIN {
                return Err(SnapshotError::damaged("manifest.json", "its bases have no end"));
            }
            let dir = self.open_alone(&base.name).map_err(|_| no_base())?;
            last = dir.manifest()?;
            if last.id != base.id {
                return Err(no_base());
            }
            chain.push(dir);
            at = base.name;
        }
        let mut chain = chain.into_iter().rev();
        let root = chain.next().ok_or_else(|| SnapshotError::NotFound { name: name.to_owned() })?;
        Ok(chain.fold(root, |base, dir| dir.with_base(base)))
    }

    /// Whether a difference to the snapshot `name` with this `id` can be taken: it is there, and
    /// there are not too many differences below it.
    pub fn can_be_base(&self, name: &str, id: &str) -> bool {
        let there = self.manifest(name).is_ok_and(|manifest| manifest.id == id);
        let depth = |mut dir: Option<&SnapshotDir>| {
            let mut depth = 0;
            while let Some(base) = dir {
                (depth, dir) = (depth + 1, base.base());
            }
            depth
        };
        there && self.snapshot(name).is_ok_and(|dir| depth(Some(&dir)) < LONGEST_CHAIN / 2)
    }

    /// Begins a snapshot.
    ///
    /// # Errors
    /// [`SnapshotError::BadName`] when there is one called `name`, or none can be;
    /// [`SnapshotError::Io`].
    pub fn begin(&self, name: &str) -> Result<PendingSnapshot, SnapshotError> {
        self.expect_free(name)?;
        self.pending()
    }

    /// Gives a finished snapshot its name.
    ///
    /// # Errors
    /// [`SnapshotError::BadName`] when it is taken, [`SnapshotError::Io`].
    pub fn commit(&self, pending: PendingSnapshot, name: &str) -> Result<(), SnapshotError> {
        let _held = self.lock()?;
        self.expect_free(name)?;
        let to = self.folder.join(name);
        renameat_with(CWD, &pending.path, CWD, &to, RenameFlags::NOREPLACE)
            .map_err(|e| SnapshotError::io("rename", name, e))?;
        // Nothing is left under its old name to remove.
        drop(pending);
        self.sync()
    }

    /// Removes what was left by snapshots that were interrupted. Never waits for those that are
    /// being made.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn sweep(&self) -> Result<(), SnapshotError> {
        let _held = self.lock()?;
        for name in self.entries()? {
            let path = self.folder.join(&name);
            let abandoned = || File::open(&path).is_ok_and(|folder| folder.try_lock().is_ok());
            if name.starts_with(GONE) || name.starts_with(NEW) && abandoned() {
                // Whoever removes it at the same time does the same.
                let _ = fs::remove_dir_all(&path);
            }
        }
        Ok(())
    }

    /// A directory without a name; the caller need not hold the lock.
    pub(super) fn pending(&self) -> Result<PendingSnapshot, SnapshotError> {
        let path = self.folder.join(format!("{NEW}{}", random_id(8)?));
        // Held, so that nobody takes the directory for abandoned before it is locked.
        let _held = self.lock()?;
        make_folder(&path, false)?;
        let making = File::open(&path).and_then(|folder| {
            folder.try_lock()?;
            Ok(folder)
        });
        let making = making.map_err(|e| SnapshotError::io("lock", &path.to_string_lossy(), e))?;
        Ok(PendingSnapshot { path, _making: making })
    }

    /// Puts `pending` in the place of the snapshot `name`, which is removed.
    pub(super) fn replace(
        &self,
        pending: PendingSnapshot,
        name: &str,
    ) -> Result<(), SnapshotError> {
        let there = self.path(name)?;
        renameat_with(CWD, &pending.path, CWD, &there, RenameFlags::EXCHANGE)
            .map_err(|e| SnapshotError::io("replace", name, e))?;
        self.sync()?;
        // Removes what was there.
        drop(pending);
        Ok(())
    }

    /// Removes the directory of the snapshot `name`.
    pub(super) fn discard(&self, name: &str) -> Result<(), SnapshotError> {
        let gone = self.folder.join(format!("{GONE}{}", random_id(8)?));
        let io = |e| SnapshotError::io("remove", name, e);
        fs::rename(self.path(name)?, &gone).map_err(io)?;
        self.sync()?;
        fs::remove_dir_all(&gone).map_err(io)
    }

    #[cfg(test)]
    pub(crate) fn discard_for_test(&self, name: &str) {
        self.discard(name).expect("it is there");
    }

    /// The directory of the snapshot `name`.
    pub(super) fn path(&self, name: &str) -> Result<PathBuf, SnapshotError> {
        let path = self.folder.join(name);
        match manifest::is_name(name) && path.is_dir() {
            true => Ok(path),
            false => Err(SnapshotError::NotFound { name: name.to_owned() }),
        }
    }

    /// Opens the directory of the snapshot `name` without its bases.
    pub(super) fn open_alone(&self, name: &str) -> Result<SnapshotDir, SnapshotError> {
        SnapshotDir::open(&self.path(name)?)
    }

    /// Held while names change.
    pub(super) fn lock(&self) -> Result<File, SnapshotError> {
        let locked = File::open(&self.folder).and_then(|folder| {
            folder.lock()?;
            Ok(folder)
        });
        locked.map_err(|e| SnapshotError::io("lock", &self.folder.to_string_lossy(), e))
    }

    fn expect_free(&self, name: &str) -> Result<(), SnapshotError> {
        let bad = |cause| SnapshotError::BadName { name: name.to_owned(), cause };
        if !manifest::is_name(name) {
            return Err(bad(
                "a name has 1 to 63 letters, digits, '.', '_' or '-', and begins with a letter or \
                 digit",
            ));
        }
        match self.folder.join(name).symlink_metadata() {
            Ok(_) => Err(bad("there is one already; remove it first, or take another name")),
            Err(_) => Ok(()),
        }
    }

    fn entries(&self) -> Result<Vec<String>, SnapshotError> {
        let io = |e| SnapshotError::io("list", &self.folder.to_string_lossy(), e);
        let names = fs::read_dir(&self.folder).map_err(io)?.map(|entry| Ok(entry?.file_name()));
        let names: Vec<_> = names.collect::<io::Result<_>>().map_err(io)?;
        Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }

    fn sync(&self) -> Result<(), SnapshotError> {
        File::open(&self.folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|e| SnapshotError::io("sync", &self.folder.to_string_lossy(), e))
    }
}

impl PendingSnapshot {
    /// The directory, to write the snapshot into.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn dir(&self) -> Result<SnapshotDir, SnapshotError> {
        SnapshotDir::open(&self.path)
    }

    /// Its path, for the disks' content.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PendingSnapshot {
    fn drop(&mut self) {
        // A snapshot that was committed has another name by now; what cannot be removed is swept.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn make_folder(path: &Path, recursive: bool) -> Result<(), SnapshotError> {
    // Guest memory is nobody else's business.
    let made = DirBuilder::new().recursive(recursive).mode(0o700).create(path);
    made.map_err(|e| SnapshotError::io("make directory", &path.to_string_lossy(), e))
}

/// `bytes` random bytes in hexadecimal.
pub(crate) fn random_id(bytes: usize) -> Result<String, SnapshotError> {
    let mut random = vec![0; bytes];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut random))
        .map_err(|e| SnapshotError::io("read", "/dev/urandom", e))?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}
