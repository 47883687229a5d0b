//! Control registers and EFER: reserved bits and forbidden combinations (SDM
//! vol. 3A 2.5, vol. 2B MOV; APM vol. 2 3.1).

use kit::boot;
use kit::cpu::{self, Feature, Output, cr0, feature, msr};
use kit::snippet::bytes;
use kit::trap::vector::*;
use kit::{Outcome, Report};

pub fn run(t: &mut Report) {
    cr0(t);
    cr2(t);
    cr3(t);
    cr4(t);
    efer(t);
    encodings(t);
}

fn cr0(t: &mut Report) {
    let good = cpu::read_cr0();
    t.eq("CR0 as the entry code set it", good, boot::CR0);
    for (name, value) in
        [("NW without CD", good | cr0::NW), ("bit 32", good | 1 << 32), ("bit 63", good | 1 << 63)]
    {
        t.eq(format_args!("#GP CR0: {name}"), cpu::try_write_cr0(value), Some(GP));
        t.eq(format_args!("CR0 unchanged: {name}"), cpu::read_cr0(), good);
    }
    cpu::write_cr0(good & !(1 << 4));
    t.eq("CR0.ET is always set", cpu::read_cr0(), good);
    cpu::write_cr0(good | cr0::CD | cr0::NW);
    t.eq("CR0.CD and NW", cpu::read_cr0() & (cr0::CD | cr0::NW), cr0::CD | cr0::NW);
    cpu::write_cr0(good);
    cpu::write_cr0(good | cr0::AM);
    t.eq("CR0.AM", cpu::read_cr0(), good | cr0::AM);
    cpu::write_cr0(good);
}

fn cr2(t: &mut Report) {
    cpu::write_cr2(0x0123_4567_89ab_cdef);
    t.eq("CR2 takes any value", cpu::read_cr2(), 0x0123_4567_89ab_cdef);
}

fn cr3(t: &mut Report) {
    let good = cpu::read_cr3();
    cpu::write_cr3(good | 0x18);
    t.eq("CR3.PWT and PCD", cpu::read_cr3(), good | 0x18);
    cpu::write_cr3(good);
}

/// CR4 bits without conditions of their own; `lockout` has the others.
fn cr4(t: &mut Report) {
    let good = cpu::read_cr4();
    t.eq("CR4 as the entry code set it", good, boot::CR4);
    for (name, bit, feature) in [
        ("PGE", 7, feature::PGE),
        ("UMIP", 11, feature::UMIP),
        ("FSGSBASE", 16, feature::FSGSBASE),
        ("OSXSAVE", 18, feature::XSAVE),
        ("SMEP", 20, feature::SMEP),
        ("SMAP", 21, feature::SMAP),
        ("PKE", 22, feature::PKU),
    ] {
        if !feature.offered() {
            t.skip(format_args!("CR4.{name}"), "not offered");
            continue;
        }
        let value = good | 1 << bit;
        let result = cpu::try_write_cr4(value);
        let now = cpu::read_cr4();
        cpu::write_cr4(good);
        t.eq(format_args!("CR4.{name}"), (result, now), (None, value));
    }
}

fn efer(t: &mut Report) {
    const LMA: u64 = 1 << 10;
    let good = cpu::rdmsr(msr::EFER);
    t.eq("EFER as the entry code set it", good, boot::EFER | LMA);
    for (name, value) in [
        ("bit 1", good | 1 << 1),
        ("bit 7", good | 1 << 7),
        ("bit 9", good | 1 << 9),
        ("bit 16", good | 1 << 16),
        ("bit 63", good | 1 << 63),
    ] {
        t.eq(format_args!("#GP EFER: {name}"), cpu::try_wrmsr(msr::EFER, value), Some(GP));
        cpu::wrmsr(msr::EFER, good);
    }
    cpu::wrmsr(msr::EFER, good & !1);
    t.eq("EFER.SCE", cpu::rdmsr(msr::EFER), good & !1);
    cpu::wrmsr(msr::EFER, good);
}

/// MOV to and from control and debug registers ignores the mod field.
fn encodings(t: &mut Report) {
    for modrm in [0x00u8, 0x40, 0x80] {
        let trap = bytes(&[0x0f, 0x20, modrm]).kernel();
        let got = (trap.outcome(), trap.regs.rax);
        let expected = (Outcome::Done, cpu::read_cr0());
        t.eq(format_args!("mov from cr0 with modrm {modrm:#x}"), got, expected);
    }
    let trap = bytes(&[0x66, 0x0f, 0x20, 0xc0]).at(kit::Mode::Kernel64).rax(!0).run();
    t.eq("mov from cr0 with an operand prefix", trap.regs.rax, cpu::read_cr0());
    let locked = bytes(&[0xf0, 0x0f, 0x20, 0xc0]).k();
    // AMD: LOCK MOV CR0 is CR8 where CPUID offers the alternative.
    if Feature(0x8000_0001, 0, Output::Ecx, 4).offered() {
        t.eq("lock mov cr0 is cr8", locked, Outcome::Done);
    } else {
        t.eq("#UD lock mov cr0", locked, Outcome::fault(UD));
    }
}
