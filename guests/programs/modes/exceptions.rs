//! Exceptions and interrupts through the 32-bit IDT.

use kit::cpu::flag;
use kit::legacy::{at, restore_gate, set_gate, stub};
use kit::snippet::stack_top;
use kit::tables::{self, KERNEL_CODE32, field};
use kit::trap::vector::*;
use kit::{Outcome, Report, snippet32};

const SPARE: u16 = tables::FREE_SELECTOR;

pub fn run(t: &mut Report) {
    causes(t);
    frame(t);
    gates(t);
    segments(t);
    step(t);
}

fn causes(t: &mut Report) {
    t.eq("32-bit: #DE", at(snippet32!("div ecx")).outcome(), Outcome::fault(DE));
    t.eq("32-bit: #UD", at(snippet32!("ud2")).outcome(), Outcome::fault(UD));
    t.eq("32-bit: #BP", at(snippet32!("int3")).outcome(), Outcome::trap(BP, 1));
    t.eq("32-bit: INT n", at(snippet32!("int 0x60")).outcome(), Outcome::trap(0x60, 2));
    let mut into = at(snippet32!(".byte 0xce"));
    into.eflags |= 1 << 11;
    t.eq("32-bit: #OF", into.outcome(), Outcome::trap(OF, 1));
    let bound = snippet32!("push 5", "push 1"; ".byte 0x62, 0x04, 0x24");
    t.eq("32-bit: #BR", at(bound).eax(9).outcome(), Outcome::fault(BR));
    t.eq("32-bit: bound inside", at(bound).eax(3).outcome(), Outcome::Done);
    let load = at(snippet32!("mov es, eax")).eax(0x200).outcome();
    t.eq("32-bit: #GP selector", load, Outcome::coded(GP, 0x200));
    tables::set_descriptor(SPARE, tables::DATA & !field::PRESENT);
    let load = at(snippet32!("mov es, eax")).eax(SPARE.into()).outcome();
    t.eq("32-bit: #NP", load, Outcome::coded(NP, SPARE.into()));
    let load = at(snippet32!("mov ss, eax")).eax(SPARE.into()).outcome();
    t.eq("32-bit: #SS selector", load, Outcome::coded(SS, SPARE.into()));
    let nm = {
        let mut run = at(snippet32!("fld1"));
        run.cr0 |= 8;
        run.outcome()
    };
    t.eq("32-bit: #NM", nm, Outcome::fault(NM));
    set_gate(0x60, stub(0x60), KERNEL_CODE32, 0, 0);
    let got = at(snippet32!("int 0x60")).outcome();
    t.eq("32-bit: #GP gate of type 0", got, Outcome::coded(GP, 0x60 * 8 + 2));
    restore_gate(0x60);
}

/// At the same level three words are pushed where ESP is, unaligned.
fn frame(t: &mut Report) {
    for off in [0, 1, 2, 3] {
        let mut run = at(snippet32!("int 0x60"));
        run.esp -= 64 + off;
        let esp = u64::from(run.esp);
        let trap = run.run();
        t.eq(
            format_args!("32-bit frame at ESP - {off}"),
            (trap.rsp, trap.cs),
            (esp, KERNEL_CODE32.into()),
        );
    }
    let mut run = at(snippet32!("stc"; "ud2"));
    run.eflags |= flag::DF as u32;
    let trap = run.run();
    t.eq("32-bit frame: EFLAGS", trap.rflags & !flag::RF, flag::DF | flag::CF | 2);
}

fn gates(t: &mut Report) {
    // The handler itself shows its flags: its end saves them.
    let handler = snippet32!("pushfd", "pop eax", "mov ebx, esp");
    for (kind, name, inside) in [(14, "interrupt gate", 2), (15, "trap gate", 0x202)] {
        set_gate(0x60, handler.start as u32, KERNEL_CODE32, kind, 0);
        let mut run = at(snippet32!("int 0x60"));
        run.eflags |= (flag::IF | flag::NT) as u32;
        let trap = run.run();
        t.eq(format_args!("32-bit {name}: flags"), trap.regs.rax, inside);
        t.eq(format_args!("32-bit {name}: three doublewords"), trap.regs.rbx, stack_top() - 12);
    }
    // A 16-bit gate pushes words.
    set_gate(0x60, handler.start as u32 & 0xffff, SPARE, 6, 0);
    let base = handler.start & 0xffff_0000;
    let based = tables::CODE32 | (base & 0xff_ffff) << 16 | (base >> 24) << 56;
    tables::set_descriptor(SPARE, based);
    let trap = at(snippet32!("int 0x60")).run();
    t.eq("16-bit gate: three words", trap.regs.rbx, stack_top() - 6);
    restore_gate(0x60);
    // A return by IRETD.
    let back = snippet32!("inc ecx", "iretd");
    set_gate(0x60, back.start as u32, KERNEL_CODE32, 14, 0);
    let trap = at(snippet32!("int 0x60", "int 0x60", "mov edx, esp")).run();
    let got = (trap.outcome(), trap.regs.rcx, trap.regs.rdx);
    t.eq("32-bit iretd", got, (Outcome::Done, 2, stack_top()));
    restore_gate(0x60);
}

fn segments(t: &mut Report) {
    let descriptor = tables::DATA & !(0xffff | 0xf << 48 | 1 << 55) | 0xfff;
    tables::set_descriptor(SPARE, descriptor);
    let read = snippet32!("mov ds, eax"; "mov ecx, [ebx]");
    let at_limit = |address: u32| at(read).eax(SPARE.into()).ebx(address).outcome();
    t.eq("32-bit: below the limit", at_limit(0xffc), Outcome::Done);
    t.eq("32-bit: #GP across the limit", at_limit(0xffd), Outcome::coded(GP, 0));
    let stack = snippet32!("mov ss, eax"; "mov ecx, [ebp]");
    let run = at(stack).eax(SPARE.into());
    let mut beyond = run;
    beyond.regs[6] = 0x2000;
    // The fault itself needs a stack inside the limit.
    beyond.esp = 0xf00;
    t.eq("32-bit: #SS beyond the limit", beyond.outcome(), Outcome::coded(SS, 0));
    let null = snippet32!("xor eax, eax", "mov ds, eax"; "mov ecx, [ebx]");
    t.eq("32-bit: #GP null segment", at(null).outcome(), Outcome::coded(GP, 0));
}

fn step(t: &mut Report) {
    let mut run = at(snippet32!("inc eax", "nop"));
    run.eflags |= flag::TF as u32;
    t.eq("32-bit: single step", run.outcome(), Outcome::trap(DB, 1));
    kit::cpu::write_dr6(0xffff_0ff0);
}
