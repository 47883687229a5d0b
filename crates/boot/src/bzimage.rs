//! Linux bzImage, entered by the 64-bit boot protocol, or by the 32-bit one when the kernel is a
//! 32-bit one (Linux `Documentation/arch/x86/boot.rst`).

use linux_loader::loader::bootparam::{
    E820_MAX_ENTRIES_ZEROPAGE, LOADED_HIGH, XLF_KERNEL_64, boot_e820_entry, boot_params,
};
use memory::{Gpa, GuestRam};
use vm_memory::ByteValued;

use crate::entry::{self, EntryState};
use crate::image::bad_kernel;
use crate::load::{Request, check_end, place_initrd};
use crate::recognise::{self, COPY_AGAIN};
use crate::source::Source;
use crate::{BootError, MemoryMap, low};

/// Where the setup header begins, in the file as in the boot parameters.
const SETUP_HEADER: usize = 0x1f1;
/// The jump over the header: its operand, counted from [`JUMP_END`], says where the header ends.
const JUMP_OFFSET: usize = 0x201;
const JUMP_END: usize = 0x202;
/// End of the fields that protocol 2.12 has.
const HEADER_END_2_12: usize = 0x268;
/// End of the room for the header in the boot parameters.
const HEADER_END_MAX: usize = 0x290;
/// Bytes of a sector of the setup code.
const SECTOR: u64 = 512;
/// First protocol with a 64-bit entry point (Linux 3.8, 2013); 32-bit kernels could be older.
const OLDEST_VERSION: u16 = 0x020c;
/// The 64-bit entry point lies here in the protected-mode part.
const ENTRY_64: u64 = 0x200;
/// "Undefined" boot loader, for those without a number of their own.
const LOADER_UNDEFINED: u8 = 0xff;
/// Video mode "normal": keep what is there.
const VIDEO_NORMAL: u16 = 0xffff;
/// Length of a command line when the header does not say.
const CMDLINE_DEFAULT: u64 = 255;
/// Where a kernel that cannot be relocated is loaded.
const FIXED_ADDRESS: u64 = MemoryMap::HIGH_MEMORY;

/// A checked bzImage.
#[derive(Debug)]
pub(crate) struct BzImage {
    /// The setup header as it goes into the boot parameters.
    header: Vec<u8>,
    /// Offset of the protected-mode part in the file.
    pub(crate) kernel_offset: u64,
    /// Bytes of it.
    kernel_len: u64,
    /// Whether it has a 64-bit entry point.
    is_64bit: bool,
    /// Where it is loaded.
    address: u64,
    /// End of the memory that it needs until it has a memory map of its own.
    end: u64,
    cmdline_limit: u64,
    initrd_end_max: u64,
    /// Offset in the protected-mode part, and bytes, of the compressed ELF kernel.
    pub(crate) payload: (u64, u64),
}

impl BzImage {
    /// Checks a file that begins with `head`, which has the magic number of a setup header.
    pub(crate) fn parse(source: &Source, head: &[u8]) -> Result<Self, BootError> {
        let name = source.name();
        let truncated = || bad_kernel(name, "is truncated inside its setup header", COPY_AGAIN);
        let header_end = JUMP_END + usize::from(*head.get(JUMP_OFFSET).ok_or_else(truncated)?);
        let header_end = header_end.clamp(HEADER_END_2_12, HEADER_END_MAX);
        let header = head.get(SETUP_HEADER..header_end).ok_or_else(truncated)?.to_vec();
        let setup = with_header(&header).hdr;

        let version = setup.version;
        if version < OLDEST_VERSION {
            let (major, minor) = (version >> 8, version & 0xff);
            let cause = format!("has boot protocol {major}.{minor:02}, older than 2.12");
            return Err(bad_kernel(name, cause, "use linux 3.8 or newer"));
        }
        if setup.loadflags & LOADED_HIGH == 0 {
            return Err(bad_kernel(name, "is a zImage, for low memory", "use a bzImage"));
        }
        let is_64bit = { setup.xloadflags } & XLF_KERNEL_64 != 0;
        // Documented: 0 means 4.
        let setup_sectors = if setup.setup_sects == 0 { 4 } else { u64::from(setup.setup_sects) };
        let kernel_offset = (setup_sectors + 1) * SECTOR;
        let (kernel_len, kernel_paragraphs) = match source.len().checked_sub(kernel_offset) {
            Some(len) if len > ENTRY_64 => (len, u64::from(setup.syssize)),
            _ => return Err(bad_kernel(name, "is truncated inside its setup code", COPY_AGAIN)),
        };
        // The size is rounded up to 16 bytes; what follows it is a signature.
        if kernel_len + 15 < kernel_paragraphs * 16 {
            let (has, wants) = (source.len(), kernel_offset + kernel_paragraphs * 16);
            let cause = format!("is truncated: {has} bytes of {wants}");
            return Err(bad_kernel(name, cause, COPY_AGAIN));
        }
        let kernel_len = kernel_len.min((kernel_paragraphs * 16).max(ENTRY_64 + 1));
        let (address, end) = place(name, &setup, kernel_len)?;
        Ok(Self {
            header,
            kernel_offset,
            kernel_len,
            is_64bit,
            address,
            end,
            cmdline_limit: match setup.cmdline_size {
                0 => CMDLINE_DEFAULT,
                size => u64::from(size),
            },
            initrd_end_max: u64::from(setup.initrd_addr_max) + 1,
            payload: (u64::from(setup.payload_offset), u64::from(setup.payload_length)),
        })
    }
}

/// Boot parameters that hold nothing but the setup header of the kernel file.
fn with_header(header: &[u8]) -> boot_params {
    let mut params = boot_params::default();
    params.as_mut_slice()[SETUP_HEADER..SETUP_HEADER + header.len()].copy_from_slice(header);
    params
}

/// Where the kernel is loaded, and the end of the memory that it needs there.
fn place(
    name: &str,
    setup: &linux_loader::loader::bootparam::setup_header,
    kernel_len: u64,
) -> Result<(u64, u64), BootError> {
    let damaged =
        |what: &str| bad_kernel(name, format!("has a damaged header: {what}"), COPY_AGAIN);
    let alignment = u64::from(setup.kernel_alignment);
    if !alignment.is_power_of_two() {
        return Err(damaged("its alignment is not a power of two"));
    }
    let preferred = { setup.pref_address };
    if !(FIXED_ADDRESS..MemoryMap::ECAM).contains(&preferred) {
        return Err(damaged("it wants a load address where there can be no memory"));
    }
    // Below its preferred address a kernel moves itself there, so there is nothing to gain by
    // loading it lower on a small machine.
    let runs_at = preferred.next_multiple_of(alignment);
    let address = if setup.relocatable_kernel == 0 { FIXED_ADDRESS } else { runs_at };
    let end = (address + kernel_len).max(runs_at + u64::from(setup.init_size));
    Ok((address, end))
}

/// Loads the kernel.
pub(crate) fn load(image: &BzImage, request: &Request<'_>) -> Result<EntryState, BootError> {
    let Request { ram, source, map, .. } = *request;
    let name = source.name();
    check_end(name, map, image.end)?;
    low::write_bios(ram, map)?;
    low::write_cmdline(ram, name, request.payload.cmdline, image.cmdline_limit)?;
    source.copy_to_ram(image.kernel_offset, image.kernel_len, ram, image.address)?;
    let initrd = match request.payload.initrd {
        None => None,
        Some(initrd) => {
            recognise::linux_initrd(
                initrd.source.name(),
                &initrd.source.head(recognise::HEAD_LEN)?,
            )?;
            Some(place_initrd(request, initrd, image.end, image.initrd_end_max)?)
        }
    };
    ram.write(Gpa(low::ZERO_PAGE), boot_parameters(image, request, initrd).as_slice())?;
    let boot_params = low::ZERO_PAGE;
    let state = if image.is_64bit {
        write_page_tables(ram)?;
        EntryState::Linux64 { entry: image.address + ENTRY_64, boot_params }
    } else {
        EntryState::Linux32 { entry: image.address as u32, boot_params: boot_params as u32 }
    };
    entry::write_descriptors(&state, ram)?;
    Ok(state)
}

/// The "zero page"; `initrd` is address and bytes.
fn boot_parameters(
    image: &BzImage,
    request: &Request<'_>,
    initrd: Option<(u64, u64)>,
) -> boot_params {
    let mut params = with_header(&image.header);
    let setup = &mut params.hdr;
    setup.type_of_loader = LOADER_UNDEFINED;
    setup.ext_loader_type = 0;
    setup.ext_loader_ver = 0;
    setup.vid_mode = VIDEO_NORMAL;
    setup.code32_start = image.address as u32;
    setup.cmd_line_ptr = low::CMDLINE as u32;
    setup.setup_data = 0;
    setup.hardware_subarch = 0;
    let (address, len) = initrd.unwrap_or_default();
    setup.ramdisk_image = address as u32;
    setup.ramdisk_size = len as u32;
    params.acpi_rsdp_addr = request.acpi_rsdp;
    let entries = request.map.e820();
    debug_assert!(entries.len() <= E820_MAX_ENTRIES_ZEROPAGE);
    params.e820_entries = entries.len() as u8;
    for (slot, entry) in params.e820_table.iter_mut().zip(entries) {
        *slot = boot_e820_entry { addr: entry.addr, size: entry.len, r#type: entry.kind as u32 };
    }
    params
}

/// Maps the first 4 GiB one to one by 2 MiB pages.
fn write_page_tables(ram: &GuestRam) -> Result<(), BootError> {
    use x86::paging::{ACCESSED, DIRTY, LARGE, PRESENT, WRITE};
    const TABLE: u64 = 4096;
    const DIRECTORIES: u64 = 4;
    const ENTRIES: u64 = DIRECTORIES * 512;
    const PAGE_2M: u64 = 2 << 20;
    let level3 = low::PAGE_TABLES + TABLE;
    let level2 = level3 + TABLE;
    let table = PRESENT | WRITE | ACCESSED;
    let page = table | DIRTY | LARGE;
    let mut tables = vec![0_u8; (level2 + DIRECTORIES * TABLE - low::PAGE_TABLES) as usize];
    let mut set = |at: u64, value: u64| {
        let at = (at - low::PAGE_TABLES) as usize;
        tables[at..at + 8].copy_from_slice(&value.to_le_bytes());
    };
    set(low::PAGE_TABLES, level3 | table);
    for index in 0..DIRECTORIES {
        set(level3 + index * 8, (level2 + index * TABLE) | table);
    }
    for index in 0..ENTRIES {
        set(level2 + index * 8, (index * PAGE_2M) | page);
    }
    ram.write(Gpa(low::PAGE_TABLES), &tables)?;
    Ok(())
}
