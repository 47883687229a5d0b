use std::sync::Arc;

use device::testing::{ManualTime, RecordingLine};
use device::{Answer, Device, NoLine, PortIo, Width};
use state::Persist;

use super::{MemorySize, Rtc};
use crate::hammer::{Random, Subject, access, hammer, watch};

const MS: u64 = 1_000_000;
const S: u64 = 1_000 * MS;
const A: u8 = 0x0a;
const B: u8 = 0x0b;
const C: u8 = 0x0c;
const D: u8 = 0x0d;
const MEMORY: MemorySize = MemorySize { below_4g: 0x8000_0000, above_4g: 0x1_0000_0000 };

struct Rig {
    rtc: Rtc,
    line: Arc<RecordingLine>,
    time: Arc<ManualTime>,
}

impl Rig {
    /// At 2026-01-01 00:00:00, a Thursday.
    fn new() -> Self {
        Self::on(&ManualTime::new())
    }

    fn on(time: &Arc<ManualTime>) -> Self {
        let line = RecordingLine::new();
        let rtc = Rtc::new(time.clone(), time.clone(), &**time, line.clone(), MEMORY);
        Self { rtc, line, time: time.clone() }
    }

    fn read(&self, cell: u8) -> u8 {
        self.rtc.port_write(0x70, Width::Byte, cell.into());
        match self.rtc.port_read(0x71, Width::Byte) {
            Answer::Done(value) => value as u8,
            other => panic!("{other:?}"),
        }
    }

    fn write(&self, cell: u8, value: u8) {
        self.rtc.port_write(0x70, Width::Byte, cell.into());
        assert_eq!(self.rtc.port_write(0x71, Width::Byte, value.into()), Answer::Done(()));
    }

    /// Century, year, month, day, hours, minutes, seconds.
    fn date(&self) -> [u8; 7] {
        [0x32, 9, 8, 7, 4, 2, 0].map(|cell| self.read(cell))
    }
}

#[test]
fn shows_the_wall_clock_in_bcd() {
    let rig = Rig::new();
    assert_eq!(rig.read(D), 0x80);
    rig.time.advance((12 * 3600 + 34 * 60 + 56) * S);
    assert_eq!(rig.date(), [0x20, 0x26, 0x01, 0x01, 0x12, 0x34, 0x56]);
    assert_eq!(rig.read(6), 5, "a Thursday");
}

#[test]
fn shows_binary_and_twelve_hours() {
    let rig = Rig::new();
    rig.time.advance((12 * 3600 + 34 * 60 + 56) * S);
    rig.write(B, 0x04);
    assert_eq!(rig.date(), [20, 26, 1, 1, 0x80 | 12, 34, 56]);
    rig.write(B, 0x00);
    assert_eq!(rig.read(4), 0x92);
}

/// The steps of Linux's `mc146818_set_time`.
#[test]
fn setting_the_time_stays_set() {
    let rig = Rig::new();
    rig.time.advance(300 * MS);
    rig.write(B, 0x82);
    rig.write(A, 0x76);
    for (cell, value) in
        [(9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x58), (0x32, 0x19)]
    {
        rig.write(cell, value);
    }
    rig.time.advance(10 * S);
    assert_eq!(rig.date(), [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x58], "it stands still");
    rig.write(B, 0x02);
    rig.write(A, 0x26);
    rig.time.advance(499 * MS);
    assert_eq!(rig.read(0), 0x58);
    rig.time.advance(2 * MS);
    assert_eq!(rig.read(0), 0x59, "half a second after the divider was released");
    rig.time.advance(S);
    assert_eq!(rig.date(), [0x20, 0x00, 0x01, 0x01, 0, 0, 0]);
    assert_eq!(rig.read(6), 7, "a Saturday");
}

#[test]
fn set_alone_keeps_the_phase() {
    let rig = Rig::new();
    rig.time.advance(300 * MS);
    rig.write(B, 0x82);
    rig.write(0, 0x30);
    rig.time.advance(5 * S);
    rig.write(B, 0x02);
    assert_eq!(rig.read(0), 0x30);
    rig.time.advance(699 * MS);
    assert_eq!(rig.read(0), 0x30);
    rig.time.advance(MS);
    assert_eq!(rig.read(0), 0x31);
}

#[test]
fn a_field_can_be_set_while_the_clock_runs() {
    let rig = Rig::new();
    rig.time.advance(7 * S);
    rig.write(2, 0x45);
    assert_eq!(rig.date()[4..], [0x00, 0x45, 0x07]);
}

#[test]
fn impossible_dates_carry_over() {
    let rig = Rig::new();
    rig.write(B, 0x82);
    rig.write(8, 0x02);
    rig.write(7, 0x30);
    rig.write(0, 0xff);
    rig.write(B, 0x02);
    assert_eq!(rig.date()[2..4], [0x03, 0x02]);
}

#[test]
fn update_in_progress_announces_the_new_time() {
    let rig = Rig::new();
    rig.time.advance(S - 2_229_000);
    assert_eq!(rig.read(A), 0x26);
    rig.time.advance(1_000);
    assert_eq!(rig.read(A), 0xa6);
    rig.time.advance(2_227_999);
    assert_eq!((rig.read(A), rig.read(0)), (0xa6, 0));
    rig.time.advance(1);
    assert_eq!((rig.read(A), rig.read(0)), (0x26, 1));
    rig.write(B, 0x82);
    rig.time.advance(S - 1_000);
    assert_eq!(rig.read(A), 0x26, "no updates while SET is set");
}

#[test]
fn update_ended_interrupts_each_second() {
    let rig = Rig::new();
    rig.time.advance(250 * MS);
    rig.write(B, 0x12);
    for second in 1..4 {
        rig.time.advance(750 * MS);
        assert!(rig.line.level());
        assert_eq!(rig.line.edges(), second);
        assert_eq!(rig.read(C) & 0xb0, 0x90);
        assert!(!rig.line.level());
        rig.time.advance(250 * MS);
        assert!(!rig.line.level());
    }
    rig.write(B, 0x92);
    assert_eq!(rig.read(B), 0x82, "SET clears UIE");
}

#[test]
fn flags_are_set_without_interrupts() {
    let rig = Rig::new();
    rig.time.advance(S);
    assert_eq!(rig.time.next_deadline(), None, "an idle clock costs nothing");
    assert_eq!(rig.read(C), 0x50, "periodic and update, no alarm");
    assert_eq!(rig.read(C), 0);
}

#[test]
fn the_alarm_interrupts_when_it_is_due() {
    let rig = Rig::new();
    for (cell, value) in [(5, 0x01), (3, 0x30), (1, 0x15)] {
        rig.write(cell, value);
    }
    rig.write(B, 0x22);
    rig.time.advance((3600 + 30 * 60 + 15) * S - 1);
    assert!(!rig.line.level());
    rig.time.advance(1);
    assert!(rig.line.level());
    assert_eq!(rig.read(C) & 0xa0, 0xa0);
    rig.time.advance(86_399 * S);
    assert_eq!(rig.line.edges(), 1);
    rig.time.advance(S);
    assert_eq!(rig.line.edges(), 2, "daily");
}

#[test]
fn dont_care_alarms_repeat() {
    let rig = Rig::new();
    for (cell, value) in [(5, 0xff), (3, 0xc0), (1, 0x15)] {
        rig.write(cell, value);
    }
    rig.write(B, 0x22);
    for _ in 0..10 {
        rig.time.advance(60 * S);
        rig.read(C);
    }
    assert_eq!(rig.line.edges(), 10);
}

#[test]
fn the_periodic_interrupt_has_its_rate() {
    for (rate, hertz) in [(6, 1024), (15, 2), (3, 8192), (1, 256), (2, 128)] {
        let rig = Rig::new();
        rig.write(A, 0x20 | rate);
        rig.write(B, 0x42);
        for _ in 0..100_000 {
            rig.time.advance(S / 50_000);
            if rig.line.level() {
                assert_eq!(rig.read(C) & 0xc0, 0xc0);
            }
        }
        let expected = 2 * hertz;
        assert!((expected - 1..=expected).contains(&rig.line.edges()), "rate {rate}");
    }
}

#[test]
fn a_pending_interrupt_needs_no_timer() {
    let rig = Rig::new();
    rig.write(A, 0x23);
    rig.write(B, 0x72);
    rig.time.advance(MS);
    assert!(rig.line.level());
    assert_eq!(rig.time.next_deadline(), None);
    rig.read(C);
    assert!(rig.time.next_deadline().is_some());
}

#[test]
fn cmos_memory_keeps_bytes_and_tells_memory_sizes() {
    let rig = Rig::new();
    for cell in (0x0e..0x30).chain(0x33..0x80) {
        rig.write(cell, cell ^ 0x55);
    }
    rig.rtc.reset();
    for cell in (0x0e..0x30).chain(0x33..0x80) {
        assert_eq!(rig.read(cell), cell ^ 0x55);
    }
    let cells = [0x15, 0x16, 0x17, 0x18, 0x30, 0x31, 0x34, 0x35, 0x5b, 0x5c, 0x5d];
    let sizes = cells.map(|cell| Rig::new().read(cell));
    assert_eq!(sizes, [0x80, 0x02, 0xff, 0xff, 0xff, 0xff, 0x00, 0x7f, 0, 0, 1]);
}

#[test]
fn port_70_masks_nmi_and_cannot_be_read() {
    let rig = Rig::new();
    assert!(!rig.rtc.nmi_masked());
    rig.rtc.port_write(0x70, Width::Byte, 0x8d);
    assert!(rig.rtc.nmi_masked());
    assert_eq!(rig.rtc.port_read(0x70, Width::Word), Answer::Done(0x80ff));
}

#[test]
fn reset_disables_interrupts_and_keeps_the_time() {
    let rig = Rig::new();
    rig.write(2, 0x45);
    rig.write(B, 0x76);
    rig.time.advance(S);
    assert!(rig.line.level());
    rig.rtc.reset();
    assert!(!rig.line.level());
    assert_eq!((rig.read(B), rig.read(C), rig.read(2)), (0x06, 0, 45));
    assert_eq!(rig.time.next_deadline(), None);
}

#[test]
fn an_alarm_that_passed_while_suspended_is_due_after_the_restore() {
    let rig = Rig::new();
    rig.write(3, 0x01);
    rig.write(B, 0x22);
    let section = rig.rtc.save("0").unwrap();
    let later = ManualTime::new();
    later.advance(90 * S);
    let restored = Rig::on(&later);
    restored.rtc.restore(&section).unwrap();
    // Before time goes on, the same is saved again.
    assert_eq!(restored.rtc.save("0").unwrap(), section);
    later.advance(1);
    assert!(restored.line.level());
}

fn conforming() -> Rtc {
    let time = ManualTime::new();
    Rtc::new(time.clone(), time.clone(), &*time, Arc::new(NoLine), MemorySize::default())
}

state::conformance!(saves_and_restores, conforming(), |rtc: &Rtc| {
    for value in [0x760a, 0x820b, 0x1700, 0x9932, 0x1244, 0x260a, 0x720b] {
        rtc.port_write(0x70, Width::Word, value);
    }
});

impl Subject for Rig {
    fn step(&self, random: &mut Random) -> u64 {
        watch(&self.line, || match random.below(40) {
            0 => {
                self.time.advance(random.below(100_000) * S);
                0
            }
            1..10 => {
                self.write(random.pick(&[A, B, C, 0, 1, 3, 4, 5, 9, 0x32]), random.next() as u8);
                0
            }
            _ => access(&self.rtc, &[0x6f, 0x70, 0x71, 0x71, 0x72], random),
        })
    }

    fn device(&self) -> &dyn Device {
        &self.rtc
    }
}

#[test]
fn survives_a_hostile_guest() {
    hammer(0x0014_6818, Rig::on);
}
