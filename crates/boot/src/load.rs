//! Placing a kernel and what belongs to it in guest RAM.

use memory::GuestRam;

use crate::image::Parsed;
use crate::{BootError, EntryState, Initrd, KernelImage, MemoryMap, bzimage, elf};

/// Loads `kernel`, `initrd` and `cmdline` into guest RAM that has the layout of `map`, before the
/// first vCPU runs. `acpi_rsdp` is what [`crate::acpi::build`] returned, or 0 for no ACPI. Can be
/// called again for a reset of the guest.
///
/// # Errors
/// [`BootError`]; guest RAM may have been written by then.
pub fn load(
    ram: &GuestRam,
    kernel: &KernelImage,
    initrd: Option<&Initrd>,
    cmdline: &str,
    map: &MemoryMap,
    acpi_rsdp: u64,
) -> Result<EntryState, BootError> {
    let request = Request { ram, source: &kernel.source, initrd, cmdline, map, acpi_rsdp };
    match &kernel.parsed {
        Parsed::BzImage(image) => bzimage::load(image, &request),
        Parsed::Pvh(image) => elf::load(image, &request),
    }
}

/// What every loader is given.
pub(crate) struct Request<'a> {
    pub(crate) ram: &'a GuestRam,
    pub(crate) source: &'a crate::source::Source,
    pub(crate) initrd: Option<&'a Initrd>,
    pub(crate) cmdline: &'a str,
    pub(crate) map: &'a MemoryMap,
    pub(crate) acpi_rsdp: u64,
}
