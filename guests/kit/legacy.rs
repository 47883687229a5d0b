//! Runs snippets of 32-bit, 16-bit or virtual-8086 code with long mode off, and comes back.
//!
//! The way out: a far return to 32-bit code, paging off (which clears
//! EFER.LMA), EFER.LME off, then the control registers that the run asks for.
//! Any event through the 32-bit IDT ends the run; its frame is copied out and
//! long mode is entered again.

use crate::snippet::stack_top;
use crate::tables::{self, Pointer};
use crate::trap::{Outcome, Regs};
use crate::{Code, Global, Trap, boot};
use core::arch::global_asm;

/// CR0 for protected mode without paging.
pub const CR0_FLAT: u32 = boot::CR0 as u32 & !(1 << 31);
/// CR4 without PAE.
pub const CR4_PLAIN: u32 = boot::CR4 as u32 & !(1 << 5);
/// The first gate vector's stub; see [`stub`].
const STUB_LEN: u32 = 16;

/// What is loaded when a run starts.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Legacy {
    /// EAX, EBX, ECX, EDX, ESI, EDI, EBP.
    pub regs: [u32; 7],
    pub eip: u32,
    pub cs: u32,
    pub eflags: u32,
    pub esp: u32,
    pub ss: u32,
    pub ds: u32,
    pub cr0: u32,
    pub cr3: u32,
    pub cr4: u32,
    /// Selector for LTR, 0 to leave the task register.
    pub tr: u32,
    /// What outcomes count from.
    pub mark: u32,
    /// ES, FS and GS of a run in virtual-8086 mode; others have `ds` in ES, and 0.
    pub es: u32,
    pub fs: u32,
    pub gs: u32,
    /// Selector for LLDT.
    pub ldt: u32,
}

/// What the common stub copies: PUSHAD's eight registers, the frame, and the state of the handler.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs)] // The names are the architecture's.
pub struct Saved {
    edi: u32,
    esi: u32,
    ebp: u32,
    esp_of_pushad: u32,
    ebx: u32,
    edx: u32,
    ecx: u32,
    eax: u32,
    vector: u32,
    error: u32,
    eip: u32,
    cs: u32,
    eflags: u32,
    /// Only pushed when the privilege changed.
    esp: u32,
    ss: u32,
    /// Only pushed when virtual-8086 mode was left.
    pub es: u32,
    pub ds: u32,
    pub fs: u32,
    pub gs: u32,
    cr2: u32,
    /// Address of the pushed EIP or error code.
    address: u32,
    /// What the handler found in these registers.
    pub cr0: u32,
    pub cr3: u32,
    pub dr6: u32,
    pub tr: u16,
    pub ldt: u16,
    pub handler_ds: u16,
    pub handler_es: u16,
    pub handler_fs: u16,
    pub handler_gs: u16,
}

const NOTHING: Saved = Saved {
    edi: 0,
    esi: 0,
    ebp: 0,
    esp_of_pushad: 0,
    ebx: 0,
    edx: 0,
    ecx: 0,
    eax: 0,
    vector: 0,
    error: 0,
    eip: 0,
    cs: 0,
    eflags: 0,
    esp: 0,
    ss: 0,
    es: 0,
    ds: 0,
    fs: 0,
    gs: 0,
    cr2: 0,
    address: 0,
    cr0: 0,
    cr3: 0,
    dr6: 0,
    tr: 0,
    ldt: 0,
    handler_ds: 0,
    handler_es: 0,
    handler_fs: 0,
    handler_gs: 0,
};

/// EFLAGS.VM.
const VM: u32 = 1 << 17;

/// A 32-bit task state segment with an I/O permission bitmap for the first
/// 1024 ports (SDM vol. 3A 8.2.1).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // The names are the architecture's.
pub struct Task {
    pub link: u32,
    /// ESP and SS for entry to privilege levels 0 to 2.
    pub stacks: [[u32; 2]; 3],
    pub cr3: u32,
    pub eip: u32,
    pub eflags: u32,
    /// EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI.
    pub regs: [u32; 8],
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [u32; 6],
    pub ldt: u32,
    /// Bit 0: trap on a switch to the task.
    pub trap: u16,
    pub io_map: u16,
    pub bitmap: [u8; 132],
}

impl Task {
    /// A task with a stack for ring 0 and all ports open to it.
    pub fn new() -> Self {
        Self {
            link: 0,
            stacks: [[tables::rsp0_top() as u32, tables::KERNEL_DATA as u32], [0; 2], [0; 2]],
            cr3: 0,
            eip: 0,
            eflags: 2,
            regs: [0; 8],
            segments: [0; 6],
            ldt: 0,
            trap: 0,
            io_map: 104,
            bitmap: [0; 132],
        }
    }
}

impl Default for Task {
    fn default() -> Self {
        Self::new()
    }
}

/// Limit of a [`Task`] with its bitmap.
pub const TASK_LIMIT: u32 = size_of::<Task>() as u32 - 1;
/// Selector of [`TASK`] while a run with [`Legacy::with_task`] lasts.
pub const TASK_SELECTOR: u16 = 0x1e0;
/// The task of such a run; it may be changed before the run.
pub static TASK: Global<Task> = Global::new(Task {
    link: 0,
    stacks: [[0; 2]; 3],
    cr3: 0,
    eip: 0,
    eflags: 0,
    regs: [0; 8],
    segments: [0; 6],
    ldt: 0,
    trap: 0,
    io_map: 0,
    bitmap: [0; 132],
});

static SAVED: Global<Saved> = Global::new(NOTHING);
static IDT: Global<[[u32; 2]; 256]> = Global::new([[0; 2]; 256]);
pub(crate) static RSP: Global<u64> = Global::new(0);
pub(crate) static ESP: Global<u32> = Global::new(0);
static IDT_POINTER: Global<Pointer> = Global::new(Pointer { limit: 0x7ff, base: 0 });
static LONG_IDT_POINTER: Global<Pointer> = Global::new(Pointer { limit: 0, base: 0 });

/// The 32-bit entry stub of a vector.
pub fn stub(vector: u8) -> u32 {
    &raw const legacy_stubs as u32 + u32::from(vector) * STUB_LEN
}

/// Installs a gate: `kind` is the type field (14 and 15 for 32 bits, 6 and 7
/// for 16 bits).
pub fn set_gate(vector: u8, offset: u32, selector: u16, kind: u32, dpl: u32) {
    let low = offset & 0xffff | u32::from(selector) << 16;
    let high = offset & 0xffff_0000 | 0x8000 | kind << 8 | dpl << 13;
    // SAFETY: in range; the table is only used inside `Legacy::run`.
    unsafe { (*IDT.ptr())[usize::from(vector)] = [low, high] };
}

/// The gate that runs start with.
pub fn restore_gate(vector: u8) {
    let dpl = if vector == tables::END_VECTOR { 3 } else { 0 };
    set_gate(vector, stub(vector), tables::KERNEL_CODE32, 14, dpl);
}

/// What ended the last run, with what a [`Trap`] has no room for.
pub fn last() -> Saved {
    SAVED.get()
}

/// Writes a gate's two halves as they are.
pub fn set_raw_gate(vector: u8, value: u64) {
    // SAFETY: as for `set_gate`.
    unsafe { (*IDT.ptr())[usize::from(vector)] = [value as u32, (value >> 32) as u32] };
}

/// Fills the 32-bit IDT. Call it before the first run.
pub fn init() {
    TASK.set(Task::new());
    for vector in 0..=255 {
        restore_gate(vector);
    }
    IDT_POINTER.set(Pointer { limit: 0x7ff, base: IDT.addr() });
    LONG_IDT_POINTER.set(tables::idt_pointer());
}

/// Prepares a run in ring 0 without paging.
pub fn at(code: Code) -> Legacy {
    Legacy {
        regs: [0; 7],
        eip: code.start as u32,
        cs: tables::KERNEL_CODE32.into(),
        eflags: 2,
        esp: stack_top() as u32,
        ss: tables::KERNEL_DATA.into(),
        ds: tables::KERNEL_DATA.into(),
        cr0: CR0_FLAT,
        cr3: boot::PML4.addr() as u32,
        cr4: CR4_PLAIN,
        tr: 0,
        mark: code.mark as u32,
        es: 0,
        fs: 0,
        gs: 0,
        ldt: 0,
    }
}

impl Legacy {
    /// Ring 3 instead, with the addresses moved by `base`.
    pub fn ring3(mut self, base: u32) -> Self {
        self.cs = tables::USER_CODE32.into();
        self.ss = tables::USER_DATA.into();
        self.ds = self.ss;
        self.eip += base;
        self.mark += base;
        self.esp += base;
        self
    }

    /// Lets the run use [`TASK`].
    pub fn with_task(mut self) -> Self {
        self.tr = TASK_SELECTOR.into();
        self
    }

    /// Sets EAX.
    pub fn eax(mut self, value: u32) -> Self {
        self.regs[0] = value;
        self
    }

    /// Sets EBX.
    pub fn ebx(mut self, value: u32) -> Self {
        self.regs[1] = value;
        self
    }

    /// Sets ECX.
    pub fn ecx(mut self, value: u32) -> Self {
        self.regs[2] = value;
        self
    }

    /// Runs it; the result is told in the terms of 64-bit runs. RSP and SS
    /// are those before the event; `stack` is where the frame ended.
    pub fn run(self) -> Trap {
        SAVED.set(NOTHING);
        if self.tr == TASK_SELECTOR.into() {
            let descriptor = tables::system_descriptor(TASK.addr(), TASK_LIMIT, 9);
            tables::set_descriptor(TASK_SELECTOR, descriptor);
        }
        // SAFETY: long mode, the tables and the stack are as before when it
        // returns, and nothing of Rust runs in between.
        unsafe { legacy_enter(&self) };
        tables::load_tr(tables::TSS_LIMIT);
        let s = SAVED.get();
        let from_8086 = s.eflags & VM != 0;
        let outer = from_8086 || s.cs & 3 != 0;
        let error = u32::from(has_error(s.vector));
        let words = 3 + error + if outer { 2 } else { 0 } + if from_8086 { 4 } else { 0 };
        let end = s.address + words * 4;
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
            error: s.error.into(),
            rip: s.eip.into(),
            cs: u64::from(s.cs & 0xffff),
            rflags: s.eflags.into(),
            rsp: if outer { s.esp.into() } else { end.into() },
            ss: if outer { u64::from(s.ss & 0xffff) } else { self.ss.into() },
            cr2: s.cr2.into(),
            cr0: self.cr0.into(),
            regs,
            stack: end.into(),
            mark: self.mark.into(),
        }
    }

    /// The outcome of [`Legacy::run`].
    pub fn outcome(self) -> Outcome {
        self.run().outcome()
    }
}

fn has_error(vector: u32) -> bool {
    matches!(vector, 8 | 10..=14 | 17)
}

unsafe extern "C" {
    static legacy_stubs: u8;
    fn legacy_enter(run: &Legacy);
}

global_asm!(
    r#"
    .text
    .code64
    .globl legacy_enter
legacy_enter:
    push    rbx
    push    rbp
    push    r12
    push    r13
    push    r14
    push    r15
    pushfq
    mov     [rip + {rsp}], rsp
    lidt    [rip + {idt_pointer}]
    push    {code32}
    lea     rax, [rip + 2f]
    push    rax
    retfq

    .code32
2:  mov     eax, {data}
    mov     ds, eax
    mov     es, eax
    mov     ss, eax
    mov     eax, cr0
    btr     eax, 31
    mov     cr0, eax
    jmp     3f
3:  mov     ecx, 0xc0000080
    rdmsr
    btr     eax, 8
    wrmsr
    mov     eax, [edi + 60]
    mov     cr4, eax
    mov     eax, [edi + 56]
    mov     cr3, eax
    mov     eax, [edi + 52]
    mov     cr0, eax
    mov     eax, [edi + 64]
    test    eax, eax
    jz      4f
    ltr     ax
4:  mov     eax, [edi + 84]
    lldt    ax
    mov     [{esp}], esp
    mov     eax, [edi + 48]
    test    dword ptr [edi + 36], 0x20000
    jz      3f
    push    [edi + 80]
    push    [edi + 76]
    push    eax
    push    [edi + 72]
    mov     eax, {data}
    jmp     2f
3:  test    dword ptr [edi + 32], 3
    jz      5f
2:  push    [edi + 44]
    push    [edi + 40]
    jmp     6f
5:  mov     esp, [edi + 40]
6:  push    [edi + 36]
    push    [edi + 32]
    push    [edi + 28]
    push    eax
    mov     ebx, [edi + 4]
    mov     ecx, [edi + 8]
    mov     edx, [edi + 12]
    mov     esi, [edi + 16]
    mov     ebp, [edi + 24]
    mov     eax, [edi]
    mov     edi, [edi + 20]
    // POP DS, PUSH DS, POP ES as bytes: the assembler takes the mnemonics
    // for the 16-bit forms. They come last, since the loads above use DS.
    .byte   0x1f, 0x1e, 0x07
    iretd

    .balign 16
    .globl legacy_stubs
legacy_stubs:
    .set    vector32, 0
    .rept   256
    .balign 16
    .if     !((vector32 == 8) || ((vector32 >= 10) && (vector32 <= 14)) || (vector32 == 17))
    .byte   0x6a, 0
    .endif
    .byte   0x68
    .long   vector32
    jmp     legacy_common
    .set    vector32, vector32 + 1
    .endr

legacy_common:
    pushad
    cld
    mov     ebx, ds
    mov     edx, es
    mov     ebp, fs
    mov     ecx, gs
    mov     eax, {data}
    mov     ds, eax
    mov     es, eax
    // The stack may have a base: it is read through SS.
    mov     esi, esp
    mov     word ptr [{saved} + 100], bx
    mov     word ptr [{saved} + 102], dx
    mov     word ptr [{saved} + 104], bp
    mov     word ptr [{saved} + 106], cx
    mov     edi, offset {saved}
    mov     ecx, 19
    .byte   0xf3, 0x36, 0xa5
    mov     eax, cr2
    mov     [{saved} + 76], eax
    mov     eax, cr0
    mov     [{saved} + 84], eax
    mov     eax, cr3
    mov     [{saved} + 88], eax
    mov     eax, dr6
    mov     [{saved} + 92], eax
    str     word ptr [{saved} + 96]
    sldt    word ptr [{saved} + 98]
    // The frame begins behind the vector, and behind the stand-in error code.
    lea     edx, [esp + 36]
    mov     eax, [esp + 32]
    cmp     eax, 8
    je      7f
    cmp     eax, 17
    je      7f
    cmp     eax, 10
    jb      8f
    cmp     eax, 14
    jbe     7f
8:  add     edx, 4
7:  mov     [{saved} + 80], edx
    mov     eax, {data}
    mov     ss, eax

    .globl legacy_return
legacy_return:
    mov     esp, [{esp}]
    // Long mode cannot be entered with a 16-bit TSS in the task register.
    sub     esp, 8
    sgdt    [esp]
    mov     eax, [esp + 2]
    and     byte ptr [eax + {tss} + 5], 0xfd
    mov     eax, {tss}
    ltr     ax
    add     esp, 8
    mov     eax, cr0
    btr     eax, 31
    mov     cr0, eax
    jmp     9f
9:  mov     eax, {cr4}
    mov     cr4, eax
    mov     eax, offset {pml4}
    mov     cr3, eax
    mov     ecx, 0xc0000080
    rdmsr
    bts     eax, 8
    wrmsr
    mov     eax, {cr0}
    mov     cr0, eax
    push    {code64}
    mov     eax, offset legacy_back
    push    eax
    retf

    .code64
legacy_back:
    mov     eax, {data}
    mov     ss, eax
    xor     eax, eax
    lldt    ax
    mov     fs, eax
    mov     gs, eax
    mov     rsp, [rip + {rsp}]
    lidt    [rip + {long_idt_pointer}]
    popfq
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     rbp
    pop     rbx
    ret
"#,
    rsp = sym RSP,
    esp = sym ESP,
    saved = sym SAVED,
    idt_pointer = sym IDT_POINTER,
    long_idt_pointer = sym LONG_IDT_POINTER,
    pml4 = sym boot::PML4,
    code32 = const tables::KERNEL_CODE32,
    code64 = const tables::KERNEL_CODE,
    data = const tables::KERNEL_DATA,
    tss = const tables::TSS_SELECTOR,
    cr0 = const boot::CR0,
    cr4 = const boot::CR4,
);
