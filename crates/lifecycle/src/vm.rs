//! The handle of a VM.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use backend::ConsoleInput;
use engine::CpuProfile;
use machine::{DiskSpec, HostSide, Machine, NetSpec};

use crate::driver::{Driver, Ending, Event, Reply, Request};
use crate::snapshot::{Opened, SnapshotDir};
use crate::vcpu_thread::VcpuThread;
use crate::{Outcome, Progress, VmConfig, VmError, VmStats};

/// A VM. Dropping it ends it. All methods may be called from any thread.
pub struct Vm {
    events: Sender<Event>,
    machine: Arc<Machine>,
    ending: Arc<Ending>,
    driver: Option<JoinHandle<()>>,
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
        let builder = Builder::new(config, profile)?;
        for (vcpu, state) in builder.vcpus.iter().zip(builder.machine.boot()?) {
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
    pub fn restore(dir: &SnapshotDir, mut config: VmConfig) -> Result<Self, VmError> {
        let mut opened = Opened::open(dir)?;
        config.spec = opened.manifest.machine.clone();
        config.spec.check()?;
        let profile = Machine::saved_profile(&mut opened.archive)?;
        let builder = Builder::new(config, profile)?;
        builder.machine.restore_clock(&mut opened.archive)?;
        for (index, vcpu) in builder.vcpus.iter().enumerate() {
            vcpu.restore(opened.archive.take_decoded(&index.to_string())?)?;
        }
        builder.machine.restore_devices(&mut opened.archive)?;
        opened.finish(builder.machine.ram())?;
        builder.drive()
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
struct Builder {
    machine: Arc<Machine>,
    engine: &'static str,
    vcpus: Vec<VcpuThread>,
    policy: crate::Policy,
    channel: (Sender<Event>, std::sync::mpsc::Receiver<Event>),
}

impl Builder {
    fn new(config: VmConfig, profile: CpuProfile) -> Result<Self, VmError> {
        let VmConfig { spec, engine, boot, console, disks, nets, policy } = config;
        let host = HostSide { boot, disks, nets, ..HostSide::new(console) };
        let mut machine = Machine::new(spec, profile, host)?;
        let vcpus = machine.create_vcpus(&*engine)?;
        let bus = machine.bus();
        let channel = channel();
        let mut threads = Vec::with_capacity(vcpus.len());
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let events = channel.0.clone();
            // A driver that is gone does not want to know.
            let done = move |result| drop(events.send(Event::Exit(index, result)));
            threads.push(VcpuThread::start(index as u32, vcpu, Arc::clone(&bus), done)?);
        }
        let machine = Arc::new(machine);
        Ok(Self { machine, engine: engine.name(), vcpus: threads, policy, channel })
    }

    /// Starts the driver.
    fn drive(self) -> Result<Vm, VmError> {
        let Self { machine, engine, vcpus, policy, channel: (events, queue) } = self;
        let ending = Arc::new(Ending::default());
        let driven = Arc::clone(&machine);
        let driver = Driver::new(driven, engine, vcpus, policy, queue, Arc::clone(&ending));
        let driver = thread::Builder::new()
            .name("vm driver".to_owned())
            .spawn(move || driver.run_to_end())
            .map_err(|cause| VmError::Host { action: "start the driver thread", cause })?;
        Ok(Vm { events, machine, ending, driver: Some(driver) })
    }
}
