//! 2 MiB and 1 GiB pages.

use crate::{DATA, FULL, Kind, OTHER, SPOT};
use kit::cpu::feature;
use kit::page::{self, Entry, bit};
use kit::trap::vector::PF;
use kit::{Mode, Outcome, Report, snippet};

const MIB2: u64 = 2 << 20;
const GIB: u64 = 1 << 30;
/// Start of a 1 GiB aligned region that no other part uses.
const REGION: u64 = page::WINDOW + 16 * GIB;

pub fn run(t: &mut Report) {
    two_mebibytes(t);
    if feature::PAGE_1G.offered() {
        one_gibibyte(t);
    } else {
        t.skip("1 GiB pages", "not offered");
    }
    split(t);
}

/// Checks permissions and bits of a large page whose leaf is `entry` and
/// that maps DATA at `va`.
fn check(t: &mut Report, name: &str, entry: Entry, base: u64, va: u64) {
    page::poke(DATA.addr() + SPOT, 0x1122_3344_5566_7788);
    let set = |flags: u64| {
        entry.set(base | bit::PS | flags);
        page::invlpg(va);
    };
    set(FULL);
    let trap = snippet!("mov rax, [rbx]").at(Mode::User64).rbx(va + SPOT).run();
    let got = (trap.outcome(), trap.regs.rax);
    t.eq(format_args!("{name}: read"), got, (Outcome::Done, 0x1122_3344_5566_7788));
    t.eq(format_args!("{name}: A, no D"), entry.get() & (bit::A | bit::D), bit::A);
    t.eq(format_args!("{name}: fetch"), Kind::Fetch.make(va, Mode::User64, 0), Outcome::Done);
    t.eq(format_args!("{name}: write"), Kind::Write.make(va, Mode::User64, 0), Outcome::Done);
    t.eq(format_args!("{name}: D"), entry.get() & (bit::A | bit::D), bit::A | bit::D);
    set(bit::P | bit::U | bit::NX);
    let write = Kind::Write.make(va, Mode::User64, 0);
    t.eq(format_args!("{name}: read-only"), write, Outcome::page(7, va + SPOT));
    let fetch = Kind::Fetch.make(va, Mode::User64, 0);
    t.eq(format_args!("{name}: NX"), fetch, Outcome::page(0x15, va));
    set(bit::P | bit::W);
    let read = Kind::Read.make(va, Mode::User64, 0);
    t.eq(format_args!("{name}: supervisor"), read, Outcome::page(5, va + SPOT));
    set(FULL | bit::PAT_LARGE | bit::G);
    let read = Kind::Read.make(va, Mode::User64, 0);
    t.eq(format_args!("{name}: PAT and G bits"), read, Outcome::Done);
    set(0);
    let read = Kind::Read.make(va, Mode::Kernel64, 0);
    t.eq(format_args!("{name}: absent"), read, Outcome::page(0, va + SPOT));
}

fn two_mebibytes(t: &mut Report) {
    let base = DATA.addr() & !(MIB2 - 1);
    let va = REGION + MIB2 + (DATA.addr() & (MIB2 - 1));
    check(t, "2 MiB page", page::entry(va, 2), base, va);
}

fn one_gibibyte(t: &mut Report) {
    let va = REGION + GIB + DATA.addr();
    check(t, "1 GiB page", page::entry(va, 3), 0, va);
}

/// A large page replaced by a table of small ones, and back.
fn split(t: &mut Report) {
    let base = DATA.addr() & !(MIB2 - 1);
    let va = REGION + 4 * MIB2 + (DATA.addr() & (MIB2 - 1));
    let read = || {
        let trap = snippet!("mov rax, [rbx]").at(Mode::Kernel64).rbx(va + SPOT).run();
        if trap.vector == PF { 0 } else { trap.regs.rax }
    };
    page::poke(DATA.addr() + SPOT, 1);
    page::poke(OTHER.addr() + SPOT, 2);
    page::map(va, OTHER.addr(), FULL);
    t.eq("small page", read(), 2);
    let directory = page::entry(va, 2);
    let table = directory.get();
    directory.set(base | bit::PS | FULL);
    page::invlpg(va);
    t.eq("merged into a large page", read(), 1);
    directory.set(table);
    page::invlpg(va);
    t.eq("split again", read(), 2);
}
