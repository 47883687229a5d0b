//! The ptrace requests that a sandbox needs (ptrace(2)), for the thread that made it.

use std::ffi::c_void;
use std::io;
use std::time::Duration;

use libc::{c_long, c_uint, iovec, pid_t, siginfo_t, user_regs_struct};

/// The register set of the XSAVE area (`NT_X86_XSTATE`, elf.h).
const XSTATE: usize = 0x202;
/// `PTRACE_SYSEMU`: runs to the next system call, which is not executed.
const SYSEMU: c_uint = 31;

/// The end of a wait: how the process stopped, or that it is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// By a system call ([`SYSEMU`]).
    SystemCall,
    /// By a signal, which has not been delivered.
    Signal(i32),
    /// It has ended; the status of `waitpid`.
    Ended(i32),
}

fn request(what: c_uint, pid: pid_t, address: usize, data: *mut c_void) -> io::Result<c_long> {
    // SAFETY: every caller passes the data that its request wants: nothing, or a pointer to a live
    // object of the right type. The process is a child of ours that is not reaped before the end.
    match unsafe { libc::ptrace(what, pid, address as *mut c_void, data) } {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

/// The tracee dies with its tracer, and its system-call stops can be told from its traps.
pub(crate) fn set_options(pid: pid_t) -> io::Result<()> {
    let options = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACESYSGOOD;
    request(libc::PTRACE_SETOPTIONS, pid, 0, options as usize as *mut c_void).map(drop)
}

pub(crate) fn registers(pid: pid_t) -> io::Result<user_regs_struct> {
    // SAFETY: plain integers, for which zero is valid.
    let mut registers: user_regs_struct = unsafe { std::mem::zeroed() };
    request(libc::PTRACE_GETREGS, pid, 0, (&raw mut registers).cast())?;
    Ok(registers)
}

pub(crate) fn set_registers(pid: pid_t, registers: &user_regs_struct) -> io::Result<()> {
    let data = std::ptr::from_ref(registers).cast_mut().cast();
    request(libc::PTRACE_SETREGS, pid, 0, data).map(drop)
}

/// Reads the beginning of the XSAVE area, in standard form; gives its length.
pub(crate) fn vectors(pid: pid_t, to: &mut [u8]) -> io::Result<usize> {
    let mut vector = iovec { iov_base: to.as_mut_ptr().cast(), iov_len: to.len() };
    request(libc::PTRACE_GETREGSET, pid, XSTATE, (&raw mut vector).cast())?;
    Ok(vector.iov_len)
}

/// Replaces the whole XSAVE area, of the length that [`vectors`] has given for a large buffer.
pub(crate) fn set_vectors(pid: pid_t, from: &[u8]) -> io::Result<()> {
    let mut vector = iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: from.len() };
    request(libc::PTRACE_SETREGSET, pid, XSTATE, (&raw mut vector).cast()).map(drop)
}

/// Runs to the next system call, which is not executed, or signal.
pub(crate) fn run(pid: pid_t) -> io::Result<()> {
    request(SYSEMU, pid, 0, std::ptr::null_mut()).map(drop)
}

/// Runs, with system calls, to the next signal.
pub(crate) fn run_with_system_calls(pid: pid_t) -> io::Result<()> {
    request(libc::PTRACE_CONT, pid, 0, std::ptr::null_mut()).map(drop)
}

/// What the signal is about that it stopped by.
pub(crate) fn signal(pid: pid_t) -> io::Result<siginfo_t> {
    // SAFETY: plain data, for which zero is valid.
    let mut info: siginfo_t = unsafe { std::mem::zeroed() };
    request(libc::PTRACE_GETSIGINFO, pid, 0, (&raw mut info).cast())?;
    Ok(info)
}

/// Sets a debug register: 0 to 3 are addresses of breakpoints, 7 tells which are in use (Intel SDM
/// vol. 3B 18.2).
pub(crate) fn set_debug_register(pid: pid_t, number: usize, value: u64) -> io::Result<()> {
    let at = std::mem::offset_of!(libc::user, u_debugreg) + number * size_of::<u64>();
    request(libc::PTRACE_POKEUSER, pid, at, value as usize as *mut c_void).map(drop)
}

/// Waits until it stops.
pub(crate) fn wait(pid: pid_t) -> io::Result<Wait> {
    let mut status = 0;
    loop {
        // SAFETY: a child of ours, and a live integer for the status.
        let waited = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
        if waited != -1 {
            break;
        }
        let cause = io::Error::last_os_error();
        if cause.kind() != io::ErrorKind::Interrupted {
            return Err(cause);
        }
    }
    if !libc::WIFSTOPPED(status) {
        return Ok(Wait::Ended(status));
    }
    Ok(match libc::WSTOPSIG(status) {
        signal if signal == libc::SIGTRAP | 0x80 => Wait::SystemCall,
        signal => Wait::Signal(signal),
    })
}

/// The CPU time that the process has taken; zero when it is gone.
pub(crate) fn cpu_time(pid: pid_t) -> Duration {
    // The clock of a process: its number, inverted, and a kind (clock_getcpuclockid(3)).
    const SCHEDULED: i32 = 2;
    let clock = !pid << 3 | SCHEDULED;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a live structure for the result; on failure it stays zero.
    let _ = unsafe { libc::clock_gettime(clock, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Interrupts the process, from any thread.
pub(crate) fn interrupt(pid: pid_t) {
    // SAFETY: no memory is involved; the process is not reaped while the caller knows its number.
    // It may have been killed: then there is nothing to interrupt.
    let _ = unsafe { libc::kill(pid, INTERRUPT) };
}

/// Ends the process and forgets it.
pub(crate) fn end(pid: pid_t) {
    // SAFETY: as for `interrupt`.
    let _ = unsafe { libc::kill(pid, libc::SIGKILL) };
    while !matches!(wait(pid), Ok(Wait::Ended(_)) | Err(_)) {}
}

/// The signal that interrupts: guest code raises it by no instruction.
pub(crate) const INTERRUPT: i32 = libc::SIGUSR1;
