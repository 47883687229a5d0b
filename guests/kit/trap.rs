//! Exceptions and interrupts: entry stubs, hooks, and recovery.
//!
//! Every vector has a stub that saves all registers in a [`Frame`] and calls
//! the dispatcher. If the program has [`hook`]ed the vector, the hook runs and
//! the interrupted code continues with the frame as the hook left it.
//! Otherwise, if a [`guard`] is active, the guarded code is abandoned and the
//! guard returns the [`Trap`]. Otherwise the program ends as failed.

use crate::tables::{END_VECTOR, KERNEL_CODE, KERNEL_DATA};
use crate::{Global, report};
use core::arch::global_asm;
use core::fmt;

/// Vector numbers of the exceptions.
pub mod vector {
    #![allow(missing_docs)] // The names are the architecture's.
    pub const DE: u64 = 0;
    pub const DB: u64 = 1;
    pub const NMI: u64 = 2;
    pub const BP: u64 = 3;
    pub const OF: u64 = 4;
    pub const BR: u64 = 5;
    pub const UD: u64 = 6;
    pub const NM: u64 = 7;
    pub const DF: u64 = 8;
    pub const TS: u64 = 10;
    pub const NP: u64 = 11;
    pub const SS: u64 = 12;
    pub const GP: u64 = 13;
    pub const PF: u64 = 14;
    pub const MF: u64 = 16;
    pub const AC: u64 = 17;
    pub const MC: u64 = 18;
    pub const XM: u64 = 19;
}

/// The general registers except RSP, in the order of the entry stub.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // The names are the architecture's.
pub struct Regs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
}

/// What the stub saves; a hook may change it before the interrupted code
/// continues.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs)] // The names are the architecture's.
pub struct Frame {
    pub cr0: u64,
    pub cr2: u64,
    pub regs: Regs,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// A caught exception, or the regular end of a snippet.
#[derive(Clone, Copy)]
#[allow(missing_docs)] // The names are the architecture's.
pub struct Trap {
    pub vector: u64,
    /// Error code; 0 for vectors without one.
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
    /// CR2 at entry.
    pub cr2: u64,
    /// CR0 at entry.
    pub cr0: u64,
    pub regs: Regs,
    /// Address just above the pushed SS: the 16-byte aligned stack top that
    /// the processor started pushing from.
    pub stack: u64,
    /// The address that [`Outcome`]'s `at` counts from.
    pub mark: u64,
}

impl Trap {
    const NONE: Self = Self {
        vector: 0,
        error: 0,
        rip: 0,
        cs: 0,
        rflags: 0,
        rsp: 0,
        ss: 0,
        cr2: 0,
        cr0: 0,
        regs: Regs {
            r15: 0,
            r14: 0,
            r13: 0,
            r12: 0,
            r11: 0,
            r10: 0,
            r9: 0,
            r8: 0,
            rdi: 0,
            rsi: 0,
            rbp: 0,
            rbx: 0,
            rdx: 0,
            rcx: 0,
            rax: 0,
        },
        stack: 0,
        mark: 0,
    };

    fn new(frame: &Frame) -> Self {
        Self {
            vector: frame.vector,
            error: frame.error,
            rip: frame.rip,
            cs: frame.cs,
            rflags: frame.rflags,
            rsp: frame.rsp,
            ss: frame.ss,
            cr2: frame.cr2,
            cr0: frame.cr0,
            regs: frame.regs,
            stack: &raw const *frame as u64 + size_of::<Frame>() as u64,
            mark: 0,
        }
    }

    /// The part that most checks compare.
    pub fn outcome(&self) -> Outcome {
        let at = self.rip.wrapping_sub(self.mark) as i64;
        match self.vector {
            v if v == u64::from(END_VECTOR) => Outcome::Done,
            vector::PF => Outcome::PageFault { error: self.error, cr2: self.cr2, at },
            vector => Outcome::Fault { vector, error: self.error, at },
        }
    }
}

/// How a snippet ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It reached its end.
    Done,
    /// An exception other than #PF.
    Fault {
        /// The vector number.
        vector: u64,
        /// Error code, 0 if the vector has none.
        error: u64,
        /// Saved RIP, relative to the snippet's mark.
        at: i64,
    },
    /// A page fault.
    PageFault {
        /// Error code.
        error: u64,
        /// Faulting linear address.
        cr2: u64,
        /// Saved RIP, relative to the snippet's mark.
        at: i64,
    },
}

impl Outcome {
    /// An exception with error code 0, or without error code, whose saved RIP
    /// is the mark.
    pub const fn fault(vector: u64) -> Self {
        Self::Fault { vector, error: 0, at: 0 }
    }

    /// An exception with this error code, whose saved RIP is the mark.
    pub const fn coded(vector: u64, error: u64) -> Self {
        Self::Fault { vector, error, at: 0 }
    }

    /// A trap: the saved RIP is `at` bytes behind the mark.
    pub const fn trap(vector: u64, at: i64) -> Self {
        Self::Fault { vector, error: 0, at }
    }

    /// A page fault whose saved RIP is the mark.
    pub const fn page(error: u64, cr2: u64) -> Self {
        Self::PageFault { error, cr2, at: 0 }
    }
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 20] = [
            "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "#9", "#TS", "#NP",
            "#SS", "#GP", "#PF", "#15", "#MF", "#AC", "#MC", "#XM",
        ];
        match *self {
            Self::Done => f.write_str("done"),
            Self::Fault { vector, error, at } => match NAMES.get(vector as usize) {
                Some(name) => write!(f, "{name}({error:#x})@{at}"),
                None => write!(f, "vector {vector:#x}({error:#x})@{at}"),
            },
            Self::PageFault { error, cr2, at } => write!(f, "#PF({error:#x}, {cr2:#x})@{at}"),
        }
    }
}

/// A function that a program installs for a vector.
pub type Hook = fn(&mut Frame);

static HOOKS: Global<[Option<Hook>; 256]> = Global::new([None; 256]);
static GUARD_RSP: Global<u64> = Global::new(0);
static CAUGHT: Global<Trap> = Global::new(Trap::NONE);

/// Installs (or with `None` removes) the hook of a vector.
pub fn hook(vector: u8, function: Option<Hook>) {
    // SAFETY: the index is in range; interrupts are off while hooks change.
    unsafe { (*HOOKS.ptr())[usize::from(vector)] = function };
}

/// The address of the entry stub of a vector.
pub fn stub(vector: u8) -> u64 {
    &raw const trap_stubs as u64 + u64::from(vector) * 16
}

/// Runs `f`; if an unhooked exception ends it early, returns that.
///
/// Nothing that `f` owns is dropped then, so `f` should own nothing.
pub fn guard<F: FnMut()>(mut f: F) -> Option<Trap> {
    extern "C" fn call<F: FnMut()>(f: *mut F) {
        // SAFETY: `guard` passes a pointer to its own closure.
        unsafe { (*f)() }
    }
    // SAFETY: the entry keeps the C ABI whether or not `f` is abandoned; the
    // abandoned frames own nothing.
    let trapped = unsafe { trap_guard(call::<F> as *const (), (&raw mut f).cast()) };
    (trapped != 0).then(|| CAUGHT.get())
}

/// Whether `f` raises #GP, and nothing else.
pub fn faults<F: FnMut()>(f: F) -> Option<u64> {
    guard(f).map(|trap| trap.vector)
}

#[unsafe(no_mangle)]
extern "C" fn trap_dispatch(frame: &mut Frame) {
    let index = frame.vector as usize & 0xff;
    // SAFETY: the index is in range.
    let hook = unsafe { (&raw const (*HOOKS.ptr())[index]).read_volatile() };
    // An event at the very entry of a handler may have overwritten the frame
    // that it interrupted: nothing can be resumed then.
    let nested = (stub(0)..=stub(255)).contains(&frame.rip);
    if let (Some(hook), false) = (hook, nested) {
        return hook(frame);
    }
    let trap = Trap::new(frame);
    if GUARD_RSP.get() == 0 {
        report::abort(format_args!(
            "unexpected {:?} rip {:#x} rsp {:#x} cr2 {:#x}",
            trap.outcome(),
            trap.rip,
            trap.rsp,
            trap.cr2
        ));
    }
    CAUGHT.set(trap);
    abandon(frame);
}

/// Makes the frame return to the active guard.
fn abandon(frame: &mut Frame) {
    const EM_TS: u64 = 0b1100;
    frame.cr0 &= !EM_TS;
    frame.rip = &raw const trap_guard_resume as u64;
    frame.cs = u64::from(KERNEL_CODE);
    frame.rflags = 2;
    frame.rsp = GUARD_RSP.get();
    frame.ss = u64::from(KERNEL_DATA);
}

unsafe extern "C" {
    static trap_stubs: u8;
    static trap_guard_resume: u8;
    fn trap_guard(function: *const (), data: *mut ()) -> u32;
}

// The stubs: 16 bytes each; a zero stands in for a missing error code.
// (`.byte 0x68` is PUSH imm32: as an operand the counter would mean memory.)
global_asm!(
    r#"
    .text
    .balign 16
    .globl trap_stubs
trap_stubs:
    .set    vector, 0
    .rept   256
    .balign 16
    .if     !((vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21))
    push    0
    .endif
    .byte   0x68
    .long   vector
    jmp     trap_common
    .set    vector, vector + 1
    .endr

    .balign 16
trap_common:
    push    rax
    push    rcx
    push    rdx
    push    rbx
    push    rbp
    push    rsi
    push    rdi
    push    r8
    push    r9
    push    r10
    push    r11
    push    r12
    push    r13
    push    r14
    push    r15
    mov     rax, cr2
    push    rax
    mov     rax, cr0
    push    rax
    // Rust code may use SSE: no #NM or #UD inside the dispatcher. (CR0 is
    // given back on return; CR4.OSFXSR stays set.)
    test    eax, 12
    jz      2f
    and     rax, -13
    mov     cr0, rax
2:  mov     rax, cr4
    bts     eax, 9
    jc      5f
    mov     cr4, rax
5:  cld
    mov     rdi, rsp
    mov     rbx, rsp
    and     rsp, -16
    // An interrupt may come between any two instructions of Rust code, which
    // keeps values in these registers; no x87 register and no MXCSR.
    sub     rsp, 256
    .irp    n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movups  [rsp + 16 * \n], xmm\n
    .endr
    call    trap_dispatch
    .irp    n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movups  xmm\n, [rsp + 16 * \n]
    .endr
    mov     rsp, rbx
    pop     rax
    mov     rcx, cr0
    cmp     rax, rcx
    je      3f
    mov     cr0, rax
3:  add     rsp, 8
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     r11
    pop     r10
    pop     r9
    pop     r8
    pop     rdi
    pop     rsi
    pop     rbp
    pop     rbx
    pop     rdx
    pop     rcx
    pop     rax
    add     rsp, 16
    iretq

    // u32 trap_guard(function, data): 1 if the function was abandoned.
    .globl trap_guard
trap_guard:
    push    rbx
    push    rbp
    push    r12
    push    r13
    push    r14
    push    r15
    push    [rip + {guard_rsp}]
    mov     [rip + {guard_rsp}], rsp
    mov     rax, rdi
    mov     rdi, rsi
    call    rax
    xor     eax, eax
    jmp     4f
    .globl trap_guard_resume
trap_guard_resume:
    mov     eax, 1
4:  pop     [rip + {guard_rsp}]
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     rbp
    pop     rbx
    ret
"#,
    guard_rsp = sym GUARD_RSP,
);
