//! SYSCALL and SYSRET (SDM vol. 2B; APM vol. 2 6.1.1).

use crate::collector;
use kit::cpu::{self, feature, flag, msr};
use kit::snippet::{USER_BASE, stack_top};
use kit::tables;
use kit::trap::vector::*;
use kit::{Mode, Outcome, Report, snippet, snippet32};

/// STAR: ring 0 selectors from 0x08, ring 3 selectors from 0x18.
const STAR: u64 = 0x0018_0008 << 32;

pub fn run(t: &mut Report) {
    if !feature::SYSCALL.offered() {
        return t.skip("SYSCALL", "CPUID 80000001 EDX bit 11 is clear");
    }
    cpu::wrmsr(msr::STAR, STAR);
    cpu::wrmsr(msr::LSTAR, collector().start);
    cpu::wrmsr(msr::SFMASK, 0);
    disabled(t);
    entry(t);
    masks(t);
    compatibility(t);
    exit(t);
    exit_checks(t);
    round_trip(t);
}

fn disabled(t: &mut Report) {
    let efer = cpu::rdmsr(msr::EFER);
    cpu::wrmsr(msr::EFER, efer & !1);
    t.eq("#UD syscall without EFER.SCE", snippet!("syscall").u(), Outcome::fault(UD));
    let sysret = snippet!(".byte 0x48, 0x0f, 0x07");
    t.eq("#UD sysret without EFER.SCE", sysret.k(), Outcome::fault(UD));
    cpu::wrmsr(msr::EFER, efer);
}

fn entry(t: &mut Report) {
    let code = snippet!("syscall");
    for mode in [Mode::User64, Mode::Kernel64] {
        // The collector overwrites RCX, where SYSCALL leaves the return RIP.
        let keep = snippet!("mov r14, rcx", "jmp r15");
        cpu::wrmsr(msr::LSTAR, keep.start);
        let trap = code.at(mode).r15(collector().start).flags(flag::CF | flag::IF).run();
        let regs = &trap.regs;
        t.eq(format_args!("syscall {mode:?}: RCX"), regs.r14, code.mark + 2 + mode.base());
        t.eq(format_args!("syscall {mode:?}: R11"), regs.r11, flag::CF | flag::IF | 2);
        t.eq(format_args!("syscall {mode:?}: CS, SS"), (regs.rdx, regs.rcx), (8, 0x10));
        t.eq(format_args!("syscall {mode:?}: RSP kept"), regs.rbx, stack_top() + mode.base());
        t.eq(format_args!("syscall {mode:?}: flags kept"), regs.rax, flag::CF | flag::IF | 2);
    }
    // The target's descriptors are not read.
    cpu::wrmsr(msr::LSTAR, collector().start);
    cpu::wrmsr(msr::STAR, 0x0018_0208 << 32);
    let trap = code.user();
    let got = (trap.outcome(), trap.regs.rdx, trap.regs.rcx);
    t.eq("syscall loads no descriptor", got, (Outcome::Done, 0x208, 0x210));
    cpu::wrmsr(msr::STAR, 0x0018_000b << 32);
    let trap = code.user();
    t.eq("syscall clears CS.RPL", trap.regs.rdx, 8);
    cpu::wrmsr(msr::STAR, STAR);
}

fn masks(t: &mut Report) {
    let keep = snippet!("pushfq", "pop rax");
    cpu::wrmsr(msr::LSTAR, keep.start);
    let flags = flag::CF | flag::IF | flag::DF | flag::AC | flag::NT | flag::ID;
    let code = snippet!("syscall");
    for mask in [flag::IF, flag::IF | flag::DF | flag::AC | flag::NT, 0xffff_ffff] {
        cpu::wrmsr(msr::SFMASK, mask);
        let trap = code.at(Mode::User64).flags(flags).run();
        let expected = (flags & !mask) | 2;
        t.eq(format_args!("syscall SFMASK {mask:#x}"), trap.regs.rax, expected);
        t.eq(format_args!("syscall SFMASK {mask:#x}: R11 unmasked"), trap.regs.r11, flags | 2);
    }
    cpu::wrmsr(msr::SFMASK, 0);
}

/// From 32-bit code: #UD on Intel, CSTAR on AMD.
fn compatibility(t: &mut Report) {
    let code = snippet32!("syscall");
    cpu::wrmsr(msr::LSTAR, collector().start);
    cpu::wrmsr(msr::CSTAR, collector().start);
    let expected = if cpu::is_amd() { Outcome::Done } else { Outcome::fault(UD) };
    t.eq("syscall in 32-bit code", code.at(Mode::User32).outcome(), expected);
}

fn exit(t: &mut Report) {
    let state = snippet!("mov eax, cs", "mov edx, ss", "pushfq", "pop rbx");
    let sysret = snippet!(".byte 0x48, 0x0f, 0x07");
    let run = sysret.at(Mode::Kernel64).rcx(state.start + USER_BASE);
    let run = run.rsp(stack_top() + USER_BASE).r11(flag::CF | flag::IF | flag::IOPL);
    let trap = run.run();
    let selectors = (trap.outcome(), trap.regs.rax, trap.regs.rdx);
    t.eq("sysretq: CS, SS", selectors, (Outcome::Done, 0x2b, 0x23));
    t.eq("sysretq: flags", trap.regs.rbx, flag::CF | flag::IF | flag::IOPL | 2);
    let trap = run.r11(flag::VM | flag::RF | flag::NT | flag::AC | flag::ID | 0x28).run();
    let expected = flag::NT | flag::AC | flag::ID | 2;
    t.eq("sysretq: VM, RF and reserved flags cleared", trap.regs.rbx, expected);

    let state = snippet32!("mov eax, cs", "mov edx, ss");
    let run = snippet!("sysret").at(Mode::Kernel64).rcx(state.start + USER_BASE | 5 << 32);
    let trap = run.rsp(stack_top() + USER_BASE).r11(2).run();
    let selectors = (trap.outcome(), trap.regs.rax, trap.regs.rdx);
    t.eq("sysret to 32-bit code", selectors, (Outcome::Done, 0x1b, 0x23));
    // RPL bits of the MSR are forced to 3, descriptors are not read.
    cpu::wrmsr(msr::STAR, 0x0200_0008 << 32);
    let state = snippet!("mov eax, cs", "mov edx, ss");
    let run = sysret.at(Mode::Kernel64).rcx(state.start + USER_BASE).r11(2);
    let trap = run.rsp(stack_top() + USER_BASE).run();
    t.eq("sysretq loads no descriptor", (trap.regs.rax, trap.regs.rdx), (0x213, 0x20b));
    cpu::wrmsr(msr::STAR, STAR);
}

fn exit_checks(t: &mut Report) {
    let sysret = snippet!(".byte 0x48, 0x0f, 0x07");
    t.eq("#GP sysretq in ring 3", sysret.u(), Outcome::fault(GP));
    let trap = sysret.at(Mode::Kernel64).rcx(1 << 47).r11(2).run();
    if cpu::is_amd() {
        // The fault belongs to the target.
        t.eq("#GP sysretq non-canonical", (trap.vector, trap.rip, trap.cs & 3), (GP, 1 << 47, 3));
    } else {
        t.eq("#GP sysretq non-canonical", (trap.outcome(), trap.cs), (Outcome::fault(GP), 8));
    }
    for register in [msr::LSTAR, msr::CSTAR] {
        let result = cpu::try_wrmsr(register, 1 << 47);
        t.eq(format_args!("#GP non-canonical MSR {register:#x}"), result, Some(GP));
    }
    cpu::wrmsr(msr::LSTAR, !0 << 47);
    t.eq("LSTAR takes the upper half", cpu::rdmsr(msr::LSTAR), !0 << 47);
    cpu::wrmsr(msr::STAR, 0x0123_4567_89ab_cdef);
    t.eq("STAR keeps all bits", cpu::rdmsr(msr::STAR), 0x0123_4567_89ab_cdef);
    cpu::wrmsr(msr::STAR, STAR);
    cpu::wrmsr(msr::LSTAR, collector().start);
}

fn round_trip(t: &mut Report) {
    let kernel = snippet!("inc r15", ".byte 0x48, 0x0f, 0x07");
    cpu::wrmsr(msr::LSTAR, kernel.start);
    let code = snippet!("mov ebx, 1000", "2:", "syscall", "dec ebx", "jnz 2b", "mov eax, cs");
    let trap = code.at(Mode::User64).run();
    let got = (trap.outcome(), trap.regs.r15, trap.regs.rax, trap.rsp);
    let expected = (Outcome::Done, 1000, tables::USER_CODE.into(), stack_top() + USER_BASE);
    t.eq("1000 times syscall and sysretq", got, expected);
}
