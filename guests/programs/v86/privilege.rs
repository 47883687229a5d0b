//! Level 3: what is privileged, what IOPL decides, ports.

use crate::run as v86;
use kit::cpu::flag;
use kit::legacy::{TASK, Task};
use kit::real::{STACK_TOP, at_8086, linear};
use kit::trap::vector::*;
use kit::{Code, Outcome, Report, Trap, snippet};

/// A port that nobody answers on.
const FREE_PORT: u32 = 0x3a0;

pub fn run(t: &mut Report) {
    privileged(t);
    sensitive(t);
    with_iopl_3(t);
    insensitive(t);
    ports(t);
}

fn privileged(t: &mut Report) {
    let cases: [(&str, Code); 12] = [
        ("hlt", snippet!(".code16"; "hlt")),
        ("mov from cr0", snippet!(".code16"; "mov eax, cr0")),
        ("mov to cr3", snippet!(".code16"; "mov cr3, eax")),
        ("mov from dr7", snippet!(".code16"; "mov eax, dr7")),
        ("clts", snippet!(".code16"; "clts")),
        ("lmsw", snippet!(".code16"; "lmsw ax")),
        ("lgdt", snippet!(".code16"; "lgdt [bx]")),
        ("lidt", snippet!(".code16"; "lidt [bx]")),
        ("invlpg", snippet!(".code16"; "invlpg [bx]")),
        ("wbinvd", snippet!(".code16"; "wbinvd")),
        ("rdmsr", snippet!(".code16"; "rdmsr")),
        ("wrmsr", snippet!(".code16"; "wrmsr")),
    ];
    for (name, code) in cases {
        let got = v86(code).outcome();
        t.eq(format_args!("#GP {name}, IOPL 3"), got, Outcome::coded(GP, 0));
    }
    let stored = snippet!(".code16"; "smsw ax", "sgdt [bx]", "sidt [bx + 8]", "cpuid", "rdtsc");
    t.eq("smsw, sgdt, sidt, cpuid, rdtsc", v86(stored).outcome(), Outcome::Done);
}

/// With IOPL below 3 these go to the monitor (21.2.7).
fn sensitive(t: &mut Report) {
    let cases: [(&str, Code); 9] = [
        ("cli", snippet!(".code16"; "cli")),
        ("sti", snippet!(".code16"; "sti")),
        ("pushf", snippet!(".code16"; "pushf")),
        ("pushfd", snippet!(".code16"; "pushfd")),
        ("popf", snippet!(".code16"; "popf")),
        ("popfd", snippet!(".code16"; "popfd")),
        ("int n", snippet!(".code16"; "int 0xf0")),
        ("iret", snippet!(".code16"; "iret")),
        ("iretd", snippet!(".code16"; "iretd")),
    ];
    for iopl in 0..3 {
        for (name, code) in cases {
            let trap = at_8086(code, iopl).with_task().run();
            let got = (trap.outcome(), trap.rsp);
            let expected = (Outcome::coded(GP, 0), STACK_TOP.into());
            t.eq(format_args!("#GP {name}, IOPL {iopl}"), got, expected);
        }
    }
}

fn flags_of(trap: &Trap) -> u64 {
    trap.rflags & !(flag::RF | 0x40)
}

fn with_iopl_3(t: &mut Report) {
    let trap = v86(snippet!(".code16"; "sti")).run();
    t.eq("sti, IOPL 3", (trap.outcome(), trap.rflags & flag::IF), (Outcome::Done, flag::IF));
    let trap = v86(snippet!(".code16"; "sti", "cli")).run();
    t.eq("cli, IOPL 3", (trap.outcome(), trap.rflags & flag::IF), (Outcome::Done, 0));
    let code = snippet!(".code16"; "stc", "pushf", "pop ax", "pushfd", "pop ebx");
    let trap = v86(code).run();
    // VM is pushed as zero.
    t.eq("pushf, pushfd, IOPL 3", (trap.regs.rax, trap.regs.rbx), (0x3003, 0x3003));
    let mut run = v86(snippet!(".code16"; "push eax", "popfd"));
    run.regs[0] = 0x003d_4cd7;
    let trap = run.run();
    // IOPL, VM, RF, VIF and VIP stay; IF, NT, AC and ID change.
    t.eq("popfd, IOPL 3", trap.rflags & !flag::RF, 0x0026_7cd7);
    let code = snippet!(
        ".code16"; "push ax", "push cs", ".byte 0x68", ".word 2f - 96b", "iret", "ud2", "2:", "mov bx, sp"
    );
    let trap = v86(code).eax(0x0ed7).run();
    let got = (trap.outcome(), trap.regs.rbx, trap.rflags & 0x3_7fff);
    t.eq("iret, IOPL 3", got, (Outcome::Done, STACK_TOP.into(), 0x2_3ed7));
    let code = snippet!(
        ".code16"; "push eax", ".byte 0x66", "push cs", ".byte 0x66, 0x68", ".long 2f - 96b", "iretd", "ud2",
        "2:", "mov bx, sp"
    );
    let trap = v86(code).eax(0x0024_0cd7).run();
    let got = (trap.outcome(), trap.regs.rbx, flags_of(&trap));
    t.eq("iretd, IOPL 3", got, (Outcome::Done, STACK_TOP.into(), 0x26_3c97));
}

/// INT3, INTO and BOUND do not look at IOPL.
fn insensitive(t: &mut Report) {
    kit::legacy::set_gate(3, kit::legacy::stub(3), kit::tables::KERNEL_CODE32, 14, 3);
    kit::legacy::set_gate(4, kit::legacy::stub(4), kit::tables::KERNEL_CODE32, 14, 3);
    let v86 = |code: Code| at_8086(code, 0).with_task();
    t.eq("int3, IOPL 0", v86(snippet!(".code16"; "int3")).outcome(), Outcome::trap(BP, 1));
    let mut into = v86(snippet!(".code16"; "into"));
    into.eflags |= 1 << 11;
    t.eq("into, IOPL 0", into.outcome(), Outcome::trap(OF, 1));
    kit::legacy::restore_gate(3);
    kit::legacy::restore_gate(4);
    let got = v86(snippet!(".code16"; "int3")).outcome();
    t.eq("#GP int3, gate DPL 0", got, Outcome::coded(GP, 3 * 8 + 2));
    kit::real::store(linear(kit::real::DATA, 0), &[1, 0, 5, 0]);
    let bound = v86(snippet!(".code16"; ".byte 0x62, 0x07")).eax(6);
    t.eq("#BR, IOPL 0", bound.outcome(), Outcome::fault(BR));
    t.eq("#DE", v86(snippet!(".code16"; "div cx")).outcome(), Outcome::fault(DE));
    t.eq("#UD", v86(snippet!(".code16"; "ud2")).outcome(), Outcome::fault(UD));
}

/// The bitmap decides, whatever IOPL is (21.2.8.1).
fn ports(t: &mut Report) {
    let read = snippet!(".code16"; "in al, dx");
    let word = snippet!(".code16"; "in ax, dx");
    let write = snippet!(".code16"; "out dx, al");
    let at = |code: Code| {
        let mut run = v86(code);
        run.regs[3] = FREE_PORT + 7;
        run
    };
    t.eq("in, open", at(read).outcome(), Outcome::Done);
    t.eq("in of a word, open", at(word).outcome(), Outcome::Done);
    let mut task = Task::new();
    task.bitmap[(FREE_PORT as usize + 8) / 8] = 1;
    TASK.set(task);
    t.eq("in, the next port closed", at(read).outcome(), Outcome::Done);
    t.eq("#GP in of a word, half closed", at(word).outcome(), Outcome::coded(GP, 0));
    task.bitmap[FREE_PORT as usize / 8] = 0x80;
    TASK.set(task);
    t.eq("#GP in, closed, IOPL 3", at(read).outcome(), Outcome::coded(GP, 0));
    t.eq("#GP out, closed, IOPL 3", at(write).outcome(), Outcome::coded(GP, 0));
    let mut beyond = at(read);
    beyond.regs[3] = 0x1000;
    t.eq("#GP in beyond the bitmap", beyond.outcome(), Outcome::coded(GP, 0));
    let string = snippet!(".code16"; "rep outsb");
    let mut run = at(string);
    run.regs[2] = 1;
    t.eq("#GP rep outsb, closed", run.outcome(), Outcome::coded(GP, 0));
    TASK.set(Task::new());
    t.eq("rep outsb, open", run.outcome(), Outcome::Done);
}
