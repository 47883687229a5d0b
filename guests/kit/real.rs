//! Runs snippets of 16-bit code in real mode, and comes back; and the low
//! memory that real and virtual-8086 mode reach (Intel SDM vol. 3B 21.1,
//! vol. 3A 10.9).
//!
//! The way out: long mode off as in [`legacy`](crate::legacy), a far return to
//! a 16-bit code segment, CR0.PE off, a far jump, then the registers of the
//! run. Any event through the interrupt vector table ends the run.

use crate::legacy::{self, CR0_FLAT, CR4_PLAIN, Legacy};
use crate::snippet::Code;
use crate::trap::{Outcome, Regs, Trap};
use crate::{page, tables};
use core::arch::global_asm;

/// Segment of a run's code.
pub const CODE: u16 = 0x5000;
/// Segment of a run's data.
pub const DATA: u16 = 0x6000;
/// Segment of a run's stack.
pub const STACK: u16 = 0x7000;
/// SP at the start of a run.
pub const STACK_TOP: u32 = 0xff00;

/// Segment of the code that enters and leaves real mode.
const BLOB: u16 = 0x4000;
/// Offsets in it: what is loaded, what was saved, the vector table.
const RUN: u32 = 0x3000;
const SAVED: u32 = 0x3100;
/// Linear address of the interrupt vector table that runs start with.
pub const VECTORS: u32 = (BLOB as u32) * 16 + 0x3400;
/// Selectors of the 16-bit segments on the way: code at BLOB, and data.
const CODE16: u16 = 0x1f0;
const DATA16: u16 = 0x1e8;

/// What is loaded when a run starts.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs)] // The names are the architecture's.
pub struct Real {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
    pub esi: u32,
    pub edi: u32,
    pub ebp: u32,
    pub esp: u32,
    pub ip: u32,
    pub cs: u32,
    pub eflags: u32,
    pub ds: u32,
    pub es: u32,
    pub fs: u32,
    pub gs: u32,
    pub ss: u32,
    /// The IDT register: limit, base.
    pub idt_limit: u32,
    pub idt_base: u32,
    /// What outcomes count from.
    pub mark: u32,
}

/// What the common handler saved, with what a [`Trap`] has no room for.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // The names are the architecture's.
pub struct Saved {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
    pub esi: u32,
    pub edi: u32,
    pub ebp: u32,
    /// ESP before the event.
    pub esp: u32,
    pub vector: u16,
    pub ip: u16,
    pub cs: u16,
    pub flags: u16,
    pub ds: u16,
    pub es: u16,
    pub fs: u16,
    pub gs: u16,
    pub ss: u16,
    padding: u16,
    /// EFLAGS inside the handler.
    pub handler_flags: u32,
    pub cr0: u32,
}

/// Linear address of an offset in a segment.
pub const fn linear(segment: u16, offset: u32) -> u64 {
    segment as u64 * 16 + offset as u64
}

/// Copies bytes to low memory.
pub fn store(at: u64, bytes: &[u8]) {
    for (offset, &byte) in bytes.iter().enumerate() {
        // SAFETY: low memory above 0x40000 is free RAM on every machine.
        unsafe { ((at + offset as u64) as *mut u8).write_volatile(byte) };
    }
}

/// Copies a snippet, with the INT that ends it, to an address in low memory.
pub fn place(code: Code, at: u64) {
    // SAFETY: the snippet lies in the image, mapped one to one.
    let bytes = unsafe {
        core::slice::from_raw_parts(code.start as *const u8, (code.end + 2 - code.start) as usize)
    };
    store(at, bytes);
}

/// Prepares a run of 16-bit code at `CODE:0`.
pub fn at(code: Code) -> Real {
    place(code, linear(CODE, 0));
    Real {
        eax: 0,
        ebx: 0,
        ecx: 0,
        edx: 0,
        esi: 0,
        edi: 0,
        ebp: 0,
        esp: STACK_TOP,
        ip: 0,
        cs: CODE.into(),
        eflags: 2,
        ds: DATA.into(),
        es: DATA.into(),
        fs: 0,
        gs: 0,
        ss: STACK.into(),
        idt_limit: 0x3ff,
        idt_base: VECTORS,
        mark: (code.mark - code.start) as u32,
    }
}

/// Prepares a run of 16-bit code at `CODE:0` in virtual-8086 mode with this
/// IOPL. The run needs a task register.
pub fn at_8086(code: Code, iopl: u32) -> Legacy {
    place(code, linear(CODE, 0));
    Legacy {
        eip: 0,
        cs: CODE.into(),
        eflags: 0x2_0002 | iopl << 12,
        esp: STACK_TOP,
        ss: STACK.into(),
        ds: DATA.into(),
        es: DATA.into(),
        mark: (code.mark - code.start) as u32,
        ..legacy::at(code)
    }
}

/// Places the code that enters and leaves real mode, and the descriptors that
/// it uses. Call it, after [`legacy::init`], before the first run.
pub fn init() {
    let start = &raw const real_blob as u64;
    let end = &raw const real_blob_end as u64;
    // SAFETY: the blob lies in the image.
    let blob = unsafe { core::slice::from_raw_parts(start as *const u8, (end - start) as usize) };
    store(linear(BLOB, 0), blob);
    let base = linear(BLOB, 0);
    tables::set_descriptor(CODE16, 0x0000_9b00_0000_ffff | (base & 0xff_ffff) << 16);
    tables::set_descriptor(DATA16, 0x0000_9300_0000_ffff);
    for vector in 0..=255 {
        restore_vector(vector);
    }
}

/// The far pointer to the stub of a vector.
pub fn stub(vector: u8) -> u32 {
    let stubs = &raw const real_stubs as u64 - &raw const real_blob as u64;
    u32::from(BLOB) << 16 | stubs as u32 + u32::from(vector) * 8
}

/// Writes an entry of the interrupt vector table.
pub fn set_vector(vector: u8, far: u32) {
    store(u64::from(VECTORS) + u64::from(vector) * 4, &far.to_le_bytes());
}

/// The entry that runs start with.
pub fn restore_vector(vector: u8) {
    set_vector(vector, stub(vector));
}

/// What ended the last run.
pub fn last() -> Saved {
    // SAFETY: the handler has written it; the place is aligned.
    unsafe { (linear(BLOB, SAVED) as *const Saved).read_volatile() }
}

impl Real {
    /// Runs it. RSP and SS are those before the event; `stack` is 0.
    pub fn run(self) -> Trap {
        // SAFETY: the place is free and aligned; `real_enter` keeps the C ABI.
        unsafe {
            (linear(BLOB, RUN) as *mut Self).write_volatile(self);
            // LIDT takes limit and base without a gap.
            page::poke(
                linear(BLOB, RUN - 8),
                u64::from(self.idt_base) << 16 | u64::from(self.idt_limit),
            );
            real_enter();
        }
        let s = last();
        let mut regs = Regs::default();
        regs.rax = s.eax.into();
        regs.rbx = s.ebx.into();
        regs.rcx = s.ecx.into();
        regs.rdx = s.edx.into();
        regs.rsi = s.esi.into();
        regs.rdi = s.edi.into();
        regs.rbp = s.ebp.into();
        Trap {
            vector: s.vector.into(),
            error: 0,
            rip: s.ip.into(),
            cs: s.cs.into(),
            rflags: s.flags.into(),
            rsp: s.esp.into(),
            ss: s.ss.into(),
            cr2: 0,
            cr0: s.cr0.into(),
            regs,
            stack: 0,
            mark: self.mark.into(),
        }
    }

    /// The outcome of [`Real::run`].
    pub fn outcome(self) -> Outcome {
        self.run().outcome()
    }
}

unsafe extern "C" {
    static real_blob: u8;
    static real_blob_end: u8;
    static real_stubs: u8;
    fn real_enter();
}

global_asm!(
    r#"
    .text
    .code64
    .globl real_enter
real_enter:
    push    rbx
    push    rbp
    push    r12
    push    r13
    push    r14
    push    r15
    pushfq
    mov     [rip + {rsp}], rsp
    push    {code32}
    lea     rax, [rip + 2f]
    push    rax
    retfq

    .code32
2:  mov     eax, {data}
    mov     ds, eax
    mov     es, eax
    mov     ss, eax
    mov     [{esp}], esp
    mov     eax, cr0
    btr     eax, 31
    mov     cr0, eax
    jmp     3f
3:  mov     ecx, 0xc0000080
    rdmsr
    btr     eax, 8
    wrmsr
    mov     eax, {cr4}
    mov     cr4, eax
    mov     eax, {cr0}
    mov     cr0, eax
    lidt    [{idt_pointer}]
    push    {code16}
    push    0
    retf

    // Runs at offset 0 of the segment BLOB; everything in it is relative.
    .balign 16
    .globl real_blob
real_blob:
    .code16
    mov     ax, {data16}
    mov     ds, ax
    mov     es, ax
    mov     fs, ax
    mov     gs, ax
    mov     ss, ax
    mov     eax, cr0
    and     al, 0xfe
    mov     cr0, eax
    .byte   0xea
    .word   4f - real_blob
    .word   {blob}
4:  mov     ss, word ptr cs:[{run} + 60]
    mov     esp, dword ptr cs:[{run} + 28]
    cmp     sp, 12
    jb      6f
    push    dword ptr cs:[{run} + 40]
    push    dword ptr cs:[{run} + 36]
    push    dword ptr cs:[{run} + 32]
6:  mov     eax, dword ptr cs:[{run}]
    mov     ebx, dword ptr cs:[{run} + 4]
    mov     ecx, dword ptr cs:[{run} + 8]
    mov     edx, dword ptr cs:[{run} + 12]
    mov     esi, dword ptr cs:[{run} + 16]
    mov     edi, dword ptr cs:[{run} + 20]
    mov     ebp, dword ptr cs:[{run} + 24]
    mov     ds, word ptr cs:[{run} + 44]
    mov     es, word ptr cs:[{run} + 48]
    mov     fs, word ptr cs:[{run} + 52]
    mov     gs, word ptr cs:[{run} + 56]
    // A stack without room for a frame: the run starts with these flags.
    cmp     word ptr cs:[{run} + 28], 12
    jb      7f
    iretd
    // jmp fword ptr cs:[run + 32]
7:  .byte   0x2e, 0x66, 0xff, 0x2e
    .word   {run} + 32

    .balign 16
    .globl real_stubs
real_stubs:
    .set    vector16, 0
    .rept   256
    .balign 8
    .byte   0x68
    .word   vector16
    .byte   0xe9
    .word   real_common - . - 2
    .set    vector16, vector16 + 1
    .endr

real_common:
    mov     dword ptr cs:[{saved}], eax
    mov     dword ptr cs:[{saved} + 4], ebx
    mov     dword ptr cs:[{saved} + 8], ecx
    mov     dword ptr cs:[{saved} + 12], edx
    mov     dword ptr cs:[{saved} + 16], esi
    mov     dword ptr cs:[{saved} + 20], edi
    mov     dword ptr cs:[{saved} + 24], ebp
    pop     word ptr cs:[{saved} + 32]
    pop     word ptr cs:[{saved} + 34]
    pop     word ptr cs:[{saved} + 36]
    pop     word ptr cs:[{saved} + 38]
    mov     dword ptr cs:[{saved} + 28], esp
    mov     word ptr cs:[{saved} + 40], ds
    mov     word ptr cs:[{saved} + 42], es
    mov     word ptr cs:[{saved} + 44], fs
    mov     word ptr cs:[{saved} + 46], gs
    mov     word ptr cs:[{saved} + 48], ss
    mov     sp, 0x2ffc
    mov     ax, cs
    mov     ss, ax
    pushfd
    pop     dword ptr cs:[{saved} + 52]
    mov     eax, cr0
    mov     dword ptr cs:[{saved} + 56], eax
    or      al, 1
    mov     cr0, eax
    .byte   0x66, 0xea
    .long   5f
    .word   {code32}
    .globl real_blob_end
real_blob_end:

    .code32
5:  mov     eax, {data}
    mov     ds, eax
    mov     es, eax
    mov     ss, eax
    jmp     legacy_return
    .code64
"#,
    rsp = sym legacy::RSP,
    esp = sym legacy::ESP,
    cr0 = const CR0_FLAT,
    cr4 = const CR4_PLAIN,
    code32 = const tables::KERNEL_CODE32,
    data = const tables::KERNEL_DATA,
    code16 = const CODE16,
    data16 = const DATA16,
    blob = const BLOB,
    run = const RUN,
    saved = const SAVED,
    idt_pointer = const (BLOB as u32) * 16 + RUN - 8,
);
