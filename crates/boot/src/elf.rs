//! ELF files of kernels: header, program headers, what is loaded (System V ABI, chapter 5).
//!
//! [`ElfFile::parse`] reads both classes, 32 and 64 bits. [`ElfFile::segments`] checks what is to
//! be loaded against where a boot protocol lets it lie; [`load_segments`] loads it. Neighbours:
//! `pvh` and `multiboot`, which say where a kernel is entered.

use std::ops::Range;

use memory::GuestRam;

use crate::image::bad_kernel;
use crate::recognise::COPY_AGAIN;
use crate::source::{Source, zero};
use crate::{BootError, MemoryMap};

/// Loadable segment.
const PT_LOAD: u32 = 1;
/// Notes.
pub(crate) const PT_NOTE: u32 = 4;
/// Program headers of a plausible kernel; Linux has five.
const MAX_PROGRAM_HEADERS: u16 = 256;
/// The RAM that every machine has below 4 GiB above the area of ROMs.
pub(crate) const HIGH: Range<u64> = MemoryMap::HIGH_MEMORY..MemoryMap::ECAM;

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Where the fields of the two classes are.
struct Class {
    /// Fields of the file header: program header table, entry point.
    table: usize,
    entry: usize,
    /// Bytes of a program header, and where the file header has that number; the count follows it.
    program_header: usize,
    entry_size: usize,
    /// Reads an address or offset.
    word: fn(&[u8], usize) -> u64,
    /// Fields of a program header: offset, virtual and physical address, bytes in the file and in
    /// memory, alignment.
    fields: [usize; 6],
}

const CLASS_32: Class = Class {
    table: 0x1c,
    entry: 0x18,
    program_header: 32,
    entry_size: 0x2a,
    word: |bytes, at| u64::from(u32_at(bytes, at)),
    fields: [4, 8, 12, 16, 20, 28],
};

const CLASS_64: Class = Class {
    table: 0x20,
    entry: 0x18,
    program_header: 56,
    entry_size: 0x36,
    word: u64_at,
    fields: [8, 16, 24, 32, 40, 48],
};

/// A program header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProgramHeader {
    pub(crate) kind: u32,
    pub(crate) offset: u64,
    pub(crate) virtual_address: u64,
    pub(crate) address: u64,
    pub(crate) file_len: u64,
    pub(crate) memory_len: u64,
    pub(crate) align: u64,
}

/// The headers of an ELF file.
#[derive(Debug)]
pub(crate) struct ElfFile {
    /// e_entry, a virtual address.
    pub(crate) entry: u64,
    pub(crate) headers: Vec<ProgramHeader>,
}

/// Something to load, in RAM below 4 GiB: sums of its fields do not overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) address: u64,
    pub(crate) file_len: u64,
    pub(crate) memory_len: u64,
}

impl Segment {
    /// First address behind it.
    pub(crate) fn end(&self) -> u64 {
        self.address + self.memory_len
    }

    /// Whether `address` lies in what comes from the file.
    pub(crate) fn loads(&self, address: u64) -> bool {
        (self.address..self.address + self.file_len).contains(&address)
    }
}

impl ElfFile {
    /// Reads the headers of a file that begins with `head`, a whole header of a little-endian ELF
    /// file.
    pub(crate) fn parse(source: &Source, head: &[u8]) -> Result<Self, BootError> {
        const CLASS: usize = 4;
        let class = if head[CLASS] == 1 { CLASS_32 } else { CLASS_64 };
        let name = source.name();
        let offset = (class.word)(head, class.table);
        let count = u16_at(head, class.entry_size + 2);
        if count != 0 && usize::from(u16_at(head, class.entry_size)) != class.program_header {
            return Err(bad_kernel(name, "has program headers of an odd size", COPY_AGAIN));
        }
        if count > MAX_PROGRAM_HEADERS {
            let cause = format!("has {count} program headers, more than {MAX_PROGRAM_HEADERS}");
            return Err(bad_kernel(name, cause, COPY_AGAIN));
        }
        let mut table = vec![0; usize::from(count) * class.program_header];
        check_in_file(source, offset, table.len() as u64, "program headers")?;
        source.read_at(offset, &mut table)?;
        let header = |bytes: &[u8]| {
            let [offset, virtual_address, address, file_len, memory_len, align] =
                class.fields.map(|at| (class.word)(bytes, at));
            let kind = u32_at(bytes, 0);
            ProgramHeader { kind, offset, virtual_address, address, file_len, memory_len, align }
        };
        let headers = table.chunks_exact(class.program_header).map(header).collect();
        Ok(Self { entry: (class.word)(head, class.entry), headers })
    }

    /// What is loaded, by ascending address: within `room` and without overlaps.
    pub(crate) fn segments(
        &self,
        source: &Source,
        room: &[Range<u64>],
    ) -> Result<Vec<Segment>, BootError> {
        let mut segments = Vec::new();
        for header in self.loadable() {
            check_in_file(source, header.offset, header.file_len, "segment")?;
            let &ProgramHeader { offset, address, file_len, memory_len, .. } = header;
            segments.push(segment(source, (offset, address, file_len, memory_len), room)?);
        }
        segments.sort_by_key(|s| s.address);
        let name = source.name();
        if segments.is_empty() {
            return Err(bad_kernel(name, "is an ELF file with nothing to load", COPY_AGAIN));
        }
        if let Some(pair) = segments.windows(2).find(|pair| pair[0].end() > pair[1].address) {
            let cause = format!("has overlapping segments at {:#x}", pair[1].address);
            return Err(bad_kernel(name, cause, COPY_AGAIN));
        }
        Ok(segments)
    }

    /// Headers of segments that are not empty.
    pub(crate) fn loadable(&self) -> impl Iterator<Item = &ProgramHeader> {
        self.headers.iter().filter(|h| h.kind == PT_LOAD && (h.memory_len | h.file_len) != 0)
    }
}

pub(crate) fn check_in_file(
    source: &Source,
    offset: u64,
    len: u64,
    what: &str,
) -> Result<(), BootError> {
    match offset.checked_add(len) {
        Some(end) if end <= source.len() => Ok(()),
        _ => {
            let cause = format!(
                "is truncated: {what} at {offset:#x}+{len:#x} in a file of {:#x} bytes",
                source.len()
            );
            Err(bad_kernel(source.name(), cause, COPY_AGAIN))
        }
    }
}

/// A segment of (offset in the file, address, bytes in the file, bytes in memory) that lies in one
/// of the ranges of `room`.
pub(crate) fn segment(
    source: &Source,
    (offset, address, file_len, memory_len): (u64, u64, u64, u64),
    room: &[Range<u64>],
) -> Result<Segment, BootError> {
    let name = source.name();
    if file_len > memory_len {
        let cause =
            format!("has a segment at {address:#x} with more bytes in the file than in memory");
        return Err(bad_kernel(name, cause, COPY_AGAIN));
    }
    let end = address.checked_add(memory_len);
    let fits = |r: &Range<u64>| r.start <= address && end.is_some_and(|end| end <= r.end);
    if !room.iter().any(fits) {
        let room: Vec<_> =
            room.iter().map(|r| format!("from {:#x} to {:#x}", r.start, r.end)).collect();
        let cause = format!(
            "wants a segment at {address:#x}+{memory_len:#x}, outside of memory {}",
            room.join(" and ")
        );
        return Err(bad_kernel(name, cause, "link it for physical addresses in there"));
    }
    Ok(Segment { offset, address, file_len, memory_len })
}

/// Copies segments to RAM and clears what the file has no bytes for.
pub(crate) fn load_segments(
    segments: &[Segment],
    source: &Source,
    ram: &GuestRam,
) -> Result<(), BootError> {
    for segment in segments {
        source.copy_to_ram(segment.offset, segment.file_len, ram, segment.address)?;
        let file_end = segment.address + segment.file_len;
        zero(ram, file_end, segment.end() - file_end)?;
    }
    Ok(())
}
