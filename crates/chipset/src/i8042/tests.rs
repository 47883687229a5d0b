use std::sync::Arc;

use device::testing::RecordingLine;
use device::{Answer, Device, NoLine, PortIo, StopCause, Width};

use super::I8042;
use crate::hammer::{Random, Subject, access, hammer, watch};

const RESET: Answer<()> = Answer::StopAfterInstruction((), StopCause::Reset);
const DONE: Answer<()> = Answer::Done(());

struct Rig {
    controller: I8042,
    keyboard: Arc<RecordingLine>,
    auxiliary: Arc<RecordingLine>,
}

impl Rig {
    fn new() -> Self {
        let (keyboard, auxiliary) = (RecordingLine::new(), RecordingLine::new());
        let controller = I8042::new(keyboard.clone(), auxiliary.clone());
        Self { controller, keyboard, auxiliary }
    }

    fn read(&self, port: u16) -> u8 {
        match self.controller.port_read(port, Width::Byte) {
            Answer::Done(value) => value as u8,
            other => panic!("{other:?}"),
        }
    }

    fn write(&self, port: u16, value: u8) -> Answer<()> {
        self.controller.port_write(port, Width::Byte, value.into())
    }

    /// Sends a command with its data and reads the answer, as a polling driver does.
    fn command(&self, command: u8, data: Option<u8>) -> Option<u8> {
        assert_eq!(self.read(0x64) & 2, 0, "always ready");
        assert_eq!(self.write(0x64, command), DONE);
        if let Some(data) = data {
            assert_eq!(self.write(0x60, data), DONE);
        }
        (self.read(0x64) & 1 != 0).then(|| self.read(0x60))
    }
}

#[test]
fn every_way_to_reset() {
    let rig = Rig::new();
    assert_eq!(rig.write(0x64, 0xfe), RESET);
    assert_eq!(rig.write(0x64, 0xff), DONE, "pulses nothing");
    rig.write(0x64, 0xd1);
    assert_eq!(rig.write(0x60, 0xfe), RESET, "output port bit 0 low");
    assert_eq!(rig.write(0x92, 0x02), DONE);
    assert_eq!(rig.write(0x92, 0x03), RESET);
    assert_eq!(rig.write(0xcf9, 0x02), DONE);
    assert_eq!(rig.write(0xcf9, 0x06), RESET);
    assert_eq!(rig.write(0xcf9, 0x0e), RESET);
    assert_eq!(rig.read(0xcf9), 0x0a);
}

/// The steps of Linux's `i8042_controller_check`, `_selftest`, `_init` and `i8042_check_aux`.
#[test]
fn linux_finds_a_controller() {
    let rig = Rig::new();
    assert_eq!(rig.read(0x64) & 1, 0, "nothing to flush");
    assert_eq!(rig.command(0xaa, None), Some(0x55));
    assert_ne!(rig.read(0x64) & 4, 0);
    let byte = rig.command(0x20, None).unwrap();
    assert_eq!(rig.command(0x60, Some(byte | 0x10)), None);
    assert_eq!(rig.command(0x20, None), Some(byte | 0x10));
    rig.write(0x64, 0xd3);
    rig.write(0x60, 0x5a);
    assert_eq!(rig.read(0x64) & 0x21, 0x21, "looped back as from the auxiliary device");
    assert_eq!(rig.read(0x60), 0x5a);
    rig.command(0xa7, None);
    assert_ne!(rig.command(0x20, None).unwrap() & 0x20, 0);
    rig.command(0xa8, None);
    assert_eq!(rig.command(0x20, None).unwrap() & 0x20, 0);
    assert_eq!((rig.command(0xa9, None), rig.command(0xab, None)), (Some(0), Some(0)));
}

#[test]
fn missing_devices_are_reported_at_once() {
    let rig = Rig::new();
    rig.command(0x60, Some(0x03));
    rig.write(0x60, 0xf2);
    assert!(rig.keyboard.level() && !rig.auxiliary.level());
    assert_eq!(rig.read(0x64) & 0x61, 0x41, "time-out, from the keyboard");
    assert_eq!(rig.read(0x60), 0xfe);
    assert!(!rig.keyboard.level());
    rig.write(0x64, 0xd4);
    rig.write(0x60, 0xf2);
    assert!(!rig.keyboard.level() && rig.auxiliary.level());
    assert_eq!(rig.read(0x64) & 0x61, 0x61);
    assert_eq!(rig.read(0x60), 0xfe);
    assert!(!rig.auxiliary.level());
}

#[test]
fn interrupts_follow_their_enables() {
    let rig = Rig::new();
    rig.write(0x60, 0xff);
    assert!(!rig.keyboard.level());
    rig.write(0x64, 0x60);
    rig.write(0x60, 0x01);
    assert!(rig.keyboard.level());
    assert_eq!(rig.read(0x60), 0xfe);
    assert!(!rig.keyboard.level());
}

#[test]
fn the_a20_gate_is_shown_in_both_places() {
    let rig = Rig::new();
    assert_eq!(rig.read(0x92) & 2, 2);
    rig.write(0x92, 0);
    assert_eq!(rig.command(0xd0, None).unwrap() & 3, 1);
    assert_eq!(rig.command(0xd1, Some(0xdf)), None);
    assert_eq!(rig.read(0x92), 2);
    rig.command(0xdd, None);
    assert_eq!(rig.read(0x92), 0);
}

#[test]
fn the_controllers_memory_keeps_bytes() {
    let rig = Rig::new();
    for at in 1..32 {
        rig.command(0x60 + at, Some(at * 3));
    }
    for at in 1..32 {
        assert_eq!(rig.command(0x20 + at, None), Some(at * 3));
    }
}

#[test]
fn a_flood_is_bounded_so_that_a_flush_ends() {
    let rig = Rig::new();
    for _ in 0..1000 {
        rig.write(0x60, 0);
    }
    // Linux gives up after 16 bytes.
    assert!((0..16).any(|_| {
        rig.read(0x60);
        rig.read(0x64) & 1 == 0
    }));
}

#[test]
fn the_status_tells_commands_from_data() {
    let rig = Rig::new();
    rig.write(0x64, 0xad);
    assert_eq!(rig.read(0x64) & 8, 8);
    rig.write(0x60, 0);
    assert_eq!(rig.read(0x64) & 8, 0);
    assert_eq!(rig.controller.port_read(0x60, Width::Word), Answer::Done(0xfffe));
}

#[test]
fn reset_empties_the_buffer() {
    let rig = Rig::new();
    rig.command(0x60, Some(0x03));
    rig.write(0x60, 0);
    rig.controller.reset();
    assert!(!rig.keyboard.level());
    assert_eq!(rig.read(0x64), 0x10);
}

state::conformance!(
    saves_and_restores,
    I8042::new(Arc::new(NoLine), Arc::new(NoLine)),
    |controller: &I8042| {
        for (port, value) in [(0x64, 0x65), (0x60, 0x77), (0x60, 1), (0x64, 0xd3), (0x60, 2)] {
            controller.port_write(port, Width::Byte, value);
        }
        controller.port_write(0xcf9, Width::Byte, 2);
        controller.port_write(0x64, Width::Byte, 0xd4);
    }
);

impl Subject for Rig {
    fn step(&self, random: &mut Random) -> u64 {
        let ports = [0x60, 0x60, 0x64, 0x64, 0x92, 0xcf9, 0xcf8, 0x61];
        watch(&self.auxiliary, || {
            watch(&self.keyboard, || access(&self.controller, &ports, random)).rotate_left(1)
        })
    }

    fn device(&self) -> &dyn Device {
        &self.controller
    }
}

#[test]
fn survives_a_hostile_guest() {
    hammer(0x8042, |_| Rig::new());
}
