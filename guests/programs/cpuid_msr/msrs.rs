//! Model-specific registers: unknown numbers, reserved bits, values after
//! reset (SDM vol. 3A 11.12, vol. 4).

use kit::cpu::{self, cpuid, msr};
use kit::trap::vector::GP;
use kit::{Mode, Report, snippet};

pub fn run(t: &mut Report) {
    unknown(t);
    pat(t);
    apic_base(t);
    mtrr(t);
    number(t);
}

fn unknown(t: &mut Report) {
    for number in [0x1234_5678, 0x0fff_ffff, 0xc000_0fff, 0xc001_ffff, 0xffff_ffff] {
        t.eq(format_args!("#GP rdmsr {number:#x}"), cpu::try_rdmsr(number), Err(GP));
        t.eq(format_args!("#GP wrmsr {number:#x}"), cpu::try_wrmsr(number, 0), Some(GP));
    }
}

fn pat(t: &mut Report) {
    let good = cpu::rdmsr(msr::PAT);
    t.eq("PAT after reset", good, 0x0007_0406_0007_0406);
    for kind in 0..=8u64 {
        let value = good & !(0xff << 40) | kind << 40;
        let expected = if matches!(kind, 0 | 1 | 4 | 5 | 6 | 7) { None } else { Some(GP) };
        t.eq(format_args!("PAT type {kind}"), cpu::try_wrmsr(msr::PAT, value), expected);
        if expected.is_none() {
            t.eq(format_args!("PAT type {kind} reads back"), cpu::rdmsr(msr::PAT), value);
        }
    }
    cpu::wrmsr(msr::PAT, good);
}

fn apic_base(t: &mut Report) {
    let good = cpu::rdmsr(msr::APIC_BASE);
    t.eq("APIC base address", good & 0xf_ffff_f000, 0xfee0_0000);
    for (name, bit) in [("bit 0", 0), ("bit 7", 7), ("bit 9", 9)] {
        let result = cpu::try_wrmsr(msr::APIC_BASE, good | 1 << bit);
        cpu::wrmsr(msr::APIC_BASE, good);
        t.eq(format_args!("#GP APIC_BASE: {name}"), result, Some(GP));
    }
    let width = cpu::physical_bits();
    if width < 52 {
        let result = cpu::try_wrmsr(msr::APIC_BASE, good | 1 << width);
        cpu::wrmsr(msr::APIC_BASE, good);
        t.eq("#GP APIC_BASE: beyond the physical width", result, Some(GP));
    }
}

fn mtrr(t: &mut Report) {
    if cpuid(1, 0).edx >> 12 & 1 == 0 {
        return t.skip("MTRR", "not offered");
    }
    let capability = cpu::rdmsr(0xfe);
    t.holds("MTRR capability", capability, |&c| c & 0xff <= 32);
    t.eq("#GP write to the MTRR capability", cpu::try_wrmsr(0xfe, capability), Some(GP));
    let default = cpu::rdmsr(0x2ff);
    cpu::wrmsr(0x2ff, 0xc06);
    t.eq("MTRR default type", cpu::rdmsr(0x2ff), 0xc06);
    t.eq("#GP MTRR default type 2", cpu::try_wrmsr(0x2ff, 0xc02), Some(GP));
    t.eq("#GP MTRR default type, reserved bit", cpu::try_wrmsr(0x2ff, 1 << 20), Some(GP));
    cpu::wrmsr(0x2ff, default);
    if capability & 0xff != 0 {
        cpu::wrmsr(0x200, 0x8000_0006);
        t.eq("MTRR base 0 reads back", cpu::rdmsr(0x200), 0x8000_0006);
        t.eq("#GP MTRR base of type 3", cpu::try_wrmsr(0x200, 3), Some(GP));
        cpu::wrmsr(0x200, 0);
    }
    if capability >> 8 & 1 != 0 {
        let old = cpu::rdmsr(0x250);
        cpu::wrmsr(0x250, 0x0606_0606_0606_0606);
        t.eq("fixed MTRR reads back", cpu::rdmsr(0x250), 0x0606_0606_0606_0606);
        t.eq("#GP fixed MTRR of type 7", cpu::try_wrmsr(0x250, 7), Some(GP));
        cpu::wrmsr(0x250, old);
    }
}

/// RDMSR and WRMSR take the number from ECX alone.
fn number(t: &mut Report) {
    let code = snippet!("rdmsr");
    let trap = code.at(Mode::Kernel64).rcx(0xdead_0000_0000_0277).run();
    let value = trap.regs.rdx << 32 | trap.regs.rax;
    t.eq("rdmsr ignores the upper half of rcx", value, cpu::rdmsr(msr::PAT));
    let counter = snippet!("rdpmc").at(Mode::Kernel64).rcx(0x3fff_ffff).run();
    t.eq("#GP rdpmc of a counter that is not there", counter.vector, GP);
}
