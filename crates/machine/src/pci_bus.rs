//! The PCI bus of the platform `pc` and what is on it.
//!
//! | function | where | interrupt |
//! | --- | --- | --- |
//! | host bridge 8086:29c0 | 00:00.0, ECAM at 0xb000_0000 | |
//! | entropy device | 00:01.0 | MSI-X, or I/O APIC input 21 |
//! | disks | from 00:02.0 on | MSI-X, or I/O APIC inputs 20 to 23 in turn |
//! | network cards | from 00:1e.0 downwards | the same |
//! | LPC bridge 8086:2918 | 00:1f.0 | |
//!
//! All addresses that are neither RAM nor a device of the platform lead to the bus, so that BARs
//! move without anybody's help.

use std::borrow::Cow;
use std::sync::Arc;

use backend::{Disk, HostEntropy};
use boot::MemoryMap;
use boot::acpi::PciSpec;
use chipset::{AcpiPm, IoApic, Pic};
use device::{Answer, Device, InterruptLine, Mmio, MsiSender, Width};
use lapic::Fabric;
use memory::{Gpa, GuestRam};
use pci::{
    Address, Assignment, Function, HostBridge, LpcBridge, PIRQS, Root, ShadowRam, SharedLine,
    Window, pirq,
};
use virtio::{Block, Dma, Entropy, Net, NetCounters, VirtioDevice, VirtioPci};

use crate::{MachineError, MmioMap, NetPort, PortMap};

/// Slot of the entropy device.
const ENTROPY_SLOT: u8 = 1;
/// Slot of the first disk.
pub(crate) const FIRST_DISK_SLOT: u8 = 2;
/// Slot of the first network card; the others follow downwards, so that their places do not depend
/// on how many disks there are.
const FIRST_NET_SLOT: u8 = 0x1e;
/// Slot of the LPC bridge.
const LPC_SLOT: u8 = 0x1f;
/// Input of the I/O APIC that PIRQA# leads to.
const FIRST_PIRQ_GSI: u8 = 16;
/// Interrupts of the PIC that PIRQ lines can be routed to: those without a device of the ISA bus.
const FREE_PIC_IRQS: [u8; 8] = [3, 5, 6, 7, 10, 11, 14, 15];
/// End of the guest-physical addresses (Intel SDM vol. 3A 4.1.4: at most 52 bits).
const ADDRESS_SPACE: u64 = 1 << 52;
/// The area whose RAM the PAM registers protect.
const ROM_AREA: u64 = 0xc_0000;
const ROM_AREA_LEN: u64 = 0x4_0000;
/// The ELCR of the second PIC: triggers of interrupts 8 to 15.
const ELCR: u16 = 0x4d1;

/// The most disks that there are slots for.
pub(crate) const MAX_DISKS: usize = (FIRST_NET_SLOT + 1 - FIRST_DISK_SLOT) as usize - MAX_NETS;
/// The most network cards.
pub(crate) const MAX_NETS: usize = 4;

/// What the bus is connected to.
pub(crate) struct BusSurroundings<'a> {
    pub(crate) ram: &'a Arc<GuestRam>,
    pub(crate) fabric: &'a Arc<Fabric>,
    pub(crate) pic: &'a Arc<Pic>,
    pub(crate) io_apic: &'a IoApic,
    pub(crate) disks: &'a [Arc<dyn Disk>],
    pub(crate) nets: &'a [NetPort],
}

/// The bus and its functions.
pub(crate) struct PciBus {
    pub(crate) root: Arc<Root>,
    /// Devices that have a thread.
    pub(crate) virtio: Vec<Arc<VirtioPci>>,
    /// What network cards count, in order.
    pub(crate) nets: Vec<Arc<NetCounters>>,
    /// What is saved, in the order in which it is restored: the bus after its functions.
    pub(crate) devices: Vec<(Cow<'static, str>, Arc<dyn Device>)>,
}

impl PciBus {
    /// Builds the bus with a disk for each of `disks` and a network card for each of `nets`, in
    /// order.
    pub(crate) fn new(around: &BusSurroundings<'_>) -> Result<Self, MachineError> {
        let host = Arc::new(HostBridge::with_shadow(Arc::new(RomArea::new(around.ram))));
        let lpc = Arc::new(lpc_bridge(around.pic, around.io_apic));
        let mut bus = Population::new(around, &lpc);
        let entropy = HostEntropy::open()
            .map_err(|cause| MachineError::Host { action: "open /dev/urandom", cause })?;
        bus.add(ENTROPY_SLOT, Box::new(Entropy::new(Arc::new(entropy))))?;
        for (index, disk) in (0..).zip(around.disks) {
            let block = Block::new(Arc::clone(disk), &format!("disk{index}"))
                .with_queues(around.fabric.mailboxes().len());
            bus.add(FIRST_DISK_SLOT + index, Box::new(block))?;
        }
        let mut nets = Vec::new();
        for (index, port) in (0..).zip(around.nets) {
            let card = Net::new(Arc::clone(&port.backend), port.mac);
            nets.push(card.counters());
            bus.add(FIRST_NET_SLOT - index, Box::new(card))?;
        }
        let Population { mut functions, virtio, .. } = bus;
        let devices = virtio.iter().map(|(at, device)| (name(*at), Arc::clone(device) as _));
        let mut all: Vec<(_, Arc<dyn Device>)> =
            vec![("0".into(), Arc::clone(&host) as _), ("0".into(), Arc::clone(&lpc) as _)];
        all.extend(devices);
        functions.push((Address::new(LPC_SLOT, 0), lpc));
        let root = Arc::new(Root::new(host, functions));
        all.push(("0".into(), Arc::clone(&root) as _));
        let virtio = virtio.into_iter().map(|(_, device)| device).collect();
        Ok(Self { root, virtio, nets, devices: all })
    }

    /// Leads all addresses to the bus that nobody else has.
    pub(crate) fn claim(
        &self,
        mmio: &mut MmioMap,
        map: &MemoryMap,
        ram: &Arc<GuestRam>,
    ) -> Result<(), MachineError> {
        let low = (map.low_end(), MemoryMap::PCI_MEMORY + MemoryMap::PCI_MEMORY_LEN);
        let rom_area = Arc::new(RomArea::new(ram));
        mmio.insert("rom-area", ROM_AREA, ROM_AREA_LEN, rom_area)?;
        for (first, end) in [low, (map.high_end(), ADDRESS_SPACE)] {
            let window = Arc::new(Window::new(&self.root, first));
            mmio.insert("pci", first, end - first, window)?;
        }
        Ok(())
    }

    /// Does what firmware does after a reset: places the BARs, and makes the interrupts that PIRQ
    /// lines are routed to level-triggered at the PIC.
    pub(crate) fn configure(&self, ports: &PortMap) {
        let first = MemoryMap::PCI_MEMORY as u32;
        let last = first + (MemoryMap::PCI_MEMORY_LEN - 1) as u32;
        Assignment { first, last }.apply(&self.root);
        let level = LpcBridge::PIC_IRQS.iter().fold(0, |bits, irq| bits | 1 << (irq - 8));
        ports.write(ELCR, Width::Byte, level);
    }
}

/// What the ACPI tables say of the bus.
pub(crate) fn acpi_spec(map: &MemoryMap) -> PciSpec {
    // The slot whose INTA# leads to each of the four lines that slots take turns in.
    let lines = [0, 1, 2, 3].map(|slot| pirq(slot, 0));
    PciSpec {
        ecam: (HostBridge::ECAM, HostBridge::ECAM_LEN),
        memory: (MemoryMap::PCI_MEMORY, MemoryMap::PCI_MEMORY_LEN),
        high_memory: (map.pci_high_memory(), MemoryMap::PCI_HIGH_MEMORY_LEN),
        interrupts: lines.map(|line| u32::from(FIRST_PIRQ_GSI) + line as u32),
        pic_interrupts: lines.map(|line| u32::from(LpcBridge::PIC_IRQS[line % 4 / 2])),
    }
}

/// The area below 1 MiB where ROMs would be. Accesses of vCPUs come here where the PAM registers
/// keep them from RAM, and where they let writes through but not reads.
struct RomArea(Arc<GuestRam>);

impl RomArea {
    fn new(ram: &Arc<GuestRam>) -> Self {
        Self(Arc::clone(ram))
    }
}

impl ShadowRam for RomArea {
    fn set(&self, unreadable: u16, unwritable: u16) -> bool {
        self.0.set_shadow(unreadable, unwritable)
    }
}

/// There are no ROMs: what does not reach RAM reaches nobody.
impl Mmio for RomArea {
    fn mmio_read(&self, _offset: u64, data: &mut [u8]) -> Answer<()> {
        data.fill(0xff);
        Answer::Done(())
    }

    fn mmio_write(&self, offset: u64, data: &[u8]) -> Answer<()> {
        let gpa = Gpa(ROM_AREA + offset);
        if self.0.is_shadow_writable(gpa) {
            // The area is RAM in every machine; one without would lose the write.
            let _ = self.0.write(gpa, data);
        }
        Answer::Done(())
    }
}

/// The instance of the function at `address` in the saved state.
fn name(address: Address) -> Cow<'static, str> {
    address.to_string().into()
}

fn lpc_bridge(pic: &Pic, io_apic: &IoApic) -> LpcBridge {
    let inputs = std::array::from_fn(|index| io_apic.line(FIRST_PIRQ_GSI + index as u8));
    let irqs = FREE_PIC_IRQS.map(|irq| (irq, pic.line(irq)));
    LpcBridge::new(AcpiPm::BASE, inputs, irqs.to_vec())
}

/// Guest RAM for devices.
pub(crate) fn dma(ram: &Arc<GuestRam>, fabric: &Arc<Fabric>) -> Dma {
    let vcpus = Arc::clone(fabric);
    // A vCPU that looks up finds that code has changed.
    let code_written = Arc::new(move || vcpus.mailboxes().iter().for_each(|m| m.kick()));
    Dma::new(Arc::clone(ram), code_written)
}

/// The functions, while they are added.
struct Population {
    dma: Dma,
    messages: Arc<dyn MsiSender>,
    lines: [Arc<SharedLine>; PIRQS],
    functions: Vec<(Address, Arc<dyn Function>)>,
    virtio: Vec<(Address, Arc<VirtioPci>)>,
}

impl Population {
    fn new(around: &BusSurroundings<'_>, lpc: &LpcBridge) -> Self {
        Self {
            dma: dma(around.ram, around.fabric),
            messages: Arc::clone(around.fabric) as _,
            lines: std::array::from_fn(|index| SharedLine::new(lpc.pirq(index))),
            functions: Vec::new(),
            virtio: Vec::new(),
        }
    }

    fn add(&mut self, slot: u8, device: Box<dyn VirtioDevice>) -> Result<(), MachineError> {
        let line: Arc<dyn InterruptLine> = self.lines[pirq(slot, 0)].input();
        let device = VirtioPci::new(device, self.dma.clone(), Arc::clone(&self.messages), line)
            .map_err(|cause| MachineError::Host { action: "start a device's thread", cause })?;
        let (address, device) = (Address::new(slot, 0), Arc::new(device));
        self.functions.push((address, Arc::clone(&device) as _));
        self.virtio.push((address, device));
        Ok(())
    }
}
