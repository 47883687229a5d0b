//! Differentiated system description table: the devices that cannot be found by probing, in AML
//! (ACPI 6.4, 5.2.11.1 and chapter 20).

use acpi_tables::Aml;
use acpi_tables::aml::{
    AmlString, Device, EISAName, IO, Interrupt, Method, Name, Notify, Package, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::sdt::Sdt;

use super::{AcpiSpec, GENERATION_EVENT, PM_LEN, bytes, pci, table};

/// Revision 2: integers have 64 bits.
const REVISION: u8 = 2;
const UART_PORT: u16 = 0x3f8;
const UART_IRQ: u32 = 4;
const RTC_PORT: u16 = 0x70;
const RTC_IRQ: u32 = 8;
/// First port and number of ports that `pc` claims beside the power-management block: the fast A20
/// and reset port, and the APM ports.
const SYSTEM_PORTS: &[(u16, u8)] = &[(0x92, 1), (0xb2, 2)];

/// The table.
pub(super) fn build(spec: &AcpiSpec) -> Sdt {
    let mut dsdt = table(*b"DSDT", REVISION);
    // \_S5_: SLP_TYP for PM1a and PM1b control, and two reserved values.
    let sleep: &dyn Aml = &spec.sleep_type_s5;
    let s5 = Name::new("_S5_".into(), &Package::new(vec![sleep, sleep, &0_u8, &0_u8]));
    dsdt.append_slice(&bytes(&s5));
    let bus = match &spec.pci {
        Some(pci) => {
            dsdt.append_slice(&pci::interrupt_model());
            pci::host_bridge(pci)
        }
        None => Vec::new(),
    };
    let fw_cfg = spec.fw_cfg.map(fw_cfg).unwrap_or_default();
    let generation = spec.generation_id.map(generation_id).unwrap_or_default();
    let devices =
        [bus, serial(), clock(), fw_cfg, generation, motherboard(spec), processors(spec)].concat();
    dsdt.append_slice(&Scope::raw("_SB_".into(), devices));
    if spec.generation_id.is_some() {
        dsdt.append_slice(&generation_event());
    }
    dsdt
}

fn ports(first: u16, count: u8) -> IO {
    IO::new(first, first, 1, count)
}

/// An ISA interrupt: edge-triggered, active high, not shared.
fn isa_interrupt(irq: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, irq)
}

fn device(name: &str, id: &str, uid: u32, resources: Vec<&dyn Aml>) -> Vec<u8> {
    bytes(&Device::new(
        name.into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new(id)),
            &Name::new("_UID".into(), &uid),
            &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
        ],
    ))
}

/// The 16550 on COM1.
fn serial() -> Vec<u8> {
    device("COM1", "PNP0501", 1, vec![&ports(UART_PORT, 8), &isa_interrupt(UART_IRQ)])
}

/// The real-time clock.
fn clock() -> Vec<u8> {
    device("RTC_", "PNP0B00", 0, vec![&ports(RTC_PORT, 2), &isa_interrupt(RTC_IRQ)])
}

/// QEMU's fw_cfg, as its drivers look for it (QEMU `docs/specs/fw_cfg`).
fn fw_cfg((first, count): (u16, u8)) -> Vec<u8> {
    /// Present, enabled, working, and not to be shown to users.
    const STATUS: u8 = 0b1011;
    let id: AmlString = "QEMU0002".into();
    bytes(&Device::new(
        "FWCF".into(),
        vec![
            &Name::new("_HID".into(), &id),
            &Name::new("_STA".into(), &STATUS),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports(first, count)])),
        ],
    ))
}

/// The VM generation ID (Microsoft, "Virtual Machine Generation ID"): where its 16 bytes are.
fn generation_id(address: u64) -> Vec<u8> {
    let id = |text: &'static str| AmlString::from(text);
    let (low, high) = (address as u32, (address >> 32) as u32);
    bytes(&Device::new(
        "VGEN".into(),
        vec![
            &Name::new("_HID".into(), &id("QEMUVGID")),
            &Name::new("_CID".into(), &id("VM_Gen_Counter")),
            &Name::new("_DDN".into(), &id("VM_Gen_Counter")),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
        ],
    ))
}

/// The method of its event: edge-triggered, notifies the device's driver.
fn generation_event() -> Vec<u8> {
    /// The device's status has changed.
    const CHANGED: u8 = 0x80;
    let device = Path::new("\\_SB_.VGEN");
    let notify = Notify::new(&device, &CHANGED);
    let method =
        Method::new(format!("_E{GENERATION_EVENT:02X}").as_str().into(), 0, false, vec![&notify]);
    bytes(&Scope::new("\\_GPE".into(), vec![&method]))
}

/// Ports, and the addresses of ECAM, that no driver may take for something else.
fn motherboard(spec: &AcpiSpec) -> Vec<u8> {
    let mut ranges = vec![ports(spec.pm_base, PM_LEN)];
    ranges.extend(SYSTEM_PORTS.iter().map(|&(first, count)| ports(first, count)));
    let ecam = spec.pci.as_ref().map(pci::ecam);
    let resources = ranges.iter().map(|range| range as &dyn Aml);
    let resources = resources.chain(ecam.iter().map(|range| range as &dyn Aml)).collect();
    device("MBRD", "PNP0C02", 0, resources)
}

/// One processor device for each MADT entry, joined by `_UID`.
fn processors(spec: &AcpiSpec) -> Vec<u8> {
    let one = |uid: u32| {
        let id: AmlString = "ACPI0007".into();
        bytes(&Device::new(
            format!("C{uid:03X}").as_str().into(),
            vec![&Name::new("_HID".into(), &id), &Name::new("_UID".into(), &uid)],
        ))
    };
    (0..spec.apic_ids.len() as u32).flat_map(one).collect()
}
