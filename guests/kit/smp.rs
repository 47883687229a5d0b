//! The other processors: their start, and work for them (Intel SDM vol. 3A
//! 9.4).
//!
//! [`start_all`] wakes them with INIT and SIPI. Each runs the trampoline at
//! [`TRAMPOLINE`] into long mode, gets tables and stacks of its own, and waits
//! for work. A processor is known by its index, which is its APIC ID.
//!
//! Work is a function that gets the index: [`together`] runs it on several
//! processors at once, [`start`] and [`finish`] on one. Hooks run on whatever
//! processor was interrupted; [`index`] tells it. [`crate::trap::guard`] is for
//! the first processor only, while the others cause no exception.

use crate::boot::{CR0, CR4, EFER, PML4};
use crate::cpu::{self, cpuid, msr};
use crate::tables::{self, Pointer, TSS_SELECTOR, Tss};
use crate::{Frame4K, Global, ZERO_FRAME, apic, pit, report};
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Most processors that are used.
pub const MAX: usize = 8;

/// Where the trampoline is copied: what a SIPI with vector 8 starts.
pub const TRAMPOLINE: u64 = 0x8000;

/// The vector of a SIPI that starts the trampoline.
pub const START_VECTOR: u32 = (TRAMPOLINE >> 12) as u32;

/// The longest that a piece of work may take, milliseconds.
const PATIENCE_MS: u64 = 60_000;

/// The longest that the start of a processor may take, milliseconds: a host
/// that is busy may let it wait.
pub const START_MS: u64 = 10_000;

/// What a processor has of its own. GS points to it.
#[repr(C, align(4096))]
struct Own {
    index: u64,
    gdt: [u64; 64],
    tss: Tss,
    ist: [[Frame4K; 2]; 7],
    stack: [Frame4K; 8],
}

const STACK_LEN: u64 = 8 * 4096;
const IST_LEN: u64 = 2 * 4096;

static OWN: Global<[Own; MAX]> = Global::new(
    [const {
        Own {
            index: 0,
            gdt: [0; 64],
            tss: Tss::ZERO,
            ist: [[ZERO_FRAME; 2]; 7],
            stack: [ZERO_FRAME; 8],
        }
    }; MAX],
);
/// Whether a processor waits for work or works.
static ONLINE: [AtomicBool; MAX] = [const { AtomicBool::new(false) }; MAX];
/// The function that a processor runs; 0 for none.
static WORK: [AtomicUsize; MAX] = [const { AtomicUsize::new(0) }; MAX];

/// A piece of work: gets the index of its processor.
pub type Work = fn(usize);

global_asm!(
    r#"
    .text
    .balign 16
    .globl ap_trampoline
    .globl ap_trampoline_end
ap_trampoline:
    .code16
    cli
    cld
    .byte   0x2e, 0x66, 0x0f, 0x01, 0x16            // lgdt cs:[pointer]
    .word   ap_gdt_pointer - ap_trampoline
    mov     eax, {cr4}
    mov     cr4, eax
    mov     eax, offset {pml4}
    mov     cr3, eax
    mov     ecx, 0xc0000080
    mov     eax, {efer}
    xor     edx, edx
    wrmsr
    mov     eax, {cr0}
    mov     cr0, eax
    .byte   0x66, 0xea                              // jmp 8:ap_long
    .long   ap_long
    .word   8
    .balign 8
ap_gdt:
    .quad   0
    .quad   0x00af9b000000ffff
    .quad   0x00cf93000000ffff
ap_gdt_pointer:
    .word   23
    .long   {trampoline} + (ap_gdt - ap_trampoline)
ap_trampoline_end:

    .code64
ap_long:
    mov     eax, 0x10
    mov     ds, eax
    mov     es, eax
    mov     ss, eax
    mov     eax, 1
    cpuid
    shr     ebx, 24
    cmp     ebx, {max}
    jae     2f
    mov     edi, ebx
    imul    rbx, rbx, {own_len}
    lea     rsp, [rbx + {own} + {stack_end}]
    fninit
    push    0x1f80
    ldmxcsr [rsp]
    pop     rax
    xor     ebp, ebp
    call    {main}
2:  cli
    hlt
    jmp     2b
    .text
"#,
    cr4 = const CR4,
    cr0 = const CR0,
    efer = const EFER,
    pml4 = sym PML4,
    trampoline = const TRAMPOLINE,
    max = const MAX,
    own = sym OWN,
    own_len = const size_of::<Own>(),
    stack_end = const core::mem::offset_of!(Own, stack) as u64 + STACK_LEN,
    main = sym ap_main,
);

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
}

extern "C" fn ap_main(index: usize) -> ! {
    load_own(index);
    apic::enable();
    ONLINE[index].store(true, Ordering::Release);
    loop {
        let work = WORK[index].load(Ordering::Acquire);
        if work == 0 {
            core::hint::spin_loop();
            continue;
        }
        // SAFETY: only `start` stores a number other than 0, from a `Work`.
        let work: Work = unsafe { core::mem::transmute(work) };
        work(index);
        WORK[index].store(0, Ordering::Release);
    }
}

/// Tables and stacks for the present processor, which is not the first.
fn load_own(index: usize) {
    // SAFETY: the index is in range; this processor alone uses its place.
    let own = unsafe { &mut (*OWN.ptr())[index] };
    for (entry, value) in own.gdt.iter_mut().enumerate() {
        *value = tables::descriptor(entry as u16 * 8);
    }
    own.tss.io_map = tables::TSS_LIMIT as u16 + 1;
    let tss = &raw const own.tss as u64;
    own.gdt[usize::from(TSS_SELECTOR) / 8] = tables::system_descriptor(tss, tables::TSS_LIMIT, 9);
    own.gdt[usize::from(TSS_SELECTOR) / 8 + 1] = tss >> 32;
    let ist = &raw const own.ist as u64;
    for number in 0..7 {
        own.tss.ist[number] = ist + (number as u64 + 1) * IST_LEN;
    }
    tables::load_gdt(Pointer { limit: tables::GDT_LIMIT, base: &raw const own.gdt as u64 });
    tables::load_idt(tables::idt_pointer());
    // SAFETY: the descriptor just written is valid.
    unsafe { asm!("ltr {:x}", in(reg) TSS_SELECTOR, options(nostack, preserves_flags)) };
    tables::load_segments();
    set_index(index);
}

fn set_index(index: usize) {
    // SAFETY: as in `load_own`.
    let own = unsafe { &mut (*OWN.ptr())[index] };
    own.index = index as u64;
    cpu::wrmsr(msr::GS_BASE, &raw const *own as u64);
}

/// The index of the present processor; valid once [`start_all`] was called.
pub fn index() -> usize {
    let index: usize;
    // SAFETY: GS points to the processor's `Own`, which begins with its index.
    unsafe { asm!("mov {}, gs:[0]", out(reg) index, options(nostack, readonly)) };
    index
}

/// How many processors CPUID says there are in the package.
pub fn count() -> usize {
    let mut count = 1;
    for level in 0..4 {
        let result = cpuid(0xb, level);
        if result.ecx >> 8 & 0xff == 0 {
            break;
        }
        count = result.ebx as usize & 0xffff;
    }
    count.clamp(1, MAX)
}

/// Copies code into low memory, where a SIPI can start it.
pub fn place_trampoline() {
    let (start, end) = (&raw const ap_trampoline, &raw const ap_trampoline_end);
    // SAFETY: both are labels of one piece of code.
    let bytes = unsafe { core::slice::from_raw_parts(start, end as usize - start as usize) };
    for (offset, &byte) in bytes.iter().enumerate() {
        // SAFETY: that page is free RAM on every machine.
        unsafe { ((TRAMPOLINE + offset as u64) as *mut u8).write_volatile(byte) };
    }
}

/// Starts all others that [`count`] tells; a bit for each that came.
pub fn start_all() -> u64 {
    place_trampoline();
    set_index(0);
    (1..count()).fold(1, |came, index| {
        init(index);
        startup(index, START_VECTOR);
        came | u64::from(is_online_within(index, START_MS)) << index
    })
}

/// Sends INIT: the processor waits for a SIPI then.
pub fn init(index: usize) {
    ONLINE[index].store(false, Ordering::Relaxed);
    WORK[index].store(0, Ordering::Relaxed);
    apic::ipi(index as u32, apic::ICR_INIT | apic::ICR_ASSERT);
    pit::spin_us(100);
}

/// Sends a SIPI with this vector.
pub fn startup(index: usize, vector: u32) {
    apic::ipi(index as u32, apic::ICR_STARTUP | apic::ICR_ASSERT | vector);
}

/// Waits until a processor waits for work.
pub fn is_online_within(index: usize, ms: u64) -> bool {
    wait(ms, || ONLINE[index].load(Ordering::Acquire))
}

/// Waits, without letting interrupts in, for at most `ms` milliseconds;
/// whether it came true in time.
pub fn wait(ms: u64, done: impl Fn() -> bool) -> bool {
    let (start, limit) = (cpu::tsc(), pit::tsc_per_ms() * ms);
    while !done() {
        if cpu::tsc() - start > limit {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

/// Gives work to a processor that has none.
pub fn start(index: usize, work: Work) {
    assert!(WORK[index].load(Ordering::Relaxed) == 0, "processor {index} has work");
    WORK[index].store(work as usize, Ordering::Release);
}

/// Waits for the end of a processor's work; a processor that does not come to
/// it ends the program.
pub fn finish(index: usize) {
    if !wait(PATIENCE_MS, || WORK[index].load(Ordering::Acquire) == 0) {
        report::abort(format_args!("processor {index} does not finish its work"));
    }
}

/// Runs the same work on the first `count` processors, this one included.
pub fn together(count: usize, work: Work) {
    (1..count).for_each(|index| start(index, work));
    work(0);
    (1..count).for_each(finish);
}

/// Where processors wait for each other.
pub struct Barrier {
    waiting: AtomicU64,
    round: AtomicU64,
}

impl Barrier {
    /// Nobody waits.
    pub const fn new() -> Self {
        Self { waiting: AtomicU64::new(0), round: AtomicU64::new(0) }
    }

    /// Returns when `count` processors have called it.
    pub fn wait(&self, count: usize) {
        let round = self.round.load(Ordering::Acquire);
        if self.waiting.fetch_add(1, Ordering::AcqRel) + 1 == count as u64 {
            self.waiting.store(0, Ordering::Relaxed);
            self.round.store(round + 1, Ordering::Release);
        } else if !wait(PATIENCE_MS, || self.round.load(Ordering::Acquire) != round) {
            report::abort(format_args!("processor {} waits in vain", index()));
        }
    }
}

impl Default for Barrier {
    fn default() -> Self {
        Self::new()
    }
}
