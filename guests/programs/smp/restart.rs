//! INIT and SIPI (SDM vol. 3A 9.4.3 and table 10-1): the state in which a
//! processor starts, INIT in whatever it does, SIPIs that do not count, and
//! start addresses without sense.

use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kit::apic::{self, ICR_ASSERT, ICR_INIT, ICR_OTHERS, ICR_STARTUP, reg};
use kit::smp::{self, START_MS, START_VECTOR};
use kit::trap::{self, Frame, vector::NMI};
use kit::{Report, cpu, page};

/// Page of the code that notes the start state and goes on to the trampoline.
const PROBE_VECTOR: u32 = 0x0b;
/// Pages without sense: zeros, and bytes that are no instruction.
const ZEROS_VECTOR: u32 = 0x0c;
const INVALID_VECTOR: u32 = 0x0d;
/// Where the probe notes, in its page.
const NOTES: u64 = 0x800;

static COUNTED: AtomicU64 = AtomicU64::new(0);
static IN_NMI: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    static start_probe: u8;
    static start_probe_end: u8;
}

global_asm!(
    r#"
    .text
    .globl start_probe
    .globl start_probe_end
start_probe:
    .code16
    mov     cs:[0x800], eax
    mov     cs:[0x804], edx
    mov     eax, cr0
    mov     cs:[0x808], eax
    mov     eax, cr4
    mov     cs:[0x80c], eax
    mov     eax, cs
    mov     cs:[0x810], eax
    mov     eax, ds
    mov     cs:[0x814], eax
    mov     eax, cr3
    mov     cs:[0x818], eax
    mov     eax, cr2
    mov     cs:[0x81c], eax
    mov     cs:[0x820], ebx
    mov     cs:[0x824], esi
    mov     cs:[0x828], esp
    mov     ax, cs
    mov     ss, ax
    mov     esp, 0x1000
    pushfd
    pop     eax
    mov     cs:[0x82c], eax
    mov     ecx, 0xc0000080
    rdmsr
    mov     cs:[0x830], eax
    .byte   0xea                                    // jmp the trampoline
    .word   0
    .word   {trampoline}
    .code64
start_probe_end:
    .text
"#,
    trampoline = const smp::TRAMPOLINE >> 4,
);

pub fn run(t: &mut Report, count: usize) {
    if count < 2 {
        return t.skip("restarts", "needs 2 processors");
    }
    place(PROBE_VECTOR, &raw const start_probe, &raw const start_probe_end);
    fill(ZEROS_VECTOR, 0);
    fill(INVALID_VECTOR, 0xff);
    // Where events lead without a vector table, and where code without sense begins: jmp $.
    fill(0, 0);
    page::poke(0, 0xfeeb);
    start_state(t);
    states_of_work(t);
    without_effect(t);
    everybody(t, count);
    senseless(t);
}

/// Copies code to the page of a vector.
fn place(vector: u32, start: *const u8, end: *const u8) {
    fill(vector, 0xf4);
    for offset in 0..end as usize - start as usize {
        // SAFETY: the code lies in the image, and the page is free RAM.
        unsafe {
            let byte = start.add(offset).read();
            ((u64::from(vector) << 12) as *mut u8).add(offset).write_volatile(byte);
        }
    }
}

fn fill(vector: u32, byte: u8) {
    for offset in 0..4096 {
        // SAFETY: the page is free RAM.
        unsafe { ((u64::from(vector) << 12) as *mut u8).add(offset).write_volatile(byte) };
    }
}

/// Stops the second processor, and starts it; whether it came.
fn restart(vector: u32) -> bool {
    smp::init(1);
    smp::startup(1, vector);
    smp::is_online_within(1, START_MS)
}

fn start_state(t: &mut Report) {
    smp::start(1, |_| {
        cpu::write_cr2(0x1234_5678);
        apic::write(reg::TPR, 0x50);
        apic::write(reg::LVT_TIMER, 0x80);
    });
    smp::finish(1);
    t.that("INIT and SIPI restart a processor", restart(PROBE_VECTOR));
    let note = |index: u64| {
        // SAFETY: the page is RAM, and the probe has written it.
        unsafe {
            (((u64::from(PROBE_VECTOR) << 12) + NOTES + index * 4) as *const u32).read_volatile()
        }
    };
    t.eq("EAX after SIPI", note(0), 0);
    t.eq("EDX after SIPI is the signature", note(1), cpu::cpuid(1, 0).eax);
    t.eq("CR0 after INIT keeps CD and NW", note(2) & !0x6000_0000, 0x10);
    t.eq("CR4 after INIT", note(3), 0);
    t.eq("CS after SIPI", note(4) & 0xffff, PROBE_VECTOR << 8);
    t.eq("DS after INIT", note(5) & 0xffff, 0);
    t.eq("CR3 and CR2 after INIT", [note(6), note(7)], [0, 0]);
    t.eq("EBX, ESI and ESP after INIT", [note(8), note(9), note(10)], [0; 3]);
    t.eq("EFLAGS after INIT", note(11), 2);
    t.eq("EFER after INIT", note(12), 0);
    smp::start(1, |_| {
        let timer = apic::read(reg::LVT_TIMER);
        COUNTED.store(u64::from(apic::read(reg::TPR)) << 32 | u64::from(timer), Ordering::Relaxed);
    });
    smp::finish(1);
    // The kit has written LVT and TPR since; the ID stays.
    let expected = u64::from(apic::MASKED | 0xfe);
    t.eq("the local APIC after INIT and enabling", COUNTED.load(Ordering::Relaxed), expected);
}

fn count_for_ever(_: usize) {
    loop {
        COUNTED.fetch_add(1, Ordering::Relaxed);
    }
}

fn sleep_for_ever(_: usize) {
    loop {
        cpu::halt_forever();
    }
}

fn pause_for_ever(_: usize) {
    loop {
        core::hint::spin_loop();
    }
}

/// INIT stops a processor in whatever it does.
fn states_of_work(t: &mut Report) {
    COUNTED.store(0, Ordering::Relaxed);
    smp::start(1, count_for_ever);
    smp::wait(2000, || COUNTED.load(Ordering::Relaxed) > 1000);
    smp::init(1);
    // It was told; that it stops takes as long as a message.
    smp::wait(50, || false);
    let before = COUNTED.load(Ordering::Relaxed);
    smp::wait(20, || false);
    t.eq("INIT stops a running processor", COUNTED.load(Ordering::Relaxed), before);
    smp::startup(1, START_VECTOR);
    t.that("it starts again", smp::is_online_within(1, START_MS));
    for (name, work) in [("halted", sleep_for_ever as smp::Work), ("spinning", pause_for_ever)] {
        smp::start(1, work);
        smp::wait(5, || false);
        t.that(format_args!("a {name} processor restarts"), restart(START_VECTOR));
    }
    t.that("INIT twice, then SIPI", {
        smp::init(1);
        restart(START_VECTOR)
    });
    trap::hook(NMI as u8, Some(stay_in_nmi));
    smp::start(1, pause_for_ever);
    apic::ipi(1, apic::ICR_NMI | ICR_ASSERT);
    smp::wait(2000, || IN_NMI.load(Ordering::Acquire));
    t.that("a processor in its NMI handler restarts", restart(START_VECTOR));
    IN_NMI.store(false, Ordering::Relaxed);
    smp::start(1, pause_for_ever);
    apic::ipi(1, apic::ICR_NMI | ICR_ASSERT);
    let again = smp::wait(2000, || IN_NMI.load(Ordering::Acquire));
    t.that("NMIs are not blocked after INIT", again);
    t.that("and it restarts once more", restart(START_VECTOR));
    trap::hook(NMI as u8, None);
    let many = (0..30).all(|_| restart(START_VECTOR));
    t.that("many restarts", many);
}

fn stay_in_nmi(_: &mut Frame) {
    IN_NMI.store(true, Ordering::Release);
    loop {
        core::hint::spin_loop();
    }
}

/// What must not change anything.
fn without_effect(t: &mut Report) {
    COUNTED.store(0, Ordering::Relaxed);
    smp::start(1, |_| {
        while COUNTED.load(Ordering::Relaxed) < 1_000_000 {
            COUNTED.fetch_add(1, Ordering::Relaxed);
        }
    });
    for _ in 0..20 {
        smp::startup(1, INVALID_VECTOR);
        // INIT level de-assert does nothing (11.6.1).
        apic::ipi(0, ICR_INIT | 1 << 15 | apic::ICR_ALL);
    }
    COUNTED.fetch_max(1_000_000, Ordering::Relaxed);
    smp::finish(1);
    t.that("a SIPI to a running processor is ignored", true);
    smp::init(1);
    // No NMI: whether one is kept until the SIPI, the manuals leave open.
    apic::ipi(1, ICR_ASSERT | 0x55);
    smp::wait(5, || false);
    smp::startup(1, START_VECTOR);
    t.that("an interrupt does not end the wait for SIPI", smp::is_online_within(1, START_MS));
}

/// All others at once, by the shorthand, as firmware does it.
fn everybody(t: &mut Report, count: usize) {
    (1..count).for_each(smp::init);
    apic::ipi(0, ICR_INIT | ICR_ASSERT | ICR_OTHERS);
    smp::wait(1, || false);
    apic::ipi(0, ICR_STARTUP | ICR_ASSERT | ICR_OTHERS | START_VECTOR);
    let all = (1..count).all(|index| smp::is_online_within(index, START_MS));
    t.that("INIT and SIPI to all others", all);
}

/// Code without sense runs until INIT. It begins where it cannot run into the
/// program: its segment ends before 1 MiB.
fn senseless(t: &mut Report) {
    for vector in [ZEROS_VECTOR, INVALID_VECTOR, 0, 0x90, 0xa0] {
        smp::init(1);
        smp::startup(1, vector);
        smp::wait(3, || false);
        smp::place_trampoline();
        let back = restart(START_VECTOR);
        t.that(format_args!("back from a start at {vector:#x}"), back);
    }
}
