//! Exceptions: vectors, classes and error codes (SDM vol. 3A 6.3, 6.15).

/// Exception vectors.
pub mod vector {
    /// #DE, divide error.
    pub const DE: u8 = 0;
    /// #DB, debug.
    pub const DB: u8 = 1;
    /// NMI.
    pub const NMI: u8 = 2;
    /// #BP, breakpoint.
    pub const BP: u8 = 3;
    /// #OF, overflow.
    pub const OF: u8 = 4;
    /// #BR, bound range.
    pub const BR: u8 = 5;
    /// #UD, invalid opcode.
    pub const UD: u8 = 6;
    /// #NM, device not available.
    pub const NM: u8 = 7;
    /// #DF, double fault.
    pub const DF: u8 = 8;
    /// #TS, invalid TSS.
    pub const TS: u8 = 10;
    /// #NP, segment not present.
    pub const NP: u8 = 11;
    /// #SS, stack fault.
    pub const SS: u8 = 12;
    /// #GP, general protection.
    pub const GP: u8 = 13;
    /// #PF, page fault.
    pub const PF: u8 = 14;
    /// #MF, x87 floating-point error.
    pub const MF: u8 = 16;
    /// #AC, alignment check.
    pub const AC: u8 = 17;
    /// #MC, machine check.
    pub const MC: u8 = 18;
    /// #XM, SIMD floating-point exception.
    pub const XM: u8 = 19;
}

/// Bits of a page fault's error code (SDM vol. 3A 4.7).
pub mod pf {
    /// The page was present: a protection violation or a reserved bit.
    pub const PRESENT: u32 = 1 << 0;
    /// The access was a write.
    pub const WRITE: u32 = 1 << 1;
    /// The access was a user access.
    pub const USER: u32 = 1 << 2;
    /// A reserved bit was set in an entry.
    pub const RESERVED: u32 = 1 << 3;
    /// The access was an instruction fetch.
    pub const FETCH: u32 = 1 << 4;
    /// Protection-key violation.
    pub const KEY: u32 = 1 << 5;
}

/// Bits of an error code that names a selector (SDM vol. 3A 6.13).
pub mod selector_error {
    /// The event came from outside the program: an interrupt or an earlier exception.
    pub const EXT: u32 = 1 << 0;
    /// The index is one of the IDT.
    pub const IDT: u32 = 1 << 1;
}

/// An exception that an instruction raises, before delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// Error code, for the vectors that push one.
    pub error_code: Option<u32>,
    /// Linear address, for #PF: goes to CR2.
    pub address: u64,
}

impl Exception {
    /// An exception without error code.
    pub const fn new(vector: u8) -> Self {
        Self { vector, error_code: None, address: 0 }
    }

    /// An exception with an error code.
    pub const fn with_code(vector: u8, code: u32) -> Self {
        Self { vector, error_code: Some(code), address: 0 }
    }

    /// #UD.
    pub const UD: Self = Self::new(vector::UD);
    /// #NM.
    pub const NM: Self = Self::new(vector::NM);
    /// #DE.
    pub const DE: Self = Self::new(vector::DE);
    /// #GP(0).
    pub const GP0: Self = Self::with_code(vector::GP, 0);
    /// #SS(0).
    pub const SS0: Self = Self::with_code(vector::SS, 0);
    /// #AC(0).
    pub const AC0: Self = Self::with_code(vector::AC, 0);

    /// #GP with a selector error code.
    pub const fn gp(code: u32) -> Self {
        Self::with_code(vector::GP, code)
    }

    /// #PF at linear address `address`; `code` as in [`pf`].
    pub const fn page_fault(address: u64, code: u32) -> Self {
        Self { vector: vector::PF, error_code: Some(code), address }
    }

    /// Whether the exception is contributory for double faults (SDM vol. 3A table 6-4).
    pub const fn is_contributory(self) -> bool {
        matches!(self.vector, 0 | 10..=13)
    }
}
