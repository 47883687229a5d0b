//! The LDT, and what LAR, LSL, VERR and VERW say outside long mode.

use crate::{SPARE, descriptor};
use kit::legacy::{at, last};
use kit::page::peek;
use kit::tables::{self, KERNEL_DATA, field};
use kit::trap::vector::*;
use kit::{Code, Global, Outcome, Report, cpu::flag, snippet32};

static LDT: Global<[u64; 4]> = Global::new([0; 4]);
const LDT_AT: u16 = SPARE + 56;

pub fn run(t: &mut Report) {
    loading(t);
    using(t);
    queries(t);
}

fn loading(t: &mut Report) {
    let lldt = snippet32!("lldt ax");
    let base = LDT.addr();
    let good = tables::system_descriptor(base, 31, 2);
    let code = u64::from(LDT_AT);
    let cases: [(&str, u64, u16, Outcome); 6] = [
        ("lldt", good, LDT_AT, Outcome::Done),
        ("lldt with RPL 3", good, LDT_AT | 3, Outcome::Done),
        ("#NP lldt absent", good & !field::PRESENT, LDT_AT, Outcome::coded(NP, code)),
        ("#GP lldt data", good, KERNEL_DATA, Outcome::coded(GP, KERNEL_DATA.into())),
        ("#GP lldt in the LDT", good, LDT_AT | 4, Outcome::coded(GP, code | 4)),
        ("#GP lldt beyond the GDT", good, 0x200, Outcome::coded(GP, 0x200)),
    ];
    for (name, value, selector, expected) in cases {
        tables::set_descriptor(LDT_AT, value);
        t.eq(name, at(lldt).eax(selector.into()).outcome(), expected);
    }
    tables::set_descriptor(LDT_AT, good);
    at(lldt).eax(LDT_AT.into()).run();
    t.eq("sldt", last().ldt, LDT_AT);
    t.eq("#GP lldt in ring 3", at(lldt).ring3(0).with_task().outcome(), Outcome::coded(GP, 0));
}

fn using(t: &mut Report) {
    LDT.set([tables::DATA & !(1 << 40), tables::DATA, tables::CODE32, 0]);
    let run = |code, eax: u32| {
        let mut run = at(code).eax(eax);
        run.ldt = LDT_AT.into();
        run
    };
    let load = snippet32!("mov fs, eax"; "mov ecx, fs:[ebx]");
    // The first entry of an LDT is a normal one.
    let trap = run(load, 4).ebx(0x10_0000).run();
    let got = (trap.outcome(), trap.regs.rcx);
    t.eq("the first entry of the LDT", got, (Outcome::Done, peek(0x10_0000) & 0xffff_ffff));
    t.eq("its accessed bit", LDT.get()[0], tables::DATA);
    t.eq(
        "an empty entry",
        run(snippet32!("mov fs, eax"), 0x1c).outcome(),
        Outcome::coded(GP, 0x1c),
    );
    t.eq(
        "beyond the LDT",
        run(snippet32!("mov fs, eax"), 0x24).outcome(),
        Outcome::coded(GP, 0x24),
    );
    let jump = snippet32!(".byte 0xea", ".long 2f", ".word 0x14", "2:", "mov ecx, cs");
    let trap = run(jump, 0).run();
    t.eq("code in the LDT", (trap.outcome(), trap.regs.rcx), (Outcome::Done, 0x14));
    let mut none = at(snippet32!("mov fs, eax")).eax(4);
    none.ldt = 0;
    t.eq("#GP with a null LDT", none.outcome(), Outcome::coded(GP, 4));
}

/// Access byte, and whether LAR, LSL, VERR, VERW accept it.
fn queries(t: &mut Report) {
    let cases: [(u8, bool, bool, bool, bool); 24] = [
        (0x80, false, false, false, false),
        (0x81, true, true, false, false),
        (0x82, true, true, false, false),
        (0x83, true, true, false, false),
        (0x84, true, false, false, false),
        (0x85, true, false, false, false),
        (0x86, false, false, false, false),
        (0x87, false, false, false, false),
        (0x88, false, false, false, false),
        (0x89, true, true, false, false),
        (0x8a, false, false, false, false),
        (0x8b, true, true, false, false),
        (0x8c, true, false, false, false),
        (0x8d, false, false, false, false),
        (0x8e, false, false, false, false),
        (0x8f, false, false, false, false),
        (0x90, true, true, true, false),
        (0x92, true, true, true, true),
        (0x94, true, true, true, false),
        (0x96, true, true, true, true),
        (0x98, true, true, false, false),
        (0x9a, true, true, true, false),
        // Neither presence nor the accessed bit count.
        (0x12, true, true, true, true),
        (0x9e, true, true, true, false),
    ];
    let lar = snippet32!("lar ecx, eax", "pushfd", "pop edx");
    let lsl = snippet32!("lsl ecx, eax", "pushfd", "pop edx");
    let verr = snippet32!("verr ax", "pushfd", "pop edx");
    let verw = snippet32!("verw ax", "pushfd", "pop edx");
    let mut table = t.table("LAR, LSL, VERR, VERW");
    for (access, rights, limit, read, write) in cases {
        let value = descriptor(0x1234_5678, 0x1_2345, access, 12);
        tables::set_descriptor(SPARE, value);
        let check = |code: Code, expected: bool| {
            let trap = at(code).eax(SPARE.into()).run();
            // Bits 19:16 of what LAR gives are not defined.
            let value =
                if code.start == lar.start { trap.regs.rcx & !0xf_0000 } else { trap.regs.rcx };
            (trap.outcome(), trap.regs.rdx & flag::ZF != 0, value, expected)
        };
        for (name, (outcome, zf, value, expected), wanted) in [
            ("lar", check(lar, rights), value >> 32 & 0xf0_ff00),
            ("lsl", check(lsl, limit), 0x1234_5fff),
            ("verr", check(verr, read), 0),
            ("verw", check(verw, write), 0),
        ] {
            table.eq(format_args!("{name} {access:#x}"), (outcome, zf), (Outcome::Done, expected));
            if expected {
                table.eq(format_args!("{name} {access:#x}: value"), value, wanted);
            }
        }
    }
    table.finish();
}
