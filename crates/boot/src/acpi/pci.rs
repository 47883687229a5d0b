//! The PCI bus in the ACPI tables: MCFG (PCI Firmware 3.3, 4.1.2), and the host bridge with its
//! windows, its interrupt routing (ACPI 6.4, 6.2.13) and who controls what (PCI Firmware 3.3, 4.5).

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal,
    IO, If, Local, Memory32Fixed, Method, Name, NotEqual, Or, Package, PackageBuilder, Path,
    ResourceTemplate, Return, Store, Uuid,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::{Aml, AmlSink};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes};

/// Bytes of ECAM for one bus.
const BUS: u64 = 1 << 20;
/// The most buses.
const BUSES: u64 = 256;
/// Configuration ports, which the bus does not pass on, as (first, count).
const CONFIG_PORTS: (u16, u8) = (0xcf8, 8);
const SLOTS: u32 = 32;
const PINS: u32 = 4;
/// What the kernel told by `_PIC`: 0 for the PIC, 1 for the I/O APIC.
const INTERRUPT_MODEL: &str = "PICF";

/// The PCI bus, as the tables describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciSpec {
    /// First address and bytes of ECAM: 1 MiB for each bus, below 4 GiB.
    pub ecam: (u64, u64),
    /// Memory below 4 GiB that functions may have: first address and bytes.
    pub memory: (u64, u64),
    /// Memory above 4 GiB that functions may have: first address and bytes.
    pub high_memory: (u64, u64),
    /// Global system interrupts of pin `p` (0 for INTA#) of slot `s`, by `(s + p) % 4`.
    pub interrupts: [u32; 4],
    /// The same as interrupts of the PIC.
    pub pic_interrupts: [u32; 4],
}

impl PciSpec {
    /// What the tables cannot express.
    pub(super) fn fault(&self) -> Option<&'static str> {
        let end = |(first, len): (u64, u64)| first.checked_add(len).filter(|_| len != 0);
        let low = |range| end(range).is_some_and(|end| end <= 1 << 32);
        let (_, ecam_len) = self.ecam;
        let faults = [
            (!low(self.ecam), "ECAM is empty or not below 4 GiB; place it there"),
            (!ecam_len.is_multiple_of(BUS) || ecam_len > BUSES * BUS, "ECAM has 1 to 256 MiB"),
            (!low(self.memory), "the PCI window is empty or not below 4 GiB; place it there"),
            (end(self.high_memory).is_none(), "the high PCI window is empty or has no end"),
        ];
        faults.into_iter().find_map(|(is_fault, cause)| is_fault.then_some(cause))
    }

    fn last_bus(&self) -> u8 {
        (self.ecam.1 / BUS - 1) as u8
    }
}

/// The table that says where ECAM is.
pub(super) fn mcfg(pci: &PciSpec) -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(pci.ecam.0, 0, 0, pci.last_bus());
    mcfg
}

/// The addresses of ECAM, which belong to the board.
pub(super) fn ecam(pci: &PciSpec) -> Memory32Fixed {
    Memory32Fixed::new(true, pci.ecam.0 as u32, pci.ecam.1 as u32)
}

/// `\PICF` and `\_PIC`, by which the kernel tells which interrupt controller it uses (ACPI 6.4,
/// 5.8.1).
pub(super) fn interrupt_model() -> Vec<u8> {
    let model = Path::new(INTERRUPT_MODEL);
    let store = Store::new(&model, &Arg(0));
    let mut aml = bytes(&Name::new(INTERRUPT_MODEL.into(), &0_u8));
    aml.extend(bytes(&Method::new("_PIC".into(), 1, false, vec![&store])));
    aml
}

/// The host bridge.
pub(super) fn host_bridge(pci: &PciSpec) -> Vec<u8> {
    let model = Path::new(INTERRUPT_MODEL);
    let (io_apic, pic) = (routes(pci.interrupts), routes(pci.pic_interrupts));
    let (return_io_apic, return_pic) = (Return::new(&io_apic), Return::new(&pic));
    let choice = If::new(&model, vec![&return_io_apic]);
    let routing = Method::new("_PRT".into(), 0, false, vec![&choice, &return_pic]);
    let mut fields = bytes(&Name::new("_HID".into(), &EISAName::new("PNP0A08")));
    fields.extend(bytes(&Name::new("_CID".into(), &EISAName::new("PNP0A03"))));
    for name in ["_UID", "_SEG", "_BBN"] {
        fields.extend(bytes(&Name::new(name.into(), &0_u8)));
    }
    fields.extend(windows(pci));
    fields.extend(bytes(&routing));
    fields.extend(capabilities());
    bytes(&Device::new("PCI0".into(), vec![&Raw(fields)]))
}

/// `_OSC`: the kernel may control all native features of PCI Express that it knows, since no
/// firmware does (ACPI 6.4, 6.2.11; PCI Firmware 3.3, 4.5.1).
fn capabilities() -> Vec<u8> {
    /// Hot-plug of both kinds, power management events, error reporting, the PCI Express
    /// capability.
    const GRANTED: u32 = 0x1f;
    const REVISION: u8 = 1;
    const UNKNOWN_UUID: u8 = 1 << 2;
    const UNKNOWN_REVISION: u8 = 1 << 3;
    const MASKED: u8 = 1 << 4;
    let (status, control) = (Path::new("CDW1"), Path::new("CDW3"));
    let (uuid, revision, buffer, granted) = (Arg(0), Arg(1), Arg(3), Local(0));
    let status_field = CreateDWordField::new(&status, &buffer, &0_u8);
    let control_field = CreateDWordField::new(&control, &buffer, &8_u8);
    let grant = And::new(&granted, &control, &GRANTED);
    let old_revision = Or::new(&status, &status, &UNKNOWN_REVISION);
    let is_old = NotEqual::new(&revision, &REVISION);
    let masked = Or::new(&status, &status, &MASKED);
    let is_masked = NotEqual::new(&control, &granted);
    let answer = Store::new(&control, &granted);
    let pci = Uuid::new("33DB4D5B-1FF7-401C-9657-7441C03DD766");
    let is_pci = Equal::new(&uuid, &pci);
    let if_old = If::new(&is_old, vec![&old_revision]);
    let if_masked = If::new(&is_masked, vec![&masked]);
    let if_pci = If::new(&is_pci, vec![&control_field, &grant, &if_old, &if_masked, &answer]);
    let other_uuid = Or::new(&status, &status, &UNKNOWN_UUID);
    let otherwise = Else::new(vec![&other_uuid]);
    let give_back = Return::new(&buffer);
    // Serialized, since it makes names.
    let body: Vec<&dyn Aml> = vec![&status_field, &if_pci, &otherwise, &give_back];
    bytes(&Method::new("_OSC".into(), 4, true, body))
}

/// Objects that are AML already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// `_CRS`: what the bridge passes on.
fn windows(pci: &PciSpec) -> Vec<u8> {
    let (config, config_len) = CONFIG_PORTS;
    let after_config = config + u16::from(config_len);
    let last = |(first, len): (u64, u64)| first + (len - 1);
    let uncached = AddressSpaceCacheable::NotCacheable;
    let memory = AddressSpace::new_memory(
        uncached,
        true,
        pci.memory.0 as u32,
        last(pci.memory) as u32,
        None,
    );
    let high = last(pci.high_memory);
    let high_memory = AddressSpace::new_memory(uncached, true, pci.high_memory.0, high, None);
    let buses = AddressSpace::new_bus_number(0_u16, pci.last_bus().into());
    let config_ports = IO::new(config, config, 1, config_len);
    let low_ports = AddressSpace::new_io(0_u16, config - 1, None);
    let high_ports = AddressSpace::new_io(after_config, u16::MAX, None);
    let resources: Vec<&dyn Aml> =
        vec![&buses, &config_ports, &low_ports, &high_ports, &memory, &high_memory];
    bytes(&Name::new("_CRS".into(), &ResourceTemplate::new(resources)))
}

/// Interrupts of all pins of all slots, as packages of address, pin, 0 and the interrupt.
fn routes(interrupts: [u32; 4]) -> PackageBuilder {
    let mut all = PackageBuilder::new();
    for (slot, pin) in (0..SLOTS).flat_map(|slot| (0..PINS).map(move |pin| (slot, pin))) {
        let interrupt = interrupts[((slot + pin) % 4) as usize];
        let address = slot << 16 | 0xffff;
        all.add_element(&Package::new(vec![&address, &pin, &0_u8, &interrupt]));
    }
    all
}
