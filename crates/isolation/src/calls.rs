//! System calls that the process can make from now on: a seccomp filter (seccomp(2)).
//!
//! What is not listed fails with EPERM, so that a library that tries something new goes on without
//! it; the process is not killed for it. `clone3`, whose flags a filter cannot see, fails with
//! ENOSYS: the C library then makes its threads by `clone`.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::{Done, IsolationError};

/// Which sockets the process makes while the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// None: those that are open are used, connections to the control socket are accepted.
    Closed,
    /// For user-mode networks and switches: the Internet's protocols and Unix sockets.
    Open,
}

/// Calls that are allowed whatever their arguments are.
const ALLOWED: &[c_long] = &[
    // Memory.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_memfd_create,
    libc::SYS_membarrier,
    // Open files.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_getdents64,
    libc::SYS_fchmod,
    libc::SYS_io_uring_enter,
    libc::SYS_pipe2,
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_select,
    libc::SYS_pselect6,
    // Names of files: Landlock says which.
    libc::SYS_openat,
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_chmod,
    libc::SYS_fchmodat,
    libc::SYS_umask,
    // Time.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_time,
    // Threads, signals, and the processes of direct execution. Landlock keeps signals inside.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_wait4,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Answered by `UNKNOWN`.
    libc::SYS_clone3,
    // What the process is.
    libc::SYS_getrandom,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrlimit,
    libc::SYS_getrusage,
    // Sockets that are open.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
];

/// What direct execution asks of the processes that it traces, and they of it.
const TRACING: [u32; 11] = [
    libc::PTRACE_TRACEME,
    libc::PTRACE_PEEKUSER,
    libc::PTRACE_POKEUSER,
    libc::PTRACE_CONT,
    libc::PTRACE_GETREGS,
    libc::PTRACE_SETREGS,
    libc::PTRACE_SYSEMU,
    libc::PTRACE_SETOPTIONS,
    libc::PTRACE_GETSIGINFO,
    libc::PTRACE_GETREGSET,
    libc::PTRACE_SETREGSET,
];

/// Settings of a thread or process: its name and those of its mappings, what the kernel told it at
/// its start, and what a process of direct execution gives up.
const SETTINGS: [i32; 8] = [
    libc::PR_SET_NAME,
    libc::PR_GET_NAME,
    libc::PR_SET_VMA,
    0x4155_5856, // PR_GET_AUXV
    libc::PR_SET_PDEATHSIG,
    libc::PR_SET_TSC,
    libc::PR_SET_NO_NEW_PRIVS,
    libc::PR_SET_SECCOMP,
];

/// `ARCH_SET_CPUID` (arch_prctl(2)): makes CPUID a fault.
const ARCH_SET_CPUID: u64 = 0x1012;

/// Requests to open files: whether one is a terminal and its size and mode, blocking, bytes to be
/// read, sharing blocks between files, the size of block devices and discarding on them.
const REQUESTS: [u64; 11] = [
    libc::TCGETS,
    libc::TCSETS,
    libc::TCSETSW,
    libc::TCSETSF,
    libc::TIOCGWINSZ,
    libc::FIONBIO,
    libc::FIONREAD,
    libc::FICLONE,
    0x8008_1272, // BLKGETSIZE64
    0x1277,      // BLKDISCARD
    0x127f,      // BLKZEROOUT
];

/// The type of KVM's requests, in bits 8 to 15 of their numbers (linux/kvm.h).
const KVM_REQUESTS: (u64, u64) = (0xff00, 0xae00);

/// Flags of `clone` that make namespaces.
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64
    | 0x80; // CLONE_NEWTIME

/// Calls that make and connect sockets.
const CONNECTING: [c_long; 3] = [libc::SYS_bind, libc::SYS_connect, libc::SYS_listen];

/// Restricts the system calls of all threads, and of all that the process forks.
///
/// # Errors
/// [`IsolationError::Refused`].
pub fn restrict_calls(network: Network) -> Result<Done, IsolationError> {
    if !is_there() {
        return Ok(Done::Not("this kernel has no seccomp filters".to_owned()));
    }
    let failed = |e: seccompiler::Error| IsolationError::refused("seccomp")(e.into());
    let unknown = program(
        [(libc::SYS_clone3, Vec::new())].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS as u32),
    );
    let allowed = allowed(network).map_err(|e| failed(e.into()))?;
    let allowed = program(allowed, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow);
    for program in [unknown, allowed] {
        let program = program.map_err(|e| failed(e.into()))?;
        seccompiler::apply_filter_all_threads(&program).map_err(failed)?;
    }
    Ok(Done::Whole)
}

/// Whether this kernel has seccomp filters.
pub(crate) fn is_there() -> bool {
    std::path::Path::new("/proc/sys/kernel/seccomp/actions_avail").exists()
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;
type Built<T> = Result<T, seccompiler::BackendError>;

fn program(rules: Rules, otherwise: SeccompAction, listed: SeccompAction) -> Built<BpfProgram> {
    SeccompFilter::new(rules, otherwise, listed, TargetArch::x86_64)?.try_into()
}

fn allowed(network: Network) -> Built<Rules> {
    use SeccompCmpArgLen::{Dword, Qword};
    let equal = |argument, value| {
        SeccompRule::new(vec![SeccompCondition::new(argument, Dword, SeccompCmpOp::Eq, value)?])
    };
    let masked = |argument, (mask, value)| {
        let masked = SeccompCmpOp::MaskedEq(mask);
        SeccompRule::new(vec![SeccompCondition::new(argument, Dword, masked, value)?])
    };
    let one_of = |argument, values: &mut dyn Iterator<Item = u64>| {
        values.map(|value| equal(argument, value)).collect::<Built<Vec<_>>>()
    };
    let mut rules: Rules = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    let mut requests = one_of(1, &mut REQUESTS.into_iter())?;
    requests.push(masked(1, KVM_REQUESTS)?);
    rules.insert(libc::SYS_ioctl, requests);
    rules.insert(libc::SYS_ptrace, one_of(0, &mut TRACING.map(u64::from).into_iter())?);
    rules.insert(libc::SYS_prctl, one_of(0, &mut SETTINGS.map(|s| s as u64).into_iter())?);
    rules.insert(libc::SYS_arch_prctl, vec![equal(0, ARCH_SET_CPUID)?]);
    rules.insert(libc::SYS_clone, vec![masked(0, (NAMESPACES, 0))?]);
    // Limits are read, not set.
    let null = SeccompCondition::new(2, Qword, SeccompCmpOp::Eq, 0)?;
    rules.insert(libc::SYS_prlimit64, vec![SeccompRule::new(vec![null])?]);
    if network == Network::Open {
        let families = [libc::AF_INET, libc::AF_INET6, libc::AF_UNIX].map(|family| family as u64);
        rules.insert(libc::SYS_socket, one_of(0, &mut families.into_iter())?);
        rules.extend(CONNECTING.map(|call| (call, Vec::new())));
    }
    Ok(rules)
}
