//! Segment registers and descriptors (SDM vol. 3A 3.4, 3.5, 6.14, 7.2).

use serde::{Deserialize, Serialize};

/// Indexes of segment registers in encoding order.
pub mod seg {
    /// ES.
    pub const ES: usize = 0;
    /// CS.
    pub const CS: usize = 1;
    /// SS.
    pub const SS: usize = 2;
    /// DS.
    pub const DS: usize = 3;
    /// FS.
    pub const FS: usize = 4;
    /// GS.
    pub const GS: usize = 5;
}

/// A segment register (or LDTR, TR) with its hidden part.
///
/// `attributes` has the layout of bits 40 to 55 of a descriptor without the limit: type 3:0, S 4,
/// DPL 6:5, P 7, AVL 8, L 9, D/B 10, G 11. A register that holds a null selector has P clear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Visible selector.
    pub selector: u16,
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, after granularity.
    pub limit: u32,
    /// Type and flags.
    pub attributes: u16,
}

impl Segment {
    /// Type field, 4 bits.
    pub const fn kind(&self) -> u8 {
        (self.attributes & 0xf) as u8
    }

    /// Code or data (S set), not a system segment.
    pub const fn is_code_or_data(&self) -> bool {
        self.attributes & 1 << 4 != 0
    }

    /// Descriptor privilege level.
    pub const fn dpl(&self) -> u8 {
        (self.attributes >> 5 & 3) as u8
    }

    /// Present.
    pub const fn present(&self) -> bool {
        self.attributes & 1 << 7 != 0
    }

    /// 64-bit code segment.
    pub const fn long(&self) -> bool {
        self.attributes & 1 << 9 != 0
    }

    /// Default operand size 32 (code), 32-bit stack pointer (stack), upper bound 4 GiB
    /// (expand-down data).
    pub const fn big(&self) -> bool {
        self.attributes & 1 << 10 != 0
    }

    /// Code segment.
    pub const fn is_code(&self) -> bool {
        self.is_code_or_data() && self.attributes & 8 != 0
    }

    /// Conforming code segment.
    pub const fn is_conforming(&self) -> bool {
        self.is_code() && self.attributes & 4 != 0
    }

    /// Data segment, or readable code segment.
    pub const fn is_readable(&self) -> bool {
        self.is_code_or_data() && (self.attributes & 8 == 0 || self.attributes & 2 != 0)
    }

    /// Writable data segment.
    pub const fn is_writable(&self) -> bool {
        self.is_code_or_data() && self.attributes & 0xa == 2
    }

    /// Expand-down data segment.
    pub const fn is_expand_down(&self) -> bool {
        self.is_code_or_data() && self.attributes & 0xc == 4
    }

    /// Present writable data that grows upwards and has all 4 GiB: the common case, in which
    /// neither type nor limit forbids anything.
    #[inline]
    pub const fn spans_all(&self) -> bool {
        // P and S set; code and expand-down clear; writable set.
        self.attributes & 0x9e == 0x92 && self.limit == 0xffff_ffff
    }

    /// Whether `size` bytes at `offset` lie inside the segment (SDM vol. 3A 5.3). `size` is not 0.
    #[inline]
    pub const fn contains(&self, offset: u64, size: u64) -> bool {
        let Some(last) = offset.checked_add(size - 1) else { return false };
        if !self.is_expand_down() {
            return last <= self.limit as u64;
        }
        let upper = if self.big() { 0xffff_ffff } else { 0xffff };
        offset > self.limit as u64 && last <= upper
    }

    /// Any segment in virtual-8086 mode: 64 KiB of writable data at privilege level 3 (SDM vol. 3B
    /// 21.2.1; the attributes are those of vol. 3C 27.3.1.2).
    pub const fn virtual_8086(selector: u16) -> Self {
        Self { selector, base: (selector as u64) << 4, limit: 0xffff, attributes: 0xf3 }
    }

    /// Unpacks the low 8 bytes of a descriptor, for `selector`.
    pub const fn from_descriptor(selector: u16, raw: u64) -> Self {
        let base = (raw >> 16 & 0xff_ffff) | (raw >> 56 & 0xff) << 24;
        let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
        let attributes = (raw >> 40 & 0xff | (raw >> 52 & 0xf) << 8) as u16;
        let limit = if attributes & 1 << 11 != 0 { limit << 12 | 0xfff } else { limit };
        Self { selector, base, limit, attributes }
    }

    /// A flat code or data segment: base 0, limit 4 GiB.
    pub const fn flat(selector: u16, attributes: u16) -> Self {
        Self { selector, base: 0, limit: 0xffff_ffff, attributes }
    }
}

/// A descriptor table register (GDTR, IDTR).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRegister {
    /// Linear base address.
    pub base: u64,
    /// Size in bytes minus one.
    pub limit: u16,
}

/// Types of system descriptors and gates (S clear; SDM vol. 3A table 3-2).
pub mod system {
    /// 16-bit TSS, available.
    pub const TSS16_AVAILABLE: u8 = 1;
    /// LDT.
    pub const LDT: u8 = 2;
    /// 16-bit TSS, busy.
    pub const TSS16_BUSY: u8 = 3;
    /// 16-bit call gate.
    pub const CALL_GATE16: u8 = 4;
    /// Task gate.
    pub const TASK_GATE: u8 = 5;
    /// 16-bit interrupt gate.
    pub const INTERRUPT_GATE16: u8 = 6;
    /// 16-bit trap gate.
    pub const TRAP_GATE16: u8 = 7;
    /// 32- or 64-bit TSS, available.
    pub const TSS_AVAILABLE: u8 = 9;
    /// 32- or 64-bit TSS, busy.
    pub const TSS_BUSY: u8 = 11;
    /// 32- or 64-bit call gate.
    pub const CALL_GATE: u8 = 12;
    /// 32- or 64-bit interrupt gate.
    pub const INTERRUPT_GATE: u8 = 14;
    /// 32- or 64-bit trap gate.
    pub const TRAP_GATE: u8 = 15;
}

/// Where a task-state segment keeps the state of its task: byte offsets from its base (SDM vol. 3A
/// 8.2.1 for 32-bit, 8.6 for 16-bit). The link to the previous task is the word at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TssLayout {
    /// Bytes of a register: 4 or 2.
    pub slot: u64,
    /// Smallest limit of such a segment.
    pub minimum_limit: u32,
    /// CR3, which a 16-bit TSS lacks.
    pub cr3: Option<u64>,
    /// EIP or IP; EFLAGS or FLAGS and then the registers follow it.
    pub ip: u64,
    /// EFLAGS or FLAGS.
    pub flags: u64,
    /// The eight general registers in encoding order.
    pub registers: u64,
    /// Selectors of ES, CS, SS, DS, and in a 32-bit TSS of FS and GS, one for each slot.
    pub segments: u64,
    /// How many of them there are.
    pub segment_count: usize,
    /// Selector of the LDT.
    pub ldt: u64,
    /// Word whose bit 0 asks for a debug trap on a switch to the task.
    pub trap: Option<u64>,
}

impl TssLayout {
    /// 32-bit task-state segment.
    pub const BITS32: Self = Self {
        slot: 4,
        minimum_limit: 0x67,
        cr3: Some(0x1c),
        ip: 0x20,
        flags: 0x24,
        registers: 0x28,
        segments: 0x48,
        segment_count: 6,
        ldt: 0x60,
        trap: Some(0x64),
    };

    /// 16-bit task-state segment.
    pub const BITS16: Self = Self {
        slot: 2,
        minimum_limit: 0x2b,
        cr3: None,
        ip: 0x0e,
        flags: 0x10,
        registers: 0x12,
        segments: 0x22,
        segment_count: 4,
        ldt: 0x2a,
        trap: None,
    };

    /// The layout that a TSS descriptor's type asks for.
    pub const fn of(kind: u8) -> Self {
        if kind & 8 != 0 { Self::BITS32 } else { Self::BITS16 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expand_down_segment_holds_what_lies_above_its_limit() {
        // Type 7: data, expand-down, writable, accessed; limit 0xfff.
        let small = Segment { limit: 0xfff, attributes: 0x97, ..Segment::default() };
        let holds = |segment: &Segment, offset, size| segment.contains(offset, size);
        assert!(holds(&small, 0x1000, 4) && holds(&small, 0xfffc, 4));
        assert!(!holds(&small, 0xfff, 4) && !holds(&small, 0xfffd, 4));
        let big = Segment { attributes: 0x497, ..small };
        assert!(holds(&big, 0xfffd, 4) && holds(&big, 0xffff_fffc, 4));
        assert!(!holds(&big, 0xffff_fffd, 4) && !holds(&big, u64::MAX, 2));
    }

    #[test]
    fn a_flat_code_descriptor_unpacks() {
        let cs = Segment::from_descriptor(0x10, 0x00af_9b00_0000_ffff);
        assert_eq!((cs.base, cs.limit, cs.dpl()), (0, 0xffff_ffff, 0));
        assert!(cs.present() && cs.is_code() && cs.long() && cs.is_readable());
        assert!(!cs.big() && !cs.is_conforming() && !cs.is_writable());
    }

    #[test]
    fn base_and_limit_are_gathered() {
        let data = Segment::from_descriptor(0x23, 0x12cf_f334_5678_9abc);
        assert_eq!(data.base, 0x1234_5678);
        assert_eq!(data.limit, 0xf9ab_cfff);
        assert!(data.is_writable() && data.dpl() == 3 && data.big());
    }
}
