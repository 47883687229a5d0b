//! What a file is, by its first bytes.
//!
//! Most bad kernels are files of another kind, given by mistake: each is called by its name, with
//! what to do about it.

use crate::image::{bad_initrd, bad_kernel};
use crate::{BootError, multiboot};

/// Bytes of a file that are looked at: past the volume descriptor of an ISO image.
pub(crate) const HEAD_LEN: usize = 0x8010;

/// Where `HdrS` stands in a Linux boot sector.
const LINUX_HEADER: usize = 0x202;
/// Where a boot sector has its signature.
const BOOT_SIGNATURE: usize = 0x1fe;

/// What gzip files begin with (RFC 1952).
pub(crate) const GZIP: &[u8] = &[0x1f, 0x8b];

/// Kernel formats that have a loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    BzImage,
    /// A 64-bit ELF file for this architecture.
    Elf64,
    /// A file with a multiboot header here: an ELF file or, by the header, anything.
    Multiboot(usize),
}

/// A kind of file, known by a magic number.
struct Kind {
    offset: usize,
    magic: &'static [u8],
    /// Completes "kernel NAME: ".
    what: &'static str,
    way_out: &'static str,
}

const fn kind(
    offset: usize,
    magic: &'static [u8],
    what: &'static str,
    way_out: &'static str,
) -> Kind {
    Kind { offset, magic, what, way_out }
}

const OTHER_ARCHITECTURE: &str = "use a kernel for x86-64";
const AS_INITRD: &str = "give it as --initrd, and a kernel as --kernel";
const AS_DISK: &str = "give it as --disk, and a kernel as --kernel";

/// What an initramfs, or an archive of one, can begin with.
const INITRAMFS: &[Kind] = &[
    kind(0, b"070701", "is a cpio archive, probably an initramfs", AS_INITRD),
    kind(0, b"070702", "is a cpio archive, probably an initramfs", AS_INITRD),
    kind(0, GZIP, "is gzip-compressed", "unpack it with gunzip first"),
    kind(0, b"\xfd7zXZ\0", "is xz-compressed", "unpack it with unxz first"),
    kind(0, &[0x28, 0xb5, 0x2f, 0xfd], "is zstd-compressed", "unpack it with unzstd first"),
    kind(0, &[0x02, 0x21, 0x4c, 0x18], "is lz4-compressed", "unpack it with unlz4 first"),
    kind(0, b"BZh", "is bzip2-compressed", "unpack it with bunzip2 first"),
    kind(0, &[0x5d, 0x00, 0x00], "is lzma-compressed", "unpack it with unlzma first"),
    kind(0, b"\x89LZO\0", "is lzo-compressed", "unpack it with lzop first"),
];

/// File systems that Linux recognises in an initial RAM disk.
const RAM_DISKS: &[Kind] = &[
    kind(0, b"hsqs", "is a squashfs file system", AS_DISK),
    kind(0, b"-rom1fs-", "is a romfs file system", AS_DISK),
    kind(0, &[0x45, 0x3d, 0xcd, 0x28], "is a cramfs file system", AS_DISK),
    kind(0x438, &[0x53, 0xef], "is an ext2, ext3 or ext4 file system", AS_DISK),
    kind(0x410, &[0x7f, 0x13], "is a minix file system", AS_DISK),
    kind(0x410, &[0x8f, 0x13], "is a minix file system", AS_DISK),
];

/// Files that are neither a kernel for this machine nor an initrd.
const OTHERS: &[Kind] = &[
    kind(0x38, b"ARM\x64", "is an ARM64 kernel (Image)", OTHER_ARCHITECTURE),
    kind(0x38, b"RSC\x05", "is a RISC-V kernel (Image)", OTHER_ARCHITECTURE),
    kind(4, b"zimg", "is a compressed EFI kernel of another architecture", OTHER_ARCHITECTURE),
    kind(0, &[0x27, 0x05, 0x19, 0x56], "is a U-Boot image", OTHER_ARCHITECTURE),
    kind(0, &[0xd0, 0x0d, 0xfe, 0xed], "is a device tree or FIT image", OTHER_ARCHITECTURE),
    kind(0, b"!<arch>\n", "is a Debian package or ar archive", "give a file from inside it"),
    kind(0, &[0xed, 0xab, 0xee, 0xdb], "is an RPM package", "give a file from inside it"),
    kind(0, b"PK\x03\x04", "is a zip archive", "give a file from inside it"),
    kind(257, b"ustar", "is a tar archive", "give a file from inside it"),
    kind(0, &[0x04, 0x22, 0x4d, 0x18], "is lz4-compressed", "unpack it with unlz4 first"),
    kind(0, b"QFI\xfb", "is a qcow2 disk image", AS_DISK),
    kind(0x8001, b"CD001", "is an ISO image", AS_DISK),
    kind(0, b"#!", "is a script", "give the file it makes or uses"),
];

fn has(head: &[u8], offset: usize, magic: &[u8]) -> bool {
    head.get(offset..).is_some_and(|rest| rest.starts_with(magic))
}

fn find<'a>(head: &[u8], kinds: &'a [Kind]) -> Option<&'a Kind> {
    kinds.iter().find(|kind| has(head, kind.offset, kind.magic))
}

/// The loader for a kernel that begins with `head`.
pub(crate) fn kernel(name: &str, head: &[u8]) -> Result<Format, BootError> {
    let bad = |what, way_out| Err(bad_kernel(name, what, way_out));
    if head.is_empty() {
        return bad("is empty", "copy or build it again");
    }
    if head.starts_with(b"\x7fELF") {
        return elf(name, head);
    }
    if has(head, LINUX_HEADER, b"HdrS") {
        return Ok(Format::BzImage);
    }
    if let Some(header) = multiboot::find(head) {
        return Ok(Format::Multiboot(header));
    }
    if let Some(kind) = find(head, OTHERS).or_else(|| find(head, INITRAMFS)) {
        return bad(kind.what, kind.way_out);
    }
    if head.len() < LINUX_HEADER + 4 {
        return bad("is too short to be a kernel", "copy or build it again");
    }
    if head.starts_with(b"MZ") {
        return bad("is an EFI program without a Linux boot header", KNOWN);
    }
    if let Some(kind) = find(head, RAM_DISKS) {
        return bad(kind.what, kind.way_out);
    }
    if has(head, BOOT_SIGNATURE, &[0x55, 0xaa]) {
        return bad("is a boot sector or disk image without a Linux boot header", KNOWN);
    }
    bad("is in no known kernel format", KNOWN)
}

/// The way out when a file is no kernel at all.
const KNOWN: &str =
    "give a Linux bzImage (vmlinuz), an ELF kernel with a PVH note, or a multiboot kernel";

/// Machine types of ELF that people have kernels for (System V ABI, e_machine).
const ELF_MACHINES: &[(u16, &str)] = &[
    (3, "32-bit x86"),
    (8, "MIPS"),
    (20, "32-bit PowerPC"),
    (21, "PowerPC"),
    (22, "s390"),
    (40, "32-bit ARM"),
    (183, "ARM64"),
    (243, "RISC-V"),
    (258, "LoongArch"),
];

fn elf(name: &str, head: &[u8]) -> Result<Format, BootError> {
    const CLASS: usize = 4;
    const CLASS_64: u8 = 2;
    const DATA: usize = 5;
    const LITTLE_ENDIAN: u8 = 1;
    const HEADER_LEN: usize = 64;
    const TYPE: usize = 16;
    const TYPE_RELOCATABLE: u16 = 1;
    const TYPE_CORE: u16 = 4;
    const MACHINE: usize = 18;
    const MACHINE_386: u16 = 3;
    const MACHINE_X86_64: u16 = 62;
    let bad = |what: String, way_out| Err(bad_kernel(name, what, way_out));
    if head.len() < HEADER_LEN {
        return bad(format!("is truncated: an ELF file of {} bytes", head.len()), COPY_AGAIN);
    }
    let half = |at: usize| match head[DATA] {
        LITTLE_ENDIAN => u16::from_le_bytes([head[at], head[at + 1]]),
        _ => u16::from_be_bytes([head[at], head[at + 1]]),
    };
    if head[DATA] == LITTLE_ENDIAN
        && [MACHINE_386, MACHINE_X86_64].contains(&half(MACHINE))
        && let Some(header) = multiboot::find(head)
    {
        return Ok(Format::Multiboot(header));
    }
    if half(MACHINE) != MACHINE_X86_64 {
        let found = half(MACHINE);
        let machine = ELF_MACHINES
            .iter()
            .find(|m| m.0 == found)
            .map_or_else(|| format!("machine type {found}"), |m| m.1.to_owned());
        return bad(format!("is an ELF file for {machine}"), OTHER_ARCHITECTURE);
    }
    if head[CLASS] != CLASS_64 || head[DATA] != LITTLE_ENDIAN {
        return bad("is a 32-bit or big-endian ELF file".into(), OTHER_ARCHITECTURE);
    }
    match half(TYPE) {
        TYPE_RELOCATABLE => bad("is an object file or kernel module".into(), KNOWN),
        TYPE_CORE => bad("is a core dump".into(), KNOWN),
        _ => Ok(Format::Elf64),
    }
}

/// The way out when a file ends too early.
pub(crate) const COPY_AGAIN: &str = "copy or build it again";

/// Checks that Linux will take an initrd that begins with `head`: the list is its own.
pub(crate) fn linux_initrd(name: &str, head: &[u8]) -> Result<(), BootError> {
    // Linux skips zeros before and between archives.
    let padded = head.starts_with(&[0; 4]);
    if padded || find(head, INITRAMFS).is_some() || find(head, RAM_DISKS).is_some() {
        return Ok(());
    }
    let what = if has(head, LINUX_HEADER, b"HdrS") {
        "is a kernel"
    } else if head.starts_with(b"\x7fELF") {
        "is an ELF file"
    } else {
        find(head, OTHERS).map_or("is in no format that linux knows", |kind| kind.what)
    };
    Err(bad_initrd(name, what, "give a cpio archive, compressed or not"))
}
