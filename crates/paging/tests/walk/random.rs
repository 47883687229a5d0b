//! Random tables in a small memory, full of loops and of entries that are tables and pages at
//! once: the walk ends, and agrees with the model on the whole memory.

use paging::{Access, Config, Kind, Mode};

use crate::exhaustive::{Tally, compare};
use crate::{Rng, ram, store};

const PAGES: u64 = 16;

fn entry(rng: &mut Rng, mode: Mode) -> u64 {
    if rng.chance(3) {
        return rng.next();
    }
    let mut entry = rng.below(PAGES) << 12 | rng.next() & 0x7f;
    entry |= u64::from(rng.chance(85));
    entry |= if rng.chance(70) { 6 } else { 0 };
    entry |= u64::from(rng.chance(10)) << 7 | u64::from(rng.chance(20)) << 8;
    if entry & 1 << 7 != 0 && rng.chance(80) {
        entry &= !0x1f_e000; // aligned, as large pages are
    }
    if rng.chance(5) {
        entry |= 1 << (12 + rng.below(40)); // outside memory, or reserved
    }
    if mode != Mode::Legacy && rng.chance(10) {
        entry |= 1 << 63;
    }
    entry
}

fn any_config(rng: &mut Rng, mode: Mode) -> Config {
    let bits = rng.next();
    let flag = |index: u32| bits >> index & 1 != 0;
    let root = if rng.chance(90) { rng.below(PAGES) << 12 } else { rng.next() };
    let mut register = || rng.below(PAGES) << 12 | u64::from(rng.chance(90));
    Config {
        mode,
        root,
        pdptr: [register(), register(), register(), register()],
        wp: flag(0),
        nxe: flag(1) || flag(2),
        pse: flag(3),
        pge: flag(4),
        smep: flag(5),
        smap: flag(6),
        gigabyte_pages: flag(7),
        physical_bits: 36 + (bits >> 8) as u32 % 17,
    }
}

fn any_access(rng: &mut Rng) -> Access {
    let kind = [Kind::Read, Kind::Write, Kind::Fetch][rng.below(3) as usize];
    Access { kind, user: rng.chance(50), smap_override: rng.chance(50) }
}

fn check(mode: Mode, seed: u64) {
    let mut rng = Rng(seed);
    let ram = ram(PAGES);
    let size = if mode == Mode::Legacy { 4 } else { 8 };
    let everything: Vec<u64> = (0..PAGES << 12).step_by(size).collect();
    let mut tally = Tally::new();
    for _ in 0..60 {
        everything.iter().for_each(|at| store(&ram, mode, *at, entry(&mut rng, mode)));
        let config = any_config(&mut rng, mode);
        for _ in 0..60 {
            // Few different indexes, so that entries are met again with their bits set.
            let linear = rng.next() & if rng.chance(50) { 0x8040_2010_0fff } else { u64::MAX };
            let outcome = compare(&ram, &config, linear, any_access(&mut rng), &everything);
            *tally.entry(outcome.result.err()).or_default() += 1;
        }
    }
    let successes = tally.get(&None).copied().unwrap_or(0);
    assert!(successes > 300, "only {successes} walks succeeded: {tally:?}");
    assert!(tally.len() > 8, "few kinds of faults: {tally:?}");
}

#[test]
fn four_level_tables() {
    check(Mode::FourLevel, 1);
}

#[test]
fn pae_tables() {
    check(Mode::Pae, 2);
}

#[test]
fn legacy_tables() {
    check(Mode::Legacy, 3);
}

/// The whole table of tables is one page that points to itself.
#[test]
fn a_table_that_is_its_own_page() {
    let ram = ram(1);
    let access = Access { kind: Kind::Write, user: true, smap_override: false };
    for (mode, pdpt) in [(Mode::FourLevel, 0), (Mode::Pae, 1), (Mode::Legacy, 0)] {
        store(&ram, mode, 0, 7);
        let config = Config { mode, pdptr: [pdpt; 4], physical_bits: 40, ..Config::default() };
        let outcome = compare(&ram, &config, 0x123, access, &[0]);
        assert_eq!(outcome.result.expect("mapped").gpa, 0x123);
        assert_eq!(crate::load(&ram, mode, 0), 0x67);
    }
}
