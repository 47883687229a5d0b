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

#[cfg(test)]
mod tests {
    use super::*;

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
