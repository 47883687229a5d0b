//! CPUID leaves: ranges, strings, and bits that follow control registers.

use kit::cpu::{self, cpuid, cr4, feature, msr};
use kit::{Outcome, Report, snippet};

pub fn run(t: &mut Report) {
    ranges(t);
    strings(t);
    dynamic(t);
    registers(t);
    sizes(t);
}

fn ranges(t: &mut Report) {
    t.holds("highest basic leaf", cpuid(0, 0).eax, |&leaf| (0xd..0x100).contains(&leaf));
    let extended = cpuid(0x8000_0000, 0).eax;
    t.holds("highest extended leaf", extended, |&leaf| leaf >= 0x8000_0008);
    let widths = cpuid(0x8000_0008, 0).eax;
    t.holds("physical address width", widths & 0xff, |w| (36..=52).contains(w));
    t.holds("linear address width", widths >> 8 & 0xff, |&w| w == 48 || w == 57);
    for (name, bit) in [("long mode", feature::NX.0), ("SSE2", 1)] {
        t.holds(format_args!("leaf of {name} exists"), bit, |&leaf| cpuid(leaf, 0).edx != 0);
    }
    let long_mode = cpuid(0x8000_0001, 0).edx >> 29 & 1;
    t.eq("long mode is offered", long_mode, 1);
    let leaf1 = cpuid(1, 0).edx;
    // FPU, PSE, TSC, MSR, PAE, CX8, APIC, CMOV, FXSR, SSE, SSE2.
    for (name, bit) in [
        ("FPU", 0),
        ("PSE", 3),
        ("TSC", 4),
        ("MSR", 5),
        ("PAE", 6),
        ("CX8", 8),
        ("CMOV", 15),
        ("FXSR", 24),
        ("SSE", 25),
        ("SSE2", 26),
    ] {
        t.eq(format_args!("{name} is offered"), leaf1 >> bit & 1, 1);
    }
}

fn printable(words: &[u32]) -> bool {
    words
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .all(|byte| byte == 0 || (32..127).contains(&byte))
}

fn strings(t: &mut Report) {
    let id = cpuid(0, 0);
    t.that("vendor is printable", id.ebx != 0 && printable(&[id.ebx, id.edx, id.ecx]));
    if cpuid(0x8000_0000, 0).eax < 0x8000_0004 {
        return t.skip("brand string", "no leaf 80000004");
    }
    let mut good = true;
    for leaf in 0x8000_0002..=0x8000_0004 {
        let part = cpuid(leaf, 0);
        good &= printable(&[part.eax, part.ebx, part.ecx, part.edx]);
    }
    t.that("brand string is printable", good);
}

/// Bits that show the present state.
fn dynamic(t: &mut Report) {
    if feature::XSAVE.offered() {
        let osxsave = || cpuid(1, 0).ecx >> 27 & 1;
        cpu::write_cr4(cpu::read_cr4() & !cr4::OSXSAVE);
        let off = osxsave();
        cpu::write_cr4(cpu::read_cr4() | cr4::OSXSAVE);
        t.eq("OSXSAVE follows CR4", (off, osxsave()), (0, 1));
        cpu::write_cr4(cpu::read_cr4() & !cr4::OSXSAVE);
    }
    let apic = || cpuid(1, 0).edx >> 9 & 1;
    let base = cpu::rdmsr(msr::APIC_BASE);
    let on = apic();
    cpu::wrmsr(msr::APIC_BASE, base & !(3 << 10));
    let off = apic();
    cpu::wrmsr(msr::APIC_BASE, base);
    t.eq("APIC follows the enable bit of its MSR", (on, off, apic()), (1, 0, 1));
}

/// CPUID, RDMSR, RDTSC and the like clear the upper halves.
fn registers(t: &mut Report) {
    let ones = u64::MAX;
    let mut check = |name: &str, code: kit::Code, ecx: u64| {
        let run = code.at(kit::Mode::Kernel64).rax(ones << 32).rbx(ones).rcx(ones << 32 | ecx);
        let trap = run.rdx(ones).run();
        let high = (trap.regs.rax | trap.regs.rdx) >> 32;
        t.eq(
            format_args!("{name} clears the upper halves"),
            (trap.outcome(), high),
            (Outcome::Done, 0),
        );
    };
    check("cpuid", snippet!("cpuid"), 0);
    check("rdmsr", snippet!("rdmsr"), 0xc000_0080);
    check("rdtsc", snippet!("rdtsc"), 0);
    let trap = snippet!("cpuid").at(kit::Mode::User64).rax(0).rbx(ones).rcx(ones).run();
    let high = (trap.regs.rbx | trap.regs.rcx) >> 32;
    t.eq("cpuid in ring 3 clears rbx and rcx", (trap.outcome(), high), (Outcome::Done, 0));
}

/// Leaf 0DH: the sizes that XSAVE areas need.
fn sizes(t: &mut Report) {
    if !feature::XSAVE.offered() {
        return t.skip("leaf 0DH", "no XSAVE");
    }
    cpu::write_cr4(cpu::read_cr4() | cr4::OSXSAVE);
    let xcr0 = cpu::xgetbv(0);
    let supported = u64::from(cpuid(13, 0).eax) | u64::from(cpuid(13, 0).edx) << 32;
    t.eq("x87 and SSE state are supported", supported & 3, 3);
    cpu::try_xsetbv(0, 1);
    t.eq("area size, x87", cpuid(13, 0).ebx, 576);
    cpu::try_xsetbv(0, 3);
    t.eq("area size, SSE", cpuid(13, 0).ebx, 576);
    if supported & 4 != 0 {
        let avx = cpuid(13, 2);
        t.eq("AVX component", (avx.eax, avx.ebx, avx.ecx), (256, 576, 0));
        cpu::try_xsetbv(0, 7);
        t.eq("area size, AVX", cpuid(13, 0).ebx, 832);
        t.eq("AVX feature bit", feature::AVX.offered(), true);
    } else {
        t.skip("AVX component", "not supported");
    }
    t.holds("largest area", cpuid(13, 0).ecx, |&size| size >= cpuid(13, 0).ebx);
    let mut table = t.table("components lie behind each other");
    for component in 2..63 {
        let leaf = cpuid(13, component);
        let offered = supported >> component & 1 != 0;
        if offered {
            let inside = leaf.ebx >= 576 && leaf.ebx + leaf.eax <= cpuid(13, 0).ecx;
            table.eq(format_args!("component {component}"), inside, true);
        } else if leaf.ecx & 1 == 0 {
            table.eq(format_args!("component {component} absent"), leaf.eax, 0);
        }
    }
    table.finish();
    cpu::try_xsetbv(0, xcr0);
    cpu::write_cr4(cpu::read_cr4() & !cr4::OSXSAVE);
}
