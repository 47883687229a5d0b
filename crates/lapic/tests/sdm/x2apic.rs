//! 11.12: x2APIC mode: which MSRs exist, what they refuse, and what differs from xAPIC mode.

use lapic::{Delivery, Destination, Fault, Ipi};

use crate::{BASE, BSP, ENABLE, TSC_DEADLINE, X2APIC, enabled, enabled_x2apic, fresh, msr, reg};

/// Readable MSRs of table 11-6.
fn is_readable(msr: u32) -> bool {
    matches!(msr,
        0x802 | 0x803 | 0x808 | 0x80a | 0x80d | 0x80f | 0x810..=0x828 | 0x830
        | 0x832..=0x839 | 0x83e)
}

/// The bits that a write to an MSR may set, for writable MSRs of table 11-6.
fn writable_bits(msr: u32) -> Option<u64> {
    Some(match msr {
        0x808 | 0x83f => 0xff,
        0x80b | 0x828 => 0,
        0x80f => 0x3ff,
        0x830 => 0xffff_ffff_000c_dfff,
        0x832 => 0x0007_10ff,
        0x833 | 0x834 => 0x0001_17ff,
        0x835 | 0x836 => 0x0001_f7ff,
        0x837 => 0x0001_10ff,
        0x838 => 0xffff_ffff,
        0x83e => 0xb,
        _ => return None,
    })
}

#[test]
fn every_msr_is_readable_or_faults() {
    let mut apic = enabled_x2apic(1);
    for msr in 0x700..0x1000 {
        assert_eq!(apic.msr_read(msr, 0).is_ok(), is_readable(msr), "{msr:#x}");
    }
}

#[test]
fn every_reserved_bit_of_every_msr_faults() {
    for msr in 0x7f0..0x910 {
        for bit in 0..64 {
            let mut apic = enabled_x2apic(1);
            let value = 1u64 << bit;
            let expected = writable_bits(msr).is_some_and(|bits| value & !bits == 0);
            let before = apic.save(0);
            let written = apic.msr_write(msr, value, 0);
            assert_eq!(written.is_ok(), expected, "{msr:#x} bit {bit}");
            if !expected {
                assert_eq!(apic.save(0), before, "a faulting write changes nothing");
            }
        }
        let zero = enabled_x2apic(1).msr_write(msr, 0, 0).is_ok();
        assert_eq!(zero, writable_bits(msr).is_some(), "{msr:#x} zero");
    }
}

#[test]
fn outside_x2apic_mode_every_register_msr_faults() {
    let mut disabled = fresh(0);
    disabled.set_base_msr(BASE).expect("disable");
    for apic in [&mut enabled(), &mut disabled] {
        for msr in 0x800..0x900 {
            assert_eq!(apic.msr_read(msr, 0), Err(Fault), "{msr:#x}");
            assert_eq!(apic.msr_write(msr, 0, 0), Err(Fault), "{msr:#x}");
        }
        assert_eq!(apic.msr_read(TSC_DEADLINE, 0), Ok(0), "not an x2APIC register");
    }
}

#[test]
fn ids_are_32_bits_and_the_logical_id_is_derived() {
    for (id, logical) in [(0, 1), (5, 1 << 5), (0x1f, 1 << 16 | 1 << 15), (0x345, 0x34_0020)] {
        let mut apic = enabled_x2apic(id);
        assert_eq!(apic.msr_read(msr(reg::ID), 0), Ok(u64::from(id)));
        assert_eq!(apic.msr_read(msr(reg::LDR), 0), Ok(logical));
    }
}

#[test]
fn there_is_no_register_page() {
    assert_eq!(enabled_x2apic(0).mmio_window(), None);
}

#[test]
fn going_to_x2apic_mode_keeps_the_registers() {
    let mut apic = enabled();
    apic.set_tpr(0x20);
    apic.mmio_write(reg::LVT_TIMER, 0x2_0031, 0);
    apic.mmio_write(reg::ICR_HIGH, 0x1200_0000, 0);
    apic.mmio_write(reg::ICR_LOW, 0x4055, 0);
    apic.accept(0x41, false);
    apic.set_base_msr(BASE | BSP | ENABLE | X2APIC).expect("x2APIC");
    assert_eq!(apic.msr_read(msr(reg::TPR), 0), Ok(0x20));
    assert_eq!(apic.msr_read(msr(reg::SVR), 0), Ok(0x1ff));
    assert_eq!(apic.msr_read(msr(reg::LVT_TIMER), 0), Ok(0x2_0031));
    assert_eq!(apic.msr_read(0x830, 0), Ok(0x4055), "the destination had another place");
    assert_eq!(apic.pending(), Some(0x41));
}

#[test]
fn init_stays_in_x2apic_mode() {
    let mut apic = enabled_x2apic(0x21);
    apic.init();
    assert_eq!(apic.base_msr(), BASE | ENABLE | X2APIC);
    assert_eq!(apic.msr_read(msr(reg::SVR), 0), Ok(0xff));
    assert_eq!(apic.msr_read(msr(reg::ID), 0), Ok(0x21));
    assert_eq!(apic.msr_read(msr(reg::LDR), 0), Ok(2 << 16 | 2));
}

#[test]
fn the_self_ipi_register_raises_its_vector() {
    let mut apic = enabled_x2apic(0);
    let effects = apic.msr_write(0x83f, 0x99, 0).expect("self IPI");
    assert_eq!(effects.ipi, None);
    assert_eq!(apic.acknowledge(), Some(0x99));
    apic.msr_write(0x83f, 0x0f, 0).expect("self IPI");
    apic.msr_write(msr(reg::ESR), 0, 0).expect("latch");
    assert_eq!(apic.msr_read(msr(reg::ESR), 0), Ok(1 << 5));
    assert_eq!(apic.pending(), None);
}

#[test]
fn the_command_register_is_one_of_64_bits() {
    let mut apic = enabled_x2apic(7);
    let value = 0x0000_0123_0000_0841;
    let effects = apic.msr_write(0x830, value, 0).expect("send");
    let expected = Ipi {
        source: 7,
        destination: Destination::LogicalX2apic(0x123),
        delivery: Delivery::Fixed,
        vector: 0x41,
    };
    assert_eq!(effects.ipi, Some(expected));
    assert_eq!(apic.msr_read(0x830, 0), Ok(value));
    assert_eq!(apic.msr_read(0x831, 0), Err(Fault));
    let effects = apic.msr_write(0x830, 0xffff_ffff_0000_1041, 0).expect("busy bit is ignored");
    assert_eq!(effects.ipi, Some(Ipi { destination: Destination::All, ..expected }));
    assert_eq!(apic.msr_read(0x830, 0), Ok(0xffff_ffff_0000_0041));
}

#[test]
fn eoi_msr_broadcasts_level_interrupts() {
    let mut apic = enabled_x2apic(0);
    apic.accept(0x66, true);
    apic.acknowledge();
    assert_eq!(apic.msr_write(msr(reg::EOI), 1, 0), Err(Fault));
    assert_eq!(apic.msr_write(msr(reg::EOI), 0, 0).expect("EOI").eoi, Some(0x66));
}
