//! How the process of a sandbox is made, and made harmless.
//!
//! It is a fork of this process that gives everything up before it executes guest code: memory,
//! open files but guest RAM, system calls but mmap and munmap (and those only reach the host when
//! the tracer says so), the CPU's clock and CPUID. Between the fork and its end nothing is called
//! that might take a lock, as other threads do not exist there.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use libc::{c_long, pid_t, sock_filter, sock_fprog};

use crate::stub::{self, CODE, END, LIST, PAGE};

/// The file of guest RAM in the process.
pub(crate) const RAM_FILE: RawFd = 3;
/// The end of the addresses that user code can have, with paging of four levels.
pub(crate) const TOP: u64 = 0x7fff_ffff_f000;

/// `ARCH_SET_CPUID`: 0 makes CPUID a fault (arch_prctl(2)).
const ARCH_SET_CPUID: c_long = 0x1012;
/// What restartable sequences are registered with by the C library (linux/rseq.h).
const RSEQ_SIGNATURE: c_long = 0x5305_3053;
const RSEQ_UNREGISTER: c_long = 1;
/// Length of the registered area, of every C library so far.
const RSEQ_LENGTH: c_long = 32;

/// What preparing the child can fail by, as its exit status.
const STEPS: [&str; 8] = [
    "making the process",
    "leaving the C library's restartable sequences",
    "mapping its own pages",
    "keeping guest RAM open",
    "withholding the time stamp counter",
    "withholding CPUID",
    "being traced",
    "the system-call filter",
];

/// The step that a child ended by, from its exit status.
pub(crate) fn step(status: i32) -> &'static str {
    let code = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) as usize } else { 0 };
    STEPS.get(code).copied().unwrap_or(STEPS[0])
}

/// Forks the process; it stops with SIGTRAP when it is ready.
pub(crate) fn spawn(ram: BorrowedFd<'_>, list: BorrowedFd<'_>) -> io::Result<pid_t> {
    let (ram, list) = (ram.as_raw_fd(), list.as_raw_fd());
    let rseq = registered_rseq();
    // SAFETY: a fork by the bare system call; in the child only `become_sandbox` runs, which keeps
    // to system calls.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: this is the child, which nobody else runs in.
        0 => unsafe { become_sandbox(ram, list, rseq) },
        pid => Ok(pid as pid_t),
    }
}

/// Where the C library has registered this thread's restartable sequences; 0 when it has not.
///
/// The kernel would write there whenever the process has been preempted, and end it when nothing is
/// mapped there any more.
fn registered_rseq() -> u64 {
    // SAFETY: looks a symbol up; the name ends with zero.
    let offset = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()) };
    if offset.is_null() {
        return 0;
    }
    let thread_pointer: u64;
    // SAFETY: glibc (2.35 and later) documents the symbol as a pointer-sized constant; the first
    // word of the thread's block is its own address (System V ABI for x86-64, TLS variant II).
    unsafe {
        std::arch::asm!("mov {}, fs:[0]", out(reg) thread_pointer, options(nostack, readonly));
        thread_pointer.wrapping_add_signed(offset.cast::<isize>().read() as i64)
    }
}

/// # Safety
/// Runs in a forked child only. Calls nothing but the kernel.
unsafe fn become_sandbox(ram: RawFd, list: RawFd, rseq: u64) -> ! {
    // SAFETY: system calls with integers, and with pointers to live objects of this function.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if rseq != 0 {
            let gone =
                libc::syscall(libc::SYS_rseq, rseq, RSEQ_LENGTH, RSEQ_UNREGISTER, RSEQ_SIGNATURE);
            // EINVAL: it was not registered, by choice of the C library.
            let never = gone == -1 && *libc::__errno_location() == libc::EINVAL;
            demand(gone == 0 || never, 1);
        }
        demand(map_own_pages(list), 2);
        demand(ram == RAM_FILE || libc::dup2(ram, RAM_FILE) == RAM_FILE, 3);
        demand(close_but_ram(), 3);
        demand(libc::prctl(libc::PR_SET_TSC, libc::PR_TSC_SIGSEGV) == 0, 4);
        demand(libc::syscall(libc::SYS_arch_prctl, ARCH_SET_CPUID, 0) == 0, 5);
        let none = std::ptr::null_mut::<c_void>();
        demand(libc::ptrace(libc::PTRACE_TRACEME, 0, none, none) == 0, 6);
        unblock_signals();
        demand(filter_system_calls(), 7);
        leave_everything_behind()
    }
}

fn demand(holds: bool, step: i32) {
    if !holds {
        // SAFETY: ends the child.
        unsafe { libc::_exit(step) }
    }
}

/// # Safety
/// As [`become_sandbox`].
unsafe fn map_own_pages(list: RawFd) -> bool {
    let (code, len) = stub::code();
    let size = PAGE as usize;
    let fixed = libc::MAP_FIXED_NOREPLACE;
    // SAFETY: new mappings where none was; the code is shorter than a page.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed;
        let at = CODE as *mut c_void;
        let page = libc::mmap(at, size, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        if page != at {
            return false;
        }
        std::ptr::copy_nonoverlapping(code, page.cast::<u8>(), len);
        let at = LIST as *mut c_void;
        let shown = libc::mmap(at, size, libc::PROT_READ, libc::MAP_SHARED | fixed, list, 0);
        libc::mprotect(page, size, libc::PROT_READ | libc::PROT_EXEC) == 0 && shown == at
    }
}

/// # Safety
/// As [`become_sandbox`].
unsafe fn close_but_ram() -> bool {
    // SAFETY: closes files of the child.
    unsafe {
        let below = libc::syscall(libc::SYS_close_range, 0, RAM_FILE - 1, 0);
        let above = libc::syscall(libc::SYS_close_range, RAM_FILE + 1, u32::MAX, 0);
        below == 0 && above == 0
    }
}

/// # Safety
/// As [`become_sandbox`].
unsafe fn unblock_signals() {
    // SAFETY: a signal set of this function.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Allows mmap and munmap; everything else, also what the host's vsyscall page stands for, is a
/// signal (seccomp(2)).
///
/// # Safety
/// As [`become_sandbox`].
unsafe fn filter_system_calls() -> bool {
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const ALLOW: u32 = 0x7fff_0000;
    const TRAP: u32 = 0x0003_0000;
    const KILL: u32 = 0x8000_0000;
    const X86_64: u32 = 0xc000_003e;
    /// Offsets in `struct seccomp_data`.
    const NUMBER: u32 = 0;
    const ARCHITECTURE: u32 = 4;
    let step = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let mut program = [
        step(LOAD, 0, 0, ARCHITECTURE),
        step(JUMP_IF_EQUAL, 1, 0, X86_64),
        step(RETURN, 0, 0, KILL),
        step(LOAD, 0, 0, NUMBER),
        step(JUMP_IF_EQUAL, 2, 0, libc::SYS_mmap as u32),
        step(JUMP_IF_EQUAL, 1, 0, libc::SYS_munmap as u32),
        step(RETURN, 0, 0, TRAP),
        step(RETURN, 0, 0, ALLOW),
    ];
    let filter = sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program lives during the call.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, 2, &raw const filter) == 0
    }
}

/// Goes on in the stub, whose list unmaps all but its own two pages.
///
/// # Safety
/// As [`become_sandbox`]; the stub is mapped.
unsafe fn leave_everything_behind() -> ! {
    // SAFETY: the stub needs neither stack nor registers.
    unsafe { std::arch::asm!("jmp {}", in(reg) CODE, options(noreturn)) }
}

/// The calls that unmap all but the sandbox's own pages.
pub(crate) fn unmap_everything() -> [(u64, u64); 2] {
    [(0, CODE), (END, TOP - END)]
}
