//! Every fuzz target on seeded random inputs, for a few seconds on a stable compiler.
//!
//! A failure names its seed: `FUZZ_SEED=n cargo test -p fuzz-bodies` begins with that one, and
//! `FUZZ_INPUTS=n` chooses how many inputs each target gets.

use std::env;
use std::panic;

use fuzz_bodies::TARGETS;

/// Inputs for each target.
const INPUTS: u64 = 5_000;

/// The longest input.
const LONGEST: u64 = 2_048;

/// Reproducible random bytes (splitmix64).
fn bytes(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    // As many short ones as long ones: both have corners.
    let length = next() % (LONGEST >> (next() % 6));
    // Zeros are common in real input, and rare in random bytes.
    let zeros = next() % 4;
    (0..length)
        .map(|_| {
            let n = next();
            if n >> 32 & 3 < zeros { 0 } else { n as u8 }
        })
        .collect()
}

fn number(name: &str, default: u64) -> u64 {
    match env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}

fn smoke(name: &str) {
    let (_, target) = TARGETS.iter().find(|(n, _)| *n == name).expect("a target");
    let first = number("FUZZ_SEED", 0);
    for seed in first..first + number("FUZZ_INPUTS", INPUTS) {
        let input = bytes(seed);
        if let Err(payload) = panic::catch_unwind(|| target(&input)) {
            eprintln!("target {name} failed: FUZZ_SEED={seed} FUZZ_INPUTS=1 repeats it");
            panic::resume_unwind(payload);
        }
    }
}

macro_rules! smoke_tests {
    ($($name:ident),*) => {
        $(#[test]
        fn $name() {
            smoke(stringify!($name));
        })*

        #[test]
        fn every_target_is_here() {
            let here = [$(stringify!($name)),*];
            assert_eq!(TARGETS.map(|(name, _)| name), here);
        }
    };
}

smoke_tests!(
    boot_disk,
    disk_import,
    fw_cfg,
    interpreter_step,
    interrupts,
    kernel_loader,
    packet_filter,
    page_walk,
    pci_config,
    saved_state,
    snapshots,
    user_network,
    virtqueue
);
