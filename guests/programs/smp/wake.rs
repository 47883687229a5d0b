//! Sleeping processors: HLT ends by an interrupt, an NMI, or a kick of the
//! paravirtual interface of KVM (Linux, Documentation/virt/kvm/x86/hypercalls.rst),
//! and no wake-up is lost between the last look and the sleep.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use kit::Report;
use kit::apic::{self, ICR_ASSERT, ICR_NMI};
use kit::cpu;
use kit::smp;
use kit::trap::{self, Frame, vector::NMI};

use crate::Random;

/// Wake-ups of each kind.
const TIMES: u64 = 150;
const WAKE: u8 = 0x72;
/// KVM_HC_KICK_CPU.
const KICK: u64 = 5;
/// KVM_FEATURE_PV_UNHALT in leaf 0x40000001.
const PV_UNHALT: u32 = 1 << 7;

/// What the sleeper is to reach, and what it has reached.
static WANTED: AtomicU64 = AtomicU64::new(0);
static REACHED: AtomicU64 = AtomicU64::new(0);
static NMIS: AtomicU64 = AtomicU64::new(0);

pub fn run(t: &mut Report, count: usize) {
    if count < 2 {
        return t.skip("wake-ups", "needs 2 processors");
    }
    // It stays: the last one may come when nobody waits for it any more.
    trap::hook(WAKE, Some(|_| apic::eoi()));
    trap::hook(NMI as u8, Some(on_nmi));
    let ends = |name: &str, t: &mut Report, sleeper: smp::Work, wake: fn()| {
        let lost = lost_wakeups(sleeper, wake);
        t.eq(format_args!("{name} ends HLT every time"), lost, 0);
    };
    ends("an interrupt", t, sleep_with_interrupts, || {
        apic::ipi(1, ICR_ASSERT | u32::from(WAKE));
    });
    ends("an NMI", t, sleep_for_nmi, || apic::ipi(1, ICR_NMI | ICR_ASSERT));
    if has_kick() {
        ends("a kick", t, sleep_for_kick, || {
            kick(1);
        });
        t.eq("a kick of nobody is harmless", kick(200), 0);
    } else {
        t.skip("a kick", "KVM_FEATURE_PV_UNHALT is not offered");
    }
    trap::hook(NMI as u8, None);
}

/// How many wake-ups did not come through; the test ends with the first.
fn lost_wakeups(sleeper: smp::Work, wake: fn()) -> u64 {
    let mut random = Random(4711);
    WANTED.store(0, Ordering::Relaxed);
    REACHED.store(0, Ordering::Relaxed);
    NMIS.store(0, Ordering::Relaxed);
    smp::start(1, sleeper);
    for number in 1..=TIMES {
        // Meets the sleeper at different distances from its HLT.
        crate::idle(random.below(200));
        WANTED.store(number, Ordering::SeqCst);
        wake();
        if !smp::wait(5000, || REACHED.load(Ordering::Acquire) == number) {
            // Frees it for what comes next.
            smp::init(1);
            smp::startup(1, smp::START_VECTOR);
            smp::is_online_within(1, smp::START_MS);
            return 1;
        }
    }
    smp::finish(1);
    0
}

/// Looks whether there is more to reach; the end of the work is at [`TIMES`].
fn advance(reached: &mut u64) -> bool {
    *reached = (*reached).max(WANTED.load(Ordering::SeqCst));
    REACHED.store(*reached, Ordering::Release);
    *reached < TIMES
}

fn sleep_with_interrupts(_: usize) {
    let mut reached = 0;
    loop {
        // Looks with interrupts off: one that comes now ends the HLT at once.
        if WANTED.load(Ordering::SeqCst) == reached {
            cpu::sti_hlt();
        }
        if !advance(&mut reached) {
            // The last one may still be on its way.
            cpu::interrupt_window();
            return;
        }
    }
}

unsafe extern "C" {
    static nmi_sleep_end: u8;
    fn nmi_sleep(reached: u64);
}

// Sleeps unless more NMIs than `reached` have come.
global_asm!(
    ".text",
    ".globl nmi_sleep, nmi_sleep_end",
    "nmi_sleep:",
    "cmp [rip + {nmis}], rdi",
    "ja nmi_sleep_end",
    "hlt",
    "nmi_sleep_end:",
    "ret",
    nmis = sym NMIS,
);

/// An NMI cannot be held back: one that comes between the look and the HLT
/// goes on behind the HLT.
fn on_nmi(frame: &mut Frame) {
    NMIS.fetch_add(1, Ordering::AcqRel);
    let end = &raw const nmi_sleep_end as u64;
    if (nmi_sleep as *const () as u64..end).contains(&frame.rip) {
        frame.rip = end;
    }
}

fn sleep_for_nmi(_: usize) {
    let mut reached = 0;
    loop {
        // SAFETY: it changes nothing but the flags.
        unsafe { nmi_sleep(reached) };
        if !advance(&mut reached) {
            return;
        }
    }
}

fn sleep_for_kick(_: usize) {
    let mut reached = 0;
    loop {
        if WANTED.load(Ordering::SeqCst) == reached {
            // SAFETY: a kick ends it, also one that came before.
            unsafe { asm!("hlt", options(nostack)) };
        }
        if !advance(&mut reached) {
            return;
        }
    }
}

fn has_kick() -> bool {
    let base = core::arch::x86_64::__cpuid(0x4000_0000);
    base.ebx == u32::from_le_bytes(*b"KVMK")
        && core::arch::x86_64::__cpuid(0x4000_0001).eax & PV_UNHALT != 0
}

/// Asks for the end of the HLT of the processor with this APIC ID.
fn kick(apic_id: u64) -> u64 {
    let result: u64;
    // SAFETY: the hypercall changes RAX only; RBX is restored.
    unsafe {
        asm!("mov r8, rbx", "xor ebx, ebx", "vmcall", "mov rbx, r8", out("r8") _,
            inout("rax") KICK => result, in("rcx") apic_id, options(nostack));
    }
    result
}
