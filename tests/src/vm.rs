//! A VM with its console under a test's control.
//!
//! [`Guest`] is a `lifecycle::Vm` whose console is kept as text. Everything that waits has a
//! deadline and fails with the console's last lines, so that a test of a guest that hangs ends.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use engine::Engine;
use kvm::{Kvm, Speed};
use lifecycle::{
    BootFiles, ConsoleOutput, Disk, EngineChoice, MacAddress, MachineSpec, NetBackend, NetPort,
    Outcome, Policy, SnapshotDir, Vm, VmConfig, VmError,
};

use crate::stock::skipped;

/// Bytes of console that are kept.
const CONSOLE_LIMIT: usize = 8 << 20;
/// How often an outcome is looked for.
const POLL: Duration = Duration::from_millis(2);
/// Lines of console that a failure shows.
const SHOWN_LINES: usize = 40;

/// What a guest printed.
#[derive(Default)]
pub struct Transcript {
    text: Mutex<Text>,
    grown: Condvar,
}

#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    /// When each line feed came, in order.
    lines: Vec<Instant>,
}

impl ConsoleOutput for Transcript {
    fn write(&self, bytes: &[u8]) {
        let mut text = self.lock();
        let now = Instant::now();
        let room = CONSOLE_LIMIT.saturating_sub(text.bytes.len());
        let taken = &bytes[..bytes.len().min(room)];
        text.bytes.extend_from_slice(taken);
        text.lines.extend(taken.iter().filter(|byte| **byte == b'\n').map(|_| now));
        self.grown.notify_all();
    }
}

impl Transcript {
    /// Everything so far.
    pub fn text(&self) -> String {
        self.lock().text()
    }

    /// When the first line that contains `needle` after the first `from` bytes was complete.
    pub fn time_of(&self, needle: &str, from: usize) -> Option<Instant> {
        let text = self.lock();
        let found =
            text.bytes.get(from..)?.windows(needle.len()).position(|at| at == needle.as_bytes());
        let before = text.bytes[..from + found?].iter().filter(|byte| **byte == b'\n').count();
        text.lines.get(before).copied()
    }

    /// Waits until `needle` was printed after the first `from` bytes.
    fn wait_for(&self, needle: &str, from: usize, deadline: Instant) -> bool {
        let mut text = self.lock();
        loop {
            let new = text.bytes.get(from..).unwrap_or_default();
            if new.windows(needle.len()).any(|window| window == needle.as_bytes()) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            // Awake now and then to see that the guest has ended.
            let wait = left.min(Duration::from_millis(200));
            text = self.grown.wait_timeout(text, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Text> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Text {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// What a guest is started with.
pub struct Setup {
    /// The machine.
    pub spec: MachineSpec,
    /// What executes it.
    pub engine: Arc<dyn Engine>,
    /// What it boots.
    pub boot: BootFiles,
    /// How resets and triple faults are answered.
    pub policy: Policy,
    /// Its disks.
    pub disks: Vec<Arc<dyn Disk>>,
    /// Its networks.
    pub nets: Vec<NetPort>,
}

impl Setup {
    /// A machine with `memory` MiB that boots `boot`.
    pub fn new(engine: Arc<dyn Engine>, memory: u64, boot: BootFiles) -> Self {
        let (spec, policy) = (MachineSpec::new(memory << 20), Policy::default());
        let (disks, nets) = (Vec::new(), Vec::new());
        Self { spec, engine, boot, policy, disks, nets }
    }

    /// With this command line.
    #[must_use]
    pub fn cmdline(mut self, cmdline: &str) -> Self {
        cmdline.clone_into(&mut self.spec.cmdline);
        self
    }

    /// With the debug-exit device.
    #[must_use]
    pub fn debug_exit(mut self) -> Self {
        self.spec.debug_exit = true;
        self
    }

    /// With so many vCPUs.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.spec.cpus = cpus;
        self
    }

    /// With this policy.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// With one disk more.
    #[must_use]
    pub fn disk(mut self, disk: Arc<dyn Disk>) -> Self {
        self.disks.push(disk);
        self
    }

    /// With one network card more.
    #[must_use]
    pub fn net(mut self, mac: MacAddress, backend: Arc<dyn NetBackend>) -> Self {
        self.nets.push(NetPort { mac, backend });
        self
    }

    /// The VM, before its first instruction.
    pub fn create(self) -> Guest {
        let console = Arc::new(Transcript::default());
        let config = VmConfig {
            spec: self.spec,
            engine: self.engine,
            boot: Some(self.boot),
            console: Arc::clone(&console) as _,
            disks: self.disks,
            nets: self.nets,
            policy: self.policy,
        };
        let vm = Vm::create(config).unwrap_or_else(|error| panic!("no VM: {error}"));
        Guest { vm, console }
    }

    /// The VM, running.
    pub fn start(self) -> Guest {
        let guest = self.create();
        guest.vm.resume().expect("a new VM can run");
        guest
    }
}

/// A VM and what it printed.
pub struct Guest {
    /// The VM.
    pub vm: Vm,
    /// Its console.
    pub console: Arc<Transcript>,
}

impl Guest {
    /// The VM of a snapshot, paused, which goes on printing to `console`.
    ///
    /// # Errors
    /// As [`Vm::restore`].
    pub fn restore(
        dir: &SnapshotDir,
        engine: Arc<dyn Engine>,
        console: Arc<Transcript>,
    ) -> Result<Self, VmError> {
        Self::restore_with_disks(dir, engine, console, Vec::new())
    }

    /// The same for a VM that had disks.
    ///
    /// # Errors
    /// As [`Vm::restore`].
    pub fn restore_with_disks(
        dir: &SnapshotDir,
        engine: Arc<dyn Engine>,
        console: Arc<Transcript>,
        disks: Vec<Arc<dyn Disk>>,
    ) -> Result<Self, VmError> {
        let config = VmConfig {
            // That of the snapshot is taken.
            spec: MachineSpec::new(0),
            engine,
            boot: None,
            console: Arc::clone(&console) as _,
            disks,
            nets: Vec::new(),
            policy: Policy::default(),
        };
        Ok(Self { vm: Vm::restore(dir, config)?, console })
    }

    /// Everything that the guest printed so far.
    pub fn text(&self) -> String {
        self.console.text()
    }

    /// Waits until the guest has printed `needle`; returns when.
    ///
    /// # Panics
    /// When it ends or `limit` passes before.
    #[track_caller]
    pub fn expect(&self, needle: &str, limit: Duration) -> Instant {
        self.expect_after(needle, 0, limit)
    }

    /// The same for what is printed after the first `from` bytes.
    ///
    /// # Panics
    /// When the guest ends or `limit` passes before.
    #[track_caller]
    pub fn expect_after(&self, needle: &str, from: usize, limit: Duration) -> Instant {
        let deadline = Instant::now() + limit;
        loop {
            // Looked at before the text: what was printed before the end counts.
            let ended = self.vm.outcome();
            let slice = deadline.min(Instant::now() + Duration::from_millis(200));
            if self.console.wait_for(needle, from, slice) {
                return Instant::now();
            }
            if let Some(outcome) = ended {
                panic!("{outcome} before {needle:?} came:\n{}", self.last_lines());
            }
            assert!(
                Instant::now() < deadline,
                "no {needle:?} within {limit:?}:\n{}",
                self.last_lines()
            );
        }
    }

    /// Types `text` at the console.
    ///
    /// # Panics
    /// When the guest does not take it within 30 s.
    #[track_caller]
    pub fn type_in(&self, text: &str) {
        let input = self.vm.console_input();
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            rest = &rest[input.push(rest)..];
            assert!(Instant::now() < deadline, "the guest does not read:\n{}", self.last_lines());
            thread::sleep(POLL);
        }
    }

    /// Waits for the end of the VM.
    ///
    /// # Panics
    /// When `limit` passes before.
    #[track_caller]
    pub fn end(&self, limit: Duration) -> Outcome {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(outcome) = self.vm.outcome() {
                return outcome;
            }
            assert!(Instant::now() < deadline, "no end within {limit:?}:\n{}", self.last_lines());
            thread::sleep(POLL);
        }
    }

    /// Pauses and resumes the running guest; the time within which a quarter of the pauses came:
    /// others on the host make some pauses long, what the vCPUs themselves take makes all of them
    /// long.
    ///
    /// # Panics
    /// When the guest ends meanwhile.
    #[track_caller]
    pub fn usual_pause(&self) -> Duration {
        let mut times: Vec<Duration> = (0..41)
            .map(|_| {
                thread::sleep(POLL);
                let asked = Instant::now();
                self.vm.pause().expect("it runs");
                let took = asked.elapsed();
                self.vm.resume().expect("it is paused");
                took
            })
            .collect();
        times.sort_unstable();
        times[times.len() / 4]
    }

    /// The end of the console, for messages.
    pub fn last_lines(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
    }
}

/// The kvm engine, and what KVM does with guest kernels here; `None` where the host has no KVM, after
/// saying why.
pub fn kvm() -> Option<(Kvm, Speed)> {
    match Kvm::open().and_then(|kvm| Ok((kvm.speed()?, kvm))) {
        Ok((speed, kvm)) => Some((kvm, speed)),
        Err(error) => {
            skipped(&error.to_string());
            None
        }
    }
}

/// The engine of the whole-VM tests: the one that `TEST_ENGINE` names, or the interpreter.
///
/// # Panics
/// When there is no such engine here.
pub fn engine() -> Arc<dyn Engine> {
    let choice = match std::env::var("TEST_ENGINE").as_deref() {
        Err(_) | Ok("interpreter") => EngineChoice::Interpreter,
        Ok("translator") => EngineChoice::Translator,
        Ok("kvm") => EngineChoice::Kvm,
        Ok("auto") => EngineChoice::Auto,
        Ok(other) => panic!("TEST_ENGINE={other} is no engine"),
    };
    choice.select().unwrap_or_else(|error| panic!("{error}")).engine
}
