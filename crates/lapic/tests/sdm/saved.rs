//! Saving and restoring: complete, relative in time, and closed to states that cannot be.

use lapic::{LocalApic, RestoreError, SavedCountdown, SavedLocalApic};

use crate::{MASKED, TSC_DEADLINE, X2APIC, enabled, enabled_x2apic, fresh, reg};

/// An APIC with every field away from its reset value.
fn busy() -> LocalApic {
    let mut apic = enabled();
    apic.mmio_write(reg::LDR, 0x0100_0000, 0);
    apic.mmio_write(reg::DFR, 0, 0);
    apic.mmio_write(reg::ICR_HIGH, 0x0200_0000, 0);
    apic.mmio_write(reg::ICR_LOW, 0x4041, 0);
    for (index, offset) in (reg::LVT_TIMER..=reg::LVT_ERROR).step_by(16).enumerate() {
        apic.mmio_write(offset, 0x50 + u32::try_from(index).expect("small"), 0);
    }
    apic.mmio_write(reg::LVT_TIMER, 1 << 17 | 0xec, 0);
    apic.mmio_write(reg::DIVIDE, 1, 0);
    apic.mmio_write(reg::INITIAL, 1000, 17);
    apic.accept(0x91, true);
    apic.acknowledge();
    apic.accept(0x33, true);
    apic.accept(2, false);
    apic.mmio_write(reg::ESR, 0, 0);
    apic.mmio_read(0, 0);
    apic.set_tpr(0x2a);
    apic
}

fn restored(saved: &SavedLocalApic, now: u64) -> LocalApic {
    let mut apic = fresh(saved.apic_id);
    apic.restore(saved, now).expect("restore");
    apic
}

#[test]
fn a_restored_apic_saves_the_same_and_goes_on_the_same() {
    let mut apic = busy();
    let saved = apic.save(500);
    let mut copy = restored(&saved, 500);
    assert_eq!(copy.save(500), saved);
    assert_eq!(copy.deadline(), apic.deadline());
    assert_eq!(copy.pending(), apic.pending());
    assert_eq!(copy.destination(), apic.destination());
    for now in [501, 4016, 4017, 9000] {
        for offset in (0..0x400).step_by(16) {
            assert_eq!(copy.mmio_read(offset, now), apic.mmio_read(offset, now), "{offset:#x}");
        }
    }
    assert_eq!(copy.eoi(), apic.eoi());
    assert_eq!(copy.save(9000), apic.save(9000));
}

#[test]
fn the_countdown_continues_where_it_was_at_another_time() {
    let mut apic = busy();
    let saved = apic.save(517);
    assert_eq!(saved.timer_countdown, Some(SavedCountdown { tsc_ticks: 3500, fraction: 0 }));
    let mut later = restored(&saved, 1_000_000);
    assert_eq!(later.deadline(), Some(1_003_500));
    assert_eq!(later.mmio_read(reg::CURRENT, 1_000_000), 875);
}

#[test]
fn an_interrupt_that_is_due_is_saved_as_requested() {
    let mut apic = enabled();
    apic.mmio_write(reg::LVT_TIMER, 0xec, 0);
    apic.mmio_write(reg::DIVIDE, 0xb, 0);
    apic.mmio_write(reg::INITIAL, 10, 0);
    let saved = apic.save(10);
    assert_eq!(saved.irr[7], 1 << 12);
    assert_eq!(saved.timer_countdown, None);
}

#[test]
fn tsc_deadline_and_x2apic_mode_are_saved() {
    let mut apic = enabled_x2apic(0x42);
    apic.msr_write(0x832, 2 << 17 | 0xec, 0).expect("mode");
    apic.msr_write(TSC_DEADLINE, 12_345, 0).expect("arm");
    apic.msr_write(0x830, 0x1234_5678_0000_0031, 0).expect("ICR");
    let saved = apic.save(1);
    assert_eq!((saved.tsc_deadline, saved.icr), (12_345, 0x1234_5678_0000_0031));
    let mut copy = restored(&saved, 1);
    assert_eq!(copy.deadline(), Some(12_345));
    assert_eq!(copy.msr_read(0x80d, 1), Ok(4 << 16 | 4));
}

#[test]
fn the_encoding_keeps_every_field() {
    let saved = busy().save(517);
    let bytes = rmp_serde::to_vec_named(&saved).expect("encode");
    assert_eq!(rmp_serde::from_slice::<SavedLocalApic>(&bytes).expect("decode"), saved);
}

#[test]
fn another_apics_state_is_refused() {
    let saved = busy().save(0);
    let error = fresh(1).restore(&saved, 0).expect_err("wrong id");
    assert_eq!(error, RestoreError::WrongId { found: 0, expected: 1 });
}

#[test]
fn impossible_states_are_refused_and_change_nothing() {
    type Damage = (&'static str, fn(&mut SavedLocalApic));
    let damages: [Damage; 25] = [
        ("IA32_APIC_BASE", |s| s.base_msr |= 1),
        ("IA32_APIC_BASE", |s| s.base_msr |= 1 << 46),
        ("IA32_APIC_BASE", |s| s.base_msr = X2APIC),
        ("ICR", |s| s.icr |= 1 << 12),
        ("ICR", |s| s.icr |= 1 << 32),
        ("LDR", |s| s.ldr |= 1),
        ("SVR", |s| s.svr |= 1 << 12),
        ("ESR", |s| s.esr |= 1 << 8),
        ("pending errors", |s| s.pending_errors |= 1 << 31),
        ("DFR", |s| s.dfr = 0xf000_0000),
        ("ISR", |s| s.isr[0] |= 1),
        ("TMR", |s| s.tmr[0] |= 1 << 15),
        ("IRR", |s| s.irr[0] |= 1 << 7),
        ("LVT timer", |s| s.lvt_timer |= 1 << 8),
        ("LVT thermal", |s| s.lvt_thermal |= 1 << 12),
        ("LVT performance", |s| s.lvt_performance |= 1 << 13),
        ("LVT LINT0", |s| s.lvt_lint0 |= 1 << 14),
        ("LVT LINT1", |s| s.lvt_lint1 |= 1 << 17),
        ("LVT error", |s| s.lvt_error |= 1 << 8),
        ("LVT timer", |s| s.svr = 0xff),
        ("timer divide", |s| s.timer_divide = 4),
        ("timer initial count", |s| s.lvt_timer = 2 << 17),
        ("IA32_TSC_DEADLINE", |s| s.tsc_deadline = 1),
        ("timer countdown", |s| {
            s.timer_countdown = Some(SavedCountdown { tsc_ticks: 4001, fraction: 0 });
        }),
        ("timer countdown", |s| {
            s.timer_countdown = Some(SavedCountdown { tsc_ticks: 0, fraction: 1_000_000 });
        }),
    ];
    let saved = busy().save(500);
    let mut apic = restored(&saved, 500);
    for (name, damage) in damages {
        let mut damaged = saved.clone();
        damage(&mut damaged);
        match apic.restore(&damaged, 500) {
            Err(RestoreError::Register { register, apic_id: 0, .. }) => assert_eq!(register, name),
            other => panic!("{name}: {other:?}"),
        }
        assert_eq!(apic.save(500), saved, "{name}");
    }
}

#[test]
fn a_masked_disabled_apic_is_possible() {
    let mut apic = enabled();
    apic.mmio_write(reg::LVT_LINT1, 0x400, 0);
    apic.mmio_write(reg::SVR, 0xff, 0);
    let saved = apic.save(0);
    assert_eq!(saved.lvt_lint1, MASKED | 0x400);
    restored(&saved, 0);
}
