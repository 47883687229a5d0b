//! Placing a kernel and what belongs to it in guest RAM.

use memory::{GuestRam, PAGE_SIZE};

use crate::image::{Parsed, bad_kernel};
use crate::source::Source;
use crate::{
    BootError, EntryState, Initrd, KernelImage, MemoryMap, Module, bzimage, multiboot, pvh,
};

const MIB: u64 = 1 << 20;

/// What a kernel is given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Payload<'a> {
    /// Initial RAM disk; the first module of a multiboot kernel.
    pub initrd: Option<&'a Initrd>,
    /// Modules of a multiboot kernel.
    pub modules: &'a [Module],
    /// Command line. Multiboot kernels find the name of their file in front of it.
    pub cmdline: &'a str,
}

/// Loads `kernel` and `payload` into guest RAM that has the layout of `map`, before the
/// first vCPU runs. `acpi_rsdp` is what [`crate::acpi::build`] returned, or 0 for no ACPI. Can be
/// called again for a reset of the guest.
///
/// # Errors
/// [`BootError`]; guest RAM may have been written by then.
pub fn load(
    ram: &GuestRam,
    kernel: &KernelImage,
    payload: &Payload<'_>,
    map: &MemoryMap,
    acpi_rsdp: u64,
) -> Result<EntryState, BootError> {
    kernel.check_modules(payload.modules)?;
    let request = Request { ram, source: &kernel.source, payload, map, acpi_rsdp };
    match &kernel.parsed {
        Parsed::BzImage(image) => bzimage::load(image, &request),
        Parsed::Pvh(image) => pvh::load(image, &request),
        Parsed::Multiboot(image) => multiboot::load(image, &request),
    }
}

/// What every loader is given.
pub(crate) struct Request<'a> {
    pub(crate) ram: &'a GuestRam,
    /// The kernel's file.
    pub(crate) source: &'a Source,
    pub(crate) payload: &'a Payload<'a>,
    pub(crate) map: &'a MemoryMap,
    pub(crate) acpi_rsdp: u64,
}

/// Checks that a kernel that needs memory up to `end` fits below 4 GiB.
pub(crate) fn check_end(name: &str, map: &MemoryMap, end: u64) -> Result<(), BootError> {
    if end <= map.low_end() {
        return Ok(());
    }
    // Where more memory does not help: RAM never reaches that high below 4 GiB.
    if end > reach(map) {
        let cause = format!("needs memory up to {end:#x}, but RAM goes to {:#x} there", reach(map));
        return Err(bad_kernel(name, cause, "build it for lower physical addresses"));
    }
    Err(needs_memory(format!("kernel {name}"), map, end))
}

/// The highest end that RAM below 4 GiB has in a guest with at least as much memory: for a small
/// guest the ECAM window, for a large one what it has already.
fn reach(map: &MemoryMap) -> u64 {
    if map.size() >= MemoryMap::ECAM { map.low_end() } else { MemoryMap::ECAM - MIB }
}

/// `what` would fit if low RAM went up to `end`, which is above what there is and within
/// [`reach`].
pub(crate) fn needs_memory(what: String, map: &MemoryMap, end: u64) -> BootError {
    BootError::TooBig {
        what,
        memory_mib: map.size() / MIB,
        needed_mib: end.max(MemoryMap::MIN_SIZE).div_ceil(MIB),
    }
}

/// Loads the initrd as high as RAM below 4 GiB and `end_max` allow, where the growing kernel is
/// least in its way. Returns address and bytes.
pub(crate) fn place_initrd(
    request: &Request<'_>,
    initrd: &Initrd,
    kernel_end: u64,
    end_max: u64,
) -> Result<(u64, u64), BootError> {
    let source = &initrd.source;
    let map = request.map;
    let start_min = kernel_end.next_multiple_of(PAGE_SIZE);
    let end_max = end_max / PAGE_SIZE * PAGE_SIZE;
    let top = map.low_end().min(end_max);
    let address = top.checked_sub(source.len()).map(|start| start / PAGE_SIZE * PAGE_SIZE);
    if let Some(address) = address.filter(|&address| address >= start_min) {
        source.copy_to_ram(0, source.len(), request.ram, address)?;
        return Ok((address, source.len()));
    }
    let limit = reach(map).min(end_max).saturating_sub(start_min);
    if source.len() <= limit {
        let end = start_min + source.len().next_multiple_of(PAGE_SIZE);
        return Err(needs_memory(format!("initrd {}", source.name()), map, end));
    }
    Err(BootError::InitrdTooBig {
        name: source.name().to_owned(),
        size: source.len(),
        kernel: request.source.name().to_owned(),
        limit,
    })
}
