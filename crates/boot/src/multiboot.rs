//! Multiboot kernels (Multiboot Specification 0.6.96): the header, and how they are loaded.
//!
//! [`find`] recognises a kernel by its header; [`MultibootKernel`] is what it asks for. It is
//! loaded where its address fields or, as GRUB does, its program headers say; ELF files may be
//! 32-bit or 64-bit ones, the entry is in 32-bit protected mode for both. Modules follow the
//! kernel, each at the beginning of a page. `info` builds what EBX points to.

mod info;

use std::ops::Range;

use crate::elf::{self, ElfFile, Segment, check_in_file, load_segments, segment, u32_at};
use crate::entry::{self, EntryState};
use crate::image::bad_kernel;
use crate::load::{Request, check_end, needs_memory};
use crate::recognise::COPY_AGAIN;
use crate::source::Source;
use crate::{BootError, MemoryMap, low};

/// The header lies in the first 8 KiB, 4-byte aligned (3.1).
const SEARCH: usize = 8192;
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// Bytes of the header without and with the address fields.
const HEADER_LEN: usize = 12;
const HEADER_LEN_ADDRESSES: usize = 32;
/// Flags: modules at pages, memory sizes wanted. Both are always granted.
const PAGE_ALIGN: u32 = 1 << 0;
const MEMORY_INFO: u32 = 1 << 1;
/// Flags that a boot loader has to understand.
const REQUIREMENTS: u32 = 0xffff;
/// Flag: the address fields say what is loaded, whatever format the file has.
const ADDRESS_FIELDS: u32 = 1 << 16;
/// Where kernels may lie below 1 MiB: above what the loaders and the descriptors need at entry.
const LOW: Range<u64> = low::KERNEL_START..MemoryMap::LOW_USABLE_END;

/// Offset of the multiboot header in a file that begins with `head`.
pub(crate) fn find(head: &[u8]) -> Option<usize> {
    let search = &head[..head.len().min(SEARCH)];
    let is_header = |&at: &usize| {
        let field = |index: usize| u32_at(search, at + 4 * index);
        let sum = field(0).wrapping_add(field(1)).wrapping_add(field(2));
        field(0) == HEADER_MAGIC && sum == 0 && at + header_len(field(1)) <= search.len()
    };
    (0..(search.len() + 1).saturating_sub(HEADER_LEN)).step_by(4).find(is_header)
}

fn header_len(flags: u32) -> usize {
    if flags & ADDRESS_FIELDS == 0 { HEADER_LEN } else { HEADER_LEN_ADDRESSES }
}

/// A checked multiboot kernel.
#[derive(Debug)]
pub(crate) struct MultibootKernel {
    /// By ascending address; they do not overlap.
    segments: Vec<Segment>,
    entry: u32,
    /// Whether the file is an ELF file.
    pub(crate) is_elf: bool,
}

impl MultibootKernel {
    /// Checks a file that begins with `head` and has its multiboot header at `header`.
    pub(crate) fn parse(source: &Source, head: &[u8], header: usize) -> Result<Self, BootError> {
        let flags = u32_at(head, header + 4);
        let unknown = flags & REQUIREMENTS & !(PAGE_ALIGN | MEMORY_INFO);
        if unknown != 0 {
            let cause = format!("has a multiboot header that requires {unknown:#x}");
            let way_out = "build it for flags 0x1 and 0x2 alone: there is no video hardware";
            return Err(bad_kernel(source.name(), cause, way_out));
        }
        let is_elf = head.starts_with(b"\x7fELF");
        if !is_elf && flags & ADDRESS_FIELDS == 0 {
            let cause = "has a multiboot header without address fields, and is no ELF file";
            return Err(bad_kernel(source.name(), cause, "make an ELF file of it"));
        }
        let (segments, entry) = match flags & ADDRESS_FIELDS {
            0 => by_program_headers(source, head)?,
            _ => by_addresses(source, &head[header..], header as u64)?,
        };
        match u32::try_from(entry) {
            Ok(address) if segments.iter().any(|s| s.loads(entry)) => {
                Ok(Self { segments, entry: address, is_elf })
            }
            _ => {
                let cause = format!("has its entry at {entry:#x}, outside of what it loads");
                Err(bad_kernel(source.name(), cause, COPY_AGAIN))
            }
        }
    }

    fn end(&self) -> u64 {
        self.segments.last().map_or(0, Segment::end)
    }

    /// Whether it has nothing between `start` and `start + len`.
    fn leaves_free(&self, start: u64, len: u64) -> bool {
        self.segments.iter().all(|s| s.end() <= start || start + len <= s.address)
    }
}

/// What an ELF file loads, and the physical address of its entry, which the file has as a virtual
/// one.
fn by_program_headers(source: &Source, head: &[u8]) -> Result<(Vec<Segment>, u64), BootError> {
    let file = ElfFile::parse(source, head)?;
    let segments = file.segments(source, &[LOW, elf::HIGH])?;
    let entry = file
        .loadable()
        .find_map(|h| {
            let inside = file.entry.checked_sub(h.virtual_address)?;
            (inside < h.memory_len).then_some(h.address + inside)
        })
        .unwrap_or(file.entry);
    Ok((segments, entry))
}

/// What the address fields of `header`, at `offset` in the file, say (3.1.3).
fn by_addresses(
    source: &Source,
    header: &[u8],
    offset: u64,
) -> Result<(Vec<Segment>, u64), BootError> {
    let [header_addr, load_addr, load_end, bss_end, entry] =
        [12, 16, 20, 24, 28].map(|at| u64::from(u32_at(header, at)));
    let damaged = |what: &str| {
        let cause = format!("has a damaged multiboot header: {what}");
        bad_kernel(source.name(), cause, COPY_AGAIN)
    };
    // The text begins where load_addr is when the header is at header_addr.
    let Some(start) = header_addr.checked_sub(load_addr).and_then(|d| offset.checked_sub(d)) else {
        return Err(damaged("its load address lies in front of the file"));
    };
    let file_len = match load_end {
        0 => source.len() - start,
        end => end.checked_sub(load_addr).ok_or_else(|| damaged("it ends before it begins"))?,
    };
    check_in_file(source, start, file_len, "text and data")?;
    let memory_len = match bss_end {
        0 => file_len,
        end => end.saturating_sub(load_addr),
    };
    if memory_len < file_len {
        return Err(damaged("its bss ends before its data"));
    }
    let segment = segment(source, (start, load_addr, file_len, memory_len), &[LOW, elf::HIGH])?;
    Ok((vec![segment], entry))
}

/// A module in RAM: its first address and the one behind it, and its string.
struct Placed {
    start: u64,
    end: u64,
    string: String,
}

/// Loads the kernel, its modules and the information about them.
pub(crate) fn load(
    kernel: &MultibootKernel,
    request: &Request<'_>,
) -> Result<EntryState, BootError> {
    let Request { ram, source, map, payload, .. } = *request;
    if let Some(at) = payload.cmdline.bytes().position(|b| b == 0) {
        return Err(BootError::CmdlineZero(at));
    }
    check_end(source.name(), map, kernel.end())?;
    low::write_bios(ram, map)?;
    // Before the kernel, which may lie where the TSS is that nobody needs.
    let entry = kernel.entry;
    let state = EntryState::Multiboot { entry, info: 0 };
    entry::write_descriptors(&state, ram)?;
    load_segments(&kernel.segments, source, ram)?;
    let (modules, end) = load_modules(kernel, request)?;
    let cmdline = with_name(source.name(), payload.cmdline);
    let len = info::len(map, &cmdline, &modules);
    if len > low::MULTIBOOT_LEN {
        return Err(BootError::MultibootTooLong { len, limit: low::MULTIBOOT_LEN });
    }
    let at = match kernel.leaves_free(low::MULTIBOOT, len) {
        true => low::MULTIBOOT,
        false => end,
    };
    if at + len > map.low_end() {
        return Err(needs_memory(format!("kernel {}", source.name()), map, at + len));
    }
    ram.write(memory::Gpa(at), &info::build(at, map, &cmdline, &modules))?;
    Ok(EntryState::Multiboot { entry, info: at as u32 })
}

/// Loads the initrd and the modules behind the kernel, as boot loaders do: kernels may have mapped
/// no more than that yet. Also returns the first free address behind them.
fn load_modules(
    kernel: &MultibootKernel,
    request: &Request<'_>,
) -> Result<(Vec<Placed>, u64), BootError> {
    let Request { ram, map, payload, .. } = *request;
    let initrd = payload.initrd.map(|initrd| (&initrd.source, ""));
    let modules = payload.modules.iter().map(|module| (&module.source, &*module.args));
    let mut at = kernel.end().max(MemoryMap::HIGH_MEMORY).next_multiple_of(memory::PAGE_SIZE);
    let mut placed = Vec::new();
    for (source, args) in initrd.into_iter().chain(modules) {
        let end = at.saturating_add(source.len());
        if end > map.low_end() {
            return Err(needs_memory(format!("module {}", source.name()), map, end));
        }
        source.copy_to_ram(0, source.len(), ram, at)?;
        placed.push(Placed { start: at, end, string: with_name(source.name(), args) });
        at = end.next_multiple_of(memory::PAGE_SIZE);
    }
    Ok((placed, at))
}

/// A command line as kernels expect it: the name of the file comes first, as GRUB has it. Blanks
/// in it would end it too early; where it lies on the host is none of the guest's business.
fn with_name(name: &str, args: &str) -> String {
    let name = name.rsplit('/').next().unwrap_or(name);
    let name: String = name.chars().map(|c| if c <= ' ' { '_' } else { c }).collect();
    match args {
        "" => name,
        args => format!("{name} {args}"),
    }
}
