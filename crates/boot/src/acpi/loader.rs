//! The ACPI tables as files for firmware, which places them where it wants to, in the format that
//! SeaBIOS and OVMF read (QEMU `hw/acpi/bios-linker-loader.c`).
//!
//! `etc/acpi/tables` and `etc/acpi/rsdp` hold tables whose pointers are offsets in the file; the
//! commands of `etc/table-loader` say where a file may lie, which fields become addresses, and which
//! checksums are to be made then.

use acpi_tables::rsdp::Rsdp;

use super::{ALIGNMENT, AcpiSpec, Area, HEADER, OEM_ID, bytes, check, place};
use crate::BootError;

/// Names of the files.
const RSDP: &str = "etc/acpi/rsdp";
const TABLES: &str = "etc/acpi/tables";
const LOADER: &str = "etc/table-loader";

/// Bytes of a command, and of a name in it.
const COMMAND: usize = 128;
const NAME: usize = 56;
const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;
/// Where a file may lie: anywhere below 4 GiB, or where kernels search for the RSDP.
const ZONE_HIGH: u8 = 1;
const ZONE_FSEG: u8 = 2;

/// Fields of tables (ACPI 6.4, 5.2.5.3, 5.2.6, 5.2.9).
const LENGTH: usize = 4;
const CHECKSUM: usize = 9;
const FADT_FACS: u64 = 36;
const FADT_DSDT: u64 = 40;
const RSDP_XSDT: u32 = 24;
/// Fields of the RSDP with a checksum, and how many bytes from the start each is of.
const RSDP_CHECKSUMS: [(u32, u32); 2] = [(8, 20), (32, 36)];

/// Name and content of each file, for fw_cfg.
pub type TableFiles = Vec<(&'static str, Vec<u8>)>;

/// The tables that [`super::build`] puts into guest RAM, as files.
///
/// # Errors
/// [`BootError::Acpi`], as [`super::build`].
pub fn files(spec: &AcpiSpec) -> Result<TableFiles, BootError> {
    check(spec)?;
    let mut area = Area { base: 0, bytes: Vec::new() };
    let placed = place(spec, &mut area);
    let mut tables = area.bytes;
    let mut rsdp = bytes(&Rsdp::new(OEM_ID, placed.xsdt));
    let mut commands = Commands::default();
    commands.allocate(RSDP, 16, ZONE_FSEG);
    commands.allocate(TABLES, ALIGNMENT as u32, ZONE_HIGH);
    for field in [FADT_FACS, FADT_DSDT] {
        commands.add_pointer(TABLES, (placed.fadt + field) as u32, 4);
    }
    for index in 0..placed.listed as u64 {
        commands.add_pointer(TABLES, (placed.xsdt + u64::from(HEADER) + 8 * index) as u32, 8);
    }
    commands.add_pointer(RSDP, RSDP_XSDT, 8);
    for at in placed.with_header {
        let at = at as usize;
        let len = std::array::from_fn(|index| tables[at + LENGTH + index]);
        tables[at + CHECKSUM] = 0;
        commands.add_checksum(TABLES, (at + CHECKSUM) as u32, at as u32, u32::from_le_bytes(len));
    }
    for (at, len) in RSDP_CHECKSUMS {
        rsdp[at as usize] = 0;
        commands.add_checksum(RSDP, at, 0, len);
    }
    Ok(vec![(RSDP, rsdp), (TABLES, tables), (LOADER, commands.0)])
}

/// The commands so far.
#[derive(Default)]
struct Commands(Vec<u8>);

impl Commands {
    fn add(&mut self, command: u32, fields: &[u8]) {
        let start = self.0.len();
        self.0.extend(command.to_le_bytes());
        self.0.extend(fields);
        self.0.resize(start + COMMAND, 0);
    }

    /// Loads a file at a multiple of `align` in a zone.
    fn allocate(&mut self, file: &str, align: u32, zone: u8) {
        self.add(ALLOCATE, &[&name(file)[..], &align.to_le_bytes(), &[zone]].concat());
    }

    /// Adds the address of the tables to the pointer of `size` bytes at `offset` of `file`.
    fn add_pointer(&mut self, file: &str, offset: u32, size: u8) {
        let fields = [&name(file)[..], &name(TABLES), &offset.to_le_bytes(), &[size]].concat();
        self.add(ADD_POINTER, &fields);
    }

    /// Makes the bytes of `file` from `start` on add up to 0, by the one at `offset`.
    fn add_checksum(&mut self, file: &str, offset: u32, start: u32, len: u32) {
        let numbers = [offset, start, len].map(u32::to_le_bytes);
        self.add(ADD_CHECKSUM, &[&name(file)[..], &numbers.concat()].concat());
    }
}

fn name(file: &str) -> [u8; NAME] {
    let mut name = [0; NAME];
    name[..file.len()].copy_from_slice(file.as_bytes());
    name
}
