//! Events leave virtual-8086 mode for ring 0, and IRETD goes back (21.2.6, 21.3).

use crate::run as v86;
use kit::cpu::flag;
use kit::legacy::{self, TASK_SELECTOR, last, restore_gate, set_gate, stub};
use kit::real::{CODE, DATA, STACK, STACK_TOP, at_8086};
use kit::tables::{self, KERNEL_CODE32, field};
use kit::trap::vector::*;
use kit::{Outcome, Report, apic, snippet, snippet32};

const SPARE: u16 = tables::FREE_SELECTOR;

pub fn run(t: &mut Report) {
    frame(t);
    gates(t);
    monitor(t);
    interrupt(t);
    step(t);
    sixteen_bits(t);
}

/// Nine doublewords, and an error code.
fn frame(t: &mut Report) {
    let mut run = v86(snippet!(".code16"; "div cx"));
    (run.es, run.fs, run.gs) = (0x1111, 0x2222, 0x3333);
    run.eflags |= flag::CF as u32;
    let trap = run.run();
    let s = last();
    t.eq("the stack of ring 0", trap.stack, tables::rsp0_top());
    let got = (trap.cs, trap.ss, trap.rsp);
    t.eq("CS, SS, ESP", got, (CODE.into(), STACK.into(), STACK_TOP.into()));
    let got = [s.es, s.ds, s.fs, s.gs].map(|word| word & 0xffff);
    t.eq("ES, DS, FS, GS", got, [0x1111, DATA.into(), 0x2222, 0x3333]);
    t.eq("EFLAGS", trap.rflags & !flag::RF, 0x2_3003);
    let handler = (s.handler_ds, s.handler_es, s.handler_fs, s.handler_gs);
    t.eq("null selectors in the handler", handler, (0, 0, 0, 0));
    t.eq("the task register", s.tr, TASK_SELECTOR);
}

fn gates(t: &mut Report) {
    set_gate(0x60, stub(0x60), KERNEL_CODE32, 14, 3);
    let int = snippet!(".code16"; "int 0x60");
    t.eq("INT n, gate DPL 3", v86(int).outcome(), Outcome::trap(0x60, 2));
    restore_gate(0x60);
    t.eq("#GP INT n, gate DPL 0", v86(int).outcome(), Outcome::coded(GP, 0x60 * 8 + 2));
    // The handler must be in ring 0, and not conforming.
    let conforming = tables::CODE32 | 4 << 40;
    let ring3 = tables::CODE32 | field::DPL3;
    for (name, descriptor) in [("conforming", conforming), ("ring 3", ring3)] {
        tables::set_descriptor(SPARE, descriptor);
        set_gate(0x60, stub(0x60), SPARE, 14, 3);
        let got = v86(int).outcome();
        t.eq(format_args!("#GP {name} handler"), got, Outcome::coded(GP, SPARE.into()));
    }
    restore_gate(0x60);
}

/// A monitor that carries out CLI and INT for its guest.
fn monitor(t: &mut Report) {
    let handler = snippet32!(
        "add esp, 4",             // the error code
        "inc dword ptr ss:[esp]", // behind the CLI
        "inc edi",
        "mov word ptr ss:[esp + 20 + 4], 0x4444", // another DS
        "iretd"
    );
    set_gate(GP as u8, handler.start as u32, KERNEL_CODE32, 14, 0);
    set_gate(BP as u8, stub(0xf0), KERNEL_CODE32, 14, 3);
    let code = snippet!(".code16"; "cli", "mov ax, ds", "cli", "mov bx, ss", "mov cx, es", "int3");
    let mut run = at_8086(code, 0).with_task();
    run.es = 0x1111;
    let trap = run.run();
    let r = trap.regs;
    let got = (trap.outcome(), r.rax, r.rbx, r.rcx, r.rdi, trap.rsp);
    let expected = (Outcome::Done, 0x4444, STACK.into(), 0x1111, 2, STACK_TOP.into());
    t.eq("a monitor steps over CLI", got, expected);
    restore_gate(GP as u8);
    restore_gate(BP as u8);
    // Ring 0 to virtual-8086 mode, and the frame that must be whole.
    let enter = snippet32!(
        "push 0x77", "push 0x66", "push 0x55", "push 0x44", "push {stack}", "push 0x1000",
        "push 0x23002", "push {code}", "push 0", "iretd"
        => stack = const STACK, code = const CODE
    );
    kit::real::place(
        snippet!(".code16"; "mov ax, es", "mov bx, ds", "mov cx, fs", "mov dx, gs"),
        0x5_0000,
    );
    let trap = legacy::at(enter).with_task().run();
    let r = trap.regs;
    let got = (trap.vector, r.rax, r.rbx, r.rcx, r.rdx, trap.rsp);
    t.eq("IRETD loads all segments", got, (0xf0, 0x44, 0x55, 0x66, 0x77, 0x1000));
    // Only CPL 0 can: elsewhere VM is ignored.
    let outer = snippet32!(
        "push {data}", "push esp", "pushfd", "or dword ptr [esp], 0x20000", "push {code}", "push esi",
        "iretd" => data = const tables::USER_DATA, code = const tables::USER_CODE32
    );
    let after = snippet32!("mov eax, cs");
    let mut run = legacy::at(outer).with_task().ring3(0);
    run.regs[4] = after.start as u32;
    let trap = run.run();
    let got = (trap.vector, trap.regs.rax, trap.rflags >> 17 & 1);
    t.eq("IRETD in ring 3 keeps VM clear", got, (0xf0, tables::USER_CODE32.into(), 0));
    // Nor POPF.
    let pop = snippet32!("push 0x20002", "popfd", "mov eax, cs");
    let trap = legacy::at(pop).run();
    t.eq("POPFD keeps VM clear", (trap.outcome(), trap.rflags >> 17 & 1), (Outcome::Done, 0));
}

/// A hardware interrupt through the 32-bit IDT, whatever the virtual IDT says.
fn interrupt(t: &mut Report) {
    apic::enable();
    for iopl in [0, 3] {
        apic::self_ipi(0x61);
        let mut run = at_8086(snippet!(".code16"; "2:", "jmp 2b"), iopl).with_task();
        run.eflags |= flag::IF as u32;
        let trap = run.run();
        t.eq(format_args!("an interrupt, IOPL {iopl}"), trap.outcome(), Outcome::trap(0x61, 0));
        t.eq(
            format_args!("an interrupt, IOPL {iopl}: EFLAGS"),
            trap.rflags & !flag::RF,
            0x2_0202 | u64::from(iopl) << 12,
        );
        apic::eoi();
    }
}

fn step(t: &mut Report) {
    let mut run = v86(snippet!(".code16"; "inc ax", "nop"));
    run.eflags |= flag::TF as u32;
    t.eq("single step", run.outcome(), Outcome::trap(DB, 1));
    kit::cpu::write_dr6(0xffff_0ff0);
}

/// A 16-bit gate pushes words.
fn sixteen_bits(t: &mut Report) {
    let handler = snippet32!("mov eax, ss:[esp + 6]", "mov ebx, esp", "int 0xf0");
    let base = handler.start & 0xffff_0000;
    let based = tables::CODE32 | (base & 0xff_ffff) << 16 | (base >> 24) << 56;
    tables::set_descriptor(SPARE, based);
    set_gate(0x60, handler.start as u32 & 0xffff, SPARE, 6, 3);
    let trap = v86(snippet!(".code16"; "int 0x60")).run();
    let got = (trap.vector, trap.regs.rax, trap.regs.rbx);
    let words = u64::from(STACK_TOP) | u64::from(STACK) << 16;
    t.eq("a 16-bit gate pushes nine words", got, (0xf0, words, tables::rsp0_top() - 18));
    restore_gate(0x60);
}
