//! `fuzz_bodies::fw_cfg` for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::fw_cfg(data));
