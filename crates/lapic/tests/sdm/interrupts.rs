//! 11.8: acceptance, priority, acknowledgement and end of interrupt; 11.9: spurious vector.

use crate::{enabled, fresh, reg};

#[test]
fn an_interrupt_goes_from_irr_to_isr_to_eoi() {
    let mut apic = enabled();
    apic.accept(0x61, false);
    assert_eq!(apic.mmio_read(reg::IRR + 0x30, 0), 1 << 1);
    assert_eq!(apic.pending(), Some(0x61));
    assert_eq!(apic.acknowledge(), Some(0x61));
    assert_eq!(apic.mmio_read(reg::IRR + 0x30, 0), 0);
    assert_eq!(apic.mmio_read(reg::ISR + 0x30, 0), 1 << 1);
    assert_eq!(apic.mmio_read(reg::PPR, 0), 0x60);
    let effects = apic.mmio_write(reg::EOI, 0, 0);
    assert_eq!(effects.eoi, None, "edge-triggered ends are not broadcast");
    assert_eq!(apic.mmio_read(reg::ISR + 0x30, 0), 0);
    assert_eq!(apic.mmio_read(reg::PPR, 0), 0);
    assert_eq!(apic.acknowledge(), None);
}

#[test]
fn the_end_of_a_level_interrupt_is_broadcast_once() {
    let mut apic = enabled();
    apic.accept(0x55, true);
    assert_eq!(apic.mmio_read(reg::TMR + 0x20, 0), 1 << 21);
    apic.acknowledge();
    assert_eq!(apic.mmio_write(reg::EOI, 0, 0).eoi, Some(0x55));
    assert_eq!(apic.mmio_write(reg::EOI, 0, 0).eoi, None, "nothing is in service");
    // The next acceptance of the vector decides its trigger mode anew.
    apic.accept(0x55, false);
    assert_eq!(apic.mmio_read(reg::TMR + 0x20, 0), 0);
    apic.acknowledge();
    assert_eq!(apic.eoi(), None);
}

#[test]
fn higher_classes_nest_and_equal_classes_wait() {
    let mut apic = enabled();
    apic.accept(0x41, false);
    assert_eq!(apic.acknowledge(), Some(0x41));
    apic.accept(0x4f, false);
    assert_eq!(apic.pending(), None, "same class as the one in service");
    apic.accept(0x50, false);
    assert_eq!(apic.acknowledge(), Some(0x50));
    assert_eq!(apic.ppr(), 0x50);
    apic.eoi();
    assert_eq!(apic.ppr(), 0x40);
    assert_eq!(apic.pending(), None);
    apic.eoi();
    assert_eq!(apic.acknowledge(), Some(0x4f));
}

#[test]
fn one_vector_can_be_in_service_and_requested_again() {
    let mut apic = enabled();
    apic.accept(0x31, false);
    apic.acknowledge();
    apic.accept(0x31, false);
    apic.accept(0x31, false);
    assert_eq!(apic.pending(), None);
    apic.eoi();
    assert_eq!(apic.acknowledge(), Some(0x31));
    apic.eoi();
    assert_eq!(apic.pending(), None, "two requests in IRR are one");
}

#[test]
fn the_task_priority_holds_back_its_class_and_below() {
    for class in 0u8..16 {
        for vector in 16u8..=255 {
            let mut apic = enabled();
            apic.mmio_write(reg::TPR, u32::from(class) << 4 | 0xf, 0);
            apic.accept(vector, false);
            assert_eq!(apic.pending().is_some(), vector >> 4 > class, "{vector:#x} at {class}");
            apic.set_cr8(0);
            assert_eq!(apic.pending(), Some(vector), "{vector:#x} after lowering");
        }
    }
}

/// 11.8.3.1: the whole TPR when its class is at least that of the highest in service, else that
/// class with subclass zero.
#[test]
fn the_processor_priority_is_the_formula() {
    for tpr in 0u8..=255 {
        for in_service in (16u8..=255).step_by(7) {
            let mut apic = enabled();
            apic.accept(in_service, false);
            apic.acknowledge();
            apic.set_tpr(tpr);
            let expected = if tpr >> 4 >= in_service >> 4 { tpr } else { in_service & 0xf0 };
            assert_eq!(apic.ppr(), expected);
            assert_eq!(apic.mmio_read(reg::PPR, 0), u32::from(expected));
        }
    }
}

#[test]
fn cr8_is_the_class_of_the_task_priority() {
    let mut apic = enabled();
    apic.set_tpr(0xa7);
    assert_eq!(apic.cr8(), 0xa);
    apic.set_cr8(0x3);
    assert_eq!(apic.tpr(), 0x30, "writing CR8 clears the subclass");
    assert_eq!(apic.mmio_read(reg::TPR, 0), 0x30);
}

#[test]
fn a_disabled_apic_accepts_nothing_and_holds_what_it_has() {
    let mut apic = fresh(0);
    apic.accept(0x80, false);
    assert_eq!(apic.mmio_read(reg::IRR + 0x40, 0), 0, "software-disabled after power-on");
    apic.mmio_write(reg::SVR, 0x1ff, 0);
    apic.accept(0x80, false);
    apic.mmio_write(reg::SVR, 0x0ff, 0);
    assert_eq!(apic.pending(), None);
    assert_eq!(apic.acknowledge(), None);
    apic.mmio_write(reg::SVR, 0x1ff, 0);
    assert_eq!(apic.acknowledge(), Some(0x80), "held in IRR meanwhile");
}

#[test]
fn vectors_below_16_are_received_as_errors() {
    for vector in 0..16 {
        let mut apic = enabled();
        apic.accept(vector, false);
        assert_eq!(apic.pending(), None);
        assert_eq!(apic.mmio_read(reg::IRR, 0), 0);
        assert_eq!(apic.mmio_read(reg::ESR, 0), 0, "not before the register is written");
        apic.mmio_write(reg::ESR, 0, 0);
        assert_eq!(apic.mmio_read(reg::ESR, 0), 1 << 6);
        apic.mmio_write(reg::ESR, 0, 0);
        assert_eq!(apic.mmio_read(reg::ESR, 0), 0);
    }
}

#[test]
fn the_spurious_vector_is_the_registers() {
    let mut apic = enabled();
    assert_eq!(apic.spurious_vector(), 0xff);
    apic.mmio_write(reg::SVR, 0x1e7, 0);
    assert_eq!(apic.spurious_vector(), 0xe7);
}

#[test]
fn all_vectors_come_out_highest_first() {
    let mut apic = enabled();
    for vector in 16..=255 {
        apic.accept(vector, false);
    }
    for vector in (16..=255).rev() {
        assert_eq!(apic.acknowledge(), Some(vector));
        assert_eq!(apic.pending(), None, "nothing above {vector:#x}");
        apic.eoi();
    }
    assert_eq!(apic.pending(), None);
}
