//! Interprocessor interrupts of every kind (SDM vol. 3A 11.6), in xAPIC and in
//! x2APIC mode, one by one and all at once.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kit::apic::{self, ICR_ALL, ICR_ASSERT, ICR_LOGICAL, ICR_LOWEST, ICR_NMI, ICR_OTHERS, reg};
use kit::cpu::{self, feature};
use kit::smp::{self, MAX};
use kit::trap::{self, Frame, vector::NMI};
use kit::{Report, pit};

use crate::Random;

/// A vector that is counted, and the one of requests.
const COUNTED: u8 = 0x70;
const REQUEST: u8 = 0x71;
/// Requests of each processor.
const REQUESTS: u64 = 200;

static ARRIVED: [AtomicU64; MAX] = [const { AtomicU64::new(0) }; MAX];
static NMIS: [AtomicU64; MAX] = [const { AtomicU64::new(0) }; MAX];
/// Whether the first processor asks something of the second, and so on.
static ASKED: [[AtomicBool; MAX]; MAX] = [const { [const { AtomicBool::new(false) }; MAX] }; MAX];
static SERVED: AtomicU64 = AtomicU64::new(0);
static UNANSWERED: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);

pub fn run(t: &mut Report, count: usize) {
    COUNT.store(count as u64, Ordering::Relaxed);
    trap::hook(COUNTED, Some(on_counted));
    trap::hook(REQUEST, Some(on_request));
    trap::hook(NMI as u8, Some(|_| count_in(&NMIS)));
    smp::together(count, |index| {
        apic::write(reg::DFR, u32::MAX);
        apic::write(reg::LDR, 1 << (24 + index));
    });
    kinds(t, count, "xAPIC");
    storm(t, count, "xAPIC");
    errors(t);
    if feature::X2APIC.offered() {
        smp::together(count, |_| {
            apic::enter_x2apic();
            apic::enable();
        });
        kinds(t, count, "x2APIC");
        storm(t, count, "x2APIC");
        smp::together(count, |_| {
            apic::enter_xapic();
            apic::enable();
        });
    } else {
        t.skip("x2APIC", "not offered");
    }
    trap::hook(COUNTED, None);
    trap::hook(REQUEST, None);
    trap::hook(NMI as u8, None);
}

fn count_in(counters: &[AtomicU64; MAX]) {
    counters[smp::index()].fetch_add(1, Ordering::AcqRel);
}

fn on_counted(_: &mut Frame) {
    count_in(&ARRIVED);
    apic::eoi();
}

/// What arrived where since the last time, once `expected` have, or after a while.
fn arrivals(counters: &[AtomicU64; MAX], expected: u64) -> [u64; MAX] {
    let all = || counters.iter().map(|count| count.load(Ordering::Acquire)).sum::<u64>();
    let (start, limit) = (cpu::tsc(), pit::tsc_per_ms() * 2000);
    while all() < expected && cpu::tsc() - start < limit {
        cpu::interrupt_window();
    }
    // And what comes too much.
    for _ in 0..2000 {
        cpu::interrupt_window();
    }
    core::array::from_fn(|index| counters[index].swap(0, Ordering::AcqRel))
}

/// One for each processor of a mask.
fn each(mask: u64) -> [u64; MAX] {
    core::array::from_fn(|index| mask >> index & 1)
}

/// The destination that means all processors.
fn everybody() -> u32 {
    if apic::is_x2apic() { u32::MAX } else { 0xff }
}

fn kinds(t: &mut Report, count: usize, mode: &str) {
    STOP.store(false, Ordering::Relaxed);
    (1..count).for_each(|index| smp::start(index, take_until_stop));
    let all = (1_u64 << count) - 1;
    let fixed = ICR_ASSERT | u32::from(COUNTED);
    for index in 0..count {
        apic::ipi(index as u32, fixed);
        let got = arrivals(&ARRIVED, 1);
        t.eq(format_args!("{mode}: fixed, to processor {index}"), got, each(1 << index));
    }
    let shorthands =
        [("self", apic::ICR_SELF, 1), ("all", ICR_ALL, all), ("others", ICR_OTHERS, all & !1)];
    for (name, shorthand, mask) in shorthands {
        apic::ipi(0, fixed | shorthand);
        let got = arrivals(&ARRIVED, u64::from(mask.count_ones()));
        t.eq(format_args!("{mode}: shorthand {name}"), got, each(mask));
    }
    apic::ipi(everybody(), fixed);
    let got = arrivals(&ARRIVED, count as u64);
    t.eq(format_args!("{mode}: physical destination of all"), got, each(all));
    for mask in 1..=all {
        // In x2APIC mode these are all in cluster 0.
        apic::ipi(mask as u32, fixed | ICR_LOGICAL);
        let got = arrivals(&ARRIVED, u64::from(mask.count_ones()));
        t.eq(format_args!("{mode}: logical destination {mask:#x}"), got, each(mask));
    }
    apic::ipi(all as u32, fixed | ICR_LOGICAL | ICR_LOWEST);
    let got: u64 = arrivals(&ARRIVED, 1).iter().sum();
    t.eq(format_args!("{mode}: lowest priority goes to one"), got, 1);
    for index in 1..count {
        apic::ipi(index as u32, ICR_NMI | ICR_ASSERT);
        let got = arrivals(&NMIS, 1);
        t.eq(format_args!("{mode}: NMI to processor {index}"), got, each(1 << index));
    }
    if count > 1 {
        apic::ipi(0, ICR_NMI | ICR_ASSERT | ICR_OTHERS);
        let got = arrivals(&NMIS, count as u64 - 1);
        t.eq(format_args!("{mode}: NMI to the others"), got, each(all & !1));
    }
    apic::ipi(count as u32 + 3, fixed);
    apic::ipi(count as u32 + 3, ICR_NMI | ICR_ASSERT);
    t.eq(format_args!("{mode}: to nobody"), arrivals(&ARRIVED, 0), each(0));
    STOP.store(true, Ordering::Release);
    (1..count).for_each(smp::finish);
}

/// Takes interrupts until the end.
fn take_until_stop(_: usize) {
    cpu::sti();
    while !STOP.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
    cpu::cli();
}

fn on_request(_: &mut Frame) {
    apic::eoi();
    let me = smp::index();
    for asked in &ASKED {
        if asked[me].swap(false, Ordering::AcqRel) {
            SERVED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// All ask all others at random, and wait for the answer: none may be lost.
fn storm(t: &mut Report, count: usize, mode: &str) {
    if count < 2 {
        return t.skip(format_args!("{mode}: storm"), "needs 2 processors");
    }
    SERVED.store(0, Ordering::Relaxed);
    UNANSWERED.store(0, Ordering::Relaxed);
    STOP.store(false, Ordering::Relaxed);
    FINISHED.store(0, Ordering::Relaxed);
    smp::together(count, ask);
    let expected = (REQUESTS * count as u64, 0);
    let got = (SERVED.load(Ordering::Relaxed), UNANSWERED.load(Ordering::Relaxed));
    t.eq(format_args!("{mode}: every request of a storm is served"), got, expected);
}

static FINISHED: AtomicU64 = AtomicU64::new(0);

fn ask(me: usize) {
    let count = COUNT.load(Ordering::Relaxed);
    let mut random = Random(me as u64 * 2 + 77);
    cpu::sti();
    for _ in 0..REQUESTS {
        let other = (me + 1 + random.below(count - 1) as usize) % count as usize;
        ASKED[me][other].store(true, Ordering::Release);
        apic::ipi(other as u32, ICR_ASSERT | u32::from(REQUEST));
        if !smp::wait(10_000, || !ASKED[me][other].load(Ordering::Acquire)) {
            UNANSWERED.fetch_add(1, Ordering::Relaxed);
            break;
        }
    }
    // The others may still ask.
    FINISHED.fetch_add(1, Ordering::AcqRel);
    smp::wait(20_000, || FINISHED.load(Ordering::Acquire) == count);
    cpu::cli();
}

/// A vector below 16 is refused, and the sender's ESR says so.
fn errors(t: &mut Report) {
    apic::write(reg::ESR, 0);
    apic::write(reg::ESR, 0);
    apic::ipi(0, ICR_ASSERT | 0x0f);
    apic::write(reg::ESR, 0);
    // Send illegal vector; who sends to itself also receives it (bit 6).
    t.eq("ESR tells of an illegal vector", apic::read(reg::ESR) & 0x20, 0x20);
    apic::write(reg::ESR, 0);
}
