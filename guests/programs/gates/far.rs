//! Far JMP, CALL and RET, and 64-bit call gates.

use crate::{CONFORMING, PRESENT, SPARE, SPARE2, collector};
use kit::cpu;
use kit::snippet::{USER_BASE, stack_top};
use kit::tables::{self, field};
use kit::trap::vector::*;
use kit::{Code, Mode, Outcome, Report, Trap, snippet, snippet32};

pub fn run(t: &mut Report) {
    jump(t);
    call(t);
    ret(t);
    return_checks(t);
    direct_checks(t);
    gate_transfer(t);
    gate_checks(t);
    compatibility(t);
}

/// `jmp far [m16:32]`, the operand built on the stack from ECX:EAX.
fn far_jump() -> Code {
    snippet!("sub rsp, 16", "mov [rsp], eax", "mov [rsp + 4], cx"; "jmp fword ptr [rsp]")
}

/// `call far [m16:32]`, likewise.
fn far_call() -> Code {
    snippet!("sub rsp, 16", "mov [rsp], eax", "mov [rsp + 4], cx"; "call fword ptr [rsp]")
}

fn jump(t: &mut Report) {
    let target = collector();
    let trap = far_jump().at(Mode::Kernel64).rax(target.start).rcx(8).run();
    let got = (trap.outcome(), trap.regs.rdx, trap.regs.rbx);
    t.eq("far jmp same level", got, (Outcome::Done, 8, stack_top() - 16));
    let user = u64::from(tables::USER_CODE);
    let run = far_jump().at(Mode::User64).rax(target.start + USER_BASE).rcx(user & !3);
    t.eq("far jmp sets CS.RPL to CPL", run.run().regs.rdx, user);
    let code32 = snippet32!("dec eax", "inc eax", "mov edx, cs");
    let run = far_jump().at(Mode::Kernel64).rax(code32.start).rcx(tables::KERNEL_CODE32.into());
    t.eq("far jmp to 32-bit code", run.run().regs.rdx, tables::KERNEL_CODE32.into());
    tables::set_descriptor(SPARE, tables::CODE64 | CONFORMING);
    let run = far_jump().at(Mode::User64).rax(target.start + USER_BASE).rcx(SPARE.into()).run();
    let got = (run.outcome(), run.regs.rdx);
    t.eq("far jmp to conforming code", got, (Outcome::Done, u64::from(SPARE | 3)));
    if cpu::is_amd() {
        return t.skip("far jmp m16:64", "AMD has no 64-bit far pointers");
    }
    let wide = snippet!(
        "sub rsp, 16", "mov [rsp], rax", "mov [rsp + 8], cx";
        ".byte 0x48, 0xff, 0x2c, 0x24" // rex.w jmp far [rsp]
    );
    let trap = wide.at(Mode::Kernel64).rax(target.start).rcx(8).run();
    t.eq("far jmp m16:64", (trap.outcome(), trap.regs.rdx), (Outcome::Done, 8));
    let trap = wide.at(Mode::Kernel64).rax(1 << 47).rcx(8).run();
    t.eq("far jmp m16:64 non-canonical", trap.outcome(), Outcome::coded(GP, 0));
}

fn call(t: &mut Report) {
    let target = collector();
    let code = far_call();
    let trap = code.at(Mode::Kernel64).rax(target.start).rcx(8).run();
    // m16:32 has a 32-bit operand size: two doublewords are pushed.
    let got = (trap.regs.rbx, trap.regs.r8);
    let pushed = (code.mark + 3) | 8 << 32;
    t.eq("far call pushes CS:EIP", got, (stack_top() - 24, pushed));
}

/// `retfq` to RCX:RAX with stack RSI:RDI where the level changes.
fn far_return(from: Mode, rip: u64, cs: u64, rsp: u64, ss: u64) -> Trap {
    let code = snippet!("push rsi", "push rdi", "push rcx", "push rax"; "retfq");
    code.at(from).rax(rip).rcx(cs).rdi(rsp).rsi(ss).run()
}

fn ret(t: &mut Report) {
    let code = collector();
    let trap = far_return(Mode::Kernel64, code.start, 8, 0, 0);
    t.eq("retfq same level", (trap.outcome(), trap.regs.rbx), (Outcome::Done, stack_top() - 16));
    let (cs, ss) = Mode::User64.selectors();
    let rsp = stack_top() + USER_BASE - 256;
    let trap = far_return(Mode::Kernel64, code.start + USER_BASE, cs.into(), rsp, ss.into());
    let got = (trap.outcome(), trap.regs.rdx, trap.regs.rcx, trap.regs.rbx);
    t.eq("retfq to ring 3", got, (Outcome::Done, cs.into(), ss.into(), rsp));
    let discard = snippet!(
        "push rsi", "push rdi", "sub rsp, 16", "push rcx", "push rax";
        ".byte 0x48, 0xca, 16, 0" // retfq 16
    );
    let run = discard.at(Mode::Kernel64).rax(code.start + USER_BASE).rcx(cs.into());
    let trap = run.rdi(rsp).rsi(ss.into()).run();
    t.eq("retfq 16 to ring 3", (trap.outcome(), trap.regs.rbx), (Outcome::Done, rsp + 16));
    let narrow = snippet!("sub rsp, 8", "mov [rsp], eax", "mov [rsp + 4], ecx"; "retf");
    let trap = narrow.at(Mode::Kernel64).rax(code.start).rcx(8).run();
    t.eq(
        "retf with 32-bit operands",
        (trap.outcome(), trap.regs.rbx),
        (Outcome::Done, stack_top()),
    );
}

fn return_checks(t: &mut Report) {
    let code = collector();
    let (ucs, uss) = (u64::from(tables::USER_CODE), u64::from(tables::USER_DATA));
    let rsp = stack_top() + USER_BASE - 256;
    let mut check = |name: &str, from: Mode, cs: u64, ss: u64, expected: Outcome| {
        let got = far_return(from, code.start + USER_BASE, cs, rsp, ss).outcome();
        t.eq(format_args!("retfq {name}"), got, expected);
    };
    check("cs null", Mode::Kernel64, 0, uss, Outcome::coded(GP, 0));
    check("cs data", Mode::Kernel64, 0x10, uss, Outcome::coded(GP, 0x10));
    check("ring 3 to ring 0", Mode::User64, 8, uss, Outcome::coded(GP, 8));
    check("cs RPL 3, DPL 0", Mode::Kernel64, 11, uss, Outcome::coded(GP, 8));
    check("ss null to ring 3", Mode::Kernel64, ucs, 3, Outcome::coded(GP, 0));
    check("ss RPL 0 to ring 3", Mode::Kernel64, ucs, 0x20, Outcome::coded(GP, 0x20));
    check("ss DPL 0 to ring 3", Mode::Kernel64, ucs, 0x13, Outcome::coded(GP, 0x10));
    tables::set_descriptor(SPARE, (tables::CODE64 | field::DPL3) & !PRESENT);
    let spare = u64::from(SPARE);
    check("cs not present", Mode::Kernel64, spare | 3, uss, Outcome::coded(NP, spare));
    let trap = far_return(Mode::Kernel64, 1 << 47, 8, 0, 0);
    t.holds("retfq non-canonical", (trap.vector, trap.error, trap.rip), |&(v, e, _)| {
        v == GP && e == 0
    });
}

/// Checks of a code segment named directly.
fn direct_checks(t: &mut Report) {
    let code = collector();
    let mut check = |name: &str, from: Mode, selector: u64, expected: Outcome| {
        let rip = code.start + from.base();
        let jump = far_jump().at(from).rax(rip).rcx(selector).outcome();
        t.eq(format_args!("far jmp {name}"), jump, expected);
        let call = far_call().at(from).rax(rip).rcx(selector).run();
        t.eq(format_args!("far call {name}"), call.outcome(), expected);
    };
    let spare = u64::from(SPARE);
    check("null", Mode::Kernel64, 0, Outcome::coded(GP, 0));
    check("data", Mode::Kernel64, 0x10, Outcome::coded(GP, 0x10));
    check("beyond the GDT", Mode::Kernel64, 0x208, Outcome::coded(GP, 0x208));
    check("ring 3 to DPL 0", Mode::User64, 8, Outcome::coded(GP, 8));
    check("ring 0 to DPL 3", Mode::Kernel64, 0x28, Outcome::coded(GP, 0x28));
    check("RPL 3 in ring 0", Mode::Kernel64, 8 | 3, Outcome::coded(GP, 8));
    tables::set_descriptor(SPARE, tables::CODE64 & !PRESENT);
    check("not present", Mode::Kernel64, spare, Outcome::coded(NP, spare));
    tables::set_descriptor(SPARE, tables::CODE64 | field::BIG);
    check("L and D", Mode::Kernel64, spare, Outcome::coded(GP, spare));
    // No task switches in long mode.
    check(
        "TSS",
        Mode::Kernel64,
        tables::TSS_SELECTOR.into(),
        Outcome::coded(GP, tables::TSS_SELECTOR.into()),
    );
    tables::set_descriptor(SPARE, 5 << 40 | PRESENT | 8 << 16);
    check("task gate", Mode::Kernel64, spare, Outcome::coded(GP, spare));
}

/// The two halves of a 64-bit call gate.
fn call_gate(offset: u64, selector: u16, dpl: u64) -> [u64; 2] {
    let low = (offset & 0xffff)
        | u64::from(selector) << 16
        | 12 << 40
        | dpl << 45
        | PRESENT
        | (offset >> 16 & 0xffff) << 48;
    [low, offset >> 32]
}

fn set_call_gate(halves: [u64; 2]) {
    tables::set_descriptor(SPARE, halves[0]);
    tables::set_descriptor(SPARE + 8, halves[1]);
}

fn gate_transfer(t: &mut Report) {
    let target = collector();
    let spare = u64::from(SPARE);
    set_call_gate(call_gate(target.start, 8, 3));
    let code = far_call();
    let trap = code.at(Mode::User64).rcx(spare | 3).run();
    t.eq("call gate ring 3 to 0", trap.outcome(), Outcome::Done);
    t.eq("call gate: RSP0, four quadwords", trap.regs.rbx, tables::rsp0_top() - 32);
    t.eq("call gate: CS, SS null", (trap.regs.rdx, trap.regs.rcx), (8, 0));
    let frame = (trap.regs.r8, trap.regs.r9, trap.regs.r10, trap.regs.r12);
    let (cs, ss) = Mode::User64.selectors();
    let rsp = stack_top() + USER_BASE - 16;
    t.eq("call gate: frame", frame, (code.mark + 3 + USER_BASE, cs.into(), rsp, ss.into()));
    let trap = code.at(Mode::Kernel64).rcx(spare).run();
    let frame = (trap.regs.rbx, trap.regs.r8, trap.regs.r9);
    t.eq("call gate same level", frame, (stack_top() - 32, code.mark + 3, 8));
    let trap = far_jump().at(Mode::Kernel64).rcx(spare).run();
    t.eq("far jmp by call gate same level", (trap.outcome(), trap.regs.rdx), (Outcome::Done, 8));

    // There and back again, with the stack restored.
    let back = snippet!("mov r15, cs", "retfq");
    set_call_gate(call_gate(back.start, 8, 3));
    let round = snippet!(
        "sub rsp, 16",
        "mov dword ptr [rsp], 0",
        "mov [rsp + 4], cx",
        "call fword ptr [rsp]",
        "mov rdx, cs",
        "mov rbx, rsp"
    );
    let trap = round.at(Mode::User64).rcx(spare | 3).run();
    let got = (trap.outcome(), trap.regs.r15, trap.regs.rdx, trap.regs.rbx);
    t.eq("call gate and retfq", got, (Outcome::Done, 8, cs.into(), rsp));

    // A conforming target stays in ring 3.
    tables::set_descriptor(SPARE2, tables::CODE64 | CONFORMING);
    set_call_gate(call_gate(target.start + USER_BASE, SPARE2, 3));
    let trap = code.at(Mode::User64).rcx(spare | 3).run();
    let got = (trap.outcome(), trap.regs.rdx, trap.regs.rbx);
    let expected = (Outcome::Done, u64::from(SPARE2 | 3), rsp - 16);
    t.eq("call gate to conforming code", got, expected);
}

fn gate_checks(t: &mut Report) {
    let target = collector();
    let spare = u64::from(SPARE);
    let good = call_gate(target.start, 8, 3);
    let gp = Outcome::coded(GP, spare);
    let mut check = |name: &str, halves: [u64; 2], from: Mode, rpl: u64, expected: Outcome| {
        set_call_gate(halves);
        let got = far_call().at(from).rcx(spare | rpl).outcome();
        t.eq(format_args!("call gate {name}"), got, expected);
    };
    check("DPL 0 from ring 3", call_gate(target.start, 8, 0), Mode::User64, 3, gp);
    check("RPL 3, DPL 0", call_gate(target.start, 8, 0), Mode::Kernel64, 3, gp);
    check("not present", [good[0] & !PRESENT, good[1]], Mode::User64, 3, Outcome::coded(NP, spare));
    check("upper half has a type", [good[0], good[1] | 1 << 40], Mode::User64, 3, gp);
    check(
        "null code selector",
        call_gate(target.start, 0, 3),
        Mode::User64,
        3,
        Outcome::coded(GP, 0),
    );
    check(
        "data selector",
        call_gate(target.start, 0x10, 3),
        Mode::User64,
        3,
        Outcome::coded(GP, 0x10),
    );
    check(
        "32-bit code",
        call_gate(target.start, 0x38, 3),
        Mode::User64,
        3,
        Outcome::coded(GP, 0x38),
    );
    let outer = call_gate(target.start, 0x28, 3);
    check("code DPL 3 from ring 0", outer, Mode::Kernel64, 0, Outcome::coded(GP, 0x28));
    tables::set_descriptor(SPARE2, tables::CODE64 & !PRESENT);
    let absent = call_gate(target.start, SPARE2, 3);
    check("code not present", absent, Mode::User64, 3, Outcome::coded(NP, SPARE2.into()));
    check("non-canonical offset", call_gate(1 << 47, 8, 3), Mode::User64, 3, Outcome::coded(GP, 0));
    set_call_gate(good);
    let jump = far_jump().at(Mode::User64).rcx(spare | 3).outcome();
    t.eq("far jmp by call gate to ring 0", jump, Outcome::coded(GP, 8));
}

/// Far branches of 32-bit code.
fn compatibility(t: &mut Report) {
    // Direct far jump from ring 3 compatibility mode to 64-bit mode and back.
    let wide = snippet!("mov r15, -1", "push rdi", "push rax", "retfq");
    let there = snippet32!(
        "push {cs}", "call 2f", "2:", "add dword ptr [esp], 12",
        "push ecx", "push ebx", "retf", "nop", "nop", "nop", "nop", "nop", "nop", "nop", "nop", "nop",
        "mov edx, cs"
        => cs = const tables::USER_CODE32
    );
    let run = there.at(Mode::User32).rcx(tables::USER_CODE.into()).rbx(wide.start + USER_BASE);
    // The 64-bit part returns to the last instruction of the 32-bit part.
    let back = there.end - 2 + USER_BASE;
    let trap = run.rax(back).rdi(tables::USER_CODE32.into()).run();
    let got = (trap.outcome(), trap.regs.rdx, trap.regs.r15);
    t.eq("32-bit to 64-bit code and back", got, {
        (Outcome::Done, u64::from(tables::USER_CODE32), u64::MAX)
    });
    let direct = snippet32!(".byte 0x9a", ".long 0", ".word 8");
    let run = direct.at(Mode::User32).outcome();
    t.eq("32-bit far call to ring 0 code", run, Outcome::coded(GP, 8));
    // A call gate from 32-bit code switches to 64-bit ring 0.
    let target = collector();
    set_call_gate(call_gate(target.start, 8, 3));
    let direct = snippet32!(".byte 0x9a", ".long 0", ".word {gate}" => gate = const SPARE | 3);
    let trap = direct.at(Mode::User32).run();
    let got = (trap.outcome(), trap.regs.rdx, trap.regs.rbx, trap.regs.r9);
    let expected = (Outcome::Done, 8, tables::rsp0_top() - 32, tables::USER_CODE32.into());
    t.eq("call gate from 32-bit code", got, expected);
}
