//! The local APIC against the rules of Intel SDM vol. 3A chapter 11. Each module header names the
//! sections that its tests state.

mod destinations;
mod interrupts;
mod local_vectors;
mod mailbox;
mod random;
mod registers;
mod saved;
mod timer;
mod x2apic;

use lapic::{LocalApic, LocalApicConfig};

/// Register offsets of table 11-1, as a guest writes them.
mod reg {
    pub const ID: u32 = 0x20;
    pub const VERSION: u32 = 0x30;
    pub const TPR: u32 = 0x80;
    pub const PPR: u32 = 0xa0;
    pub const EOI: u32 = 0xb0;
    pub const LDR: u32 = 0xd0;
    pub const DFR: u32 = 0xe0;
    pub const SVR: u32 = 0xf0;
    pub const ISR: u32 = 0x100;
    pub const TMR: u32 = 0x180;
    pub const IRR: u32 = 0x200;
    pub const ESR: u32 = 0x280;
    pub const ICR_LOW: u32 = 0x300;
    pub const ICR_HIGH: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_THERMAL: u32 = 0x330;
    pub const LVT_PERFORMANCE: u32 = 0x340;
    pub const LVT_LINT0: u32 = 0x350;
    pub const LVT_LINT1: u32 = 0x360;
    pub const LVT_ERROR: u32 = 0x370;
    pub const INITIAL: u32 = 0x380;
    pub const CURRENT: u32 = 0x390;
    pub const DIVIDE: u32 = 0x3e0;
}

const TSC_DEADLINE: u32 = 0x6e0;
const MASKED: u32 = 1 << 16;
const BASE: u64 = 0xfee0_0000;
const ENABLE: u64 = 1 << 11;
const X2APIC: u64 = 1 << 10;
const BSP: u64 = 1 << 8;

/// An APIC after power-on.
fn fresh(apic_id: u32) -> LocalApic {
    LocalApic::new(LocalApicConfig { apic_id, bsp: apic_id == 0, ..LocalApicConfig::default() })
}

/// A software-enabled APIC in xAPIC mode, spurious vector 0xff.
fn enabled() -> LocalApic {
    let mut apic = fresh(0);
    apic.mmio_write(reg::SVR, 0x1ff, 0);
    apic
}

/// A software-enabled APIC in x2APIC mode.
fn enabled_x2apic(apic_id: u32) -> LocalApic {
    let mut apic = fresh(apic_id);
    apic.set_base_msr(apic.base_msr() | X2APIC).expect("x2APIC mode");
    apic.msr_write(msr(reg::SVR), 0x1ff, 0).expect("enable");
    apic
}

/// The x2APIC MSR of the register at `offset`.
fn msr(offset: u32) -> u32 {
    0x800 + offset / 16
}
