//! Control registers, EFER and RFLAGS (SDM vol. 3A 2.3, 2.5; vol. 1 3.4.3).

/// Bits of CR0.
pub mod cr0 {
    /// Protection enable.
    pub const PE: u64 = 1 << 0;
    /// Monitor coprocessor.
    pub const MP: u64 = 1 << 1;
    /// Emulation: x87 instructions raise #NM, SSE ones #UD.
    pub const EM: u64 = 1 << 2;
    /// Task switched.
    pub const TS: u64 = 1 << 3;
    /// Extension type, always one.
    pub const ET: u64 = 1 << 4;
    /// Numeric error: x87 errors raise #MF.
    pub const NE: u64 = 1 << 5;
    /// Write protect: supervisor writes obey read-only pages.
    pub const WP: u64 = 1 << 16;
    /// Alignment mask.
    pub const AM: u64 = 1 << 18;
    /// Not write-through.
    pub const NW: u64 = 1 << 29;
    /// Cache disable.
    pub const CD: u64 = 1 << 30;
    /// Paging.
    pub const PG: u64 = 1 << 31;
    /// All defined bits.
    pub const ALL: u64 = PE | MP | EM | TS | ET | NE | WP | AM | NW | CD | PG;
}

/// Bits of CR4.
pub mod cr4 {
    /// Virtual-8086 mode extensions.
    pub const VME: u64 = 1 << 0;
    /// Protected-mode virtual interrupts.
    pub const PVI: u64 = 1 << 1;
    /// Time stamp disable: RDTSC only at CPL 0.
    pub const TSD: u64 = 1 << 2;
    /// Debugging extensions.
    pub const DE: u64 = 1 << 3;
    /// 4 MiB pages in 32-bit paging.
    pub const PSE: u64 = 1 << 4;
    /// Physical address extension.
    pub const PAE: u64 = 1 << 5;
    /// Machine-check enable.
    pub const MCE: u64 = 1 << 6;
    /// Global pages.
    pub const PGE: u64 = 1 << 7;
    /// RDPMC at any CPL.
    pub const PCE: u64 = 1 << 8;
    /// FXSAVE, FXRSTOR and SSE.
    pub const OSFXSR: u64 = 1 << 9;
    /// #XM for SIMD floating-point exceptions.
    pub const OSXMMEXCPT: u64 = 1 << 10;
    /// User-mode instruction prevention.
    pub const UMIP: u64 = 1 << 11;
    /// 5-level paging.
    pub const LA57: u64 = 1 << 12;
    /// RDFSBASE and its relatives.
    pub const FSGSBASE: u64 = 1 << 16;
    /// Process-context identifiers.
    pub const PCIDE: u64 = 1 << 17;
    /// XSAVE and extended states.
    pub const OSXSAVE: u64 = 1 << 18;
    /// Supervisor-mode execution prevention.
    pub const SMEP: u64 = 1 << 20;
    /// Supervisor-mode access prevention.
    pub const SMAP: u64 = 1 << 21;
    /// Protection keys for user pages.
    pub const PKE: u64 = 1 << 22;
}

/// Bits of EFER.
pub mod efer {
    /// SYSCALL enable.
    pub const SCE: u64 = 1 << 0;
    /// Long mode enable.
    pub const LME: u64 = 1 << 8;
    /// Long mode active.
    pub const LMA: u64 = 1 << 10;
    /// No-execute enable.
    pub const NXE: u64 = 1 << 11;
}

/// Bits of RFLAGS.
pub mod rflags {
    /// Carry.
    pub const CF: u64 = 1 << 0;
    /// Reads as one.
    pub const FIXED: u64 = 1 << 1;
    /// Parity.
    pub const PF: u64 = 1 << 2;
    /// Auxiliary carry.
    pub const AF: u64 = 1 << 4;
    /// Zero.
    pub const ZF: u64 = 1 << 6;
    /// Sign.
    pub const SF: u64 = 1 << 7;
    /// Trap: single-step.
    pub const TF: u64 = 1 << 8;
    /// Interrupt enable.
    pub const IF: u64 = 1 << 9;
    /// Direction.
    pub const DF: u64 = 1 << 10;
    /// Overflow.
    pub const OF: u64 = 1 << 11;
    /// I/O privilege level, two bits.
    pub const IOPL: u64 = 3 << 12;
    /// Nested task.
    pub const NT: u64 = 1 << 14;
    /// Resume.
    pub const RF: u64 = 1 << 16;
    /// Virtual-8086 mode.
    pub const VM: u64 = 1 << 17;
    /// Alignment check, and SMAP override.
    pub const AC: u64 = 1 << 18;
    /// Virtual interrupt.
    pub const VIF: u64 = 1 << 19;
    /// Virtual interrupt pending.
    pub const VIP: u64 = 1 << 20;
    /// CPUID can be used.
    pub const ID: u64 = 1 << 21;
    /// The six arithmetic flags.
    pub const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;
    /// All bits that can be other than their fixed value.
    pub const ALL: u64 = ARITHMETIC | TF | IF | DF | IOPL | NT | RF | VM | AC | VIF | VIP | ID;
}

/// Bits of DR6 and DR7 (SDM vol. 3B 18.2).
pub mod dr {
    /// DR6: single-step.
    pub const DR6_BS: u64 = 1 << 14;
    /// DR6: access to a debug register while DR7.GD was set.
    pub const DR6_BD: u64 = 1 << 13;
    /// DR6: switch to a task whose TSS has the T flag.
    pub const DR6_BT: u64 = 1 << 15;
    /// DR6: bits that read as one.
    pub const DR6_FIXED: u64 = 0xffff_0ff0;
    /// DR6: bits that software can change (B0-B3, BD, BS, BT).
    pub const DR6_WRITABLE: u64 = 0xe00f;
    /// DR7: general detect.
    pub const DR7_GD: u64 = 1 << 13;
    /// DR7: bit that reads as one.
    pub const DR7_FIXED: u64 = 1 << 10;
    /// DR7: bits that software can change.
    pub const DR7_WRITABLE: u64 = 0xffff_23ff;
    /// DR7: L0 to L3 and LE, which a task switch clears.
    pub const DR7_LOCAL: u64 = 0x155;
    /// DR7: local and global enable bits of all four breakpoints.
    pub const DR7_ENABLES: u64 = 0xff;
}

/// XCR0 bits (SDM vol. 1 13.1).
pub mod xcr0 {
    /// x87 state; always one.
    pub const X87: u64 = 1 << 0;
    /// SSE state.
    pub const SSE: u64 = 1 << 1;
    /// AVX state: upper halves of the YMM registers.
    pub const AVX: u64 = 1 << 2;
}
