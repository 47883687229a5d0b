//! Jobs of several threads on shared memory: atomic updates of every kind, locks, and orders of
//! loads and stores that x86 guarantees (Intel SDM vol. 3A 9.2).

use std::arch::asm;
use std::collections::VecDeque;
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, compiler_fence, fence,
};
use std::sync::{Barrier, Condvar, Mutex, RwLock, mpsc};
use std::thread;

use crate::random::{Digest, Random, mix};
use crate::sys::{Mapping, PAGE, protection};
use crate::violation;

/// Counters of every width, which all threads change; the sums do not depend on the order.
pub fn counters(seed: u64, threads: usize) -> u64 {
    const UPDATES: u64 = 2000;
    let (bytes, words) = (AtomicU8::new(0), AtomicU16::new(0));
    let (doubles, quads) = (AtomicU32::new(0), AtomicU64::new(0));
    let (xor, maximum, exchanged) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let (bits, new_bits) = (Mapping::private(1, protection::WRITE), AtomicU64::new(0));
    thread::scope(|scope| {
        for thread in 0..threads as u64 {
            let (bytes, words, doubles, quads) = (&bytes, &words, &doubles, &quads);
            let (xor, maximum, exchanged) = (&xor, &maximum, &exchanged);
            let (bits, new_bits) = (&bits, &new_bits);
            scope.spawn(move || {
                let mut random = Random::new(mix(seed, thread));
                for update in 0..UPDATES {
                    let value = random.next();
                    bytes.fetch_add(value as u8, Ordering::Relaxed);
                    words.fetch_sub(value as u16, Ordering::Relaxed);
                    doubles.fetch_add(value as u32, Ordering::Relaxed);
                    quads.fetch_add(value, Ordering::Relaxed);
                    xor.fetch_xor(value, Ordering::Relaxed);
                    maximum.fetch_max(value, Ordering::Relaxed);
                    let mut old = exchanged.load(Ordering::Relaxed);
                    while let Err(now) = exchanged.compare_exchange_weak(
                        old,
                        old.wrapping_mul(3),
                        Ordering::AcqRel,
                        Ordering::Relaxed,
                    ) {
                        old = now;
                    }
                    exchanged.fetch_add(0, Ordering::Relaxed);
                    // Every thread sets the same bits: each is new to one of them.
                    new_bits.fetch_add(u64::from(!set_bit(bits, update)), Ordering::Relaxed);
                }
            });
        }
    });
    if new_bits.load(Ordering::Relaxed) != UPDATES {
        violation(&format!("{new_bits:?} bits were new, not {UPDATES}"));
    }
    let mut digest = Digest::default();
    digest.add(u64::from(bytes.into_inner()) << 16 | u64::from(words.into_inner()));
    digest.add(u64::from(doubles.into_inner()));
    for counter in [quads, xor, maximum, exchanged] {
        digest.add(counter.into_inner());
    }
    digest.value()
}

/// LOCK BTS with a bit offset beyond the operand; what the bit was.
fn set_bit(bits: &Mapping, bit: u64) -> bool {
    assert!(bit < PAGE as u64 * 8, "a bit of the page");
    let was: u8;
    // SAFETY: the bit lies in the mapping, as just asserted.
    unsafe {
        asm!("lock bts qword ptr [{at}], {bit}", "setc {was}", at = in(reg) bits.at(0),
            bit = in(reg) bit, was = out(reg_byte) was, options(nostack));
    }
    was != 0
}

/// Pairs of words that change together (CMPXCHG16B, CMPXCHG8B); every one that is read must fit.
pub fn wide_exchanges(seed: u64, threads: usize) -> u64 {
    const UPDATES: u64 = 1500;
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let area = Mapping::private(1, protection::WRITE);
    let (pair, half) = (area.at(64), area.at(128));
    let (pair, half) = (pair as usize, half as usize);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(move || {
                for _ in 0..UPDATES {
                    let mut old = (0_u64, 0_u64);
                    loop {
                        let next = old.0 + 1;
                        let new = (next, next.wrapping_mul(FACTOR));
                        match exchange_pair(pair, old, new) {
                            None => break,
                            Some(now) => old = now,
                        }
                        if old.1 != old.0.wrapping_mul(FACTOR) {
                            violation(&format!("a torn pair {old:x?}"));
                            return;
                        }
                    }
                    let mut old = (0_u32, 0_u32);
                    while let Some(now) = exchange_half(half, old, (old.0 + 1, !(old.0 + 1))) {
                        old = now;
                        if old.0 != 0 && old.1 != !old.0 {
                            violation(&format!("a torn half {old:x?}"));
                            return;
                        }
                    }
                }
            });
        }
    });
    let sum = [8, 9, 16].iter().map(|&word| area.word(word).load(Ordering::Relaxed));
    sum.fold(seed, mix)
}

/// LOCK CMPXCHG16B; what was there when it was not `old`.
fn exchange_pair(at: usize, old: (u64, u64), new: (u64, u64)) -> Option<(u64, u64)> {
    let (mut low, mut high, mut changed) = (old.0, old.1, 0_u8);
    // SAFETY: the caller names 16 aligned bytes. RBX is the compiler's: restored, and no operand.
    unsafe {
        asm!(
            "xchg r8, rbx",
            "lock cmpxchg16b xmmword ptr [rdi]",
            "sete r9b",
            "mov rbx, r8",
            inout("r8") new.0 => _,
            in("rdi") at,
            inout("r9b") changed,
            inout("rax") low,
            inout("rdx") high,
            in("rcx") new.1,
            options(nostack),
        );
    }
    (changed == 0).then_some((low, high))
}

/// LOCK CMPXCHG8B, likewise.
fn exchange_half(at: usize, old: (u32, u32), new: (u32, u32)) -> Option<(u32, u32)> {
    let (mut low, mut high, mut changed) = (old.0, old.1, 0_u8);
    // SAFETY: as in `exchange_pair`.
    unsafe {
        asm!(
            "xchg r8, rbx",
            "lock cmpxchg8b qword ptr [rdi]",
            "sete r9b",
            "mov rbx, r8",
            inout("r8") u64::from(new.0) => _,
            in("rdi") at,
            inout("r9b") changed,
            inout("eax") low,
            inout("edx") high,
            in("ecx") new.1,
            options(nostack),
        );
    }
    (changed == 0).then_some((low, high))
}

/// Locked updates across the end of a cache line and of a page, beside updates of the halves.
pub fn split_locks(seed: u64, threads: usize) -> u64 {
    const UPDATES: u64 = 60;
    let area = Mapping::private(2, protection::WRITE);
    thread::scope(|scope| {
        for thread in 0..threads as u64 {
            let area = &area;
            scope.spawn(move || {
                let mut random = Random::new(mix(seed, thread));
                for _ in 0..UPDATES {
                    let value = random.next();
                    split_add(area, 60, value);
                    split_add(area, PAGE - 3, value.rotate_left(9));
                    // Bytes of the same lines, which the additions must not lose.
                    area.word(16 + thread as usize).fetch_add(value, Ordering::Relaxed);
                    area.word(0).fetch_add(1, Ordering::Relaxed);
                    area.word(PAGE / 8 + 1).fetch_add(value, Ordering::Relaxed);
                }
            });
        }
    });
    let mut digest = Digest::default();
    digest.add_bytes(&area.read(0, 256));
    digest.add_bytes(&area.read(PAGE - 64, 128));
    digest.value()
}

fn split_add(area: &Mapping, offset: usize, value: u64) {
    let _inside = area.at(offset + 7);
    // SAFETY: eight bytes of the mapping, as `at` has checked.
    unsafe {
        asm!("lock add qword ptr [{at}], {value}", at = in(reg) area.at(offset),
            value = in(reg) value, options(nostack));
    }
}

/// A queue with room for few, a lock for readers and writers, channels, barriers, parking.
pub fn locks(seed: u64, threads: usize) -> u64 {
    const ITEMS: u64 = 300;
    let queue = Mutex::new(VecDeque::new());
    let (not_full, not_empty) = (Condvar::new(), Condvar::new());
    let table = RwLock::new((0_u64, 0_u64));
    let barrier = Barrier::new(threads);
    let (sender, receiver) = mpsc::channel();
    let consumed: u64 = thread::scope(|scope| {
        for thread in 0..threads as u64 {
            let sender = sender.clone();
            let (queue, table, barrier) = (&queue, &table, &barrier);
            let (not_full, not_empty) = (&not_full, &not_empty);
            scope.spawn(move || {
                let mut random = Random::new(mix(seed, thread));
                for item in 0..ITEMS {
                    let value = random.next();
                    let full = |queue: &mut VecDeque<u64>| queue.len() >= 8;
                    let guard = queue.lock().expect("no panic");
                    let mut guard = not_full.wait_while(guard, full).expect("no panic");
                    guard.push_back(value);
                    drop(guard);
                    not_empty.notify_one();
                    if item % 8 == 0 {
                        let mut both = table.write().expect("no panic");
                        both.0 = both.0.wrapping_add(value);
                        both.1 = both.1.wrapping_sub(value);
                    } else {
                        let both = table.read().expect("no panic");
                        if both.0.wrapping_add(both.1) != 0 {
                            violation("a reader saw a writer at work");
                        }
                    }
                    if item % 100 == 0 {
                        barrier.wait();
                    }
                }
                sender.send(random.next()).expect("it is received");
            });
        }
        drop(sender);
        let mut sum = 0_u64;
        for _ in 0..ITEMS * threads as u64 {
            let guard = queue.lock().expect("no panic");
            let mut guard = not_empty.wait_while(guard, |q| q.is_empty()).expect("no panic");
            sum = sum.wrapping_add(guard.pop_front().expect("it is not empty"));
            drop(guard);
            not_full.notify_one();
        }
        receiver.iter().fold(sum, u64::wrapping_add)
    });
    mix(mix(seed, consumed), table.into_inner().expect("no panic").0)
}

/// Mutual exclusion and publication by plain loads and stores, with a fence only where a later
/// load must not pass an earlier store.
pub fn orders(seed: u64, threads: usize) -> u64 {
    let pairs = (threads / 2).max(1);
    let sums: Vec<u64> = thread::scope(|scope| {
        let running: Vec<_> = (0..pairs)
            .map(|_| scope.spawn(|| peterson() + publication() + store_buffers()))
            .collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    sums.into_iter().fold(seed, mix)
}

/// Peterson's lock around a counter that is not updated atomically.
fn peterson() -> u64 {
    const ENTRIES: u64 = 1500;
    let wants = [AtomicBool::new(false), AtomicBool::new(false)];
    let (turn, counter) = (AtomicU8::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for me in 0..2_usize {
            let (wants, turn, counter) = (&wants, &turn, &counter);
            scope.spawn(move || {
                for _ in 0..ENTRIES {
                    wants[me].store(true, Ordering::Relaxed);
                    compiler_fence(Ordering::SeqCst);
                    turn.store(1 - me as u8, Ordering::Relaxed);
                    fence(Ordering::SeqCst);
                    while wants[1 - me].load(Ordering::Acquire)
                        && turn.load(Ordering::Acquire) == 1 - me as u8
                    {
                        relax();
                    }
                    let before = counter.load(Ordering::Relaxed);
                    counter.store(before + 1, Ordering::Relaxed);
                    wants[me].store(false, Ordering::Release);
                }
            });
        }
    });
    let counted = counter.into_inner();
    if counted != 2 * ENTRIES {
        violation(&format!("Peterson's lock counted {counted}, not {}", 2 * ENTRIES));
    }
    counted
}

/// A writer keeps two words in two lines equal but for the moment of the update.
fn publication() -> u64 {
    const VERSIONS: u64 = 20_000;
    let area = Mapping::private(2, protection::WRITE);
    let (first, second) = (area.word(0), area.word(PAGE / 8));
    thread::scope(|scope| {
        scope.spawn(|| {
            for version in 1..=VERSIONS {
                first.store(version, Ordering::Release);
                second.store(version, Ordering::Release);
            }
        });
        let mut last = 0;
        while last < VERSIONS {
            let later = second.load(Ordering::Acquire);
            let earlier = first.load(Ordering::Acquire);
            if earlier < later || later < last {
                violation(&format!("stores seen out of order: {earlier}, {later}, {last}"));
            }
            last = later;
        }
    });
    first.load(Ordering::Relaxed)
}

/// Both threads store, fence and load the other's word: one of them sees the other's store.
fn store_buffers() -> u64 {
    const ROUNDS: u64 = 3000;
    let area = Mapping::private(1, protection::WRITE);
    // Words of the two threads, what they saw, and the round that each has finished.
    let (words, seen, at) = ([0, 8], [16, 24], [32, 40]);
    thread::scope(|scope| {
        for me in 0..2 {
            let area = &area;
            scope.spawn(move || {
                for round in 1..=ROUNDS {
                    area.word(words[me]).store(round, Ordering::Relaxed);
                    fence(Ordering::SeqCst);
                    let other = area.word(words[1 - me]).load(Ordering::Relaxed);
                    area.word(seen[me]).store(other, Ordering::Relaxed);
                    area.word(at[me]).store(round, Ordering::Release);
                    while area.word(at[1 - me]).load(Ordering::Acquire) < round {
                        relax();
                    }
                    if me == 0 {
                        let saw = [0, 1].map(|who| area.word(seen[who]).load(Ordering::Relaxed));
                        if saw.iter().all(|&saw| saw < round) {
                            violation(&format!("both missed the store of round {round}: {saw:?}"));
                        }
                    }
                    // Nobody begins the next round before both have looked.
                    area.word(at[me] + 1).store(round, Ordering::Release);
                    while area.word(at[1 - me] + 1).load(Ordering::Acquire) < round {
                        relax();
                    }
                }
            });
        }
    });
    area.word(words[0]).load(Ordering::Relaxed)
}

/// Waits for another thread, which may need this one's CPU.
fn relax() {
    std::hint::spin_loop();
    thread::yield_now();
}
