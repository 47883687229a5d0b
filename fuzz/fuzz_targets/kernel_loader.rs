//! `fuzz_bodies::kernel_loader` for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::kernel_loader(data));
