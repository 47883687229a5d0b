//! A machine: guest RAM, devices, clock and timers, without the threads that run it.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use backend::{ConsoleInput, ConsoleOutput, Counter, Disk, NetBackend};
use boot::MemoryMap;
use chipset::{KvmClock, StealTime};
use device::{GuestClock, WallClock};
use engine::{CpuBus, CpuProfile, Engine, Rendezvous, TscScale, Vcpu, VcpuConfig, VcpuState};
use lapic::{Fabric, LocalApic, LocalApicConfig, Mailbox};
use memory::{Gpa, GuestRam};
use serde::Serialize;
use state::{Archive, StateError};
use virtio::{NetCounters, VirtioPci};
use x86::cpuid::Answer;

use crate::cpu_bus;
use crate::pc::{self, Pc, Surroundings};
use crate::save::{self, SavedClock};
use crate::{
    AccessCount, BootFiles, DiskSpec, HostWallClock, MachineError, MachineSpec, NetPort, NetSpec,
    TimerThread, VmClock,
};

/// Kinds of devices that came after the first snapshots: where there is no section, they are as
/// after a reset.
const LATER: [&str; 1] = ["kvm-steal-time"];

/// A machine without its vCPU threads. It is made with its clock and timers stopped.
pub struct Machine {
    spec: MachineSpec,
    profile: Arc<CpuProfile>,
    tsc: TscScale,
    map: MemoryMap,
    ram: Arc<GuestRam>,
    clock: Arc<VmClock>,
    timers: TimerThread,
    fabric: Arc<Fabric>,
    pc: Pc,
    networks: Vec<Arc<dyn NetBackend>>,
    boot: Option<BootFiles>,
    /// Each vCPU's state after power-on.
    power_on: Vec<VcpuState>,
}

/// What a machine is connected to on the host. All files are open.
pub struct HostSide {
    /// Kernel and initramfs. A restored machine needs them only to be reset.
    pub boot: Option<BootFiles>,
    /// Where the guest's console goes.
    pub console: Arc<dyn ConsoleOutput>,
    /// The disks of the specification.
    pub disks: Vec<Arc<dyn Disk>>,
    /// The networks of the specification.
    pub nets: Vec<NetPort>,
    /// The wall clock. With one that is moved by hand, and [`Machine::advance_time`], two machines
    /// see the same time.
    pub wall: Arc<dyn WallClock>,
    /// The first content of guest RAM, to be mapped ([`GuestRam::map`]); without, it is zero.
    pub memory: Option<File>,
    /// The guest is told how long its vCPUs waited for cores of the host (KVM's steal time): no two
    /// runs are the same then.
    pub steal: bool,
}

impl HostSide {
    /// Nothing but a console, and the host's wall clock; steal time is not told.
    pub fn new(console: Arc<dyn ConsoleOutput>) -> Self {
        let (disks, nets) = (Vec::new(), Vec::new());
        let wall = Arc::new(HostWallClock);
        Self { boot: None, console, disks, nets, wall, memory: None, steal: false }
    }
}

/// What devices and buses of a machine did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MachineStats {
    /// Port accesses by device.
    pub ports: Vec<AccessCount>,
    /// Memory-mapped accesses by device.
    pub mmio: Vec<AccessCount>,
    /// Timers of devices that fired.
    pub timers: Vec<TimerCount>,
    /// Requests of virtio devices.
    pub virtio: Vec<RequestCount>,
    /// Network cards and the networks behind them.
    pub nets: Vec<NetStats>,
    /// Interrupt messages that reached no processor.
    pub interrupts_dropped: u64,
}

/// How many requests a device executed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RequestCount {
    /// The device's name.
    pub device: &'static str,
    /// Requests.
    pub requests: u64,
}

/// What a network card and the network behind it counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NetStats {
    /// Address of the card.
    pub mac: String,
    /// The counters by name.
    pub counters: BTreeMap<String, u64>,
}

/// How often a device's timer fired.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TimerCount {
    /// The timer's name.
    pub timer: &'static str,
    /// Times.
    pub fired: u64,
}

impl Machine {
    /// Builds the machine that `spec` describes, whose guest sees the CPU of `profile` (to which
    /// the platform's CPUID leaves are added), and connects it to `host`.
    ///
    /// # Errors
    /// [`MachineError::Boot`] for a memory size that cannot be, [`MachineError::OtherDisks`],
    /// [`MachineError::OtherNets`], [`MachineError::Memory`], [`MachineError::Host`].
    pub fn new(
        spec: MachineSpec,
        mut profile: CpuProfile,
        host: HostSide,
    ) -> Result<Self, MachineError> {
        let HostSide { boot, console, disks, nets, wall, memory, steal } = host;
        check_disks(&spec.disks, &disks)?;
        check_nets(&spec.nets, &nets)?;
        let networks = nets.iter().map(|port| Arc::clone(&port.backend)).collect();
        for (leaf, [mut eax, ebx, ecx, edx]) in KvmClock::cpuid(profile.tsc_khz()) {
            if leaf == cpu_bus::KVM_FEATURES {
                eax |= if spec.cpus > 1 { cpu_bus::KVM_FEATURE_PV_UNHALT } else { 0 };
                eax |= if steal { StealTime::FEATURE } else { 0 };
            }
            profile.set_leaf(leaf, 0, Answer { eax, ebx, ecx, edx });
        }
        profile.set_processors(spec.cpus);
        let tsc = TscScale::new(profile.tsc_khz());
        let map = MemoryMap::new(spec.memory)?;
        let ram = Arc::new(match memory {
            Some(file) => GuestRam::map(&map.ram_layout(), &file)?,
            None => GuestRam::shared(&map.ram_layout())?,
        });
        let clock = Arc::new(VmClock::new(0));
        let timers = TimerThread::new(Arc::clone(&clock))?;
        let fabric = Arc::new(Fabric::new((0..spec.cpus).map(mailbox).collect()));
        let pc = Pc::new(Surroundings {
            spec: &spec,
            map: &map,
            ram: &ram,
            tsc,
            clock: &clock,
            wall,
            timers: &timers,
            fabric: &fabric,
            console,
            disks,
            nets,
            steal,
        })?;
        let profile = Arc::new(profile);
        let power_on = Vec::new();
        Ok(Self {
            spec,
            profile,
            tsc,
            map,
            ram,
            clock,
            timers,
            fabric,
            pc,
            networks,
            boot,
            power_on,
        })
    }

    /// Makes the vCPUs, once.
    ///
    /// # Errors
    /// [`MachineError::Engine`].
    pub fn create_vcpus(
        &mut self,
        engine: &dyn Engine,
    ) -> Result<Vec<Box<dyn Vcpu>>, MachineError> {
        let mut vcpus = self.new_vcpus(engine)?;
        for vcpu in &mut vcpus {
            self.power_on.push(vcpu.save(&*self.pc.bus)?);
        }
        Ok(vcpus)
    }

    /// Makes other vCPUs, of another engine perhaps, that are to take the place of those that there
    /// are: these have been saved and are gone. The new ones are restored before they run.
    ///
    /// # Errors
    /// [`MachineError::Engine`].
    pub fn new_vcpus(&self, engine: &dyn Engine) -> Result<Vec<Box<dyn Vcpu>>, MachineError> {
        let mut vcpus = Vec::with_capacity(self.fabric.mailboxes().len());
        let rendezvous = Arc::new(Rendezvous::new(self.fabric.mailboxes()));
        for (index, mailbox) in (0..).zip(self.fabric.mailboxes()) {
            vcpus.push(engine.create_vcpu(VcpuConfig {
                index,
                apic_id: mailbox.apic_id(),
                profile: Arc::clone(&self.profile),
                ram: Arc::clone(&self.ram),
                mailbox: Arc::clone(mailbox),
                rendezvous: Arc::clone(&rendezvous),
            })?);
        }
        Ok(vcpus)
    }

    /// Resets the devices and loads the kernel: power-on and every guest reset. RAM keeps its
    /// content where nothing is loaded. Returns the states in which the vCPUs are to start. The
    /// vCPUs are parked, the time stands.
    ///
    /// # Errors
    /// [`MachineError::NoKernel`]; [`MachineError::Boot`] when something does not fit or cannot
    /// be read.
    pub fn boot(&self) -> Result<Vec<VcpuState>, MachineError> {
        let files = self.boot.as_ref().ok_or(MachineError::NoKernel)?;
        self.pc.reset();
        // What was on its way to the processors is gone with them.
        self.fabric.mailboxes().iter().for_each(|mailbox| mailbox.drain(|_| ()));
        let rsdp = boot::acpi::build(&pc::acpi_spec(self.spec.cpus, &self.map), &self.ram)?;
        let payload = files.payload(&self.spec.cmdline);
        let entry = boot::load(&self.ram, &files.kernel, &payload, &self.map, rsdp)?;
        let mut states = self.power_on.clone();
        // The counters go on with the guest's time, so that the paravirtual clock, which is a
        // function of it, agrees with them.
        let tsc = self.tsc.ns_to_ticks(self.clock.now());
        states.iter_mut().for_each(|state| state.tsc = tsc);
        if let Some(boot_processor) = states.first_mut() {
            entry.apply(boot_processor);
        }
        Ok(states)
    }

    /// Lets time pass: the clock goes on, timers fire, devices work.
    pub fn start_time(&self) {
        self.clock.resume();
        self.timers.start();
        self.pc.pci.virtio.iter().for_each(|device| device.resume());
    }

    /// Stops devices, timers and clock. Returns when the requests that devices execute are done.
    /// The vCPUs are parked.
    pub fn stop_time(&self) {
        self.pc.pci.virtio.iter().for_each(|device| device.pause());
        self.timers.stop();
        self.clock.pause();
    }

    /// Brings what was written to disks to where it survives a failure of the host; may take long.
    /// The time stands.
    pub fn flush_disks(&self) {
        self.pc.pci.virtio.iter().for_each(|device| device.flush());
    }

    /// Moves the standing clock forward by `delta` nanoseconds and lets the timers that fall due
    /// fire in order, on the calling thread, instead of letting time pass by the host's clock: what
    /// the guest sees depends then on nothing but its own instructions. The vCPUs are parked.
    pub fn advance_time(&self, delta: u64) {
        let end = self.clock.now().saturating_add(delta);
        self.timers.fire_until(end);
        self.clock.set(end);
    }

    /// Moves the standing clock forward by `delta` nanoseconds at once: for the guest, the time in
    /// which it stood still has passed. Its timers that fell due fire when time goes on, each once.
    /// The vCPUs are parked.
    pub fn skip_time(&self, delta: u64) {
        self.clock.set(self.clock.now().saturating_add(delta));
        self.pc.bus.kvm_clock.refresh_after_stop();
    }

    /// Gives the VM another identity, and tells the guest: it is a copy of one that may go on
    /// elsewhere. A stock Linux kernel then reseeds its random numbers. The vCPUs are parked.
    pub fn set_generation_id(&self, id: [u8; 16]) {
        // Behind the ACPI tables there always is RAM.
        if self.ram.write(Gpa(boot::acpi::GENERATION_ID), &id).is_ok() {
            self.pc.acpi.raise_gpe(boot::acpi::GENERATION_EVENT);
        }
    }

    /// The guest time at which the next timer of a device is due, in nanoseconds.
    pub fn next_timer(&self) -> Option<u64> {
        self.timers.next_deadline()
    }

    /// Saves clock, profile and devices; vCPUs and memory are the caller's. The vCPUs are parked,
    /// and saved before, so that what was posted to them is theirs; the time stands.
    ///
    /// # Errors
    /// [`MachineError::State`].
    pub fn save(&self, archive: &mut Archive) -> Result<(), MachineError> {
        save::profile(&self.profile, archive)?;
        SavedClock { now: self.clock.now() }.push(archive)?;
        for (instance, device) in &self.pc.devices {
            archive.push(device.save(instance)?)?;
        }
        Ok(())
    }

    /// The profile of a saved machine, to make one with.
    ///
    /// # Errors
    /// [`MachineError::SavedFeature`] for what this host lacks, [`MachineError::State`].
    pub fn saved_profile(archive: &mut Archive) -> Result<CpuProfile, MachineError> {
        save::take_profile(archive)
    }

    /// Sets the clock to that of a saved machine, before anything else is restored.
    ///
    /// # Errors
    /// [`MachineError::State`].
    pub fn restore_clock(&self, archive: &mut Archive) -> Result<(), MachineError> {
        self.clock.set(SavedClock::take(archive)?.now);
        Ok(())
    }

    /// Restores the devices, after the vCPUs: interrupts that they send go to the restored ones.
    ///
    /// # Errors
    /// [`MachineError::State`] naming the section.
    pub fn restore_devices(&self, archive: &mut Archive) -> Result<(), MachineError> {
        for (instance, device) in &self.pc.devices {
            match archive.take(device.kind(), instance) {
                Ok(section) => device.restore(&section)?,
                Err(StateError::Missing { .. }) if LATER.contains(&device.kind()) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// What the vCPUs reach outside themselves.
    pub fn bus(&self) -> Arc<dyn CpuBus> {
        Arc::clone(&self.pc.bus) as _
    }

    /// Guest RAM.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// What the machine was made from.
    pub fn spec(&self) -> &MachineSpec {
        &self.spec
    }

    /// The guest's CPU.
    pub fn profile(&self) -> &CpuProfile {
        &self.profile
    }

    /// Guest real time in nanoseconds.
    pub fn guest_time(&self) -> u64 {
        self.clock.now()
    }

    /// Where the console's input goes.
    pub fn console_input(&self) -> Arc<dyn ConsoleInput> {
        Arc::clone(&self.pc.console) as _
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.pc.acpi.press_power_button();
    }

    fn net_stats(&self) -> Vec<NetStats> {
        let cards = self.spec.nets.iter().zip(&self.pc.pci.nets).zip(&self.networks);
        let one =
            |((spec, card), network): ((&NetSpec, &Arc<NetCounters>), &Arc<dyn NetBackend>)| {
                let all = card.list().into_iter().chain(network.counters());
                let counters = all.map(|Counter { name, count }| (name, count)).collect();
                NetStats { mac: spec.mac.to_string(), counters }
            };
        cards.map(one).collect()
    }

    /// What devices and buses did.
    pub fn stats(&self) -> MachineStats {
        let fired = self.timers.fired().into_iter();
        MachineStats {
            ports: self.pc.bus.ports.counts(),
            mmio: self.pc.bus.mmio.counts(),
            virtio: self.pc.pci.virtio.iter().map(|d| request_count(d)).collect(),
            nets: self.net_stats(),
            timers: fired.map(|(timer, fired)| TimerCount { timer, fired }).collect(),
            interrupts_dropped: self.fabric.dropped(),
        }
    }
}

fn request_count(device: &VirtioPci) -> RequestCount {
    RequestCount { device: device.name(), requests: device.requests() }
}

/// Whether the disks are those of the specification.
fn check_disks(wanted: &[DiskSpec], given: &[Arc<dyn Disk>]) -> Result<(), MachineError> {
    let given: Vec<_> = given.iter().map(|disk| DiskSpec::of(&**disk)).collect();
    if wanted == given {
        return Ok(());
    }
    Err(MachineError::OtherDisks { wanted: describe(wanted), given: describe(&given) })
}

/// Whether the networks are those of the specification.
fn check_nets(wanted: &[NetSpec], given: &[NetPort]) -> Result<(), MachineError> {
    let given: Vec<_> = given.iter().map(NetSpec::of).collect();
    if wanted == given {
        return Ok(());
    }
    let describe = |nets: &[NetSpec]| match nets {
        [] => "no network cards".to_owned(),
        _ => {
            let one = |net: &NetSpec| match net.mtu {
                Some(mtu) => format!("{} with MTU {mtu}", net.mac),
                None => net.mac.to_string(),
            };
            format!("network cards {}", nets.iter().map(one).collect::<Vec<_>>().join(", "))
        }
    };
    Err(MachineError::OtherNets { wanted: describe(wanted), given: describe(&given) })
}

fn describe(disks: &[DiskSpec]) -> String {
    let one = |disk: &DiskSpec| {
        format!("{} bytes{}", disk.size, if disk.read_only { " read-only" } else { "" })
    };
    match disks {
        [] => "no disks".to_owned(),
        _ => format!("disks of {}", disks.iter().map(one).collect::<Vec<_>>().join(", ")),
    }
}

/// The mailbox of vCPU `index`, whose local APIC is as after power-on.
fn mailbox(index: u32) -> Arc<Mailbox> {
    let config = LocalApicConfig { apic_id: index, bsp: index == 0, ..LocalApicConfig::default() };
    Arc::new(Mailbox::new(LocalApic::new(config).destination()))
}
