//! Orders of loads and stores that x86 allows and forbids (SDM vol. 3A 9.2.3;
//! names as in Sewell et al., x86-TSO, CACM 53/7, and Alglave et al., Herding
//! Cats, TOPLAS 36/2).
//!
//! A test runs on many slots: each processor does its part on one slot after
//! the other, beside the others as far as these run at the same time, and what
//! they saw is looked at when all are through.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use kit::smp::{self, Barrier};
use kit::{Global, Report, println};

/// Slots of a batch, and batches of a test.
const SLOTS: usize = 64;
const BATCHES: usize = 200;
/// Looks at where the others are before a processor goes on alone.
const MEETING: usize = 100;

/// A word in a cache line of its own.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line(u64);

/// A counter in a cache line of its own.
#[repr(C, align(64))]
struct Place(AtomicU64);

/// Two words that processors share, and what each of them saw, twice.
#[derive(Clone, Copy)]
struct Slot {
    x: Line,
    y: Line,
    seen: [[Line; 2]; 4],
}

const EMPTY: Slot = Slot { x: Line(0), y: Line(0), seen: [[Line(0); 2]; 4] };

static ARENA: Global<[Slot; SLOTS]> = Global::new([EMPTY; SLOTS]);
/// The slot that each processor is at, from 1.
static PLACES: [Place; 4] = [const { Place(AtomicU64::new(0)) }; 4];
static BARRIER: Barrier = Barrier::new();
static CURRENT: AtomicUsize = AtomicUsize::new(0);
static FOUND: AtomicUsize = AtomicUsize::new(0);

/// Loads, stores and fences that the compiler leaves as they are.
struct Access(*mut Slot);

impl Access {
    fn x(&self) -> *mut u64 {
        // SAFETY: a field of a live slot.
        unsafe { &raw mut (*self.0).x.0 }
    }

    fn y(&self) -> *mut u64 {
        // SAFETY: as in `x`.
        unsafe { &raw mut (*self.0).y.0 }
    }

    fn saw(&self, cpu: usize, values: [u64; 2]) {
        for (number, value) in values.into_iter().enumerate() {
            // SAFETY: as in `x`; the processor's own place.
            unsafe { (&raw mut (*self.0).seen[cpu][number].0).write_volatile(value) };
        }
    }
}

fn load(at: *mut u64) -> u64 {
    // SAFETY: `at` comes from `Access`.
    unsafe { at.read_volatile() }
}

fn store(at: *mut u64, value: u64) {
    // SAFETY: as in `load`.
    unsafe { at.write_volatile(value) }
}

fn mfence() {
    // SAFETY: orders accesses and nothing else.
    unsafe { asm!("mfence", options(nostack, preserves_flags)) };
}

/// A locked instruction on the stack, which orders as MFENCE does (9.2.3.8).
fn locked() {
    // SAFETY: adds 0 to the top of the stack.
    unsafe { asm!("lock or dword ptr [rsp], 0") };
}

fn exchange(at: *mut u64, value: u64) -> u64 {
    let mut value = value;
    // SAFETY: as in `load`.
    unsafe { asm!("xchg [{}], {}", in(reg) at, inout(reg) value, options(nostack)) };
    value
}

struct Test {
    name: &'static str,
    cpus: usize,
    part: fn(&Access, usize) -> [u64; 2],
    /// The outcome that is looked for.
    outcome: fn(&[[u64; 2]; 4]) -> bool,
    /// Whether x86 allows it: it is counted then.
    allowed: bool,
}

const TESTS: [Test; 10] = [
    Test {
        name: "SB: a load may pass an earlier store to another word",
        cpus: 2,
        part: |slot, cpu| store_buffer(slot, cpu, || ()),
        outcome: |seen| seen[0][0] == 0 && seen[1][0] == 0,
        allowed: true,
    },
    Test {
        name: "SB: not with MFENCE in between",
        cpus: 2,
        part: |slot, cpu| store_buffer(slot, cpu, mfence),
        outcome: |seen| seen[0][0] == 0 && seen[1][0] == 0,
        allowed: false,
    },
    Test {
        name: "SB: not with a locked instruction in between",
        cpus: 2,
        part: |slot, cpu| store_buffer(slot, cpu, locked),
        outcome: |seen| seen[0][0] == 0 && seen[1][0] == 0,
        allowed: false,
    },
    Test {
        name: "SB: not when XCHG stores",
        cpus: 2,
        part: |slot, cpu| {
            let (own, other) = own_and_other(slot, cpu);
            exchange(own, 1);
            [load(other), 0]
        },
        outcome: |seen| seen[0][0] == 0 && seen[1][0] == 0,
        allowed: false,
    },
    Test {
        name: "MP: stores are seen in order",
        cpus: 2,
        part: |slot, cpu| {
            if cpu == 0 {
                store(slot.x(), 1);
                store(slot.y(), 1);
                return [0, 0];
            }
            let later = load(slot.y());
            [later, load(slot.x())]
        },
        outcome: |seen| seen[1] == [1, 0],
        allowed: false,
    },
    Test {
        name: "LB: a store does not pass an earlier load",
        cpus: 2,
        part: |slot, cpu| {
            let (own, other) = own_and_other(slot, cpu);
            let seen = load(other);
            store(own, 1);
            [seen, 0]
        },
        outcome: |seen| seen[0][0] == 1 && seen[1][0] == 1,
        allowed: false,
    },
    Test {
        name: "CoRR: two loads of a word see its stores in order",
        cpus: 2,
        part: |slot, cpu| {
            if cpu == 0 {
                store(slot.x(), 1);
                store(slot.x(), 2);
                return [0, 0];
            }
            let first = load(slot.x());
            [first, load(slot.x())]
        },
        outcome: |seen| seen[1][0] > seen[1][1],
        allowed: false,
    },
    Test {
        name: "a processor sees its own store at once",
        cpus: 2,
        part: |slot, cpu| {
            let (own, other) = own_and_other(slot, cpu);
            store(own, 1);
            let seen = load(own);
            [seen, load(other)]
        },
        outcome: |seen| seen[0][0] == 0 || seen[1][0] == 0,
        allowed: false,
    },
    Test {
        name: "WRC: what was seen is seen by who learns of it",
        cpus: 3,
        part: |slot, cpu| match cpu {
            0 => {
                store(slot.x(), 1);
                [0, 0]
            }
            1 => {
                let seen = load(slot.x());
                store(slot.y(), seen);
                [seen, 0]
            }
            _ => {
                let learnt = load(slot.y());
                [learnt, load(slot.x())]
            }
        },
        outcome: |seen| seen[2] == [1, 0],
        allowed: false,
    },
    Test {
        name: "IRIW: two readers agree on the order of two stores",
        cpus: 4,
        part: |slot, cpu| match cpu {
            0 => {
                store(slot.x(), 1);
                [0, 0]
            }
            1 => {
                store(slot.y(), 1);
                [0, 0]
            }
            2 => {
                let first = load(slot.x());
                [first, load(slot.y())]
            }
            _ => {
                let first = load(slot.y());
                [first, load(slot.x())]
            }
        },
        outcome: |seen| seen[2] == [1, 0] && seen[3] == [1, 0],
        allowed: false,
    },
];

fn own_and_other(slot: &Access, cpu: usize) -> (*mut u64, *mut u64) {
    if cpu == 0 { (slot.x(), slot.y()) } else { (slot.y(), slot.x()) }
}

fn store_buffer(slot: &Access, cpu: usize, between: fn()) -> [u64; 2] {
    let (own, other) = own_and_other(slot, cpu);
    store(own, 1);
    between();
    [load(other), 0]
}

pub fn run(t: &mut Report, count: usize) {
    for (number, test) in TESTS.iter().enumerate() {
        if count < test.cpus {
            t.skip(test.name, format_args!("needs {} processors", test.cpus));
            continue;
        }
        CURRENT.store(number, Ordering::Relaxed);
        FOUND.store(0, Ordering::Relaxed);
        smp::together(test.cpus, batches);
        let found = FOUND.load(Ordering::Relaxed);
        println!("     {}: {found} of {}", test.name, SLOTS * BATCHES);
        t.that(test.name, test.allowed || found == 0);
    }
}

/// Waits a little for the others to come to the same slot. Not until they do: a processor that is
/// not running now would cost a whole time slice each time.
fn meet(cpu: usize, cpus: usize, slot: u64) {
    PLACES[cpu].0.store(slot + 1, Ordering::Relaxed);
    for _ in 0..MEETING {
        if PLACES[..cpus].iter().all(|place| place.0.load(Ordering::Relaxed) > slot) {
            break;
        }
    }
}

fn place(slot: usize) -> *mut Slot {
    assert!(slot < SLOTS, "a slot of the arena");
    // SAFETY: in range, as just asserted; all access it by volatile operations only.
    unsafe { ARENA.ptr().cast::<Slot>().add(slot) }
}

/// Whether a slot shows the outcome, while nobody else uses it; it is emptied for the next batch.
fn outcome(test: &Test, slot: usize) -> bool {
    // SAFETY: a slot of the arena.
    let seen = unsafe { place(slot).read_volatile() }.seen;
    // SAFETY: as above.
    unsafe { place(slot).write_volatile(EMPTY) };
    (test.outcome)(&seen.map(|both| both.map(|line| line.0)))
}

fn batches(cpu: usize) {
    let test = &TESTS[CURRENT.load(Ordering::Relaxed)];
    for _ in 0..BATCHES {
        PLACES[cpu].0.store(0, Ordering::Relaxed);
        BARRIER.wait(test.cpus);
        for slot in 0..SLOTS {
            meet(cpu, test.cpus, slot as u64);
            let access = Access(place(slot));
            let seen = (test.part)(&access, cpu);
            access.saw(cpu, seen);
        }
        BARRIER.wait(test.cpus);
        if cpu == 0 {
            FOUND.fetch_add(
                (0..SLOTS).filter(|&slot| outcome(test, slot)).count(),
                Ordering::Relaxed,
            );
        }
    }
}
