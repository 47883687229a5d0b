//! A managed VM in its process: the VM with its folder.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use api::{PauseReport, RunState, VmStatus, VmUsage};
use lifecycle::{
    BaseEntry, ConsoleInput, EngineChoice, Outcome, RestoreOptions, SnapshotDir, SnapshotTree, Vm,
    VmConfig,
};
use vms::{StateRecord, VmDir, member};

use crate::{ConsoleHub, ControlError, DiskSource, usage};

/// How the name of state begins that is being written, or was restored, in the VM's folder.
const UNFINISHED: &str = ".suspended-";

/// Where a VM begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Its kernel is booted.
    Boot,
    /// It goes on with the state in the folder `suspended`, which is used up; with an identity, it
    /// is a copy.
    Suspended(Option<[u8; 16]>),
    /// It goes on from a snapshot of its own, which stays.
    Snapshot(String, [u8; 16]),
}

/// What a managed VM is started with.
pub struct Launch {
    /// Its folder. Its run lock is held by this process.
    pub dir: Arc<VmDir>,
    /// The VM, with its console from [`ConsoleHub`].
    pub config: VmConfig,
    /// That console.
    pub console: Arc<ConsoleHub>,
    /// Its disks.
    pub disks: Vec<DiskSource>,
    /// Where it begins.
    pub origin: Origin,
}

/// A managed VM. All methods may be called from any thread.
pub struct Guest {
    pub(crate) vm: Vm,
    pub(crate) dir: Arc<VmDir>,
    pub(crate) console: Arc<ConsoleHub>,
    pub(crate) tree: SnapshotTree,
    pub(crate) disks: Vec<DiskSource>,
    /// Held by whoever is attached to the console.
    pub(crate) consoles: Arc<()>,
    /// What the next difference can be taken against.
    pub(crate) base: Mutex<Option<BaseEntry>>,
    state: Mutex<StateRecord>,
    /// Held while something is done that must not be done twice at once.
    pub(crate) turn: Mutex<()>,
    suspended: AtomicBool,
    /// What ended the VM, where its outcome does not say it.
    failure: Mutex<Option<String>>,
    started: Instant,
    cpus: u32,
    memory: u64,
    platform: String,
}

impl Guest {
    /// Makes the VM; it does not run yet.
    ///
    /// # Errors
    /// What keeps the VM from being made.
    pub fn launch(launch: Launch) -> Result<Arc<Self>, ControlError> {
        let started = Instant::now();
        let Launch { dir, config, console, disks, origin } = launch;
        let engine = config.engine.name();
        sweep(&dir);
        let tree = SnapshotTree::open(dir.path(member::SNAPSHOTS))?;
        let mut state = StateRecord::of_this_process(engine);
        let (vm, verify) = match &origin {
            Origin::Boot => (Vm::create(config)?, None),
            Origin::Suspended(identity) => {
                let before = dir.state()?;
                state.current = before.current;
                let suspended = SnapshotDir::open(&dir.path(member::SUSPENDED))?;
                (restore(&suspended, config, *identity)?, Some(suspended))
            }
            Origin::Snapshot(name, identity) => {
                let snapshot = tree.snapshot(name)?;
                state.current = Some(name.clone());
                (restore(&snapshot, config, Some(*identity))?, Some(snapshot))
            }
        };
        let base = match &origin {
            Origin::Snapshot(name, _) => {
                Some(BaseEntry { name: name.clone(), id: tree.manifest(name)?.id })
            }
            _ => None,
        };
        let spec = vm.machine().spec();
        let (cpus, memory) = (spec.cpus, spec.memory);
        let guest = Arc::new(Self {
            platform: dir.record()?.platform,
            vm,
            dir,
            console,
            tree,
            disks,
            consoles: Arc::new(()),
            base: Mutex::new(base),
            state: Mutex::new(state),
            turn: Mutex::default(),
            suspended: AtomicBool::new(false),
            failure: Mutex::default(),
            started,
            cpus,
            memory,
        });
        if let Some(snapshot) = verify {
            guest.check_behind(snapshot, &origin)?;
        }
        Ok(guest)
    }

    /// Lets the VM run for the first time, and writes down that it does.
    ///
    /// # Errors
    /// [`ControlError::Vm`], [`ControlError::Store`].
    pub fn begin(&self) -> Result<(), ControlError> {
        self.write_state(|_| ())?;
        self.vm.resume()?;
        Ok(())
    }

    /// Waits for the end of the VM; returns how it ended. `status` makes the exit status of an
    /// outcome.
    ///
    /// # Errors
    /// [`ControlError::Store`] when the end cannot be written down.
    pub fn wait(&self, status: impl FnOnce(&Outcome) -> u8) -> Result<Outcome, ControlError> {
        let outcome = self.vm.wait();
        self.console.finish();
        // What was asked for first is done first: a suspended VM's state is complete.
        let _turn = self.turn();
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        let outcome = failure.map_or(outcome, Outcome::Failed);
        let state = match self.suspended.load(Ordering::Acquire) {
            true => RunState::Suspended,
            false => RunState::Stopped,
        };
        let status = status(&outcome);
        let text = match state {
            RunState::Suspended => "it was suspended".to_owned(),
            _ => outcome.to_string(),
        };
        self.write_state(|record| *record = record.clone().ended(state, status, &text))?;
        Ok(outcome)
    }

    /// What the VM is and does.
    pub fn status(&self) -> VmStatus {
        let state = self.state();
        VmStatus {
            state: state.state,
            pid: std::process::id(),
            engine: state.engine.clone().unwrap_or_default(),
            platform: self.platform.clone(),
            memory: self.memory,
            cpus: self.cpus,
            started: state.started.unwrap_or(0),
            base: self.base().as_ref().map(|base| base.name.clone()),
        }
    }

    /// Stops the guest where it is.
    ///
    /// # Errors
    /// [`ControlError::Vm`], [`ControlError::Store`].
    pub fn pause(&self) -> Result<(), ControlError> {
        let _turn = self.turn();
        self.vm.pause()?;
        self.write_state(|record| record.state = RunState::Paused)
    }

    /// Lets the guest go on.
    ///
    /// # Errors
    /// [`ControlError::Vm`], [`ControlError::Store`].
    pub fn resume(&self) -> Result<(), ControlError> {
        let _turn = self.turn();
        self.vm.resume()?;
        self.write_state(|record| record.state = RunState::Running)
    }

    /// Writes state and memory to disk and ends the VM.
    ///
    /// # Errors
    /// What keeps the state from being written: the VM goes on then.
    pub fn suspend(&self) -> Result<(), ControlError> {
        let _turn = self.turn();
        let was_running = self.vm.is_running()?;
        self.vm.pause()?;
        let result = self.write_suspended();
        match &result {
            Ok(()) => {
                self.suspended.store(true, Ordering::Release);
                self.vm.kill();
            }
            Err(_) if was_running => self.vm.resume()?,
            Err(_) => {}
        }
        result
    }

    fn write_suspended(&self) -> Result<(), ControlError> {
        let unfinished = self.dir.path(&unfinished_name()?);
        let written = SnapshotDir::create(&unfinished)
            .map_err(ControlError::from)
            .and_then(|dir| Ok(self.vm.save(dir)?))
            .and_then(|()| {
                fs::rename(&unfinished, self.dir.path(member::SUSPENDED))
                    .and_then(|()| vms::sync_dir(&self.dir.path("")))
                    .map_err(ControlError::io("rename the suspended state"))
            });
        if written.is_err() {
            // The first failure is what counts; the rest is swept at the next start.
            let _ = fs::remove_dir_all(&unfinished);
        }
        written
    }

    /// Lets another engine execute the guest.
    ///
    /// # Errors
    /// [`ControlError::Refused`] for an engine that there is not, [`ControlError::Machine`] for one
    /// that this host lacks, [`ControlError::Vm`].
    pub fn hop(&self, engine: &str) -> Result<PauseReport, ControlError> {
        let choice = match engine {
            "auto" => EngineChoice::Auto,
            "kvm" => EngineChoice::Kvm,
            "translator" => EngineChoice::Translator,
            "interpreter" => EngineChoice::Interpreter,
            _ => {
                return Err(ControlError::Refused(format!(
                    "there is no engine {engine:?}; take auto, kvm, translator or interpreter"
                )));
            }
        };
        let _turn = self.turn();
        let engine = choice.select()?.engine;
        let name = engine.name().to_owned();
        let paused = self.vm.hop(engine)?;
        self.write_state(|record| record.engine = Some(name))?;
        Ok(PauseReport { paused_us: micros(paused) })
    }

    /// What the VM has used.
    ///
    /// # Errors
    /// [`ControlError::Vm`], [`ControlError::Io`].
    pub fn usage(&self) -> Result<VmUsage, ControlError> {
        usage::usage(self.started, &self.vm.stats()?)
    }

    /// Whether the guest executes.
    pub fn is_running(&self) -> bool {
        self.state().state == RunState::Running
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.vm.press_power_button();
    }

    /// Ends the VM at once.
    pub fn kill(&self) {
        self.vm.kill();
    }

    pub(crate) fn console_input(&self) -> Arc<dyn ConsoleInput> {
        self.vm.console_input()
    }

    pub(crate) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn base(&self) -> MutexGuard<'_, Option<BaseEntry>> {
        self.base.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, StateRecord> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write_state(
        &self,
        change: impl FnOnce(&mut StateRecord),
    ) -> Result<(), ControlError> {
        let mut state = self.state();
        change(&mut state);
        Ok(self.dir.write_state(&state)?)
    }

    /// Compares the checksums of memory that was mapped, while the VM runs, and ends it when they
    /// do not match. State that was used up is removed first, so that nothing goes back to it.
    fn check_behind(
        self: &Arc<Self>,
        snapshot: SnapshotDir,
        origin: &Origin,
    ) -> Result<(), ControlError> {
        let used_up = match origin {
            Origin::Suspended(_) => {
                let used = self.dir.path(&unfinished_name()?);
                fs::rename(self.dir.path(member::SUSPENDED), &used)
                    .map_err(ControlError::io("rename the suspended state"))?;
                Some(used)
            }
            _ => None,
        };
        // Whoever made a copy has compared what it is a copy of.
        let is_copy = matches!(origin, Origin::Suspended(Some(_)));
        let guest = Arc::downgrade(self);
        let check = move || {
            let result = if is_copy { Ok(()) } else { snapshot.verify() };
            if let Some(used) = used_up {
                // What is left is swept at the next start.
                let _ = fs::remove_dir_all(used);
            }
            if let (Err(error), Some(guest)) = (result, guest.upgrade()) {
                let mut failure = guest.failure.lock().unwrap_or_else(PoisonError::into_inner);
                *failure = Some(error.to_string());
                guest.vm.kill();
            }
        };
        let thread = thread::Builder::new().name("memory check".to_owned()).spawn(check);
        thread.map_err(ControlError::io("start a thread"))?;
        Ok(())
    }
}

/// Restores a VM by mapping its memory.
fn restore(
    dir: &SnapshotDir,
    config: VmConfig,
    identity: Option<[u8; 16]>,
) -> Result<Vm, ControlError> {
    let options = RestoreOptions { map: true, generation: identity };
    Ok(Vm::restore_with(dir, config, options)?)
}

/// Removes state that was not finished or is used up.
fn sweep(dir: &VmDir) {
    let Ok(entries) = fs::read_dir(dir.path("")) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            // It costs room and nothing else: the next start tries again.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn unfinished_name() -> Result<String, ControlError> {
    let name = vms::fresh_name().map_err(ControlError::io("read /dev/urandom"))?;
    Ok(format!("{UNFINISHED}{name}"))
}

pub(crate) fn micros(time: Duration) -> u64 {
    time.as_micros().try_into().unwrap_or(u64::MAX)
}
