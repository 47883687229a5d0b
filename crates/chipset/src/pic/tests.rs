use std::sync::Arc;

use device::testing::RecordingLine;
use device::{Answer, Device, NoLine, PortIo, Width};

use super::Pic;
use crate::hammer::{Random, Subject, access, hammer, watch};

struct Rig {
    pic: Pic,
    intr: Arc<RecordingLine>,
}

impl Rig {
    fn new() -> Self {
        let intr = RecordingLine::new();
        Self { pic: Pic::new(intr.clone()), intr }
    }

    /// As Linux sets it up: vectors 0x30 and 0x38, nothing masked.
    fn open() -> Self {
        Self::with_icw4(0x01)
    }

    fn with_icw4(icw4: u8) -> Self {
        let rig = Self::new();
        for (port, icw2, icw3) in [(0x20, 0x30, 0x04), (0xa0, 0x38, 0x02)] {
            rig.write(port, 0x11);
            rig.write(port + 1, icw2);
            rig.write(port + 1, icw3);
            rig.write(port + 1, icw4);
            rig.write(port + 1, 0);
        }
        rig
    }

    fn read(&self, port: u16) -> u8 {
        match self.pic.port_read(port, Width::Byte) {
            Answer::Done(value) => value as u8,
            other => panic!("{other:?}"),
        }
    }

    fn write(&self, port: u16, value: u8) {
        assert_eq!(self.pic.port_write(port, Width::Byte, value.into()), Answer::Done(()));
    }

    fn pulse(&self, irq: u8) {
        self.pic.line(irq).pulse();
    }

    fn in_service(&self, port: u16) -> u8 {
        self.write(port, 0x0b);
        self.read(port)
    }
}

#[test]
fn vectors_are_remapped_and_acknowledged() {
    let rig = Rig::open();
    rig.pulse(0);
    assert!(rig.intr.level());
    assert_eq!(rig.pic.acknowledge(), 0x30);
    assert!(!rig.intr.level());
    rig.pulse(12);
    assert!(!rig.intr.level(), "input 0 is in service");
    rig.write(0x20, 0x20);
    assert_eq!(rig.pic.acknowledge(), 0x3c);
    assert_eq!((rig.in_service(0x20), rig.in_service(0xa0)), (0x04, 0x10));
    rig.write(0xa0, 0x20);
    rig.write(0x20, 0x20);
    assert_eq!((rig.in_service(0x20), rig.in_service(0xa0)), (0, 0));
}

#[test]
fn higher_priority_interrupts_lower() {
    let rig = Rig::open();
    rig.pulse(4);
    assert_eq!(rig.pic.acknowledge(), 0x34);
    rig.pulse(6);
    assert!(!rig.intr.level());
    rig.pulse(9);
    assert!(rig.intr.level(), "the slave comes in at level 2");
    assert_eq!(rig.pic.acknowledge(), 0x39);
}

#[test]
fn masked_requests_wait() {
    let rig = Rig::open();
    rig.write(0x21, 0xff);
    rig.pulse(1);
    assert!(!rig.pic.pending());
    rig.write(0x20, 0x0a);
    assert_eq!(rig.read(0x20), 0x02, "IRR shows it");
    rig.write(0x21, 0xfd);
    assert_eq!(rig.read(0x21), 0xfd);
    assert!(rig.intr.level());
}

#[test]
fn nothing_pending_gives_spurious_vectors() {
    let rig = Rig::open();
    assert_eq!(rig.pic.acknowledge(), 0x37);
    assert_eq!(rig.in_service(0x20), 0);
    // Masked at the slave between its request and the acknowledge.
    rig.pulse(11);
    rig.write(0xa1, 0xff);
    assert_eq!(rig.pic.acknowledge(), 0x3f);
    assert_eq!((rig.in_service(0x20), rig.in_service(0xa0)), (0x04, 0));
}

#[test]
fn a_level_that_falls_before_acknowledge_is_spurious() {
    let rig = Rig::open();
    rig.write(0x4d0, 0xff);
    assert_eq!(rig.read(0x4d0), 0xf8, "timer, keyboard and cascade stay edge-triggered");
    let line = rig.pic.line(5);
    line.set(true);
    assert!(rig.intr.level());
    line.set(false);
    assert!(!rig.intr.level());
    assert_eq!(rig.pic.acknowledge(), 0x37);
}

#[test]
fn a_level_asks_again_after_eoi() {
    let rig = Rig::open();
    rig.write(0x4d1, 0x08);
    rig.pic.line(11).set(true);
    for _ in 0..3 {
        assert_eq!(rig.pic.acknowledge(), 0x3b);
        assert!(!rig.intr.level());
        rig.write(0xa0, 0x63);
        rig.write(0x20, 0x62);
        assert!(rig.intr.level());
    }
    rig.pic.line(11).set(false);
    assert!(!rig.pic.pending() || rig.pic.acknowledge() == 0x3f);
}

#[test]
fn an_edge_asks_once() {
    let rig = Rig::open();
    let line = rig.pic.line(3);
    line.set(true);
    line.set(true);
    assert_eq!(rig.pic.acknowledge(), 0x33);
    rig.write(0x20, 0x20);
    assert!(!rig.intr.level());
    line.set(false);
    line.set(true);
    assert!(rig.intr.level());
}

#[test]
fn initialization_forgets_edges_and_masks() {
    let rig = Rig::open();
    rig.write(0x21, 0xff);
    rig.pic.line(3).set(true);
    rig.write(0x20, 0x13);
    rig.write(0x21, 0x40);
    rig.write(0x21, 0x01);
    assert_eq!(rig.read(0x21), 0, "single: no ICW3; the mask is clear");
    assert!(!rig.intr.level(), "a high line needs a new edge");
    rig.pulse(3);
    assert!(!rig.intr.level(), "it is still high");
    rig.pulse(3);
    assert_eq!(rig.pic.acknowledge(), 0x43);
}

#[test]
fn auto_eoi_serves_nothing() {
    let rig = Rig::with_icw4(0x03);
    rig.pulse(10);
    rig.pulse(8);
    assert_eq!(rig.pic.acknowledge(), 0x38);
    assert_eq!(rig.in_service(0xa0), 0);
    assert!(rig.intr.level(), "the second request of the slave is a new edge");
    assert_eq!(rig.pic.acknowledge(), 0x3a);
    assert!(!rig.intr.level());
}

#[test]
fn rotation_makes_the_served_input_lowest() {
    let rig = Rig::open();
    rig.pulse(1);
    rig.pic.acknowledge();
    rig.write(0x20, 0xa0);
    rig.pulse(1);
    rig.pulse(5);
    assert_eq!(rig.pic.acknowledge(), 0x35);
    rig.write(0x20, 0xe5);
    assert_eq!(rig.in_service(0x20), 0, "rotate on specific EOI");
    rig.pulse(6);
    assert_eq!(rig.pic.acknowledge(), 0x36, "6 is first now");
    rig.write(0x20, 0x20);
    rig.write(0x20, 0xc0);
    rig.pulse(0);
    assert_eq!(rig.pic.acknowledge(), 0x31, "priority set: 0 is lowest");
}

#[test]
fn rotation_on_auto_eoi() {
    let rig = Rig::with_icw4(0x03);
    rig.write(0x20, 0x80);
    rig.pulse(3);
    assert_eq!(rig.pic.acknowledge(), 0x33);
    rig.pulse(3);
    rig.pulse(4);
    assert_eq!(rig.pic.acknowledge(), 0x34);
    assert_eq!(rig.pic.acknowledge(), 0x33);
}

#[test]
fn special_mask_lets_lower_levels_in() {
    let rig = Rig::open();
    rig.pulse(1);
    rig.pic.acknowledge();
    rig.pulse(6);
    rig.write(0x20, 0x68);
    assert!(!rig.intr.level());
    rig.write(0x21, 0x02);
    assert!(rig.intr.level(), "level 1 is masked and no longer blocks");
    assert_eq!(rig.pic.acknowledge(), 0x36);
    rig.write(0x20, 0x20);
    assert_eq!(rig.in_service(0x20), 0x02, "a masked level is not ended unspecifically");
    rig.write(0x20, 0x48);
    rig.pulse(6);
    assert!(!rig.intr.level());
}

#[test]
fn special_fully_nested_mode_lets_the_slave_nest() {
    for (icw4, nests) in [(0x11, true), (0x01, false)] {
        let rig = Rig::with_icw4(icw4);
        rig.pulse(12);
        assert_eq!(rig.pic.acknowledge(), 0x3c);
        rig.pulse(8);
        assert_eq!(rig.intr.level(), nests);
    }
}

#[test]
fn polling_acknowledges() {
    let rig = Rig::open();
    rig.write(0x20, 0x0c);
    assert_eq!(rig.read(0x20), 0);
    rig.pulse(6);
    rig.write(0x20, 0x0c);
    assert_eq!(rig.read(0x20), 0x86);
    assert!(!rig.intr.level());
    assert_eq!(rig.in_service(0x20), 0x40);
}

#[test]
fn reset_drops_intr() {
    let rig = Rig::open();
    rig.pic.line(4).set(true);
    rig.pic.reset();
    assert!(!rig.intr.level());
    assert!(!rig.pic.pending());
}

#[test]
#[should_panic(expected = "no input 16")]
fn there_are_16_inputs() {
    Rig::new().pic.line(16);
}

state::conformance!(saves_and_restores, Pic::new(Arc::new(NoLine)), |pic: &Pic| {
    for (port, value) in [(0x20, 0x11), (0x21, 0x50), (0x21, 4), (0xa0, 0x11), (0xa1, 0x70)] {
        pic.port_write(port, Width::Byte, value);
    }
    pic.port_write(0x4d0, Width::Word, 0x0c20);
    pic.line(5).set(true);
    pic.line(9).set(true);
    pic.acknowledge();
});

impl Subject for Rig {
    fn step(&self, random: &mut Random) -> u64 {
        watch(&self.intr, || match random.below(8) {
            0..3 => {
                self.pic.line(random.below(16) as u8).set(random.below(2) == 0);
                0
            }
            3 => self.pic.acknowledge().into(),
            _ => access(&self.pic, &[0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1], random),
        })
    }

    fn device(&self) -> &dyn Device {
        &self.pic
    }
}

#[test]
fn survives_a_hostile_guest() {
    hammer(0x8259, |_| Rig::new());
}
