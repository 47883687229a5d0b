//! The folder of all VMs.

use std::env;
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use api::{RunState, VmSummary};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::{Error, Lock, Operation, Result, VmDir, VmRecord, check_name, fresh_name};

/// How the name of a VM begins that is being made.
const NEW: &str = ".new-";
/// How the name of a VM begins that is being removed.
const GONE: &str = ".gone-";

/// The folder of all VMs.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// `ringfence/vms` below `$XDG_DATA_HOME` or `~/.local/share`.
    ///
    /// # Errors
    /// [`Error::NoFolder`], [`Error::Io`].
    pub fn open_default() -> Result<Self> {
        let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let data = absolute("XDG_DATA_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
            .ok_or(Error::NoFolder)?;
        Self::at(data.join("ringfence/vms"))
    }

    /// The VMs in the folder `root`, which is made if it is missing.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn at(root: PathBuf) -> Result<Self> {
        // Guest memory is nobody else's business.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&root)
            .map_err(|e| Error::io("make folder", &root.display(), e))?;
        Ok(Self { root })
    }

    /// The names of all VMs, in order.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names = self.entries()?;
        names.retain(|name| check_name(name).is_ok());
        names.sort();
        Ok(names)
    }

    /// The VM of this name.
    ///
    /// # Errors
    /// [`Error::BadName`], [`Error::NotFound`], [`Error::Io`].
    pub fn vm(&self, name: &str) -> Result<VmDir> {
        check_name(name)?;
        VmDir::open(self.root.join(name), name)
    }

    /// What `ps` shows: all VMs, and what is wrong with those that cannot be read.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn list(&self) -> Result<(Vec<VmSummary>, Vec<Error>)> {
        let (mut vms, mut damaged) = (Vec::new(), Vec::new());
        for name in self.names()? {
            match self.vm(&name).and_then(|vm| summary(&vm)) {
                Ok(vm) => vms.push(vm),
                // Removed meanwhile.
                Err(Error::NotFound { .. }) => {}
                Err(error) => damaged.push(error),
            }
        }
        Ok((vms, damaged))
    }

    /// Makes a VM: `fill` puts what it likes into its folder, which has its name only when all is
    /// there.
    ///
    /// # Errors
    /// [`Error::BadName`], [`Error::Exists`], [`Error::Io`], and what `fill` returns.
    pub fn create<E: From<Error>>(
        &self,
        name: &str,
        record: &VmRecord,
        fill: impl FnOnce(&VmDir) -> std::result::Result<(), E>,
    ) -> std::result::Result<VmDir, E> {
        check_name(name)?;
        self.expect_free(name)?;
        let (path, _making) = self.half_made()?;
        let made = VmDir::open(path.clone(), name).map_err(E::from).and_then(|vm| {
            vm.write_record(record)?;
            fill(&vm)?;
            self.take_name(&path, name)?;
            Ok(())
        });
        if let Err(error) = made {
            // The first failure is what counts; the rest is swept later.
            let _ = fs::remove_dir_all(&path);
            return Err(error);
        }
        Ok(self.vm(name)?)
    }

    /// Gives a VM another name; it may be running.
    ///
    /// # Errors
    /// [`Error::BadName`], [`Error::Exists`], [`Error::Io`].
    pub fn rename(&self, vm: &Operation<'_>, name: &str) -> Result<()> {
        check_name(name)?;
        self.take_name(&self.root.join(vm.name()), name)
    }

    /// Removes a VM that has no process.
    ///
    /// # Errors
    /// [`Error::Alive`], [`Error::Io`].
    pub fn remove(&self, vm: &Operation<'_>) -> Result<()> {
        let _run = vm.dir().take_run_lock()?;
        let gone = self.root.join(format!("{GONE}{}", unique()?));
        let path = self.root.join(vm.name());
        fs::rename(&path, &gone).map_err(|e| Error::io("rename", &path.display(), e))?;
        fs::remove_dir_all(&gone).map_err(|e| Error::io("remove", &gone.display(), e))
    }

    /// Removes what commands have left that ended before they were finished. Never waits.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sweep(&self) -> Result<()> {
        for name in self.entries()? {
            let path = self.root.join(&name);
            if name.starts_with(NEW) && !self.abandon(&path)? {
                continue;
            }
            if name.starts_with(NEW) || name.starts_with(GONE) {
                // Whoever removes it at the same time does the same.
                let _ = fs::remove_dir_all(&path);
            }
        }
        Ok(())
    }

    /// Whether nobody makes the VM in `path` any more.
    fn abandon(&self, path: &Path) -> Result<bool> {
        let held = self.lock()?;
        let free = match Lock::folder(path) {
            Ok(lock) => lock.is_some(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => return Err(Error::io("lock", &path.display(), e)),
        };
        drop(held);
        Ok(free)
    }

    /// A folder without a VM's name, and the lock that says that somebody works on it.
    fn half_made(&self) -> Result<(PathBuf, Lock)> {
        let path = self.root.join(format!("{NEW}{}", unique()?));
        // Held, so that nobody takes the folder for abandoned before it is locked.
        let _held = self.lock()?;
        let io = |action, e| Error::io(action, &path.display(), e);
        DirBuilder::new().mode(0o700).create(&path).map_err(|e| io("make folder", e))?;
        let lock = Lock::folder(&path).map_err(|e| io("lock", e))?;
        let lock = lock.ok_or_else(|| io("lock", io::ErrorKind::WouldBlock.into()))?;
        Ok((path, lock))
    }

    fn take_name(&self, path: &Path, name: &str) -> Result<()> {
        let to = self.root.join(name);
        match renameat_with(CWD, path, CWD, &to, RenameFlags::NOREPLACE) {
            Ok(()) => {
                crate::sync_dir(&self.root).map_err(|e| Error::io("sync", &self.root.display(), e))
            }
            Err(Errno::EXIST) => Err(Error::Exists { name: name.to_owned() }),
            Err(e) => Err(Error::io("rename", &path.display(), e)),
        }
    }

    fn expect_free(&self, name: &str) -> Result<()> {
        match self.root.join(name).symlink_metadata() {
            Ok(_) => Err(Error::Exists { name: name.to_owned() }),
            Err(_) => Ok(()),
        }
    }

    fn lock(&self) -> Result<Lock> {
        Lock::folder_wait(&self.root).map_err(|e| Error::io("lock", &self.root.display(), e))
    }

    fn entries(&self) -> Result<Vec<String>> {
        let io = |e| Error::io("list", &self.root.display(), e);
        let names = fs::read_dir(&self.root).map_err(io)?.map(|entry| Ok(entry?.file_name()));
        let names: Vec<OsString> = names.collect::<io::Result<_>>().map_err(io)?;
        Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }
}

fn unique() -> Result<String> {
    fresh_name().map_err(|e| Error::io("read", &"/dev/urandom", e))
}

fn summary(vm: &VmDir) -> Result<VmSummary> {
    let (record, state) = (vm.record()?, vm.state()?);
    let alive = state.state.is_alive();
    Ok(VmSummary {
        name: vm.name().to_owned(),
        state: state.state,
        pid: state.pid.filter(|_| alive),
        engine: state.engine.filter(|_| alive || state.state == RunState::Suspended),
        platform: record.platform,
    })
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::StateRecord;

    fn store() -> (TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(folder.path().join("vms")).unwrap();
        (folder, store)
    }

    fn record() -> VmRecord {
        VmRecord::new(vec!["--memory".into(), "64".into()], "/".into(), "pc")
    }

    fn create(store: &Store, name: &str) -> Result<VmDir> {
        store.create(name, &record(), |_| Ok::<_, Error>(()))
    }

    fn states(store: &Store) -> Vec<(String, RunState)> {
        let (vms, damaged) = store.list().unwrap();
        assert!(damaged.is_empty());
        vms.into_iter().map(|vm| (vm.name, vm.state)).collect()
    }

    #[test]
    fn a_vm_is_made_renamed_and_removed() {
        let (_folder, store) = store();
        let vm = create(&store, "b").unwrap();
        create(&store, "a").unwrap();
        assert_eq!(vm.record().unwrap(), record());
        assert!(matches!(create(&store, "a"), Err(Error::Exists { .. })));
        let operation = vm.begin("rename").unwrap();
        assert!(matches!(store.rename(&operation, "a"), Err(Error::Exists { .. })));
        store.rename(&operation, "c").unwrap();
        drop(operation);
        assert_eq!(
            states(&store),
            [("a".into(), RunState::Stopped), ("c".into(), RunState::Stopped)]
        );
        assert!(matches!(vm.begin("rm"), Err(Error::NotFound { .. })), "it has another name now");
        let vm = store.vm("c").unwrap();
        store.remove(&vm.begin("rm").unwrap()).unwrap();
        assert!(matches!(store.vm("c"), Err(Error::NotFound { .. })));
        assert_eq!(store.entries().unwrap(), ["a"]);
    }

    #[test]
    fn a_process_keeps_its_vm() {
        let (_folder, store) = store();
        let vm = create(&store, "a").unwrap();
        let run = vm.take_run_lock().unwrap();
        vm.write_state(&StateRecord::of_this_process("translator")).unwrap();
        assert_eq!(states(&store), [("a".into(), RunState::Running)]);
        let operation = vm.begin("rm").unwrap();
        assert!(matches!(store.remove(&operation), Err(Error::Alive { .. })));
        drop(run);
        assert_eq!(states(&store), [("a".into(), RunState::Crashed)], "it said nothing of its end");
        store.remove(&operation).unwrap();
    }

    #[test]
    fn operations_take_turns() {
        let (_folder, store) = store();
        let vm = create(&store, "a").unwrap();
        let first = vm.begin("start").unwrap();
        let error = vm.begin_within("rm", std::time::Duration::from_millis(5)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("start") && text.contains(&std::process::id().to_string()), "{text}");
        drop(first);
        vm.begin("rm").unwrap();
    }

    #[test]
    fn what_a_crash_left_is_swept_and_what_is_being_made_is_not() {
        let (_folder, store) = store();
        fs::create_dir(store.root.join(".new-abandoned")).unwrap();
        fs::create_dir(store.root.join(".gone-half")).unwrap();
        fs::write(store.root.join(".gone-half/memory"), "x").unwrap();
        let (path, _making) = store.half_made().unwrap();
        store.sweep().unwrap();
        assert_eq!(store.entries().unwrap(), [path.file_name().unwrap().to_str().unwrap()]);
    }

    #[test]
    fn a_failure_while_a_vm_is_made_leaves_nothing() {
        let (_folder, store) = store();
        let failed = store.create("a", &record(), |_| Err(Error::NoFolder));
        assert!(matches!(failed, Err(Error::NoFolder)));
        assert!(store.entries().unwrap().is_empty());
    }

    #[test]
    fn a_damaged_vm_does_not_hide_the_others() {
        let (_folder, store) = store();
        create(&store, "a").unwrap();
        for content in ["{", "{\"format\":9}", "", "[]"] {
            let vm = create(&store, "bad").unwrap();
            fs::write(store.root.join("bad/vm.json"), content).unwrap();
            let (vms, damaged) = store.list().unwrap();
            assert_eq!((vms.len(), damaged.len()), (1, 1), "{content}");
            assert!(damaged[0].to_string().contains("vm.json"), "{}", damaged[0]);
            store.remove(&vm.begin("rm").unwrap()).unwrap();
        }
    }
}
