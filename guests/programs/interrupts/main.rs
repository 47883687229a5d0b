//! Interrupts and their hardware: interrupt windows and shadows, HLT, the
//! local APIC with its priorities and timer, NMI, the 8259 pair, the 8254, the
//! I/O APIC (Intel SDM vol. 3A chapters 6 and 11; data sheets of the others).

#![no_std]
#![no_main]

mod extended;
mod ioapic;
mod local;
mod nmi;
mod pic;
mod shadow;
mod timer;

use kit::trap::{self, Frame};
use kit::{Global, Report, apic, cpu, pit};

kit::program!(main);

fn main(t: &mut Report) {
    pit::stop();
    pit::tsc_per_ms();
    apic::enter_xapic();
    apic::enable();
    shadow::run(t);
    local::run(t, "xAPIC");
    timer::run(t, "xAPIC");
    nmi::run(t);
    pic::run(t);
    ioapic::run(t);
    extended::run(t);
}

/// What handlers note down, in order; handlers run with interrupts off or
/// nest strictly, so plain globals do.
static LOG: Global<[u16; 64]> = Global::new([0; 64]);
static LOG_LEN: Global<usize> = Global::new(0);

/// Added to the vector when a handler ends.
const END: u16 = 0x100;

/// Notes an entry; further ones than fit are only counted.
fn log(entry: u16) {
    let len = LOG_LEN.get();
    if len < 64 {
        let mut entries = LOG.get();
        entries[len] = entry;
        LOG.set(entries);
    }
    LOG_LEN.set(len + 1);
}

/// Empties the log.
fn clear_log() {
    LOG_LEN.set(0);
    LOG.set([0; 64]);
}

/// Whether the log holds exactly these entries.
fn logged() -> Log {
    Log(LOG.get(), LOG_LEN.get())
}

/// A copy of the log that compares with a slice.
#[derive(Clone, Copy, PartialEq)]
struct Log([u16; 64], usize);

impl Log {
    fn of(entries: &[u16]) -> Self {
        let mut log = [0; 64];
        log[..entries.len()].copy_from_slice(entries);
        Self(log, entries.len())
    }
}

impl core::fmt::Debug for Log {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(&self.0[..self.1.min(64)]).finish()
    }
}

/// A hook that logs the vector and signals EOI to the local APIC.
fn log_eoi(frame: &mut Frame) {
    log(frame.vector as u16);
    apic::eoi();
}

/// Hooks vectors with one function.
fn hook_all(vectors: &[u8], function: trap::Hook) {
    for &vector in vectors {
        trap::hook(vector, Some(function));
    }
}

/// Removes the hooks again.
fn unhook_all(vectors: &[u8]) {
    for &vector in vectors {
        trap::hook(vector, None);
    }
}

/// Lets interrupts in until `done` or for at most `ms` milliseconds; whether
/// it was done in time.
fn wait_until(ms: u64, done: impl Fn() -> bool) -> bool {
    let limit = pit::tsc_per_ms() * ms;
    let start = cpu::tsc();
    while !done() {
        if cpu::tsc() - start > limit {
            return false;
        }
        cpu::interrupt_window();
    }
    true
}

/// Lets interrupts in for `ms` milliseconds.
fn let_in(ms: u64) {
    wait_until(ms, || false);
}
