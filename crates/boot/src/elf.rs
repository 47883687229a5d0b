//! ELF kernels with a PVH entry point (Xen `docs/misc/pvh.pandoc`, `start_info.h`; System V ABI).

use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use memory::Gpa;
use vm_memory::ByteValued;

use crate::entry::{self, EntryState};
use crate::image::bad_kernel;
use crate::load::{Request, check_end, place_initrd};
use crate::recognise::COPY_AGAIN;
use crate::source::{Source, zero};
use crate::{BootError, MemoryMap, low};

/// Bytes of a program header.
const PROGRAM_HEADER: usize = 56;
/// Program headers of a plausible kernel; Linux has five.
const MAX_PROGRAM_HEADERS: u16 = 256;
/// Bytes of notes of a plausible kernel; Linux has some hundred.
const MAX_NOTES: u64 = 1 << 20;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// XEN_ELFNOTE_PHYS32_ENTRY: the PVH entry point.
const NOTE_PHYS32_ENTRY: u32 = 18;
const NOTE_NAME: &[u8] = b"Xen\0";
/// Version of the start information: with memory map.
const START_INFO_VERSION: u32 = 1;

/// A loadable segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    offset: u64,
    address: u64,
    file_len: u64,
    memory_len: u64,
}

impl Segment {
    fn end(&self) -> u64 {
        self.address + self.memory_len
    }
}

/// A checked ELF kernel.
#[derive(Debug)]
pub(crate) struct ElfKernel {
    /// By ascending address; they do not overlap.
    segments: Vec<Segment>,
    entry: u32,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

impl ElfKernel {
    /// Checks a file that begins with `head`, a whole header of a 64-bit x86 ELF file.
    pub(crate) fn parse(source: &Source, head: &[u8]) -> Result<Self, BootError> {
        let name = source.name();
        let table = program_headers(source, head)?;
        let mut segments = Vec::new();
        let mut entry = None;
        for header in table.chunks_exact(PROGRAM_HEADER) {
            match u32_at(header, 0) {
                PT_LOAD => segments.extend(segment(source, header)?),
                PT_NOTE if entry.is_none() => entry = note_entry(source, header)?,
                _ => {}
            }
        }
        segments.sort_by_key(|s| s.address);
        if segments.is_empty() {
            return Err(bad_kernel(name, "is an ELF file with nothing to load", COPY_AGAIN));
        }
        if let Some(pair) = segments.windows(2).find(|pair| pair[0].end() > pair[1].address) {
            let cause = format!("has overlapping segments at {:#x}", pair[1].address);
            return Err(bad_kernel(name, cause, COPY_AGAIN));
        }
        let Some(entry) = entry else {
            let cause = "is an ELF file without a PVH entry (note XEN_ELFNOTE_PHYS32_ENTRY)";
            let way_out = "use the bzImage (vmlinuz), or build linux with CONFIG_PVH=y";
            return Err(bad_kernel(name, cause, way_out));
        };
        let inside = |s: &Segment| (s.address..s.address + s.file_len).contains(&entry);
        match u32::try_from(entry) {
            Ok(address) if segments.iter().any(inside) => Ok(Self { segments, entry: address }),
            _ => {
                let cause = format!("has its PVH entry at {entry:#x}, outside of what it loads");
                Err(bad_kernel(name, cause, COPY_AGAIN))
            }
        }
    }

    fn end(&self) -> u64 {
        self.segments.last().map_or(0, Segment::end)
    }
}

fn program_headers(source: &Source, head: &[u8]) -> Result<Vec<u8>, BootError> {
    const TABLE_OFFSET: usize = 0x20;
    const ENTRY_SIZE: usize = 0x36;
    const COUNT: usize = 0x38;
    let name = source.name();
    let (offset, count) = (u64_at(head, TABLE_OFFSET), u16_at(head, COUNT));
    if count != 0 && usize::from(u16_at(head, ENTRY_SIZE)) != PROGRAM_HEADER {
        return Err(bad_kernel(name, "has program headers of an odd size", COPY_AGAIN));
    }
    if count > MAX_PROGRAM_HEADERS {
        let cause = format!("has {count} program headers, more than {MAX_PROGRAM_HEADERS}");
        return Err(bad_kernel(name, cause, COPY_AGAIN));
    }
    let mut table = vec![0; usize::from(count) * PROGRAM_HEADER];
    check_in_file(source, offset, table.len() as u64, "program headers")?;
    source.read_at(offset, &mut table)?;
    Ok(table)
}

fn check_in_file(source: &Source, offset: u64, len: u64, what: &str) -> Result<(), BootError> {
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

/// A loadable segment that can lie in RAM; `None` for an empty one.
fn segment(source: &Source, header: &[u8]) -> Result<Option<Segment>, BootError> {
    let segment = Segment {
        offset: u64_at(header, 8),
        address: u64_at(header, 24),
        file_len: u64_at(header, 32),
        memory_len: u64_at(header, 40),
    };
    let Segment { offset, address, file_len, memory_len } = segment;
    if memory_len == 0 && file_len == 0 {
        return Ok(None);
    }
    if file_len > memory_len {
        let cause =
            format!("has a segment at {address:#x} with more bytes in the file than in memory");
        return Err(bad_kernel(source.name(), cause, COPY_AGAIN));
    }
    check_in_file(source, offset, file_len, "segment")?;
    let end = address.checked_add(memory_len).filter(|&end| end <= MemoryMap::ECAM);
    if address < MemoryMap::HIGH_MEMORY || end.is_none() {
        let cause = format!(
            "wants a segment at {address:#x}+{memory_len:#x}, outside of memory from {:#x} to {:#x}",
            MemoryMap::HIGH_MEMORY,
            MemoryMap::ECAM
        );
        return Err(bad_kernel(source.name(), cause, "link it for physical addresses in there"));
    }
    Ok(Some(segment))
}

/// The PVH entry point in a segment of notes.
fn note_entry(source: &Source, header: &[u8]) -> Result<Option<u64>, BootError> {
    let (offset, len) = (u64_at(header, 8), u64_at(header, 32));
    // Notes are padded to 4 bytes, except in segments that ask for 8.
    let padding = if u64_at(header, 48) == 8 { 8 } else { 4 };
    check_in_file(source, offset, len, "notes")?;
    if len > MAX_NOTES {
        let cause = format!("has {len} bytes of notes, more than {MAX_NOTES}");
        return Err(bad_kernel(source.name(), cause, COPY_AGAIN));
    }
    let mut notes = vec![0; len as usize];
    source.read_at(offset, &mut notes)?;
    Ok(find_entry(&notes, padding))
}

fn find_entry(mut notes: &[u8], padding: usize) -> Option<u64> {
    const HEADER: usize = 12;
    while notes.len() >= HEADER {
        let (name_len, desc_len) = (u32_at(notes, 0) as usize, u32_at(notes, 4) as usize);
        let kind = u32_at(notes, 8);
        let desc_start = (HEADER + name_len).next_multiple_of(padding);
        let name = notes.get(HEADER..HEADER + name_len)?;
        let desc = notes.get(desc_start..desc_start + desc_len)?;
        if kind == NOTE_PHYS32_ENTRY && name == NOTE_NAME {
            return match desc_len {
                4 => Some(u64::from(u32_at(desc, 0))),
                8 => Some(u64_at(desc, 0)),
                _ => None,
            };
        }
        notes = notes.get((desc_start + desc_len).next_multiple_of(padding)..)?;
    }
    None
}

/// Loads the kernel.
pub(crate) fn load(kernel: &ElfKernel, request: &Request<'_>) -> Result<EntryState, BootError> {
    let Request { ram, source, map, .. } = *request;
    let name = source.name();
    check_end(name, map, kernel.end())?;
    low::write_bios_data_area(ram)?;
    low::write_cmdline(ram, name, request.cmdline, low::CMDLINE_LEN)?;
    for segment in &kernel.segments {
        source.copy_to_ram(segment.offset, segment.file_len, ram, segment.address)?;
        let file_end = segment.address + segment.file_len;
        zero(ram, file_end, segment.end() - file_end)?;
    }
    let initrd = match request.initrd {
        None => None,
        Some(initrd) => Some(place_initrd(request, initrd, kernel.end(), u64::from(u32::MAX))?),
    };
    ram.write(Gpa(low::START_INFO), &start_info(request, initrd))?;
    let state = EntryState::Pvh { entry: kernel.entry, start_info: low::START_INFO as u32 };
    entry::write_descriptors(&state, ram)?;
    Ok(state)
}

/// The start information, followed by the module list and the memory map. `initrd` is address and
/// bytes.
fn start_info(request: &Request<'_>, initrd: Option<(u64, u64)>) -> Vec<u8> {
    let module_list = low::START_INFO + size_of::<hvm_start_info>() as u64;
    let memory_map = module_list + size_of::<hvm_modlist_entry>() as u64;
    let entries = request.map.e820();
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: START_INFO_VERSION,
        flags: 0,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: if initrd.is_some() { module_list } else { 0 },
        cmdline_paddr: low::CMDLINE,
        rsdp_paddr: request.acpi_rsdp,
        memmap_paddr: memory_map,
        memmap_entries: entries.len() as u32,
        reserved: 0,
    };
    let (paddr, size) = initrd.unwrap_or_default();
    let module = hvm_modlist_entry { paddr, size, cmdline_paddr: 0, reserved: 0 };
    let mut bytes = info.as_slice().to_vec();
    bytes.extend_from_slice(module.as_slice());
    for entry in entries {
        // The types have the numbers of the ACPI address range types.
        let (addr, size, type_) = (entry.addr, entry.len, entry.kind as u32);
        let entry = hvm_memmap_table_entry { addr, size, type_, reserved: 0 };
        bytes.extend_from_slice(entry.as_slice());
    }
    debug_assert!(bytes.len() as u64 <= low::START_INFO_LEN);
    bytes
}
