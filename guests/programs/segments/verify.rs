//! LAR, LSL, VERR and VERW against a model (SDM vol. 2).

use crate::{PRESENT, SPARE, described};
use kit::cpu::flag;
use kit::tables::set_descriptor;
use kit::trap::vector::UD;
use kit::{Mode, Outcome, Report, snippet};

/// Whether selector privilege allows access to the descriptor.
fn visible(kind: u64, dpl: u64, rpl: u64, cpl: u64) -> bool {
    kind & 0x1c == 0x1c || (cpl <= dpl && rpl <= dpl)
}

/// LAR: segments, and in long mode LDT, TSS and call gate.
fn lar(kind: u64, dpl: u64, rpl: u64, cpl: u64) -> bool {
    visible(kind, dpl, rpl, cpl) && (kind & 0x10 != 0 || matches!(kind, 2 | 9 | 11 | 12))
}

/// LSL: as LAR without gates.
fn lsl(kind: u64, dpl: u64, rpl: u64, cpl: u64) -> bool {
    lar(kind, dpl, rpl, cpl) && kind != 12
}

fn verr(kind: u64, dpl: u64, rpl: u64, cpl: u64) -> bool {
    let readable = kind & 0x18 == 0x10 || kind & 0x1a == 0x1a;
    visible(kind, dpl, rpl, cpl) && readable
}

fn verw(kind: u64, dpl: u64, rpl: u64, cpl: u64) -> bool {
    visible(kind, dpl, rpl, cpl) && kind & 0x1a == 0x12
}

pub fn run(t: &mut Report) {
    table(t);
    values(t);
    edge_cases(t);
}

/// An instruction under test and its model.
type Case = (&'static str, kit::Code, fn(u64, u64, u64, u64) -> bool);

fn table(t: &mut Report) {
    let cases: [Case; 4] = [
        ("lar", snippet!("lar ecx, eax"), lar),
        ("lsl", snippet!("lsl ecx, eax"), lsl),
        ("verr", snippet!("verr ax"), verr),
        ("verw", snippet!("verw ax"), verw),
    ];
    let mut table = t.table("LAR, LSL, VERR, VERW");
    set_descriptor(SPARE + 8, 0);
    for kind in 0..32 {
        for dpl in [0, 3] {
            set_descriptor(SPARE, described(kind, dpl));
            for (name, code, model) in cases {
                for mode in [Mode::Kernel64, Mode::User64] {
                    for rpl in [0, 3] {
                        let run = code.at(mode).rax(u64::from(SPARE) | rpl).rcx(!0);
                        let trap = run.run();
                        let zf = trap.rflags & flag::ZF != 0;
                        let kept = trap.regs.rcx == !0;
                        let expected = model(kind, dpl, rpl, mode.cpl());
                        let writes = name.starts_with('l') && expected;
                        table.eq(
                            format_args!("{name} type {kind:#x} dpl {dpl} rpl {rpl} {mode:?}"),
                            (trap.outcome(), zf, kept),
                            (Outcome::Done, expected, !writes),
                        );
                    }
                }
            }
        }
    }
    table.finish();
}

fn values(t: &mut Report) {
    let descriptor =
        described(0x12, 3) & !(0xffff | 0xf << 48 | 1 << 55) | 0x3_4567 & 0xffff | 3 << 48;
    set_descriptor(SPARE, descriptor);
    let run =
        |code: kit::Code| code.at(Mode::User64).rax(u64::from(SPARE) | 3).rcx(!0).run().regs.rcx;
    let rights = descriptor >> 32 & 0x00f0_ff00;
    let lar = run(snippet!("lar ecx, eax"));
    t.eq("lar: access rights", lar & 0x00f0_ff00, rights);
    t.eq("lsl: byte limit", run(snippet!("lsl ecx, eax")), 0x3_4567);
    set_descriptor(SPARE, descriptor | 1 << 55);
    t.eq("lsl: page limit", run(snippet!("lsl ecx, eax")), 0x3456_7fff);
    let word = run(snippet!("lar cx, ax"));
    t.eq("lar: 16-bit operand", word, 0xffff_ffff_ffff_0000 | rights & 0xff00);
}

fn edge_cases(t: &mut Report) {
    let zf = |code: kit::Code, selector: u64| {
        let trap = code.at(Mode::Kernel64).rax(selector).flags(flag::ZF).run();
        (trap.outcome(), trap.rflags & flag::ZF != 0)
    };
    for (name, selector) in [("null", 0), ("null with RPL", 3), ("beyond the GDT", 0x200)] {
        let no = (Outcome::Done, false);
        t.eq(format_args!("lar {name}"), zf(snippet!("lar ecx, eax"), selector), no);
        t.eq(format_args!("lsl {name}"), zf(snippet!("lsl ecx, eax"), selector), no);
        t.eq(format_args!("verr {name}"), zf(snippet!("verr ax"), selector), no);
        t.eq(format_args!("verw {name}"), zf(snippet!("verw ax"), selector), no);
    }
    set_descriptor(SPARE, described(0x12, 0) & !PRESENT);
    let absent = zf(snippet!("lar ecx, eax"), SPARE.into());
    t.eq("lar of an absent segment", absent, (Outcome::Done, true));
    let tr = zf(snippet!("lar ecx, eax"), kit::tables::TSS_SELECTOR.into());
    t.eq("lar of the TSS", tr, (Outcome::Done, true));
    t.eq("#UD lar with lock", snippet!(".byte 0xf0, 0x0f, 0x02, 0xc8").k(), Outcome::fault(UD));
}
