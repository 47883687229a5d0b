//! Where the memory of a case lies.
//!
//! Sixteen pages form a *window*; seven of them hold memory, the others are unmapped, so that
//! every kind of edge exists: writable to writable, writable to read-only, read-only to unmapped,
//! unmapped to writable, code to code, code to unmapped. The window is mapped twice, below and
//! above 4 GiB: the low one is reached by 32-bit addresses, and both together make aliases.

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Pages of a window.
pub const WINDOW_PAGES: u64 = 16;
/// Linear address of the window below 4 GiB.
pub const LOW: u64 = 0x3000_0000;
/// Linear address of the window above 4 GiB.
pub const HIGH: u64 = 0x10_0000_0000;
/// Both windows.
pub const WINDOWS: [u64; 2] = [LOW, HIGH];

/// What user mode may do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Read and execute.
    ReadExecute,
    /// Read, write and execute.
    ReadWriteExecute,
    /// Read and write.
    ReadWrite,
    /// Read.
    Read,
}

/// One page that is mapped in both windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Number of the page in its window.
    pub number: u64,
    /// What user mode may do with it.
    pub rights: Rights,
}

/// Number of mapped pages.
pub const PAGES: usize = 7;
/// Bytes of mapped memory.
pub const MEMORY: usize = PAGES * PAGE as usize;

/// The mapped pages, in the order in which the memory of a case holds them.
pub const MAP: [Page; PAGES] = [
    Page { number: page::CODE, rights: Rights::ReadExecute },
    Page { number: page::CODE + 1, rights: Rights::ReadExecute },
    Page { number: page::PATCHABLE, rights: Rights::ReadWriteExecute },
    Page { number: page::DATA, rights: Rights::ReadWrite },
    Page { number: page::DATA + 1, rights: Rights::ReadWrite },
    Page { number: page::CONSTANT, rights: Rights::Read },
    Page { number: page::ISLAND, rights: Rights::ReadWrite },
];

/// Numbers of pages in their window.
pub mod page {
    /// Two pages of code, then an unmapped one.
    pub const CODE: u64 = 1;
    /// A page of code that may be written, between unmapped ones.
    pub const PATCHABLE: u64 = 5;
    /// Two writable pages, after an unmapped one and before [`CONSTANT`].
    pub const DATA: u64 = 8;
    /// A read-only page, before an unmapped one.
    pub const CONSTANT: u64 = 10;
    /// A writable page between unmapped ones.
    pub const ISLAND: u64 = 13;
}

/// Base of FS at the start of a case.
pub const FS_BASE: u64 = HIGH + page::DATA * PAGE + 0x800;
/// Base of GS at the start of a case.
pub const GS_BASE: u64 = LOW + (page::DATA + 1) * PAGE + 0x400;

/// Where in the memory of a case the byte at linear `address` lies, if it is mapped.
pub fn offset_of(address: u64) -> Option<usize> {
    let base = WINDOWS.into_iter().find(|b| (*b..*b + WINDOW_PAGES * PAGE).contains(&address))?;
    let number = (address - base) / PAGE;
    let index = MAP.iter().position(|p| p.number == number)?;
    Some(index * PAGE as usize + (address % PAGE) as usize)
}

/// The linear address, in the high window, of a byte of the memory of a case.
pub fn address_of(offset: usize) -> u64 {
    let page = MAP[offset / PAGE as usize];
    HIGH + page.number * PAGE + offset as u64 % PAGE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_and_addresses_agree() {
        for offset in (0..MEMORY).step_by(97) {
            assert_eq!(offset_of(address_of(offset)), Some(offset));
            assert_eq!(offset_of(address_of(offset) - HIGH + LOW), Some(offset));
        }
    }

    #[test]
    fn holes_are_not_memory() {
        for number in [0, 3, 4, 6, 7, 11, 12, 14, 15] {
            assert_eq!(offset_of(HIGH + number * PAGE), None, "page {number}");
        }
        assert_eq!(offset_of(0), None);
    }
}
