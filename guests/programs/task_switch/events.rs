//! Interrupts and exceptions through task gates (6.12.2).

use crate::scene::*;
use kit::cpu::flag;
use kit::legacy::{TASK_SELECTOR, restore_gate, set_raw_gate};
use kit::tables::{self, USER_CODE32};
use kit::trap::vector::*;
use kit::{Outcome, Report, apic, snippet32};

pub fn run(t: &mut Report) {
    software(t);
    exceptions(t);
    double_fault(t);
    hardware(t);
}

fn software(t: &mut Report) {
    let there =
        snippet32!("mov ebx, 0x1234", "pushfd", "pop edi", "iretd", "mov ebx, 0x1235", "iretd");
    set_other(task(there), 0);
    set_raw_gate(0x60, task_gate(OTHER, 3));
    let code = snippet32!("mov eax, 1", "int 0x60", "mov ecx, 2");
    let mut run = at(code).ring3(0);
    run.eflags |= flag::IF as u32;
    let trap = run.run();
    let got = (trap.outcome(), trap.regs.rax, trap.regs.rcx, trap.cs);
    t.eq("INT n by a task gate", got, (Outcome::Done, 1, 2, USER_CODE32.into()));
    let saved = other();
    t.eq("INT n: the link", saved.link, TASK_SELECTOR.into());
    t.eq("INT n: NT, and EFLAGS of the task", u64::from(saved.regs[7]), flag::NT | 2);
    t.eq("INT n: EBX of the task", saved.regs[3], 0x1234);
    t.eq("INT n: EFLAGS of the interrupted task", u64::from(own().eflags), flag::IF | 2);
    at(code).ring3(0).run();
    t.eq("INT n: a second one goes on behind iret", other().regs[3], 0x1235);
    set_raw_gate(0x60, task_gate(OTHER, 0));
    t.eq(
        "#GP INT n: gate DPL 0",
        at(snippet32!("int 0x60")).ring3(0).outcome(),
        Outcome::coded(GP, 0x60 * 8 + 2),
    );
    set_raw_gate(0x60, task_gate(OTHER, 3) & !tables::field::PRESENT);
    t.eq(
        "#NP INT n: absent gate",
        at(snippet32!("int 0x60")).outcome(),
        Outcome::coded(NP, 0x60 * 8 + 2),
    );
    restore_gate(0x60);
}

/// The error code is on the stack of the task; EIP in the TSS is the fault's.
fn exceptions(t: &mut Report) {
    // It makes the interrupted task go on behind its fault.
    let there = snippet32!("pop ebx", "mov ecx, esp", "add dword ptr [esi + 32], 2", "iretd");
    let mut other = task(there);
    other.regs[6] = kit::legacy::TASK.addr() as u32;
    set_other(other, 0);
    set_raw_gate(GP as u8, task_gate(OTHER, 0));
    let code = snippet32!("mov eax, 0x200"; "mov es, eax", "mov edx, 5");
    let trap = at(code).run();
    t.eq("#GP by a task gate", (trap.outcome(), trap.regs.rdx), (Outcome::Done, 5));
    let saved = crate::scene::other();
    let got = (saved.regs[3], saved.regs[1]);
    t.eq("#GP: the error code", got, (0x200, other_stack()));
    restore_gate(GP as u8);
    let there = snippet32!("mov ecx, esp", "add dword ptr [esi + 32], 2", "iretd");
    let mut other = task(there);
    other.regs[6] = kit::legacy::TASK.addr() as u32;
    set_other(other, 0);
    set_raw_gate(UD as u8, task_gate(OTHER, 0));
    let trap = at(snippet32!("ud2", "mov edx, 6")).run();
    let got = (trap.outcome(), trap.regs.rdx, crate::scene::other().regs[1]);
    t.eq("#UD by a task gate", got, (Outcome::Done, 6, other_stack()));
    restore_gate(UD as u8);
}

/// The classic use: #DF when the stack is gone.
fn double_fault(t: &mut Report) {
    let there = snippet32!("pop ebx", "mov eax, 0x77");
    set_other(task(there), 0);
    set_raw_gate(DF as u8, task_gate(OTHER, 0));
    // A stack segment of one page, and ESP beyond it.
    tables::set_descriptor(SPARE, tables::DATA & !(0xffff | 0xf << 48 | 1 << 55) | 0xfff);
    let code = snippet32!("mov eax, {spare}", "mov ss, ax", "mov esp, 0x8000"; "push eax" => spare = const SPARE);
    let trap = at(code).run();
    let got = (trap.vector, trap.regs.rax, trap.regs.rbx, own().eip);
    t.eq("#DF by a task gate", got, (0xf0, 0x77, 0, code.mark as u32));
    t.eq("#DF: ESP of the broken task", own().regs[4], 0x8000);
    restore_gate(DF as u8);
}

fn hardware(t: &mut Report) {
    let there = snippet32!("mov ebx, 0x1234", "iretd");
    set_other(task(there), 0);
    set_raw_gate(0x61, task_gate(OTHER, 0));
    apic::enable();
    apic::self_ipi(0x61);
    let trap = at(snippet32!("sti", "nop", "cli", "mov eax, 9")).run();
    let got = (trap.outcome(), trap.regs.rax, other().regs[3], other().link);
    t.eq("an interrupt by a task gate", got, (Outcome::Done, 9, 0x1234, TASK_SELECTOR.into()));
    apic::eoi();
    restore_gate(0x61);
}
