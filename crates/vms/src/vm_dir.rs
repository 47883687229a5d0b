//! The folder of one VM.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::RunState;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::record::FORMAT;
use crate::{Error, Lock, Result, StateRecord, VmRecord, write_atomically};

/// Names in a VM's folder.
pub mod member {
    /// How the VM was made: [`crate::VmRecord`].
    pub const RECORD: &str = "vm.json";
    /// What it does: [`crate::StateRecord`].
    pub const STATE: &str = "state.json";
    /// Held by the VM's process.
    pub const RUN_LOCK: &str = "run.lock";
    /// Held by a command that changes the VM.
    pub const OPERATION_LOCK: &str = "operation.lock";
    /// The control socket of the VM's process.
    pub const SOCKET: &str = "control.sock";
    /// What the guest wrote to its console, the newest.
    pub const CONSOLE: &str = "console.log";
    /// What the guest wrote before that.
    pub const OLD_CONSOLE: &str = "console.log.1";
    /// What the VM's process said.
    pub const MESSAGES: &str = "messages.log";
    /// State and memory of a suspended VM: a snapshot.
    pub const SUSPENDED: &str = "suspended";
    /// The VM's snapshots.
    pub const SNAPSHOTS: &str = "snapshots";
    /// Disks that belong to the VM.
    pub const DISKS: &str = "disks";
}

/// How long a command waits for another one that works on the same VM.
const PATIENCE: Duration = Duration::from_secs(20);
/// A process that ends holds its lock for some moments after it was seen alive; one that looks
/// whether the VM is alive holds it for less.
const RUN_PATIENCE: Duration = Duration::from_millis(300);
/// Records are some kilobytes.
const MAX_RECORD: u64 = 1 << 20;

/// The folder of one VM, held open: it stays the same VM when it gets another name.
#[derive(Debug)]
pub struct VmDir {
    fd: OwnedFd,
    /// Where it was found.
    at: PathBuf,
    name: String,
}

impl VmDir {
    pub(crate) fn open(at: PathBuf, name: &str) -> Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY | OFlags::NOFOLLOW;
        match rustix::fs::open(&at, flags, Mode::empty()) {
            Ok(fd) => Ok(Self { fd, at, name: name.to_owned() }),
            Err(Errno::NOENT) => Err(Error::NotFound { name: name.to_owned() }),
            Err(e) => Err(Error::io("open folder", &at.display(), e)),
        }
    }

    /// The name by which the VM was found.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Path of a member of the folder, for this process only: short whatever the VM's name is, and
    /// right after a change of the name. See [`member`].
    pub fn path(&self, member: &str) -> PathBuf {
        Path::new("/proc/self/fd").join(self.fd.as_raw_fd().to_string()).join(member)
    }

    /// Path of a member for people and other processes.
    pub fn public_path(&self, member: &str) -> PathBuf {
        self.at.join(member)
    }

    /// How the VM was made.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`].
    pub fn record(&self) -> Result<VmRecord> {
        self.read(member::RECORD)?.ok_or_else(|| self.damaged(member::RECORD, &"it is missing"))
    }

    /// Writes down how the VM is made.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_record(&self, record: &VmRecord) -> Result<()> {
        self.write(member::RECORD, record, true)
    }

    /// What the VM does. Never waits.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`].
    pub fn state(&self) -> Result<StateRecord> {
        loop {
            let alive = self.is_alive()?;
            let state = self.read::<StateRecord>(member::STATE)?;
            let mut state = state.unwrap_or_else(|| StateRecord::new(RunState::Stopped));
            if state.state.is_alive() && !alive {
                // Unless it has only just begun.
                if self.is_alive()? {
                    continue;
                }
                state.state = RunState::Crashed;
            }
            return Ok(state);
        }
    }

    /// Writes down what the VM does; for its process, or whoever holds the run lock.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_state(&self, state: &StateRecord) -> Result<()> {
        self.write(member::STATE, state, false)
    }

    /// Whether the VM has a process.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn is_alive(&self) -> Result<bool> {
        Lock::is_held(&self.path(member::RUN_LOCK))
            .map_err(|e| self.io("lock", member::RUN_LOCK, e))
    }

    /// Becomes the VM's process, or makes sure that there is none.
    ///
    /// # Errors
    /// [`Error::Alive`], [`Error::Io`].
    pub fn take_run_lock(&self) -> Result<Lock> {
        self.take_run_lock_within(RUN_PATIENCE)
    }

    /// The same, waiting for the end of the VM's process for at most `patience`.
    ///
    /// # Errors
    /// [`Error::Alive`], [`Error::Io`].
    pub fn take_run_lock_within(&self, patience: Duration) -> Result<Lock> {
        match Lock::exclusive(&self.path(member::RUN_LOCK), patience) {
            Ok(Some(lock)) => Ok(lock),
            Ok(None) => {
                let state = self.state().map_or("running", |state| state.state.as_str());
                Err(Error::Alive { name: self.name.clone(), state })
            }
            Err(e) => Err(self.io("lock", member::RUN_LOCK, e)),
        }
    }

    /// Waits until the VM has no process.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn wait_for_end(&self) -> Result<()> {
        Lock::wait_until_free(&self.path(member::RUN_LOCK))
            .map_err(|e| self.io("lock", member::RUN_LOCK, e))
    }

    /// Begins to change the VM, waiting for another command that does.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::NotFound`] when it was renamed or removed meanwhile, [`Error::Io`].
    pub fn begin(&self, verb: &str) -> Result<Operation<'_>> {
        self.begin_within(verb, PATIENCE)
    }

    pub(crate) fn begin_within(&self, verb: &str, patience: Duration) -> Result<Operation<'_>> {
        let path = self.path(member::OPERATION_LOCK);
        let lock = Lock::exclusive(&path, patience);
        let lock = lock.map_err(|e| self.io("lock", member::OPERATION_LOCK, e))?;
        let Some(lock) = lock else {
            let holder = fs::read_to_string(&path).unwrap_or_default();
            return Err(Error::Busy { name: self.name.clone(), holder });
        };
        self.expect_in_place()?;
        // For messages only.
        let holder = format!("`ringfence {verb}` (process {})", std::process::id());
        let _ = lock.file().set_len(0);
        let _ = lock.file().rewind().and_then(|()| lock.file().write_all(holder.as_bytes()));
        Ok(Operation { vm: self, _lock: lock })
    }

    /// Whether the folder still is where it was found.
    fn expect_in_place(&self) -> Result<()> {
        let ours = File::from(self.fd.try_clone().map_err(|e| self.io("open", ".", e))?);
        let ours = ours.metadata().map_err(|e| self.io("look at", ".", e))?;
        match self.at.symlink_metadata() {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => Ok(()),
            _ => Err(Error::NotFound { name: self.name.clone() }),
        }
    }

    fn read<T: DeserializeOwned>(&self, member: &'static str) -> Result<Option<T>> {
        let file = match File::open(self.path(member)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(self.io("open", member, e)),
        };
        let mut text = Vec::new();
        file.take(MAX_RECORD).read_to_end(&mut text).map_err(|e| self.io("read", member, e))?;
        let value: serde_json::Value =
            serde_json::from_slice(&text).map_err(|e| self.damaged(member, &e))?;
        match value.get("format").and_then(serde_json::Value::as_u64) {
            Some(format) if format > u64::from(FORMAT) => {
                return Err(self.damaged(member, &"it was written by a newer ringfence"));
            }
            Some(1..) => {}
            _ => return Err(self.damaged(member, &"it has no format")),
        }
        serde_json::from_value(value).map(Some).map_err(|e| self.damaged(member, &e))
    }

    fn write(&self, member: &'static str, value: &impl Serialize, durable: bool) -> Result<()> {
        let text = serde_json::to_string_pretty(value).map_err(|e| self.io("encode", member, e))?;
        write_atomically(&self.path(member), (text + "\n").as_bytes(), durable)
            .map_err(|e| self.io("write", member, e))
    }

    fn damaged(&self, file: &'static str, cause: &dyn Display) -> Error {
        Error::Damaged { name: self.name.clone(), file, cause: cause.to_string() }
    }

    fn io(&self, action: &'static str, member: &str, cause: impl Into<io::Error>) -> Error {
        Error::io(action, &self.at.join(member).display(), cause)
    }
}

impl AsFd for VmDir {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The right to change a VM, held by one command at a time.
#[derive(Debug)]
pub struct Operation<'a> {
    vm: &'a VmDir,
    _lock: Lock,
}

impl Operation<'_> {
    /// The VM.
    pub fn dir(&self) -> &VmDir {
        self.vm
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.vm.name()
    }
}
