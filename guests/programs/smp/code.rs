//! Code that one processor writes and others execute: by the protocol of SDM
//! vol. 3A 9.1.3, beside code that stays as it is, and through a breakpoint
//! that stands while an instruction is exchanged, as kernels do.

use core::sync::atomic::{AtomicU64, Ordering};

use kit::smp::{self, Barrier};
use kit::trap::{self, Frame, vector};
use kit::{Frame4K, Global, Report, ZERO_FRAME, apic, cpu};

/// Generations of code.
const TIMES: u64 = 150;
/// Exchanges of an instruction under a breakpoint.
const EXCHANGES: u64 = 60;
/// The interrupt that makes processors serialize.
const SYNCHRONIZE: u8 = 0x60;

static PAGES: Global<[Frame4K; 2]> = Global::new([ZERO_FRAME; 2]);
static BARRIER: Barrier = Barrier::new();
static COUNT: AtomicU64 = AtomicU64::new(0);
static GENERATION: AtomicU64 = AtomicU64::new(0);
static FINISHED: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);
static WRONG_NEIGHBOUR: AtomicU64 = AtomicU64::new(0);
static BREAKPOINTS: AtomicU64 = AtomicU64::new(0);
static SYNCHRONIZED: AtomicU64 = AtomicU64::new(0);

/// Where code that stays is, and code that is exchanged under a breakpoint.
const CONSTANT: usize = 0x1800;
const PATCHED: usize = 0x1900;

/// `mov eax, value; ret`.
fn function(value: u32) -> [u8; 6] {
    let [a, b, c, d] = value.to_le_bytes();
    [0xb8, a, b, c, d, 0xc3]
}

fn write(offset: usize, bytes: &[u8]) {
    assert!(offset + bytes.len() <= 0x2000, "code inside the pages");
    for (index, &byte) in bytes.iter().enumerate() {
        // SAFETY: in range, as just asserted.
        unsafe { PAGES.ptr().cast::<u8>().add(offset + index).write_volatile(byte) };
    }
}

fn call(offset: usize) -> u32 {
    let at = PAGES.addr() + offset as u64;
    // SAFETY: a `function` is there, and all memory of the kit is executable.
    let code: extern "C" fn() -> u32 = unsafe { core::mem::transmute(at) };
    code()
}

/// Where the code of a generation is: in one place, or across two pages.
fn place(generation: u64) -> usize {
    if generation.is_multiple_of(3) { 0xffd } else { 0x100 + (generation as usize % 2) * 3 }
}

pub fn run(t: &mut Report, count: usize) {
    if count < 2 {
        return t.skip("code of other processors", "needs 2 processors");
    }
    COUNT.store(count as u64, Ordering::Relaxed);
    write(CONSTANT, &function(0x1234));
    smp::together(count, generations);
    t.eq("code of another processor after serializing", WRONG.load(Ordering::Relaxed), 0);
    let neighbour = WRONG_NEIGHBOUR.load(Ordering::Relaxed);
    t.eq("code beside code that changes", neighbour, 0);
    write(PATCHED, &function(1));
    trap::hook(vector::BP as u8, Some(on_breakpoint));
    trap::hook(SYNCHRONIZE, Some(on_synchronize));
    WRONG.store(0, Ordering::Relaxed);
    FINISHED.store(0, Ordering::Relaxed);
    smp::together(count, exchanged);
    t.eq("code exchanged under a breakpoint", WRONG.load(Ordering::Relaxed), 0);
    kit::println!("     breakpoints met: {}", BREAKPOINTS.load(Ordering::Relaxed));
    trap::hook(vector::BP as u8, None);
    trap::hook(SYNCHRONIZE, None);
}

fn generations(index: usize) {
    let others = COUNT.load(Ordering::Relaxed) - 1;
    BARRIER.wait(others as usize + 1);
    for generation in 1..=TIMES {
        if index == 0 {
            write(place(generation), &function(generation as u32));
            GENERATION.store(generation, Ordering::Release);
            while FINISHED.load(Ordering::Acquire) < generation * others {
                core::hint::spin_loop();
            }
            continue;
        }
        while GENERATION.load(Ordering::Acquire) < generation {
            let wrong = call(CONSTANT) != 0x1234;
            WRONG_NEIGHBOUR.fetch_add(u64::from(wrong), Ordering::Relaxed);
            core::hint::spin_loop();
        }
        let _serialized = cpu::cpuid(0, 0);
        let wrong = call(place(generation)) != generation as u32;
        WRONG.fetch_add(u64::from(wrong), Ordering::Relaxed);
        FINISHED.fetch_add(1, Ordering::Release);
    }
}

/// Met the breakpoint that stands for the first instruction: does what the
/// instruction may do, and goes on behind it.
fn on_breakpoint(frame: &mut Frame) {
    BREAKPOINTS.fetch_add(1, Ordering::Relaxed);
    frame.regs.rax = 1;
    frame.rip += 4;
}

/// The IRET behind it serializes.
fn on_synchronize(_: &mut Frame) {
    SYNCHRONIZED.fetch_add(1, Ordering::AcqRel);
    apic::eoi();
}

/// Makes every other processor serialize.
fn synchronize(others: u64) {
    SYNCHRONIZED.store(0, Ordering::Release);
    apic::ipi(0, apic::ICR_OTHERS | apic::ICR_ASSERT | u32::from(SYNCHRONIZE));
    while SYNCHRONIZED.load(Ordering::Acquire) < others {
        core::hint::spin_loop();
    }
}

fn exchanged(index: usize) {
    let others = COUNT.load(Ordering::Relaxed) - 1;
    BARRIER.wait(others as usize + 1);
    if index == 0 {
        for number in 0..EXCHANGES {
            let next = function(1 + (number as u32 + 1) % 2 * 0x0101_0100);
            write(PATCHED, &[0xcc]);
            synchronize(others);
            write(PATCHED + 1, &next[1..]);
            synchronize(others);
            write(PATCHED, &next[..1]);
            synchronize(others);
        }
        FINISHED.store(1, Ordering::Release);
        return;
    }
    cpu::sti();
    while FINISHED.load(Ordering::Acquire) == 0 {
        let found = call(PATCHED);
        let wrong = found != 1 && found != 0x0101_0101;
        WRONG.fetch_add(u64::from(wrong), Ordering::Relaxed);
        core::hint::spin_loop();
    }
    cpu::cli();
}
