//! Short assembly sequences that run in any mode, with all registers given
//! and taken.
//!
//! [`snippet!`](crate::snippet!) assembles code into a section of its own;
//! [`Code::at`] chooses the [`Mode`]; the builder methods of [`Run`] set
//! registers; [`Run::run`] enters by IRETQ and returns the [`Trap`] that ended
//! the snippet: an exception, or the regular end (an INT [`END_VECTOR`] that
//! the macro appends). Code and stacks are reachable at two addresses: at
//! their own (supervisor pages) and at [`USER_BASE`] + their own (user pages).
//!
//! [`END_VECTOR`]: crate::tables::END_VECTOR

use crate::tables::{END_VECTOR, USER_CODE, USER_CODE32, USER_DATA};
use crate::tables::{KERNEL_CODE, KERNEL_CODE32, KERNEL_DATA};
use crate::trap::{self, Outcome, Trap};
use crate::{Frame4K, Global, ZERO_FRAME};
use core::arch::global_asm;

pub use crate::trap::Regs;

/// Start of the user-accessible alias of low memory.
pub const USER_BASE: u64 = 0x8000_0000;

static STACK: Global<[Frame4K; 4]> = Global::new([ZERO_FRAME; 4]);

/// Assembled code: addresses of its start, its mark and its end.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    /// First instruction.
    pub start: u64,
    /// The place that outcomes count from.
    pub mark: u64,
    /// The ending INT instruction.
    pub end: u64,
}

/// Privilege level and code size of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Ring 0, 64-bit.
    Kernel64,
    /// Ring 0, compatibility mode.
    Kernel32,
    /// Ring 3, 64-bit.
    User64,
    /// Ring 3, compatibility mode.
    User32,
}

impl Mode {
    /// Code and data selectors.
    pub const fn selectors(self) -> (u16, u16) {
        match self {
            Self::Kernel64 => (KERNEL_CODE, KERNEL_DATA),
            Self::Kernel32 => (KERNEL_CODE32, KERNEL_DATA),
            Self::User64 => (USER_CODE, USER_DATA),
            Self::User32 => (USER_CODE32, USER_DATA),
        }
    }

    /// What is added to the addresses of code, stack and data.
    pub const fn base(self) -> u64 {
        match self {
            Self::Kernel64 | Self::Kernel32 => 0,
            Self::User64 | Self::User32 => USER_BASE,
        }
    }

    /// Current privilege level.
    pub const fn cpl(self) -> u64 {
        (self.selectors().0 & 3) as u64
    }
}

/// Assembles a snippet and yields its [`Code`].
///
/// The literals before the semicolon (if any) are set-up, those behind it
/// begin at the mark: `snippet!("mov eax, 1"; "div ecx")`. Operands for the
/// assembler (`const`, `sym`) follow `=>`. Use numeric labels.
#[macro_export]
macro_rules! snippet {
    ($($setup:expr),* ; $($code:expr),* $(=> $($operands:tt)*)?) => {{
        let (start, mark, end): (u64, u64, u64);
        // SAFETY: the instructions go to another section; only their
        // addresses are taken here.
        unsafe {
            core::arch::asm!(
                ".pushsection .snippets, \"ax\", @progbits",
                "96:", $($setup,)* "97:", $($code,)* ".code64", "98:", "int 0xf0",
                ".popsection",
                "lea {snippet_start}, [rip + 96b]",
                "lea {snippet_mark}, [rip + 97b]",
                "lea {snippet_end}, [rip + 98b]",
                snippet_start = out(reg) start,
                snippet_mark = out(reg) mark,
                snippet_end = out(reg) end,
                $($($operands)*,)?
                options(nostack, preserves_flags, nomem),
            );
        }
        $crate::Code { start, mark, end }
    }};
    ($($code:expr),* $(=> $($operands:tt)*)?) => {
        $crate::snippet!(; $($code),* $(=> $($operands)*)?)
    };
}

/// A snippet of 32-bit code, for [`Mode::Kernel32`] and [`Mode::User32`].
#[macro_export]
macro_rules! snippet32 {
    ($($setup:expr),* ; $($code:expr),* $(=> $($operands:tt)*)?) => {
        $crate::snippet!(".code32", $($setup),* ; $($code),* $(=> $($operands)*)?)
    };
    ($($code:expr),* $(=> $($operands:tt)*)?) => {
        $crate::snippet!(".code32" ; $($code),* $(=> $($operands)*)?)
    };
}

impl Code {
    /// Prepares a run in `mode`: registers zero, RFLAGS 2 (interrupts off), a
    /// stack of 16 KiB.
    pub fn at(self, mode: Mode) -> Run {
        let (cs, ss) = mode.selectors();
        let base = mode.base();
        Run {
            regs: Regs::default(),
            rip: self.start + base,
            cs: cs.into(),
            rflags: 2,
            rsp: stack_top() + base,
            ss: ss.into(),
            ds: u64::from(if mode.cpl() == 3 { USER_DATA } else { KERNEL_DATA }),
            mark: self.mark + base,
            cr0: 0,
        }
    }

    /// Runs in ring 0, 64-bit, with the defaults of [`Code::at`].
    pub fn kernel(self) -> Trap {
        self.at(Mode::Kernel64).run()
    }

    /// Runs in ring 3, 64-bit, with the defaults of [`Code::at`].
    pub fn user(self) -> Trap {
        self.at(Mode::User64).run()
    }

    /// The outcome of [`Code::kernel`].
    pub fn k(self) -> Outcome {
        self.kernel().outcome()
    }

    /// The outcome of [`Code::user`].
    pub fn u(self) -> Outcome {
        self.user().outcome()
    }
}

/// Top of the snippet stack, at its supervisor address.
pub fn stack_top() -> u64 {
    STACK.addr() + 0x4000
}

/// Everything that is loaded when a snippet starts.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs)] // The names are the architecture's.
pub struct Run {
    pub regs: Regs,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
    /// Selector for DS and ES.
    pub ds: u64,
    /// What outcomes count from.
    pub mark: u64,
    /// CR0 from just before the entry on (compiled code needs TS and EM
    /// clear); 0 leaves it. EM and TS are clear again after the run.
    pub cr0: u64,
}

macro_rules! setters {
    ($($reg:ident)*) => {
        $(
            #[doc = concat!("Sets ", stringify!($reg), ".")]
            pub fn $reg(mut self, value: u64) -> Self {
                self.regs.$reg = value;
                self
            }
        )*
    };
}

impl Run {
    setters!(rax rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15);

    /// Sets RSP.
    pub fn rsp(mut self, value: u64) -> Self {
        self.rsp = value;
        self
    }

    /// Sets CR0 for the run.
    pub fn cr0(mut self, value: u64) -> Self {
        self.cr0 = value;
        self
    }

    /// Sets further bits of RFLAGS.
    pub fn flags(mut self, bits: u64) -> Self {
        self.rflags |= bits;
        self
    }

    /// Enters the snippet and returns what ended it.
    pub fn run(self) -> Trap {
        // SAFETY: `snippet_enter` leaves for the snippet and comes back only
        // through the guard.
        let trap = trap::guard(|| unsafe { snippet_enter(&self) });
        match trap {
            Some(trap) => Trap { mark: self.mark, ..trap },
            None => unreachable!("a snippet returned"),
        }
    }

    /// The outcome of [`Run::run`].
    pub fn outcome(self) -> Outcome {
        self.run().outcome()
    }
}

unsafe extern "C" {
    fn snippet_enter(run: &Run);
}

global_asm!(
    r#"
    .text
    .globl snippet_enter
snippet_enter:
    mov     rax, [rdi + 176]
    test    rax, rax
    jz      2f
    mov     cr0, rax
2:  mov     eax, [rdi + 160]
    mov     ds, eax
    mov     es, eax
    push    [rdi + 152]
    push    [rdi + 144]
    push    [rdi + 136]
    push    [rdi + 128]
    push    [rdi + 120]
    mov     r15, [rdi]
    mov     r14, [rdi + 8]
    mov     r13, [rdi + 16]
    mov     r12, [rdi + 24]
    mov     r11, [rdi + 32]
    mov     r10, [rdi + 40]
    mov     r9, [rdi + 48]
    mov     r8, [rdi + 56]
    mov     rsi, [rdi + 72]
    mov     rbp, [rdi + 80]
    mov     rbx, [rdi + 88]
    mov     rdx, [rdi + 96]
    mov     rcx, [rdi + 104]
    mov     rax, [rdi + 112]
    mov     rdi, [rdi + 64]
    iretq
"#
);

static BUFFER: Global<Frame4K> = Global::new(ZERO_FRAME);

/// Makes a snippet of raw machine code; the mark is at its start.
///
/// There is one buffer: the code is valid until the next call.
pub fn bytes(code: &[u8]) -> Code {
    // SAFETY: the buffer belongs to this function and is longer than any
    // instruction sequence that programs pass (checked by the slicing).
    let buffer = unsafe { &mut (*BUFFER.ptr()).0 };
    buffer[..code.len()].copy_from_slice(code);
    buffer[code.len()..code.len() + 2].copy_from_slice(&[0xcd, END_VECTOR]);
    let start = BUFFER.addr();
    Code { start, mark: start, end: start + code.len() as u64 }
}
