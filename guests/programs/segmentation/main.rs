//! Full segmentation outside long mode, for 16- and 32-bit segments: limits in
//! both directions, types, privilege, the LDT, conforming code, call gates
//! with parameters and stack switches, returns (Intel SDM vol. 3A chapters 3,
//! 5; vol. 1 6.4).

#![no_std]
#![no_main]

mod code;
mod gates;
mod limits;
mod loads;
mod local;
mod sixteen;

use kit::{Report, legacy, real, tables};

kit::program!(main);

/// Selectors that checks fill as they like.
pub const SPARE: u16 = tables::FREE_SELECTOR;

fn main(t: &mut Report) {
    legacy::init();
    real::init();
    loads::run(t);
    local::run(t);
    code::run(t);
    gates::run(t);
    sixteen::run(t);
    // A machine that checks no limits runs away here.
    limits::run(t);
}

/// A code or data descriptor: base, limit in units of `granularity`, type with
/// S, DPL and P in `access`, and the flags G (8), D/B (4).
pub const fn descriptor(base: u32, limit: u32, access: u8, flags: u8) -> u64 {
    limit as u64 & 0xffff
        | (base as u64 & 0xff_ffff) << 16
        | (access as u64) << 40
        | (limit as u64 >> 16 & 15) << 48
        | (flags as u64) << 52
        | (base as u64 >> 24) << 56
}
