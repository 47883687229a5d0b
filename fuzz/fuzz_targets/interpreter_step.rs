//! `fuzz_bodies::interpreter_step` for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::interpreter_step(data));
