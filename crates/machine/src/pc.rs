//! The platform `pc`: its devices and their wiring, in the shape of q35.
//!
//! | part | where | interrupt |
//! | --- | --- | --- |
//! | PIC | ports 0x20, 0xa0, 0x4d0 | INTR to vCPU 0 as ExtINT |
//! | I/O APIC | 0xfec0_0000 | messages to the local APICs |
//! | PIT | ports 0x40, 0x61 | ISA 0 (global interrupt 2) |
//! | RTC | port 0x70 | ISA 8 |
//! | UART COM1 | port 0x3f8 | ISA 4 |
//! | i8042 | ports 0x60, 0x64, 0x92, 0xcf9 | ISA 1 and 12 |
//! | ACPI | port 0x600 | ISA 9, the SCI |
//! | fw_cfg | port 0x510 | |
//! | debug exit (optional) | port 0xf4 | |
//! | KVM clock | MSRs | |
//! | PCI | ports 0xcf8, 0xcfc, memory that is nobody else's | see `pci_bus` |
//!
//! ISA interrupts lead to the PIC and to the I/O APIC.

use std::borrow::Cow;
use std::sync::Arc;

use backend::{ConsoleOutput, Disk};
use boot::MemoryMap;
use boot::acpi::{AcpiSpec, IoApicSpec};
use chipset::{
    AcpiPm, DebugExit, FwCfg, GuestMemoryWriter, GuestTsc, I8042, IoApic, IsaLine, KvmClock,
    MemorySize, Pic, Pit, Rtc, StealTime, Uart,
};
use device::{
    Answer, Device, GuestClock, InterruptLine, MsiSender, Nanos, PortIo, Timers, WallClock, Width,
};
use engine::TscScale;
use lapic::{Fabric, Mailbox};
use memory::{Gpa, GuestRam};
use pci::Root;

use crate::cpu_bus::PcBus;
use crate::listening::ListeningUart;
use crate::pci_bus::{self, BusSurroundings, PciBus};
use crate::stolen::HostStolenTime;
use crate::{MachineError, MachineSpec, MmioMap, NetPort, PortMap, VmClock, fw_cfg};

/// What the devices are connected to.
pub(crate) struct Surroundings<'a> {
    pub(crate) spec: &'a MachineSpec,
    pub(crate) map: &'a MemoryMap,
    pub(crate) ram: &'a Arc<GuestRam>,
    pub(crate) tsc: TscScale,
    pub(crate) clock: &'a Arc<VmClock>,
    pub(crate) wall: Arc<dyn WallClock>,
    pub(crate) timers: &'a dyn Timers,
    pub(crate) fabric: &'a Arc<Fabric>,
    pub(crate) console: Arc<dyn ConsoleOutput>,
    pub(crate) disks: Vec<Arc<dyn Disk>>,
    pub(crate) nets: Vec<NetPort>,
    pub(crate) steal: bool,
}

/// The devices of a PC.
pub(crate) struct Pc {
    pub(crate) bus: Arc<PcBus>,
    pub(crate) console: Arc<ListeningUart>,
    pub(crate) acpi: Arc<AcpiPm>,
    pub(crate) pci: PciBus,
    /// Every device with the name of its instance, in the order in which they are restored:
    /// interrupt controllers first, so that a device that sets its line again changes nothing.
    pub(crate) devices: Vec<(Cow<'static, str>, Arc<dyn Device>)>,
}

impl Pc {
    /// Builds and connects the devices.
    pub(crate) fn new(around: Surroundings<'_>) -> Result<Self, MachineError> {
        let Surroundings { spec, map, ram, tsc, clock, wall, timers, fabric, console, .. } = around;
        let (disks, nets) = (&around.disks, &around.nets);
        let guest_clock = || Arc::clone(clock) as Arc<dyn GuestClock>;
        let messages: Arc<dyn MsiSender> = Arc::clone(fabric) as _;

        let pic = Arc::new(Pic::new(Arc::new(Intr(Arc::clone(&fabric.mailboxes()[0])))));
        let io_apic = Arc::new(IoApic::new(messages));
        let isa = |irq| Arc::new(IsaLine::new(&pic, &io_apic, irq)) as Arc<dyn InterruptLine>;
        let pit = Arc::new(Pit::new(guest_clock(), timers, isa(0)));
        let size = MemorySize { below_4g: map.low_end(), above_4g: map.size() - map.low_end() };
        let rtc = Arc::new(Rtc::new(guest_clock(), Arc::clone(&wall), timers, isa(Rtc::IRQ), size));
        let uart = Arc::new(Uart::new(Uart::COM1, isa(Uart::COM1_IRQ), console));
        let i8042 = Arc::new(I8042::new(isa(I8042::IRQS.0), isa(I8042::IRQS.1)));
        let acpi = Arc::new(AcpiPm::new(guest_clock(), timers, isa(AcpiPm::SCI_IRQ)));
        let kvm_clock = Arc::new(KvmClock::new(
            spec.cpus as usize,
            Arc::new(Memory(Arc::clone(ram))),
            guest_clock(),
            wall,
            Arc::new(Tsc(tsc)),
        ));

        let steal_time = around.steal.then(|| {
            let memory = Arc::new(Memory(Arc::clone(ram)));
            let stolen = Arc::new(HostStolenTime::new(spec.cpus));
            Arc::new(StealTime::new(spec.cpus as usize, memory, stolen))
        });

        let mut ports = PortMap::default();
        claim(&mut ports, "pic", &Pic::PORTS, &pic)?;
        claim(&mut ports, "pit", &Pit::PORTS, &pit)?;
        claim(&mut ports, "rtc", &[Rtc::PORTS], &rtc)?;
        let console = Arc::new(ListeningUart::new(Arc::clone(&uart), Uart::COM1));
        claim(&mut ports, "uart", &[(Uart::COM1, Uart::PORTS)], &console)?;
        let (reset_port, _) = I8042::RESET_REGISTER;
        let own = I8042::PORTS.into_iter().filter(|(first, _)| *first != reset_port);
        claim(&mut ports, "i8042", &own.collect::<Vec<_>>(), &i8042)?;
        let around = BusSurroundings { ram, fabric, pic: &pic, io_apic: &io_apic, disks, nets };
        let pci = PciBus::new(&around)?;
        let config =
            Arc::new(ConfigPorts { reset: Arc::clone(&i8042), root: Arc::clone(&pci.root) });
        claim_wide(&mut ports, "pci-config", &[Root::PORTS], &config)?;
        claim_wide(&mut ports, "acpi-pm", &AcpiPm::PORTS, &acpi)?;
        let fw_cfg = Arc::new(fw_cfg::device(spec, map, pci_bus::dma(ram, fabric))?);
        claim_wide(&mut ports, "fw-cfg", &[FwCfg::PORTS], &fw_cfg)?;
        let mut mmio = MmioMap::default();
        mmio.insert("io-apic", IoApic::BASE, IoApic::SIZE, Arc::clone(&io_apic) as _)?;
        pci.claim(&mut mmio, map, ram)?;

        let board: Vec<(&'static str, Arc<dyn Device>)> = vec![
            ("0", Arc::clone(&pic) as _),
            ("0", Arc::clone(&io_apic) as _),
            ("0", pit),
            ("0", rtc),
            ("com1", uart),
            ("0", i8042),
            ("0", Arc::clone(&acpi) as _),
            ("0", Arc::clone(&kvm_clock) as _),
            ("0", fw_cfg),
        ];
        let board = board.into_iter().map(|(instance, device)| (instance.into(), device));
        let mut devices: Vec<_> = board.chain(pci.devices.iter().cloned()).collect();
        if let Some(steal_time) = &steal_time {
            devices.push(("0".into(), Arc::clone(steal_time) as _));
        }
        if spec.debug_exit {
            let debug_exit = Arc::new(DebugExit);
            let range = (DebugExit::PORT, DebugExit::PORTS);
            claim_wide(&mut ports, "debug-exit", &[range], &debug_exit)?;
            devices.push(("0".into(), debug_exit));
        }
        let fabric = Arc::clone(fabric);
        let clock = Arc::clone(clock);
        let bus =
            Arc::new(PcBus { clock, ports, mmio, fabric, pic, io_apic, kvm_clock, steal_time });
        Ok(Self { bus, console, acpi, pci, devices })
    }

    /// Resets the devices and does what firmware does before it starts a kernel.
    pub(crate) fn reset(&self) {
        for (_, device) in &self.devices {
            device.reset();
        }
        self.console.reset();
        self.pci.configure(&self.bus.ports);
    }
}

/// What the ACPI tables say of these devices.
pub(crate) fn acpi_spec(cpus: u32, map: &MemoryMap) -> AcpiSpec {
    let apic_ids: Vec<u32> = (0..cpus).collect();
    AcpiSpec {
        io_apic: IoApicSpec { id: 0, address: IoApic::BASE as u32, gsi_base: 0 },
        pm_base: AcpiPm::BASE,
        gpe0_len: AcpiPm::GPE0_LENGTH as u8,
        sleep_type_s5: AcpiPm::SLP_TYP_S5,
        sci_irq: AcpiPm::SCI_IRQ,
        reset: I8042::RESET_REGISTER,
        century: Rtc::CENTURY,
        fw_cfg: Some((FwCfg::PORTS.0, FwCfg::PORTS.1 as u8)),
        pci: Some(pci_bus::acpi_spec(map)),
        generation_id: Some(boot::acpi::GENERATION_ID),
        ..AcpiSpec::pc(&apic_ids)
    }
}

/// Puts an 8-bit device at its ports.
fn claim<D: PortIo + 'static>(
    ports: &mut PortMap,
    name: &'static str,
    ranges: &[(u16, u16)],
    device: &Arc<D>,
) -> Result<(), MachineError> {
    ranges.iter().try_for_each(|(first, count)| {
        ports.insert(name, *first, *count, Width::Byte, Arc::clone(device) as _)
    })
}

/// Puts a device that takes accesses of every width at its ports.
fn claim_wide<D: PortIo + 'static>(
    ports: &mut PortMap,
    name: &'static str,
    ranges: &[(u16, u16)],
    device: &Arc<D>,
) -> Result<(), MachineError> {
    ranges.iter().try_for_each(|(first, count)| {
        ports.insert(name, *first, *count, Width::Dword, Arc::clone(device) as _)
    })
}

/// The ports of PCI's configuration mechanism with the reset control register among them: only
/// byte accesses to its port are for it (ICH9 data sheet, 13.7.5), so that a configuration address
/// is never taken for a reset.
struct ConfigPorts {
    reset: Arc<I8042>,
    root: Arc<Root>,
}

impl ConfigPorts {
    fn is_reset(port: u16, width: Width) -> bool {
        (port, width) == (I8042::RESET_REGISTER.0, Width::Byte)
    }
}

impl PortIo for ConfigPorts {
    fn port_read(&self, port: u16, width: Width) -> Answer<u32> {
        match Self::is_reset(port, width) {
            true => self.reset.port_read(port, width),
            false => self.root.port_read(port, width),
        }
    }

    fn port_write(&self, port: u16, width: Width, value: u32) -> Answer<()> {
        match Self::is_reset(port, width) {
            true => self.reset.port_write(port, width, value),
            false => self.root.port_write(port, width, value),
        }
    }
}

/// The PIC's INTR output, at the pin LINT0 of the boot processor's local APIC.
struct Intr(Arc<Mailbox>);

impl InterruptLine for Intr {
    fn set(&self, level: bool) {
        self.0.set_extint(level);
    }
}

/// Guest RAM for the KVM clock and steal time.
struct Memory(Arc<GuestRam>);

impl GuestMemoryWriter for Memory {
    fn write(&self, gpa: u64, data: &[u8]) -> bool {
        self.0.write(Gpa(gpa), data).is_ok()
    }
}

/// The TSC of every vCPU, as long as the guest does not set it: a kernel that does, does so
/// before it uses the clock, or finds the difference when it compares the two.
struct Tsc(TscScale);

impl GuestTsc for Tsc {
    fn khz(&self) -> u32 {
        self.0.khz()
    }

    fn at(&self, _vcpu: usize, time: Nanos) -> u64 {
        self.0.ns_to_ticks(time)
    }
}
