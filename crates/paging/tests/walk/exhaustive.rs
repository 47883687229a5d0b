//! Every combination of rights at every level with every access and every control bit, for every
//! mode and page size.

use std::collections::BTreeMap;

use memory::GuestRam;
use paging::{Access, Config, Mode, probe, walk};

use crate::model::{self, Outcome, Page};
use crate::{accesses, config, controls, load, ram, store};

/// Present, write, user.
const PWU: u64 = 7;
const NX: u64 = 1 << 63;
const LARGE: u64 = 1 << 7;

/// How often each error code came, and `None` for successes: shows that a test is not vacuous.
pub type Tally = BTreeMap<Option<u32>, u64>;

/// Compares one walk with the model; gives the outcome.
///
/// `entries` are the addresses whose content is compared afterwards.
pub fn compare(
    ram: &GuestRam,
    config: &Config,
    linear: u64,
    access: Access,
    entries: &[u64],
) -> Outcome {
    let before: Vec<u64> = entries.iter().map(|at| load(ram, config.mode, *at)).collect();
    let read = |at: u64| if at < ram.size() { load(ram, config.mode, at) } else { 0 };
    let expected = model::translate(read, config, linear, access);
    let what = || format!("{linear:#x} {access:?} {config:?} {entries:x?} = {before:x?}");

    compare_probe(ram, config, linear, &what);
    let unchanged: Vec<u64> = entries.iter().map(|at| load(ram, config.mode, *at)).collect();
    assert_eq!(unchanged, before, "probe changed an entry: {}", what());

    let found = walk(ram, config, linear, access);
    let dirty = found.is_ok_and(|t| t.dirty);
    let found = found.map(|t| page(&t)).map_err(|fault| fault.code);
    let writes = access.kind == paging::Kind::Write;
    let result = expected.result.map(|p| Page { dirty: p.dirty || writes, ..p });
    assert_eq!(found, result, "{}", what());
    assert_eq!(dirty, result.is_ok_and(|p| p.dirty), "{}", what());
    for (at, old) in entries.iter().zip(before.iter()) {
        let marks = expected.marks.iter().filter(|(marked, _)| marked == at);
        let new = marks.fold(*old, |entry, (_, bits)| entry | bits);
        assert_eq!(load(ram, config.mode, *at), new, "entry at {at:#x}: {}", what());
    }
    expected
}

/// The debugger's translation: what a supervisor's read with SMAP overridden gives.
fn compare_probe(ram: &GuestRam, config: &Config, linear: u64, what: &dyn Fn() -> String) {
    let read = |at: u64| if at < ram.size() { load(ram, config.mode, at) } else { 0 };
    let access = Access { kind: paging::Kind::Read, user: false, smap_override: true };
    let expected = model::translate(read, config, linear, access).result.ok();
    assert_eq!(probe(ram, config, linear).map(|t| page(&t)), expected, "probe: {}", what());
}

fn page(t: &paging::Translation) -> Page {
    Page {
        gpa: t.gpa,
        size: t.page_size,
        writable: t.writable,
        user: t.user,
        no_execute: t.no_execute,
        global: t.global,
        dirty: t.dirty,
    }
}

/// A mapping to walk: the entries on the way, first level first, without their rights.
struct Mapping {
    config: Config,
    linear: u64,
    /// Address and address bits (with the page-size bit) of each entry.
    entries: Vec<(u64, u64)>,
}

impl Mapping {
    /// Walks every combination of rights on the way with every access and every control.
    fn check_all(&self) -> Tally {
        let ram = ram(16);
        let mode = self.config.mode;
        let rights: Vec<u64> = match mode {
            Mode::Legacy => (0..8).collect(),
            _ => (0..8).flat_map(|bits| [bits, bits | NX]).collect(),
        };
        // A non-present entry has other rights that mean nothing: one such will do.
        let rights: Vec<u64> = rights.into_iter().filter(|r| r & 1 != 0 || *r == PWU - 1).collect();
        let addresses: Vec<u64> = self.entries.iter().map(|(at, _)| *at).collect();
        let mut tally = Tally::new();
        let mut combination = vec![0; self.entries.len()];
        loop {
            for config in controls(self.config) {
                for access in accesses() {
                    for ((at, entry), choice) in self.entries.iter().zip(&combination) {
                        store(&ram, mode, *at, entry | rights[*choice]);
                    }
                    let outcome = compare(&ram, &config, self.linear, access, &addresses);
                    *tally.entry(outcome.result.err()).or_default() += 1;
                }
            }
            if !advance(&mut combination, rights.len()) {
                return tally;
            }
        }
    }
}

/// The next combination; false after the last.
fn advance(combination: &mut [usize], choices: usize) -> bool {
    for digit in combination {
        *digit += 1;
        if *digit < choices {
            return true;
        }
        *digit = 0;
    }
    false
}

/// All error codes that a walk can give; without 64-bit entries or a large 32-bit page there are
/// no reserved bits.
fn expect_codes(tally: &Tally, reserved: bool) {
    let mut codes: Vec<u32> = vec![0x00, 0x02, 0x04, 0x06, 0x10, 0x14]; // not present
    codes.extend([0x01, 0x03, 0x05, 0x07, 0x11, 0x15]); // protection
    if reserved {
        codes.extend([0x09, 0x0b, 0x0d, 0x0f]);
    }
    for code in &codes {
        assert!(tally.contains_key(&Some(*code)), "code {code:#x} never came: {tally:?}");
    }
    assert!(tally.contains_key(&None), "no access succeeded");
}

#[test]
fn four_level_4k() {
    let mapping = Mapping {
        config: config(Mode::FourLevel, 0x1000),
        linear: 0xffff_8123_4567_89ab,
        entries: vec![
            (0x1000 + (0x8123_4567_89ab >> 39 & 511) * 8, 0x2000),
            (0x2000 + (0x8123_4567_89ab >> 30 & 511) * 8, 0x3000),
            (0x3000 + (0x8123_4567_89ab >> 21 & 511) * 8, 0x4000),
            (0x4000 + (0x8123_4567_89ab >> 12 & 511) * 8, 0x2abc_d876_5000),
        ],
    };
    expect_codes(&mapping.check_all(), true);
}

#[test]
fn four_level_2m() {
    for pge in [false, true] {
        let mapping = Mapping {
            config: Config { pge, ..config(Mode::FourLevel, 0x1000) },
            linear: 0x7f_c123_4567,
            entries: vec![
                (0x1000, 0x2000),
                (0x2000 + (0x7f_c123_4567 >> 30) * 8, 0x3000),
                (0x3000 + (0x7f_c123_4567 >> 21 & 511) * 8, 0x1234_5660_0000 | LARGE | 1 << 8),
            ],
        };
        expect_codes(&mapping.check_all(), true);
    }
}

#[test]
fn four_level_1g_exist_only_where_the_processor_has_them() {
    for gigabyte_pages in [false, true] {
        let mapping = Mapping {
            config: Config { gigabyte_pages, ..config(Mode::FourLevel, 0x1000) },
            linear: 0x40_1234_5678,
            entries: vec![
                (0x1000, 0x2000),
                (0x2000 + (0x40_1234_5678 >> 30) * 8, 0x1000_c000_0000 | LARGE),
            ],
        };
        let tally = mapping.check_all();
        assert_eq!(tally.contains_key(&None), gigabyte_pages);
        if gigabyte_pages {
            expect_codes(&tally, true);
        }
    }
}

#[test]
fn pae_4k() {
    for register in [0x2001, 0x2000, 0x2019] {
        let mapping = Mapping {
            config: Config { pdptr: [0, 0, 0, register], ..config(Mode::Pae, 0x1000) },
            linear: 0xc123_4567,
            entries: vec![
                (0x2000 + (0x0123_4567 >> 21) * 8, 0x3000),
                (0x3000 + (0x0123_4567 >> 12 & 511) * 8, 0x3ff1_2345_6000),
            ],
        };
        let tally = mapping.check_all();
        assert_eq!(tally.contains_key(&None), register & 1 != 0);
        if register & 1 != 0 {
            expect_codes(&tally, true);
        }
    }
}

#[test]
fn pae_2m() {
    let mapping = Mapping {
        config: Config { pdptr: [0, 0x2001, 0, 0], ..config(Mode::Pae, 0x1000) },
        linear: 0x4765_4321,
        entries: vec![(0x2000 + (0x0765_4321 >> 21) * 8, 0x21_2340_0000 | LARGE)],
    };
    expect_codes(&mapping.check_all(), true);
}

#[test]
fn legacy_4k() {
    for (pse, page_size_bit) in [(false, 0), (true, 0), (false, LARGE)] {
        let mapping = Mapping {
            config: Config { pse, ..config(Mode::Legacy, 0x1000) },
            linear: 0xfedc_ba98,
            entries: vec![
                (0x1000 + (0xfedc_ba98 >> 22) * 4, 0x3000 | page_size_bit),
                (0x3000 + (0xfedc_ba98 >> 12 & 1023) * 4, 0xabcd_e000),
            ],
        };
        expect_codes(&mapping.check_all(), false);
    }
}

#[test]
fn legacy_4m() {
    let mapping = Mapping {
        config: Config { pse: true, pge: true, ..config(Mode::Legacy, 0x1000) },
        linear: 0xfedc_ba98,
        entries: vec![(0x1000 + (0xfedc_ba98 >> 22) * 4, 0x8c05_4100 | LARGE)],
    };
    expect_codes(&mapping.check_all(), false);
}

/// Accessed and dirty bits that are set already stay, and the walk tells the dirty one.
#[test]
fn accessed_and_dirty_bits_only_ever_get_set() {
    let ram = ram(16);
    let config = Config { wp: true, ..config(Mode::FourLevel, 0x1000) };
    let addresses = [0x1000, 0x2000, 0x3000, 0x4000];
    for access in accesses() {
        for bits in 0..256 {
            for (level, at) in addresses.into_iter().enumerate() {
                let accessed_dirty = (bits >> (2 * level) & 3) << 5;
                store(&ram, Mode::FourLevel, at, (at + 0x1000) | PWU | accessed_dirty);
            }
            compare(&ram, &config, 0xfff, access, &addresses);
        }
    }
}

#[test]
fn without_paging_linear_is_physical() {
    let ram = ram(1);
    for access in accesses() {
        for linear in [0, 0x1234, 0xffff_ffff] {
            let found = walk(&ram, &Config::default(), linear, access).expect("no faults");
            assert_eq!((found.gpa, found.writable, found.no_execute), (linear, true, false));
            assert_eq!(probe(&ram, &Config::default(), linear), Some(found));
        }
    }
}

/// The 32-bit modes have no linear address bits above 31.
#[test]
fn linear_addresses_are_32_bits_wide_without_long_mode() {
    let ram = ram(16);
    store(&ram, Mode::Pae, 0x2000, 0x3000 | PWU);
    store(&ram, Mode::Pae, 0x3000, 0x5000 | PWU);
    let access = accesses().next().expect("one");
    let pae = Config { pdptr: [0x2001, 0, 0, 0], ..config(Mode::Pae, 0) };
    assert_eq!(walk(&ram, &pae, 1 << 32 | 0x42, access).expect("mapped").gpa, 0x5042);
    store(&ram, Mode::Legacy, 0x1000, 0x4000 | PWU);
    store(&ram, Mode::Legacy, 0x4000, 0x6000 | PWU);
    let legacy = config(Mode::Legacy, 0x1000);
    assert_eq!(walk(&ram, &legacy, 7 << 32 | 0x43, access).expect("mapped").gpa, 0x6043);
}
