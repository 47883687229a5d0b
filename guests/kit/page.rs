//! The page-table editor (Intel SDM vol. 3A 4.5; AMD APM vol. 2 5.3).
//!
//! Levels are counted as in the manuals from the leaf: 1 = PTE, 2 = PDE,
//! 3 = PDPTE, 4 = PML4E. Missing tables come from a fixed pool.

use crate::{Frame4K, Global, ZERO_FRAME, boot, cpu};
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

/// Bits of page-table entries.
pub mod bit {
    #![allow(missing_docs)] // The names are the architecture's.
    pub const P: u64 = 1 << 0;
    pub const W: u64 = 1 << 1;
    pub const U: u64 = 1 << 2;
    pub const PWT: u64 = 1 << 3;
    pub const PCD: u64 = 1 << 4;
    pub const A: u64 = 1 << 5;
    pub const D: u64 = 1 << 6;
    pub const PS: u64 = 1 << 7;
    pub const PAT_LARGE: u64 = 1 << 12;
    pub const G: u64 = 1 << 8;
    pub const NX: u64 = 1 << 63;
}

/// The address bits of an entry.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Start of a free 512 GiB region with a PML4 entry of its own.
pub const WINDOW: u64 = 0x100_0000_0000;

/// Start of a free 1 GiB region below 4 GiB, for 32-bit code.
pub const LOW_WINDOW: u64 = 0x4000_0000;

const POOL_LEN: usize = 32;
static POOL: Global<[Frame4K; POOL_LEN]> = Global::new([ZERO_FRAME; POOL_LEN]);
static POOL_USED: Global<usize> = Global::new(0);

fn new_table() -> u64 {
    let used = POOL_USED.get();
    assert!(used < POOL_LEN, "out of page-table frames");
    POOL_USED.set(used + 1);
    POOL.addr() + used as u64 * 4096
}

/// A page-table entry in memory.
#[derive(Clone, Copy)]
pub struct Entry(*mut u64);

impl Entry {
    /// Reads the entry as it is now (the processor sets A and D bits).
    pub fn get(self) -> u64 {
        // SAFETY: entries lie in live, identity-mapped tables.
        unsafe { self.0.read_volatile() }
    }

    /// Writes `new` if the entry is `old`, in one locked access; whether it was.
    pub fn exchange(self, old: u64, new: u64) -> bool {
        // SAFETY: as for `get`; the entry is aligned.
        let entry = unsafe { AtomicU64::from_ptr(self.0) };
        entry.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Writes the entry; invalidation is the caller's business.
    pub fn set(self, value: u64) {
        // SAFETY: as for `get`; the kit's own mapping is the caller's care.
        unsafe { self.0.write_volatile(value) }
    }
}

/// The entry of `address` at `level`, in the kit's tables; missing tables in
/// between are made, with all permissions.
pub fn entry(address: u64, level: u32) -> Entry {
    let mut table = boot::PML4.addr();
    let mut current = 4;
    loop {
        let index = address >> (12 + 9 * (current - 1)) & 511;
        let entry = Entry((table + index * 8) as *mut u64);
        if current == level {
            return entry;
        }
        if entry.get() & bit::P == 0 {
            entry.set(new_table() | bit::P | bit::W | bit::U);
        }
        assert!(entry.get() & bit::PS == 0, "a large page is in the way");
        table = entry.get() & ADDRESS;
        current -= 1;
    }
}

/// Maps the 4 KiB page at `address` and drops its old translation.
pub fn map(address: u64, physical: u64, bits: u64) -> Entry {
    let entry = entry(address, 1);
    entry.set(physical & ADDRESS | bits);
    invlpg(address);
    entry
}

/// Invalidates the translation of one page.
pub fn invlpg(address: u64) {
    // SAFETY: invalidation has no effect on what Rust relies on.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

/// Invalidates all translations that are not global.
pub fn flush() {
    cpu::write_cr3(cpu::read_cr3());
}

/// Reads a `u64` through a volatile pointer.
pub fn peek(address: u64) -> u64 {
    // SAFETY: the caller names memory of its own; a fault would end the
    // program or be caught by its guard.
    unsafe { (address as *const u64).read_volatile() }
}

/// Writes a `u64` through a volatile pointer.
pub fn poke(address: u64, value: u64) {
    // SAFETY: as for `peek`.
    unsafe { (address as *mut u64).write_volatile(value) }
}
