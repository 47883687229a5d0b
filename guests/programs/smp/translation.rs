//! Page tables that one processor changes while others use them (SDM vol. 3A
//! 4.10.5): a translation that all have invalidated is never used again, and
//! accessed and dirty bits are set without losing what others write to the
//! entry.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kit::page::{self, Entry, bit};
use kit::smp::{self, Barrier, MAX};
use kit::trap::{self, Frame, vector};
use kit::{Frame4K, Global, Report, ZERO_FRAME, apic, cpu};

/// Changes of the entry.
const TIMES: u64 = 100;
/// The page that changes.
const WINDOW: u64 = page::WINDOW + 0x40_0000;
/// The interrupt that invalidates it.
const SHOOTDOWN: u8 = 0x61;
/// Software-defined bits of an entry that hold a counter here.
const COUNTER_SHIFT: u32 = 52;
const COUNTER: u64 = 0x3f << COUNTER_SHIFT;

static FRAMES: Global<[Frame4K; 2]> = Global::new([ZERO_FRAME; 2]);
static BARRIER: Barrier = Barrier::new();
static COUNT: AtomicU64 = AtomicU64::new(0);
static ACKNOWLEDGED: AtomicU64 = AtomicU64::new(0);
/// The generation whose predecessors nobody may see any more.
static GENERATION: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicBool = AtomicBool::new(false);
static STALE: AtomicU64 = AtomicU64::new(0);
static REFUSED: [AtomicU64; MAX] = [const { AtomicU64::new(0) }; MAX];

pub fn run(t: &mut Report, count: usize) {
    if count < 2 {
        return t.skip("translations of other processors", "needs 2 processors");
    }
    COUNT.store(count as u64, Ordering::Relaxed);
    page::map(WINDOW, FRAMES.addr(), bit::P | bit::W);
    trap::hook(SHOOTDOWN, Some(on_shootdown));
    trap::hook(vector::PF as u8, Some(on_page_fault));
    run_with_others(count, targets);
    t.eq("no stale target after a shootdown", STALE.swap(0, Ordering::Relaxed), 0);
    run_with_others(count, rights);
    t.eq("no store after the right was withdrawn", STALE.swap(0, Ordering::Relaxed), 0);
    let refused: u64 = REFUSED.iter().map(|count| count.load(Ordering::Relaxed)).sum();
    kit::println!("     stores refused: {refused}");
    run_with_others(count, attributes);
    let entry = page::entry(WINDOW, 1).get();
    let counted = (entry & COUNTER) >> COUNTER_SHIFT;
    t.eq("setting A and D loses no other update", counted, TIMES & 0x3f);
    t.eq("D is set again after a shootdown", STALE.swap(0, Ordering::Relaxed), 0);
    trap::hook(SHOOTDOWN, None);
    trap::hook(vector::PF as u8, None);
}

fn run_with_others(count: usize, work: smp::Work) {
    DONE.store(false, Ordering::Relaxed);
    GENERATION.store(0, Ordering::Relaxed);
    smp::together(count, work);
}

fn on_shootdown(_: &mut Frame) {
    page::invlpg(WINDOW);
    ACKNOWLEDGED.fetch_add(1, Ordering::AcqRel);
    apic::eoi();
}

/// A store of three bytes was refused: goes on behind it.
fn on_page_fault(frame: &mut Frame) {
    REFUSED[smp::index()].fetch_add(1, Ordering::Relaxed);
    frame.rip += 3;
}

/// Makes all processors drop their translation of the page.
fn shoot_down() {
    page::invlpg(WINDOW);
    ACKNOWLEDGED.store(0, Ordering::Release);
    apic::ipi(0, apic::ICR_OTHERS | apic::ICR_ASSERT | u32::from(SHOOTDOWN));
    while ACKNOWLEDGED.load(Ordering::Acquire) < COUNT.load(Ordering::Relaxed) - 1 {
        core::hint::spin_loop();
    }
}

/// MOV [RDI], RAX: three bytes.
fn store(value: u64) {
    // SAFETY: the page is a frame of this program, or the store is refused.
    unsafe { asm!(".byte 0x48, 0x89, 0x07", in("rdi") WINDOW, in("rax") value, options(nostack)) };
}

/// What the first processor does in between, and what the others do until it is through.
fn until_done(index: usize, first: impl Fn(u64), others: impl Fn()) {
    BARRIER.wait(COUNT.load(Ordering::Relaxed) as usize);
    if index == 0 {
        (1..=TIMES).for_each(first);
        DONE.store(true, Ordering::Release);
        return;
    }
    cpu::sti();
    while !DONE.load(Ordering::Acquire) {
        others();
        // Makes room for the first, should it have no core of its own now.
        core::hint::spin_loop();
    }
    cpu::cli();
}

/// The page is mapped to one frame and the other in turn; each holds the generation that mapped it.
fn targets(index: usize) {
    until_done(
        index,
        |generation| {
            let frame = FRAMES.addr() + generation % 2 * 4096;
            page::poke(frame, generation);
            page::entry(WINDOW, 1).set(frame | bit::P | bit::W);
            shoot_down();
            GENERATION.store(generation, Ordering::Release);
        },
        || {
            let newest = GENERATION.load(Ordering::Acquire);
            let stale = page::peek(WINDOW) < newest;
            STALE.fetch_add(u64::from(stale), Ordering::Relaxed);
        },
    );
}

/// The others store all the time; the page becomes read-only and writable in turn.
fn rights(index: usize) {
    until_done(
        index,
        |_| {
            let frame = FRAMES.addr();
            page::entry(WINDOW, 1).set(frame | bit::P);
            shoot_down();
            let before = page::peek(frame);
            crate::idle(300);
            let stored = page::peek(frame) != before;
            STALE.fetch_add(u64::from(stored), Ordering::Relaxed);
            page::entry(WINDOW, 1).set(frame | bit::P | bit::W);
            crate::idle(100);
        },
        || store(cpu::tsc()),
    );
}

/// The others make the processor set A and D all the time; a counter in the entry is kept up.
fn attributes(index: usize) {
    until_done(
        index,
        |_| {
            count_up(page::entry(WINDOW, 1));
            shoot_down();
            store(1);
            let dirty = page::entry(WINDOW, 1).get() & (bit::A | bit::D) == bit::A | bit::D;
            STALE.fetch_add(u64::from(!dirty), Ordering::Relaxed);
        },
        || {
            page::invlpg(WINDOW);
            let _seen = page::peek(WINDOW);
            page::invlpg(WINDOW);
            store(2);
        },
    );
}

/// Counts up in the software bits and clears A and D, atomically.
fn count_up(entry: Entry) {
    loop {
        let old = entry.get();
        let counter = (old + (1 << COUNTER_SHIFT)) & COUNTER;
        let new = old & !(COUNTER | bit::A | bit::D) | counter;
        if entry.exchange(old, new) {
            return;
        }
    }
}
