//! The ways into a case and out of it.

use std::arch::naked_asm;
use std::mem::offset_of;
use std::sync::atomic::AtomicU64;

use crate::image::CpuImage;

/// Stack pointer of the worker while a case runs.
static WORKER_RSP: AtomicU64 = AtomicU64::new(0);
/// FS base of the worker: its thread-local storage.
pub(super) static WORKER_FS: AtomicU64 = AtomicU64::new(0);

/// Loads all registers from `image` and continues at its RIP. Returns when [`leave_case`] is
/// called.
///
/// # Safety
/// Only in the worker process, whose signal handlers are installed and call [`leave_case`].
#[unsafe(naked)]
pub(super) unsafe extern "C" fn enter_case(image: *const CpuImage) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rip + {worker_rsp}], rsp",
        "mov eax, 7", // x87, SSE, AVX
        "xor edx, edx",
        "xrstor64 [rdi + {xsave}]",
        "mov rax, [rdi + {bases}]",
        "wrfsbase rax",
        "mov rax, [rdi + {bases} + 8]",
        "wrgsbase rax",
        "mov eax, ss",
        "push rax",
        "push qword ptr [rdi + {gpr} + 8 * 4]",
        "push qword ptr [rdi + {rflags}]",
        "mov eax, cs",
        "push rax",
        "push qword ptr [rdi + {rip}]",
        "mov rax, [rdi + {gpr}]",
        "mov rcx, [rdi + {gpr} + 8 * 1]",
        "mov rdx, [rdi + {gpr} + 8 * 2]",
        "mov rbx, [rdi + {gpr} + 8 * 3]",
        "mov rbp, [rdi + {gpr} + 8 * 5]",
        "mov rsi, [rdi + {gpr} + 8 * 6]",
        "mov r8, [rdi + {gpr} + 8 * 8]",
        "mov r9, [rdi + {gpr} + 8 * 9]",
        "mov r10, [rdi + {gpr} + 8 * 10]",
        "mov r11, [rdi + {gpr} + 8 * 11]",
        "mov r12, [rdi + {gpr} + 8 * 12]",
        "mov r13, [rdi + {gpr} + 8 * 13]",
        "mov r14, [rdi + {gpr} + 8 * 14]",
        "mov r15, [rdi + {gpr} + 8 * 15]",
        "mov rdi, [rdi + {gpr} + 8 * 7]",
        "iretq",
        worker_rsp = sym WORKER_RSP,
        xsave = const offset_of!(CpuImage, xsave),
        bases = const offset_of!(CpuImage, bases),
        gpr = const offset_of!(CpuImage, gpr),
        rflags = const offset_of!(CpuImage, rflags),
        rip = const offset_of!(CpuImage, rip),
    )
}

/// Returns from [`enter_case`].
///
/// # Safety
/// Only from a signal handler that interrupted a case.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn leave_case() -> ! {
    naked_asm!(
        "mov rsp, [rip + {worker_rsp}]",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        worker_rsp = sym WORKER_RSP,
    )
}

/// The signal handler. The kernel leaves NT and AC as the case set them, and the segment bases
/// are the case's; Rust code needs its own before it may run.
///
/// # Safety
/// Only called by the kernel, after [`WORKER_FS`] was set.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn signal_entry(
    signal: i32,
    info: *mut libc::siginfo_t,
    context: *mut libc::ucontext_t,
) {
    naked_asm!(
        "push 2",
        "popfq",
        "rdfsbase rbx",
        "rdgsbase rbp",
        "mov rax, [rip + {worker_fs}]",
        "wrfsbase rax",
        "mov rcx, rbx",
        "mov r8, rbp",
        "sub rsp, 8",
        "call {handler}",
        "add rsp, 8",
        "wrfsbase rbx",
        "wrgsbase rbp",
        "ret", // to the restorer, which calls rt_sigreturn
        worker_fs = sym WORKER_FS,
        handler = sym super::worker::on_signal,
    )
}

/// The FS base of the calling thread.
pub(super) fn own_fs_base() -> u64 {
    let base;
    // SAFETY: RDFSBASE only reads a register; the runner has checked that the kernel enables it.
    unsafe { std::arch::asm!("rdfsbase {}", out(reg) base, options(nomem, nostack)) };
    base
}
