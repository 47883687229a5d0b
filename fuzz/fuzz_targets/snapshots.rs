//! `fuzz_bodies::snapshots` for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::snapshots(data));
