//! What the tests of the whole share: the bare-machine test programs ([`guests`]), guests of some
//! bytes ([`bare`]), stock kernels and initramfs ([`stock`]), a VM with its console under a test's
//! control ([`vm`]), one that moves to another machine ([`handover`]), two machines that must do the
//! same ([`lockstep`]), and how a run is chosen ([`settings`]).
//!
//! The tests themselves are in `tests/`: `system_corpus` runs every program of `guests/` on every
//! engine, `stock_kernels` boots stock kernels, `hostile_guests`, `hostile_code` and `hostile_vcpus`
//! run guests that misbehave, `time` looks at clocks and idling, `several_cpus` has guests with
//! several vCPUs, `save_points` and `save_several_cpus` save and restore in the middle of a boot,
//! `native_oracle` compares the engines with the host CPU, `lockstep` the translator with the
//! interpreter.

#![forbid(unsafe_code)]

pub mod bare;
pub mod guests;
pub mod handover;
pub mod lockstep;
pub mod rsp;
pub mod settings;
pub mod stock;
pub mod vm;
