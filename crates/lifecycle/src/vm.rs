//! The handle of a VM.

use std::fs::File;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use backend::ConsoleInput;
use engine::{CpuBus, CpuProfile, Engine, Vcpu};
use machine::{DiskSpec, HostSide, Machine, NetSpec};
use memory::DirtyConsumer;

use crate::driver::{DebugListener, Driver, Ending, Event, Parts, Reply, Request, start_vcpus};
use crate::live::{Order, Parked};
use crate::observed::{Observation, Profiler};
use crate::snapshot::{self, LiveMemory, Opened, PageSet, SnapshotDir};
use crate::{
    Outcome, Progress, RestoreOptions, SnapshotOrder, SnapshotTaken, VmConfig, VmError, VmStats,
};

/// Memory is copied so many times at most ahead of a snapshot: what a guest writes in the time of one
/// round is for the next.
const ROUNDS_AHEAD: u32 = 4;
/// So few pages are copied in no time, while the guest stands still.
const FEW_PAGES: usize = 256;

/// A VM. Dropping it ends it. All methods may be called from any thread.
pub struct Vm {
    events: Sender<Event>,
    machine: Arc<Machine>,
    ending: Arc<Ending>,
    driver: Option<JoinHandle<()>>,
    /// Held while a snapshot is taken: there is one write hook.
    snapshots: Mutex<()>,
}

impl Vm {
    /// Makes a VM and lets it run.
    ///
    /// # Errors
    /// As [`Vm::create`].
    pub fn start(config: VmConfig) -> Result<Self, VmError> {
        let vm = Self::create(config)?;
        vm.resume()?;
        Ok(vm)
    }

    /// Makes a VM that stands before its first instruction.
    ///
    /// # Errors
    /// [`VmError::Machine`] when the machine cannot be made or its kernel not be loaded,
    /// [`VmError::Host`].
    pub fn create(mut config: VmConfig) -> Result<Self, VmError> {
        config.spec.disks = config.disks.iter().map(|disk| DiskSpec::of(&**disk)).collect();
        config.spec.nets = config.nets.iter().map(NetSpec::of).collect();
        config.spec.check()?;
        let mut profile = config.spec.cpu.profile()?;
        if let Some(khz) = config.engine.fixed_tsc_khz() {
            profile.set_tsc_khz(khz);
        }
        let builder = Builder::new(config, profile, None)?;
        for (vcpu, state) in builder.0.vcpus.iter().zip(builder.0.machine.boot()?) {
            vcpu.restore(state)?;
        }
        builder.drive()
    }

    /// Makes a VM from a snapshot; it is paused. The specification comes from the snapshot, that
    /// of `config` is not looked at.
    ///
    /// # Errors
    /// [`VmError::Snapshot`] for what is wrong with the snapshot, [`VmError::Machine`] for what
    /// this host lacks.
    pub fn restore(dir: &SnapshotDir, config: VmConfig) -> Result<Self, VmError> {
        Self::restore_with(dir, config, RestoreOptions::default())
    }

    /// As [`Vm::restore`], with a say in how.
    ///
    /// # Errors
    /// As [`Vm::restore`].
    pub fn restore_with(
        dir: &SnapshotDir,
        mut config: VmConfig,
        options: RestoreOptions,
    ) -> Result<Self, VmError> {
        let mut opened = Opened::open(dir)?;
        let age = opened.manifest.age();
        config.spec = opened.manifest.machine.clone();
        config.spec.check()?;
        // A card keeps the address that the guest knows.
        for (port, saved) in config.nets.iter_mut().zip(&config.spec.nets) {
            port.mac = saved.mac;
        }
        let profile = Machine::saved_profile(&mut opened.archive)?;
        let file = options.map.then(|| opened.file_to_map()).transpose()?;
        let Builder(mut parts) = Builder::new(config, profile, file)?;
        let machine = &parts.machine;
        machine.restore_clock(&mut opened.archive)?;
        for (index, vcpu) in parts.vcpus.iter().enumerate() {
            vcpu.restore(opened.archive.take_decoded(&index.to_string())?)?;
        }
        machine.restore_devices(&mut opened.archive)?;
        opened.finish(machine.ram(), options.map)?;
        if let Some(id) = options.generation {
            machine.set_generation_id(id);
        }
        parts.skipped = Some(age);
        Builder(parts).drive()
    }

    /// Stops the guest; does nothing when it is not running.
    ///
    /// # Errors
    /// [`VmError::Ended`].
    pub fn pause(&self) -> Result<(), VmError> {
        self.ask(Request::Pause)
    }

    /// Lets the guest go on; does nothing when it is running.
    ///
    /// # Errors
    /// [`VmError::Ended`].
    pub fn resume(&self) -> Result<(), VmError> {
        self.ask(Request::Resume)
    }

    /// Lets the guest go on but for the vCPUs whose index gives true in `held`, which stay where
    /// they are until the next resume; does nothing when it is running.
    ///
    /// # Errors
    /// [`VmError::Ended`].
    pub fn resume_without(&self, held: Vec<bool>) -> Result<(), VmError> {
        self.ask(|reply| Request::ResumeWithout(held, reply))
    }

    /// Does `act` with vCPU `index` of a paused VM, on that vCPU's thread, and gives what it gives.
    ///
    /// # Errors
    /// [`VmError::Running`], [`VmError::Ended`]; [`VmError::Vcpu`] when there is no such vCPU, or
    /// it is lost.
    pub fn with_vcpu<T: Send + 'static>(
        &self,
        index: u32,
        act: impl FnOnce(&mut dyn Vcpu, &dyn CpuBus) -> T + Send + 'static,
    ) -> Result<T, VmError> {
        let (result, answer) = channel();
        let act = Box::new(move |vcpu: &mut dyn Vcpu, bus: &dyn CpuBus| {
            // Who asked waits for it.
            let _ = result.send(act(vcpu, bus));
        });
        self.ask(|reply| Request::Act(index, act, reply))?;
        let lost = || VmError::Vcpu { vcpu: index, cause: "its thread is gone".to_owned() };
        answer.recv().map_err(|_| lost())
    }

    /// Has `listener` told what happens to the vCPUs for a debugger; none of them is told any more
    /// after `None`. While there is one, a triple fault pauses the VM first.
    ///
    /// # Errors
    /// [`VmError::Ended`].
    pub fn set_debugger(&self, listener: Option<DebugListener>) -> Result<(), VmError> {
        self.ask(|reply| Request::Debugger(listener, reply))
    }

    /// Has the vCPUs watched, for a profile, a trace or both; for the time that this engine
    /// executes the guest.
    ///
    /// # Errors
    /// [`VmError::Ended`]; [`VmError::Host`] when there is no thread for the profile.
    pub fn observe(&self, wanted: &Observation) -> Result<Option<Profiler>, VmError> {
        let rate = wanted.samples_per_second;
        let watches = wanted.watches(self.machine.spec().cpus);
        self.ask(|reply| Request::Observe(watches.clone(), reply))?;
        rate.map(|rate| Profiler::start(watches, rate)).transpose()
    }

    /// Resets the guest, which boots anew.
    ///
    /// # Errors
    /// [`VmError::Ended`]; [`VmError::Machine`] when its kernel cannot be loaded again.
    pub fn reset(&self) -> Result<(), VmError> {
        self.ask(Request::Reset)
    }

    /// Lets a paused guest execute about `instructions` on each vCPU, on a software engine
    /// exactly, and waits until it is paused again. A sleeping guest is waited for.
    ///
    /// # Errors
    /// [`VmError::Running`], [`VmError::Ended`].
    pub fn run_for(&self, instructions: u64) -> Result<Progress, VmError> {
        self.ask(|reply| Request::RunFor(instructions, reply))
    }

    /// Saves the VM; one that is running is paused meanwhile.
    ///
    /// # Errors
    /// [`VmError::Snapshot`], [`VmError::Ended`].
    pub fn save(&self, dir: SnapshotDir) -> Result<(), VmError> {
        self.ask(|reply| Request::Save(dir, reply))
    }

    /// Takes a snapshot; one of a running VM is written while the guest goes on after a short
    /// pause. Takes turns with other calls of itself.
    ///
    /// # Errors
    /// [`VmError::Snapshot`], [`VmError::Ended`]. After an error, the next snapshot is full.
    pub fn snapshot(
        &self,
        dir: &SnapshotDir,
        order: SnapshotOrder,
    ) -> Result<SnapshotTaken, VmError> {
        let _turn = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner);
        let SnapshotOrder { description, parent, base, while_parked } = order;
        let file = snapshot::begin_memory(dir)?;
        let ahead = self.copy_ahead(&file, base.is_some())?;
        let order = Order { file, ahead, base, while_parked };
        let parked = self.ask(|reply| Request::Snapshot(order, reply))?;
        let Parked { mut manifest, archive, live, paused } = parked;
        live.copy_all();
        live.unwatch();
        manifest.id = snapshot::random_id(16)?;
        (manifest.description, manifest.parent) = (description, parent);
        snapshot::finish_live(dir, manifest.clone(), archive, &live)?;
        Ok(SnapshotTaken { manifest, paused })
    }

    /// Writes memory to `file` while the guest goes on, where only afterwards is known what it writes;
    /// until it writes little, or does not write less.
    fn copy_ahead(&self, file: &File, base: bool) -> Result<Option<Arc<LiveMemory>>, VmError> {
        let Some(log) = self.ask(|reply| Request::CopyAhead(base, reply))? else {
            return Ok(None);
        };
        let ram = self.machine.ram();
        let again = file.try_clone();
        let file =
            again.map_err(|cause| VmError::Host { action: "open the memory file again", cause })?;
        let pages = PageSet::full((ram.size() / memory::PAGE_SIZE) as usize);
        let live = Arc::new(LiveMemory::new(Arc::clone(ram), file, pages));
        for _ in 0..ROUNDS_AHEAD {
            live.copy_all();
            log.collect()?;
            let written = ram.dirty_pages(DirtyConsumer::Migration);
            live.again(&written);
            if written.len() <= FEW_PAGES {
                break;
            }
        }
        Ok(Some(live))
    }

    /// Lets another engine execute the guest; returns for how long it stood still. The counters of
    /// the vCPUs begin anew.
    ///
    /// # Errors
    /// [`VmError::OtherTsc`] and [`VmError::Machine`] when the engine cannot execute this guest:
    /// nothing changes then. [`VmError::Ended`].
    pub fn hop(&self, engine: Arc<dyn Engine>) -> Result<Duration, VmError> {
        self.ask(|reply| Request::Hop(engine, reply))
    }

    /// Whether the guest executes.
    ///
    /// # Errors
    /// [`VmError::Ended`].
    pub fn is_running(&self) -> Result<bool, VmError> {
        self.ask(Request::IsRunning)
    }

    /// What the VM did until now, or until its end.
    ///
    /// # Errors
    /// [`VmError::Vcpu`].
    pub fn stats(&self) -> Result<VmStats, VmError> {
        match self.ask(Request::Stats) {
            Err(VmError::Ended(_)) => Ok(self.ending.wait().1),
            stats => stats,
        }
    }

    /// Presses the power button: the guest is asked to power off.
    pub fn press_power_button(&self) {
        self.machine.press_power_button();
    }

    /// Ends the VM at once.
    pub fn kill(&self) {
        // A VM without driver has ended.
        let _ = self.events.send(Event::Request(Request::Kill));
    }

    /// Waits for the end of the VM.
    pub fn wait(&self) -> Outcome {
        self.ending.wait().0
    }

    /// The outcome, if the VM has ended.
    pub fn outcome(&self) -> Option<Outcome> {
        self.ending.get().map(|(outcome, _)| outcome)
    }

    /// Where the user's keys go.
    pub fn console_input(&self) -> Arc<dyn ConsoleInput> {
        self.machine.console_input()
    }

    /// The machine, for tests that look into the guest; it must be paused.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, VmError> {
        let (reply, answer) = channel();
        let sent = self.events.send(Event::Request(request(reply)));
        match sent.ok().and_then(|()| answer.recv().ok()) {
            Some(answer) => answer,
            None => Err(VmError::Ended(self.wait())),
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.kill();
        if let Some(driver) = self.driver.take() {
            // A driver that panicked has said so; there is nobody left to tell.
            let _ = driver.join();
        }
    }
}

/// A machine and its vCPU threads, before there is a driver.
struct Builder(Parts);

impl Builder {
    fn new(config: VmConfig, profile: CpuProfile, memory: Option<File>) -> Result<Self, VmError> {
        let VmConfig { spec, engine, boot, console, disks, nets, policy } = config;
        let steal = true;
        let host = HostSide { boot, disks, nets, memory, steal, ..HostSide::new(console) };
        let mut machine = Machine::new(spec, profile, host)?;
        let vcpus = machine.create_vcpus(&*engine)?;
        let channel = channel();
        let vcpus = start_vcpus(vcpus, &machine, &channel.0)?;
        let machine = Arc::new(machine);
        Ok(Self(Parts { machine, engine, vcpus, policy, channel, skipped: None }))
    }

    /// Starts the driver.
    fn drive(self) -> Result<Vm, VmError> {
        let (events, machine) = (self.0.channel.0.clone(), Arc::clone(&self.0.machine));
        let ending = Arc::new(Ending::default());
        let driver = Driver::new(self.0, Arc::clone(&ending))?;
        let driver = thread::Builder::new()
            .name("vm driver".to_owned())
            .spawn(move || driver.run_to_end())
            .map_err(|cause| VmError::Host { action: "start the driver thread", cause })?;
        Ok(Vm { events, machine, ending, driver: Some(driver), snapshots: Mutex::default() })
    }
}
