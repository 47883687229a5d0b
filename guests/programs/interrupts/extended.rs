//! x2APIC mode: the MSR interface, its faults, and the mode changes (SDM vol.
//! 3A 11.12). The tests of xAPIC mode run again in it.

use crate::{Log, clear_log, log_eoi, logged};
use kit::apic::{self, reg};
use kit::cpu::{self, feature, msr};
use kit::trap::vector::GP;
use kit::{Report, trap};

pub fn run(t: &mut Report) {
    if !feature::X2APIC.offered() {
        return t.skip("x2APIC", "not offered");
    }
    t.eq("#GP MSR 802 in xAPIC mode", cpu::try_rdmsr(0x802), Err(GP));
    let base = cpu::rdmsr(msr::APIC_BASE);
    t.eq(
        "#GP x2APIC without enable",
        cpu::try_wrmsr(msr::APIC_BASE, base & !(1 << 11) | 1 << 10),
        Some(GP),
    );
    apic::enter_x2apic();
    apic::enable();
    access(t);
    self_ipi(t);
    crate::local::run(t, "x2APIC");
    crate::timer::run(t, "x2APIC");
    let base = cpu::rdmsr(msr::APIC_BASE);
    let back = cpu::try_wrmsr(msr::APIC_BASE, base & !(1 << 10));
    t.eq("#GP x2APIC to xAPIC directly", back, Some(GP));
    apic::enter_xapic();
    apic::enable();
    t.eq("back in xAPIC mode through disabled", apic::read(reg::SVR) & 0x1ff, 0x1ff);
}

fn access(t: &mut Report) {
    let id = cpu::rdmsr(0x802);
    t.eq("x2APIC: logical ID from the ID", cpu::rdmsr(0x80d), (id >> 4) << 16 | 1 << (id & 15));
    let msr_of = |register: u32| 0x800 + register / 16;
    for (name, register) in [
        ("ID", reg::ID),
        ("version", reg::VERSION),
        ("PPR", reg::PPR),
        ("LDR", reg::LDR),
        ("ISR", reg::ISR),
        ("IRR", reg::IRR),
        ("current count", reg::TIMER_CURRENT),
    ] {
        let result = cpu::try_wrmsr(msr_of(register), 0);
        t.eq(format_args!("#GP x2APIC write to {name}"), result, Some(GP));
    }
    for (name, number) in [
        ("DFR", msr_of(reg::DFR)),
        ("ICR high", msr_of(reg::ICR_HIGH)),
        ("EOI read", msr_of(reg::EOI)),
        ("self IPI read", msr_of(reg::SELF_IPI)),
        ("MSR 800", 0x800),
        ("MSR 8ff", 0x8ff),
    ] {
        t.eq(format_args!("#GP x2APIC {name}"), cpu::try_rdmsr(number), Err(GP));
    }
    t.eq("#GP x2APIC EOI of 1", cpu::try_wrmsr(0x80b, 1), Some(GP));
    t.eq("#GP x2APIC ESR of 1", cpu::try_wrmsr(0x828, 1), Some(GP));
    t.eq("#GP x2APIC TPR of 256", cpu::try_wrmsr(0x808, 256), Some(GP));
    t.eq("#GP x2APIC SVR reserved bit", cpu::try_wrmsr(0x80f, 1 << 32 | 0x1ff), Some(GP));
}

fn self_ipi(t: &mut Report) {
    trap::hook(0x77, Some(log_eoi));
    clear_log();
    cpu::wrmsr(0x83f, 0x77);
    cpu::interrupt_window();
    t.eq("x2APIC: self IPI register", logged(), Log::of(&[0x77]));
    clear_log();
    let id = cpu::rdmsr(0x802);
    cpu::wrmsr(0x830, id << 32 | 0x4077);
    cpu::interrupt_window();
    t.eq("x2APIC: ICR to the own ID", logged(), Log::of(&[0x77]));
    trap::hook(0x77, None);
}
