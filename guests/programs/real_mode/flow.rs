//! Branches, near and far, in 64 KiB of code.

use kit::real::{CODE, STACK_TOP, at, linear, place};
use kit::trap::vector::*;
use kit::{Code, Outcome, Report, snippet};

/// Another segment with code.
const OTHER: u16 = 0x5800;

pub fn run(t: &mut Report) {
    near(t);
    far(t);
    flags(t);
    iret(t);
    undefined(t);
}

fn near(t: &mut Report) {
    let code = snippet!(
        ".code16"; "mov cx, 5", "2:", "inc ax", "loop 2b", "jcxz 3f", "ud2", "3:", ".byte 0xe8",
        ".word 4f - . - 2", "jmp 5f", "4:", "mov bx, sp", ".byte 0xc3", "5:"
    );
    let mut run = at(code);
    run.ecx = 0x7_0000;
    let trap = run.run();
    let got = (trap.outcome(), trap.regs.rax, trap.regs.rbx, trap.regs.rcx);
    let top = u64::from(STACK_TOP);
    t.eq("loop, jcxz, call, ret", got, (Outcome::Done, 5, top - 2, 0x7_0000));
    // IP wraps with 16-bit operands: a short jump backwards across 0.
    let wrap = snippet!(".code16"; ".byte 0xeb, 0xee"); // jmp -18: to fff0
    let target = snippet!(".code16"; "mov ax, 7");
    place(target, linear(CODE, 0xfff0));
    let trap = at(wrap).run();
    t.eq("a 16-bit jump wraps", (trap.vector, trap.rip, trap.regs.rax), (0xf0, 0xfff5, 7));
}

fn far(t: &mut Report) {
    let there = snippet!(".code16"; "mov bx, cs", "mov cx, sp", ".byte 0xcb"); // retf
    place(there, linear(OTHER, 0x20));
    let call = snippet!(".code16"; ".byte 0x9a", ".word 0x20, {other}", "mov dx, cs" => other = const OTHER);
    let trap = at(call).run();
    let got = (trap.outcome(), trap.regs.rbx, trap.regs.rcx, trap.regs.rdx);
    let top = u64::from(STACK_TOP);
    t.eq("far call and return", got, (Outcome::Done, OTHER.into(), top - 4, CODE.into()));
    let wide =
        snippet!(".code16"; "mov bx, cs", "mov cx, sp", "pop eax", "push eax", ".byte 0x66, 0xcb");
    place(wide, linear(OTHER, 0x20));
    let call = snippet!(".code16"; ".byte 0x66, 0x9a", ".long 0x20", ".word {other}", "mov dx, sp" => other = const OTHER);
    let trap = at(call).run();
    let got = (trap.outcome(), trap.regs.rax, trap.regs.rcx, trap.regs.rdx);
    t.eq("32-bit far call and return", got, (Outcome::Done, 8, top - 8, top));
    // RETF n drops arguments.
    let drop = snippet!(".code16"; ".byte 0xca, 6, 0");
    place(drop, linear(OTHER, 0x20));
    let call = snippet!(
        ".code16"; "push 1", "push 2", "push 3", ".byte 0x9a", ".word 0x20, {other}"
        => other = const OTHER
    );
    let trap = at(call).run();
    t.eq("retf 6", (trap.outcome(), trap.rsp), (Outcome::Done, top));
    // Jump back into the first segment, through another selector for it.
    let jump = snippet!(
        ".code16"; ".byte 0xea", ".word 0x1000 + 2f - 96b, {code} - 0x100", "ud2", "2:", "mov ax, cs"
        => code = const CODE
    );
    let trap = at(jump).run();
    t.eq("the same code by another selector", trap.regs.rax, u64::from(CODE) - 0x100);
    let indirect = snippet!(".code16"; ".byte 0xff, 0x2f"); // jmp far [bx]
    kit::real::store(linear(kit::real::DATA, 0), &[0x20, 0, OTHER as u8, (OTHER >> 8) as u8]);
    place(snippet!(".code16"; "mov ax, cs"), linear(OTHER, 0x20));
    let trap = at(indirect).run();
    t.eq("an indirect far jump", (trap.vector, trap.regs.rax), (0xf0, OTHER.into()));
}

/// Everything may be changed: real mode runs at level 0.
fn flags(t: &mut Report) {
    let mut run = at(snippet!(".code16"; "push ax", "popf", "pushf", "pop bx", "push 0", "popf"));
    run.eax = 0x7cd5;
    t.eq("popf: IOPL, NT, DF and arithmetic flags", run.run().regs.rbx, 0x7cd7);
    let mut run =
        at(snippet!(".code16"; "push eax", "popfd", "pushfd", "pop ebx", "push 0", "popfd"));
    run.eax = 0x003f_7cd5;
    // RF, VM, VIF and VIP do not come from POPF.
    t.eq("popfd: and AC, ID", run.run().regs.rbx, 0x0024_7cd7);
    let trap = at(snippet!(".code16"; "sti", "pushf", "pop ax", "cli", "pushf", "pop bx")).run();
    t.eq("sti, cli", (trap.regs.rax, trap.regs.rbx), (0x202, 2));
}

fn iret(t: &mut Report) {
    let code = snippet!(
        ".code16"; "push 0x4ed7", "push cs", ".byte 0x68", ".word 2f - 96b", "iret", "ud2", "2:", "pushf", "pop ax", "push 0", "popf"
    );
    t.eq("iret", at(code).run().regs.rax, 0x4ed7);
    let code = snippet!(
        ".code16"; "push eax", ".byte 0x66, 0x68", ".long {code}", ".byte 0x66, 0x68", ".long 2f - 96b", "iretd", "ud2", "2:", "pushfd", "pop ebx",
        "mov cx, sp", "push 0", "popfd" => code = const CODE
    );
    let mut run = at(code);
    run.eax = 0x003e_4cd7;
    let trap = run.run();
    // VM, VIF and VIP stay (SDM vol. 2A, IRET, real-address mode); RF is gone
    // after the next instruction.
    let got = (trap.outcome(), trap.regs.rbx, trap.regs.rcx);
    t.eq("iretd", got, (Outcome::Done, 0x0024_4cd7, STACK_TOP.into()));
}

/// Targets beyond the limit; a machine that does not check runs away.
pub fn limits(t: &mut Report) {
    let beyond = snippet!(".code16"; ".byte 0x66, 0xea", ".long 0x10000", ".word 0x5000");
    t.eq("#GP a far jump beyond the limit", at(beyond).outcome(), Outcome::fault(GP));
    let wide = snippet!(".code16"; ".byte 0x66, 0xe9, 0xf0, 0xff, 0xff, 0xff"); // jmp rel32
    t.eq("#GP a 32-bit jump below 0", at(wide).outcome(), Outcome::fault(GP));
    let mut run = at(snippet!(".code16"; "jmp eax"));
    run.eax = 0x1_0000;
    t.eq("#GP a 32-bit jump to 10000", run.outcome(), Outcome::fault(GP));
    let mut run = at(snippet!(".code16"; "call eax"));
    run.eax = 0x1_0000;
    let trap = run.run();
    t.eq(
        "#GP a 32-bit call leaves SP",
        (trap.outcome(), trap.rsp),
        (Outcome::fault(GP), u64::from(STACK_TOP)),
    );
    // The end of the segment.
    let end = snippet!(".code16"; "nop");
    kit::real::store(linear(CODE, 0xfffe), &[0x90, 0x90]);
    let mut run = at(end);
    (run.ip, run.mark) = (0xfffe, 0);
    let trap = run.run();
    t.eq("#GP behind the last byte of code", trap.vector, GP);
}

fn undefined(t: &mut Report) {
    let cases: [(&str, Code); 10] = [
        ("lldt", snippet!(".code16"; "lldt ax")),
        ("ltr", snippet!(".code16"; "ltr ax")),
        ("sldt", snippet!(".code16"; "sldt ax")),
        ("str", snippet!(".code16"; "str ax")),
        ("lar", snippet!(".code16"; "lar ax, bx")),
        ("lsl", snippet!(".code16"; "lsl ax, bx")),
        ("verr", snippet!(".code16"; "verr ax")),
        ("verw", snippet!(".code16"; "verw ax")),
        ("arpl", snippet!(".code16"; ".byte 0x63, 0xc8")),
        ("mov cs", snippet!(".code16"; ".byte 0x8e, 0xc8")),
    ];
    for (name, code) in cases {
        t.eq(format_args!("#UD {name}"), at(code).outcome(), Outcome::fault(UD));
    }
    let mut run = at(snippet!(".code16"; "sysenter"));
    run.ecx = 0;
    t.eq("#GP sysenter", run.outcome(), Outcome::fault(GP));
}
