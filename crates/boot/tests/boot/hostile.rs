//! Bad kernels, initrds and settings: one clear line, never a panic.

use std::fs::File;
use std::io::Write;

use boot::{BootError, EntryState, Initrd, KernelImage, Payload};

use crate::multiboot;
use crate::sample::{
    ELF_DATA, ELF_NOTE, ELF_TEXT, Guest, MIB, Program, Random, bzimage, bzimage_but, elf,
    elf_parts, field, initrd, note, put, pvh_notes,
};

/// The message is one line that names the file and a way out.
pub fn assert_clear(error: &BootError) {
    let text = error.to_string();
    assert!(!text.contains('\n') && text.contains(';'), "{text}");
    assert!(text.starts_with(|c: char| c.is_ascii_lowercase()), "{text}");
}

#[track_caller]
fn assert_refused(kernel: Vec<u8>, cause: &str) {
    let error = Guest::new(64 * MIB).load(kernel, None, "").unwrap_err();
    let text = error.to_string();
    assert_clear(&error);
    assert!(text.contains("vmlinuz") && text.contains(cause), "{text}");
}

/// A file of 64 KiB that has `magic` at `offset`.
fn file_with(offset: usize, magic: &[u8]) -> Vec<u8> {
    let mut file = vec![0x11; 64 << 10];
    put(&mut file, offset, magic);
    file
}

#[test]
fn foreign_files_are_called_by_their_names() {
    for (offset, magic, cause) in [
        (0, &b"\x1f\x8b\x08"[..], "gzip-compressed"),
        (0, b"\xfd7zXZ\0", "xz-compressed"),
        (0, b"\x28\xb5\x2f\xfd", "zstd-compressed"),
        (0, b"070701", "cpio archive"),
        (0, b"!<arch>\n", "Debian package"),
        (0, b"\xed\xab\xee\xdb", "RPM package"),
        (0, b"QFI\xfb", "qcow2"),
        (0, b"#!/bin/sh\n", "script"),
        (0, b"MZ", "EFI program"),
        (0, b"hsqs", "squashfs"),
        (0x38, b"ARM\x64", "ARM64"),
        (0x38, b"RSC\x05", "RISC-V"),
        (0x438, b"\x53\xef", "ext4"),
        (0x8001, b"CD001", "ISO"),
        (0x1fe, b"\x55\xaa", "boot sector"),
        (257, b"ustar", "tar archive"),
        (0, b"hello", "no known kernel format"),
    ] {
        assert_refused(file_with(offset, magic), cause);
    }
    assert_refused(Vec::new(), "is empty");
    assert_refused(b"hello".to_vec(), "too short");
}

#[test]
fn what_is_no_regular_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let open = || File::open(directory.path()).unwrap();
    let kernel = KernelImage::open(open(), "boot").unwrap_err();
    assert_eq!(kernel.to_string(), "kernel boot: is a directory; give the kernel's own file");
    let initrd = Initrd::open(open(), "boot").unwrap_err();
    assert_eq!(initrd.to_string(), "initrd boot: is a directory; give the initramfs's own file");
    let device = KernelImage::open(File::open("/dev/null").unwrap(), "null").unwrap_err();
    assert!(device.to_string().contains("not a regular file"), "{device}");
}

#[test]
fn a_file_that_shrinks_is_an_error() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bzimage()).unwrap();
    let kernel = KernelImage::open(file.try_clone().unwrap(), "vmlinuz").unwrap();
    file.set_len(0x1000).unwrap();
    let guest = Guest::new(64 * MIB);
    let error = boot::load(&guest.ram, &kernel, &Payload::default(), &guest.map, 0).unwrap_err();
    assert!(matches!(error, BootError::Read { .. }), "{error}");
    assert_clear(&error);
}

#[test]
fn bad_bzimages_are_refused() {
    assert_refused(bzimage_but(field::VERSION, &0x020b_u16.to_le_bytes()), "protocol 2.11");
    assert_refused(bzimage_but(field::LOAD_FLAGS, &[0]), "zImage");
    assert_refused(bzimage_but(field::ALIGNMENT, &3_u32.to_le_bytes()), "damaged header");
    for address in [0_u64, 0xf_ffff, 0xb000_0000, u64::MAX] {
        assert_refused(bzimage_but(field::PREFERRED, &address.to_le_bytes()), "load address");
    }
    let whole = bzimage();
    for (len, cause) in [
        (0x210, "setup header"),
        (0x260, "setup header"),
        (0x400, "setup code"),
        (whole.len() - 16, "is truncated: "),
    ] {
        assert_refused(whole[..len].to_vec(), cause);
    }
}

#[test]
fn a_kernel_that_does_not_fit_says_what_does() {
    let load = |kernel, size| Guest::new(size).load(kernel, None, "").unwrap_err();
    let error = load(bzimage(), 16 * MIB).to_string();
    assert_eq!(
        error,
        "kernel vmlinuz does not fit into 16 MiB of guest memory; use --memory 24M or more"
    );
    assert!(Guest::new(24 * MIB).load(bzimage(), None, "").is_ok());

    let far = Program { address: 0x4000_0000, ..ELF_TEXT };
    let entry = note(b"Xen\0", 18, &0x4000_0000_u32.to_le_bytes());
    let error = load(elf_parts(&[far, ELF_NOTE], &entry), 64 * MIB);
    assert!(error.to_string().contains("--memory 1025M"), "{error}");

    // No guest has RAM there.
    let huge = bzimage_but(field::INIT_SIZE, &u32::MAX.to_le_bytes());
    for size in [64 * MIB, 8 << 30] {
        let error = load(huge.clone(), size);
        assert!(error.to_string().contains("lower physical addresses"), "{error}");
    }
}

#[test]
fn an_initrd_that_does_not_fit_says_what_does() {
    let big = initrd(20 * MIB as usize);
    let error = Guest::new(40 * MIB).load(bzimage(), Some(big.clone()), "").unwrap_err();
    assert_eq!(
        error.to_string(),
        "initrd initrd.img does not fit into 40 MiB of guest memory; use --memory 44M or more"
    );
    assert!(Guest::new(44 * MIB).load(bzimage(), Some(big.clone()), "").is_ok());

    let limited = bzimage_but(field::INITRD_ADDR_MAX, &0x01ff_ffff_u32.to_le_bytes());
    let error = Guest::new(512 * MIB).load(limited, Some(big), "").unwrap_err();
    assert!(matches!(error, BootError::InitrdTooBig { limit: 0x80_0000, .. }), "{error}");
    assert_clear(&error);

    // Sparse, and larger than the memory below 4 GiB.
    let file = tempfile::tempfile().unwrap();
    file.set_len(8 << 30).unwrap();
    let huge = Initrd::open(file, "huge").unwrap();
    let guest = Guest::new(4 << 30);
    for kernel in [bzimage(), elf()] {
        let kernel = KernelImage::from_bytes(kernel, "k").unwrap();
        let payload = Payload { initrd: Some(&huge), ..Payload::default() };
        let error = boot::load(&guest.ram, &kernel, &payload, &guest.map, 0).unwrap_err();
        assert!(matches!(error, BootError::InitrdTooBig { .. }), "{error}");
    }
}

#[test]
fn linux_gets_only_initrds_that_it_knows() {
    let load = |bytes| Guest::new(64 * MIB).load(bzimage(), Some(bytes), "").map(|_| ());
    for (bytes, cause) in [
        (Vec::new(), "is empty"),
        (bzimage(), "is a kernel"),
        (elf(), "is an ELF file"),
        (file_with(0, b"QFI\xfb"), "qcow2"),
        (b"hello".to_vec(), "no format that linux knows"),
    ] {
        let error = load(bytes).unwrap_err();
        assert_clear(&error);
        assert!(error.to_string().contains(cause), "{error}");
    }
    let magics: [&[u8]; 6] =
        [b"070701", b"\0\0\0\0", b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"hsqs"];
    for magic in magics {
        load(file_with(0, magic)).unwrap();
    }
    // Other kernels may take anything.
    Guest::new(64 * MIB).load(elf(), Some(bzimage()), "").unwrap();
}

#[test]
fn command_lines_are_checked() {
    let load = |kernel, cmdline: &str| Guest::new(64 * MIB).load(kernel, None, cmdline);
    assert!(load(bzimage(), &"x".repeat(2047)).is_ok());
    let error = load(bzimage(), &"x".repeat(2048)).unwrap_err();
    assert!(matches!(error, BootError::CmdlineTooLong { len: 2048, limit: 2047, .. }), "{error}");
    assert_clear(&error);
    assert!(load(elf(), &"x".repeat(65535)).is_ok());
    let error = load(elf(), &"x".repeat(65536)).unwrap_err();
    assert!(matches!(error, BootError::CmdlineTooLong { limit: 65535, .. }), "{error}");
    let error = load(bzimage(), "a\0b").unwrap_err();
    assert!(matches!(error, BootError::CmdlineZero(1)), "{error}");
    assert_clear(&error);
    let unlimited = bzimage_but(field::CMDLINE_SIZE, &u32::MAX.to_le_bytes());
    assert!(load(unlimited, &"x".repeat(65536)).is_err());
}

/// The sample with other program headers.
fn elf_with(text: Program, data: Program) -> Vec<u8> {
    elf_parts(&[text, data, ELF_NOTE], &pvh_notes())
}

fn elf_but(at: usize, value: &[u8]) -> Vec<u8> {
    let mut file = elf();
    put(&mut file, at, value);
    file
}

#[test]
fn elf_files_for_other_machines_are_refused() {
    assert_refused(elf()[..40].to_vec(), "truncated");
    assert_refused(elf_but(0x12, &183_u16.to_le_bytes()), "ARM64");
    assert_refused(elf_but(0x12, &0x7777_u16.to_le_bytes()), "machine type 30583");
    assert_refused(elf_but(4, &[1]), "32-bit");
    assert_refused(elf_but(0x10, &1_u16.to_le_bytes()), "kernel module");
    assert_refused(elf_but(0x10, &4_u16.to_le_bytes()), "core dump");
    let mut i386 = elf_but(4, &[1]);
    put(&mut i386, 0x12, &3_u16.to_le_bytes());
    assert_refused(i386, "32-bit x86");
}

#[test]
fn an_elf_needs_a_pvh_note() {
    let notes = |notes: &[u8]| elf_parts(&[ELF_TEXT, ELF_NOTE], notes);
    for bad in [
        note(b"GNU\0", 18, &[0; 8]),
        note(b"Xen\0", 17, &[0; 8]),
        note(b"Xen\0", 18, &[0; 3]),
        [u32::MAX.to_le_bytes(); 3].concat(),
    ] {
        assert_refused(notes(&bad), "XEN_ELFNOTE_PHYS32_ENTRY");
    }
    assert_refused(elf_parts(&[ELF_TEXT], &[]), "XEN_ELFNOTE_PHYS32_ENTRY");
    for outside in [0, MIB - 1, MIB + ELF_TEXT.file_len, u64::MAX] {
        assert_refused(notes(&note(b"Xen\0", 18, &outside.to_le_bytes())), "outside of what it");
    }
    assert!(KernelImage::from_bytes(notes(&note(b"Xen\0", 18, &[0, 0, 16, 0])), "").is_ok());
}

#[test]
fn bad_segments_are_refused() {
    let text = |change: fn(&mut Program)| {
        let mut text = ELF_TEXT;
        change(&mut text);
        elf_with(text, ELF_DATA)
    };
    assert_refused(text(|p| p.address = 0x1000), "outside of memory");
    assert_refused(text(|p| p.address = u64::MAX - 10), "outside of memory");
    assert_refused(text(|p| p.address = 0xffff_ffff_8100_0000), "outside of memory");
    assert_refused(text(|p| p.address = 4 << 30), "outside of memory");
    assert_refused(text(|p| p.memory_len = u64::MAX), "outside of memory");
    assert_refused(text(|p| p.memory_len = 1 << 40), "outside of memory");
    assert_refused(text(|p| p.memory_len = 0x7ff), "more bytes in the file");
    assert_refused(text(|p| p.offset = u64::MAX), "is truncated");
    assert_refused(text(|p| p.offset = 0x2000), "is truncated");
    assert_refused(text(|p| p.memory_len = 2 * MIB), "overlapping");
    assert_refused(elf_with(ELF_DATA, ELF_DATA), "overlapping");
    assert_refused(elf_parts(&[ELF_NOTE], &pvh_notes()), "nothing to load");
    assert_refused(elf_but(0x36, &[55]), "odd size");
    assert_refused(elf_but(0x38, &u16::MAX.to_le_bytes()), "65535 program headers");
    assert_refused(elf_but(0x20, &u64::MAX.to_le_bytes()), "is truncated");
    let note = Program { file_len: u64::MAX, ..ELF_NOTE };
    assert_refused(elf_parts(&[ELF_TEXT, note], &pvh_notes()), "is truncated");
}

/// Changes some bytes of a file: to extreme values, at random, or cutting the file short.
fn mutate(random: &mut Random, file: &mut Vec<u8>, hot: std::ops::Range<usize>) {
    for _ in 0..=random.below(4) {
        let at = match random.below(4) {
            0 => random.below(file.len()),
            _ => hot.start + random.below(hot.len()),
        };
        let len = 1 << random.below(4);
        let value = match random.below(4) {
            0 => 0,
            1 => u64::MAX,
            2 => random.next(),
            _ => 1 << random.below(64),
        };
        for (byte, value) in file.iter_mut().skip(at).zip(value.to_le_bytes()).take(len) {
            *byte = value;
        }
    }
    if random.below(16) == 0 {
        file.truncate(random.below(file.len()));
    }
}

/// Loads mutations of `file`, and checks that the good ones are where they may be.
fn load_mutations(file: &[u8], hot: std::ops::Range<usize>, seed: u64) -> (u32, u32) {
    let mut random = Random(seed);
    let guest = Guest::new(64 * MIB);
    let (mut good, mut bad) = (0, 0);
    for round in 0..4000 {
        let mut file = file.to_vec();
        mutate(&mut random, &mut file, hot.clone());
        let unpacked = KernelImage::from_bytes(file.clone(), "vmlinuz").and_then(|k| k.vmlinux());
        if let Err(error) = unpacked {
            assert_clear(&error);
        }
        match guest.load(file, Some(initrd(10_000)), "console=ttyS0") {
            Ok(EntryState::Linux64 { entry, boot_params }) => {
                good += 1;
                let initrd = u64::from(guest.u32(boot_params + 0x218));
                let init_size = u64::from(guest.u32(boot_params + field::INIT_SIZE as u64));
                assert!(entry >= MIB + 0x200 && initrd + 10_000 <= 64 * MIB, "round {round}");
                assert!(initrd >= entry - 0x200 + init_size || entry == MIB + 0x200);
                assert_eq!(guest.bytes(initrd, 6), b"070701");
            }
            Ok(EntryState::Linux32 { entry, boot_params }) => {
                good += 1;
                let initrd = u64::from(guest.u32(u64::from(boot_params) + 0x218));
                assert!(u64::from(entry) >= MIB && initrd + 10_000 <= 64 * MIB, "round {round}");
                assert_eq!(guest.bytes(initrd, 6), b"070701");
            }
            Ok(EntryState::Pvh { entry, start_info }) => {
                good += 1;
                let module = guest.u64(u64::from(start_info) + 16);
                assert!((MIB..64 * MIB).contains(&u64::from(entry)), "round {round}");
                assert_eq!(guest.bytes(guest.u64(module), 6), b"070701");
            }
            Ok(EntryState::Multiboot { entry, info }) => {
                good += 1;
                let module = u64::from(guest.u32(u64::from(info) + 24));
                assert!((0x600..64 * MIB).contains(&u64::from(entry)), "round {round}");
                assert_eq!(guest.bytes(u64::from(guest.u32(module)), 6), b"070701");
            }
            Ok(other) => panic!("{other:?}"),
            Err(error) => {
                bad += 1;
                assert_clear(&error);
            }
        }
        assert_eq!(guest.bytes(guest.rsdp, 8), b"RSD PTR ", "round {round}");
    }
    (good, bad)
}

#[test]
fn mutated_kernels_never_panic() {
    let files = [
        (bzimage(), 0x1f0..0x270),
        (elf(), 0..0x240),
        (multiboot::elf32(), 0..0x140),
        (multiboot::flat(), 0..0x60),
    ];
    for (file, hot) in files {
        let (good, bad) = load_mutations(&file, hot, 0x5eed_0001);
        assert!(good > 100 && bad > 100, "the mutations test nothing: {good} good, {bad} bad");
    }
}

#[test]
fn random_files_never_panic() {
    let mut random = Random(0x5eed_0002);
    for _ in 0..500 {
        let mut file: Vec<u8> = (0..random.below(0x3000)).map(|_| random.next() as u8).collect();
        let magics: [(usize, &[u8]); 4] =
            [(0x202, b"HdrS"), (0, b"\x7fELF\x02\x01"), (0, b"MZ"), (0, b"")];
        let (at, magic) = magics[random.below(4)];
        if file.len() > at + magic.len() {
            put(&mut file, at, magic);
        }
        if let Err(error) = KernelImage::from_bytes(file, "noise") {
            assert_clear(&error);
        }
    }
}
