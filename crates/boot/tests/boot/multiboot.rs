//! Multiboot kernels, good and bad.

use boot::{BootError, EntryState, KernelImage, KernelKind, Module};
use x86::cr::{cr0, rflags};
use x86::gpr::{RAX, RBX};
use x86::segment::seg;

use crate::hostile::assert_clear;
use crate::loading::{assert_descriptor, expected_map, reset_state};
use crate::sample::{ELF_TEXT, Guest, MIB, elf, put};

const MAGIC: u32 = 0x1bad_b002;
/// Offset of the header in [`flat`].
const FLAT_HEADER: usize = 0x30;
/// Where [`flat`] is loaded.
const FLAT_ADDRESS: u32 = 0x20_0000;
/// Offset of the header in [`elf32`].
const ELF_HEADER: usize = 0x120;

fn put_words(file: &mut [u8], at: usize, words: &[u32]) {
    for (index, word) in words.iter().enumerate() {
        put(file, at + 4 * index, &word.to_le_bytes());
    }
}

fn put_header(file: &mut [u8], at: usize, flags: u32) {
    put_words(file, at, &[MAGIC, flags, 0_u32.wrapping_sub(MAGIC).wrapping_sub(flags)]);
}

/// A flat kernel of 4 KiB that is loaded by the address fields, all of it but the first 16 bytes,
/// with 64 KiB of bss.
pub fn flat() -> Vec<u8> {
    let mut file: Vec<u8> = (0..0x1000).map(|i| (i % 239) as u8).collect();
    put_header(&mut file, FLAT_HEADER, 1 << 16 | 3);
    let header = FLAT_ADDRESS + FLAT_HEADER as u32 - 16;
    let fields =
        [header, FLAT_ADDRESS, FLAT_ADDRESS + 0xff0, FLAT_ADDRESS + 0x1_0000, FLAT_ADDRESS + 0x100];
    put_words(&mut file, FLAT_HEADER + 12, &fields);
    file
}

fn flat_but(field: usize, value: u32) -> Vec<u8> {
    let mut file = flat();
    put_words(&mut file, FLAT_HEADER + field, &[value]);
    file
}

/// A 32-bit ELF kernel at 1 MiB that is linked for 0xc0000000, and a segment at 4 MiB.
pub fn elf32() -> Vec<u8> {
    let mut file: Vec<u8> = (0..0x2000).map(|i| (i % 233) as u8).collect();
    file[..0x1000].fill(0);
    put(&mut file, 0, b"\x7fELF\x01\x01\x01");
    put_words(&mut file, 0x10, &[3 << 16 | 2, 1, 0xc010_0040, 52]);
    put_words(&mut file, 0x28, &[32 << 16 | 52, 2]);
    put_words(&mut file, 52, &[1, 0x1000, 0xc010_0000, 0x10_0000, 0x800, 0x800, 7, 0x1000]);
    put_words(&mut file, 84, &[1, 0x1800, 0xc040_0123, 0x40_0123, 0x200, 0x4567, 6, 0x1000]);
    put_header(&mut file, ELF_HEADER, 3);
    file
}

fn elf32_but(at: usize, value: u32) -> Vec<u8> {
    let mut file = elf32();
    put_words(&mut file, at, &[value]);
    file
}

fn modules() -> Vec<Module> {
    let module = |len, name, args| Module::from_bytes(vec![0x77; len], name, args).unwrap();
    vec![module(0x1234, "a/b/first", "x=1 y"), module(0x1000, "second", ""), module(1, "3", "z")]
}

/// Everything that the information says, against the machine.
fn assert_information(guest: &Guest, info: u32, kernel_end: u64, modules: &[(usize, &str)]) {
    let field = |at: u64| guest.u32(u64::from(info) + at);
    assert_eq!(field(0), 0b10_0100_1101);
    assert_eq!(field(4), 639);
    assert_eq!(u64::from(field(8)), (guest.map.low_end() - MIB) >> 10);
    assert_eq!(guest.string(field(64)), "Ringfence");
    let mut map = Vec::new();
    let mut at = u64::from(field(48));
    let end = at + u64::from(field(44));
    while at < end {
        map.push((guest.u64(at + 4), guest.u64(at + 12), guest.u32(at + 20)));
        at += u64::from(guest.u32(at)) + 4;
    }
    assert_eq!(map, expected_map(guest));
    assert_eq!(field(20) as usize, modules.len());
    let mut free = kernel_end.max(MIB);
    for (index, &(len, string)) in modules.iter().enumerate() {
        let entry = u64::from(field(24)) + 16 * index as u64;
        let (start, end) = (u64::from(guest.u32(entry)), u64::from(guest.u32(entry + 4)));
        assert!(start.is_multiple_of(4096) && start >= free && end == start + len as u64);
        assert_eq!(guest.bytes(start, len), vec![0x77; len]);
        assert_eq!((guest.string(guest.u32(entry + 8)), guest.u32(entry + 12)), (string.into(), 0));
        free = end;
    }
}

#[test]
fn an_elf_kernel_is_loaded_whole() {
    for size in [32 * MIB, 512 * MIB, 6 << 30] {
        let guest = Guest::new(size);
        guest.ram.write(memory::Gpa(0x40_0000), &[0xee; 0x5000]).unwrap();
        let entry = guest.load_with_modules(elf32(), &modules(), "a b").unwrap();
        let EntryState::Multiboot { entry, info } = entry else { panic!("{entry:?}") };
        assert_eq!(entry, 0x10_0040, "physical, of a kernel that is linked for elsewhere");
        let file = elf32();
        assert_eq!(guest.bytes(0x10_0000, 0x800), file[0x1000..0x1800]);
        assert_eq!(guest.bytes(0x40_0123, 0x200), file[0x1800..0x1a00]);
        assert_eq!(guest.bytes(0x40_0323, 0x4367), vec![0; 0x4367]);
        let strings = [(0x1234, "first x=1 y"), (0x1000, "second"), (1, "3 z")];
        assert_information(&guest, info, 0x40_468a, &strings);
        assert_eq!(guest.string(guest.u32(u64::from(info) + 16)), "my_kernel a b");
        assert_eq!(guest.bytes(guest.rsdp, 8), b"RSD PTR ");
    }
}

#[test]
fn a_flat_kernel_is_loaded_by_its_addresses() {
    let guest = Guest::new(32 * MIB);
    guest.ram.write(memory::Gpa(FLAT_ADDRESS.into()), &[0xee; 0x1_1000]).unwrap();
    let entry = guest.load_with_modules(flat(), &[], "").unwrap();
    let EntryState::Multiboot { entry, info } = entry else { panic!("{entry:?}") };
    assert_eq!(entry, FLAT_ADDRESS + 0x100);
    let at = u64::from(FLAT_ADDRESS);
    assert_eq!(guest.bytes(at, 0xff0), flat()[0x10..]);
    assert_eq!(guest.bytes(at + 0xff0, 0xf010), vec![0; 0xf010]);
    assert_eq!(guest.bytes(at + 0x1_0000, 1), [0xee]);
    assert_information(&guest, info, at + 0x1_0000, &[]);
    assert_eq!(guest.string(guest.u32(u64::from(info) + 16)), "my_kernel");

    // Ends that are not given: the file's, and no bss.
    let mut file = flat_but(20, 0);
    put_words(&mut file, FLAT_HEADER + 24, &[0]);
    guest.load_with_modules(file.clone(), &[], "").unwrap();
    assert_eq!(guest.bytes(at, 0xff0), file[0x10..]);
}

#[test]
fn a_kernel_in_low_memory_gets_its_information_elsewhere() {
    let guest = Guest::new(32 * MIB);
    let load = |base: u32| {
        let mut file = flat();
        let header = base + FLAT_HEADER as u32 - 16;
        let fields = [header, base, base + 0xff0, base + 0x1_0000, base + 0x100];
        put_words(&mut file, FLAT_HEADER + 12, &fields);
        guest.load_with_modules(file, &modules(), "")
    };
    let strings = [(0x1234, "first x=1 y"), (0x1000, "second"), (1, "3 z")];
    for (base, low) in [(0x600, false), (0x1_0100, false), (0x2_0000, true), (0x8_fc00, true)] {
        let EntryState::Multiboot { info, .. } = load(base).unwrap() else { panic!() };
        assert_eq!(info < 0x10_0000, low, "{base:#x}");
        assert_information(&guest, info, u64::from(base) + 0x1_0000, &strings);
        assert_eq!(guest.bytes(u64::from(base) + 0x40, 0xfb0), flat()[0x50..]);
    }
    for base in [0x5ff, 0x8_fc01, 0xa_0000, 0xf_fff0] {
        let error = load(base).unwrap_err();
        assert_clear(&error);
        assert!(error.to_string().contains("outside of memory from 0x600 to"), "{error}");
    }
}

#[test]
fn an_initrd_is_the_first_module() {
    let guest = Guest::new(64 * MIB);
    let EntryState::Multiboot { info, .. } =
        guest.load(elf32(), Some(vec![0x77; 5000]), "quiet").unwrap()
    else {
        panic!()
    };
    assert_information(&guest, info, 0x40_468a, &[(5000, "initrd.img")]);
    assert_eq!(guest.string(guest.u32(u64::from(info) + 16)), "vmlinuz quiet");
}

#[test]
fn it_is_entered_in_protected_mode() {
    let guest = Guest::new(64 * MIB);
    let mut state = reset_state();
    let entry = guest.load_with_modules(elf32(), &[], "").unwrap();
    entry.apply(&mut state);
    assert_eq!((state.general.rip, entry.rip()), (0x10_0040, 0x10_0040));
    assert_eq!(state.general.gpr[RAX], 0x2bad_b002);
    assert_eq!(guest.u32(state.general.gpr[RBX]) & 1, 1);
    assert_eq!(state.general.rflags & (rflags::IF | rflags::VM), 0);
    assert_eq!(state.control.cr0 & (cr0::PE | cr0::PG), cr0::PE);
    let cs = state.segments.segment[seg::CS];
    assert!(cs.big() && !cs.long() && cs.is_readable() && (cs.base, cs.limit) == (0, u32::MAX));
    for segment in state.segments.segment.into_iter().chain([state.segments.tr]) {
        assert_descriptor(&guest, &state, segment);
    }
}

/// A 64-bit ELF file with a PVH note and a multiboot header is a multiboot kernel, as in QEMU.
#[test]
fn the_header_decides() {
    let mut file = elf();
    put(&mut file, 0x18, &(ELF_TEXT.address + 4).to_le_bytes());
    let kind = |file: &Vec<u8>| KernelImage::from_bytes(file.clone(), "k").unwrap().kind();
    assert_eq!(kind(&file), KernelKind::Pvh);
    put_header(&mut file, 0xf00, 0);
    assert_eq!(kind(&file), KernelKind::Multiboot);
    let guest = Guest::new(64 * MIB);
    assert_eq!(guest.load_with_modules(file.clone(), &[], "").unwrap().rip(), MIB + 4);
    assert_eq!(KernelImage::from_bytes(file.clone(), "k").unwrap().vmlinux().unwrap(), file);

    // Whole in the first 8 KiB, aligned, with the right sum.
    let mut file = elf();
    put_header(&mut file, 0x1ff4, 0);
    assert_eq!(kind(&file), KernelKind::Multiboot);
    for (at, flags) in [(0x1ff8, 0), (0x1fe4, 1 << 16), (0xf02, 0)] {
        let mut file = elf();
        file.resize(0x3000, 0);
        put_header(&mut file, at, flags);
        assert_eq!(kind(&file), KernelKind::Pvh, "{at:#x}");
    }
    let mut file = elf();
    put_header(&mut file, 0xf00, 0);
    put(&mut file, 0xf08, &[0]);
    assert_eq!(kind(&file), KernelKind::Pvh);
}

/// The file as Debian ships the hypervisor.
#[test]
fn a_kernel_may_be_compressed() {
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;
    let pack = |bytes: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let kernel = KernelImage::from_bytes(pack(&elf32()), "xen.gz").unwrap();
    assert_eq!((kernel.kind(), kernel.name()), (KernelKind::Multiboot, "xen.gz"));
    assert_eq!(kernel.vmlinux().unwrap(), elf32());
    let refused = |bytes: Vec<u8>, cause: &str| {
        let error = KernelImage::from_bytes(bytes, "xen.gz").unwrap_err();
        assert_clear(&error);
        assert!(error.to_string().contains(cause), "{error}");
    };
    refused(pack(&crate::sample::initrd(600)), "cpio archive");
    refused(pack(&pack(&elf32())), "gzip-compressed");
    let packed = pack(&elf32());
    refused(packed[..packed.len() / 2].to_vec(), "damaged");
}

#[test]
fn bad_multiboot_kernels_are_refused() {
    let with_flags = |flags| {
        let mut file = elf32();
        put_header(&mut file, ELF_HEADER, flags);
        file
    };
    let mut headless = vec![0; 0x1000];
    put_header(&mut headless, 0, 3);
    for (file, cause) in [
        (with_flags(7), "requires 0x4"),
        (with_flags(0x8003), "requires 0x8000"),
        (headless, "no ELF file"),
        (flat_but(12, FLAT_ADDRESS - 1), "in front of the file"),
        (flat_but(16, FLAT_ADDRESS - 0x100), "in front of the file"),
        (flat_but(20, FLAT_ADDRESS - 1), "ends before it begins"),
        (flat_but(20, FLAT_ADDRESS + 0xff1), "is truncated"),
        (flat_but(20, u32::MAX), "is truncated"),
        (flat_but(24, FLAT_ADDRESS + 0xfef), "bss ends before"),
        (flat_but(24, u32::MAX), "outside of memory"),
        (flat_but(28, FLAT_ADDRESS - 1), "outside of what it loads"),
        (flat_but(28, FLAT_ADDRESS + 0xff0), "outside of what it loads"),
        (elf32_but(0x18, 0x1234), "outside of what it loads"),
        (elf32_but(0x1c, u32::MAX), "is truncated"),
        (elf32_but(52 + 12, u32::MAX), "outside of memory"),
        (elf32_but(52 + 16, 0x801), "more bytes in the file"),
        (elf32_but(52 + 20, 0x40_0000), "overlapping"),
    ] {
        let error = Guest::new(64 * MIB).load(file, None, "").unwrap_err();
        assert_clear(&error);
        assert!(error.to_string().contains(cause), "{error}");
    }
    let error = KernelImage::from_bytes(flat(), "flat").unwrap().vmlinux().unwrap_err();
    assert!(error.to_string().contains("no ELF file"), "{error}");
}

#[test]
fn what_does_not_fit_says_what_does() {
    let load = |size, modules: &[Module], cmdline: &str| {
        Guest::new(size).load_with_modules(elf32(), modules, cmdline).map(|_| ())
    };
    let big = [Module::from_bytes(vec![1; 20 * MIB as usize], "big", "").unwrap()];
    let error = load(16 * MIB, &big, "").unwrap_err();
    assert_clear(&error);
    assert!(error.to_string().contains("module big") && error.to_string().contains("--memory 25M"));
    load(25 * MIB, &big, "").unwrap();
    let error = load(64 * MIB, &[], &"x".repeat(0x1_0000)).unwrap_err();
    assert!(matches!(error, BootError::MultibootTooLong { .. }), "{error}");
    assert_clear(&error);
    let error = load(64 * MIB, &[], "a\0").unwrap_err();
    assert!(matches!(error, BootError::CmdlineZero(1)), "{error}");
}

#[test]
fn bad_modules_are_refused() {
    for error in [
        Module::from_bytes(Vec::new(), "m", "").unwrap_err(),
        Module::from_bytes(vec![1], "m", "a\0b").unwrap_err(),
        Module::open(std::fs::File::open("/dev/null").unwrap(), "m", "").unwrap_err(),
    ] {
        assert_clear(&error);
        assert!(matches!(error, BootError::BadModule { .. }), "{error}");
    }
    let error = Guest::new(64 * MIB).load_with_modules(elf(), &modules(), "").unwrap_err();
    assert_clear(&error);
    assert!(error.to_string().starts_with("module a/b/first: kernel boot/my kernel is no"));
}
