//! Every exception: cause, error code, saved RIP and flags, and the priority
//! between causes (Intel SDM vol. 3A chapter 6; AMD APM vol. 2 chapter 8).

#![no_std]
#![no_main]

mod double;
mod floating;
mod invalid;
mod protection;
mod software;

use kit::trap::vector::*;
use kit::{Mode, Outcome, Report, cpu::flag, snippet, snippet32};

kit::program!(main);

fn main(t: &mut Report) {
    divide(t);
    frame(t);
    resume_flag(t);
    software::run(t);
    invalid::run(t);
    floating::run(t);
    protection::run(t);
    double::run(t);
}

/// #DE by zero divisors and by quotients that do not fit.
fn divide(t: &mut Report) {
    const DE_FAULT: Outcome = Outcome::fault(DE);
    t.eq("#DE div 8-bit zero", snippet!("mov eax, 7"; "div cl").k(), DE_FAULT);
    t.eq("#DE div 16-bit zero", snippet!("mov eax, 7"; "div cx").k(), DE_FAULT);
    t.eq("#DE div 32-bit zero", snippet!("mov eax, 7"; "div ecx").k(), DE_FAULT);
    t.eq("#DE div 64-bit zero", snippet!("mov eax, 7"; "div rcx").k(), DE_FAULT);
    t.eq("#DE idiv 32-bit zero", snippet!("mov eax, 7"; "idiv ecx").u(), DE_FAULT);
    let overflow = snippet!("mov edx, 2", "mov ecx, 2"; "div ecx");
    t.eq("#DE quotient 2^32", overflow.k(), DE_FAULT);
    let fits = snippet!("mov edx, 1", "mov ecx, 2"; "div ecx").kernel();
    t.eq("div quotient 2^31", (fits.outcome(), fits.regs.rax), (Outcome::Done, 1 << 31));
    let minimum = snippet!("mov rdx, -1", "mov rax, 1", "ror rax, 1", "mov rcx, -1"; "idiv rcx");
    t.eq("#DE idiv minimum by -1", minimum.k(), DE_FAULT);
    let kept = snippet!("mov eax, 5", "mov edx, 9", "xor ecx, ecx"; "div ecx").kernel();
    t.eq("#DE leaves rax and rdx", (kept.regs.rax, kept.regs.rdx), (5, 9));
    t.eq("#DE aam 0", snippet32!("aam 0").at(Mode::User32).outcome(), DE_FAULT);
}

/// The pushed frame holds the interrupted state exactly.
fn frame(t: &mut Report) {
    for mode in [Mode::Kernel64, Mode::User64] {
        let (cs, ss) = mode.selectors();
        let rsp = kit::snippet::stack_top() + mode.base() - 0x123;
        let code = snippet!("stc"; "ud2").at(mode).rsp(rsp).flags(flag::DF);
        let trap = code.rax(1).rbx(2).rcx(3).rdx(4).rsi(5).rdi(6).rbp(7).r8(8).r15(15).run();
        t.eq(format_args!("{mode:?} frame cs ss"), (trap.cs, trap.ss), (cs.into(), ss.into()));
        t.eq(format_args!("{mode:?} frame rsp"), trap.rsp, rsp);
        let flags = trap.rflags & !flag::RF;
        t.eq(format_args!("{mode:?} frame rflags"), flags, flag::DF | flag::CF | 2);
        let regs = &trap.regs;
        let got = [regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp, regs.r8];
        t.eq(format_args!("{mode:?} registers kept"), got, [1, 2, 3, 4, 5, 6, 7, 8]);
        t.eq(format_args!("{mode:?} r15 kept"), regs.r15, 15);
        let top = kit::tables::ist_top(kit::tables::IST_FAULT);
        t.eq(format_args!("{mode:?} frame on IST 1"), trap.stack, top);
    }
}

/// Faults save RF = 1, traps and software interrupts RF = 0 (SDM vol. 3B
/// 17.3.1.1).
fn resume_flag(t: &mut Report) {
    let rf = |trap: kit::Trap| trap.rflags & flag::RF != 0;
    t.that("RF saved by #UD", rf(snippet!("ud2").kernel()));
    t.that("RF saved by #DE", rf(snippet!("div ecx").kernel()));
    t.that("RF saved by #GP", rf(snippet!("hlt").user()));
    t.that("RF saved by #PF", rf(snippet!("mov eax, [0x40000000]").kernel()));
    t.eq("RF not saved by INT3", rf(snippet!("int3").kernel()), false);
    t.eq("RF not saved by INT n", rf(snippet!("nop").kernel()), false);
}
