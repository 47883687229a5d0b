//! Kernel and initrd files of whoever wants to harm the monitor.

use boot::{Initrd, KernelImage, MemoryMap, Module, Payload};
use memory::GuestRam;

use crate::Input;

/// RAM of the guest; most files claim more.
const RAM: u64 = 32 << 20;

/// Where the protected-mode code of the made bzImage begins, and how long it is.
const CODE: usize = 0x800;
const CODE_LEN: usize = 0x1000;
/// Offset of the payload in it.
const PAYLOAD: usize = 0x400;

/// Fields of the made bzImage (Linux boot protocol, "Details of Header Fields"): offset and bytes.
const BZIMAGE: [(usize, &[u8]); 15] = [
    (0x000, b"MZ"),
    (0x1f1, &[3]),                      // setup_sects
    (0x1f4, &[0, 1, 0, 0]),             // syssize: 0x1000 bytes
    (0x1fe, &[0x55, 0xaa]),             // boot_flag
    (0x202, b"HdrS"),                   // header
    (0x206, &[0x0f, 0x02]),             // version 2.15
    (0x211, &[1]),                      // loadflags: LOADED_HIGH
    (0x22c, &[0xff, 0xff, 0xff, 0x7f]), // initrd_addr_max
    (0x230, &[0, 0, 0x20, 0]),          // kernel_alignment
    (0x234, &[1, 21]),                  // relocatable_kernel, min_alignment
    (0x236, &[0x7f, 0]),                // xloadflags: 64-bit entry
    (0x238, &[0xff, 7, 0, 0]),          // cmdline_size
    (0x248, &[0, 4, 0, 0]),             // payload_offset
    (0x258, &[0, 0, 0, 1, 0, 0, 0, 0]), // pref_address: 16 MiB
    (0x260, &[0, 0x60, 0, 0]),          // init_size
];

/// Fields of the made ELF file (System V ABI): header, a code segment at 1 MiB, a note segment
/// with the PVH entry point.
const ELF: [(usize, &[u8]); 12] = [
    (0x00, b"\x7fELF\x02\x01\x01"),
    (0x10, &[2, 0, 62, 0, 1]),               // executable, x86-64
    (0x20, &[64]),                           // e_phoff
    (0x36, &[56, 0, 2]),                     // e_phentsize, e_phnum
    (0x40, &[1, 0, 0, 0, 7]),                // PT_LOAD
    (0x48, &[0, 2]),                         // p_offset 0x200
    (0x58, &[0, 0, 0x10]),                   // p_paddr 1 MiB
    (0x60, &[0, 1, 0, 0, 0, 0, 0, 0, 0, 2]), // p_filesz, p_memsz
    (0x78, &[4]),                            // PT_NOTE
    (0x80, &[0, 3]),                         // p_offset 0x300
    (0x98, &[24, 0, 0, 0, 0, 0, 0, 0, 24]),  // p_filesz, p_memsz
    (0x300, b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0\x40\0\x10\0\0\0\0\0"),
];

/// The same for a multiboot kernel in a 32-bit ELF file, with the header behind its program header.
const MULTIBOOT_ELF: [(usize, &[u8]); 6] = [
    (0x00, b"\x7fELF\x01\x01\x01"),
    (0x10, &[2, 0, 3, 0, 1, 0, 0, 0, 0x10, 0, 0x10, 0, 0x34]), // executable, 386, entry, e_phoff
    (0x2a, &[32, 0, 1]),                                       // e_phentsize, e_phnum
    (0x34, &[1, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0x10, 0, 0, 0, 0x10]), // PT_LOAD at 1 MiB
    (0x44, &[0, 1, 0, 0, 0, 2]),                               // p_filesz, p_memsz
    (0x54, &[0x02, 0xb0, 0xad, 0x1b, 3, 0, 0, 0, 0xfb, 0x4f, 0x52, 0xe4]),
];

/// The same for one that is loaded by the address fields.
const MULTIBOOT_FLAT: [(usize, &[u8]); 2] = [
    (0x00, &[0x02, 0xb0, 0xad, 0x1b, 0, 0, 1, 0, 0xfe, 0x4f, 0x51, 0xe4]),
    // header, load, load end, bss end and entry addresses
    (0x0c, &[0, 0, 2, 0, 0, 0, 2, 0, 0, 4, 2, 0, 0, 8, 2, 0, 0x40, 0, 2, 0]),
];

/// What the compressed payloads of kernels begin with: gzip, LZ4, zstd, xz, lzma.
const COMPRESSED: [&[u8]; 5] = [
    &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3],
    &[0x02, 0x21, 0x4c, 0x18],
    &[0x28, 0xb5, 0x2f, 0xfd],
    &[0xfd, b'7', b'z', b'X', b'Z', 0],
    &[0x5d, 0, 0, 0x80, 0],
];

/// Opens the input as a kernel and as an initrd, loads it, and unpacks it. The file is the input
/// itself, or a small kernel with some bytes changed, since chance alone makes none.
///
/// # Panics
/// When a loader panics, when loading again ends elsewhere, or when something else than a kernel
/// is unpacked.
pub fn kernel_loader(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.byte();
    let cmdline = "x".repeat(usize::from(input.short() % 3000));
    let file = match kind % 8 {
        0 => input.rest().to_vec(),
        1 | 2 => bzimage(&mut input),
        3 | 4 => made(&mut input, &ELF),
        5 | 6 => made(&mut input, &MULTIBOOT_ELF),
        _ => made(&mut input, &MULTIBOOT_FLAT),
    };
    let initrd = Initrd::from_bytes(file.clone(), "fuzz").ok();
    let Ok(kernel) = KernelImage::from_bytes(file, "fuzz") else { return };
    let modules: Vec<Module> = (0..kind >> 5).map(|len| module(len, &cmdline)).collect();
    let payload = Payload { initrd: initrd.as_ref(), modules: &modules, cmdline: &cmdline };
    load(&kernel, &payload);
    load(&kernel, &Payload { initrd: None, ..payload });
    load(&kernel, &Payload { cmdline: &cmdline, ..Payload::default() });
    if let Ok(vmlinux) = kernel.vmlinux() {
        assert!(vmlinux.starts_with(b"\x7fELF"), "unpacked something else than a kernel");
    }
}

fn module(len: u8, args: &str) -> Module {
    Module::from_bytes(vec![len; 1 + usize::from(len) * 3000], "module", args).expect("no zeros")
}

fn load(kernel: &KernelImage, payload: &Payload<'_>) {
    let map = MemoryMap::new(RAM).expect("a legal size");
    let ram = GuestRam::new(&map.ram_layout()).expect("32 MiB");
    if let Ok(entry) = boot::load(&ram, kernel, payload, &map, 0) {
        // As a reset of the guest does.
        let again = boot::load(&ram, kernel, payload, &map, 0);
        assert_eq!(again.expect("loaded before").rip(), entry.rip());
    }
}

fn bzimage(input: &mut Input<'_>) -> Vec<u8> {
    let mut file = with_fields(CODE + CODE_LEN, &BZIMAGE);
    let patches = patches(input, 0x1f1..0x290);
    let magic = input.pick(&COMPRESSED);
    let payload = [magic, input.rest()].concat();
    let payload = &payload[..payload.len().min(CODE_LEN - PAYLOAD)];
    file[CODE + PAYLOAD..][..payload.len()].copy_from_slice(payload);
    file[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    apply(&mut file, &patches);
    file
}

/// A file of 1 KiB with these fields, changed and cut.
fn made(input: &mut Input<'_>, fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut file = with_fields(0x400, fields);
    let patches = patches(input, 0..0x318);
    apply(&mut file, &patches);
    let cut = usize::from(input.short());
    if cut & 1 == 1 {
        file.truncate(cut % 0x400);
    }
    file
}

fn with_fields(len: usize, fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut file = vec![0; len];
    for (at, bytes) in fields {
        file[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    file
}

/// Up to seven changed bytes in `range`.
fn patches(input: &mut Input<'_>, range: std::ops::Range<usize>) -> Vec<(usize, u8)> {
    let count = input.byte() % 8;
    let place = |short: u16| range.start + usize::from(short) % range.len();
    (0..count).map(|_| (place(input.short()), input.byte())).collect()
}

fn apply(file: &mut [u8], patches: &[(usize, u8)]) {
    for (at, value) in patches {
        file[*at] = *value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Otherwise the target would test no more than the checks at the front.
    #[test]
    fn the_kernels_as_made_can_be_loaded() {
        let input = || Input::new(&[0]);
        let files = [
            bzimage(&mut input()),
            made(&mut input(), &ELF),
            made(&mut input(), &MULTIBOOT_ELF),
            made(&mut input(), &MULTIBOOT_FLAT),
        ];
        for file in files {
            let kernel = KernelImage::from_bytes(file, "made").expect("a kernel");
            let map = MemoryMap::new(RAM).expect("a legal size");
            let ram = GuestRam::new(&map.ram_layout()).expect("32 MiB");
            boot::load(&ram, &kernel, &Payload::default(), &map, 0).expect("loads");
        }
    }
}
