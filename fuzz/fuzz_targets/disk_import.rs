//! `fuzz_bodies::disk_import` for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::disk_import(data));
