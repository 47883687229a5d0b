//! Several processors: their start and restart, the order of their loads and
//! stores, locked instructions, code and translations that another changes,
//! interprocessor interrupts, sleeping and waking, their clocks and what CPUID
//! says of them (Intel SDM vol. 3A chapters 9 and 11).
//!
//! It is for as many processors as the machine has; with one it skips most.

#![no_std]
#![no_main]

mod atomics;
mod code;
mod ipi;
mod litmus;
mod restart;
mod topology;
mod translation;
mod wake;

use kit::{Report, apic, pit, smp};

kit::program!(main);

fn main(t: &mut Report) {
    pit::stop();
    pit::tsc_per_ms();
    apic::enter_xapic();
    apic::enable();
    let count = smp::count();
    t.eq("every processor starts", smp::start_all(), (1 << count) - 1);
    topology::run(t, count);
    atomics::run(t, count);
    litmus::run(t, count);
    code::run(t, count);
    translation::run(t, count);
    ipi::run(t, count);
    wake::run(t, count);
    restart::run(t, count);
}

/// Numbers that differ (an xorshift sequence; Marsaglia, J. Stat. Softw. 8).
struct Random(u64);

impl Random {
    /// The next number below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// Some instructions of nothing.
fn idle(times: u64) {
    for _ in 0..times {
        core::hint::spin_loop();
    }
}
