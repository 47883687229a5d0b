//! 11.5.4: the timer in its three modes, divide configuration, current count.

use std::num::NonZeroU32;

use lapic::{LocalApic, LocalApicConfig, Tsc};

use crate::{MASKED, TSC_DEADLINE, enabled, enabled_x2apic, reg};

const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 2 << 17;
const VECTOR: u32 = 0xec;
/// Divide configuration for division by 1.
const BY_1: u32 = 0xb;

/// An enabled APIC with these clocks and the timer entry set.
fn with_timer(tsc_khz: u32, bus_khz: u32, lvt: u32) -> LocalApic {
    let khz = |value| NonZeroU32::new(value).expect("a frequency");
    let config = LocalApicConfig {
        tsc_khz: khz(tsc_khz),
        bus_khz: khz(bus_khz),
        ..LocalApicConfig::default()
    };
    let mut apic = LocalApic::new(config);
    apic.mmio_write(reg::SVR, 0x1ff, 0);
    apic.mmio_write(reg::LVT_TIMER, lvt, 0);
    apic.mmio_write(reg::DIVIDE, BY_1, 0);
    apic
}

fn fires(apic: &mut LocalApic, now: Tsc) -> bool {
    apic.tick(now);
    let fired = apic.acknowledge() == Some(VECTOR as u8);
    apic.eoi();
    fired
}

#[test]
fn one_shot_counts_down_once() {
    let mut apic = with_timer(1_000_000, 1_000_000, VECTOR);
    assert_eq!(apic.deadline(), None);
    apic.mmio_write(reg::INITIAL, 100, 1000);
    assert_eq!(apic.deadline(), Some(1100));
    assert_eq!(apic.mmio_read(reg::CURRENT, 1000), 100);
    assert_eq!(apic.mmio_read(reg::CURRENT, 1001), 99);
    assert_eq!(apic.mmio_read(reg::CURRENT, 1099), 1);
    assert!(!fires(&mut apic, 1099));
    assert!(fires(&mut apic, 1100));
    assert_eq!(apic.mmio_read(reg::CURRENT, 1100), 0);
    assert_eq!(apic.mmio_read(reg::INITIAL, 1100), 100);
    assert_eq!(apic.deadline(), None);
    assert!(!fires(&mut apic, 10_000));
}

#[test]
fn writing_the_initial_count_restarts_and_zero_stops() {
    let mut apic = with_timer(1_000_000, 1_000_000, VECTOR);
    apic.mmio_write(reg::INITIAL, 100, 0);
    apic.mmio_write(reg::INITIAL, 50, 80);
    assert_eq!(apic.deadline(), Some(130));
    apic.mmio_write(reg::INITIAL, 0, 90);
    assert_eq!(apic.deadline(), None);
    assert_eq!(apic.mmio_read(reg::CURRENT, 90), 0);
    assert!(!fires(&mut apic, 1000));
}

#[test]
fn every_divide_configuration_divides() {
    let divisors = [(0b0000, 2), (0b0001, 4), (0b0010, 8), (0b0011, 16)];
    let more = [(0b1000, 32), (0b1001, 64), (0b1010, 128), (0b1011, 1)];
    for (code, divisor) in divisors.into_iter().chain(more) {
        let mut apic = with_timer(1_000_000, 1_000_000, VECTOR);
        apic.mmio_write(reg::DIVIDE, code, 0);
        apic.mmio_write(reg::INITIAL, 10, 0);
        assert_eq!(apic.deadline(), Some(10 * divisor), "{code:#b}");
        assert_eq!(apic.mmio_read(reg::CURRENT, 3 * divisor), 7, "{code:#b}");
        assert_eq!(apic.mmio_read(reg::CURRENT, 4 * divisor - 1), 7);
    }
}

#[test]
fn changing_the_divisor_keeps_the_count() {
    let mut apic = with_timer(1_000_000, 1_000_000, VECTOR);
    apic.mmio_write(reg::INITIAL, 100, 0);
    apic.mmio_write(reg::DIVIDE, 0b0001, 40); // by 4, with 60 left
    assert_eq!(apic.mmio_read(reg::CURRENT, 40), 60);
    assert_eq!(apic.mmio_read(reg::CURRENT, 44), 59);
    assert_eq!(apic.deadline(), Some(40 + 60 * 4));
    apic.mmio_write(reg::DIVIDE, BY_1, 80); // 50 left
    assert_eq!(apic.deadline(), Some(130));
}

#[test]
fn periodic_goes_on_from_each_deadline_without_drift() {
    let mut apic = with_timer(1_000_000, 1_000_000, PERIODIC | VECTOR);
    apic.mmio_write(reg::INITIAL, 100, 0);
    for period in 1..50 {
        assert_eq!(apic.deadline(), Some(period * 100));
        // Late by 30 ticks each time.
        assert!(fires(&mut apic, period * 100 + 30));
        assert_eq!(apic.mmio_read(reg::CURRENT, period * 100 + 30), 70);
    }
}

#[test]
fn missed_periods_are_one_interrupt() {
    let mut apic = with_timer(1_000_000, 1_000_000, PERIODIC | VECTOR);
    apic.mmio_write(reg::INITIAL, 100, 0);
    assert!(fires(&mut apic, 1_234));
    assert!(!fires(&mut apic, 1_235));
    assert_eq!(apic.deadline(), Some(1_300));
    assert!(fires(&mut apic, 1_300), "at the deadline itself");
    assert_eq!(apic.deadline(), Some(1_400));
}

/// Clocks whose ratio has no finite expansion: after many periods the deadline is where exact
/// arithmetic puts it.
#[test]
fn odd_frequencies_do_not_drift() {
    let (tsc_khz, bus_khz) = (2_399_987, 999_983);
    let mut apic = with_timer(tsc_khz, bus_khz, PERIODIC | VECTOR);
    let start = 12_345_678_901;
    apic.mmio_write(reg::INITIAL, 777, start);
    for period in 1..=100_000u128 {
        let exact = (period * 777 * u128::from(tsc_khz)).div_ceil(u128::from(bus_khz));
        let deadline = start + Tsc::try_from(exact).expect("in range");
        assert_eq!(apic.deadline(), Some(deadline), "period {period}");
        assert!(!fires(&mut apic, deadline - 1));
        assert!(fires(&mut apic, deadline));
    }
}

#[test]
fn the_current_count_follows_the_bus_clock() {
    let (tsc_khz, bus_khz) = (3_000_000, 1_000_000);
    let mut apic = with_timer(tsc_khz, bus_khz, VECTOR);
    apic.mmio_write(reg::INITIAL, 1000, 0);
    for now in 0..3000 {
        let expected = 1000 - u32::try_from(now / 3).expect("small");
        assert_eq!(apic.mmio_read(reg::CURRENT, now), expected);
    }
    assert_eq!(apic.deadline(), Some(3000));
}

#[test]
fn a_masked_timer_counts_but_does_not_interrupt() {
    let mut apic = with_timer(1_000_000, 1_000_000, MASKED | PERIODIC | VECTOR);
    apic.mmio_write(reg::INITIAL, 100, 0);
    assert_eq!(apic.deadline(), None, "nobody needs to be woken");
    assert_eq!(apic.mmio_read(reg::CURRENT, 250), 50);
    assert!(!fires(&mut apic, 250));
    // What came due while masked is not raised by unmasking.
    apic.mmio_write(reg::LVT_TIMER, PERIODIC | VECTOR, 350);
    assert_eq!(apic.pending(), None);
    assert_eq!(apic.deadline(), Some(400));

    apic.mmio_write(reg::LVT_TIMER, MASKED | VECTOR, 350);
    apic.mmio_write(reg::LVT_TIMER, VECTOR, 1000);
    assert_eq!((apic.deadline(), apic.pending()), (None, None), "one-shot ran out meanwhile");
}

#[test]
fn switching_between_one_shot_and_periodic_keeps_counting() {
    let mut apic = with_timer(1_000_000, 1_000_000, VECTOR);
    apic.mmio_write(reg::INITIAL, 100, 0);
    apic.mmio_write(reg::LVT_TIMER, PERIODIC | VECTOR, 50);
    assert_eq!(apic.deadline(), Some(100));
    assert!(fires(&mut apic, 100));
    assert_eq!(apic.deadline(), Some(200));
    apic.mmio_write(reg::LVT_TIMER, VECTOR, 150);
    assert!(fires(&mut apic, 200));
    assert_eq!(apic.deadline(), None);
}

#[test]
fn tsc_deadline_fires_when_the_tsc_reaches_it_and_disarms() {
    for mut apic in [enabled(), enabled_x2apic(3)] {
        if apic.mmio_window().is_some() {
            apic.mmio_write(reg::LVT_TIMER, DEADLINE | VECTOR, 0);
        } else {
            apic.msr_write(0x832, u64::from(DEADLINE | VECTOR), 0).expect("LVT timer");
        }
        apic.msr_write(TSC_DEADLINE, 5000, 10).expect("arm");
        assert_eq!(apic.deadline(), Some(5000));
        assert_eq!(apic.msr_read(TSC_DEADLINE, 4999), Ok(5000));
        assert!(!fires(&mut apic, 4999));
        assert!(fires(&mut apic, 5000));
        assert_eq!(apic.msr_read(TSC_DEADLINE, 5000), Ok(0));
        assert_eq!(apic.deadline(), None);
    }
}

#[test]
fn a_tsc_deadline_in_the_past_fires_at_once() {
    let mut apic = with_timer(1_000_000, 1_000_000, DEADLINE | VECTOR);
    apic.msr_write(TSC_DEADLINE, 1, 1000).expect("arm");
    assert_eq!(apic.pending(), Some(VECTOR as u8));
    assert_eq!(apic.msr_read(TSC_DEADLINE, 1000), Ok(0));
}

#[test]
fn writing_zero_disarms_and_a_new_deadline_replaces() {
    let mut apic = with_timer(1_000_000, 1_000_000, DEADLINE | VECTOR);
    apic.msr_write(TSC_DEADLINE, 500, 0).expect("arm");
    apic.msr_write(TSC_DEADLINE, 0, 100).expect("disarm");
    assert_eq!(apic.deadline(), None);
    assert!(!fires(&mut apic, 1000));
    apic.msr_write(TSC_DEADLINE, 2000, 1000).expect("arm");
    apic.msr_write(TSC_DEADLINE, 3000, 1000).expect("arm later");
    assert!(!fires(&mut apic, 2500));
    apic.msr_write(TSC_DEADLINE, 2700, 2500).expect("arm earlier");
    assert!(fires(&mut apic, 2700));
}

#[test]
fn a_masked_tsc_deadline_expires_silently() {
    let mut apic = with_timer(1_000_000, 1_000_000, MASKED | DEADLINE | VECTOR);
    apic.msr_write(TSC_DEADLINE, 500, 0).expect("arm");
    assert_eq!(apic.deadline(), None);
    apic.mmio_write(reg::LVT_TIMER, DEADLINE | VECTOR, 600);
    assert_eq!((apic.deadline(), apic.pending()), (None, None));
    assert_eq!(apic.msr_read(TSC_DEADLINE, 600), Ok(0));
}

/// 11.5.4.1: the initial count is ignored in TSC-deadline mode, the MSR in the others.
#[test]
fn each_mode_ignores_the_others_register() {
    let mut apic = with_timer(1_000_000, 1_000_000, DEADLINE | VECTOR);
    apic.mmio_write(reg::INITIAL, 100, 0);
    assert_eq!(apic.mmio_read(reg::INITIAL, 0), 0);
    assert_eq!(apic.mmio_read(reg::CURRENT, 0), 0);
    assert_eq!(apic.deadline(), None);

    for mode in [0, PERIODIC] {
        apic.mmio_write(reg::LVT_TIMER, mode | VECTOR, 0);
        apic.msr_write(TSC_DEADLINE, 500, 0).expect("ignored");
        assert_eq!(apic.msr_read(TSC_DEADLINE, 0), Ok(0));
        assert_eq!(apic.deadline(), None);
    }
}

#[test]
fn going_into_or_out_of_tsc_deadline_mode_disarms() {
    let mut apic = with_timer(1_000_000, 1_000_000, VECTOR);
    apic.mmio_write(reg::INITIAL, 100, 0);
    apic.mmio_write(reg::LVT_TIMER, DEADLINE | VECTOR, 10);
    assert_eq!(apic.deadline(), None);
    assert_eq!(apic.mmio_read(reg::CURRENT, 10), 0);
    apic.msr_write(TSC_DEADLINE, 500, 10).expect("arm");
    apic.mmio_write(reg::LVT_TIMER, DEADLINE | 0xed, 20);
    assert_eq!(apic.deadline(), Some(500), "the same mode again keeps it");
    apic.mmio_write(reg::LVT_TIMER, PERIODIC | VECTOR, 30);
    assert_eq!(apic.deadline(), None);
    apic.mmio_write(reg::LVT_TIMER, DEADLINE | VECTOR, 40);
    assert_eq!(apic.msr_read(TSC_DEADLINE, 40), Ok(0));
}

#[test]
fn software_disabling_silences_the_timer() {
    let mut apic = with_timer(1_000_000, 1_000_000, VECTOR);
    apic.mmio_write(reg::INITIAL, 100, 0);
    apic.mmio_write(reg::SVR, 0xff, 50);
    assert_eq!(apic.deadline(), None);
    apic.mmio_write(reg::SVR, 0x1ff, 200);
    apic.mmio_write(reg::LVT_TIMER, VECTOR, 200);
    assert!(!fires(&mut apic, 300));
}

#[test]
fn a_changed_tsc_moves_the_countdown_but_not_the_tsc_deadline() {
    let mut apic = with_timer(2_000_000, 1_000_000, PERIODIC | VECTOR);
    apic.mmio_write(reg::INITIAL, 100, 10_000);
    apic.tsc_changed(10_050, 50);
    assert_eq!(apic.deadline(), Some(200));
    assert_eq!(apic.mmio_read(reg::CURRENT, 50), 75);
    assert!(fires(&mut apic, 200));
    assert_eq!(apic.deadline(), Some(400));

    let mut apic = with_timer(1_000_000, 1_000_000, DEADLINE | VECTOR);
    apic.msr_write(TSC_DEADLINE, 5_000, 0).expect("arm");
    apic.tsc_changed(100, 4_999);
    assert_eq!(apic.deadline(), Some(5_000));
}

/// However late the owner looks: what came due before a register access is not lost by it.
#[test]
fn an_access_first_raises_what_is_due() {
    type Access = fn(&mut LocalApic);
    let accesses: [Access; 7] = [
        |apic| {
            apic.mmio_write(reg::INITIAL, 1000, 150);
        },
        |apic| {
            apic.mmio_write(reg::DIVIDE, 0, 150);
        },
        |apic| {
            apic.mmio_write(reg::LVT_TIMER, MASKED | VECTOR, 150);
        },
        |apic| {
            apic.mmio_write(reg::SVR, 0x1fe, 150);
        },
        |apic| {
            apic.mmio_read(reg::CURRENT, 150);
        },
        |apic| assert_eq!(apic.mmio_read(reg::IRR + 0x70, 150), 1 << (VECTOR % 32)),
        |apic| apic.tsc_changed(150, 0),
    ];
    for access in accesses {
        let mut apic = with_timer(1_000_000, 1_000_000, VECTOR);
        apic.mmio_write(reg::INITIAL, 100, 0);
        access(&mut apic);
        assert_eq!(apic.pending(), Some(VECTOR as u8));
    }
}

#[test]
fn a_tsc_that_goes_back_never_shows_more_than_the_initial_count() {
    let mut apic = with_timer(1_000_000, 1_000_000, PERIODIC | VECTOR);
    apic.mmio_write(reg::INITIAL, 100, 10_000);
    assert_eq!(apic.mmio_read(reg::CURRENT, 5_000), 100);
    assert_eq!(apic.save(5_000).timer_countdown.expect("counting").tsc_ticks, 100);
}

#[test]
fn extreme_times_neither_overflow_nor_show_too_much() {
    let mut apic = with_timer(u32::MAX, 1, PERIODIC | VECTOR);
    apic.mmio_write(reg::DIVIDE, 0b1010, 0);
    apic.mmio_write(reg::INITIAL, u32::MAX, Tsc::MAX);
    assert_eq!(apic.deadline(), Some(Tsc::MAX), "saturates");
    assert_eq!(apic.mmio_read(reg::CURRENT, 0), u32::MAX, "a TSC set back");
    apic.tick(Tsc::MAX);
    for _ in 0..100 {
        apic.tsc_changed(0, Tsc::MAX);
        apic.mmio_write(reg::DIVIDE, BY_1, 0);
        apic.mmio_write(reg::DIVIDE, 0b1010, 0);
    }
    assert_eq!(apic.mmio_read(reg::CURRENT, 0), u32::MAX);
    // A TSC that went back is cured by the next save.
    let saved = apic.save(0);
    apic.restore(&saved, 0).expect("restore");
}
