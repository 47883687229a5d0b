use std::sync::Arc;

use device::testing::{ManualTime, RecordingLine};
use device::{Answer, Device, GuestClock, NoLine, PortIo, StopCause, Width};

use super::AcpiPm;
use crate::hammer::{Random, Subject, access, hammer, watch};
use crate::rate::ACPI_TIMER;

const STATUS: u16 = 0x600;
const ENABLE: u16 = 0x602;
const CONTROL: u16 = 0x604;

struct Rig {
    pm: AcpiPm,
    sci: Arc<RecordingLine>,
    time: Arc<ManualTime>,
}

impl Rig {
    fn new() -> Self {
        Self::on(&ManualTime::new())
    }

    fn on(time: &Arc<ManualTime>) -> Self {
        let sci = RecordingLine::new();
        Self { pm: AcpiPm::new(time.clone(), &**time, sci.clone()), sci, time: time.clone() }
    }

    fn read(&self, port: u16, width: Width) -> u32 {
        match self.pm.port_read(port, width) {
            Answer::Done(value) => value,
            other => panic!("{other:?}"),
        }
    }

    fn write(&self, port: u16, value: u32) {
        assert_eq!(self.pm.port_write(port, Width::Word, value), Answer::Done(()));
    }

    /// Moves time to the start of tick `tick` of the timer.
    fn at(&self, tick: u64) {
        self.time.advance(ACPI_TIMER.time_of(tick) - self.time.now());
    }
}

#[test]
fn the_timer_counts_24_bits() {
    let rig = Rig::new();
    rig.at(0x0012_3456);
    assert_eq!(rig.read(0x608, Width::Dword), 0x0012_3456);
    assert_eq!(rig.read(0x609, Width::Byte), 0x34);
    rig.at(0x0100_0007);
    assert_eq!(rig.read(0x608, Width::Dword), 7);
    rig.time.advance(1_000_000_000);
    assert_eq!(rig.read(0x608, Width::Dword), 7 + 3_579_545);
}

#[test]
fn the_timers_overflow_raises_the_sci() {
    let rig = Rig::new();
    rig.at(0x7f_fff0);
    rig.write(ENABLE, 1);
    assert!(!rig.sci.level());
    rig.at(0x80_0000);
    assert!(rig.sci.level());
    assert_eq!(rig.read(STATUS, Width::Word), 1);
    rig.at(0x80_0100);
    rig.write(STATUS, 1);
    assert!(!rig.sci.level());
    rig.at(0x100_0000);
    assert!(rig.sci.level(), "once each half period");
    assert_eq!(rig.sci.edges(), 2);
}

#[test]
fn the_overflow_is_seen_without_its_interrupt() {
    let rig = Rig::new();
    rig.at(0x80_0000);
    assert_eq!(rig.read(STATUS, Width::Word), 1);
    assert_eq!(rig.time.next_deadline(), None, "no timer runs for it");
    rig.write(STATUS, 1);
    assert_eq!(rig.read(STATUS, Width::Word), 0);
    rig.write(ENABLE, 1);
    assert!(!rig.sci.level());
}

#[test]
fn the_power_button_raises_the_sci_until_cleared() {
    let rig = Rig::new();
    rig.pm.press_power_button();
    assert!(!rig.sci.level());
    rig.write(ENABLE, 0x0100);
    assert!(rig.sci.level());
    assert_eq!(rig.read(STATUS, Width::Dword), 0x0100_0100);
    rig.write(STATUS, 0x00ff);
    assert!(rig.sci.level());
    rig.write(STATUS, 0x0100);
    assert!(!rig.sci.level());
    assert_eq!(rig.read(STATUS, Width::Word), 0);
}

#[test]
fn sleep_type_5_powers_off() {
    let rig = Rig::new();
    assert_eq!(rig.read(CONTROL, Width::Word), 1, "always in ACPI mode");
    rig.write(CONTROL, 5 << 10 | 2);
    assert_eq!(rig.read(CONTROL, Width::Word), 5 << 10 | 3);
    for other in [0, 1, 3, 7] {
        rig.write(CONTROL, 1 << 13 | other << 10);
    }
    let off = Answer::StopAfterInstruction((), StopCause::PowerOff);
    assert_eq!(rig.pm.port_write(CONTROL, Width::Word, 1 << 13 | 5 << 10), off);
    assert_eq!(rig.read(CONTROL, Width::Word), 5 << 10 | 1, "SLP_EN reads zero");
    assert_eq!(rig.pm.port_write(CONTROL + 1, Width::Byte, 0x34), off);
}

#[test]
fn general_purpose_events_raise_the_sci() {
    let rig = Rig::new();
    rig.pm.raise_gpe(9);
    assert_eq!(rig.read(0x620, Width::Dword), 1 << 9);
    rig.write(0x628, 1 << 9);
    assert!(rig.sci.level());
    rig.write(0x620, 1 << 9);
    assert!(!rig.sci.level());
}

#[test]
#[should_panic(expected = "no general-purpose event 64")]
fn there_are_64_general_purpose_events() {
    Rig::new().pm.raise_gpe(64);
}

#[test]
fn reserved_bits_stay_zero() {
    let rig = Rig::new();
    rig.write(ENABLE, 0xffff);
    assert_eq!(rig.read(ENABLE, Width::Word), 0x4721);
    rig.write(STATUS, 0xffff);
    assert_eq!(rig.read(0x60c, Width::Word), 0xffff, "no register");
}

#[test]
fn reset_drops_the_sci() {
    let rig = Rig::new();
    rig.write(ENABLE, 0x0101);
    rig.pm.press_power_button();
    rig.pm.reset();
    assert!(!rig.sci.level());
    assert_eq!(rig.read(STATUS, Width::Dword), 0);
    assert_eq!(rig.time.next_deadline(), None);
}

fn conforming() -> AcpiPm {
    let time = ManualTime::new();
    AcpiPm::new(time.clone(), &*time, Arc::new(NoLine))
}

state::conformance!(saves_and_restores, conforming(), |pm: &AcpiPm| {
    pm.port_write(ENABLE, Width::Word, 0x121);
    pm.port_write(CONTROL, Width::Word, 0x1402);
    pm.port_write(0x628, Width::Dword, 0x1234);
    pm.raise_gpe(63);
    pm.press_power_button();
});

impl Subject for Rig {
    fn step(&self, random: &mut Random) -> u64 {
        let ports: Vec<u16> = (0x5ff..0x60d).chain(0x61f..0x631).collect();
        watch(&self.sci, || match random.below(200) {
            0 => {
                self.time.advance(2_000_000_000);
                0
            }
            1 => {
                self.pm.press_power_button();
                0
            }
            2 => {
                self.pm.raise_gpe(random.below(64) as u8);
                0
            }
            _ => access(&self.pm, &ports, random),
        })
    }

    fn device(&self) -> &dyn Device {
        &self.pm
    }
}

#[test]
fn survives_a_hostile_guest() {
    hammer(0xac81, Rig::on);
}
