//! Every bit of every format of entry, set and clear, for several physical address widths.

use paging::{Access, Config, Kind, Mode};

use crate::exhaustive::{Tally, compare};
use crate::{config, ram, store};

const PWU: u64 = 7;
const LARGE: u64 = 1 << 7;
const READ: Access = Access { kind: Kind::Read, user: false, smap_override: false };

/// Flips each bit of each of `entries` (address and value, in a chain for linear address 0) alone,
/// for all widths and both values of NXE and of 1 GiB pages.
fn flip_every_bit(base: Config, entries: &[(u64, u64)]) -> Tally {
    let ram = ram(16);
    let width = if base.mode == Mode::Legacy { 32 } else { 64 };
    let addresses: Vec<u64> = entries.iter().map(|(at, _)| *at).collect();
    let mut tally = Tally::new();
    for physical_bits in [36, 39, 40, 46, 51, 52] {
        for (nxe, gigabyte_pages) in [(false, false), (false, true), (true, false), (true, true)] {
            let config = Config { physical_bits, nxe, gigabyte_pages, ..base };
            for level in 0..entries.len() {
                for bit in 0..width {
                    entries.iter().for_each(|(at, entry)| store(&ram, base.mode, *at, *entry));
                    let (at, entry) = entries[level];
                    store(&ram, base.mode, at, entry ^ 1 << bit);
                    let outcome = compare(&ram, &config, 0, READ, &addresses);
                    *tally.entry(outcome.result.err()).or_default() += 1;
                }
            }
        }
    }
    tally
}

fn expect_reserved(tally: &Tally) {
    for outcome in [None, Some(0), Some(9)] {
        assert!(tally.contains_key(&outcome), "{outcome:?} never came: {tally:?}");
    }
}

#[test]
fn four_level() {
    let tables = [(0x1000, 0x2000 | PWU), (0x2000, 0x3000 | PWU), (0x3000, 0x4000 | PWU)];
    let chain: Vec<_> = tables.into_iter().chain([(0x4000, 0x5000 | PWU)]).collect();
    let base = config(Mode::FourLevel, 0x1000);
    expect_reserved(&flip_every_bit(base, &chain));
    let large = [tables[0], tables[1], (0x3000, 0x4000_0000 | PWU | LARGE)];
    expect_reserved(&flip_every_bit(base, &large));
    let huge = [tables[0], (0x2000, 0x4000_0000 | PWU | LARGE)];
    expect_reserved(&flip_every_bit(base, &huge));
}

#[test]
fn pae() {
    let base = Config { pdptr: [0x2001, 0, 0, 0], ..config(Mode::Pae, 0) };
    expect_reserved(&flip_every_bit(base, &[(0x2000, 0x3000 | PWU), (0x3000, 0x5000 | PWU)]));
    expect_reserved(&flip_every_bit(base, &[(0x2000, 0x4000_0000 | PWU | LARGE)]));
}

#[test]
fn legacy() {
    for pse in [false, true] {
        let base = Config { pse, ..config(Mode::Legacy, 0x1000) };
        let tally = flip_every_bit(base, &[(0x1000, 0x3000 | PWU), (0x3000, 0x5000 | PWU)]);
        assert!(tally.contains_key(&None) && tally.contains_key(&Some(0)));
    }
    let base = Config { pse: true, ..config(Mode::Legacy, 0x1000) };
    expect_reserved(&flip_every_bit(base, &[(0x1000, 0x40_0000 | PWU | LARGE)]));
}

/// A reserved bit in an entry that is not present, or below one, is not looked at.
#[test]
fn reserved_bits_need_a_present_entry() {
    let ram = ram(16);
    let config = config(Mode::FourLevel, 0x1000);
    store(&ram, Mode::FourLevel, 0x1000, 0x2000 | PWU);
    store(&ram, Mode::FourLevel, 0x2000, 0xffff_ffff_ffff_fffe);
    let outcome = compare(&ram, &config, 0, READ, &[0x1000, 0x2000]);
    assert_eq!(outcome.result, Err(0));
}
