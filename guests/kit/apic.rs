//! The local APIC in xAPIC and x2APIC mode (Intel SDM vol. 3A chapter 11).
//!
//! Registers are named by their xAPIC offset; in x2APIC mode the same
//! functions use MSR 0x800 + offset / 16.

use crate::cpu::{self, msr};

/// Register offsets.
pub mod reg {
    #![allow(missing_docs)] // The names are the architecture's.
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
    pub const ICR: u32 = 0x300;
    pub const ICR_HIGH: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_LINT0: u32 = 0x350;
    pub const LVT_LINT1: u32 = 0x360;
    pub const LVT_ERROR: u32 = 0x370;
    pub const TIMER_INITIAL: u32 = 0x380;
    pub const TIMER_CURRENT: u32 = 0x390;
    pub const TIMER_DIVIDE: u32 = 0x3e0;
    pub const SELF_IPI: u32 = 0x3f0;
}

/// Physical address of the register page.
pub const BASE: u64 = 0xfee0_0000;
/// SVR: APIC software enable.
pub const SVR_ENABLE: u32 = 1 << 8;
/// LVT: masked.
pub const MASKED: u32 = 1 << 16;
/// LVT timer: periodic mode.
pub const PERIODIC: u32 = 1 << 17;
/// LVT timer: TSC-deadline mode.
pub const DEADLINE: u32 = 2 << 17;
/// LVT delivery mode: external interrupt from the PIC.
pub const EXTINT: u32 = 7 << 8;
/// ICR: delivery mode lowest priority.
pub const ICR_LOWEST: u32 = 1 << 8;
/// ICR: delivery mode INIT.
pub const ICR_INIT: u32 = 5 << 8;
/// ICR: delivery mode start-up, with the page number of the code as vector.
pub const ICR_STARTUP: u32 = 6 << 8;
/// ICR: the destination is logical.
pub const ICR_LOGICAL: u32 = 1 << 11;
/// ICR: delivery pending (xAPIC mode).
pub const ICR_PENDING: u32 = 1 << 12;
/// ICR: destination shorthand all including self.
pub const ICR_ALL: u32 = 2 << 18;
/// ICR: destination shorthand all excluding self.
pub const ICR_OTHERS: u32 = 3 << 18;
/// ICR: delivery mode NMI.
pub const ICR_NMI: u32 = 4 << 8;
/// ICR: level assert.
pub const ICR_ASSERT: u32 = 1 << 14;
/// ICR: destination shorthand self.
pub const ICR_SELF: u32 = 1 << 18;

const ENABLE: u64 = 1 << 11;
const X2APIC: u64 = 1 << 10;

/// Whether x2APIC mode is on.
pub fn is_x2apic() -> bool {
    cpu::rdmsr(msr::APIC_BASE) & X2APIC != 0
}

/// Turns x2APIC mode on.
pub fn enter_x2apic() {
    cpu::wrmsr(msr::APIC_BASE, cpu::rdmsr(msr::APIC_BASE) | ENABLE | X2APIC);
}

/// Goes to xAPIC mode, from x2APIC mode through the disabled state.
pub fn enter_xapic() {
    let base = cpu::rdmsr(msr::APIC_BASE) & !(ENABLE | X2APIC);
    if is_x2apic() {
        cpu::wrmsr(msr::APIC_BASE, base);
    }
    cpu::wrmsr(msr::APIC_BASE, base | ENABLE);
}

/// Reads a register.
pub fn read(reg: u32) -> u32 {
    if is_x2apic() {
        return cpu::rdmsr(0x800 + reg / 16) as u32;
    }
    // SAFETY: the register page is mapped uncached and outside Rust's memory.
    unsafe { ((BASE + u64::from(reg)) as *const u32).read_volatile() }
}

/// Writes a register.
pub fn write(reg: u32, value: u32) {
    if is_x2apic() {
        return cpu::wrmsr(0x800 + reg / 16, value.into());
    }
    // SAFETY: as for `read`.
    unsafe { ((BASE + u64::from(reg)) as *mut u32).write_volatile(value) }
}

/// Software-enables the APIC with spurious vector 0xff, everything masked,
/// task priority 0.
pub fn enable() {
    write(reg::SVR, SVR_ENABLE | 0xff);
    for lvt in [reg::LVT_TIMER, reg::LVT_LINT0, reg::LVT_LINT1, reg::LVT_ERROR] {
        write(lvt, MASKED | 0xfe);
    }
    write(reg::TPR, 0);
}

/// Signals the end of the interrupt in service.
pub fn eoi() {
    write(reg::EOI, 0);
}

/// Sends a fixed interrupt to this processor.
pub fn self_ipi(vector: u8) {
    write(reg::ICR, ICR_SELF | ICR_ASSERT | u32::from(vector));
}

/// Sends an interprocessor interrupt: `command` is the low half of the ICR,
/// `destination` a physical or logical ID in the form of the present mode.
pub fn ipi(destination: u32, command: u32) {
    if is_x2apic() {
        // WRMSR to the ICR does not wait for earlier stores (SDM vol. 3A 11.12.3).
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        return cpu::wrmsr(0x830, u64::from(destination) << 32 | u64::from(command));
    }
    write(reg::ICR_HIGH, destination << 24);
    write(reg::ICR, command);
    while read(reg::ICR) & ICR_PENDING != 0 {
        core::hint::spin_loop();
    }
}

/// Whether a vector's bit is set in a 256-bit register (ISR, TMR or IRR).
pub fn vector_bit(register: u32, vector: u8) -> bool {
    let word = read(register + u32::from(vector / 32) * 16);
    word >> (vector % 32) & 1 != 0
}
