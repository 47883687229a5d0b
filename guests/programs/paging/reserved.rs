//! Reserved bits raise a page fault with RSVD; ignored bits do not.

use crate::{FULL, Kind, VA, Walk};
use kit::cpu::{self, feature, msr};
use kit::page::{self, bit};
use kit::{Mode, Outcome, Report};

const RSVD: u64 = 8;

pub fn run(t: &mut Report) {
    let walk = Walk::new();
    address_bits(t, &walk);
    page_size(t, &walk);
    ignored(t, &walk);
    order(t, &walk);
    no_execute_disabled(t, &walk);
    walk.set([FULL; 4]);
}

fn read_at(walk: &Walk, level: usize, extra: u64) -> Outcome {
    walk.set([FULL; 4]);
    let entry = walk.0[level];
    let good = entry.get();
    entry.set(good | extra);
    page::invlpg(VA);
    let outcome = Kind::Read.make(VA, Mode::Kernel64, 0);
    entry.set(good);
    page::invlpg(VA);
    outcome
}

fn address_bits(t: &mut Report, walk: &Walk) {
    let width = cpu::physical_bits();
    if width >= 52 {
        return t.skip("reserved address bits", "52 physical address bits");
    }
    let fault = Outcome::page(1 | RSVD, Kind::Read.address(VA));
    let mut table = t.table("address bits beyond the physical width");
    for level in 0..4 {
        for position in width..52 {
            let got = read_at(walk, level, 1 << position);
            table.eq(format_args!("level {} bit {position}", level + 1), got, fault);
        }
    }
    table.finish();
    // The fault keeps the kind bits and the privilege.
    walk.set([FULL; 4]);
    let entry = walk.0[0];
    let good = entry.get();
    entry.set(good | 1 << 51);
    page::invlpg(VA);
    for (kind, mode, expected) in [
        (Kind::Write, Mode::Kernel64, 0xb),
        (Kind::Read, Mode::User64, 0xd),
        (Kind::Write, Mode::User64, 0xf),
        (Kind::Fetch, Mode::User64, 0x1d),
        (Kind::Fetch, Mode::Kernel64, 0x19),
    ] {
        let got = kind.make(VA, mode, 0);
        let expected = Outcome::page(expected, kind.address(VA));
        t.eq(format_args!("reserved bit, {kind:?} {mode:?}"), got, expected);
    }
    entry.set(good);
    page::invlpg(VA);
}

fn page_size(t: &mut Report, walk: &Walk) {
    let fault = Outcome::page(1 | RSVD, Kind::Read.address(VA));
    t.eq("PS in a PML4E", read_at(walk, 3, bit::PS), fault);
    if feature::PAGE_1G.offered() {
        t.eq("1 GiB page with address bit 13", read_at(walk, 2, bit::PS | 1 << 13), fault);
        t.eq("1 GiB page with address bit 29", read_at(walk, 2, bit::PS | 1 << 29), fault);
    } else {
        t.eq("PS in a PDPTE without 1 GiB pages", read_at(walk, 2, bit::PS), fault);
    }
    t.eq("2 MiB page with address bit 13", read_at(walk, 1, bit::PS | 1 << 13), fault);
    t.eq("2 MiB page with address bit 20", read_at(walk, 1, bit::PS | 1 << 20), fault);
}

fn ignored(t: &mut Report, walk: &Walk) {
    let mut table = t.table("ignored bits");
    for level in 0..4 {
        for position in [8, 9, 10, 11, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62] {
            let got = read_at(walk, level, 1 << position);
            table.eq(format_args!("level {} bit {position}", level + 1), got, Outcome::Done);
        }
    }
    let got = read_at(walk, 0, bit::PWT | bit::PCD | bit::PS);
    table.eq(format_args!("PWT, PCD and PAT of a PTE"), got, Outcome::Done);
    let got = read_at(walk, 1, bit::D);
    table.eq(format_args!("bit 6 of a PDE"), got, Outcome::Done);
    table.finish();
}

/// The walk stops at the first entry that is absent or reserved.
fn order(t: &mut Report, walk: &Walk) {
    let address = Kind::Read.address(VA);
    walk.set([0, FULL, FULL, FULL | bit::PS]);
    let got = Kind::Read.make(VA, Mode::Kernel64, 0);
    t.eq("reserved PML4E before absent PTE", got, Outcome::page(1 | RSVD, address));
    walk.set([FULL, FULL, FULL, bit::PS]);
    let got = Kind::Read.make(VA, Mode::Kernel64, 0);
    t.eq("an absent entry has no reserved bits", got, Outcome::page(0, address));
    walk.set([FULL, FULL, 0, FULL]);
    t.eq("absent PDPTE", Kind::Read.make(VA, Mode::Kernel64, 0), Outcome::page(0, address));
    walk.set([FULL, FULL, FULL, FULL & !bit::U | bit::PS]);
    let got = Kind::Read.make(VA, Mode::User64, 0);
    t.eq("reserved before forbidden", got, Outcome::page(1 | 4 | RSVD, address));
}

/// Without EFER.NXE the NX bit is reserved and fetches carry no I/D bit.
fn no_execute_disabled(t: &mut Report, walk: &Walk) {
    let efer = cpu::rdmsr(msr::EFER);
    cpu::wrmsr(msr::EFER, efer & !(1 << 11));
    page::flush();
    let mut table = t.table("NX without EFER.NXE is reserved");
    for level in 0..4 {
        let got = read_at(walk, level, bit::NX);
        let fault = Outcome::page(1 | RSVD, Kind::Read.address(VA));
        table.eq(format_args!("level {}", level + 1), got, fault);
    }
    table.finish();
    walk.set([0, FULL, FULL, FULL]);
    let got = Kind::Fetch.make(VA, Mode::User64, 0);
    // The I/D bit needs NXE or CR4.SMEP.
    t.eq("fetch without NXE and SMEP: no I/D bit", got, Outcome::page(4, VA));
    if feature::SMEP.offered() {
        cpu::write_cr4(cpu::read_cr4() | cpu::cr4::SMEP);
        let got = Kind::Fetch.make(VA, Mode::User64, 0);
        t.eq("fetch without NXE, with SMEP: I/D bit", got, Outcome::page(0x14, VA));
        cpu::write_cr4(cpu::read_cr4() & !cpu::cr4::SMEP);
    }
    cpu::wrmsr(msr::EFER, efer);
    page::flush();
}
