//! System calls without a library in between, as far as the measurements need them.
//!
//! Numbers and structures are those of Linux on x86-64 (man-pages, sections 2 and 7).

use std::arch::{asm, naked_asm};
use std::ffi::{CStr, c_int, c_void};
use std::io::Error;

/// Numbers of system calls.
pub mod call {
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const OPEN: usize = 2;
    pub const CLOSE: usize = 3;
    pub const STAT: usize = 4;
    pub const MMAP: usize = 9;
    pub const MUNMAP: usize = 11;
    pub const RT_SIGACTION: usize = 13;
    pub const PIPE: usize = 22;
    pub const MADVISE: usize = 28;
    pub const NANOSLEEP: usize = 35;
    pub const GETPID: usize = 39;
    pub const SOCKETPAIR: usize = 53;
    pub const FORK: usize = 57;
    pub const EXECVE: usize = 59;
    pub const EXIT: usize = 60;
    pub const WAIT4: usize = 61;
    pub const KILL: usize = 62;
    pub const GETPPID: usize = 110;
    pub const PRCTL: usize = 157;
    pub const IOPERM: usize = 173;
    pub const SCHED_SETAFFINITY: usize = 203;
    pub const SCHED_GETAFFINITY: usize = 204;
    pub const MEMBARRIER: usize = 324;
}

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// `mmap`: loads, and loads and stores.
pub const PROT_READ: usize = 1;
pub const PROT_WRITE: usize = 3;
/// `mmap`: shared with whoever else maps the file; private; without a file.
pub const MAP_SHARED: usize = 1;
pub const MAP_PRIVATE: usize = 2;
pub const MAP_ANONYMOUS: usize = 0x20;
/// Signals.
pub const SIGUSR1: usize = 10;
pub const SIGSEGV: usize = 11;

const MADV_DONTNEED: usize = 4;
const MADV_NOHUGEPAGE: usize = 15;
const SA_SIGINFO: usize = 4;
const SA_RESTORER: usize = 0x0400_0000;
const PR_SET_TIMERSLACK: usize = 29;
const CLOCK_MONOTONIC_COARSE: c_int = 6;

unsafe extern "C" {
    /// The C library's, which reads the clock without a system call.
    fn clock_gettime(clock: c_int, time: *mut [i64; 2]) -> c_int;
}

/// A system call; what it answers, a negative error number included.
///
/// # Safety
/// Of the call with these arguments.
#[inline(always)]
pub unsafe fn raw(number: usize, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    let result;
    // SAFETY: the kernel keeps all registers but these; the rest is the caller's promise.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result,
             in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
             out("rcx") _, out("r11") _, options(nostack));
    }
    result
}

/// A system call with up to three arguments that must not fail.
///
/// # Safety
/// Of the call with these arguments.
#[inline(always)]
pub unsafe fn must(number: usize, [a, b, c]: [usize; 3]) -> usize {
    // SAFETY: the caller's promise.
    let result = unsafe { raw(number, [a, b, c, 0, 0, 0]) };
    assert!(result >= 0, "system call {number}: {}", Error::from_raw_os_error(-result as i32));
    result as usize
}

/// Opens a file to read and write; `None` if that is not possible.
pub fn open(path: &CStr) -> Option<usize> {
    const O_RDWR: usize = 2;
    // SAFETY: the path ends with a zero.
    usize::try_from(unsafe { raw(call::OPEN, [path.as_ptr() as usize, O_RDWR, 0, 0, 0, 0]) }).ok()
}

pub fn close(file: usize) {
    // SAFETY: the descriptors here belong to no value of the standard library.
    unsafe { must(call::CLOSE, [file, 0, 0]) };
}

/// The reading and the writing end of a new pipe.
pub fn pipe() -> [usize; 2] {
    let mut ends = [0_i32; 2];
    // SAFETY: room for two descriptors.
    unsafe { must(call::PIPE, [ends.as_mut_ptr() as usize, 0, 0]) };
    ends.map(|end| end as usize)
}

/// Two connected Unix stream sockets.
pub fn socket_pair() -> [usize; 2] {
    const AF_UNIX: usize = 1;
    const SOCK_STREAM: usize = 1;
    let mut ends = [0_i32; 2];
    let arguments = [AF_UNIX, SOCK_STREAM, 0, ends.as_mut_ptr() as usize, 0, 0];
    // SAFETY: room for two descriptors.
    let result = unsafe { raw(call::SOCKETPAIR, arguments) };
    assert!(result >= 0, "socketpair: {}", Error::from_raw_os_error(-result as i32));
    ends.map(|end| end as usize)
}

/// Reads one byte; `false` at the end.
#[inline(always)]
pub fn read_byte(file: usize) -> bool {
    let mut byte = 0_u8;
    // SAFETY: room for a byte.
    unsafe { must(call::READ, [file, &raw mut byte as usize, 1]) == 1 }
}

/// Writes one byte.
#[inline(always)]
pub fn write_byte(file: usize) {
    let byte = 0_u8;
    // SAFETY: a byte to read from.
    unsafe { must(call::WRITE, [file, &raw const byte as usize, 1]) };
}

/// Maps `len` bytes; of `file` from `offset` on, if there is one.
pub fn map(len: usize, prot: usize, how: usize, file: Option<(usize, usize)>) -> Option<usize> {
    let (file, offset) = file.unwrap_or((usize::MAX, 0));
    // SAFETY: a new mapping where nothing is.
    usize::try_from(unsafe { raw(call::MMAP, [0, len, prot, how, file, offset]) }).ok()
}

/// `len` bytes of private zeros, in small pages.
pub fn map_private(len: usize) -> usize {
    let at = map(len, PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, None).expect("memory");
    // SAFETY: the mapping is ours. Kernels without huge pages refuse, which is as good.
    unsafe { raw(call::MADVISE, [at, len, MADV_NOHUGEPAGE, 0, 0, 0]) };
    at
}

/// # Safety
/// Nobody accesses the mapping any more.
pub unsafe fn unmap(at: usize, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { must(call::MUNMAP, [at, len, 0]) };
}

/// Drops the content of private memory: it is zeros, and without pages, afterwards.
///
/// # Safety
/// The mapping is the caller's, and no reference into it lives.
pub unsafe fn discard(at: usize, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { must(call::MADVISE, [at, len, MADV_DONTNEED]) };
}

/// Runs `child` in a copy of the process; gives the copy's id.
pub fn fork(child: impl FnOnce()) -> usize {
    // SAFETY: the child ends here, and only the thread that forks calls this.
    match unsafe { must(call::FORK, [0; 3]) } {
        0 => {
            child();
            exit(0)
        }
        pid => pid,
    }
}

pub fn exit(status: usize) -> ! {
    loop {
        // SAFETY: ends the process.
        unsafe { raw(call::EXIT, [status, 0, 0, 0, 0, 0]) };
    }
}

/// Waits for a child, which must end with status 0.
pub fn wait(pid: usize) {
    let mut status = 0_i32;
    // SAFETY: room for the status; the fourth argument is null.
    unsafe { must(call::WAIT4, [pid, &raw mut status as usize, 0]) };
    assert!(status == 0, "a child ended with status {status:#x}");
}

/// Replaces the process by a program, with an empty environment; returns only if that fails.
pub fn exec(program: &CStr, arguments: &[*const i8]) {
    assert!(arguments.last().is_some_and(|last| last.is_null()), "a list that ends");
    let environment: [*const c_void; 1] = [std::ptr::null()];
    let [path, arguments, environment] =
        [program.as_ptr() as usize, arguments.as_ptr() as usize, environment.as_ptr() as usize];
    // SAFETY: strings and lists end with zeros.
    unsafe { raw(call::EXECVE, [path, arguments, environment, 0, 0, 0]) };
}

/// `struct sigaction` of the kernel: handler, flags, restorer, mask.
#[repr(C)]
struct Action {
    handler: usize,
    flags: usize,
    restorer: usize,
    mask: u64,
}

/// What a handler gets: number, information, context of the interrupted code.
pub type Handler = extern "C" fn(c_int, *mut c_void, *mut c_void);

/// Installs a handler.
#[inline(always)]
pub fn handle(signal: usize, handler: Handler) {
    let restorer = return_from_signal as *const () as usize;
    let flags = SA_SIGINFO | SA_RESTORER;
    let action = Action { handler: handler as usize, flags, restorer, mask: 0 };
    let arguments = [signal, &raw const action as usize, 0, size_of::<u64>(), 0, 0];
    // SAFETY: a valid structure; the handlers here do what is allowed in one.
    let result = unsafe { raw(call::RT_SIGACTION, arguments) };
    assert!(result == 0, "sigaction: {}", Error::from_raw_os_error(-result as i32));
}

#[unsafe(naked)]
extern "C" fn return_from_signal() {
    // rt_sigreturn
    naked_asm!("mov eax, 15", "syscall")
}

/// The place of RIP in the context that a handler gets: `uc_mcontext.gregs[REG_RIP]`.
pub const CONTEXT_RIP: usize = 40 + 16 * 8;

/// The CPUs that this thread may run on, of the first 1024.
pub fn cpus() -> Vec<usize> {
    let mut mask = [0_u64; 16];
    let len = size_of_val(&mask);
    // SAFETY: room for the mask.
    unsafe { must(call::SCHED_GETAFFINITY, [0, len, mask.as_mut_ptr() as usize]) };
    (0..len * 8).filter(|cpu| mask[cpu / 64] >> (cpu % 64) & 1 == 1).collect()
}

/// Keeps this thread, and those that it starts, on one CPU.
pub fn pin(cpu: usize) {
    let mut mask = [0_u64; 16];
    mask[cpu / 64] = 1 << (cpu % 64);
    // SAFETY: a valid mask.
    unsafe { must(call::SCHED_SETAFFINITY, [0, size_of_val(&mask), mask.as_ptr() as usize]) };
}

/// Timers of this thread expire when they are due, not up to 50 microseconds later.
pub fn exact_timers() {
    // SAFETY: changes nothing but the slack.
    unsafe { must(call::PRCTL, [PR_SET_TIMERSLACK, 1, 0]) };
}

/// The clock that a kernel's tick advances, nanoseconds. No system call.
#[inline(always)]
pub fn coarse_time() -> i64 {
    let mut time = [0; 2];
    // SAFETY: room for seconds and nanoseconds.
    unsafe { clock_gettime(CLOCK_MONOTONIC_COARSE, &raw mut time) };
    time[0] * 1_000_000_000 + time[1]
}

/// A barrier on all CPUs that run threads of this process: an interprocessor interrupt each.
pub fn barrier(command: usize) {
    // SAFETY: changes no memory.
    unsafe { must(call::MEMBARRIER, [command, 0, 0]) };
}
