use std::sync::{Arc, Mutex};
use std::time::Duration;

use device::testing::ManualTime;
use device::{Device, GuestClock, Nanos, WallClock};
use state::Persist;

use super::{GuestMemoryWriter, GuestTsc, KvmClock, PvclockScale};
use crate::hammer::{Random, Subject, hammer};
use crate::sync::lock;

const WALL: u32 = 0x4b56_4d00;
const SYSTEM: u32 = 0x4b56_4d01;
const KHZ: u32 = 2_893_202;

struct Ram {
    bytes: Mutex<Vec<u8>>,
    writes: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl Ram {
    fn read<const N: usize>(&self, at: usize) -> [u8; N] {
        lock(&self.bytes)[at..at + N].try_into().unwrap()
    }
}

impl GuestMemoryWriter for Ram {
    fn write(&self, gpa: u64, data: &[u8]) -> bool {
        lock(&self.writes).push((gpa, data.to_vec()));
        let Ok(start) = usize::try_from(gpa) else { return false };
        let mut bytes = lock(&self.bytes);
        let Some(end) = start.checked_add(data.len()) else { return false };
        match bytes.get_mut(start..end) {
            Some(target) => target.copy_from_slice(data),
            None => return false,
        }
        true
    }
}

/// Each vCPU's TSC has an offset of its own.
struct Tsc;

impl GuestTsc for Tsc {
    fn khz(&self) -> u32 {
        KHZ
    }

    fn at(&self, vcpu: usize, time: Nanos) -> u64 {
        (u128::from(time) * u128::from(KHZ) / 1_000_000) as u64 + 1_000_000 * vcpu as u64
    }
}

struct Rig {
    clock: KvmClock,
    ram: Arc<Ram>,
    time: Arc<ManualTime>,
}

impl Rig {
    fn new() -> Self {
        Self::on(&ManualTime::new())
    }

    fn on(time: &Arc<ManualTime>) -> Self {
        let ram = Arc::new(Ram { bytes: Mutex::new(vec![0; 0x1000]), writes: Mutex::default() });
        let clock = KvmClock::new(4, ram.clone(), time.clone(), time.clone(), Arc::new(Tsc));
        Self { clock, ram, time: time.clone() }
    }

    /// What Linux computes from the structure at `at` (`__pvclock_read_cycles`).
    fn guest_time(&self, vcpu: usize, at: usize) -> u64 {
        let version = u32::from_le_bytes(self.ram.read(at));
        assert_eq!(version % 2, 0, "being written");
        let tsc = Tsc.at(vcpu, self.time.now());
        let delta = tsc - u64::from_le_bytes(self.ram.read(at + 8));
        let [shift] = self.ram.read(at + 28);
        let multiplier = u32::from_le_bytes(self.ram.read(at + 24));
        let scale = PvclockScale { shift: shift as i8, multiplier };
        u64::from_le_bytes(self.ram.read(at + 16)) + scale.nanos(delta)
    }
}

#[test]
fn announces_itself() {
    let [signature, features, frequencies] = KvmClock::cpuid(KHZ);
    let text: Vec<u8> = signature.1[1..].iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!(text, b"KVMKVMKVM\0\0\0");
    assert_eq!((signature.0, signature.1[0]), (0x4000_0000, 0x4000_0010));
    assert_eq!(features, (0x4000_0001, [0x0100_000b, 0, 0, 0]));
    assert_eq!(frequencies, (0x4000_0010, [KHZ, 1_000_000, 0, 0]));
}

#[test]
fn the_guest_computes_guest_time_on_every_vcpu() {
    let rig = Rig::new();
    rig.time.advance(123_456_789);
    for vcpu in 0..4 {
        assert!(rig.clock.msr_write(vcpu, SYSTEM, 0x100 * vcpu as u64 + 1));
        rig.time.advance(777_777);
    }
    for pause in [0, 1_000, 1_000_000_000, 3_600_000_000_000] {
        rig.time.advance(pause);
        let now = rig.time.now();
        let times: Vec<_> = (0..4).map(|vcpu| rig.guest_time(vcpu, 0x100 * vcpu)).collect();
        for time in &times {
            assert!((now - now / 1_000_000_000 - 2..=now).contains(time), "{time} at {now}");
        }
        assert!(times.windows(2).all(|w| w[0].abs_diff(w[1]) <= 1), "stable: {times:?}");
        let [flags] = rig.ram.read(29);
        assert_eq!(flags, 1);
    }
}

#[test]
fn the_version_is_odd_while_the_rest_changes() {
    let rig = Rig::new();
    rig.clock.msr_write(0, SYSTEM, 0x40 | 1);
    rig.clock.msr_write(0, SYSTEM, 0x40 | 1);
    let writes: Vec<_> =
        lock(&rig.ram.writes).iter().map(|(gpa, data)| (*gpa, data.len(), data[0])).collect();
    let version = |n| (0x40, 4, n);
    let expected = [version(1), (0x44, 28, 0), version(2), version(3), (0x44, 28, 0), version(4)];
    assert_eq!(writes, expected);
}

#[test]
fn legacy_numbers_are_the_same_registers() {
    let rig = Rig::new();
    assert!(rig.clock.msr_write(1, 0x12, 0x201));
    assert_eq!(rig.clock.msr_read(1, SYSTEM), Some(0x201));
    assert!(rig.clock.msr_write(1, 0x11, 0x300));
    assert_eq!(rig.clock.msr_read(0, WALL), Some(0x300));
    assert_eq!(rig.clock.msr_read(0, 0x12), Some(0));
    assert_eq!(rig.clock.msr_read(0, 0x10), None);
    assert!(!rig.clock.msr_write(0, 0x4b56_4d02, 1));
    assert!(!rig.clock.msr_write(4, SYSTEM, 1), "no such vCPU");
    assert_eq!(rig.clock.msr_read(4, SYSTEM), None);
}

#[test]
fn the_wall_clock_is_that_of_time_zero() {
    let rig = Rig::new();
    let start = rig.time.since_epoch();
    rig.time.advance(5_400_000_000);
    rig.clock.msr_write(0, WALL, 0x80);
    assert_eq!(u32::from_le_bytes(rig.ram.read(0x80)), 2);
    let seconds = u32::from_le_bytes(rig.ram.read(0x84));
    let nanos = u32::from_le_bytes(rig.ram.read(0x88));
    assert_eq!(Duration::new(seconds.into(), nanos), start);
}

#[test]
fn a_disabled_structure_is_not_written() {
    let rig = Rig::new();
    rig.clock.msr_write(0, SYSTEM, 0x100);
    assert!(lock(&rig.ram.writes).is_empty());
}

#[test]
fn an_address_outside_of_memory_is_no_fault() {
    let rig = Rig::new();
    for value in [0x1001, 0xff1, u64::MAX, u64::MAX - 2] {
        assert!(rig.clock.msr_write(0, SYSTEM, value));
        assert!(rig.clock.msr_write(0, WALL, value));
        assert_eq!(rig.clock.msr_read(0, SYSTEM), Some(value));
    }
    assert_eq!(rig.ram.read(0x100), [0; 0x80]);
}

#[test]
fn refresh_rewrites_enabled_structures() {
    let rig = Rig::new();
    rig.clock.msr_write(0, SYSTEM, 0x41);
    rig.clock.msr_write(1, SYSTEM, 0x80);
    rig.time.advance(9_000);
    rig.clock.refresh();
    assert_eq!(u32::from_le_bytes(rig.ram.read(0x40)), 4);
    assert_eq!(u64::from_le_bytes(rig.ram.read(0x50)), 9_000);
    assert_eq!(rig.ram.read(0x80), [0; 32]);
}

#[test]
fn every_rate_has_an_exact_scale() {
    let mut random = Random::new(1);
    assert_eq!(PvclockScale::from_khz(1_000_000), PvclockScale { shift: 1, multiplier: 1 << 31 });
    let rates = (0..10_000).map(|_| random.next() as u32 >> random.below(32));
    for khz in rates.chain([0, 1, 999_999, 1_000_000, 1_000_001, 2_000_000, u32::MAX]) {
        let scale = PvclockScale::from_khz(khz);
        assert!(scale.multiplier >= 1 << 31, "{khz}: {scale:?}");
        let second = u64::from(khz.max(1)) * 1000;
        let nanos = scale.nanos(second);
        assert!((999_999_996..=1_000_000_000).contains(&nanos), "{khz}: {scale:?} {nanos}");
    }
}

#[test]
fn another_number_of_vcpus_is_refused() {
    let rig = Rig::new();
    let section = rig.clock.save("0").unwrap();
    let other = Rig::new();
    let one = KvmClock::new(1, other.ram, other.time.clone(), other.time, Arc::new(Tsc));
    assert!(one.restore(&section).unwrap_err().to_string().contains("4 vCPUs"));
}

state::conformance!(saves_and_restores, Rig::new().clock, |clock: &KvmClock| {
    clock.msr_write(0, WALL, 0x88);
    clock.msr_write(3, SYSTEM, 0x101);
});

impl Subject for Rig {
    fn step(&self, random: &mut Random) -> u64 {
        let vcpu = random.below(6) as usize;
        let msr = random.pick(&[WALL, SYSTEM, SYSTEM, 0x11, 0x12, 0x13]);
        let shown = match random.below(4) {
            0 => self.clock.msr_read(vcpu, msr).unwrap_or(u64::MAX),
            1 => {
                self.clock.refresh();
                0
            }
            _ => {
                let value = random.next() & random.pick(&[u64::MAX, 0xfff, 0x1fff]);
                u64::from(self.clock.msr_write(vcpu, msr, value))
            }
        };
        let writes = std::mem::take(&mut *lock(&self.ram.writes));
        let bytes =
            writes.iter().flat_map(|(gpa, data)| gpa.to_le_bytes().into_iter().chain(data.clone()));
        bytes.fold(shown, |sum, byte| sum.rotate_left(5) ^ u64::from(byte))
    }

    fn device(&self) -> &dyn Device {
        &self.clock
    }
}

#[test]
fn survives_a_hostile_guest() {
    hammer(0x4b56_4d00, Rig::on);
}
