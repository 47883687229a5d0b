//! What the loaders put below 640 KiB.
//!
//! | range | content |
//! | --- | --- |
//! | 0..0x400 | interrupt vector table, see `bios` |
//! | 0x400..0x500 | BIOS data area: where the extended one lies, and the base memory |
//! | 0x500..0x540 | the descriptors that the entry state's segments came from |
//! | 0x1000..0x1080 | TSS of the PVH entry |
//! | 0x6000..0x7000 | PVH start information, memory map and module list |
//! | 0x7000..0x8000 | Linux boot parameters ("zero page") |
//! | 0x8000..0x9000 | stack, for kernels that use one before they have their own |
//! | 0x9000..0xf000 | page tables of the Linux entry |
//! | 0x1_0000..0x2_0000 | multiboot information, unless the kernel lies there |
//! | 0x2_0000..0x3_0000 | command line |
//!
//! Kernels and initrds lie at 1 MiB or above, the ACPI tables at 0xe_0000: nothing overlaps. Only
//! multiboot kernels may lie from [`KERNEL_START`] on, where they get nothing of this but the
//! information.

use memory::{Gpa, GuestRam};

use crate::map::BASE_MEMORY_KIB;
use crate::{BootError, MemoryMap, bios};

/// Word that holds the segment of the extended BIOS data area.
const BDA_EBDA_SEGMENT: u64 = 0x40e;
/// Word that holds the KiB of base memory.
const BDA_BASE_MEMORY: u64 = 0x413;
/// Global descriptor table.
pub(crate) const GDT: u64 = 0x500;
/// Where a multiboot kernel may begin: behind the BIOS data area and the descriptors.
pub(crate) const KERNEL_START: u64 = 0x600;
/// TSS of the PVH entry.
pub(crate) const TSS: u64 = 0x1000;
/// PVH start information and what it points to.
pub(crate) const START_INFO: u64 = 0x6000;
/// Bytes for it.
pub(crate) const START_INFO_LEN: u64 = 0x1000;
/// Linux boot parameters.
pub(crate) const ZERO_PAGE: u64 = 0x7000;
/// First address above the stack, which grows down.
pub(crate) const STACK_TOP: u64 = 0x9000;
/// Page tables: level 4, level 3, four of level 2.
pub(crate) const PAGE_TABLES: u64 = 0x9000;
/// Multiboot information and what it points to.
pub(crate) const MULTIBOOT: u64 = 0x1_0000;
/// Most bytes of it.
pub(crate) const MULTIBOOT_LEN: u64 = 0x1_0000;
/// Command line.
pub(crate) const CMDLINE: u64 = 0x2_0000;
/// Bytes for it with the zero that ends it.
pub(crate) const CMDLINE_LEN: u64 = 0x1_0000;

/// Fills in the part of the BIOS data area that kernels read to find the end of low memory, and
/// what else there is of a BIOS.
pub(crate) fn write_bios(ram: &GuestRam, map: &MemoryMap) -> Result<(), BootError> {
    bios::install(ram, map)?;
    let ebda_segment = (MemoryMap::LOW_USABLE_END >> 4) as u16;
    ram.write(Gpa(BDA_EBDA_SEGMENT), &ebda_segment.to_le_bytes())?;
    ram.write(Gpa(BDA_BASE_MEMORY), &BASE_MEMORY_KIB.to_le_bytes())?;
    Ok(())
}

/// Puts the command line, ended by a zero, at [`CMDLINE`]. `limit` is the most bytes that the
/// kernel takes without the zero.
pub(crate) fn write_cmdline(
    ram: &GuestRam,
    kernel: &str,
    cmdline: &str,
    limit: u64,
) -> Result<(), BootError> {
    if let Some(at) = cmdline.bytes().position(|b| b == 0) {
        return Err(BootError::CmdlineZero(at));
    }
    let limit = limit.min(CMDLINE_LEN - 1);
    if cmdline.len() as u64 > limit {
        return Err(BootError::CmdlineTooLong {
            len: cmdline.len(),
            kernel: kernel.to_owned(),
            limit: limit as usize,
        });
    }
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    ram.write(Gpa(CMDLINE), &bytes)?;
    Ok(())
}
