//! Kernel and initrd files of whoever wants to harm the monitor.

use boot::{Initrd, KernelImage, MemoryMap};
use memory::GuestRam;

use crate::Input;

/// RAM of the guest; most files claim more.
const RAM: u64 = 32 << 20;

/// How much of the input's file is left to chance: nothing else than its first bytes would get
/// past the check of the magic numbers.
const BZIMAGE_MAGIC: [(usize, &[u8]); 4] = [
    // Linux boot protocol, "The Real-Mode Kernel Header": boot_flag, header, version 2.15.
    (0x1fe, &[0x55, 0xaa]),
    (0x202, b"HdrS"),
    (0x206, &[0x0f, 0x02]),
    // loadflags: LOADED_HIGH
    (0x211, &[0x01]),
];

/// ELF64, little-endian, version 1; executable for x86-64; program headers of 56 bytes.
const ELF_MAGIC: [(usize, &[u8]); 3] =
    [(0, b"\x7fELF\x02\x01\x01"), (16, &[2, 0, 62, 0, 1, 0, 0, 0]), (54, &[56, 0])];

/// Opens the input as a kernel and as an initrd, loads it, and unpacks it.
///
/// # Panics
/// When a loader panics, or writes to guest RAM outside what [`boot::load`] may.
pub fn kernel_loader(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.byte();
    let cmdline = "x".repeat(usize::from(input.short() % 5000));
    let mut file = input.rest().to_vec();
    match kind % 4 {
        0 => {}
        1 | 2 => overlay(&mut file, &BZIMAGE_MAGIC),
        _ => overlay(&mut file, &ELF_MAGIC),
    }
    let initrd = Initrd::from_bytes(file.clone(), "fuzz").ok();
    let Ok(kernel) = KernelImage::from_bytes(file, "fuzz") else { return };
    let map = MemoryMap::new(RAM).expect("a legal size");
    let ram = GuestRam::new(&map.ram_layout()).expect("32 MiB");
    if let Ok(entry) = boot::load(&ram, &kernel, initrd.as_ref(), &cmdline, &map, 0) {
        // Loading again, as a reset of the guest does, ends at the same place.
        let again = boot::load(&ram, &kernel, initrd.as_ref(), &cmdline, &map, 0);
        assert_eq!(again.expect("loaded before").rip(), entry.rip());
    }
    if let Ok(vmlinux) = kernel.vmlinux() {
        assert!(vmlinux.starts_with(b"\x7fELF"), "unpacked something else than a kernel");
    }
}

/// Puts the magic numbers into the file, which grows to hold them.
fn overlay(file: &mut Vec<u8>, magic: &[(usize, &[u8])]) {
    for (at, bytes) in magic {
        let end = at + bytes.len();
        if file.len() < end {
            file.resize(end, 0);
        }
        file[*at..end].copy_from_slice(bytes);
    }
}
