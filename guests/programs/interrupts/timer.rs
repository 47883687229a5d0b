//! The timer of the local APIC: one-shot, periodic, TSC-deadline, divider
//! (SDM vol. 3A 11.5.4).

use crate::{clear_log, let_in, log_eoi, wait_until};
use kit::apic::{self, reg};
use kit::cpu::{self, feature, msr};
use kit::{Global, Report, pit, trap};

const VECTOR: u8 = 0x48;
/// Generous limits: hosts are shared.
const LIMIT_MS: u64 = 400;
/// How far ahead a timer is set that is then stopped.
const AHEAD_MS: u64 = 60;

static FIRED_AT: Global<u64> = Global::new(0);

pub fn run(t: &mut Report, mode: &str) {
    trap::hook(VECTOR, Some(log_eoi));
    let per_ms = calibrate(t, mode);
    one_shot(t, mode, per_ms);
    masked(t, mode, per_ms);
    periodic(t, mode, per_ms);
    divider(t, mode);
    if feature::TSC_DEADLINE.offered() {
        deadline(t, mode);
    } else {
        t.skip(format_args!("{mode}: TSC-deadline timer"), "not offered");
        let bits = apic::DEADLINE | apic::MASKED | u32::from(VECTOR);
        apic::write(reg::LVT_TIMER, bits);
    }
    stop();
    trap::hook(VECTOR, None);
}

fn stop() {
    apic::write(reg::LVT_TIMER, apic::MASKED | u32::from(VECTOR));
    apic::write(reg::TIMER_INITIAL, 0);
}

fn fired() -> usize {
    crate::LOG_LEN.get()
}

/// Counts in a millisecond at divide-by-one.
fn calibrate(t: &mut Report, mode: &str) -> u64 {
    stop();
    apic::write(reg::TIMER_DIVIDE, 0xb);
    apic::write(reg::TIMER_INITIAL, u32::MAX);
    let start = apic::read(reg::TIMER_CURRENT);
    pit::wait((pit::HZ * 4 / 1000) as u16);
    let passed = start - apic::read(reg::TIMER_CURRENT);
    stop();
    let per_ms = u64::from(passed) / 4;
    t.holds(format_args!("{mode}: timer counts"), per_ms, |&n| n > 1000);
    t.eq(format_args!("{mode}: initial count 0 stops"), apic::read(reg::TIMER_CURRENT), 0);
    per_ms.max(1000)
}

fn one_shot(t: &mut Report, mode: &str, per_ms: u64) {
    clear_log();
    apic::write(reg::LVT_TIMER, VECTOR.into());
    let count = (per_ms * 2) as u32;
    apic::write(reg::TIMER_INITIAL, count);
    let first = apic::read(reg::TIMER_CURRENT);
    let second = apic::read(reg::TIMER_CURRENT);
    t.that(format_args!("{mode}: counts down"), first <= count && second <= first);
    t.eq(format_args!("{mode}: initial count reads back"), apic::read(reg::TIMER_INITIAL), count);
    t.that(format_args!("{mode}: one-shot fires"), wait_until(LIMIT_MS, || fired() > 0));
    let_in(5);
    t.eq(format_args!("{mode}: one-shot fires once"), fired(), 1);
    t.eq(format_args!("{mode}: one-shot ends at 0"), apic::read(reg::TIMER_CURRENT), 0);
    clear_log();
    apic::write(reg::TIMER_INITIAL, (per_ms * AHEAD_MS) as u32);
    apic::write(reg::TIMER_INITIAL, 0);
    let_in(AHEAD_MS + 4);
    t.eq(format_args!("{mode}: stopped before its time"), fired(), 0);
}

fn masked(t: &mut Report, mode: &str, per_ms: u64) {
    clear_log();
    apic::write(reg::LVT_TIMER, apic::MASKED | u32::from(VECTOR));
    apic::write(reg::TIMER_INITIAL, per_ms as u32);
    wait_until(LIMIT_MS, || apic::read(reg::TIMER_CURRENT) == 0);
    let_in(4);
    t.eq(format_args!("{mode}: masked, no interrupt"), fired(), 0);
    apic::write(reg::LVT_TIMER, VECTOR.into());
    let_in(2);
    t.eq(format_args!("{mode}: expired while masked, lost"), fired(), 0);
}

fn periodic(t: &mut Report, mode: &str, per_ms: u64) {
    clear_log();
    apic::write(reg::LVT_TIMER, apic::PERIODIC | u32::from(VECTOR));
    apic::write(reg::TIMER_INITIAL, per_ms as u32);
    t.that(format_args!("{mode}: periodic fires"), wait_until(LIMIT_MS, || fired() >= 5));
    apic::write(reg::TIMER_INITIAL, 0);
    cpu::interrupt_window();
    let count = fired();
    let_in(4);
    t.eq(format_args!("{mode}: periodic stopped by 0"), fired(), count);
}

/// The eight divider codes, by what they divide by.
const DIVIDERS: [(u32, u32); 8] =
    [(0xb, 1), (0x0, 2), (0x1, 4), (0x2, 8), (0x3, 16), (0x8, 32), (0x9, 64), (0xa, 128)];

fn divider(t: &mut Report, mode: &str) {
    let measure = |code: u32| {
        stop();
        apic::write(reg::TIMER_DIVIDE, code);
        let tsc = cpu::tsc();
        apic::write(reg::TIMER_INITIAL, u32::MAX);
        pit::spin_us(300);
        let count = u32::MAX - apic::read(reg::TIMER_CURRENT);
        let ticks = cpu::tsc() - tsc;
        stop();
        (ticks, u64::from(count))
    };
    let counted = |code: u32| {
        // The quickest of some, which the host disturbed the least; counts in a fixed number of
        // ticks, so that what delay is left does not matter.
        let (ticks, count) = (0..4).map(|_| measure(code)).min().unwrap_or((1, 0));
        count * (pit::tsc_per_ms() / 2) / ticks.max(1)
    };
    let base = counted(0xb);
    for (code, divisor) in DIVIDERS {
        let scaled = counted(code) * u64::from(divisor);
        let name = format_args!("{mode}: divide by {divisor}");
        t.holds(name, (base, scaled), |&(base, scaled)| scaled > base / 2 && scaled < base * 2);
    }
    apic::write(reg::TIMER_DIVIDE, 0xb);
    t.eq(format_args!("{mode}: divider reads back"), apic::read(reg::TIMER_DIVIDE), 0xb);
}

fn deadline(t: &mut Report, mode: &str) {
    apic::write(reg::LVT_TIMER, apic::PERIODIC | apic::MASKED | u32::from(VECTOR));
    cpu::wrmsr(msr::TSC_DEADLINE, cpu::tsc() + 1_000_000_000);
    let armed = cpu::rdmsr(msr::TSC_DEADLINE);
    t.eq(format_args!("{mode}: deadline ignored in another mode"), armed, 0);

    trap::hook(
        VECTOR,
        Some(|frame| {
            FIRED_AT.set(cpu::tsc());
            log_eoi(frame);
        }),
    );
    clear_log();
    apic::write(reg::LVT_TIMER, apic::DEADLINE | u32::from(VECTOR));
    apic::write(reg::TIMER_INITIAL, 1000);
    t.eq(format_args!("{mode}: no count in deadline mode"), apic::read(reg::TIMER_CURRENT), 0);
    let far = cpu::tsc() + pit::tsc_per_ms() * 10_000;
    cpu::wrmsr(msr::TSC_DEADLINE, far);
    t.eq(format_args!("{mode}: deadline reads back"), cpu::rdmsr(msr::TSC_DEADLINE), far);
    let target = cpu::tsc() + pit::tsc_per_ms() * 2;
    cpu::wrmsr(msr::TSC_DEADLINE, target);
    t.that(format_args!("{mode}: deadline fires"), wait_until(LIMIT_MS, || fired() > 0));
    t.that(format_args!("{mode}: not before its time"), FIRED_AT.get() >= target);
    t.eq(format_args!("{mode}: deadline disarmed"), cpu::rdmsr(msr::TSC_DEADLINE), 0);
    let_in(2);
    t.eq(format_args!("{mode}: deadline fires once"), fired(), 1);

    clear_log();
    cpu::wrmsr(msr::TSC_DEADLINE, 1);
    t.that(format_args!("{mode}: past deadline fires"), wait_until(LIMIT_MS, || fired() > 0));
    clear_log();
    cpu::wrmsr(msr::TSC_DEADLINE, cpu::tsc() + pit::tsc_per_ms() * AHEAD_MS);
    cpu::wrmsr(msr::TSC_DEADLINE, 0);
    let_in(AHEAD_MS + 4);
    t.eq(format_args!("{mode}: deadline 0 disarms"), fired(), 0);
    cpu::wrmsr(msr::TSC_DEADLINE, cpu::tsc() + pit::tsc_per_ms() * AHEAD_MS);
    apic::write(reg::LVT_TIMER, apic::MASKED | u32::from(VECTOR));
    apic::write(reg::LVT_TIMER, apic::DEADLINE | u32::from(VECTOR));
    let_in(AHEAD_MS + 4);
    t.eq(format_args!("{mode}: leaving deadline mode disarms"), fired(), 0);
    trap::hook(VECTOR, Some(log_eoi));
}
