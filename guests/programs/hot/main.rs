//! Code that was executed before, on addresses that it has not seen: what an engine that
//! translates code and inlines its TLB must not let through.
//!
//! Each check first runs its code often on memory that it may use, so that it is translated, linked
//! and its pages known, and only then does what it is about.

#![no_std]
#![no_main]

mod debug;
mod fetch;
mod pointers;

use kit::page::{self, bit};
use kit::{Code, Frame4K, Global, Mode, Report, Run, Trap, ZERO_FRAME};

kit::program!(main);

/// How often code runs before a check.
const WARM: u32 = 4;
/// Everything allowed.
const FULL: u64 = bit::P | bit::W | bit::U;
/// The page that warming up uses, at [`PAGE`].
static DATA: Global<Frame4K> = Global::new(ZERO_FRAME);
/// Linear address of [`DATA`]; the pages around it are absent.
const PAGE: u64 = page::WINDOW + (3 << 30) + (77 << 12);

fn main(t: &mut Report) {
    page::map(PAGE, DATA.addr(), FULL);
    pointers::run(t);
    fetch::run(t);
    debug::run(t);
}

/// Runs `code` in user mode on the mapped page, several times, and then as `run` says.
fn heated(code: Code, run: impl Fn(Run) -> Run) -> Trap {
    for _ in 0..WARM {
        code.at(Mode::User64).rdi(PAGE + 64).rsi(8).rcx(8).run();
    }
    run(code.at(Mode::User64).rsi(8).rcx(8)).run()
}
