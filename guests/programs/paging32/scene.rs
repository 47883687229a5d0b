//! Tables for both modes. The first GiB is mapped one to one for supervisors, the GiB at
//! [`USER_BASE`] shows it again to users, and [`WINDOW`] has a table of small pages.

use kit::legacy::{self, Legacy};
use kit::page::bit;
use kit::snippet::USER_BASE;
use kit::{Code, Frame4K, Global, ZERO_FRAME, boot};

/// Start of what checks map.
pub const WINDOW: u32 = 0x4000_0000;
/// CR0.PG.
pub const PG: u32 = 1 << 31;
/// CR0.WP.
pub const WP: u32 = 1 << 16;
/// CR4.PSE.
pub const PSE: u32 = 1 << 4;
/// CR4.PAE.
pub const PAE: u32 = 1 << 5;
/// CR4.PGE.
pub const PGE: u32 = 1 << 7;

/// Directory and table of 32-bit paging.
pub static DIRECTORY: Global<Frame4K> = Global::new(ZERO_FRAME);
pub static TABLE: Global<Frame4K> = Global::new(ZERO_FRAME);
/// Pointers, and the directory and table of the GiB at [`WINDOW`], of PAE paging.
pub static POINTERS: Global<Frame4K> = Global::new(ZERO_FRAME);
pub static PAE_DIRECTORY: Global<Frame4K> = Global::new(ZERO_FRAME);
pub static PAE_TABLE: Global<Frame4K> = Global::new(ZERO_FRAME);
/// Two pages of data.
pub static DATA: Global<[Frame4K; 2]> = Global::new([ZERO_FRAME; 2]);

/// Offset of the pointers in their page: 32-byte aligned, not page-aligned.
const POINTERS_AT: usize = 0x460;

/// Fills the tables.
pub fn init() {
    for entry in 0..256_u32 {
        set32(&DIRECTORY, entry, entry << 22 | 0x83);
        set32(&DIRECTORY, (USER_BASE as u32 >> 22) + entry, entry << 22 | 0x87);
    }
    set32(&DIRECTORY, WINDOW >> 22, TABLE.addr() as u32 | 7);
    reset_pointers();
    set64(&PAE_DIRECTORY, 0, PAE_TABLE.addr() | 7);
}

/// Puts the four pointers back.
pub fn reset_pointers() {
    for pointer in 0..4_u64 {
        let directory = boot::PAGE_DIRECTORIES.addr() + pointer * 4096;
        set_pointer(pointer as usize, directory | bit::P);
    }
    set_pointer(1, PAE_DIRECTORY.addr() | bit::P);
}

/// Writes a pointer in memory.
pub fn set_pointer(index: usize, value: u64) {
    POINTERS.write(POINTERS_AT + index * 8, &value.to_le_bytes());
}

/// Physical address of the pointers.
pub fn pointers() -> u32 {
    POINTERS.addr() as u32 + POINTERS_AT as u32
}

/// Writes a 32-bit entry.
pub fn set32(table: &Global<Frame4K>, index: u32, value: u32) {
    table.write(index as usize * 4, &value.to_le_bytes());
}

/// Reads a 32-bit entry.
pub fn get32(table: &Global<Frame4K>, index: u32) -> u32 {
    u32::from_le_bytes(table.read(index as usize * 4))
}

/// Writes a 64-bit entry.
pub fn set64(table: &Global<Frame4K>, index: u32, value: u64) {
    table.write(index as usize * 8, &value.to_le_bytes());
}

/// Reads a 64-bit entry.
pub fn get64(table: &Global<Frame4K>, index: u32) -> u64 {
    u64::from_le_bytes(table.read(index as usize * 8))
}

/// A run with 32-bit paging and 4 MiB pages.
pub fn paged32(code: Code) -> Legacy {
    let mut run = legacy::at(code);
    run.cr0 = legacy::CR0_FLAT | PG;
    run.cr3 = DIRECTORY.addr() as u32;
    run.cr4 = legacy::CR4_PLAIN | PSE;
    run
}

/// A run with PAE paging.
pub fn paged_pae(code: Code) -> Legacy {
    let mut run = legacy::at(code);
    run.cr0 = legacy::CR0_FLAT | PG;
    run.cr3 = pointers();
    run.cr4 = legacy::CR4_PLAIN | PAE;
    run
}

/// The same run in ring 3, through the alias for users.
pub fn in_ring3(run: Legacy) -> Legacy {
    run.ring3(USER_BASE as u32).with_task()
}

/// Physical address of data page `index`.
pub fn data(index: u64) -> u64 {
    DATA.addr() + index * 4096
}
