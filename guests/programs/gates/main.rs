//! Changes of control between privilege levels and code sizes: IDT gates,
//! IRET, far branches and call gates, SYSCALL and SYSENTER (Intel SDM vol. 3A
//! 5.8, 6.14; AMD APM vol. 2 4.7, 4.8, 6.1, 8.9).

#![no_std]
#![no_main]

mod far;
mod idt;
mod iret;
mod syscall;
mod sysenter;

use kit::{Code, Report, snippet, tables};

kit::program!(main);

fn main(t: &mut Report) {
    idt::run(t);
    iret::run(t);
    far::run(t);
    syscall::run(t);
    sysenter::run(t);
}

/// Code that a gate or entry point can lead to. It collects: RAX = RFLAGS,
/// RBX = RSP at entry, RCX = SS, RDX = CS, and R8, R9, R10, R12, R13 = the
/// five quadwords on the stack. R11 stays.
fn collector() -> Code {
    snippet!(
        "mov rbx, rsp",
        "pushfq",
        "pop rax",
        "mov ecx, ss",
        "mov edx, cs",
        "mov r8, [rbx]",
        "mov r9, [rbx + 8]",
        "mov r10, [rbx + 16]",
        "mov r12, [rbx + 24]",
        "mov r13, [rbx + 32]"
    )
}

/// Selector for descriptors that a check builds.
const SPARE: u16 = tables::FREE_SELECTOR;
/// A second one, 16 bytes behind.
const SPARE2: u16 = tables::FREE_SELECTOR + 16;

/// Descriptor bit: present.
const PRESENT: u64 = tables::field::PRESENT;
/// Code descriptor bit: conforming.
const CONFORMING: u64 = 1 << 42;
