//! Seals the worker process.

use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter, sock_fprog};

use crate::layout::{HIGH, LOW};

/// AUDIT_ARCH_X86_64 of `linux/audit.h`.
const ARCH_X86_64: u32 = 0xc000_003e;
/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const IP_HIGH: u32 = 12;

/// The calls of the batch loop and of the end of a signal handler.
const ALLOWED: [libc::c_long; 4] =
    [libc::SYS_futex, libc::SYS_sigaltstack, libc::SYS_rt_sigreturn, libc::SYS_exit_group];

const fn load(offset: u32) -> sock_filter {
    sock_filter { code: (BPF_LD | BPF_W | BPF_ABS) as u16, jt: 0, jf: 0, k: offset }
}

const fn skip_if_equal(value: u32, yes: u8, no: u8) -> sock_filter {
    sock_filter { code: (BPF_JMP | BPF_JEQ | BPF_K) as u16, jt: yes, jf: no, k: value }
}

const fn answer(value: u32) -> sock_filter {
    sock_filter { code: (BPF_RET | BPF_K) as u16, jt: 0, jf: 0, k: value }
}

/// Everything that is not allowed becomes SIGSYS, so that a case that makes a system call is
/// recognised; calls from the windows are never allowed.
const FILTER: [sock_filter; 12] = [
    load(ARCH),
    skip_if_equal(ARCH_X86_64, 0, 8),
    load(IP_HIGH),
    skip_if_equal((HIGH >> 32) as u32, 6, 0),
    skip_if_equal((LOW >> 32) as u32, 5, 0),
    load(NUMBER),
    skip_if_equal(ALLOWED[0] as u32, 4, 0),
    skip_if_equal(ALLOWED[1] as u32, 3, 0),
    skip_if_equal(ALLOWED[2] as u32, 2, 0),
    skip_if_equal(ALLOWED[3] as u32, 1, 0),
    answer(libc::SECCOMP_RET_TRAP),
    answer(libc::SECCOMP_RET_ALLOW),
];

/// Limits the calling process for good. Tells which call failed.
pub(super) fn seal() -> Result<(), ()> {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    for resource in [libc::RLIMIT_CORE, libc::RLIMIT_FSIZE, libc::RLIMIT_NOFILE] {
        // SAFETY: `none` is a valid `rlimit`.
        check(unsafe { libc::setrlimit(resource, &none) })?;
    }
    let program = sock_fprog { len: FILTER.len() as u16, filter: FILTER.as_ptr().cast_mut() };
    // SAFETY: the kernel only reads the program, which lives through the call.
    unsafe {
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        check(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program))
    }
}

/// A libc return value as result.
pub(super) fn check(returned: i32) -> Result<(), ()> {
    if returned < 0 { Err(()) } else { Ok(()) }
}
