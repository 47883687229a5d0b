//! The page walk against an independent model of Intel SDM vol. 3A chapter 4, which is written in
//! the words of its tables, one function per format of entry.

mod exhaustive;
mod model;
mod random;
mod reserved;
mod sharing;

use memory::{GuestRam, RamOffset};
use paging::{Access, Config, Kind, Mode};

/// Every kind of access by users, and by supervisors without and with the override of SMAP.
fn accesses() -> impl Iterator<Item = Access> {
    [Kind::Read, Kind::Write, Kind::Fetch].into_iter().flat_map(|kind| {
        [(true, false), (false, false), (false, true)].map(|(user, smap_override)| Access {
            kind,
            user,
            smap_override,
        })
    })
}

/// `base` with all sixteen combinations of WP, NXE, SMEP and SMAP.
fn controls(base: Config) -> impl Iterator<Item = Config> {
    (0..16).map(move |bits: u32| Config {
        wp: bits & 1 != 0,
        nxe: bits & 2 != 0,
        smep: bits & 4 != 0,
        smap: bits & 8 != 0,
        ..base
    })
}

/// A configuration of `mode` with 46 physical address bits and everything else off.
fn config(mode: Mode, root: u64) -> Config {
    Config { mode, root, physical_bits: 46, ..Config::default() }
}

fn ram(pages: u64) -> GuestRam {
    GuestRam::new(&[(0, pages << 12)]).expect("memory")
}

/// Stores an entry of the size that `mode` has.
fn store(ram: &GuestRam, mode: Mode, address: u64, entry: u64) {
    if mode == Mode::Legacy {
        ram.store(RamOffset(address), entry as u32);
    } else {
        ram.store(RamOffset(address), entry);
    }
}

/// Loads an entry of the size that `mode` has.
fn load(ram: &GuestRam, mode: Mode, address: u64) -> u64 {
    if mode == Mode::Legacy {
        u64::from(ram.load::<u32>(RamOffset(address)))
    } else {
        ram.load(RamOffset(address))
    }
}

/// SplitMix64, so that every run sees the same cases.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}
