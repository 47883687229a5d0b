//! 11.5.1: the local vector table; 11.4.3: the LINT pins of a disabled APIC.

use lapic::{LocalInput, LocalSignal};

use crate::{BASE, MASKED, enabled, fresh, reg};

const INPUTS: [(LocalInput, u32); 4] = [
    (LocalInput::Lint0, reg::LVT_LINT0),
    (LocalInput::Lint1, reg::LVT_LINT1),
    (LocalInput::PerformanceCounter, reg::LVT_PERFORMANCE),
    (LocalInput::Thermal, reg::LVT_THERMAL),
];

#[test]
fn every_input_is_delivered_as_its_entry_says() {
    let modes = [
        (0, LocalSignal::Accepted),
        (1, LocalSignal::None),
        (2, LocalSignal::Smi),
        (3, LocalSignal::None),
        (4, LocalSignal::Nmi),
        (5, LocalSignal::Init),
        (6, LocalSignal::None),
        (7, LocalSignal::ExtInt),
    ];
    for (input, offset) in INPUTS {
        for (mode, expected) in modes {
            let mut apic = enabled();
            apic.mmio_write(offset, mode << 8 | 0x77, 0);
            assert_eq!(apic.signal(input), expected, "{input:?} mode {mode}");
            let vector = (expected == LocalSignal::Accepted).then_some(0x77);
            assert_eq!(apic.pending(), vector);
            apic.mmio_write(offset, MASKED | mode << 8 | 0x78, 0);
            assert_eq!(apic.signal(input), LocalSignal::None, "masked");
            assert_eq!(apic.pending(), vector);
        }
    }
}

#[test]
fn only_lint0_can_be_level_triggered() {
    for (input, offset) in INPUTS {
        let mut apic = enabled();
        apic.mmio_write(offset, 1 << 15 | 0x44, 0);
        apic.signal(input);
        apic.acknowledge();
        assert_eq!(apic.eoi(), (input == LocalInput::Lint0).then_some(0x44), "{input:?}");
    }
}

#[test]
fn the_performance_entry_masks_itself() {
    let mut apic = enabled();
    apic.mmio_write(reg::LVT_PERFORMANCE, 0x400, 0);
    assert_eq!(apic.signal(LocalInput::PerformanceCounter), LocalSignal::Nmi);
    assert_eq!(apic.mmio_read(reg::LVT_PERFORMANCE, 0), 0x400 | MASKED);
    assert_eq!(apic.signal(LocalInput::PerformanceCounter), LocalSignal::None);
}

#[test]
fn extint_reaches_the_processor_through_lint0_only() {
    let mut apic = enabled();
    assert!(!apic.accepts_extint(), "masked after power-on");
    apic.mmio_write(reg::LVT_LINT0, 0x700, 0);
    assert!(apic.accepts_extint());
    apic.mmio_write(reg::LVT_LINT0, 0x700 | MASKED, 0);
    assert!(!apic.accepts_extint());
    apic.mmio_write(reg::LVT_LINT0, 0x030, 0);
    assert!(!apic.accepts_extint(), "fixed");
    apic.mmio_write(reg::LVT_LINT1, 0x700, 0);
    assert!(!apic.accepts_extint());
}

#[test]
fn without_an_apic_the_pins_are_intr_and_nmi() {
    let mut apic = fresh(0);
    apic.set_base_msr(BASE).expect("disable");
    assert_eq!(apic.signal(LocalInput::Lint0), LocalSignal::ExtInt);
    assert_eq!(apic.signal(LocalInput::Lint1), LocalSignal::Nmi);
    assert_eq!(apic.signal(LocalInput::Thermal), LocalSignal::None);
}

#[test]
fn an_illegal_vector_in_an_entry_is_an_error_when_it_is_delivered() {
    let mut apic = enabled();
    apic.mmio_write(reg::LVT_LINT0, 0x00f, 0);
    apic.mmio_write(reg::ESR, 0, 0);
    assert_eq!(apic.mmio_read(reg::ESR, 0), 0);
    apic.signal(LocalInput::Lint0);
    apic.mmio_write(reg::ESR, 0, 0);
    assert_eq!(apic.mmio_read(reg::ESR, 0), 1 << 6);
}
