use std::sync::Arc;

use device::testing::{ManualTime, RecordingLine};
use device::{Answer, Device, GuestClock, NoLine, PortIo, Width};
use state::Persist;

use super::Pit;
use crate::hammer::{Random, Subject, access, hammer, watch};
use crate::rate::PIT;

const MS: u64 = 1_000_000;

struct Rig {
    pit: Pit,
    line: Arc<RecordingLine>,
    time: Arc<ManualTime>,
}

impl Rig {
    fn new() -> Self {
        Self::on(&ManualTime::new())
    }

    fn on(time: &Arc<ManualTime>) -> Self {
        let line = RecordingLine::new();
        let pit = Pit::new(time.clone(), &**time, line.clone());
        Self { pit, line, time: time.clone() }
    }

    fn read(&self, port: u16) -> u8 {
        match self.pit.port_read(port, Width::Byte) {
            Answer::Done(value) => value as u8,
            other => panic!("{other:?}"),
        }
    }

    fn write(&self, port: u16, value: u8) {
        assert_eq!(self.pit.port_write(port, Width::Byte, value.into()), Answer::Done(()));
    }

    fn program(&self, counter: u16, mode: u8, count: u16) {
        self.write(0x43, (counter as u8) << 6 | 0x30 | mode << 1);
        self.write(0x40 + counter, count as u8);
        self.write(0x40 + counter, (count >> 8) as u8);
    }

    /// Moves time to the start of tick `tick`.
    fn at(&self, tick: u64) {
        self.time.advance(PIT.time_of(tick) - self.time.now());
    }

    fn count(&self, counter: u16) -> u16 {
        self.write(0x43, (counter as u8) << 6);
        u16::from_le_bytes([self.read(0x40 + counter), self.read(0x40 + counter)])
    }

    fn status(&self, counter: u16) -> u8 {
        self.write(0x43, 0xe0 | 2 << counter);
        self.read(0x40 + counter)
    }

    fn out2(&self) -> bool {
        self.read(0x61) & 0x20 != 0
    }

    /// Levels of OUT2 at the given ticks.
    fn outputs(&self, ticks: std::ops::Range<u64>) -> Vec<bool> {
        ticks
            .map(|tick| {
                self.at(tick);
                self.out2()
            })
            .collect()
    }
}

/// A waveform written as the data sheet draws it.
fn wave(drawn: &str) -> Vec<bool> {
    drawn.chars().filter(|c| *c != ' ').map(|c| c == '#').collect()
}

#[test]
fn mode_0_rises_at_terminal_count() {
    let rig = Rig::new();
    rig.write(0x61, 1);
    rig.program(2, 0, 4);
    assert_eq!(rig.outputs(0..9), wave("_____ ####"), "N + 1 ticks after the count was written");
    rig.at(10);
    assert_eq!(rig.count(2), 0xfffb, "it counts on");
}

#[test]
fn mode_0_pauses_while_the_gate_is_low() {
    let rig = Rig::new();
    rig.program(2, 0, 4);
    rig.at(10);
    assert_eq!(rig.count(2), 4);
    rig.write(0x61, 1);
    rig.at(12);
    assert_eq!(rig.count(2), 2);
    rig.write(0x61, 0);
    rig.at(100);
    assert_eq!(rig.count(2), 2);
    rig.write(0x61, 1);
    assert_eq!(rig.outputs(100..104), wave("__##"));
}

#[test]
fn mode_1_is_triggered_by_the_gate() {
    let rig = Rig::new();
    rig.program(2, 1, 3);
    assert_eq!(rig.outputs(0..3), wave("###"));
    rig.write(0x61, 1);
    assert_eq!(rig.outputs(3..8), wave("___##"));
    rig.write(0x61, 0);
    rig.write(0x61, 1);
    rig.at(9);
    rig.write(0x61, 0);
    rig.write(0x61, 1);
    assert_eq!(rig.outputs(9..15), wave("____##"), "retriggered");
}

#[test]
fn mode_2_pulses_once_a_period() {
    let rig = Rig::new();
    rig.write(0x61, 1);
    rig.program(2, 2, 3);
    assert_eq!(rig.outputs(0..10), wave("# ##_ ##_ ##_"));
    rig.write(0x61, 0);
    assert!(rig.out2(), "a low gate takes the output up");
    rig.at(20);
    rig.write(0x61, 1);
    assert_eq!(rig.outputs(20..25), wave("# ##_ #"), "a rising gate starts over");
}

#[test]
fn mode_2_takes_a_new_count_at_the_end_of_the_period() {
    let rig = Rig::new();
    rig.write(0x61, 1);
    rig.program(2, 2, 5);
    rig.at(3);
    rig.write(0x42, 2);
    rig.write(0x42, 0);
    assert_eq!(rig.status(2) & 0x40, 0x40, "null count");
    assert_eq!(rig.outputs(3..12), wave("##_ #_#_#_"));
    assert_eq!(rig.status(2) & 0x40, 0);
}

#[test]
fn mode_3_is_a_square_wave() {
    for (count, drawn) in [(4, "# ##__ ##__ ##__"), (5, "# ###__ ###__ ###__")] {
        let rig = Rig::new();
        rig.write(0x61, 1);
        rig.program(2, 3, count);
        let wave = wave(drawn);
        assert_eq!(rig.outputs(0..wave.len() as u64), wave, "count {count}");
    }
}

#[test]
fn mode_3_counts_by_two_and_takes_over_in_its_middle() {
    let rig = Rig::new();
    rig.write(0x61, 1);
    rig.program(2, 3, 6);
    let counts: Vec<u16> = (1..8)
        .map(|tick| {
            rig.at(tick);
            rig.count(2)
        })
        .collect();
    assert_eq!(counts, [6, 4, 2, 6, 4, 2, 6]);
    rig.write(0x42, 4);
    rig.write(0x42, 0);
    assert_eq!(rig.outputs(7..16), wave("### __ ## __"));
}

#[test]
fn mode_4_strobes_for_one_tick() {
    let rig = Rig::new();
    rig.write(0x61, 1);
    rig.program(2, 4, 3);
    assert_eq!(rig.outputs(0..8), wave("#### _ ###"));
}

#[test]
fn mode_5_strobes_after_a_trigger() {
    let rig = Rig::new();
    rig.program(2, 5, 2);
    rig.at(5);
    rig.write(0x61, 1);
    assert_eq!(rig.outputs(5..10), wave("### _ #"));
}

#[test]
fn counts_in_bcd() {
    let rig = Rig::new();
    rig.write(0x61, 1);
    rig.write(0x43, 0xb1);
    rig.write(0x42, 0x00);
    rig.write(0x42, 0x10);
    rig.at(2);
    assert_eq!(rig.count(2), 0x0999);
    rig.at(1001 + 1);
    assert_eq!(rig.count(2), 0x9999, "wraps at 10,000");
}

#[test]
fn single_byte_access_modes() {
    let rig = Rig::new();
    rig.write(0x61, 1);
    rig.write(0x43, 0x90);
    rig.write(0x42, 0x20);
    rig.at(1 + 0x10);
    assert_eq!((rig.read(0x42), rig.read(0x42)), (0x10, 0x10));
    rig.write(0x43, 0xa0);
    rig.write(0x42, 0x20);
    rig.at(1 + 0x10 + 1 + 0x100);
    assert_eq!(rig.read(0x42), 0x1f);
}

#[test]
fn a_latched_count_stays_until_it_was_read() {
    let rig = Rig::new();
    rig.program(0, 2, 0);
    rig.at(1 + 0x234);
    rig.write(0x43, 0x00);
    rig.at(5000);
    rig.write(0x43, 0x00);
    let latched = 0xffff - 0x234 + 1;
    assert_eq!(u16::from_le_bytes([rig.read(0x40), rig.read(0x40)]), latched);
    assert_ne!(rig.count(0), latched);
}

#[test]
fn read_back_latches_status_and_count_of_several_counters() {
    let rig = Rig::new();
    rig.program(0, 2, 1000);
    rig.write(0x61, 1);
    rig.program(2, 3, 0x1234);
    rig.at(11);
    rig.write(0x43, 0xca);
    rig.at(500);
    assert_eq!(rig.read(0x40), 0xb4, "status before the count");
    assert_eq!(u16::from_le_bytes([rig.read(0x40), rig.read(0x40)]), 990);
    assert_eq!(rig.read(0x42), 0xb6);
    assert_eq!(u16::from_le_bytes([rig.read(0x42), rig.read(0x42)]), 0x1234 - 20);
}

#[test]
fn the_periodic_interrupt_keeps_exact_time() {
    let rig = Rig::new();
    rig.program(0, 2, 1193);
    let before = rig.line.edges();
    for _ in 0..1000 {
        rig.time.advance(10 * MS);
    }
    let ticks = PIT.ticks_at(10_000 * MS);
    assert_eq!(rig.line.edges() - before, (ticks - 1) / 1193);
}

#[test]
fn a_one_shot_interrupts_once() {
    let rig = Rig::new();
    rig.program(0, 0, 11932);
    assert!(!rig.line.level());
    rig.time.advance(11 * MS);
    assert!(rig.line.level());
    rig.time.advance(100 * MS);
    assert_eq!(rig.line.edges(), 1);
    assert_eq!(rig.time.next_deadline(), None, "nothing left to do");
}

#[test]
fn a_strobe_interrupts_at_its_end() {
    let rig = Rig::new();
    rig.write(0x43, 0x38);
    let before = rig.line.edges();
    rig.write(0x40, 100);
    rig.write(0x40, 0);
    rig.at(101);
    assert_eq!(rig.line.edges(), before);
    rig.at(102);
    assert_eq!(rig.line.edges(), before + 1);
}

#[test]
fn late_ticks_are_made_up_for() {
    let rig = Rig::new();
    rig.program(0, 2, 11932);
    // The host did not get to its timers for five periods.
    let late = ManualTime::new();
    late.advance(55 * MS);
    let restored = Rig::on(&late);
    restored.pit.restore(&rig.pit.save("0").unwrap()).unwrap();
    let edges = restored.line.edges();
    late.advance(1);
    assert_eq!(restored.line.edges() - edges, 1, "not a storm");
    late.advance(45 * MS);
    assert_eq!(restored.line.edges() - edges, 9, "all ticks of 100 ms");
    late.advance(100 * MS);
    assert_eq!(restored.line.edges() - edges, 19, "and no more than those");
}

#[test]
fn owed_ticks_are_saved() {
    let rig = Rig::new();
    rig.program(0, 2, 11932);
    let late = ManualTime::new();
    late.advance(55 * MS);
    let catching_up = Rig::on(&late);
    catching_up.pit.restore(&rig.pit.save("0").unwrap()).unwrap();
    late.advance(1);
    let restored = Rig::on(&late);
    restored.pit.restore(&catching_up.pit.save("0").unwrap()).unwrap();
    let edges = restored.line.edges();
    late.advance(45 * MS);
    assert_eq!(restored.line.edges() - edges, 8, "nine ticks of 100 ms, one came before");
}

#[test]
fn a_tiny_period_is_no_storm() {
    for (mode, count) in [(2, 1), (2, 2), (3, 2), (3, 3)] {
        let rig = Rig::new();
        rig.program(0, mode, count);
        rig.time.advance(100 * MS);
        assert!(rig.line.edges() <= 1001, "{} edges", rig.line.edges());
    }
}

/// `quick_pit_calibrate` of Linux: counter 2 in mode 0, its high byte read over and over.
#[test]
fn linux_calibrates_by_it() {
    let rig = Rig::new();
    rig.write(0x61, rig.read(0x61) & !2 | 1);
    rig.write(0x43, 0xb0);
    rig.write(0x42, 0xff);
    rig.write(0x42, 0xff);
    let mut highs = Vec::new();
    while highs.len() < 20 {
        rig.time.advance(2_000);
        rig.read(0x42);
        let high = rig.read(0x42);
        if highs.last() != Some(&high) {
            highs.push(high);
        }
    }
    assert!(highs.windows(2).all(|w| w[0] == w[1] + 1), "{highs:?}");
    assert!((19 * 214_000..20 * 216_000).contains(&rig.time.now()));
}

#[test]
fn port_61_toggles_the_refresh_bit() {
    let rig = Rig::new();
    let levels: Vec<bool> = (0..72)
        .map(|t| {
            rig.at(t);
            rig.read(0x61) & 0x10 != 0
        })
        .collect();
    assert_eq!(levels.iter().filter(|l| **l).count(), 36);
    assert_eq!(levels.windows(2).filter(|w| w[0] != w[1]).count(), 3);
    rig.write(0x61, 0xff);
    assert_eq!(rig.read(0x61) & 0xcf, 0x0f, "status bits are read-only");
}

#[test]
fn the_control_word_cannot_be_read() {
    assert_eq!(Rig::new().read(0x43), 0xff);
}

#[test]
fn reset_stops_everything() {
    let rig = Rig::new();
    rig.program(0, 2, 1000);
    rig.pit.reset();
    assert!(!rig.line.level());
    assert_eq!(rig.time.next_deadline(), None);
}

fn conforming() -> Pit {
    let time = ManualTime::new();
    time.advance(77_777);
    Pit::new(time.clone(), &*time, Arc::new(NoLine))
}

state::conformance!(saves_and_restores, conforming(), |pit: &Pit| {
    for (port, value) in [(0x43, 0x36), (0x40, 0x34), (0x40, 0x12), (0x40, 0x99), (0x40, 0x22)] {
        pit.port_write(port, Width::Byte, value);
    }
    for (port, value) in [(0x43, 0xb1), (0x42, 0x34), (0x42, 0x12), (0x61, 1), (0x43, 0xce)] {
        pit.port_write(port, Width::Byte, value);
    }
});

impl Subject for Rig {
    fn step(&self, random: &mut Random) -> u64 {
        let ports = [0x40, 0x40, 0x41, 0x42, 0x42, 0x43, 0x43, 0x61, 0x60];
        watch(&self.line, || access(&self.pit, &ports, random))
    }

    fn device(&self) -> &dyn Device {
        &self.pit
    }
}

#[test]
fn survives_a_hostile_guest() {
    hammer(0x8254, Rig::on);
}
