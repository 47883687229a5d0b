//! 4-level paging: permissions, error codes, accessed and dirty bits, reserved
//! bits, large pages, invalidation, accesses that straddle pages (Intel SDM
//! vol. 3A chapter 4; AMD APM vol. 2 chapter 5).

#![no_std]
#![no_main]

mod implicit;
mod invalidation;
mod large;
mod pcid;
mod permissions;
mod reserved;
mod straddle;

use kit::page::{self, Entry, bit};
use kit::{Frame4K, Global, Mode, Outcome, Report, ZERO_FRAME, snippet, tables};

kit::program!(main);

/// The page that is read, written and fetched from; it starts with an INT of
/// the snippet end vector, so that a successful fetch ends as `Done`.
static DATA: Global<Frame4K> = Global::new(ZERO_FRAME);
/// A page with other contents.
static OTHER: Global<Frame4K> = Global::new(ZERO_FRAME);

/// An address whose four indices all differ.
const VA: u64 = page::WINDOW + (3 << 30) + (5 << 21) + (7 << 12);
/// Where in the page data accesses go.
const SPOT: u64 = 64;
/// All permissions at any level.
const FULL: u64 = bit::P | bit::W | bit::U;

fn main(t: &mut Report) {
    DATA.write(0, &[0xcd, tables::END_VECTOR]);
    OTHER.write(0, &[0xcd, tables::END_VECTOR]);
    permissions::run(t);
    reserved::run(t);
    large::run(t);
    straddle::run(t);
    implicit::run(t);
    invalidation::run(t);
    pcid::run(t);
}

/// Kinds of access to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Fetch,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Fetch];

    /// The address that this kind of access to the page at `va` uses.
    fn address(self, va: u64) -> u64 {
        if self == Self::Fetch { va } else { va + SPOT }
    }

    /// Makes the access from `mode` with these flags.
    fn make(self, va: u64, mode: Mode, flags: u64) -> Outcome {
        let address = self.address(va);
        let code = match self {
            Self::Read => snippet!("mov al, [rbx]"),
            Self::Write => snippet!("mov [rbx], al"),
            Self::Fetch => snippet!("nop"),
        };
        let mut run = code.at(mode).rbx(address).flags(flags);
        if self == Self::Fetch {
            run.rip = address;
            run.mark = address;
        }
        run.outcome()
    }
}

/// The entries that translate VA, by level: index 0 is the PTE.
struct Walk([Entry; 4]);

impl Walk {
    fn new() -> Self {
        page::map(VA, DATA.addr(), FULL);
        Self([1, 2, 3, 4].map(|level| page::entry(VA, level)))
    }

    /// Sets the low flags and NX of every level, keeping the addresses.
    fn set(&self, flags: [u64; 4]) {
        for (entry, flags) in self.0.iter().zip(flags) {
            entry.set(entry.get() & page::ADDRESS | flags);
        }
        page::invlpg(VA);
    }

    /// Accessed bits by level (bit 0 = PTE), and the PTE's dirty bit as bit 4.
    fn accessed(&self) -> u64 {
        let mut bits = 0;
        for (i, entry) in self.0.iter().enumerate() {
            bits |= u64::from(entry.get() & bit::A != 0) << i;
        }
        bits | u64::from(self.0[0].get() & bit::D != 0) << 4
    }
}
