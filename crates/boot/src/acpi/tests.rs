//! The tables as a kernel reads them, and as the reference disassembler does.

use std::io::ErrorKind;
use std::process::Command;

use super::*;

fn guest(spec: &AcpiSpec) -> (GuestRam, u64) {
    let ram = GuestRam::new(&[(0, 1 << 20)]).unwrap();
    let rsdp = build(spec, &ram).unwrap();
    (ram, rsdp)
}

fn read(ram: &GuestRam, gpa: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ram.read(Gpa(gpa), &mut bytes).unwrap();
    bytes
}

fn u32_of(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_of(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn assert_sum(bytes: &[u8]) {
    assert_eq!(bytes.iter().fold(0_u8, |sum, b| sum.wrapping_add(*b)), 0, "checksum");
}

fn table_at(ram: &GuestRam, gpa: u64) -> Vec<u8> {
    let len = u32_of(&read(ram, gpa, 8), 4) as usize;
    assert!(gpa >= AREA && gpa + len as u64 <= AREA_END);
    let bytes = read(ram, gpa, len);
    assert_sum(&bytes);
    bytes
}

/// FADT, MADT and DSDT, found from the RSDP.
fn tables(spec: &AcpiSpec) -> [Vec<u8>; 3] {
    all_tables(spec).try_into().expect("there is no PCI")
}

/// The same, and what comes after the MADT.
fn all_tables(spec: &AcpiSpec) -> Vec<Vec<u8>> {
    let (ram, rsdp) = guest(spec);
    assert_eq!(rsdp % 16, 0);
    let rsdp = read(&ram, rsdp, 36);
    assert!(rsdp.starts_with(b"RSD PTR ") && rsdp[15] == 2);
    assert_sum(&rsdp[..20]);
    assert_sum(&rsdp);
    let xsdt = table_at(&ram, u64_of(&rsdp, 24));
    assert!(xsdt.starts_with(b"XSDT"));
    let fadt = table_at(&ram, u64_of(&xsdt, 36));
    let madt = table_at(&ram, u64_of(&xsdt, 44));
    let dsdt = table_at(&ram, u64::from(u32_of(&fadt, 40)));
    let facs = u64::from(u32_of(&fadt, 36));
    assert_eq!(facs % 64, 0);
    assert_eq!(read(&ram, facs, 8), [b'F', b'A', b'C', b'S', 64, 0, 0, 0]);
    let more = xsdt[52..].chunks(8).map(|at| table_at(&ram, u64_of(at, 0)));
    [fadt, madt, dsdt].into_iter().chain(more).collect()
}

fn with_pci() -> AcpiSpec {
    let pci = PciSpec {
        ecam: (0xb000_0000, 0x1000_0000),
        memory: (0xc000_0000, 0x3ec0_0000),
        high_memory: (0x8_0000_0000, 0x8_0000_0000),
        interrupts: [20, 21, 22, 23],
        pic_interrupts: [10, 10, 11, 11],
    };
    AcpiSpec { pci: Some(pci), ..AcpiSpec::pc(&[0]) }
}

#[test]
fn the_mcfg_has_ecam() {
    let tables = all_tables(&with_pci());
    let mcfg = &tables[3];
    assert_eq!((&mcfg[..4], mcfg.len(), tables.len()), (&b"MCFG"[..], 60, 4));
    assert_eq!(u64_of(mcfg, 44), 0xb000_0000);
    assert_eq!(mcfg[52..], [0, 0, 0, 255, 0, 0, 0, 0], "segment and buses");
}

#[test]
fn the_fadt_has_the_machine() {
    let [fadt, ..] = tables(&AcpiSpec { has_8042: true, ..AcpiSpec::pc(&[0]) });
    assert!(fadt.starts_with(b"FACP"));
    assert_eq!((fadt.len(), fadt[8]), (276, 6));
    assert_eq!(fadt[46], 9, "SCI_INT");
    assert_eq!(u32_of(&fadt, 48), 0, "SMI_CMD");
    assert_eq!((u32_of(&fadt, 56), u32_of(&fadt, 64)), (0x600, 0x604), "PM1a");
    assert_eq!((u32_of(&fadt, 76), u32_of(&fadt, 80)), (0x608, 0x620), "timer, GPE0");
    assert_eq!(fadt[88..94], [4, 2, 0, 4, 16, 0], "lengths");
    assert_eq!(fadt[108], 0x32, "century");
    assert_eq!(fadt[109], 0b111, "IAPC_BOOT_ARCH");
    let flags = u32_of(&fadt, 112);
    let (power_button, timer_32, reset, reduced) = (1 << 4, 1 << 8, 1 << 10, 1 << 20);
    assert_eq!(flags & (power_button | timer_32 | reset | reduced), reset);
    assert_eq!((fadt[116], u64_of(&fadt, 120), fadt[128]), (1, 0xcf9, 6), "reset register");
    assert_eq!((fadt[148], u64_of(&fadt, 152)), (1, 0x600), "X_PM1a_EVT_BLK");
    let [fadt, ..] = tables(&AcpiSpec { gpe0_len: 0, ..AcpiSpec::pc(&[0]) });
    assert_eq!((fadt[109], u32_of(&fadt, 80), fadt[92]), (0b101, 0, 0));
}

/// The entries of a MADT.
fn entries(madt: &[u8]) -> Vec<&[u8]> {
    let mut rest = &madt[44..];
    let mut entries = Vec::new();
    while let [_, len, ..] = *rest {
        let (entry, after) = rest.split_at(usize::from(len));
        entries.push(entry);
        rest = after;
    }
    assert!(rest.is_empty());
    entries
}

#[test]
fn the_madt_has_processors_and_interrupts() {
    let [_, madt, _] = tables(&AcpiSpec::pc(&[0, 2]));
    assert!(madt.starts_with(b"APIC"));
    assert_eq!((u32_of(&madt, 36), u32_of(&madt, 40)), (0xfee0_0000, 1));
    let expected: [&[u8]; 6] = [
        &[0, 8, 0, 0, 1, 0, 0, 0],
        &[0, 8, 1, 2, 1, 0, 0, 0],
        &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
        &[2, 10, 0, 0, 2, 0, 0, 0, 0, 0],
        &[2, 10, 0, 9, 9, 0, 0, 0, 13, 0],
        &[4, 6, 0xff, 0, 0, 1],
    ];
    assert_eq!(entries(&madt), expected);
}

#[test]
fn large_apic_ids_have_x2apic_entries() {
    let [_, madt, _] = tables(&AcpiSpec::pc(&[254, 255, 256]));
    let entries = entries(&madt);
    assert_eq!(entries[0], [0, 8, 0, 254, 1, 0, 0, 0]);
    assert_eq!(entries[1], [9, 16, 0, 0, 255, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(entries[2][4..8], [0, 1, 0, 0]);
    assert_eq!(entries.last().unwrap(), &[10, 12, 0, 0, 255, 255, 255, 255, 1, 0, 0, 0]);
}

fn bad_pci(change: impl Fn(&mut PciSpec)) -> AcpiSpec {
    let mut spec = with_pci();
    change(spec.pci.as_mut().unwrap());
    spec
}

#[test]
fn what_cannot_be_expressed_is_refused() {
    let ram = GuestRam::new(&[(0, 1 << 20)]).unwrap();
    let most: Vec<u32> = (0..MAX_PROCESSORS as u32).collect();
    assert!(build(&AcpiSpec::pc(&most), &ram).is_ok());
    let pc = || AcpiSpec::pc(&[0]);
    for (spec, cause) in [
        (AcpiSpec::pc(&[]), "at least one processor"),
        (AcpiSpec::pc(&[0; MAX_PROCESSORS + 1]), "1025 processors"),
        (AcpiSpec { pm_base: 0xffc0, ..pc() }, "0xffc0"),
        (AcpiSpec { gpe0_len: 32, ..pc() }, "GPE0"),
        (AcpiSpec { gpe0_len: 3, ..pc() }, "GPE0"),
        (AcpiSpec { sleep_type_s5: 8, ..pc() }, "3 bits"),
        (bad_pci(|pci| pci.ecam.1 += 4096), "256 MiB"),
        (bad_pci(|pci| pci.ecam.0 = 1 << 32), "ECAM"),
        (bad_pci(|pci| pci.memory.1 = 0), "PCI window"),
        (bad_pci(|pci| pci.high_memory.0 = u64::MAX), "high PCI window"),
    ] {
        let error = build(&spec, &ram).unwrap_err().to_string();
        assert!(error.contains(cause), "{error}");
    }
}

/// Disassembles `table` with ACPICA's `iasl`; `None` where it is not installed.
fn disassemble(name: &str, table: &[u8]) -> Option<(String, String)> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join(name);
    std::fs::write(&file, table).unwrap();
    let output = match Command::new("iasl").arg("-d").arg(&file).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        output => output.unwrap(),
    };
    let log = [output.stdout, output.stderr].concat();
    let log = String::from_utf8_lossy(&log).into_owned();
    assert!(output.status.success(), "{log}");
    let source = std::fs::read_to_string(file.with_extension("dsl")).unwrap();
    Some((source, log))
}

#[test]
fn the_reference_disassembler_finds_no_fault() {
    let names = ["facp", "apic", "dsdt", "mcfg"];
    let spec = AcpiSpec { apic_ids: vec![0, 1, 2], ..with_pci() };
    for (name, table) in names.into_iter().zip(all_tables(&spec)) {
        let Some((source, log)) = disassemble(&format!("{name}.dat"), &table) else {
            eprintln!("skipped: iasl is not installed (package acpica-tools)");
            return;
        };
        for fault in ["Error", "Warning", "Invalid", "Unknown", "Incorrect"] {
            let line = |text: &str| text.lines().find(|l| l.contains(fault)).map(str::to_owned);
            assert_eq!(line(&source).or_else(|| line(&log)), None, "{name}: {fault}");
        }
        if name == "dsdt" {
            for wanted in [
                "_S5_",
                "PNP0501",
                "PNP0B00",
                "PNP0C02",
                "Device (C002)",
                "ACPI0007",
                "PNP0A08",
                "_PRT",
                "_OSC",
                "33db4d5b-1ff7-401c-9657-7441c03dd766",
                "PICF",
            ] {
                assert!(source.contains(wanted), "{wanted} in {source}");
            }
        }
    }
}

/// What firmware does with the files: places them at `at` and executes the commands.
fn placed_by_firmware(spec: &AcpiSpec, at: u64) -> (Vec<u8>, Vec<u8>) {
    let mut all = files(spec).unwrap();
    let (name, commands) = all.pop().unwrap();
    assert_eq!(name, "etc/table-loader");
    let [(rsdp_name, mut rsdp), (tables_name, mut tables)] = all.try_into().unwrap();
    assert_eq!((rsdp_name, tables_name), ("etc/acpi/rsdp", "etc/acpi/tables"));
    let mut allocated = Vec::new();
    for command in commands.chunks_exact(128) {
        let text = |at: usize| {
            let name = &command[at..at + 56];
            assert_eq!(name[55], 0);
            String::from_utf8(name.split(|byte| *byte == 0).next().unwrap().to_vec()).unwrap()
        };
        let name = text(4);
        let file = if name == rsdp_name { &mut rsdp } else { &mut tables };
        match u32_of(command, 0) {
            1 => allocated.push((name, u32_of(command, 60), command[64])),
            2 => {
                assert_eq!(text(60), tables_name);
                let (field, size) = (u32_of(command, 116) as usize, usize::from(command[120]));
                let mut pointer = [0; 8];
                pointer[..size].copy_from_slice(&file[field..field + size]);
                let pointer = u64::from_le_bytes(pointer);
                assert!(pointer < 0x1_0000, "an offset in the file");
                file[field..field + size].copy_from_slice(&(pointer + at).to_le_bytes()[..size]);
            }
            3 => {
                let [field, start, len] = [60, 64, 68].map(|at| u32_of(command, at) as usize);
                assert_eq!(file[field], 0);
                let sum = file[start..start + len].iter().fold(0_u8, |sum, b| sum.wrapping_add(*b));
                file[field] = 0_u8.wrapping_sub(sum);
            }
            other => panic!("command {other}"),
        }
    }
    let expected = [(rsdp_name.to_owned(), 16, 2), (tables_name.to_owned(), 64, 1)];
    assert_eq!(allocated, expected);
    (rsdp, tables)
}

/// Firmware that places the tables where they lie without it makes the same of them.
#[test]
fn the_files_become_the_same_tables() {
    for spec in [AcpiSpec::pc(&[0]), with_pci(), AcpiSpec::pc(&(0..300).collect::<Vec<_>>())] {
        let (ram, rsdp_at) = guest(&spec);
        // Behind the RSDP, at the next multiple of the alignment.
        let at = AREA + ALIGNMENT as u64;
        let (rsdp, tables) = placed_by_firmware(&spec, at);
        assert_eq!(read(&ram, rsdp_at, rsdp.len()), rsdp);
        assert_eq!(read(&ram, at, tables.len()), tables);
    }
}

#[test]
fn the_files_can_lie_anywhere() {
    let (rsdp, tables) = placed_by_firmware(&with_pci(), 0x7fff_0000);
    assert_sum(&rsdp[..20]);
    assert_sum(&rsdp);
    let xsdt = (u64_of(&rsdp, 24) - 0x7fff_0000) as usize;
    let xsdt = &tables[xsdt..];
    let xsdt = &xsdt[..u32_of(xsdt, 4) as usize];
    assert!(xsdt.starts_with(b"XSDT"));
    assert_sum(xsdt);
    for (entry, signature) in xsdt[36..].chunks(8).zip([b"FACP", b"APIC", b"MCFG"]) {
        let table = &tables[(u64_of(entry, 0) - 0x7fff_0000) as usize..];
        assert!(table.starts_with(signature));
        assert_sum(&table[..u32_of(table, 4) as usize]);
    }
}

#[test]
fn fw_cfg_is_a_device_where_there_is_one() {
    let has = |spec: &AcpiSpec| tables(spec)[2].windows(8).any(|bytes| bytes == b"QEMU0002");
    assert!(!has(&AcpiSpec::pc(&[0])));
    assert!(has(&AcpiSpec { fw_cfg: Some((0x510, 12)), ..AcpiSpec::pc(&[0]) }));
}
