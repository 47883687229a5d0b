//! `fuzz_bodies::saved_state` for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::saved_state(data));
