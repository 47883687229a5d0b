//! `fuzz_bodies::interrupts` for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::interrupts(data));
