//! When a changed entry must be seen, and when the old one may be (SDM vol.
//! 3A 4.10.4).

use crate::{DATA, FULL, Kind, OTHER, SPOT};
use kit::cpu::{self, cr4, feature};
use kit::page::{self, bit};
use kit::trap::vector::GP;
use kit::{Mode, Outcome, Report, snippet};

pub const VA: u64 = page::WINDOW + (20 << 30);
pub const OLD: u64 = 0xaaaa;
pub const NEW: u64 = 0xbbbb;

/// Maps VA to the page that holds OLD and uses it.
pub fn prime(extra: u64) {
    page::poke(DATA.addr() + SPOT, OLD);
    page::poke(OTHER.addr() + SPOT, NEW);
    page::map(VA, DATA.addr(), FULL | extra);
    assert!(read() == OLD, "the fresh mapping is not seen");
}

/// Changes the entry to the page that holds NEW, with no invalidation.
pub fn change(extra: u64) {
    page::entry(VA, 1).set(OTHER.addr() | FULL | extra);
}

/// Reads through the mapping.
pub fn read() -> u64 {
    page::peek(VA + SPOT)
}

pub fn run(t: &mut Report) {
    required(t);
    upper_levels(t);
    permissions(t);
    if feature::PGE.offered() {
        global(t);
    } else {
        t.skip("global pages", "not offered");
    }
    write_intent(t);
}

fn required(t: &mut Report) {
    prime(0);
    change(0);
    t.holds("changed entry: old or new", read(), |&value| value == OLD || value == NEW);
    page::invlpg(VA + 0xfff);
    t.eq("invlpg with any address of the page", read(), NEW);
    prime(0);
    change(0);
    page::flush();
    t.eq("mov to cr3", read(), NEW);
    prime(0);
    change(0);
    cpu::write_cr4(cpu::read_cr4() ^ cr4::PGE);
    cpu::write_cr4(cpu::read_cr4() ^ cr4::PGE);
    t.eq("toggling CR4.PGE", read(), NEW);
    // An absent entry is never cached.
    page::map(VA, 0, 0);
    let absent = Kind::Read.make(VA, Mode::Kernel64, 0);
    t.eq("absent", absent, Outcome::page(0, VA + SPOT));
    change(0);
    t.eq("absent to present needs no invalidation", read(), NEW);
    // Nor is one whose reserved bits are set.
    if cpu::physical_bits() < 52 {
        prime(0);
        page::map(VA, DATA.addr(), FULL | 1 << 51);
        let reserved = Kind::Read.make(VA, Mode::Kernel64, 0);
        t.eq("reserved", reserved, Outcome::page(9, VA + SPOT));
        change(0);
        t.eq("reserved to good needs no invalidation", read(), NEW);
    }
}

/// INVLPG drops what the processor keeps of every level.
fn upper_levels(t: &mut Report) {
    const THERE: u64 = VA + (1 << 30) + (1 << 21);
    page::map(THERE, OTHER.addr(), FULL);
    let mut table = t.table("invlpg after a change at an upper level");
    for level in 2..=3 {
        prime(0);
        let entry = page::entry(VA, level);
        let good = entry.get();
        let far = THERE & !((1u64 << (12 + 9 * (level - 1))) - 1);
        // VA has index 0 below, so borrow a table whose index 0 leads to NEW.
        let base = if level == 3 { VA + (1 << 30) } else { THERE };
        page::map(base, OTHER.addr(), FULL);
        entry.set(page::entry(if level == 3 { base } else { far }, level).get());
        page::invlpg(VA);
        table.eq(format_args!("level {level}"), read(), NEW);
        entry.set(good);
        page::invlpg(VA);
        table.eq(format_args!("level {level} back"), read(), OLD);
    }
    table.finish();
}

/// After permissions grow, a fault on the old entry is allowed once: the
/// fault itself drops the entry.
fn permissions(t: &mut Report) {
    page::map(VA, DATA.addr(), FULL & !bit::W);
    let write = || Kind::Write.make(VA, Mode::User64, 0);
    t.eq("read-only", write(), Outcome::page(7, VA + SPOT));
    page::entry(VA, 1).set(DATA.addr() | FULL);
    let first = write();
    t.holds("made writable, first write", first, |&outcome| {
        outcome == Outcome::Done || outcome == Outcome::page(7, VA + SPOT)
    });
    t.eq("made writable, second write", write(), Outcome::Done);
    page::entry(VA, 1).set(DATA.addr() | FULL & !bit::W);
    page::invlpg(VA);
    t.eq("made read-only with invlpg", write(), Outcome::page(7, VA + SPOT));
    page::entry(VA, 1).set(0);
    page::invlpg(VA);
    t.eq("removed with invlpg", write(), Outcome::page(6, VA + SPOT));
    t.eq("#GP invlpg in ring 3", snippet!("invlpg [rsp]").u(), Outcome::fault(GP));
}

fn global(t: &mut Report) {
    let plain = cpu::read_cr4() & !cr4::PGE;
    cpu::write_cr4(plain | cr4::PGE);
    prime(bit::G);
    change(bit::G);
    page::flush();
    t.holds("global: mov to cr3 may keep it", read(), |&value| value == OLD || value == NEW);
    page::invlpg(VA);
    t.eq("global: invlpg drops it", read(), NEW);
    prime(bit::G);
    change(bit::G);
    cpu::write_cr4(plain);
    t.eq("global: clearing CR4.PGE drops it", read(), NEW);
    cpu::write_cr4(plain);
    prime(bit::G);
    change(bit::G);
    page::flush();
    t.eq("G without CR4.PGE: mov to cr3 drops it", read(), NEW);
    cpu::write_cr4(plain | cr4::PGE);
    prime(0);
    change(0);
    page::flush();
    t.eq("not global with CR4.PGE: mov to cr3 drops it", read(), NEW);
    cpu::write_cr4(plain);
}

/// A write through one mapping is seen through another at once.
fn write_intent(t: &mut Report) {
    prime(0);
    page::map(VA + 4096, DATA.addr(), FULL);
    page::poke(VA + 4096 + SPOT, 0xcccc);
    t.eq("write through an alias", read(), 0xcccc);
    page::poke(DATA.addr() + SPOT, 0xdddd);
    t.eq("write through the identity map", read(), 0xdddd);
}
