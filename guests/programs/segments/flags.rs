//! POPF, CLI, STI under IOPL, and flags that programs cannot change (SDM vol.
//! 2B POPF; vol. 3A 2.3).

use kit::cpu::flag;
use kit::trap::vector::*;
use kit::{Mode, Outcome, Report, snippet, snippet32};

pub fn run(t: &mut Report) {
    interrupt_flag(t);
    popf(t);
    pushf(t);
}

fn interrupt_flag(t: &mut Report) {
    for (iopl, allowed) in [(0, false), (1, false), (2, false), (3, true)] {
        let flags = iopl << 12;
        let expected = if allowed { Outcome::Done } else { Outcome::fault(GP) };
        // Without an interrupt source, IF in ring 3 shows only in RFLAGS.
        let cli = snippet!("cli").at(Mode::User64).flags(flags).outcome();
        t.eq(format_args!("cli in ring 3, IOPL {iopl}"), cli, expected);
        let sti = snippet!("sti"; "nop").at(Mode::User64).flags(flags).run();
        let got = (sti.vector == GP, sti.rflags & flag::IF != 0);
        t.eq(format_args!("sti in ring 3, IOPL {iopl}"), got, (!allowed, allowed));
    }
    let cli = snippet32!("cli").at(Mode::User32).outcome();
    t.eq("cli in 32-bit ring 3", cli, Outcome::fault(GP));
}

/// RFLAGS after POPF of `value`.
fn after_popf(mode: Mode, before: u64, value: u64) -> u64 {
    let code = snippet!("push rax", "popfq", "pushfq", "pop rcx");
    code.at(mode).flags(before).rax(value).run().regs.rcx
}

fn popf(t: &mut Report) {
    const IOPL: u64 = flag::IOPL;
    let (k, u) = (Mode::Kernel64, Mode::User64);
    for (name, mode, before, value, expected) in [
        ("ring 0 sets IF and IOPL", k, 0, IOPL | flag::IF, IOPL | flag::IF | 2),
        ("ring 3 changes neither", u, 0, IOPL | flag::IF, 2),
        ("ring 3 keeps IF set", u, flag::IF, 0, flag::IF | 2),
        ("ring 3 with IOPL 3 sets IF", u, IOPL, flag::IF, IOPL | flag::IF | 2),
        ("ring 3 with IOPL 3 clears IF", u, IOPL | flag::IF, 0, IOPL | 2),
        ("RF reads as 0", k, 0, flag::RF, 2),
        ("VM is not changed", k, 0, flag::VM, 2),
        ("VIF and VIP are not set", k, 0, flag::VIF | flag::VIP, 2),
        ("reserved bits are fixed", k, 0, 0xffff_ffff_ffc0_8028, 2),
        ("AC and ID", u, 0, flag::AC | flag::ID, flag::AC | flag::ID | 2),
        ("NT", u, 0, flag::NT, flag::NT | 2),
        ("arithmetic flags", u, 0, 0x8d5, 0x8d5 | 2),
        ("DF", u, 0, flag::DF, flag::DF | 2),
    ] {
        t.eq(format_args!("popf: {name}"), after_popf(mode, before, value), expected);
    }
    let word = snippet!(".byte 0x66, 0x68, 0xd5, 8", ".byte 0x66", "popfq", "pushfq", "pop rcx");
    let trap = word.at(Mode::User64).flags(flag::AC | flag::ID).run();
    t.eq("popfw keeps the upper flags", trap.regs.rcx, flag::AC | flag::ID | 0x8d7);
}

fn pushf(t: &mut Report) {
    let trap = snippet!("pushfq", "pop rax").at(Mode::User64).flags(flag::IF | flag::CF).run();
    t.eq("pushf shows IF in ring 3", trap.regs.rax, flag::IF | flag::CF | 2);
    let trap =
        snippet!("mov rcx, rsp", ".byte 0x66", "pushfq", "sub rcx, rsp", "add rsp, 2").user();
    t.eq("pushfw pushes two bytes", trap.regs.rcx, 2);
    let trap = snippet!("stc", "lahf", "clc", "sahf", "setc bl").user();
    t.eq("lahf and sahf", trap.regs.rbx, 1);
}
