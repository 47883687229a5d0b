//! The two pages of a sandbox that are not the guest's: code that executes a list of system calls,
//! and the list, which the sandbox can only read.
//!
//! The code is position-independent and finds the list in the page behind itself. It uses no stack.
//! Guest code that jumps there can at most execute a SYSCALL instruction, which is caught like any
//! other of its own.

use std::arch::global_asm;

/// Linear address of the code page; the list is in the next. In the middle of what user code can
/// address, where neither programs nor libraries nor stacks are put.
pub(crate) const CODE: u64 = 0x2fed_cba9_8000;
/// Linear address of the list page.
pub(crate) const LIST: u64 = CODE + PAGE;
/// The first address behind both pages.
pub(crate) const END: u64 = LIST + PAGE;
pub(crate) const PAGE: u64 = 4096;

/// A system call of the list: its number and six arguments. Number [`LAST`] ends the list.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) number: u64,
    pub(crate) arguments: [u64; 6],
    pub(crate) reserved: u64,
}

/// Ends a list.
pub(crate) const LAST: u64 = u64::MAX;
/// Calls that fit into the list, besides its end.
pub(crate) const MOST_CALLS: usize = PAGE as usize / size_of::<Call>() - 1;

global_asm!(
    ".pushsection .rodata",
    ".balign 16",
    ".globl ringfence_direct_stub, ringfence_direct_stub_end",
    ".hidden ringfence_direct_stub, ringfence_direct_stub_end",
    "ringfence_direct_stub:",
    "lea r15, [rip + ringfence_direct_stub + 4096]",
    "2:",
    "mov rax, [r15]",
    "cmp rax, -1",
    "je 3f",
    "mov rdi, [r15 + 8]",
    "mov rsi, [r15 + 16]",
    "mov rdx, [r15 + 24]",
    "mov r10, [r15 + 32]",
    "mov r8, [r15 + 40]",
    "mov r9, [r15 + 48]",
    "add r15, 64",
    "syscall",
    // Results between -4095 and -1 are errors; RAX tells the tracer.
    "cmp rax, -4095",
    "jae 4f",
    "jmp 2b",
    "3:",
    "xor eax, eax",
    "4:",
    "int3",
    "ringfence_direct_stub_end:",
    ".popsection",
);

unsafe extern "C" {
    static ringfence_direct_stub: u8;
    static ringfence_direct_stub_end: u8;
}

/// Where the code is in this process, and its bytes.
pub(crate) fn code() -> (*const u8, usize) {
    let begin = &raw const ringfence_direct_stub;
    let end = &raw const ringfence_direct_stub_end;
    (begin, end as usize - begin as usize)
}
