//! One of the two machines: a vCPU, its machine, and time that passes only by hand.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use device::WallClock;
use engine::{CpuBus, CpuProfile, Engine, Kick, RunState, StopReason, Vcpu, VcpuExit, VcpuState};
use machine::{HostSide, Machine, MachineSpec, host};
use memory::{Gpa, GuestRam};
use state::Archive;
use x86::cpuid::feature;

use super::report::next_instruction;
use crate::vm::Transcript;

/// TSC frequency of the machines: one tick is a nanosecond.
const TSC_KHZ: u32 = 1_000_000;
/// Wall-clock time at guest time zero, in seconds: 2026-01-01T00:00:00Z.
const EPOCH: u64 = 1_767_225_600;
/// A vCPU that is halted with an interrupt waiting is let run again so often: it may have been
/// kicked just before it looked. One that keeps its interrupts off stays halted.
const WAKE_TRIES: u32 = 20;
/// Bytes that are compared and copied at a time.
const CHUNK: u64 = 1 << 20;

/// Why a vCPU stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It has executed what it was given.
    Spent,
    /// It sleeps in HLT, with some of what it was given left.
    Halted,
    /// Its machine ends.
    End(VcpuExit),
}

pub(super) struct Side {
    pub(super) name: &'static str,
    pub(super) machine: Machine,
    pub(super) vcpu: Box<dyn Vcpu>,
    bus: Arc<dyn CpuBus>,
    kick: Arc<dyn Kick>,
    pub(super) console: Arc<Transcript>,
    wall: Arc<Wall>,
    /// The state when it was last looked at.
    pub(super) state: VcpuState,
}

/// The whole of a side, to begin others with.
pub(super) struct Snapshot {
    vcpu: VcpuState,
    /// Sections are taken out of an archive when they are restored: one for each use.
    machine: Box<dyn Fn() -> Archive>,
    /// Chunks of RAM that are not all zero, by address.
    memory: Vec<(u64, Vec<u8>)>,
}

impl Side {
    /// A machine at power-on, with the kernel loaded.
    pub(super) fn new(
        engine: &dyn Engine,
        spec: &MachineSpec,
        boot: crate::lockstep::Boot<'_>,
    ) -> Self {
        let console = Arc::new(Transcript::default());
        let wall = Arc::new(Wall::default());
        let host = HostSide {
            boot: Some(boot()),
            wall: Arc::clone(&wall) as _,
            ..HostSide::new(Arc::clone(&console) as _)
        };
        let mut machine = Machine::new(spec.clone(), profile(), host).expect("a machine");
        let mut vcpu = machine.create_vcpus(engine).expect("a vCPU").remove(0);
        let bus = machine.bus();
        let entry = machine.boot().expect("the kernel fits").remove(0);
        vcpu.restore(&entry, &*bus).expect("a state that a vCPU can hold");
        let state = vcpu.save(&*bus).expect("a software engine saves");
        let kick = vcpu.kicker();
        Self { name: engine.name(), machine, vcpu, bus, kick, console, wall, state }
    }

    /// Everything, with the vCPU parked.
    pub(super) fn snapshot(&mut self) -> Snapshot {
        let vcpu = self.vcpu.save(&*self.bus).expect("a software engine saves");
        let mut archive = Archive::new();
        self.machine.save(&mut archive).expect("devices save");
        let mut bytes = Vec::new();
        archive.write_to(&mut bytes).expect("a vector grows");
        let memory = chunks(self.machine.ram())
            .map(|at| (at, read(self.machine.ram(), at)))
            .filter(|(_, chunk)| chunk.iter().any(|byte| *byte != 0))
            .collect();
        let machine = move || Archive::read_from(&mut &bytes[..]).expect("it was just written");
        Snapshot { vcpu, machine: Box::new(machine), memory }
    }

    /// Becomes what was saved. The side is new.
    pub(super) fn restore(&mut self, snapshot: &Snapshot) {
        let mut archive = (snapshot.machine)();
        let ram = self.machine.ram();
        for at in chunks(ram) {
            let saved = snapshot.memory.iter().find(|(address, _)| *address == at);
            match saved {
                Some((_, chunk)) => ram.write(Gpa(at), chunk).expect("the layouts are equal"),
                None if read(ram, at).iter().all(|byte| *byte == 0) => {}
                None => ram.write(Gpa(at), &vec![0; CHUNK as usize]).expect("a chunk of RAM"),
            }
        }
        self.machine.restore_clock(&mut archive).expect("a clock was saved");
        self.wall.set(self.machine.guest_time());
        self.vcpu.restore(&snapshot.vcpu, &*self.bus).expect("an engine-neutral state");
        self.machine.restore_devices(&mut archive).expect("devices were saved");
        self.look();
    }

    /// Reads the state; a timer of the local APIC that is due is then in its request register.
    pub(super) fn look(&mut self) -> &VcpuState {
        self.state = self.vcpu.save(&*self.bus).expect("a software engine saves");
        &self.state
    }

    /// Runs until the budget that was set is spent, or there is another reason to stop.
    pub(super) fn go(&mut self, pulse: &Pulse) -> Stop {
        let mut tries = 0;
        loop {
            match self.run_once(pulse) {
                VcpuExit::BudgetSpent => return Stop::Spent,
                VcpuExit::Paused if !self.sleeps(&mut tries) => {}
                VcpuExit::Paused => return Stop::Halted,
                // Nothing changes places in these machines.
                VcpuExit::Stop(StopReason::Reconfigure) => {}
                exit => return Stop::End(exit),
            }
        }
    }

    /// Runs without counting until it is kicked, which is a [`Stop::Spent`], or there is another
    /// reason to stop.
    pub(super) fn go_freely(&mut self, pulse: &Pulse) -> Stop {
        let mut tries = 0;
        self.vcpu.set_budget(None);
        loop {
            match self.run_once(pulse) {
                VcpuExit::Paused if self.sleeps(&mut tries) => return Stop::Halted,
                // Where a repeated instruction is interrupted is each engine's own business.
                VcpuExit::Paused if self.is_running() && !self.at_repetition() => {
                    return Stop::Spent;
                }
                VcpuExit::Paused | VcpuExit::Stop(StopReason::Reconfigure) => {}
                exit => return Stop::End(exit),
            }
        }
    }

    fn is_running(&self) -> bool {
        self.state.run_state == RunState::Running
    }

    /// Whether the next instruction is a string instruction with a repeat prefix.
    pub(super) fn at_repetition(&self) -> bool {
        next_instruction(self.machine.ram(), &self.state).is_repeated_string()
    }

    fn run_once(&mut self, pulse: &Pulse) -> VcpuExit {
        pulse.arm(&self.kick);
        let exit = self.vcpu.run(&*self.bus);
        pulse.disarm();
        exit.unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// Whether a vCPU that was kicked really sleeps. `tries` counts the calls in a row where it
    /// seems so.
    fn sleeps(&mut self, tries: &mut u32) -> bool {
        let state = self.look();
        if state.run_state != RunState::Halted {
            *tries = 0;
            return false;
        }
        *tries += 1;
        let waits = state.apic.irr != [0; 8] || state.events.nmi || state.events.extint;
        *tries > if waits { WAKE_TRIES } else { 1 }
    }

    /// Nanoseconds until something can wake the vCPU: a timer of a device or of its local APIC.
    pub(super) fn next_event(&self) -> Option<u64> {
        let now = self.machine.guest_time();
        let device = self.machine.next_timer().map(|at| at.saturating_sub(now));
        let apic = &self.state.apic;
        let deadline = (apic.tsc_deadline != 0)
            .then(|| apic.tsc_deadline.saturating_sub(self.state.tsc))
            .or(apic.timer_countdown.as_ref().map(|left| left.tsc_ticks + 1));
        [device, deadline].into_iter().flatten().min()
    }

    /// Lets `ns` nanoseconds pass.
    pub(super) fn advance(&mut self, ns: u64) {
        self.machine.advance_time(ns);
        self.wall.set(self.machine.guest_time());
    }

    /// Writes the byte at `gpa` with itself: decoded code of its page is stale.
    pub(super) fn touch(&self, gpa: u64) {
        let mut byte = [0];
        let ram = self.machine.ram();
        // An address that is no RAM has no code to make stale.
        if ram.read(Gpa(gpa), &mut byte).is_ok() {
            ram.write(Gpa(gpa), &byte).expect("it could be read");
        }
    }
}

/// The host's CPU without its random numbers: both sides must see the same.
fn profile() -> CpuProfile {
    let mut profile =
        CpuProfile::portable(host::vendor(), TSC_KHZ, &host::has).expect("a host of level v2");
    for random in [feature::RDRAND, feature::RDSEED] {
        let mut answer = profile.cpuid(random.leaf, random.subleaf);
        *answer.register_mut(random.register) &= !(1 << random.bit);
        profile.set_leaf(random.leaf, random.subleaf, answer);
    }
    profile
}

/// The guest-physical address of each chunk of RAM.
pub(super) fn chunks(ram: &GuestRam) -> impl Iterator<Item = u64> {
    let regions: Vec<(u64, u64)> = ram.regions().iter().map(|r| (r.gpa, r.len)).collect();
    regions.into_iter().flat_map(|(start, len)| (start..start + len).step_by(CHUNK as usize))
}

/// A chunk of RAM, or what there is of it.
pub(super) fn read(ram: &GuestRam, at: u64) -> Vec<u8> {
    let regions = ram.regions().iter();
    let end = regions.map(|r| r.gpa + r.len).find(|end| *end > at).unwrap_or(at);
    let mut bytes = vec![0; CHUNK.min(end - at) as usize];
    ram.read(Gpa(at), &mut bytes).expect("an address of RAM");
    bytes
}

/// The time of day, which follows guest time.
#[derive(Default)]
struct Wall(AtomicU64);

impl Wall {
    fn set(&self, guest_time: u64) {
        self.0.store(guest_time, Ordering::Relaxed);
    }
}

impl WallClock for Wall {
    fn since_epoch(&self) -> Duration {
        Duration::from_secs(EPOCH) + Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// A thread that kicks a vCPU which does not come back.
pub(super) struct Pulse {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    armed: Mutex<Armed>,
    changed: Condvar,
}

#[derive(Default)]
struct Armed {
    kick: Option<Arc<dyn Kick>>,
    /// How often it was armed.
    times: u64,
    ended: bool,
}

impl Pulse {
    /// Kicks what has run for at least `period`.
    pub(super) fn new(period: Duration) -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || theirs.beat(period));
        Self { shared, thread: Some(thread) }
    }

    fn arm(&self, kick: &Arc<dyn Kick>) {
        let mut armed = self.shared.lock();
        armed.kick = Some(Arc::clone(kick));
        armed.times += 1;
    }

    fn disarm(&self) {
        self.shared.lock().kick = None;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Armed> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn beat(&self, period: Duration) {
        let mut armed = self.lock();
        let mut last = 0;
        while !armed.ended {
            let slept = self.changed.wait_timeout(armed, period);
            armed = slept.unwrap_or_else(PoisonError::into_inner).0;
            // One that was armed since the last beat has not run for long.
            if armed.times == last
                && let Some(kick) = &armed.kick
            {
                kick.kick();
            }
            last = armed.times;
        }
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported.
            let _ = thread.join();
        }
    }
}
