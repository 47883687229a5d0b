use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

const MSR: u32 = 0x4b56_4d03;

/// 4 KiB of memory, and the writes to it.
#[derive(Default)]
struct Ram(Mutex<Vec<(u64, Vec<u8>)>>);

impl Ram {
    fn writes(&self) -> Vec<(u64, u64)> {
        let number = |data: &[u8]| data.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
        lock(&self.0).drain(..).map(|(gpa, data)| (gpa, number(&data))).collect()
    }
}

impl GuestMemoryWriter for Ram {
    fn write(&self, gpa: u64, data: &[u8]) -> bool {
        let inside = gpa.checked_add(data.len() as u64).is_some_and(|end| end <= 4096);
        if inside {
            lock(&self.0).push((gpa, data.to_vec()));
        }
        inside
    }
}

#[derive(Default)]
struct Stolen(AtomicU64);

impl StolenTime for Stolen {
    fn since_last(&self, _vcpu: usize) -> Nanos {
        self.0.swap(0, Ordering::Relaxed)
    }
}

struct Rig {
    steal: StealTime,
    ram: Arc<Ram>,
    stolen: Arc<Stolen>,
}

impl Rig {
    fn new() -> Self {
        let (ram, stolen) = (Arc::new(Ram::default()), Arc::new(Stolen::default()));
        let steal = StealTime::new(2, Arc::clone(&ram) as _, Arc::clone(&stolen) as _);
        Self { steal, ram, stolen }
    }

    fn pass(&self, vcpu: usize, nanos: u64) -> Vec<(u64, u64)> {
        self.stolen.0.store(nanos, Ordering::Relaxed);
        self.steal.update(vcpu);
        self.ram.writes()
    }
}

#[test]
fn the_structure_counts_from_when_it_is_asked_for() {
    let rig = Rig::new();
    assert_eq!(rig.pass(1, 1_000_000), [], "nobody asks");
    assert!(rig.steal.msr_write(1, MSR, 0x101));
    // The version is odd while the rest changes.
    assert_eq!(rig.ram.writes(), [(0x108, 1), (0x100, 0), (0x108, 2)]);
    assert_eq!(rig.pass(1, 700), [(0x108, 3), (0x100, 700), (0x108, 4)]);
    assert_eq!(rig.pass(1, 0), [], "nothing was stolen");
    assert_eq!(rig.pass(0, 5), [], "the other one does not ask");
    assert_eq!(rig.pass(1, 300), [(0x108, 5), (0x100, 1000), (0x108, 6)]);
    assert!(rig.steal.msr_write(1, MSR, 0));
    assert_eq!(rig.pass(1, 9), []);
}

#[test]
fn registers_are_checked() {
    let rig = Rig::new();
    assert!(rig.steal.msr_write(0, MSR, 0xffff_ffff_ffff_ffc1), "no memory there is no fault");
    assert_eq!(rig.steal.msr_read(0, MSR), Some(0xffff_ffff_ffff_ffc1));
    assert_eq!(rig.pass(0, 1), []);
    for bit in 1..6 {
        assert!(!rig.steal.msr_write(0, MSR, 1 | 1 << bit), "bit {bit} is reserved");
    }
    assert_eq!(rig.steal.msr_read(1, MSR), Some(0));
    assert_eq!(rig.steal.msr_read(2, MSR), None);
    assert_eq!(rig.steal.msr_read(0, MSR - 1), None);
    assert!(!rig.steal.msr_write(2, MSR, 1));
    assert!(!rig.steal.msr_write(0, MSR + 1, 1));
}

#[test]
fn a_reset_forgets_and_a_damaged_state_is_refused() {
    use state::Persist;
    let rig = Rig::new();
    assert!(rig.steal.msr_write(0, MSR, 0x41));
    let section = rig.steal.save("0").unwrap();
    rig.steal.reset();
    assert_eq!(rig.steal.msr_read(0, MSR), Some(0));
    rig.steal.restore(&section).unwrap();
    assert_eq!(rig.steal.msr_read(0, MSR), Some(0x41));
    let other = StealTime::new(3, rig.ram.clone(), rig.stolen);
    assert!(other.restore(&section).unwrap_err().to_string().contains("2 vCPUs"));
}

state::conformance!(saves_and_restores, Rig::new().steal, |steal: &StealTime| {
    steal.msr_write(0, MSR, 0x81);
    steal.msr_write(1, MSR, 0xc1);
    steal.update(1);
});
