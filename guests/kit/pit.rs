//! The 8254 interval timer: channel 0 for interrupts, channel 2 as a
//! stopwatch for calibration (Intel 8254 data sheet).

use crate::port::{in8, out8};
use crate::{Global, cpu};

/// Input frequency in Hz.
pub const HZ: u64 = 1_193_182;

/// Programs channel 0: `mode` 0 to 5, 16-bit `count`.
pub fn start(mode: u8, count: u16) {
    out8(0x43, 0x30 | mode << 1);
    out8(0x40, count as u8);
    out8(0x40, (count >> 8) as u8);
}

/// Latches and reads channel 0.
pub fn count() -> u16 {
    out8(0x43, 0x00);
    let low = in8(0x40);
    u16::from(low) | u16::from(in8(0x40)) << 8
}

/// Status of channel 0 by read-back: output in bit 7, null count in bit 6.
pub fn status() -> u8 {
    out8(0x43, 0xe2);
    in8(0x40)
}

/// Stops channel 0 from interrupting: mode 0 with a count never written.
pub fn stop() {
    out8(0x43, 0x30);
}

/// Waits by channel 2 in mode 0, gated through port 0x61.
pub fn wait(ticks: u16) {
    let gate = in8(0x61) & !0b11;
    out8(0x61, gate);
    out8(0x43, 0xb0);
    out8(0x42, ticks as u8);
    out8(0x42, (ticks >> 8) as u8);
    out8(0x61, gate | 1);
    while in8(0x61) & 0x20 == 0 {
        core::hint::spin_loop();
    }
    out8(0x61, gate);
}

static TSC_PER_MS: Global<u64> = Global::new(0);

/// Time-stamp counter ticks in a millisecond, measured once against the PIT.
///
/// The least of many short measurements: a host that takes the processor away
/// only makes them longer.
pub fn tsc_per_ms() -> u64 {
    if TSC_PER_MS.get() == 0 {
        let measure = |_| {
            let start = cpu::tsc();
            wait((HZ / 1000) as u16);
            cpu::tsc() - start
        };
        TSC_PER_MS.set((0..16).map(measure).min().unwrap_or(1).max(1));
    }
    TSC_PER_MS.get()
}

/// Spins for this many microseconds of the time-stamp counter.
pub fn spin_us(us: u64) {
    let ticks = tsc_per_ms() * us / 1000;
    let start = cpu::tsc();
    while cpu::tsc() - start < ticks {
        core::hint::spin_loop();
    }
}
