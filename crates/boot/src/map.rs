//! Where RAM lies in the guest-physical address space, and what the kernel is told about it.
//!
//! The shape is that of QEMU's q35: RAM from 0 up to at most 2.75 GiB (2 GiB for guests with more),
//! then the ECAM window, devices up to 4 GiB, and the rest of RAM from 4 GiB upwards.

use crate::BootError;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What a range of the address space is (ACPI 6.4 table 15.4, address range types).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Kind {
    /// RAM that the kernel may use.
    Usable = 1,
    /// Not for the kernel.
    Reserved = 2,
}

/// One range of the memory map that the kernel is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820Entry {
    /// First address.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
    /// What it is.
    pub kind: E820Kind,
}

/// The memory map of a guest.
///
/// ```
/// let map = boot::MemoryMap::new(4 << 30)?;
/// assert_eq!(map.ram_layout(), [(0, 2 << 30), (4 << 30, 2 << 30)]);
/// # Ok::<(), boot::BootError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryMap {
    low: u64,
    high: u64,
}

impl MemoryMap {
    /// The least RAM: 16 MiB, below which no kernel that this crate loads comes up.
    pub const MIN_SIZE: u64 = 16 * MIB;
    /// The most RAM: 16 TiB, well inside the 46-bit physical addresses of the CPU profiles.
    pub const MAX_SIZE: u64 = 16 << 40;
    /// End of the low memory that is usable; above it the extended BIOS data area.
    pub const LOW_USABLE_END: u64 = 0x9_fc00;
    /// First address of the area of video memory and ROMs.
    pub const ROM_AREA: u64 = 0xa_0000;
    /// First address of the memory above the area of video memory and ROMs.
    pub const HIGH_MEMORY: u64 = MIB;
    /// First address of the PCI Express configuration window (ECAM), as on q35.
    pub const ECAM: u64 = 0xb000_0000;
    /// Bytes of the ECAM window: 256 buses.
    pub const ECAM_LEN: u64 = 0x1000_0000;
    /// First address of the memory below 4 GiB that PCI functions may have.
    pub const PCI_MEMORY: u64 = Self::ECAM + Self::ECAM_LEN;
    /// Its bytes: it ends where the I/O APIC is.
    pub const PCI_MEMORY_LEN: u64 = 0xfec0_0000 - Self::PCI_MEMORY;
    /// Where RAM that does not fit below 4 GiB goes on.
    pub const ABOVE_4G: u64 = 4 * GIB;
    /// Bytes of the memory above RAM that PCI functions may have.
    pub const PCI_HIGH_MEMORY_LEN: u64 = 32 * GIB;

    /// The map of a guest with `size` bytes of RAM.
    ///
    /// # Errors
    /// [`BootError::BadMemorySize`] for less than [`Self::MIN_SIZE`], more than
    /// [`Self::MAX_SIZE`], or a size that is not a multiple of 4 KiB.
    pub fn new(size: u64) -> Result<Self, BootError> {
        let bad = |cause: &'static str| BootError::BadMemorySize { size, cause: cause.into() };
        if size < Self::MIN_SIZE {
            return Err(bad("is too little; use --memory 16M or more"));
        }
        if size > Self::MAX_SIZE {
            return Err(bad("is too much; use --memory 16T or less"));
        }
        if !size.is_multiple_of(memory::PAGE_SIZE) {
            return Err(bad("is not a whole number of 4 KiB pages; use a multiple of 4K"));
        }
        let low = if size >= Self::ECAM { 2 * GIB } else { size };
        Ok(Self { low, high: size - low })
    }

    /// Bytes of RAM.
    pub fn size(&self) -> u64 {
        self.low + self.high
    }

    /// End of the RAM below 4 GiB.
    pub fn low_end(&self) -> u64 {
        self.low
    }

    /// End of RAM above 4 GiB, or 4 GiB without any.
    pub fn high_end(&self) -> u64 {
        Self::ABOVE_4G + self.high
    }

    /// First address of the memory above RAM that PCI functions may have, a multiple of
    /// [`Self::PCI_HIGH_MEMORY_LEN`].
    pub fn pci_high_memory(&self) -> u64 {
        self.high_end().next_multiple_of(Self::PCI_HIGH_MEMORY_LEN)
    }

    /// RAM regions as `(first address, bytes)`, for [`memory::GuestRam::new`]. The first one
    /// includes the area of video memory and ROMs, which is RAM to the loaders (the ACPI tables
    /// lie there) and reserved to the kernel.
    pub fn ram_layout(&self) -> Vec<(u64, u64)> {
        let mut layout = vec![(0, self.low)];
        if self.high != 0 {
            layout.push((Self::ABOVE_4G, self.high));
        }
        layout
    }

    /// The map as the kernel is given it, in ascending order without overlaps.
    pub fn e820(&self) -> Vec<E820Entry> {
        use E820Kind::{Reserved, Usable};
        let entry = |addr, end: u64, kind| E820Entry { addr, len: end - addr, kind };
        let mut entries = vec![
            entry(0, Self::LOW_USABLE_END, Usable),
            entry(Self::LOW_USABLE_END, Self::ROM_AREA, Reserved),
            entry(Self::ROM_AREA, Self::HIGH_MEMORY, Reserved),
            entry(Self::HIGH_MEMORY, self.low, Usable),
            entry(Self::ECAM, Self::ECAM + Self::ECAM_LEN, Reserved),
        ];
        if self.high != 0 {
            entries.push(entry(Self::ABOVE_4G, Self::ABOVE_4G + self.high, Usable));
        }
        entries
    }
}

/// Bytes of base memory in KiB, as the BIOS data area tells it.
pub(crate) const BASE_MEMORY_KIB: u16 = (MemoryMap::LOW_USABLE_END / KIB) as u16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_out_of_range_are_refused() {
        for size in [0, 1, MIB, 16 * MIB - 4096, 16 * MIB + 1, 17 << 40, u64::MAX] {
            let error = MemoryMap::new(size).unwrap_err().to_string();
            assert!(error.contains("; use "), "{error}");
        }
    }

    #[test]
    fn ram_splits_where_q35_splits_it() {
        let low_end = |size| MemoryMap::new(size).unwrap().low_end();
        assert_eq!(low_end(16 * MIB), 16 * MIB);
        assert_eq!(low_end(0xb000_0000 - 4096), 0xb000_0000 - 4096);
        assert_eq!(low_end(0xb000_0000), 2 * GIB);
        assert_eq!(MemoryMap::new(0xb000_0000).unwrap().ram_layout()[1], (4 * GIB, 0x3000_0000));
    }

    #[test]
    fn the_kernel_is_told_of_all_ram_and_of_nothing_twice() {
        for size in [16 * MIB, 512 * MIB, 0xb000_0000 - 4096, 0xb000_0000, 64 * GIB, 16 << 40] {
            let map = MemoryMap::new(size).unwrap();
            assert_eq!(map.size(), size);
            let e820 = map.e820();
            for pair in e820.windows(2) {
                assert!(
                    pair[0].len != 0 && pair[0].addr + pair[0].len <= pair[1].addr,
                    "{pair:x?}"
                );
            }
            let usable: u64 =
                e820.iter().filter(|e| e.kind == E820Kind::Usable).map(|e| e.len).sum();
            assert_eq!(usable, size - (MemoryMap::HIGH_MEMORY - MemoryMap::LOW_USABLE_END));
            let ram: u64 = map.ram_layout().iter().map(|r| r.1).sum();
            assert_eq!(ram, size);
        }
    }
}
