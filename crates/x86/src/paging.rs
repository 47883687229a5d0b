//! Bits of page-table entries (SDM vol. 3A 4.3 to 4.6).

/// Present.
pub const PRESENT: u64 = 1 << 0;
/// Writable.
pub const WRITE: u64 = 1 << 1;
/// User-accessible.
pub const USER: u64 = 1 << 2;
/// Page-level write-through.
pub const PWT: u64 = 1 << 3;
/// Page-level cache disable.
pub const PCD: u64 = 1 << 4;
/// Accessed.
pub const ACCESSED: u64 = 1 << 5;
/// Dirty (entries that map a page).
pub const DIRTY: u64 = 1 << 6;
/// Page size: the entry maps a large page.
pub const LARGE: u64 = 1 << 7;
/// Global (entries that map a page).
pub const GLOBAL: u64 = 1 << 8;
/// No-execute.
pub const NX: u64 = 1 << 63;

/// Bits that INVPCID, MOV to CR3 and TLBs take as the process-context identifier.
pub const PCID_MASK: u64 = 0xfff;
/// Bit 63 of the operand of MOV to CR3: keep the TLB entries of the new PCID.
pub const CR3_NOFLUSH: u64 = 1 << 63;
