//! Timers and devices.

use std::arch::asm;
use std::arch::x86_64::_rdtsc;
use std::time::{Duration, Instant};

use crate::sys::{self, MAP_SHARED, PAGE, PROT_READ, call};
use crate::{Operation, Place, timed};

/// The shortest sleep: the timer is set, the CPU goes idle, the interrupt wakes the process.
pub fn sleep(_: &Place) -> Result<Operation, String> {
    sys::exact_timers();
    let time = [0_i64, 1];
    Ok(timed(move || {
        // SAFETY: a valid time; what is left of it is not asked for.
        unsafe { sys::must(call::NANOSLEEP, [time.as_ptr() as usize, 0, 0]) };
    }))
}

/// How long ticks of the kernel are looked for.
const TICKS_TIME: Duration = Duration::from_millis(800);
/// Least number of ticks that say something.
const TICKS: usize = 20;

/// What a tick of the kernel takes away from a program: nanoseconds, the median of many.
///
/// The program reads the coarse clock, which only ticks advance, and the time-stamp counter again
/// and again; when the first has changed, the time since the last look is what the tick took.
pub fn tick() -> Result<f64, String> {
    let mut ticks = Vec::new();
    let (begin, first) = (Instant::now(), time_stamp());
    let (mut coarse, mut last, mut least) = (sys::coarse_time(), time_stamp(), u64::MAX);
    while begin.elapsed() < TICKS_TIME {
        for _ in 0..1000 {
            let (now_coarse, now) = (sys::coarse_time(), time_stamp());
            let gap = now - last;
            if now_coarse != coarse {
                ticks.push(gap);
            }
            least = least.min(gap);
            (coarse, last) = (now_coarse, now);
        }
        // The look at the clock above is no tick.
        (coarse, last) = (sys::coarse_time(), time_stamp());
    }
    let per_nanosecond = (time_stamp() - first) as f64 / begin.elapsed().as_nanos() as f64;
    // With several CPUs another one may advance the clock: then nothing is taken away here.
    ticks.retain(|&gap| gap > 3 * least);
    if ticks.len() < TICKS {
        return Err("the ticks are those of another CPU".to_owned());
    }
    ticks.sort_unstable();
    Ok((ticks[ticks.len() / 2] - least) as f64 / per_nanosecond)
}


fn time_stamp() -> u64 {
    // SAFETY: Linux lets every program read the counter.
    unsafe { _rdtsc() }
}

/// Reads port 0x61, of the interval timer's third channel, which has no side effect.
pub fn port(place: &Place) -> Result<Operation, String> {
    const PORT: usize = 0x61;
    if !place.devices {
        return Err("not asked for".to_owned());
    }
    // SAFETY: allows what follows.
    if unsafe { sys::raw(call::IOPERM, [PORT, 1, 1, 0, 0, 0]) } != 0 {
        return Err("the kernel does not allow it".to_owned());
    }
    Ok(timed(|| {
        // SAFETY: the port is allowed, and reading it changes nothing.
        unsafe { asm!("in al, dx", in("dx") PORT as u16, out("al") _, options(nostack)) };
    }))
}

/// Reads a register of a device: the I/O APIC's register of the selected index.
///
/// The kernel owns that page, and lets nobody else map it without `iomem=relaxed`.
pub fn mmio(place: &Place) -> Result<Operation, String> {
    const IO_APIC: usize = 0xfec0_0000;
    if !place.devices {
        return Err("not asked for".to_owned());
    }
    let memory = sys::open(c"/dev/mem").ok_or("there is no /dev/mem")?;
    let at = sys::map(PAGE, PROT_READ, MAP_SHARED, Some((memory, IO_APIC)));
    let at = at.ok_or("the kernel does not map devices; it needs iomem=relaxed")?;
    Ok(timed(move || {
        // SAFETY: the page is mapped, and reading the register changes nothing.
        unsafe { (at as *const u32).read_volatile() };
    }))
}
