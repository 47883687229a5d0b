//! What loads of data and stack segments check, for every CPL, RPL and DPL (5.6, 5.7).

use crate::{SPARE, descriptor};
use kit::legacy::{Legacy, at};
use kit::tables::{self, GDT_LIMIT};
use kit::trap::vector::*;
use kit::{Code, Outcome, Report, snippet32};

/// Flat code of levels 0 to 2.
const CODE_AT: [u16; 3] = [SPARE + 8, SPARE + 16, SPARE + 24];
/// Flat data of levels 0 to 2.
pub const DATA_AT: [u16; 3] = [SPARE + 32, SPARE + 40, SPARE + 48];

pub fn run(t: &mut Report) {
    for dpl in 0..3_u8 {
        let level = usize::from(dpl);
        tables::set_descriptor(CODE_AT[level], descriptor(0, 0xfffff, 0x9b | dpl << 5, 12));
        tables::set_descriptor(DATA_AT[level], descriptor(0, 0xfffff, 0x93 | dpl << 5, 12));
    }
    data(t);
    stacks(t);
    kinds(t);
    accessed(t);
}

/// A run at level `cpl` with flat segments.
pub fn at_level(code: Code, cpl: u8) -> Legacy {
    if cpl == 0 {
        return at(code);
    }
    let mut run = at(code).ring3(0).with_task();
    if cpl == 3 {
        return run;
    }
    run.cs = u32::from(CODE_AT[usize::from(cpl)]) | u32::from(cpl);
    run.ss = u32::from(DATA_AT[usize::from(cpl)]) | u32::from(cpl);
    run.ds = run.ss;
    run
}

fn data(t: &mut Report) {
    let load = snippet32!("mov fs, eax");
    let mut table = t.table("data segments: CPL, RPL, DPL");
    for (kind, access) in [("data", 0x93), ("code", 0x9b), ("conforming", 0x9f)] {
        for cpl in 0..4 {
            for rpl in 0..4 {
                for dpl in 0..4 {
                    tables::set_descriptor(SPARE, descriptor(0, 0xfffff, access | dpl << 5, 12));
                    let selector = u32::from(SPARE) | u32::from(rpl);
                    let got = at_level(load, cpl).eax(selector).outcome();
                    let allowed = access == 0x9f || cpl <= dpl && rpl <= dpl;
                    let refused = Outcome::coded(GP, SPARE.into());
                    let expected = if allowed { Outcome::Done } else { refused };
                    table.eq(format_args!("{kind} CPL {cpl} RPL {rpl} DPL {dpl}"), got, expected);
                }
            }
        }
    }
    table.finish();
}

/// All three levels must be the same.
fn stacks(t: &mut Report) {
    let load = snippet32!("mov ss, eax");
    let mut table = t.table("stack segments: CPL, RPL, DPL");
    for cpl in 0..4 {
        for rpl in 0..4 {
            for dpl in 0..4 {
                tables::set_descriptor(SPARE, descriptor(0, 0xfffff, 0x93 | dpl << 5, 12));
                let selector = u32::from(SPARE) | u32::from(rpl);
                let got = at_level(load, cpl).eax(selector).outcome();
                let refused = Outcome::coded(GP, SPARE.into());
                let expected = if cpl == rpl && rpl == dpl { Outcome::Done } else { refused };
                table.eq(format_args!("CPL {cpl} RPL {rpl} DPL {dpl}"), got, expected);
            }
        }
    }
    table.finish();
}

fn kinds(t: &mut Report) {
    let into_fs = snippet32!("mov fs, eax");
    let into_ss = snippet32!("mov ss, eax");
    let code = u64::from(SPARE);
    let bad = Outcome::coded(GP, code);
    // Type with S, P; loads into FS and SS.
    let cases: [(&str, u8, Outcome, Outcome); 9] = [
        ("read-only data", 0x91, Outcome::Done, bad),
        ("expand-down data", 0x97, Outcome::Done, Outcome::Done),
        ("execute-only code", 0x99, bad, bad),
        ("execute-only conforming code", 0x9d, bad, bad),
        ("readable code", 0x9b, Outcome::Done, bad),
        ("absent data", 0x13, Outcome::coded(NP, code), Outcome::coded(SS, code)),
        ("absent execute-only code", 0x19, bad, bad),
        ("an LDT", 0x82, bad, bad),
        ("a call gate", 0x8c, bad, bad),
    ];
    for (name, access, fs, ss) in cases {
        tables::set_descriptor(SPARE, descriptor(0, 0xfffff, access, 12));
        t.eq(format_args!("load fs: {name}"), at(into_fs).eax(SPARE.into()).outcome(), fs);
        if access != 0x97 {
            t.eq(format_args!("load ss: {name}"), at(into_ss).eax(SPARE.into()).outcome(), ss);
        }
    }
    t.eq("load ss: null", at(into_ss).eax(0).outcome(), Outcome::coded(GP, 0));
    t.eq("load ss: null in ring 3", at_level(into_ss, 3).eax(3).outcome(), Outcome::coded(GP, 0));
    t.eq("load fs: null", at(into_fs).eax(3).outcome(), Outcome::Done);
    let beyond = u32::from(GDT_LIMIT) + 1;
    t.eq(
        "load fs: beyond the GDT",
        at(into_fs).eax(beyond + 1).outcome(),
        Outcome::coded(GP, beyond.into()),
    );
    t.eq("load fs: no LDT", at(into_fs).eax(12).outcome(), Outcome::coded(GP, 12));
    // POP and LFS check the same; a fault leaves everything.
    let pop = snippet32!("push eax"; "pop fs");
    let trap = at(pop).eax(beyond).run();
    t.eq("pop fs: beyond the GDT", trap.outcome(), Outcome::coded(GP, beyond.into()));
    t.eq("pop fs: ESP stays", trap.rsp, kit::snippet::stack_top() - 4);
    let lfs = snippet32!("push eax", "push 0x55", "mov ebx, 7"; "lfs ebx, [esp]");
    let trap = at(lfs).eax(beyond).run();
    t.eq(
        "lfs: beyond the GDT",
        (trap.outcome(), trap.regs.rbx),
        (Outcome::coded(GP, beyond.into()), 7),
    );
}

/// The accessed bit is set by a load, and by nothing else.
fn accessed(t: &mut Report) {
    let value = descriptor(0, 0xfffff, 0x92, 12);
    tables::set_descriptor(SPARE, value);
    at(snippet32!("lar ecx, eax", "lsl ecx, eax", "verr ax")).eax(SPARE.into()).run();
    t.eq("accessed: not by LAR, LSL, VERR", tables::descriptor(SPARE), value);
    at(snippet32!("mov fs, eax")).eax(SPARE.into()).run();
    t.eq("accessed: by a load", tables::descriptor(SPARE), value | 1 << 40);
    let refused = descriptor(0, 0xfffff, 0x12, 12);
    tables::set_descriptor(SPARE, refused);
    at(snippet32!("mov fs, eax")).eax(SPARE.into()).run();
    t.eq("accessed: not by a refused load", tables::descriptor(SPARE), refused);
    let code = descriptor(0, 0xfffff, 0x9a, 12);
    tables::set_descriptor(SPARE, code);
    at(snippet32!(".byte 0xea", ".long 2f", ".word {spare}", "2:" => spare = const SPARE)).run();
    t.eq("accessed: by a far jump", tables::descriptor(SPARE), code | 1 << 40);
}
