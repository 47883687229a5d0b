//! What translated code sees of the VMM: one [`Context`], at the host's stack pointer, and one
//! [`Tables`] per address space and access mode, whose address is in a host register.
//!
//! Both are plain memory that generated code reads and writes by the offsets in [`at`].

use std::mem::offset_of;
use std::sync::atomic::AtomicU64;

use x86::cr::rflags;

use crate::registers::SLOTTED;

/// Entries of the software TLB in one [`Tables`]; a power of two.
pub(crate) const TLB_ENTRIES: usize = 4096;
/// Groups of accesses that a block can have under way at a time.
pub(crate) const GROUPS: usize = 8;
/// Bits of a linear address that choose the TLB entry.
pub(crate) const TLB_INDEX: u64 = (TLB_ENTRIES as u64 - 1) << 12;
/// Entries of the jump table; a power of two.
pub(crate) const JUMP_ENTRIES: usize = 1 << 16;
/// Bits of a target's hash that choose the jump entry.
pub(crate) const JUMP_INDEX: u64 = JUMP_ENTRIES as u64 - 1;
/// The tag of TLB entry `index` while it is empty: mostly zero, so that a new table costs nothing.
/// Every tag is matched by the addresses of one page, and by the ranges that end in it. That of zero
/// is matched by the first page, which belongs to the first entry, and by ranges that wrap, which
/// belong to the last: these two have the tag of a page half the table away. So no address that
/// looks at an empty entry matches, whatever the guest makes up.
pub(crate) const fn empty_tag(index: usize) -> u64 {
    const ELSEWHERE: u64 = ((TLB_ENTRIES as u64 / 2) << 12).wrapping_neg();
    if index == 0 || index == TLB_ENTRIES - 1 { ELSEWHERE } else { 0 }
}

/// The tag of jump entry `index` while it is empty: that of an address of other entries.
pub(crate) const fn empty_jump(index: usize) -> u64 {
    // Address 0 has hash 0 and belongs to entries 0 and 1; address 2 does not.
    const { assert!(jump_index(0) == 0 && jump_index(2) > 1) };
    if index < 2 { 2_u64.wrapping_neg() } else { 0 }
}

/// The first jump entry of a target; the second is its neighbour in the same cache line, at the
/// index with the lowest bit inverted. The low bits of its CRC32C, which the CPU computes without touching
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

/// State of a vCPU while translated code runs. The host's RSP points at it, so that the fields in
/// front, which generated code uses all the time, are short to encode; calls and signals use the
/// stack below it ([`Frame`]).
#[repr(C, align(64))]
pub(crate) struct Context {
    /// Guest R8, R9, R10, R11 and R15: see [`crate::registers`].
    pub(crate) slots: [u64; 5],
    /// Linear address of the page of the block being executed.
    pub(crate) page: u64,
    /// Not zero: leave translated code at the next block.
    pub(crate) poll: AtomicU64,
    /// Bases of FS and GS.
    pub(crate) fs_base: u64,
    pub(crate) gs_base: u64,
    /// Scratch of one instruction.
    pub(crate) temporary: [u64; 2],
    /// Host minus linear address of the pages that groups of accesses have been checked for.
    pub(crate) groups: [u64; GROUPS],

    /// RFLAGS.IF and RFLAGS.AC, at their places.
    pub(crate) interrupt_flag: u64,
    pub(crate) access_flag: u64,
    /// Not zero: the guest's vector registers are not in the host's.
    pub(crate) vectors_missing: u64,
    /// Not zero: an event waits for interrupts to be enabled.
    pub(crate) held: u64,
    /// The guest registers that live in host registers, by number; stale meanwhile.
    pub(crate) gpr: [u64; 16],
    /// Guest RFLAGS: arithmetic flags and DF.
    pub(crate) flags: u64,
    /// RFLAGS without the arithmetic flags, IF and AC, and its complement.
    pub(crate) other_flags: u64,
    pub(crate) not_other_flags: u64,
    /// CPL: 0 or 3.
    pub(crate) level: u64,
    pub(crate) kernel_gs_base: u64,
    /// Where SYSCALL goes; meaningless unless `syscall_plain`.
    pub(crate) syscall_target: u64,
    pub(crate) syscall_plain: u64,
    pub(crate) sysret_enabled: u64,
    /// SYSCALLs that were executed in line.
    pub(crate) system_calls: u64,
    pub(crate) fsgsbase_enabled: u64,
    /// Selectors of ES, CS, SS, DS, FS and GS; those of CS and SS are not kept up.
    pub(crate) selectors: [u64; 6],
    /// Not zero: vector instructions may execute.
    pub(crate) vectors_allowed: u64,
    /// Whether vectors were in host registers at the last exit.
    pub(crate) vectors_were_loaded: u64,
    /// The present [`Tables`], and those of the present address space by access mode.
    pub(crate) tables: u64,
    pub(crate) tables_supervisor: u64,
    pub(crate) tables_supervisor_ac: u64,
    pub(crate) tables_user: u64,
    /// Instructions left of the budget, when blocks count.
    pub(crate) budget: u64,
    /// The VMM's stack pointer.
    pub(crate) host_rsp: u64,
    /// Why translated code was left, and the number of its record.
    pub(crate) exit_kind: u64,
    pub(crate) exit_record: u64,
    /// Where translated code is entered.
    pub(crate) enter_at: u64,
    /// A string stub missed: 0 for the source, 1 for the target.
    pub(crate) string_target: u64,
    /// R8 at the exit: the linear address of an access, or a jump's target.
    pub(crate) linear: u64,
    /// Scratch of string stubs.
    pub(crate) string: [u64; 3],
    /// Where the guest's vector registers are kept: an XSAVE area in standard form.
    pub(crate) vectors: u64,
    /// Host MXCSR while guest code runs is the guest's; this is the host's own.
    pub(crate) host_mxcsr: u64,
    /// For 32-bit code: 0, or what sends addresses by way of FS and GS to the interpreter.
    pub(crate) fs_refusal: u64,
    pub(crate) gs_refusal: u64,
}

/// Bytes of stack below the context: for the stubs' calls and for signals of the host.
const STACK: usize = 64 << 10;

/// The context and the stack that translated code runs on.
#[repr(C, align(64))]
pub(crate) struct Frame {
    stack: [u8; STACK],
    pub(crate) context: Context,
}

impl Frame {
    pub(crate) fn new() -> Self {
        Self { stack: [0; STACK], context: Context::new() }
    }

    /// The part of the stack that no stub reaches; a signal would.
    #[cfg(test)]
    pub(crate) fn unused_stack(&mut self) -> &mut [u8] {
        &mut self.stack[..STACK - 256]
    }
}

impl Context {
    fn new() -> Self {
        Self {
            slots: [0; 5],
            page: 0,
            poll: AtomicU64::new(0),
            interrupt_flag: 0,
            access_flag: 0,
            vectors_missing: 1,
            fs_base: 0,
            gs_base: 0,
            temporary: [0; 2],
            groups: [0; GROUPS],
            held: 0,
            gpr: [0; 16],
            flags: 0,
            other_flags: 0,
            not_other_flags: 0,
            level: 0,
            kernel_gs_base: 0,
            syscall_target: 0,
            syscall_plain: 0,
            sysret_enabled: 0,
            system_calls: 0,
            fsgsbase_enabled: 0,
            selectors: [0; 6],
            vectors_allowed: 0,
            vectors_were_loaded: 0,
            tables: 0,
            tables_supervisor: 0,
            tables_supervisor_ac: 0,
            tables_user: 0,
            budget: 0,
            host_rsp: 0,
            exit_kind: 0,
            exit_record: 0,
            enter_at: 0,
            string_target: 0,
            linear: 0,
            string: [0; 3],
            vectors: 0,
            host_mxcsr: 0x1f80,
            fs_refusal: 0,
            gs_refusal: 0,
        }
    }

    /// The general registers of the guest.
    pub(crate) fn general(&self) -> [u64; 16] {
        let mut gpr = self.gpr;
        for (slot, number) in SLOTTED.into_iter().enumerate() {
            gpr[usize::from(number)] = self.slots[slot];
        }
        gpr
    }

    /// Replaces the general registers.
    pub(crate) fn set_general(&mut self, gpr: &[u64; 16]) {
        self.gpr = *gpr;
        for (slot, number) in SLOTTED.into_iter().enumerate() {
            self.slots[slot] = gpr[usize::from(number)];
        }
    }
}

/// Translations of one address space for one access mode. An entry's tag is the negated page
/// address, so that adding an address inside the page gives the offset, without touching flags.
///
/// Generated code addresses it by `read`, so that the masks in front and the tags of reads are
/// short to encode.
#[repr(C, align(64))]
pub(crate) struct Tables {
    pub(crate) masks: Masks,
    pub(crate) read: [u64; TLB_ENTRIES],
    pub(crate) write: [u64; TLB_ENTRIES],
    /// Host address minus linear address of the page.
    pub(crate) addend: [u64; TLB_ENTRIES],
    pub(crate) jumps: [Jump; JUMP_ENTRIES],
}

/// An entry of the jump table.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Jump {
    /// Negated target address.
    pub(crate) tag: u64,
    /// Linear page of the target.
    pub(crate) page: u64,
    /// Host address of the block.
    pub(crate) host: u64,
    /// Not zero: the target's page is global.
    pub(crate) global: u64,
}

/// Operands of PEXT.
#[derive(PartialEq, Eq)]
#[repr(C, align(64))]
pub(crate) struct Masks {
    /// Arithmetic flags, in RFLAGS.
    status_flags: u64,
    /// What POPF must find unchanged to need no more than arithmetic flags and IF.
    steady_flags: u64,
    /// Bits that are clear in canonical addresses of the lower half.
    upper_half: u64,
    tlb_index: u64,
    /// For PDEP: an entry of the jump table is four words long.
    jump_index: u64,
    page_number: u64,
    /// Page number and the bits that an aligned operand of 2 to 32 bytes has clear.
    page_or_2: u64,
    page_or_4: u64,
    page_or_8: u64,
    page_or_16: u64,
    page_or_32: u64,
}

impl Tables {
    /// Empty tables, whose memory is committed as it is used.
    pub(crate) fn empty() -> Box<Self> {
        // SAFETY: the tables are arrays of integers, for which all-zero bytes are valid.
        let mut tables = unsafe { Box::<Self>::new_zeroed().assume_init() };
        tables.masks = Masks::ALL;
        for index in [0, TLB_ENTRIES - 1] {
            tables.read[index] = empty_tag(index);
            tables.write[index] = empty_tag(index);
        }
        for index in [0, 1] {
            tables.jumps[index].tag = empty_jump(index);
        }
        tables
    }
}

impl Masks {
    pub(crate) const ALL: Self = Self {
        status_flags: rflags::ARITHMETIC,
        steady_flags: !(rflags::ARITHMETIC | rflags::IF | rflags::RF),
        upper_half: !0 << 47,
        tlb_index: TLB_INDEX,
        jump_index: JUMP_INDEX << 2,
        page_number: !0xfff,
        page_or_2: !0xfff | 1,
        page_or_4: !0xfff | 3,
        page_or_8: !0xfff | 7,
        page_or_16: !0xfff | 15,
        page_or_32: !0xfff | 31,
    };
}

/// What generated code has in its table register: the address of [`Tables::read`].
pub(crate) const TABLES_BIAS: u64 = offset_of!(Tables, read) as u64;

/// Offsets in [`Context`] (from RSP) and in [`Tables`] (from its register), as displacements.
pub(crate) mod at {
    use super::{Context, Masks, SLOTTED, TABLES_BIAS, Tables, offset_of};

    macro_rules! hot {
        ($($name:ident $field:ident;)*) => {
            $(pub(crate) const $name: i8 = {
                const { assert!(offset_of!(Context, $field) < 128) };
                offset_of!(Context, $field) as i8
            };)*
        };
    }
    hot! {
        PAGE page; POLL poll; FS_BASE fs_base; GS_BASE gs_base;
        TEMPORARY temporary;
    }

    macro_rules! offsets {
        ($($name:ident $field:ident;)*) => {
            $(pub(crate) const $name: i32 = offset_of!(Context, $field) as i32;)*
        };
    }
    offsets! {
        GROUP groups; IF interrupt_flag; AC access_flag; VECTORS_MISSING vectors_missing; HELD held;
        GPR gpr; FLAGS flags; OTHER_FLAGS other_flags; NOT_OTHER_FLAGS not_other_flags;
        LEVEL level; KERNEL_GS_BASE kernel_gs_base;
        SYSCALL_TARGET syscall_target; SYSCALL_PLAIN syscall_plain;
        SYSRET_ENABLED sysret_enabled; SYSTEM_CALLS system_calls; FSGSBASE_ENABLED fsgsbase_enabled;
        SELECTORS selectors;
        VECTORS_ALLOWED vectors_allowed; VECTORS_WERE_LOADED vectors_were_loaded;
        TABLES tables; TABLES_SUPERVISOR tables_supervisor;
        TABLES_SUPERVISOR_AC tables_supervisor_ac; TABLES_USER tables_user;
        BUDGET budget; HOST_RSP host_rsp;
        EXIT_KIND exit_kind; EXIT_RECORD exit_record; ENTER_AT enter_at;
        STRING_TARGET string_target; LINEAR linear;
        STRING string; VECTORS vectors; HOST_MXCSR host_mxcsr;
        FS_REFUSAL fs_refusal; GS_REFUSAL gs_refusal;
    }

    macro_rules! tables {
        ($($name:ident $field:ident;)*) => {
            $(pub(crate) const $name: i32 =
                offset_of!(Tables, $field) as i32 - TABLES_BIAS as i32;)*
        };
    }
    tables! {
        READ read; WRITE write; ADDEND addend;
        JUMP_TAG jumps;
    }
    pub(crate) const JUMP_PAGE: i32 = JUMP_TAG + 8;
    pub(crate) const JUMP_HOST: i32 = JUMP_TAG + 16;

    macro_rules! masks {
        ($($name:ident $field:ident;)*) => {
            $(pub(crate) const $name: i8 = (offset_of!(Tables, masks) as i64
                + offset_of!(Masks, $field) as i64
                - TABLES_BIAS as i64) as i8;)*
        };
    }
    masks! {
        STATUS_FLAGS status_flags; STEADY_FLAGS steady_flags; UPPER_HALF upper_half;
        TLB_INDEX tlb_index; JUMP_INDEX jump_index; PAGE_NUMBER page_number;
        PAGE_OR_2 page_or_2; PAGE_OR_4 page_or_4; PAGE_OR_8 page_or_8;
        PAGE_OR_16 page_or_16; PAGE_OR_32 page_or_32;
    }

    /// Where guest register `number`, one that lives in a slot, is.
    pub(crate) const fn slot(number: u8) -> i8 {
        let mut index = 0;
        while index < SLOTTED.len() {
            if SLOTTED[index] == number {
                return (offset_of!(Context, slots) + index * 8) as i8;
            }
            index += 1;
        }
        panic!("the register lives in a host register")
    }

    /// Where guest register `number`, one that lives in a host register, is while it does not.
    pub(crate) const fn gpr(number: u8) -> i32 {
        GPR + number as i32 * 8
    }
}
