//! What CPUID says on each processor, and whether their clocks agree.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use kit::cpu::{self, cpuid, msr};
use kit::smp::{self, MAX};
use kit::{Report, apic};

/// What a processor found of itself.
static INITIAL_ID: [AtomicU32; MAX] = [const { AtomicU32::new(u32::MAX) }; MAX];
static EXTENDED_ID: [AtomicU32; MAX] = [const { AtomicU32::new(u32::MAX) }; MAX];
static APIC_ID: [AtomicU32; MAX] = [const { AtomicU32::new(u32::MAX) }; MAX];
static IS_FIRST: [AtomicBool; MAX] = [const { AtomicBool::new(false) }; MAX];
static SUM: [AtomicU64; MAX] = [const { AtomicU64::new(0) }; MAX];

pub fn run(t: &mut Report, count: usize) {
    smp::together(count, look);
    for index in 0..count {
        let ids = [&INITIAL_ID, &EXTENDED_ID, &APIC_ID].map(|id| id[index].load(Ordering::Relaxed));
        t.eq(format_args!("APIC ID of processor {index}"), ids, [index as u32; 3]);
        let first = IS_FIRST[index].load(Ordering::Relaxed);
        t.eq(format_args!("bootstrap flag of processor {index}"), first, index == 0);
        let sum = SUM[index].load(Ordering::Relaxed);
        t.eq(format_args!("features of processor {index}"), sum, SUM[0].load(Ordering::Relaxed));
    }
    levels(t, count);
    clocks(t, count);
}

fn look(index: usize) {
    INITIAL_ID[index].store(cpuid(1, 0).ebx >> 24, Ordering::Relaxed);
    EXTENDED_ID[index].store(cpuid(0xb, 0).edx, Ordering::Relaxed);
    APIC_ID[index].store(apic::read(apic::reg::ID) >> 24, Ordering::Relaxed);
    IS_FIRST[index].store(cpu::rdmsr(msr::APIC_BASE) >> 8 & 1 != 0, Ordering::Relaxed);
    // All but the IDs and what follows the processor's own control registers.
    let mut sum = 0_u64;
    let mut add = |value: u32| sum = sum.rotate_left(7).wrapping_mul(31) ^ u64::from(value);
    for leaf in [0, 2, 4, 7, 0x8000_0001, 0x8000_0007, 0x8000_0008] {
        let result = cpuid(leaf, 0);
        [result.eax, result.ebx, result.edx].into_iter().for_each(&mut add);
        if leaf != 7 {
            add(result.ecx);
        }
    }
    let first = cpuid(1, 0);
    [first.eax, first.ebx & 0xff_ffff, first.edx].into_iter().for_each(&mut add);
    SUM[index].store(sum, Ordering::Relaxed);
}

fn levels(t: &mut Report, count: usize) {
    let first = cpuid(1, 0);
    t.eq("HTT tells of several processors", first.edx >> 28 & 1 != 0, count > 1);
    if count > 1 {
        let ids = first.ebx >> 16 & 0xff;
        t.holds("room for APIC IDs in leaf 1", ids, |&ids| ids as usize >= count);
    }
    let (mut shift, mut number) = (0, 0);
    for level in 0..4 {
        let result = cpuid(0xb, level);
        t.eq(format_args!("level {level} of leaf 0xb"), result.ecx & 0xff, level);
        if result.ecx >> 8 & 0xff == 0 {
            break;
        }
        t.that(format_args!("level {level} contains the one below"), result.eax >= shift);
        (shift, number) = (result.eax, result.ebx & 0xffff);
    }
    t.eq("processors in the package", number as usize, count);
    t.that("the package's IDs have room", 1_usize << shift >= count);
}

/// The last time that was read, in the order of the lock.
static LAST: AtomicU64 = AtomicU64::new(0);
static LOCK: AtomicBool = AtomicBool::new(false);
static BACKWARD: AtomicU64 = AtomicU64::new(0);

fn clocks(t: &mut Report, count: usize) {
    smp::together(count, |_| {
        for _ in 0..1000 {
            while LOCK.swap(true, Ordering::Acquire) {
                core::hint::spin_loop();
            }
            let now = cpu::tsc();
            let last = LAST.swap(now, Ordering::Relaxed);
            BACKWARD.fetch_max(last.saturating_sub(now), Ordering::Relaxed);
            LOCK.store(false, Ordering::Release);
        }
    });
    t.eq("time never goes backward between processors", BACKWARD.load(Ordering::Relaxed), 0);
}
