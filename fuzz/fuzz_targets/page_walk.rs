//! `fuzz_bodies::page_walk` for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::page_walk(data));
