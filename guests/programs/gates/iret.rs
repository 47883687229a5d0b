//! IRET in all operand sizes, to every kind of code, and its checks.

use crate::{CONFORMING, PRESENT, SPARE, SPARE2};
use kit::cpu::flag;
use kit::snippet::stack_top;
use kit::tables::{self, field};
use kit::trap::vector::*;
use kit::{Code, Mode, Outcome, Report, Trap, snippet, snippet32};

/// What IRETQ pops.
#[derive(Clone, Copy)]
struct Target {
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

impl Target {
    /// `code` in `mode`, with a plain stack.
    fn new(code: Code, mode: Mode) -> Self {
        let (cs, ss) = mode.selectors();
        let base = mode.base();
        Self {
            rip: code.start + base,
            cs: cs.into(),
            rflags: 2,
            rsp: stack_top() + base - 512,
            ss: ss.into(),
        }
    }

    /// Executes IRETQ from `mode`; outcomes count from the instruction.
    fn from(self, mode: Mode) -> Trap {
        let code = snippet!("push rsi", "push rdi", "push rdx", "push rcx", "push rax"; "iretq");
        let run = code.at(mode).rax(self.rip).rcx(self.cs).rdx(self.rflags);
        run.rdi(self.rsp).rsi(self.ss).run()
    }
}

pub fn run(t: &mut Report) {
    every_mode(t);
    flags(t);
    sizes(t);
    code_segment(t);
    stack_segment(t);
    nested_task(t);
}

fn every_mode(t: &mut Report) {
    let code64 = snippet!("mov eax, cs", "mov edx, ss", "mov rcx, rsp", "mov r15, -1");
    let code32 = snippet32!("mov eax, cs", "mov edx, ss", "mov ecx, esp", "dec eax", "inc eax");
    for (from, to) in [
        (Mode::Kernel64, Mode::Kernel64),
        (Mode::Kernel64, Mode::Kernel32),
        (Mode::Kernel64, Mode::User64),
        (Mode::Kernel64, Mode::User32),
        (Mode::User64, Mode::User64),
        (Mode::User64, Mode::User32),
    ] {
        let code = if matches!(to, Mode::Kernel32 | Mode::User32) { code32 } else { code64 };
        let target = Target::new(code, to);
        let trap = target.from(from);
        let got = (trap.vector, trap.regs.rax, trap.regs.rdx, trap.regs.rcx);
        let expected = (u64::from(tables::END_VECTOR), target.cs, target.ss, target.rsp);
        t.eq(format_args!("iretq {from:?} to {to:?}"), got, expected);
    }
    // 16-bit code through a descriptor of its own: the operand size shows it.
    tables::set_descriptor(SPARE, tables::CODE32 & !field::BIG);
    let code16 = snippet!(".code16", "mov ax, 0x5678");
    let mut target = Target::new(code16, Mode::Kernel32);
    target.cs = SPARE.into();
    let trap = target.from(Mode::Kernel64);
    t.eq("iretq to 16-bit code", (trap.cs, trap.regs.rax & 0xffff), (SPARE.into(), 0x5678));
}

fn flags(t: &mut Report) {
    let target = Target::new(snippet!("nop"), Mode::Kernel64);
    let settable = 0xdd5 | flag::IOPL | flag::NT | flag::AC | flag::VIF | flag::VIP | flag::ID;
    let keep = settable & !(flag::TF | flag::VIP | flag::VIF);
    let trap = Target { rflags: keep, ..target }.from(Mode::Kernel64);
    t.eq("iretq in ring 0 loads all flags", trap.rflags & !flag::RF, keep | 2);
    let trap = Target { rflags: flag::VM, ..target }.from(Mode::Kernel64);
    let got = (trap.outcome(), trap.rflags & flag::VM);
    t.eq("iretq in 64-bit mode ignores VM", got, (Outcome::Done, 0));

    let user = Target::new(snippet!("nop"), Mode::User64);
    let trap = Target { rflags: flag::IF | flag::IOPL, ..user }.from(Mode::User64);
    t.eq("iretq in ring 3 keeps IF and IOPL", trap.rflags & (flag::IF | flag::IOPL), 0);
    let trap = Target { rflags: flag::IOPL | flag::CF, ..user }.from(Mode::Kernel64);
    t.eq("iretq from ring 0 sets IOPL of ring 3", trap.rflags & flag::IOPL, flag::IOPL);
}

/// IRETD and IRETW pop smaller values.
fn sizes(t: &mut Report) {
    let iretd = snippet!(
        "sub rsp, 20",
        "mov [rsp], eax",
        "mov [rsp + 4], ecx",
        "mov dword ptr [rsp + 8], 3",
        "mov [rsp + 12], edi",
        "mov [rsp + 16], esi";
        "iretd"
    );
    let target = Target::new(snippet!("mov rcx, rsp"), Mode::User64);
    let run = iretd.at(Mode::Kernel64).rax(target.rip).rcx(target.cs);
    let trap = run.rdi(target.rsp).rsi(target.ss).run();
    let got = (trap.vector, trap.cs, trap.regs.rcx, trap.rflags & 0xfff);
    let expected = (u64::from(tables::END_VECTOR), target.cs, target.rsp, 3);
    t.eq("iretd to ring 3", got, expected);

    // From 32-bit code at the same level IRETD pops three doublewords only.
    let same = snippet32!(
        "mov ebx, esp",
        "pushfd",
        "push ecx",
        "call 2f",
        "2:",
        "add dword ptr [esp], 7",
        "iretd",
        "ud2",
        "nop",
        "mov edx, esp"
    );
    let trap = same.at(Mode::User32).rcx(tables::USER_CODE32.into()).run();
    t.eq("iretd in 32-bit code pops no stack", trap.outcome(), Outcome::Done);
    t.eq("iretd in 32-bit code, esp", trap.regs.rdx, trap.regs.rbx);
}

/// The checks of the popped CS.
fn code_segment(t: &mut Report) {
    let base = Target::new(snippet!("nop"), Mode::Kernel64);
    let mut check = |name: &str, cs: u64, from: Mode, expected: Outcome| {
        let got = Target { cs, ..base }.from(from).outcome();
        t.eq(format_args!("iretq cs {name}"), got, expected);
    };
    let spare = u64::from(SPARE);
    check("null", 0, Mode::Kernel64, Outcome::coded(GP, 0));
    check("null with RPL 3", 3, Mode::Kernel64, Outcome::coded(GP, 0));
    check("beyond the GDT", 0x200, Mode::Kernel64, Outcome::coded(GP, 0x200));
    check("LDT without LDT", 0x14, Mode::Kernel64, Outcome::coded(GP, 0x14));
    check("data", 0x10, Mode::Kernel64, Outcome::coded(GP, 0x10));
    check("ring 3 to ring 0", 8, Mode::User64, Outcome::coded(GP, 8));
    check("RPL 3, DPL 0", 8 | 3, Mode::Kernel64, Outcome::coded(GP, 8));
    check("RPL 0, DPL 3", 0x28, Mode::Kernel64, Outcome::coded(GP, 0x28));
    tables::set_descriptor(SPARE, tables::CODE64 & !PRESENT);
    check("not present", spare, Mode::Kernel64, Outcome::coded(NP, spare));
    tables::set_descriptor(SPARE, tables::CODE64 | field::BIG);
    check("L and D", spare, Mode::Kernel64, Outcome::coded(GP, spare));
    tables::set_descriptor(SPARE, tables::CODE64 | CONFORMING | field::DPL3);
    check("conforming DPL 3, RPL 0", spare, Mode::Kernel64, Outcome::coded(GP, spare));
    tables::set_descriptor(SPARE, tables::CODE64 | CONFORMING);
    check("conforming DPL 0, RPL 0", spare, Mode::Kernel64, Outcome::Done);
}

/// The checks of the popped SS.
fn stack_segment(t: &mut Report) {
    let user = Target::new(snippet!("nop"), Mode::User64);
    let mut check = |name: &str, target: Target, ss: u64, expected: Outcome| {
        let got = Target { ss, ..target }.from(Mode::Kernel64).outcome();
        t.eq(format_args!("iretq ss {name}"), got, expected);
    };
    let spare = u64::from(SPARE2);
    let kernel = Target::new(snippet!("nop"), Mode::Kernel64);
    check("null in ring 0, 64-bit", kernel, 0, Outcome::Done);
    check("null in ring 3", user, 3, Outcome::coded(GP, 0));
    check("RPL 0 for ring 3", user, 0x20, Outcome::coded(GP, 0x20));
    check("DPL 0 for ring 3", user, 0x13, Outcome::coded(GP, 0x10));
    check("code segment", user, 0x2b, Outcome::coded(GP, 0x28));
    check("beyond the GDT", user, 0x203, Outcome::coded(GP, 0x200));
    tables::set_descriptor(SPARE2, (tables::DATA | field::DPL3) & !(1 << 41));
    check("read-only data", user, spare | 3, Outcome::coded(GP, spare));
    tables::set_descriptor(SPARE2, (tables::DATA | field::DPL3) & !PRESENT);
    check("not present", user, spare | 3, Outcome::coded(SS, spare));
    let kernel32 = Target::new(snippet32!("nop"), Mode::Kernel32);
    check("null for 32-bit ring 0", kernel32, 0, Outcome::coded(GP, 0));
}

fn nested_task(t: &mut Report) {
    let code = snippet!("iretq").at(Mode::Kernel64).flags(flag::NT).outcome();
    t.eq("iretq with NT", code, Outcome::fault(GP));
    let code = snippet32!("iretd").at(Mode::User32).flags(flag::NT).outcome();
    t.eq("iretd with NT in 32-bit code", code, Outcome::fault(GP));
}
