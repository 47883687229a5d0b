//! `fuzz_bodies::pci_config` for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::pci_config(data));
