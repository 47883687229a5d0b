//! The worker process: maps the windows, executes batches.
//!
//! It is forked from a process with threads: it must not allocate, lock or panic.

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering::Relaxed, Ordering::SeqCst};

use super::entry::{WORKER_FS, enter_case, leave_case, own_fs_base, signal_entry};
use super::sandbox::{check, seal};
use super::shared::{Header, Shared, Slot, status, turn};
use crate::image::CpuImage;
use crate::layout::{MAP, MEMORY, PAGE, Rights, WINDOWS};

/// Exit status when the worker itself fails.
const FAILED: i32 = 101;
/// A case is stopped when it sees the second tick of this many microseconds of CPU time.
const TICK_MICROSECONDS: i64 = 4000;
/// SS_AUTODISARM of `linux/signal.h`: a stack pointer of the case that points into the signal
/// stack must not choose where the kernel stores the frame.
const SS_AUTODISARM: i32 = i32::MIN;
const SIGNAL_STACK: usize = 64 << 10;

static IN_CASE: AtomicBool = AtomicBool::new(false);
static TICKS: AtomicU32 = AtomicU32::new(0);
static SLOT: AtomicPtr<Slot> = AtomicPtr::new(ptr::null_mut());

/// What the worker needs, made before the fork.
pub(super) struct Resources {
    /// The memory file of the windows, [`MEMORY`] bytes.
    pub memory_file: i32,
    /// Shared with the runner.
    pub shared: *mut Shared,
    /// [`SIGNAL_STACK`] bytes.
    pub signal_stack: *mut u8,
    /// Process id of the runner.
    pub parent: i32,
}

impl Resources {
    /// Bytes to reserve at [`Resources::signal_stack`].
    pub const SIGNAL_STACK: usize = SIGNAL_STACK;
}

/// Never returns: serves batches until it is killed.
///
/// # Safety
/// Only in a freshly forked process, with pointers and descriptor of `resources` valid.
pub(super) unsafe fn main(resources: &Resources) -> ! {
    // SAFETY: as for this function.
    let Ok(memory) = (unsafe { set_up(resources) }) else { exit(FAILED) };
    // SAFETY: the runner keeps the shared memory mapped, and its header consists of atomics.
    let header = unsafe { &(*resources.shared).header };
    loop {
        header.turn.store(turn::RUNNER, SeqCst);
        wake(header);
        while header.turn.load(SeqCst) != turn::WORKER {
            wait(header);
        }
        let (first, count) = (header.first.load(Relaxed), header.count.load(Relaxed));
        for index in first..count {
            header.first.store(index, Relaxed);
            // SAFETY: the runner gives indexes below BATCH and leaves the slots alone meanwhile.
            unsafe {
                let slot = ptr::addr_of_mut!((*resources.shared).slots).cast::<Slot>();
                execute(slot.add(index as usize), memory, resources.signal_stack);
            }
        }
    }
}

/// Executes one case.
///
/// # Safety
/// `slot` and `memory` are valid and nobody else uses them.
unsafe fn execute(slot: *mut Slot, memory: *mut u8, signal_stack: *mut u8) {
    // SAFETY: as for this function; `memory` has MEMORY bytes, as the slot's copy.
    unsafe {
        let copy = ptr::addr_of_mut!((*slot).memory).cast::<u8>();
        ptr::copy_nonoverlapping(copy, memory, MEMORY);
        (*slot).status = status::UNFINISHED;
        SLOT.store(slot, Relaxed);
        if arm_signal_stack(signal_stack).is_err() {
            exit(FAILED);
        }
        TICKS.store(0, SeqCst);
        IN_CASE.store(true, SeqCst);
        enter_case(ptr::addr_of!((*slot).input));
        ptr::copy_nonoverlapping(memory, copy, MEMORY);
    }
}

/// Called by [`signal_entry`] with the segment bases of what was interrupted.
pub(super) extern "C" fn on_signal(
    signal: i32,
    _info: *mut libc::siginfo_t,
    context: *mut libc::ucontext_t,
    fs_base: u64,
    gs_base: u64,
) {
    if !IN_CASE.load(SeqCst) {
        if signal == libc::SIGVTALRM {
            return;
        }
        exit(FAILED);
    }
    if signal == libc::SIGVTALRM && TICKS.fetch_add(1, SeqCst) == 0 {
        return;
    }
    IN_CASE.store(false, SeqCst);
    // SAFETY: the kernel gives a valid context; the slot is the one that `execute` set, and the
    // code that this handler interrupted is the case, which holds no Rust frames.
    unsafe {
        let slot = SLOT.load(Relaxed);
        (*slot).status = match signal {
            libc::SIGVTALRM => status::TIMEOUT,
            libc::SIGSYS => status::SYSTEM_CALL,
            _ => status::EXCEPTION,
        };
        record(&mut *slot, &*context, [fs_base, gs_base]);
        leave_case()
    }
}

/// Order of the general registers in a signal context, by their numbers.
const CONTEXT_REGISTERS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Copies registers and exception from the signal context.
fn record(slot: &mut Slot, context: &libc::ucontext_t, bases: [u64; 2]) {
    let registers = &context.uc_mcontext.gregs;
    let register = |index: i32| registers[index as usize] as u64;
    let output = &mut slot.output;
    for (to, from) in output.gpr.iter_mut().zip(CONTEXT_REGISTERS) {
        *to = register(from);
    }
    output.rip = register(libc::REG_RIP);
    output.rflags = register(libc::REG_EFL);
    output.bases = bases;
    slot.vector = register(libc::REG_TRAPNO) as u32;
    slot.error_code = register(libc::REG_ERR) as u32;
    slot.address = register(libc::REG_CR2);
    let area = context.uc_mcontext.fpregs.cast::<u8>();
    // SAFETY: the kernel stored an XSAVE area in standard form, and the host has AVX: it reaches
    // at least to the end of the AVX component.
    unsafe { ptr::copy_nonoverlapping(area, output.xsave.as_mut_ptr(), output.xsave.len()) };
}

/// Maps the windows, installs handlers and timer, seals the process. Returns where the memory of
/// the windows can be written.
///
/// # Safety
/// As [`main`].
unsafe fn set_up(resources: &Resources) -> Result<*mut u8, ()> {
    // SAFETY: plain system calls in a process of our own; the mappings replace nothing.
    unsafe {
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        if libc::getppid() != resources.parent {
            return Err(());
        }
        let memory = map_windows(resources.memory_file)?;
        check(libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) as i32)?;
        WORKER_FS.store(own_fs_base(), SeqCst);
        install_handlers()?;
        let tick = libc::timeval { tv_sec: 0, tv_usec: TICK_MICROSECONDS };
        let timer = libc::itimerval { it_interval: tick, it_value: tick };
        let no_old: *mut libc::itimerval = ptr::null_mut();
        let set = libc::syscall(libc::SYS_setitimer, libc::ITIMER_VIRTUAL, &timer, no_old);
        check(set as i32)?;
        seal()?;
        Ok(memory)
    }
}

/// Maps every page of both windows, and all once more where the worker may write.
fn map_windows(file: i32) -> Result<*mut u8, ()> {
    let map = |at: u64, length: usize, rights: i32, flags: i32, offset: usize| {
        let hint = ptr::without_provenance_mut(at as usize);
        // Populated: the error code of a page fault tells whether the page was there.
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE | flags;
        // SAFETY: a new mapping, which by MAP_FIXED_NOREPLACE or without address replaces none.
        let mapped = unsafe { libc::mmap(hint, length, rights, flags, file, offset as i64) };
        let failed = mapped == libc::MAP_FAILED || (at != 0 && mapped as u64 != at);
        if failed { Err(()) } else { Ok(mapped.cast::<u8>()) }
    };
    for base in WINDOWS {
        for (index, page) in MAP.iter().enumerate() {
            let rights = match page.rights {
                Rights::ReadExecute => libc::PROT_READ | libc::PROT_EXEC,
                Rights::ReadWriteExecute => libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                Rights::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
                Rights::Read => libc::PROT_READ,
            };
            let at = base + page.number * PAGE;
            map(at, PAGE as usize, rights, libc::MAP_FIXED_NOREPLACE, index * PAGE as usize)?;
        }
    }
    map(0, MEMORY, libc::PROT_READ | libc::PROT_WRITE, 0, 0)
}

/// Installs the handlers of everything that a case can end in.
///
/// # Safety
/// Only in the worker: what the process did on these signals before is lost.
unsafe fn install_handlers() -> Result<(), ()> {
    let signals = [
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGILL,
        libc::SIGFPE,
        libc::SIGTRAP,
        libc::SIGSYS,
        libc::SIGVTALRM,
    ];
    for signal in signals {
        // SAFETY: all-zero is a valid `sigaction`: no blocked signals.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = signal_entry as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        // SAFETY: the handler restores what Rust code needs before it runs any.
        check(unsafe { libc::sigaction(signal, &action, ptr::null_mut()) })?;
    }
    // SAFETY: an empty set is valid.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        check(libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut()))
    }
}

/// Registers the signal stack. The kernel forgets it at every signal (SS_AUTODISARM).
fn arm_signal_stack(stack: *mut u8) -> Result<(), ()> {
    let stack =
        libc::stack_t { ss_sp: stack.cast(), ss_flags: SS_AUTODISARM, ss_size: SIGNAL_STACK };
    // SAFETY: the stack was mapped for this purpose, and no handler is running on it.
    check(unsafe { libc::sigaltstack(&stack, ptr::null_mut()) })
}

/// Waits while it is the runner's turn.
fn wait(header: &Header) {
    let no_timeout: *const libc::timespec = ptr::null();
    // SAFETY: the futex word is valid shared memory.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            header.turn.as_ptr(),
            libc::FUTEX_WAIT,
            turn::RUNNER,
            no_timeout,
        );
    }
}

/// Wakes the runner.
fn wake(header: &Header) {
    // SAFETY: as in `wait`.
    unsafe { libc::syscall(libc::SYS_futex, header.turn.as_ptr(), libc::FUTEX_WAKE, 1) };
}

fn exit(status: i32) -> ! {
    // SAFETY: ends the process without running anything of the parent's.
    unsafe { libc::_exit(status) }
}

const _: () = assert!(size_of::<CpuImage>() == 1024);
