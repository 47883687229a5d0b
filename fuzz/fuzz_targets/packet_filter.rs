//! `fuzz_bodies::packet_filter` for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::packet_filter(data));
