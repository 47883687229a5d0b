//! What translated code sees of the VMM: one [`Context`] at the GS base of the vCPU's thread, and
//! one [`Tables`] per address space and access mode, whose address is in a host register.
//!
//! Both are plain memory that generated code reads and writes by the offsets in [`at`].

use std::mem::offset_of;
use std::sync::atomic::AtomicU64;

/// Entries of the software TLB in one [`Tables`]; a power of two.
pub(crate) const TLB_ENTRIES: usize = 1024;
/// Bits of a linear address that choose the TLB entry.
pub(crate) const TLB_INDEX: u64 = (TLB_ENTRIES as u64 - 1) << 12;
/// Entries of the jump table; a power of two.
pub(crate) const JUMP_ENTRIES: usize = 4096;
/// Bits of a target's hash that choose the jump entry.
pub(crate) const JUMP_INDEX: u64 = JUMP_ENTRIES as u64 - 1;
/// The tag of TLB entry `index` while it is empty. Every tag is matched by the addresses of one
/// page; this one's page belongs to an entry half the table away, so that no address that looks
/// here matches, whatever the guest makes up, nor one just below or above.
pub(crate) const fn empty_tag(index: usize) -> u64 {
    (((index + TLB_ENTRIES / 2) % TLB_ENTRIES) as u64).wrapping_shl(12).wrapping_neg()
}

/// The tag of jump entry `index` while it is empty: that of an address of another entry.
pub(crate) const fn empty_jump(index: usize) -> u64 {
    // Address 0 has hash 0 and belongs to entry 0; address 2 does not.
    const { assert!(jump_index(0) == 0 && jump_index(2) != 0) };
    if index == 0 { 2_u64.wrapping_neg() } else { 0 }
}

/// The jump entry of a target: the low bits of its CRC32C, which the CPU computes without touching
/// flags.
pub(crate) const fn jump_index(target: u64) -> usize {
    const REFLECTED: u32 = 0x82f6_3b78;
    let mut remainder = target;
    let mut step = 0;
    while step < 64 {
        let low = remainder & 1 != 0;
        remainder >>= 1;
        if low {
            remainder ^= REFLECTED as u64;
        }
        step += 1;
    }
    (remainder & JUMP_INDEX) as usize
}

/// State of a vCPU while translated code runs.
#[repr(C, align(64))]
pub(crate) struct Context {
    /// Guest general registers by number. Those that live in host registers are stale meanwhile.
    pub(crate) gpr: [u64; 16],
    /// Guest RFLAGS: arithmetic flags and DF.
    pub(crate) flags: u64,
    /// Linear address of the page of the block being executed.
    pub(crate) page: u64,
    /// Not zero: leave translated code at the next block.
    pub(crate) poll: AtomicU64,
    /// Not zero: the guest's vector registers are not in the host's.
    pub(crate) vectors_missing: u64,
    /// Not zero: vector instructions may execute.
    pub(crate) vectors_allowed: u64,
    /// Whether vectors were in host registers at the last exit.
    pub(crate) vectors_were_loaded: u64,
    /// Bases of FS and GS.
    pub(crate) fs_base: u64,
    pub(crate) gs_base: u64,
    /// The present [`Tables`].
    pub(crate) tables: u64,
    /// Host stack pointer on entry.
    pub(crate) host_rsp: u64,
    /// Why translated code was left, and the address of the exit's data.
    pub(crate) exit_kind: u64,
    pub(crate) exit_data: u64,
    /// R8 at the exit: the linear address of an access.
    pub(crate) linear: u64,
    /// Scratch of one instruction.
    pub(crate) temporary: [u64; 3],
    /// Instructions of the block that was left last.
    pub(crate) last: u64,
    /// Where the guest's vector registers are kept: an XSAVE area in standard form.
    pub(crate) vectors: u64,
    /// Host MXCSR while guest code runs is the guest's; this is the host's own.
    pub(crate) host_mxcsr: u64,
}

impl Context {
    pub(crate) fn new() -> Self {
        Self {
            gpr: [0; 16],
            flags: 0,
            page: 0,
            poll: AtomicU64::new(0),
            vectors_missing: 1,
            vectors_allowed: 0,
            vectors_were_loaded: 0,
            fs_base: 0,
            gs_base: 0,
            tables: 0,
            host_rsp: 0,
            exit_kind: 0,
            exit_data: 0,
            linear: 0,
            temporary: [0; 3],
            last: 0,
            vectors: 0,
            host_mxcsr: 0x1f80,
        }
    }
}

/// Translations of one address space for one access mode. An entry's tag is the negated page
/// address, so that adding an address inside the page gives the offset, without touching flags.
#[repr(C, align(64))]
pub(crate) struct Tables {
    pub(crate) masks: Masks,
    pub(crate) read: [u64; TLB_ENTRIES],
    pub(crate) write: [u64; TLB_ENTRIES],
    /// Host address minus linear address of the page.
    pub(crate) addend: [u64; TLB_ENTRIES],
    /// Negated target address.
    pub(crate) jump_tag: [u64; JUMP_ENTRIES],
    /// Linear page of the target.
    pub(crate) jump_page: [u64; JUMP_ENTRIES],
    /// Host address of the block.
    pub(crate) jump_host: [u64; JUMP_ENTRIES],
}

/// Operands of PEXT, close to the tables' address so that they are short to encode.
#[repr(C)]
pub(crate) struct Masks {
    tlb_index: u64,
    jump_index: u64,
    page_number: u64,
    /// Page number and the bits that an aligned operand of 16 or 32 bytes has clear.
    page_or_16: u64,
    page_or_32: u64,
}

impl Masks {
    pub(crate) const ALL: Self = Self {
        tlb_index: TLB_INDEX,
        jump_index: JUMP_INDEX,
        page_number: !0xfff,
        page_or_16: !0xfff | 15,
        page_or_32: !0xfff | 31,
    };
}

/// Offsets in [`Context`] (from the GS base) and in [`Tables`], as displacements.
pub(crate) mod at {
    use super::{Context, Masks, Tables, offset_of};

    macro_rules! offsets {
        ($($name:ident $base:ident $field:ident;)*) => {
            $(pub(crate) const $name: i32 = offset_of!($base, $field) as i32;)*
        };
    }
    offsets! {
        FLAGS Context flags; PAGE Context page; POLL Context poll;
        VECTORS_MISSING Context vectors_missing; VECTORS_ALLOWED Context vectors_allowed;
        VECTORS_WERE_LOADED Context vectors_were_loaded;
        FS_BASE Context fs_base; GS_BASE Context gs_base; TABLES Context tables;
        HOST_RSP Context host_rsp;
        EXIT_KIND Context exit_kind; EXIT_DATA Context exit_data; LINEAR Context linear;
        TEMPORARY Context temporary; LAST Context last; VECTORS Context vectors;
        HOST_MXCSR Context host_mxcsr;
        READ Tables read; WRITE Tables write; ADDEND Tables addend;
        JUMP_TAG Tables jump_tag; JUMP_PAGE Tables jump_page; JUMP_HOST Tables jump_host;
    }

    macro_rules! masks {
        ($($name:ident $field:ident;)*) => {
            $(pub(crate) const $name: i8 = (offset_of!(Tables, masks) + offset_of!(Masks, $field)) as i8;)*
        };
    }
    masks! {
        TLB_INDEX tlb_index; JUMP_INDEX jump_index; PAGE_NUMBER page_number;
        PAGE_OR_16 page_or_16; PAGE_OR_32 page_or_32;
    }

    /// Slot of guest register `number`.
    pub(crate) const fn gpr(number: u8) -> i32 {
        offset_of!(Context, gpr) as i32 + number as i32 * 8
    }
}
