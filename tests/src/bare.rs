//! Guests of some bytes: 32-bit code behind the PVH entry of an ELF file, in flat protected mode,
//! without an interrupt table and with interrupts off.

use lifecycle::BootFiles;

/// Where the code is loaded and entered.
pub const ENTRY: u32 = 0x10_0000;

/// A guest that executes `code`.
///
/// # Panics
/// Never: the file is what the loader expects.
pub fn guest(code: &[u8]) -> BootFiles {
    BootFiles::from_bytes(elf(code), None).expect("an ELF file with a PVH note")
}

/// Code that writes `value` to debug-exit and halts.
pub fn debug_exit(value: u8) -> Vec<u8> {
    // mov dx, 0xf4; mov al, value; out dx, al; hlt
    vec![0x66, 0xba, 0xf4, 0x00, 0xb0, value, 0xee, 0xf4]
}

/// A 64-bit ELF file: one segment with the code, one with the note that names the 32-bit entry
/// (Xen's docs/misc/pvh.pandoc).
fn elf(code: &[u8]) -> Vec<u8> {
    const CODE: usize = 0x200;
    const NOTE: usize = 0x100;
    let mut file = vec![0; CODE];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    // ET_EXEC, EM_X86_64, version 1.
    put(0x10, &[2, 0, 62, 0, 1]);
    put(0x18, &u64::from(ENTRY).to_le_bytes());
    put(0x20, &0x40_u64.to_le_bytes());
    // Sizes of the header and of the two program headers.
    put(0x34, &[64, 0, 56, 0, 2, 0]);
    let header = |kind: u32, offset: usize, address: u32, len: usize| {
        let mut bytes = [kind.to_le_bytes(), 7_u32.to_le_bytes()].concat();
        for value in [offset, address as usize, address as usize, len, len, 4] {
            bytes.extend((value as u64).to_le_bytes());
        }
        bytes
    };
    put(0x40, &header(1, CODE, ENTRY, code.len()));
    put(0x78, &header(4, NOTE, 0, 20));
    // Lengths of name and content; 18 is XEN_ELFNOTE_PHYS32_ENTRY.
    put(NOTE, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    put(NOTE + 12, b"Xen\0");
    put(NOTE + 16, &ENTRY.to_le_bytes());
    file.extend(code);
    file
}
