use std::sync::{Arc, Mutex};

use device::testing::RecordingLine;
use device::{Answer, Device, InterruptLine, Message, Mmio, MsiSender};

use super::{IoApic, IsaLine};
use crate::hammer::{Random, Subject, hammer};
use crate::{Pic, sync::lock};

#[derive(Default)]
struct Inbox(Mutex<Vec<Message>>);

impl MsiSender for Inbox {
    fn send(&self, message: Message) {
        lock(&self.0).push(message);
    }
}

struct Rig {
    io_apic: IoApic,
    inbox: Arc<Inbox>,
}

impl Rig {
    fn new() -> Self {
        let inbox = Arc::new(Inbox::default());
        Self { io_apic: IoApic::new(inbox.clone()), inbox }
    }

    fn write_at(&self, offset: u64, value: u32) {
        assert_eq!(self.io_apic.mmio_write(offset, &value.to_le_bytes()), Answer::Done(()));
    }

    fn read(&self, register: u8) -> u32 {
        self.write_at(0, register.into());
        let mut data = [0; 4];
        assert_eq!(self.io_apic.mmio_read(0x10, &mut data), Answer::Done(()));
        u32::from_le_bytes(data)
    }

    fn write(&self, register: u8, value: u32) {
        self.write_at(0, register.into());
        self.write_at(0x10, value);
    }

    fn entry(&self, input: u8, low: u32, destination: u8) {
        self.write(0x11 + 2 * input, u32::from(destination) << 24);
        self.write(0x10 + 2 * input, low);
    }

    fn taken(&self) -> Vec<Message> {
        std::mem::take(&mut *lock(&self.inbox.0))
    }
}

#[test]
fn identifies_itself() {
    let rig = Rig::new();
    assert_eq!(rig.read(1), 0x0017_0020);
    rig.write(0, 0xffff_ffff);
    assert_eq!(rig.read(0), 0x0f00_0000);
    assert_eq!(rig.read(2), 0x0f00_0000);
    assert_eq!(rig.read(0x10), 0x0001_0000, "entries are masked");
    assert_eq!(rig.read(0x40), 0xffff_ffff, "no such register");
    rig.write(1, 0);
    assert_eq!(rig.read(1), 0x0017_0020);
}

#[test]
fn an_edge_sends_a_message() {
    let rig = Rig::new();
    rig.entry(4, 0x0000_0934, 3);
    let line = rig.io_apic.line(4);
    line.set(true);
    line.set(true);
    let [message] = rig.taken()[..] else { panic!("one message for one edge") };
    assert_eq!(message, Message { address: 0xfee0_3004, data: 0x4134 });
    assert!(message.logical() && !message.level_triggered());
    line.pulse();
    assert_eq!(rig.taken(), [], "it was high");
    line.pulse();
    assert_eq!(rig.taken().len(), 1);
}

#[test]
fn an_edge_on_a_masked_input_is_lost() {
    let rig = Rig::new();
    rig.entry(4, 0x1_0034, 0);
    rig.io_apic.line(4).set(true);
    rig.entry(4, 0x0_0034, 0);
    assert_eq!(rig.taken(), []);
}

#[test]
fn a_level_waits_for_its_eoi() {
    let rig = Rig::new();
    rig.entry(20, 0xa041, 1);
    let line = rig.io_apic.line(20);
    line.set(true);
    assert_eq!(rig.taken(), [Message { address: 0xfee0_1000, data: 0xc041 }]);
    assert_eq!(rig.read(0x38), 0xe041, "Remote IRR");
    line.set(false);
    line.set(true);
    assert_eq!(rig.taken(), [], "not again before EOI");
    rig.io_apic.eoi(0x40);
    assert_eq!(rig.taken(), [], "another vector");
    rig.io_apic.eoi(0x41);
    assert_eq!(rig.taken().len(), 1, "still asserted");
    line.set(false);
    rig.write_at(0x40, 0x41);
    assert_eq!(rig.taken(), []);
    assert_eq!(rig.read(0x38), 0xa041);
}

#[test]
fn unmasking_samples_a_level() {
    let rig = Rig::new();
    rig.entry(20, 0x1_a041, 1);
    rig.io_apic.line(20).set(true);
    assert_eq!(rig.taken(), []);
    rig.write(0x38, 0xa041);
    assert_eq!(rig.taken().len(), 1);
    rig.write(0x38, 0xa041);
    assert_eq!(rig.taken(), [], "it is pending already");
}

#[test]
fn switching_to_edge_ends_a_level() {
    let rig = Rig::new();
    rig.entry(20, 0xa041, 1);
    rig.io_apic.line(20).set(true);
    rig.taken();
    rig.write(0x38, 0x1_2041);
    rig.write(0x38, 0xa041);
    assert_eq!(rig.taken().len(), 1);
}

#[test]
fn software_cannot_write_status_bits() {
    let rig = Rig::new();
    rig.entry(5, 0xffff_ffff, 0xff);
    assert_eq!((rig.read(0x1a), rig.read(0x1b)), (0x0001_afff, 0xff00_0000));
}

#[test]
fn an_external_interrupt_is_an_edge() {
    let rig = Rig::new();
    rig.entry(0, 0x8700, 0);
    let line = rig.io_apic.line(0);
    line.pulse();
    line.pulse();
    assert_eq!(rig.taken(), [Message { address: 0xfee0_0000, data: 0x4700 }; 2]);
}

#[test]
fn accesses_of_other_sizes() {
    let rig = Rig::new();
    rig.io_apic.mmio_write(0, &[1]);
    let mut data = [0; 8];
    rig.io_apic.mmio_read(0x10, &mut data);
    assert_eq!(data, [0x20, 0, 0x17, 0, 0xff, 0xff, 0xff, 0xff]);
    rig.io_apic.mmio_read(0x14, &mut data);
    assert_eq!(data, [0xff; 8]);
    let mut byte = [0];
    rig.io_apic.mmio_read(0x10, &mut byte);
    assert_eq!(byte, [0x20]);
}

#[test]
fn isa_interrupts_reach_both_controllers() {
    let rig = Rig::new();
    let intr = RecordingLine::new();
    let pic = Pic::new(intr.clone());
    rig.entry(2, 0x30, 0);
    IsaLine::new(&pic, &rig.io_apic, 0).pulse();
    assert!(intr.level());
    assert_eq!(rig.taken().len(), 1, "interrupt 0 is input 2");
    rig.entry(8, 0x38, 0);
    IsaLine::new(&pic, &rig.io_apic, 8).pulse();
    assert_eq!(rig.taken().len(), 1);
}

#[test]
fn reset_masks_everything() {
    let rig = Rig::new();
    rig.entry(20, 0xa041, 1);
    rig.io_apic.line(20).set(true);
    rig.io_apic.reset();
    assert_eq!(rig.read(0x38), 0x1_0000);
    rig.taken();
    rig.write(0x38, 0xa041);
    assert_eq!(rig.taken().len(), 1, "the line is still asserted");
}

state::conformance!(saves_and_restores, IoApic::new(Arc::new(Inbox::default())), |io: &IoApic| {
    for (register, value) in [(0x00, 0x0500_0000u32), (0x3e, 0x8099), (0x3f, 0x0300_0000)] {
        io.mmio_write(0, &[register]);
        io.mmio_write(0x10, &value.to_le_bytes());
    }
    io.line(23).set(true);
});

impl Subject for Rig {
    fn step(&self, random: &mut Random) -> u64 {
        let offset = random.pick(&[0, 0, 0x10, 0x10, 0x10, 0x40, 0x3c, 0x13]);
        let length = random.pick(&[1, 2, 4, 4, 4, 4, 8]);
        let mut shown = 0;
        match random.below(6) {
            0..2 => self.io_apic.line(random.below(24) as u8).set(random.below(2) == 0),
            2 => self.io_apic.eoi(random.next() as u8 & 0x13),
            3 => {
                let mut data = [0; 8];
                self.io_apic.mmio_read(offset, &mut data[..length]);
                shown = u64::from_le_bytes(data);
            }
            _ => {
                let value = match offset {
                    0 => random.below(0x44),
                    _ => random.next() & random.pick(&[u64::MAX, 0xffff_ffff_fffe_a013]),
                };
                self.io_apic.mmio_write(offset, &value.to_le_bytes()[..length]);
            }
        }
        let messages = self.taken();
        messages.iter().fold(shown, |s, m| s.rotate_left(7) ^ m.address ^ u64::from(m.data) << 32)
    }

    fn device(&self) -> &dyn Device {
        &self.io_apic
    }
}

#[test]
fn survives_a_hostile_guest() {
    hammer(0x8209_3000, |_| Rig::new());
}
