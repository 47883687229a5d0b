//! INT n, INT3, INT1, INTO and BOUND: traps, DPL checks, error codes.

use kit::tables::{self, Gate};
use kit::trap::{self, vector::*};
use kit::{Mode, Outcome, Report, cpu::flag, snippet, snippet32};

/// Error code of a fault on the gate of `vector`, caused by the program.
const fn gate(vector: u64) -> Outcome {
    Outcome::coded(GP, vector * 8 + 2)
}

pub fn run(t: &mut Report) {
    every_vector(t);
    breakpoints(t);
    overflow_and_bound(t);
    idt_limit(t);
}

fn every_vector(t: &mut Report) {
    let mut table = t.table("INT n delivers n behind the instruction");
    for n in 0x20..=0xffu8 {
        let expected =
            if n == tables::END_VECTOR { Outcome::Done } else { Outcome::trap(n.into(), 2) };
        let mut got = kit::snippet::bytes(&[0xcd, n]).k();
        if n == tables::END_VECTOR {
            got = kit::snippet::bytes(&[]).k();
        }
        table.eq(format_args!("{n:#x}"), got, expected);
    }
    table.finish();

    let mut table = t.table("INT n in ring 3 needs gate DPL 3");
    for n in (0..=0xffu8).filter(|&n| n != tables::END_VECTOR) {
        table.eq(format_args!("{n:#x}"), kit::snippet::bytes(&[0xcd, n]).u(), gate(n.into()));
    }
    table.finish();

    // INT n pushes no error code, whatever the exception of that number does:
    // another vector's stub takes the frame.
    let mut table = t.table("INT n of exception vectors pushes no error code");
    for n in [8u8, 10, 11, 12, 13, 14, 17] {
        let stand_in = Gate { offset: trap::stub(0x60), ..Gate::standard(n) };
        tables::set_gate(n, stand_in);
        let outcome = kit::snippet::bytes(&[0xcd, n]).k();
        tables::restore_gate(n);
        table.eq(format_args!("{n}"), outcome, Outcome::trap(0x60, 2));
    }
    table.finish();

    tables::set_gate(0x61, Gate { dpl: 3, ..Gate::standard(0x61) });
    t.eq("INT n in ring 3 with DPL 3", snippet!("int 0x61").u(), Outcome::trap(0x61, 2));
    let trap = snippet!("int 0x61").user();
    t.eq("INT n from ring 3 on RSP0", trap.stack, tables::rsp0_top());
    tables::restore_gate(0x61);
}

fn breakpoints(t: &mut Report) {
    t.eq("#BP int3", snippet!("int3").k(), Outcome::trap(BP, 1));
    t.eq("#BP int 3 (CD 03)", snippet!(".byte 0xcd, 3").k(), Outcome::trap(BP, 2));
    t.eq("int3 in ring 3, gate DPL 0", snippet!("int3").u(), gate(3));
    tables::set_gate(3, Gate { dpl: 3, ..Gate::standard(3) });
    t.eq("int3 in ring 3, gate DPL 3", snippet!("int3").u(), Outcome::trap(BP, 1));
    tables::restore_gate(3);
    // INT1 is a hardware exception by another name: no DPL check.
    t.eq("#DB int1", snippet!(".byte 0xf1").k(), Outcome::trap(DB, 1));
    t.eq("#DB int1 in ring 3, gate DPL 0", snippet!(".byte 0xf1").u(), Outcome::trap(DB, 1));
}

fn overflow_and_bound(t: &mut Report) {
    const OVERFLOW: u64 = 1 << 11;
    let into = snippet32!(".byte 0xce");
    t.eq("into with OF clear", into.at(Mode::User32).outcome(), Outcome::Done);
    t.eq("into with OF set, gate DPL 0", into.at(Mode::User32).flags(OVERFLOW).outcome(), gate(4));
    tables::set_gate(4, Gate { dpl: 3, ..Gate::standard(4) });
    t.eq(
        "#OF into with OF set",
        into.at(Mode::User32).flags(OVERFLOW).outcome(),
        Outcome::trap(OF, 1),
    );
    tables::restore_gate(4);
    t.eq("into in 64-bit code", snippet!(".byte 0xce").k(), Outcome::fault(UD));

    let bound = snippet32!(
        "sub esp, 8", "mov dword ptr [esp], -5", "mov dword ptr [esp + 4], 10";
        ".byte 0x62, 0x04, 0x24" // bound eax, [esp]
    );
    let at = |index: i32| bound.at(Mode::User32).rax(index as u32 as u64).outcome();
    t.eq("bound at lower limit", at(-5), Outcome::Done);
    t.eq("bound at upper limit", at(10), Outcome::Done);
    t.eq("#BR below", at(-6), Outcome::fault(BR));
    t.eq("#BR above", at(11), Outcome::fault(BR));
    let register = snippet32!(".byte 0x62, 0xc0");
    t.eq("bound with a register", register.at(Mode::Kernel32).outcome(), Outcome::fault(UD));
}

fn idt_limit(t: &mut Report) {
    let mut pointer = tables::idt_pointer();
    pointer.limit = 0xf1 * 16 - 1;
    tables::load_idt(pointer);
    t.eq("INT n beyond the IDT limit", snippet!("int 0xf1").k(), gate(0xf1));
    t.eq("INT n beyond the IDT limit, ring 3", snippet!("int 0xf1").u(), gate(0xf1));
    t.eq("INT n at the IDT limit", snippet!("nop").k(), Outcome::Done);
    pointer.limit = 0xf1 * 16 + 14;
    tables::load_idt(pointer);
    t.eq("INT n with a gate cut by the limit", snippet!("int 0xf1").k(), gate(0xf1));
    tables::load_idt(tables::idt_pointer());
    let trap = snippet!("int 0x60").at(Mode::Kernel64).flags(flag::IF).run();
    t.that("INT n saves IF as it was", trap.rflags & flag::IF != 0);
}
