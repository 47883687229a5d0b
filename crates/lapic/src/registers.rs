//! Register offsets, bits and reset values (Intel SDM vol. 3A 11.4.1, table 11-1, and 11.12.1.2,
//! table 11-6).

/// Offsets in the xAPIC page; the x2APIC MSR is `0x800 + offset / 16`.
pub(crate) mod offset {
    pub(crate) const ID: u32 = 0x020;
    pub(crate) const VERSION: u32 = 0x030;
    pub(crate) const TPR: u32 = 0x080;
    pub(crate) const APR: u32 = 0x090;
    pub(crate) const PPR: u32 = 0x0a0;
    pub(crate) const EOI: u32 = 0x0b0;
    pub(crate) const RRD: u32 = 0x0c0;
    pub(crate) const LDR: u32 = 0x0d0;
    pub(crate) const DFR: u32 = 0x0e0;
    pub(crate) const SVR: u32 = 0x0f0;
    pub(crate) const ISR: u32 = 0x100;
    pub(crate) const ISR_LAST: u32 = 0x170;
    pub(crate) const TMR: u32 = 0x180;
    pub(crate) const TMR_LAST: u32 = 0x1f0;
    pub(crate) const IRR: u32 = 0x200;
    pub(crate) const IRR_LAST: u32 = 0x270;
    pub(crate) const ESR: u32 = 0x280;
    pub(crate) const ICR_LOW: u32 = 0x300;
    pub(crate) const ICR_HIGH: u32 = 0x310;
    pub(crate) const LVT_TIMER: u32 = 0x320;
    // Thermal sensor and performance counters at 0x330 and 0x340.
    pub(crate) const LVT_LINT0: u32 = 0x350;
    pub(crate) const LVT_LINT1: u32 = 0x360;
    pub(crate) const LVT_ERROR: u32 = 0x370;
    pub(crate) const INITIAL_COUNT: u32 = 0x380;
    pub(crate) const CURRENT_COUNT: u32 = 0x390;
    pub(crate) const DIVIDE: u32 = 0x3e0;
    /// Only in x2APIC mode.
    pub(crate) const SELF_IPI: u32 = 0x3f0;
}

/// Value of the version register: version 0x14, highest LVT entry 5, no EOI-broadcast
/// suppression.
pub(crate) const VERSION: u32 = 0x0005_0014;

/// IA32_APIC_BASE (Intel SDM vol. 3A 11.4.4).
pub(crate) mod base {
    pub(crate) const BSP: u64 = 1 << 8;
    pub(crate) const X2APIC: u64 = 1 << 10;
    pub(crate) const ENABLE: u64 = 1 << 11;
    /// The page, up to the physical address width.
    pub(crate) const PAGE: u64 = !0xfff;
    pub(crate) const DEFAULT_PAGE: u64 = 0xfee0_0000;
}

/// Spurious-interrupt vector register (Intel SDM vol. 3A 11.9).
pub(crate) mod svr {
    pub(crate) const VECTOR: u32 = 0xff;
    pub(crate) const ENABLE: u32 = 1 << 8;
    /// Vector, enable, and focus processor checking, which is kept but means nothing since there
    /// is no focus processor.
    pub(crate) const WRITABLE: u32 = 0x3ff;
    pub(crate) const RESET: u32 = 0xff;
}

/// Local vector table entries (Intel SDM vol. 3A 11.5.1, figure 11-8).
pub(crate) mod lvt {
    pub(crate) const VECTOR: u32 = 0xff;
    pub(crate) const DELIVERY_SHIFT: u32 = 8;
    /// Read-only: there is nothing that could be pending at the APIC.
    pub(crate) const DELIVERY_STATUS: u32 = 1 << 12;
    /// Read-only.
    pub(crate) const REMOTE_IRR: u32 = 1 << 14;
    pub(crate) const LEVEL: u32 = 1 << 15;
    pub(crate) const MASKED: u32 = 1 << 16;
    pub(crate) const RESET: u32 = MASKED;
    /// Writable bits of the entries, in the order of the table.
    pub(crate) const WRITABLE: [u32; 6] = [
        0x0007_00ff, // timer: vector, mask, mode
        0x0001_07ff, // thermal: vector, delivery mode, mask
        0x0001_07ff, // performance counters: the same
        0x0001_a7ff, // LINT0: also polarity and trigger mode
        0x0001_a7ff, // LINT1
        0x0001_00ff, // error: vector, mask
    ];
}

/// Interrupt command register (Intel SDM vol. 3A 11.6.1, 11.12.9).
pub(crate) mod icr {
    pub(crate) const DELIVERY_SHIFT: u32 = 8;
    pub(crate) const LOGICAL: u32 = 1 << 11;
    /// Delivery status: always idle. Ignored on writes, also in x2APIC mode.
    pub(crate) const BUSY: u32 = 1 << 12;
    pub(crate) const ASSERT: u32 = 1 << 14;
    pub(crate) const LEVEL: u32 = 1 << 15;
    pub(crate) const SHORTHAND_SHIFT: u32 = 18;
    pub(crate) const WRITABLE: u32 = 0x000c_cfff;
}

/// Destination format register: bits 27:0 read as ones.
pub(crate) const DFR_ONES: u32 = 0x0fff_ffff;
/// Reset value of the destination format register: flat model.
pub(crate) const DFR_RESET: u32 = u32::MAX;
/// Writable bits of the logical destination register of xAPIC mode.
pub(crate) const LDR_WRITABLE: u32 = 0xff00_0000;
/// Writable bits of the divide configuration register.
pub(crate) const DIVIDE_WRITABLE: u32 = 0b1011;

/// Error status register (Intel SDM vol. 3A 11.5.3).
pub(crate) mod esr {
    pub(crate) const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub(crate) const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub(crate) const ILLEGAL_REGISTER: u32 = 1 << 7;
    /// All error bits that there are.
    pub(crate) const DEFINED: u32 = 0xff;
}
