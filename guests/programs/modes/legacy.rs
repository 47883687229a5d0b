//! Runs snippets of 32-bit code with long mode off, and comes back.
//!
//! The way out: a far return to 32-bit code, paging off (which clears
//! EFER.LMA), EFER.LME off, then the control registers that the run asks for.
//! Any event through the 32-bit IDT ends the run; its frame is copied out and
//! long mode is entered again.

use core::arch::global_asm;
use kit::snippet::stack_top;
use kit::tables::{self, Pointer};
use kit::{Code, Global, Trap, boot};

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
}

/// What the common stub copies: PUSHAD's eight registers, then the frame.
#[repr(C)]
#[derive(Clone, Copy)]
struct Saved {
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
    cr2: u32,
    /// Address of the pushed EIP or error code.
    address: u32,
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
    cr2: 0,
    address: 0,
};

static SAVED: Global<Saved> = Global::new(NOTHING);
static IDT: Global<[[u32; 2]; 256]> = Global::new([[0; 2]; 256]);
static RSP: Global<u64> = Global::new(0);
static ESP: Global<u32> = Global::new(0);
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

/// Fills the 32-bit IDT.
pub fn init() {
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
        // SAFETY: long mode, the tables and the stack are as before when it
        // returns, and nothing of Rust runs in between.
        unsafe { legacy_enter(&self) };
        let s = SAVED.get();
        let outer = s.cs & 3 != 0;
        let words = if has_error(s.vector) { 4 } else { 3 } + if outer { 2 } else { 0 };
        let end = s.address + words * 4;
        let mut regs = kit::Regs::default();
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
    pub fn outcome(self) -> kit::Outcome {
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
4:  mov     [{esp}], esp
    test    dword ptr [edi + 32], 3
    jz      5f
    push    [edi + 44]
    push    [edi + 40]
    jmp     6f
5:  mov     esp, [edi + 40]
6:  push    [edi + 36]
    push    [edi + 32]
    push    [edi + 28]
    mov     eax, [edi + 48]
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
    mov     eax, {data}
    mov     ds, eax
    mov     es, eax
    mov     ss, eax
    mov     esi, esp
    mov     edi, offset {saved}
    mov     ecx, 15
    rep movsd
    mov     eax, cr2
    mov     [{saved} + 60], eax
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
7:  mov     [{saved} + 64], edx

    mov     esp, [{esp}]
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
    cr0 = const boot::CR0,
    cr4 = const boot::CR4,
);
