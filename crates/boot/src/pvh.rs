//! ELF kernels with a PVH entry point (Xen `docs/misc/pvh.pandoc`, `start_info.h`).

use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use memory::Gpa;
use vm_memory::ByteValued;

use crate::elf::{
    self, ElfFile, ProgramHeader, Segment, check_in_file, load_segments, u32_at, u64_at,
};
use crate::entry::{self, EntryState};
use crate::image::bad_kernel;
use crate::load::{Request, check_end, place_initrd};
use crate::recognise::COPY_AGAIN;
use crate::source::Source;
use crate::{BootError, low};

/// Bytes of notes of a plausible kernel; Linux has some hundred.
const MAX_NOTES: u64 = 1 << 20;
/// XEN_ELFNOTE_PHYS32_ENTRY: the PVH entry point.
const NOTE_PHYS32_ENTRY: u32 = 18;
const NOTE_NAME: &[u8] = b"Xen\0";
/// Version of the start information: with memory map.
const START_INFO_VERSION: u32 = 1;

/// A checked ELF kernel.
#[derive(Debug)]
pub(crate) struct PvhKernel {
    /// By ascending address; they do not overlap.
    segments: Vec<Segment>,
    entry: u32,
}

impl PvhKernel {
    /// Checks a file that begins with `head`, a whole header of a 64-bit x86 ELF file.
    pub(crate) fn parse(source: &Source, head: &[u8]) -> Result<Self, BootError> {
        let name = source.name();
        let file = ElfFile::parse(source, head)?;
        let segments = file.segments(source, &[elf::HIGH])?;
        let mut entry = None;
        for header in file.headers.iter().filter(|header| header.kind == elf::PT_NOTE) {
            if entry.is_none() {
                entry = note_entry(source, header)?;
            }
        }
        let Some(entry) = entry else {
            let cause = "is an ELF file without a PVH entry (note XEN_ELFNOTE_PHYS32_ENTRY)";
            let way_out = "use the bzImage (vmlinuz), or build linux with CONFIG_PVH=y";
            return Err(bad_kernel(name, cause, way_out));
        };
        match u32::try_from(entry) {
            Ok(address) if segments.iter().any(|s| s.loads(entry)) => {
                Ok(Self { segments, entry: address })
            }
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

/// The PVH entry point in a segment of notes.
fn note_entry(source: &Source, header: &ProgramHeader) -> Result<Option<u64>, BootError> {
    let &ProgramHeader { offset, file_len: len, align, .. } = header;
    // Notes are padded to 4 bytes, except in segments that ask for 8.
    let padding = if align == 8 { 8 } else { 4 };
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
pub(crate) fn load(kernel: &PvhKernel, request: &Request<'_>) -> Result<EntryState, BootError> {
    let Request { ram, source, map, .. } = *request;
    let name = source.name();
    check_end(name, map, kernel.end())?;
    low::write_bios(ram, map)?;
    low::write_cmdline(ram, name, request.payload.cmdline, low::CMDLINE_LEN)?;
    load_segments(&kernel.segments, source, ram)?;
    let initrd = match request.payload.initrd {
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
