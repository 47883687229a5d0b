//! SYSENTER and SYSEXIT (SDM vol. 2B). AMD offers them outside long mode only.

use crate::collector;
use kit::cpu::{self, feature, flag, msr};
use kit::snippet::{USER_BASE, stack_top};
use kit::tables;
use kit::trap::vector::*;
use kit::{Mode, Outcome, Report, snippet, snippet32};

pub fn run(t: &mut Report) {
    if !feature::SEP.offered() {
        return t.skip("SYSENTER", "CPUID 1 EDX bit 11 is clear");
    }
    if cpu::is_amd() {
        t.eq("#UD sysenter in long mode on AMD", snippet!("sysenter").u(), Outcome::fault(UD));
        t.eq("#UD sysexit in long mode on AMD", snippet!("sysexit").k(), Outcome::fault(UD));
        return;
    }
    let stack = tables::rsp0_top() - 128;
    cpu::wrmsr(msr::SYSENTER_CS, 0);
    t.eq("#GP sysenter with a null CS", snippet!("sysenter").u(), Outcome::coded(GP, 0));
    t.eq("#GP sysexit with a null CS", snippet!("sysexit").k(), Outcome::coded(GP, 0));
    cpu::wrmsr(msr::SYSENTER_CS, tables::KERNEL_CODE.into());
    cpu::wrmsr(msr::SYSENTER_ESP, stack);
    cpu::wrmsr(msr::SYSENTER_EIP, collector().start);
    for mode in [Mode::User64, Mode::User32, Mode::Kernel64] {
        let code = if mode == Mode::User32 { snippet32!("sysenter") } else { snippet!("sysenter") };
        let trap = code.at(mode).flags(flag::IF | flag::CF | flag::NT).run();
        let regs = &trap.regs;
        let got = (trap.outcome(), regs.rdx, regs.rcx, regs.rbx);
        t.eq(format_args!("sysenter {mode:?}"), got, (Outcome::Done, 8, 0x10, stack));
        t.eq(format_args!("sysenter {mode:?}: IF off"), regs.rax, flag::CF | flag::NT | 2);
    }
    exit(t);
    for register in [msr::SYSENTER_ESP, msr::SYSENTER_EIP] {
        let result = cpu::try_wrmsr(register, 1 << 47);
        t.eq(format_args!("#GP non-canonical MSR {register:#x}"), result, Some(GP));
    }
}

fn exit(t: &mut Report) {
    t.eq("#GP sysexit in ring 3", snippet!("sysexit").u(), Outcome::coded(GP, 0));
    let stack = stack_top() + USER_BASE - 64;
    let wide = snippet!("mov eax, cs", "mov edx, ss", "mov rbx, rsp");
    let sysexit = snippet!(".byte 0x48, 0x0f, 0x35");
    let trap = sysexit.at(Mode::Kernel64).rcx(stack).rdx(wide.start + USER_BASE).run();
    let got = (trap.outcome(), trap.regs.rax, trap.regs.rdx, trap.regs.rbx);
    t.eq("sysexit to 64-bit code", got, (Outcome::Done, 0x2b, 0x33, stack));
    let narrow = snippet32!("mov eax, cs", "mov edx, ss", "mov ebx, esp");
    let run = snippet!("sysexit").at(Mode::Kernel64);
    let trap = run.rcx(stack | 7 << 32).rdx(narrow.start + USER_BASE | 9 << 32).run();
    let got = (trap.outcome(), trap.regs.rax, trap.regs.rdx, trap.regs.rbx);
    t.eq("sysexit to 32-bit code", got, (Outcome::Done, 0x1b, 0x23, stack));
    for (name, rcx, rdx) in [("RSP", 1 << 47, 0), ("RIP", 0, 1 << 47)] {
        let got = sysexit.at(Mode::Kernel64).rcx(rcx).rdx(rdx).outcome();
        t.eq(format_args!("#GP sysexit non-canonical {name}"), got, Outcome::coded(GP, 0));
    }
}
