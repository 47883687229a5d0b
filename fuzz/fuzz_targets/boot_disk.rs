//! `fuzz_bodies::boot_disk` for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::boot_disk(data));
