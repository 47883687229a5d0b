//! `fuzz_bodies::user_network` for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::user_network(data));
