//! The ACPI tables of the platform `pc` (ACPI 6.4).
//!
//! The machine is a classic PC, not a hardware-reduced one: PM1 event and control registers with a
//! fixed power button, the power-management timer, GPE0, a reset register, always in ACPI mode
//! (there is no SMI command port). [`build`] places all tables in the ROM area, where kernels
//! search for the RSDP; [`files`] makes files of them for firmware that places them itself. The FADT
//! is in `fadt.rs`, the DSDT in `dsdt.rs`, what there is of PCI in
//! `pci.rs`.
//!
//! Neighbours: `chipset` has the devices that the tables describe.

mod dsdt;
mod fadt;
mod loader;
mod pci;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use memory::{Gpa, GuestRam};

use crate::{BootError, bios};
pub use loader::{TableFiles, files};
pub use pci::PciSpec;

/// Where the tables lie; the RSDP comes first.
const AREA: u64 = 0xe_0000;
/// End of the room for the tables in the area that kernels search (ACPI 6.4, 5.2.5.1).
const AREA_END: u64 = GENERATION_ID;
/// Where the VM generation ID lies: 16 bytes behind the tables, which nobody but the machine writes.
pub const GENERATION_ID: u64 = bios::START - ALIGNMENT as u64;
/// Alignment of each table: the FACS wants it, and it separates the tables in dumps.
const ALIGNMENT: usize = 64;

const OEM_ID: [u8; 6] = *b"RINGFN";
const OEM_TABLE_ID: [u8; 8] = *b"RINGFNPC";
const OEM_REVISION: u32 = 1;
/// Bytes of the header of a description table.
const HEADER: u32 = 36;

/// Local APIC ids from here on need the x2APIC entries of the MADT.
const FIRST_X2APIC_ID: u32 = 255;
/// Where every local APIC has its registers.
const LOCAL_APIC: u32 = 0xfee0_0000;

/// What the tables describe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiSpec {
    /// Local APIC ids of the processors, the boot processor first.
    pub apic_ids: Vec<u32>,
    /// I/O APIC.
    pub io_apic: IoApicSpec,
    /// First port of the ACPI power-management block: PM1 events at +0, PM1 control at +4, timer
    /// (24 bits) at +8, GPE0 at +0x20.
    pub pm_base: u16,
    /// Bytes of the GPE0 block, status and enable registers together: even, at most 30; 0 for
    /// none.
    pub gpe0_len: u8,
    /// SLP_TYP value of the soft-off state S5, at most 7: written to PM1 control with SLP_EN it
    /// switches the machine off.
    pub sleep_type_s5: u8,
    /// ISA interrupt of the system control interrupt; level-triggered, active high.
    pub sci_irq: u8,
    /// Port and value of the reset register.
    pub reset: (u16, u8),
    /// Index of the century in CMOS RAM, 0 for none.
    pub century: u8,
    /// Whether an 8042 keyboard controller is to be probed.
    pub has_8042: bool,
    /// First port and number of ports of fw_cfg, if there is one.
    pub fw_cfg: Option<(u16, u8)>,
    /// The PCI bus, if there is one.
    pub pci: Option<PciSpec>,
    /// Address of the VM generation ID, if there is one; a change is general-purpose event
    /// [`GENERATION_EVENT`].
    pub generation_id: Option<u64>,
}

/// The general-purpose event that says that the VM generation ID has changed, as in QEMU.
pub const GENERATION_EVENT: u8 = 5;

/// An I/O APIC, as the MADT describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApicSpec {
    /// Its id.
    pub id: u8,
    /// Guest-physical address of its registers.
    pub address: u32,
    /// First global system interrupt of its inputs.
    pub gsi_base: u32,
}

impl AcpiSpec {
    /// The platform `pc` with these processors, as q35 has it: power management at port 0x600,
    /// SCI on interrupt 9, reset by writing 6 to port 0xcf9, no 8042, no fw_cfg, no PCI.
    pub fn pc(apic_ids: &[u32]) -> Self {
        Self {
            apic_ids: apic_ids.to_vec(),
            io_apic: IoApicSpec { id: 0, address: 0xfec0_0000, gsi_base: 0 },
            pm_base: 0x600,
            gpe0_len: 16,
            sleep_type_s5: 5,
            sci_irq: 9,
            reset: (0xcf9, 6),
            century: 0x32,
            has_8042: false,
            fw_cfg: None,
            pci: None,
            generation_id: None,
        }
    }

    fn pm1_event(&self) -> u16 {
        self.pm_base
    }

    fn pm1_control(&self) -> u16 {
        self.pm_base + 4
    }

    fn pm_timer(&self) -> u16 {
        self.pm_base + 8
    }

    fn gpe0(&self) -> u16 {
        self.pm_base + 0x20
    }
}

/// Bytes of the power-management block.
const PM_LEN: u8 = 0x80;
/// Bytes of GPE0: its width in bits is one byte in the FADT.
const MAX_GPE0_LEN: u8 = 30;
/// Processors that the tables have room for, and whose devices have different names.
const MAX_PROCESSORS: usize = 1024;

/// Puts the tables into guest RAM at 0xe_0000 and returns the address of the RSDP.
///
/// # Errors
/// [`BootError::Acpi`] for values that the tables cannot express or more processors than they
/// have room for, [`BootError::Memory`].
pub fn build(spec: &AcpiSpec, ram: &GuestRam) -> Result<u64, BootError> {
    check(spec)?;
    let mut area = Area { base: AREA, bytes: Vec::new() };
    let rsdp_at = area.append(&vec![0; Rsdp::len()]);
    let tables = place(spec, &mut area);
    let rsdp = bytes(&Rsdp::new(OEM_ID, tables.xsdt));
    area.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    debug_assert!(area.bytes.len() as u64 <= AREA_END - AREA);
    ram.write(Gpa(AREA), &area.bytes)?;
    Ok(rsdp_at)
}

/// Where the tables lie.
struct Tables {
    fadt: u64,
    xsdt: u64,
    /// Those with the usual header, the XSDT last.
    with_header: Vec<u64>,
    /// Those that the XSDT lists.
    listed: usize,
}

/// Puts the tables but the RSDP behind what is in `area`.
fn place(spec: &AcpiSpec, area: &mut Area) -> Tables {
    let facs = area.append(&bytes(&FACS::new()));
    let dsdt = area.append(dsdt::build(spec).as_slice());
    let fadt = area.append(&bytes(&fadt::build(spec, facs as u32, dsdt as u32)));
    let madt = area.append(madt(spec).as_slice());
    let mcfg = spec.pci.as_ref().map(|pci| area.append(&bytes(&pci::mcfg(pci))));
    let mut xsdt = table(*b"XSDT", 1);
    let listed: Vec<u64> = [fadt, madt].into_iter().chain(mcfg).collect();
    for address in &listed {
        xsdt.append_slice(&address.to_le_bytes());
    }
    let xsdt = area.append(xsdt.as_slice());
    let with_header = [vec![dsdt], listed.clone(), vec![xsdt]].concat();
    Tables { fadt, xsdt, with_header, listed: listed.len() }
}

fn check(spec: &AcpiSpec) -> Result<(), BootError> {
    let bad = |cause: String| Err(BootError::Acpi(cause));
    if spec.apic_ids.is_empty() {
        return bad("a machine has at least one processor; use --cpus 1 or more".into());
    }
    if spec.apic_ids.len() > MAX_PROCESSORS {
        let count = spec.apic_ids.len();
        return bad(format!("{count} processors do not fit; use --cpus {MAX_PROCESSORS} or less"));
    }
    if spec.pm_base.checked_add(u16::from(PM_LEN)).is_none() {
        let base = spec.pm_base;
        return bad(format!("power-management ports at {base:#x} end above 0xffff; lower them"));
    }
    if spec.gpe0_len > MAX_GPE0_LEN || !spec.gpe0_len.is_multiple_of(2) {
        let len = spec.gpe0_len;
        return bad(format!("a GPE0 block has an even length up to {MAX_GPE0_LEN}, not {len}"));
    }
    if spec.sleep_type_s5 > 7 {
        return bad(format!("a sleep type has 3 bits, not {:#x}", spec.sleep_type_s5));
    }
    if let Some(cause) = spec.pci.as_ref().and_then(PciSpec::fault) {
        return bad(cause.to_owned());
    }
    Ok(())
}

/// Tables one after the other.
struct Area {
    /// Address of the first byte.
    base: u64,
    bytes: Vec<u8>,
}

impl Area {
    /// Address at which the table now lies.
    fn append(&mut self, table: &[u8]) -> u64 {
        let at = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(at, 0);
        self.bytes.extend_from_slice(table);
        self.base + at as u64
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// An empty table.
fn table(signature: [u8; 4], revision: u8) -> Sdt {
    Sdt::new(signature, HEADER, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION)
}

/// Polarity and trigger mode of an interrupt source (ACPI 6.4 table 5.26, MPS INTI flags).
mod inti {
    /// Active high, level-triggered.
    pub(super) const HIGH_LEVEL: u16 = 1 | 3 << 2;
    /// As the bus has it: for ISA active high, edge-triggered.
    pub(super) const CONFORMS: u16 = 0;
}

/// Multiple APIC description table (ACPI 6.4, 5.2.12).
fn madt(spec: &AcpiSpec) -> Sdt {
    const REVISION: u8 = 5;
    const PCAT_COMPAT: u32 = 1; // there is an 8259A too
    const ALL_PROCESSORS: u8 = 0xff;
    const ALL_PROCESSORS_32: u32 = 0xffff_ffff;
    const LINT1: u8 = 1;
    let mut madt = table(*b"APIC", REVISION);
    madt.append_slice(&LOCAL_APIC.to_le_bytes());
    madt.append_slice(&PCAT_COMPAT.to_le_bytes());
    for (uid, &apic_id) in spec.apic_ids.iter().enumerate() {
        madt.append_slice(&processor(uid as u32, apic_id));
    }

    let io_apic = spec.io_apic;
    let mut entry = vec![1, 12, io_apic.id, 0];
    entry.extend(io_apic.address.to_le_bytes());
    entry.extend(io_apic.gsi_base.to_le_bytes());
    madt.append_slice(&entry);

    // The PIT is wired to input 2, where the cascade of the 8259A is on interrupt 2.
    madt.append_slice(&source_override(0, 2, inti::CONFORMS));
    let sci = spec.sci_irq;
    madt.append_slice(&source_override(sci, u32::from(sci), inti::HIGH_LEVEL));

    let [low, high] = inti::CONFORMS.to_le_bytes();
    madt.append_slice(&[4, 6, ALL_PROCESSORS, low, high, LINT1]);
    if spec.apic_ids.iter().any(|&id| id >= FIRST_X2APIC_ID) {
        let mut entry = vec![10, 12, low, high];
        entry.extend(ALL_PROCESSORS_32.to_le_bytes());
        entry.extend([LINT1, 0, 0, 0]);
        madt.append_slice(&entry);
    }
    madt
}

/// A processor's local APIC or x2APIC entry.
fn processor(uid: u32, apic_id: u32) -> Vec<u8> {
    const ENABLED: u32 = 1;
    let mut entry;
    match (u8::try_from(uid), u8::try_from(apic_id)) {
        (Ok(uid), Ok(id)) if apic_id < FIRST_X2APIC_ID => {
            entry = vec![0, 8, uid, id];
            entry.extend(ENABLED.to_le_bytes());
        }
        _ => {
            entry = vec![9, 16, 0, 0];
            entry.extend(apic_id.to_le_bytes());
            entry.extend(ENABLED.to_le_bytes());
            entry.extend(uid.to_le_bytes());
        }
    }
    entry
}

/// ISA interrupt `irq` arrives at global system interrupt `gsi`.
fn source_override(irq: u8, gsi: u32, flags: u16) -> Vec<u8> {
    const ISA: u8 = 0;
    let mut entry = vec![2, 10, ISA, irq];
    entry.extend(gsi.to_le_bytes());
    entry.extend(flags.to_le_bytes());
    entry
}

#[cfg(test)]
mod tests;
