//! The machine state at the PVH entry point and the start info (Xen's
//! "x86/HVM direct boot ABI").

use kit::page::peek;
use kit::{Report, boot};

const MAGIC: u32 = 0x336e_c578;

pub fn run(t: &mut Report) {
    let [_, ebx, cr0, cr4, eflags, ..] = boot::ENTRY.get();
    t.eq("PVH entry: CR0 has PE and no PG", cr0 & 0x8000_0001, 1);
    t.eq("PVH entry: CR4", cr4, 0);
    t.eq("PVH entry: VM, IF and TF clear", eflags & 0x2_0300, 0);
    let info = u64::from(ebx);
    t.eq("start info: magic", peek(info) as u32, MAGIC);
    let version = (peek(info) >> 32) as u32;
    t.holds("start info: version", version, |&v| v <= 1);
    memory_map(t, info, version);
    acpi(t, info);
}

fn memory_map(t: &mut Report, info: u64, version: u32) {
    if version == 0 {
        return t.skip("start info: memory map", "version 0");
    }
    let map = peek(info + 40);
    let entries = peek(info + 48) as u32;
    t.holds("memory map: entries", entries, |n| (1..=64).contains(n));
    let mut ram = 0;
    let mut covers_us = false;
    let mut ordered = true;
    let mut end = 0;
    for i in 0..u64::from(entries.min(64)) {
        let entry = map + i * 24;
        let (address, size, kind) = (peek(entry), peek(entry + 8), peek(entry + 16) as u32);
        ordered &= address >= end;
        end = address + size;
        if kind == 1 {
            ram += size;
            covers_us |= address <= 0x10_0000 && end >= boot::PML4.addr() + 4096;
        }
    }
    t.that("memory map: sorted, without overlap", ordered);
    t.that("memory map: the program lies in RAM", covers_us);
    t.holds("memory map: RAM", ram, |&ram| ram >= 64 << 20);
}

/// The root pointer of ACPI: signature and checksum.
fn acpi(t: &mut Report, info: u64) {
    let rsdp = peek(info + 32);
    if rsdp == 0 {
        return t.skip("start info: ACPI root pointer", "0");
    }
    t.eq("ACPI root pointer: signature", peek(rsdp), u64::from_le_bytes(*b"RSD PTR "));
    let sum = (0..20).fold(0u8, |sum, i| {
        // SAFETY: the structure is 20 bytes long and lies in mapped memory.
        sum.wrapping_add(unsafe { ((rsdp + i) as *const u8).read_volatile() })
    });
    t.eq("ACPI root pointer: checksum", sum, 0);
}
