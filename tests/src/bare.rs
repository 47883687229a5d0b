//! Guests of some bytes: 32-bit code behind the PVH entry of an ELF file, in flat protected mode,
//! without an interrupt table and with interrupts off; or 64-bit code ([`guest64`]), which is entered
//! by such code.

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

/// Where the code of [`guest64`] is loaded and entered.
pub const ENTRY64: u64 = 0x10_2000;

/// A guest that executes `code` in ring 0 of 64-bit mode. The low gigabyte is mapped to itself by
/// pages of 2 MiB, all of it writable, RSP is at [`ENTRY64`].
///
/// # Panics
/// Never: the file is what the loader expects.
pub fn guest64(code: &[u8]) -> BootFiles {
    /// Behind the code of the entry: GDT and its pointer.
    const GDT: usize = 0x80;
    const POINTER: usize = 0xa0;
    let address = |offset: usize| ENTRY + offset as u32;
    let mut image = vec![0; (ENTRY64 - u64::from(ENTRY)) as usize];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(GDT + 8, &0x00af_9b00_0000_ffff_u64.to_le_bytes());
    put(GDT + 16, &0x00cf_9300_0000_ffff_u64.to_le_bytes());
    put(POINTER, &23_u16.to_le_bytes());
    put(POINTER + 2, &address(GDT).to_le_bytes());
    // The root, the table below it and the page directory, in pages that are RAM but not loaded.
    let [root, middle, directory] = [0x1000_u32, 0x2000, 0x3000];
    let mut entry = Vec::new();
    for (table, target) in [(root, middle | 3), (middle, directory | 3)] {
        // mov dword [table], target
        entry.extend([&[0xc7, 0x05][..], &table.to_le_bytes(), &target.to_le_bytes()].concat());
    }
    // xor ecx, ecx; mov eax, 0x83; next: mov [directory + ecx * 8], eax; add eax, 2 MiB; inc ecx;
    // cmp ecx, 512; jne next
    entry.extend([0x31, 0xc9, 0xb8, 0x83, 0, 0, 0, 0x89, 0x04, 0xcd]);
    entry.extend(directory.to_le_bytes());
    entry.extend([5, 0, 0, 0x20, 0, 0x41, 0x81, 0xf9, 0, 2, 0, 0, 0x75, 0xeb]);
    // mov eax, cr4; or eax, PAE | OSFXSR; mov cr4, eax; mov eax, root; mov cr3, eax
    entry.extend([0x0f, 0x20, 0xe0, 0x0d, 0x20, 2, 0, 0, 0x0f, 0x22, 0xe0, 0xb8]);
    entry.extend(root.to_le_bytes());
    entry.extend([0x0f, 0x22, 0xd8]);
    // mov ecx, EFER; rdmsr; or eax, LME; wrmsr
    entry.extend([0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32, 0x0d, 0, 1, 0, 0, 0x0f, 0x30]);
    // mov eax, cr0; or eax, PG; mov cr0, eax; lgdt [pointer]; mov esp, ENTRY64; jmp 8:ENTRY64
    entry.extend([0x0f, 0x20, 0xc0, 0x0d, 0, 0, 0, 0x80, 0x0f, 0x22, 0xc0, 0x0f, 0x01, 0x15]);
    entry.extend(address(POINTER).to_le_bytes());
    entry.push(0xbc);
    entry.extend((ENTRY64 as u32).to_le_bytes());
    entry.push(0xea);
    entry.extend((ENTRY64 as u32).to_le_bytes());
    entry.extend([8, 0]);
    assert!(entry.len() <= GDT, "the entry code ends before the tables");
    image[..entry.len()].copy_from_slice(&entry);
    image.extend(code);
    guest(&image)
}

/// IA32_APIC_BASE, and the interrupt command register of x2APIC mode.
const APIC_BASE: u32 = 0x1b;
const ICR: u32 = 0x830;
/// Where the second vCPU starts: in real mode, at `SECOND >> 4:0`, with the other segments at 0.
pub const SECOND: u32 = 0x8000;

/// Commands for [`send_ipi`].
pub mod ipi {
    /// INIT: wait for a SIPI.
    pub const INIT: u32 = 0x4500;
    /// SIPI with the page of [`super::SECOND`].
    pub const STARTUP: u32 = 0x4600 | super::SECOND >> 12;
    /// A non-maskable interrupt.
    pub const NMI: u32 = 0x4400;
}

/// Code for [`guest64`] that sends an interprocessor interrupt in x2APIC mode.
pub fn send_ipi(destination: u32, command: u32) -> Vec<u8> {
    // mov ecx, ICR; mov edx, destination; mov eax, command; wrmsr
    let mut code = Vec::new();
    for (opcode, value) in [(0xb9, ICR), (0xba, destination), (0xb8, command)] {
        code.push(opcode);
        code.extend(value.to_le_bytes());
    }
    code.extend([0x0f, 0x30]);
    code
}

/// Code for [`guest64`] that starts the second vCPU with the 16-bit code `second` and goes on with
/// `first`, in x2APIC mode.
pub fn two_vcpus(first: &[u8], second: &[u8]) -> Vec<u8> {
    let mut code = Vec::new();
    for (at, chunk) in (SECOND..).step_by(8).zip(second.chunks(8)) {
        let mut bytes = [0x90; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        // mov rax, bytes; mov [at], rax
        code.extend([0x48, 0xb8]);
        code.extend(bytes);
        code.extend([0x48, 0x89, 0x04, 0x25]);
        code.extend(at.to_le_bytes());
    }
    // mov ecx, APIC_BASE; rdmsr; or ah, x2APIC and enable; wrmsr
    code.push(0xb9);
    code.extend(APIC_BASE.to_le_bytes());
    code.extend([0x0f, 0x32, 0x80, 0xcc, 0x0c, 0x0f, 0x30]);
    code.extend(send_ipi(1, ipi::INIT));
    code.extend(send_ipi(1, ipi::STARTUP));
    code.extend(first);
    code
}

/// `code`, again and again.
///
/// # Panics
/// When it is longer than a short jump.
pub fn for_ever(code: &[u8]) -> Vec<u8> {
    assert!(code.len() <= 126, "a loop of a short jump");
    [code, &[0xeb, -(code.len() as i8 + 2) as u8]].concat()
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
