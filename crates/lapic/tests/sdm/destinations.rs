//! 11.6.1: the interrupt command register; 11.6.2: destinations and lowest-priority arbitration;
//! 11.11: messages; 11.12.10: x2APIC destinations.

use std::sync::Arc;

use device::{Message, MsiSender};
use lapic::{ApicMode, Delivery, Destination, DestinationInfo, Event, Fabric, Ipi, Mailbox};

use crate::{enabled, fresh, reg};

fn info(apic_id: u32, mode: ApicMode) -> DestinationInfo {
    DestinationInfo {
        apic_id,
        mode,
        software_enabled: true,
        logical_id: 0,
        cluster: false,
        priority: 0,
    }
}

fn fabric(infos: impl IntoIterator<Item = DestinationInfo>) -> Fabric {
    Fabric::new(infos.into_iter().map(|info| Arc::new(Mailbox::new(info))).collect())
}

fn drained(mailbox: &Mailbox) -> Vec<Event> {
    let mut events = Vec::new();
    mailbox.drain(|event| events.push(event));
    events
}

/// Which mailboxes have got exactly `event`; the others have got nothing.
fn receivers(fabric: &Fabric, event: Event) -> Vec<usize> {
    let mut indexes = Vec::new();
    for (index, mailbox) in fabric.mailboxes().iter().enumerate() {
        match drained(mailbox).as_slice() {
            [] => {}
            [got] if *got == event => indexes.push(index),
            other => panic!("vCPU {index} got {other:?}"),
        }
    }
    indexes
}

fn fixed(destination: Destination, vector: u8) -> Ipi {
    Ipi { source: 0, destination, delivery: Delivery::Fixed, vector }
}

const EDGE: Event = Event::Interrupt { vector: 0x40, level: false };

/// Whom a fixed interrupt with vector 0x40 reaches.
fn reached(fabric: &Fabric, destination: Destination) -> Vec<usize> {
    fabric.deliver(&fixed(destination, 0x40));
    receivers(fabric, EDGE)
}

#[test]
fn physical_destinations_name_one_apic_or_all() {
    let fabric = fabric((0..4).map(|id| info(id, ApicMode::Xapic)));
    assert_eq!(reached(&fabric, Destination::from_xapic(false, 2)), [2]);
    assert_eq!(reached(&fabric, Destination::from_xapic(false, 0xff)), [0, 1, 2, 3]);
    assert_eq!(reached(&fabric, Destination::from_xapic(false, 9)), []);
    assert_eq!(fabric.dropped(), 1);
}

#[test]
fn an_xapic_answers_to_the_low_eight_bits_of_its_id() {
    let fabric = fabric([info(0x145, ApicMode::Xapic), info(0x146, ApicMode::X2apic)]);
    assert_eq!(reached(&fabric, Destination::from_xapic(false, 0x45)), [0]);
    assert_eq!(reached(&fabric, Destination::from_xapic(false, 0x46)), []);
    assert_eq!(reached(&fabric, Destination::from_x2apic(false, 0x145)), []);
    assert_eq!(reached(&fabric, Destination::from_x2apic(false, 0x146)), [1]);
}

#[test]
fn shorthands_reach_all_or_the_others() {
    let fabric = fabric((0..3).map(|id| info(id, ApicMode::Xapic)));
    assert_eq!(reached(&fabric, Destination::All), [0, 1, 2]);
    assert_eq!(reached(&fabric, Destination::AllButSelf), [1, 2]);
}

#[test]
fn flat_logical_destinations_are_bit_sets() {
    let flat = |id, logical_id| DestinationInfo { logical_id, ..info(id, ApicMode::Xapic) };
    let fabric = fabric([flat(0, 1), flat(1, 2), flat(2, 4), flat(3, 0)]);
    assert_eq!(reached(&fabric, Destination::from_xapic(true, 0b101)), [0, 2]);
    assert_eq!(reached(&fabric, Destination::from_xapic(true, 0xff)), [0, 1, 2]);
    assert_eq!(reached(&fabric, Destination::from_xapic(true, 0)), []);
}

#[test]
fn cluster_logical_destinations_are_a_cluster_and_a_set() {
    let member =
        |id, logical_id| DestinationInfo { logical_id, cluster: true, ..info(id, ApicMode::Xapic) };
    let fabric = fabric([member(0, 0x11), member(1, 0x12), member(2, 0x21), member(3, 0x28)]);
    assert_eq!(reached(&fabric, Destination::from_xapic(true, 0x13)), [0, 1]);
    assert_eq!(reached(&fabric, Destination::from_xapic(true, 0x29)), [2, 3]);
    assert_eq!(reached(&fabric, Destination::from_xapic(true, 0x33)), []);
    assert_eq!(reached(&fabric, Destination::from_xapic(true, 0xff)), [0, 1, 2, 3]);
    assert_eq!(reached(&fabric, Destination::from_xapic(true, 0xf1)), [0, 2]);
}

#[test]
fn x2apic_destinations_are_32_bits() {
    let ids = [0, 5, 0x10, 0x123];
    let fabric = fabric(ids.map(|id| info(id, ApicMode::X2apic)));
    assert_eq!(reached(&fabric, Destination::from_x2apic(false, 0x123)), [3]);
    assert_eq!(reached(&fabric, Destination::from_x2apic(false, 0xff)), []);
    assert_eq!(reached(&fabric, Destination::from_x2apic(false, u32::MAX)), [0, 1, 2, 3]);
    assert_eq!(reached(&fabric, Destination::from_x2apic(true, 0x0000_0021)), [0, 1]);
    assert_eq!(reached(&fabric, Destination::from_x2apic(true, 0x0001_0001)), [2]);
    assert_eq!(reached(&fabric, Destination::from_x2apic(true, 0x0012_0008)), [3]);
    assert_eq!(reached(&fabric, Destination::from_x2apic(true, 0x0012_0001)), []);
    assert_eq!(reached(&fabric, Destination::from_x2apic(true, 0x0013_ffff)), []);
    assert_eq!(reached(&fabric, Destination::from_x2apic(true, u32::MAX)), [0, 1, 2, 3]);
    // Devices have 8 bits: cluster 0, or everyone.
    assert_eq!(reached(&fabric, Destination::from_xapic(true, 0x21)), [0, 1]);
    assert_eq!(reached(&fabric, Destination::from_xapic(true, 0xff)), [0, 1, 2, 3]);
}

#[test]
fn disabled_apics_get_no_maskable_interrupts() {
    let off = DestinationInfo { software_enabled: false, ..info(1, ApicMode::Xapic) };
    let fabric = fabric([info(0, ApicMode::Xapic), off, info(2, ApicMode::Disabled)]);
    assert_eq!(reached(&fabric, Destination::All), [0]);
    assert_eq!(reached(&fabric, Destination::Physical(1)), []);
    let ipi = |delivery| Ipi { source: 0, destination: Destination::All, delivery, vector: 0x9a };
    fabric.deliver(&ipi(Delivery::Init));
    assert_eq!(receivers(&fabric, Event::Init), [0, 1]);
    fabric.deliver(&ipi(Delivery::Startup));
    assert_eq!(receivers(&fabric, Event::Sipi(0x9a)), [0, 1]);
    fabric.deliver(&ipi(Delivery::Nmi));
    assert_eq!(receivers(&fabric, Event::Nmi), [0, 1]);
    assert_eq!(fabric.dropped(), 1);
    fabric.deliver(&ipi(Delivery::Smi));
    fabric.deliver(&ipi(Delivery::ExtInt));
    assert_eq!(fabric.dropped(), 3);
}

#[test]
fn lowest_priority_goes_to_one_of_the_lowest() {
    let with = |id, priority| DestinationInfo {
        priority,
        logical_id: 1u8 << id,
        ..info(id, ApicMode::Xapic)
    };
    let fabric = fabric([with(0, 0x50), with(1, 0x20), with(2, 0x20), with(3, 0x30)]);
    let send = |mda, vector| {
        let destination = Destination::from_xapic(true, mda);
        let delivery = Delivery::LowestPriority;
        fabric.deliver(&Ipi { source: 0, destination, delivery, vector });
        receivers(&fabric, Event::Interrupt { vector, level: false })
    };
    assert_eq!(send(0b1001, 0x40), [3]);
    assert_eq!(send(0b0001, 0x40), [0]);
    assert_eq!(send(0b1111, 0x40), [1], "equals: the vector chooses");
    assert_eq!(send(0b1111, 0x41), [2]);
    assert_eq!(send(0b1111, 0x41), [2], "and stays with its choice");
    assert_eq!(send(0b1_0000, 0x41), []);
    assert_eq!(fabric.dropped(), 1);
}

#[test]
fn messages_of_devices_are_decoded() {
    let member = |id| DestinationInfo { logical_id: 1u8 << id, ..info(id, ApicMode::Xapic) };
    let fabric = fabric((0..3).map(member));
    let send = |address, data| fabric.send(Message { address, data });

    send(0xfee0_2000, 0x4040);
    assert_eq!(receivers(&fabric, EDGE), [2]);
    send(0xfee0_6004, 0xc040);
    assert_eq!(receivers(&fabric, Event::Interrupt { vector: 0x40, level: true }), [1, 2]);
    send(0xfeef_f000, 0x0040);
    assert_eq!(receivers(&fabric, EDGE), [0, 1, 2]);
    send(0xfee0_700c, 0x0140);
    assert_eq!(receivers(&fabric, EDGE), [1], "lowest priority");
    send(0xfee0_1000, 0x0400);
    assert_eq!(receivers(&fabric, Event::Nmi), [1]);
    send(0xfee0_1000, 0x0500);
    assert_eq!(receivers(&fabric, Event::Init), [1]);
    assert_eq!(fabric.dropped(), 0);

    let lost = [(0xfee0_9000, 0x40), (0xfed0_0000, 0x40), (0x1_fee0_0000, 0x40)];
    let unsupported = [0x0200, 0x0300, 0x0600, 0x0700].map(|data| (0xfee0_0000, data | 0x40));
    for (address, data) in lost.into_iter().chain(unsupported) {
        send(address, data);
        assert_eq!(receivers(&fabric, EDGE), [], "{address:#x} {data:#x}");
    }
    assert_eq!(fabric.dropped(), 7);
}

#[test]
fn the_command_register_sends_what_it_says() {
    let deliveries = [
        (0, Some(Delivery::Fixed)),
        (1, Some(Delivery::LowestPriority)),
        (2, Some(Delivery::Smi)),
        (3, None),
        (4, Some(Delivery::Nmi)),
        (5, Some(Delivery::Init)),
        (6, Some(Delivery::Startup)),
        (7, None),
    ];
    let destinations = [
        (0, Destination::Physical(0x31)),
        (1 << 11, Destination::LogicalXapic(0x31)),
        (2 << 18, Destination::All),
        (3 << 18, Destination::AllButSelf),
    ];
    for (mode, delivery) in deliveries {
        for (bits, destination) in destinations {
            let mut apic = enabled();
            apic.mmio_write(reg::ICR_HIGH, 0x3100_0000, 0);
            let low = 1 << 14 | mode << 8 | bits | 0x55;
            let effects = apic.mmio_write(reg::ICR_LOW, low, 0);
            let expected =
                delivery.map(|delivery| Ipi { source: 0, destination, delivery, vector: 0x55 });
            assert_eq!(effects.ipi, expected, "{low:#x}");
            assert_eq!(apic.mmio_read(reg::ICR_LOW, 0), low);
            assert_eq!(apic.mmio_read(reg::ICR_HIGH, 0), 0x3100_0000);
        }
    }
}

#[test]
fn writing_the_high_half_sends_nothing() {
    let mut apic = enabled();
    assert_eq!(apic.mmio_write(reg::ICR_HIGH, u32::MAX, 0).ipi, None);
    let ipi = apic.mmio_write(reg::ICR_LOW, 0x4055, 0).ipi.expect("sent");
    assert_eq!(ipi.destination, Destination::All, "physical 0xff");
    assert_eq!(
        apic.mmio_write(reg::ICR_LOW, 0x4855, 0).ipi.expect("sent").destination,
        Destination::LogicalXapic(0xff)
    );
}

/// Table 11-3: of the self shorthand only fixed is valid.
#[test]
fn the_self_shorthand_stays_in_the_apic() {
    for mode in 0..8 {
        let mut apic = enabled();
        let effects = apic.mmio_write(reg::ICR_LOW, 1 << 18 | mode << 8 | 0x55, 0);
        assert_eq!(effects.ipi, None);
        assert_eq!(apic.pending(), (mode == 0).then_some(0x55), "delivery mode {mode}");
    }
}

#[test]
fn init_level_deassert_is_ignored() {
    let mut apic = enabled();
    assert_eq!(apic.mmio_write(reg::ICR_LOW, 2 << 18 | 1 << 15 | 5 << 8, 0).ipi, None);
    assert!(apic.mmio_write(reg::ICR_LOW, 3 << 18 | 3 << 14 | 5 << 8, 0).ipi.is_some());
}

#[test]
fn sending_a_vector_below_16_is_an_error() {
    for (low, illegal) in [
        (0x000f, true),
        (0x010f, true),
        (1 << 18, true),
        (0x0400, false),
        (0x0500, false),
        (0x0600, false),
        (0x0010, false),
    ] {
        let mut apic = enabled();
        let effects = apic.mmio_write(reg::ICR_LOW, low, 0);
        apic.mmio_write(reg::ESR, 0, 0);
        let expected = if illegal { 1 << 5 } else { 0 };
        assert_eq!(apic.mmio_read(reg::ESR, 0), expected, "{low:#x}");
        assert_eq!(effects.ipi.is_none(), illegal, "{low:#x}");
    }
}

#[test]
fn the_destination_of_an_apic_follows_its_registers() {
    let mut apic = fresh(6);
    let mailbox = Mailbox::new(apic.destination());
    assert_eq!(mailbox.destination(), apic.destination());
    assert!(!apic.destination().software_enabled);
    apic.mmio_write(reg::SVR, 0x1ff, 0);
    apic.mmio_write(reg::LDR, 0xa500_0000, 0);
    apic.mmio_write(reg::DFR, 0x0fff_ffff, 0);
    apic.set_tpr(0x8c);
    mailbox.publish(apic.destination());
    let expected = DestinationInfo {
        apic_id: 6,
        mode: ApicMode::Xapic,
        software_enabled: true,
        logical_id: 0xa5,
        cluster: true,
        priority: 0x8c,
    };
    assert_eq!(mailbox.destination(), expected);
    for mode in [ApicMode::X2apic, ApicMode::Disabled] {
        mailbox.publish(DestinationInfo { mode, ..expected });
        assert_eq!(mailbox.destination().mode, mode);
    }
}
