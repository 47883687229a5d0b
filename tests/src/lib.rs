//! What the tests of the whole share: the bare-machine test programs ([`guests`]), stock kernels
//! and initramfs ([`stock`]), and a VM with its console under a test's control ([`vm`]).
//!
//! The tests themselves are in `tests/`: `system_corpus` runs every program of `guests/` on every
//! engine, `vm` boots stock kernels, `save_points` saves and restores in the middle of a boot,
//! `native_oracle` compares the interpreter with the host CPU.

#![forbid(unsafe_code)]

pub mod guests;
pub mod stock;
pub mod vm;
