//! 11.4: the register page, identification, enabling and reset; 11.5.3: errors; 11.9: spurious
//! vector register.

use lapic::{ApicMode, Fault, LocalApic, LocalApicConfig};

use crate::{BASE, BSP, ENABLE, MASKED, X2APIC, enabled, fresh, reg};

/// Offset and value of every register after power-on, 11.4.7.1.
const POWER_ON: [(u32, u32); 21] = [
    (reg::ID, 0),
    (reg::VERSION, 0x0005_0014),
    (reg::TPR, 0),
    (reg::PPR, 0),
    (reg::EOI, 0),
    (reg::LDR, 0),
    (reg::DFR, 0xffff_ffff),
    (reg::SVR, 0xff),
    (reg::ESR, 0),
    (reg::ICR_LOW, 0),
    (reg::ICR_HIGH, 0),
    (reg::LVT_TIMER, MASKED),
    (reg::LVT_THERMAL, MASKED),
    (reg::LVT_PERFORMANCE, MASKED),
    (reg::LVT_LINT0, MASKED),
    (reg::LVT_LINT1, MASKED),
    (reg::LVT_ERROR, MASKED),
    (reg::INITIAL, 0),
    (reg::CURRENT, 0),
    (reg::DIVIDE, 0),
    (0x090, 0),
];

fn expect_power_on(apic: &mut LocalApic, now: u64) {
    for (offset, value) in POWER_ON {
        assert_eq!(apic.mmio_read(offset, now), value, "{offset:#x}");
    }
    for offset in (reg::ISR..reg::ESR).step_by(16) {
        assert_eq!(apic.mmio_read(offset, now), 0, "{offset:#x}");
    }
    assert_eq!((apic.pending(), apic.deadline()), (None, None));
}

/// Writes `value` to every register.
fn scribble(apic: &mut LocalApic, value: u32) {
    for offset in (0..0x400).step_by(16) {
        apic.mmio_write(offset, value, 0);
    }
}

#[test]
fn power_on_reset_and_init_give_the_same_registers() {
    let mut apic = fresh(0);
    expect_power_on(&mut apic, 0);
    assert_eq!(apic.base_msr(), BASE | ENABLE | BSP);
    assert_eq!(fresh(3).base_msr(), BASE | ENABLE);

    for value in [u32::MAX, 0x0001_01ff, 0x5555_5555] {
        apic.set_base_msr(0xfed0_0000 | ENABLE).expect("relocate");
        scribble(&mut apic, value);
        apic.mmio_write(reg::SVR, 0x1ff, 0);
        apic.accept(0x70, true);
        apic.init();
        expect_power_on(&mut apic, 5);
        assert_eq!(apic.base_msr(), 0xfed0_0000 | ENABLE, "INIT keeps IA32_APIC_BASE");
        scribble(&mut apic, value);
        apic.reset();
        expect_power_on(&mut apic, 5);
        assert_eq!(apic.base_msr(), BASE | ENABLE | BSP);
    }
}

#[test]
fn only_the_writable_bits_take() {
    let mut apic = enabled();
    let cases = [
        (reg::ID, 0),
        (reg::VERSION, 0x0005_0014),
        (reg::TPR, 0xff),
        (reg::LDR, 0xff00_0000),
        (reg::DFR, 0xffff_ffff),
        (reg::SVR, 0x3ff),
        (reg::ICR_HIGH, 0xff00_0000),
        (reg::LVT_TIMER, 0x0007_00ff),
        (reg::LVT_THERMAL, 0x0001_07ff),
        (reg::LVT_PERFORMANCE, 0x0001_07ff),
        (reg::LVT_LINT0, 0x0001_a7ff),
        (reg::LVT_LINT1, 0x0001_a7ff),
        (reg::LVT_ERROR, 0x0001_00ff),
        (reg::INITIAL, u32::MAX),
        (reg::DIVIDE, 0xb),
    ];
    for (offset, value) in cases {
        apic.mmio_write(offset, u32::MAX, 0);
        assert_eq!(apic.mmio_read(offset, 0), value, "{offset:#x}");
    }
    apic.mmio_write(reg::DFR, 0, 0);
    assert_eq!(apic.mmio_read(reg::DFR, 0), 0x0fff_ffff);
}

#[test]
fn the_id_register_has_the_low_eight_bits() {
    assert_eq!(fresh(0x12).mmio_read(reg::ID, 0), 0x1200_0000);
    assert_eq!(fresh(0x345).mmio_read(reg::ID, 0), 0x4500_0000);
}

#[test]
fn request_service_and_mode_registers_are_read_only() {
    let mut apic = enabled();
    for offset in (reg::ISR..reg::ESR).step_by(16) {
        apic.mmio_write(offset, u32::MAX, 0);
        assert_eq!(apic.mmio_read(offset, 0), 0, "{offset:#x}");
    }
    apic.mmio_write(reg::PPR, 0xff, 0);
    apic.mmio_write(reg::CURRENT, 0xff, 0);
    assert_eq!((apic.ppr(), apic.mmio_read(reg::CURRENT, 0)), (0, 0));
    apic.mmio_write(reg::ESR, 0, 0);
    assert_eq!(apic.mmio_read(reg::ESR, 0), 0, "ignored writes are not errors");
}

#[test]
fn reserved_offsets_are_errors() {
    let reserved = [0x000, 0x010, 0x040, 0x070, 0x290, 0x2f0, 0x3a0, 0x3d0, 0x3f0, 0x400, 0xff0];
    for offset in reserved.into_iter().chain([0x081, 0x0b4, 0x0f8, 0x32c, 0x104, 0xffff_fff0]) {
        let mut apic = enabled();
        assert_eq!(apic.mmio_read(offset, 0), 0);
        apic.mmio_write(reg::ESR, 0, 0);
        assert_eq!(apic.mmio_read(reg::ESR, 0), 1 << 7, "read of {offset:#x}");
        apic.mmio_write(reg::ESR, 0, 0);
        assert_eq!(apic.mmio_write(offset, u32::MAX, 0), lapic::Effects::default());
        apic.mmio_write(reg::ESR, 0, 0);
        assert_eq!(apic.mmio_read(reg::ESR, 0), 1 << 7, "write of {offset:#x}");
    }
}

/// 11.5.3: the error interrupt comes once until the error status register is written.
#[test]
fn the_error_interrupt_is_armed_by_writing_the_status() {
    let mut apic = enabled();
    apic.mmio_write(reg::LVT_ERROR, 0xfe, 0);
    apic.accept(3, false);
    assert_eq!(apic.acknowledge(), Some(0xfe));
    apic.eoi();
    apic.mmio_read(0, 0);
    assert_eq!(apic.pending(), None, "already signalled");
    apic.mmio_write(reg::ESR, 0, 0);
    assert_eq!(apic.mmio_read(reg::ESR, 0), 1 << 6 | 1 << 7, "errors accumulate");
    apic.mmio_read(0, 0);
    assert_eq!(apic.pending(), Some(0xfe));
}

#[test]
fn an_illegal_vector_in_the_error_entry_does_not_recurse() {
    let mut apic = enabled();
    apic.mmio_write(reg::LVT_ERROR, 0x05, 0);
    apic.mmio_read(0, 0);
    apic.mmio_write(reg::ESR, 0, 0);
    assert_eq!(apic.mmio_read(reg::ESR, 0), 1 << 6 | 1 << 7);
    assert_eq!(apic.pending(), None);
}

#[test]
fn the_register_page_can_be_moved() {
    let mut apic = fresh(0);
    assert_eq!(apic.mmio_window(), Some(0xfee0_0000));
    apic.set_base_msr(0x1_2345_6000 | ENABLE).expect("move");
    assert_eq!(apic.mmio_window(), Some(0x1_2345_6000));
    assert_eq!(apic.base_msr(), 0x1_2345_6000 | ENABLE, "the BSP flag is writable");
}

/// 11.4.4 and 11.12.5, figure 11-27.
#[test]
fn reserved_bits_and_excluded_transitions_fault() {
    let mut apic = fresh(0);
    let before = apic.base_msr();
    for bit in (0..8).chain([9]).chain(46..64) {
        assert_eq!(apic.set_base_msr(before | 1 << bit), Err(Fault), "bit {bit}");
    }
    assert_eq!(apic.set_base_msr(BASE | X2APIC), Err(Fault), "x2APIC without enable");
    assert_eq!(apic.base_msr(), before);

    let disabled = BASE;
    let xapic = BASE | ENABLE;
    let x2apic = BASE | ENABLE | X2APIC;
    let allowed = |from: u64, to: u64| {
        let mut apic = fresh(0);
        let path: &[u64] = if from == x2apic { &[xapic, x2apic] } else { &[from] };
        path.iter().for_each(|value| apic.set_base_msr(*value).expect("path"));
        apic.set_base_msr(to).is_ok()
    };
    for state in [disabled, xapic, x2apic] {
        assert!(allowed(state, state));
    }
    assert!(allowed(xapic, x2apic));
    assert!(allowed(xapic, disabled));
    assert!(allowed(disabled, xapic));
    assert!(allowed(x2apic, disabled));
    assert!(!allowed(x2apic, xapic));
    assert!(!allowed(disabled, x2apic));
}

#[test]
fn a_wider_address_width_permits_more_page_bits() {
    let config = LocalApicConfig { physical_address_bits: 52, ..LocalApicConfig::default() };
    let mut apic = LocalApic::new(config);
    assert!(apic.set_base_msr(1 << 51 | ENABLE).is_ok());
    assert_eq!(apic.set_base_msr(1 << 52 | ENABLE), Err(Fault));
    let config = LocalApicConfig { physical_address_bits: 255, ..LocalApicConfig::default() };
    assert_eq!(LocalApic::new(config).set_base_msr(1 << 52 | ENABLE), Err(Fault));
}

#[test]
fn disabling_by_the_base_msr_resets_and_passes_extint() {
    let mut apic = enabled();
    apic.accept(0x90, false);
    apic.set_base_msr(BASE).expect("disable");
    assert_eq!((apic.mode(), apic.mmio_window()), (ApicMode::Disabled, None));
    assert_eq!(apic.pending(), None);
    assert!(apic.accepts_extint());
    apic.accept(0x90, false);
    apic.set_base_msr(BASE | ENABLE).expect("enable");
    expect_power_on(&mut apic, 0);
    assert!(!apic.accepts_extint());
}

/// 11.4.7.2.
#[test]
fn software_disabling_masks_the_local_vectors() {
    let mut apic = enabled();
    let entries: Vec<u32> = (reg::LVT_TIMER..=reg::LVT_ERROR).step_by(16).collect();
    for &offset in &entries {
        apic.mmio_write(offset, 0x40, 0);
        assert_eq!(apic.mmio_read(offset, 0), 0x40);
    }
    apic.mmio_write(reg::SVR, 0xff, 0);
    for &offset in &entries {
        assert_eq!(apic.mmio_read(offset, 0), 0x40 | MASKED, "{offset:#x}");
        apic.mmio_write(offset, 0x41, 0);
        assert_eq!(apic.mmio_read(offset, 0), 0x41 | MASKED, "cannot be unmasked");
    }
    apic.mmio_write(reg::SVR, 0x1ff, 0);
    assert_eq!(apic.mmio_read(reg::LVT_TIMER, 0), 0x41 | MASKED, "stays masked");
}

#[test]
fn writes_tell_when_the_destination_changed() {
    let mut apic = fresh(0);
    assert!(apic.mmio_write(reg::SVR, 0x1ff, 0).destination_changed);
    assert!(!apic.mmio_write(reg::SVR, 0x1ff, 0).destination_changed);
    assert!(apic.mmio_write(reg::LDR, 0x0200_0000, 0).destination_changed);
    assert!(apic.mmio_write(reg::DFR, 0, 0).destination_changed);
    assert!(apic.mmio_write(reg::TPR, 0x20, 0).destination_changed);
    assert!(!apic.mmio_write(reg::DIVIDE, 0xb, 0).destination_changed);
    let info = apic.destination();
    assert_eq!((info.logical_id, info.cluster, info.priority), (2, true, 0x20));
}
