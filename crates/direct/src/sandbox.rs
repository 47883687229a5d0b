//! [`Sandbox`]: one process, one guest address space.

use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use libc::{pid_t, user_regs_struct};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use x86::xsave;

use crate::child::{self, RAM_FILE, TOP};
use crate::stub::{self, Call, LAST, MOST_CALLS, PAGE};
use crate::trace::{self, Wait};
use crate::{DirectError, refused};

/// Selectors of user code under Linux, on the host as in its guests.
const USER_CODE: u64 = 0x33;
const USER_STACK: u64 = 0x2b;
/// More than any XSAVE area has, in bytes.
const MOST_VECTORS: usize = 16 << 10;
/// State components that the guest has: x87, SSE and AVX.
const COMPONENTS: u64 = 7;

/// Instructions that a sandbox can stop at: the breakpoints that the CPU has (Intel SDM vol. 3B
/// 18.2).
pub const MOST_WATCHED: usize = 4;
/// DR7 with the global and local enabling of that many breakpoints on execution.
const WATCH_BITS: [u64; MOST_WATCHED + 1] = [0, 0x1, 0x5, 0x15, 0x55];

/// Whether `linear` lies where a sandbox can map a page, with the whole page.
pub fn is_in_reach(linear: u64) -> bool {
    let page = linear & !(PAGE - 1);
    page != 0 && page < TOP && !(stub::CODE..stub::END).contains(&page)
}

/// The registers that user code has, but the vector registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS, as user code sees it.
    pub rflags: u64,
    /// Bases of FS and GS; below [`is_in_reach`]'s limit.
    pub fs_base: u64,
    /// As `fs_base`.
    pub gs_base: u64,
}

/// What a mapping allows. Nothing is ever writable and executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Reading.
    Read,
    /// Reading and writing.
    Write,
    /// Reading and executing.
    Execute,
}

/// A page of guest RAM in the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Linear address of the page, [in reach](is_in_reach).
    pub linear: u64,
    /// Offset in the file of guest RAM, a multiple of the page size.
    pub offset: u64,
    /// What it allows.
    pub rights: Rights,
}

/// Why the sandbox stopped; the registers are in the [`UserState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A system call by SYSCALL or INT 0x80, two bytes before RIP, was not executed. RCX and R11
    /// are what SYSCALL leaves there.
    SystemCall,
    /// The instruction at RIP accesses this address, where no mapping allows it.
    Access(u64),
    /// The instruction at RIP cannot complete for another reason.
    Fault,
    /// INT3 was executed; RIP is behind it.
    Breakpoint,
    /// A debug trap behind an instruction: single step, or INT1.
    Trap,
    /// The instruction at RIP is one of [`Sandbox::watch`]'s and was not executed.
    Watched,
    /// [`Handle::interrupt`].
    Interrupted,
    /// Segment registers were loaded with other selectors than Linux gives to user code.
    Segments,
}

/// A sandbox that may be running, as other threads know it.
#[derive(Debug, Default)]
pub struct Handle(AtomicI32);

impl Handle {
    /// Makes the running sandbox stop soon; nothing happens when none runs.
    pub fn interrupt(&self) {
        let pid = self.0.load(Ordering::SeqCst);
        if pid != 0 {
            trace::interrupt(pid);
        }
    }
}

/// A process that executes the user code of one guest process. It belongs to the thread that made
/// it, which alone may use it, and ends with it.
pub struct Sandbox {
    pid: pid_t,
    list: List,
    handle: Arc<Handle>,
    /// The XSAVE area as the process has it, of the length that the host wants.
    vectors: Vec<u8>,
    /// `vectors` is what the process has.
    vectors_known: bool,
    calls: Vec<Call>,
    /// The instructions that it stops at.
    watched: [u64; MOST_WATCHED],
}

/// The list page in this process.
struct List(NonNull<u8>);

impl Sandbox {
    /// A sandbox with nothing mapped, over the file of guest RAM. `handle` tells other threads when
    /// it runs; several sandboxes of a thread may share it.
    ///
    /// # Errors
    /// [`DirectError::Refused`] when the host does not allow all that it takes: ptrace, seccomp,
    /// CPUID faulting.
    pub fn new(ram: BorrowedFd<'_>, handle: Arc<Handle>) -> Result<Self, DirectError> {
        let (list, file) = List::new().map_err(refused("making the list of calls"))?;
        list.write(&child::unmap_everything().map(|(at, len)| unmap_call(at, len)));
        let pid = child::spawn(ram, file.as_fd()).map_err(refused("forking a process"))?;
        let mut sandbox = Self {
            pid,
            list,
            handle,
            vectors: vec![0; MOST_VECTORS],
            vectors_known: false,
            calls: Vec::new(),
            watched: [0; MOST_WATCHED],
        };
        match trace::wait(pid).map_err(refused("waiting for the process"))? {
            Wait::Ended(status) => {
                let cause = std::io::Error::from(std::io::ErrorKind::Unsupported);
                return Err(DirectError::Refused { what: child::step(status), cause });
            }
            Wait::Signal(libc::SIGTRAP) => {}
            other => return Err(unexpected("starting the process", other)),
        }
        trace::set_options(pid).map_err(refused("tracing the process"))?;
        sandbox.check_calls()?;
        let len = trace::vectors(pid, &mut sandbox.vectors)
            .map_err(refused("reading the process's vector registers"))?;
        sandbox.vectors.truncate(len);
        if len < xsave::AREA_SIZE {
            let cause = std::io::Error::from(std::io::ErrorKind::Unsupported);
            return Err(DirectError::Refused { what: "finding AVX registers", cause });
        }
        Ok(sandbox)
    }

    /// Runs guest code until it stops. `vectors` is an XSAVE area in standard form with x87, SSE
    /// and AVX, and zero in its header.
    ///
    /// # Errors
    /// [`DirectError`]: then the registers are lost.
    pub fn run(
        &mut self,
        state: &mut UserState,
        vectors: &mut [u8; xsave::AREA_SIZE],
        go: impl FnOnce() -> bool,
    ) -> Result<Stop, DirectError> {
        let failed = refused("running guest code");
        self.enter_registers(state, vectors).map_err(refused("setting registers"))?;
        self.handle.0.store(self.pid, Ordering::SeqCst);
        if !go() {
            self.handle.0.store(0, Ordering::SeqCst);
            return Ok(Stop::Interrupted);
        }
        let waited = trace::run(self.pid).and_then(|()| trace::wait(self.pid));
        self.handle.0.store(0, Ordering::SeqCst);
        let waited = waited.map_err(failed)?;
        if let Wait::Ended(status) = waited {
            return Err(DirectError::Killed { status });
        }
        let registers = trace::registers(self.pid).map_err(refused("reading registers"))?;
        leave_registers(&registers, state);
        if waited == Wait::SystemCall {
            // The kernel has replaced RAX by an error already.
            state.gpr[0] = registers.orig_rax;
        }
        self.leave_vectors(vectors).map_err(refused("reading vector registers"))?;
        if !has_usual_segments(&registers) {
            return Ok(Stop::Segments);
        }
        Ok(match waited {
            Wait::SystemCall => Stop::SystemCall,
            Wait::Signal(signal) => self.reason(signal)?,
            Wait::Ended(status) => return Err(DirectError::Killed { status }),
        })
    }

    fn reason(&self, signal: i32) -> Result<Stop, DirectError> {
        let info = || trace::signal(self.pid).map_err(refused("asking for a signal's reason"));
        Ok(match signal {
            trace::INTERRUPT => Stop::Interrupted,
            libc::SIGSEGV => {
                let info = info()?;
                match info.si_code {
                    // SEGV_MAPERR, SEGV_ACCERR (sigaction(2)).
                    // SAFETY: these codes come with an address.
                    1 | 2 => Stop::Access(unsafe { info.si_addr() } as u64),
                    _ => Stop::Fault,
                }
            }
            libc::SIGTRAP => match info()?.si_code {
                SI_KERNEL => Stop::Breakpoint,
                TRAP_HWBKPT => Stop::Watched,
                _ => Stop::Trap,
            },
            libc::SIGBUS | libc::SIGILL | libc::SIGFPE | libc::SIGSYS => Stop::Fault,
            // Somebody on the host sends signals: the guest does not see them.
            _ => Stop::Interrupted,
        })
    }

    fn enter_registers(
        &mut self,
        state: &UserState,
        vectors: &[u8; xsave::AREA_SIZE],
    ) -> std::io::Result<()> {
        trace::set_registers(self.pid, &host_registers(state))?;
        let (header, end) = (xsave::XSTATE_BV, xsave::AVX_OFFSET);
        let known = self.vectors_known
            && self.vectors[..header] == vectors[..header]
            && self.vectors[end..xsave::AREA_SIZE] == vectors[end..];
        if !known {
            self.vectors.fill(0);
            self.vectors[..xsave::AREA_SIZE].copy_from_slice(vectors);
            self.vectors[header..header + 8].copy_from_slice(&COMPONENTS.to_le_bytes());
            trace::set_vectors(self.pid, &self.vectors)?;
        }
        Ok(())
    }

    fn leave_vectors(&mut self, vectors: &mut [u8; xsave::AREA_SIZE]) -> std::io::Result<()> {
        /// What software may use of the legacy area; the kernel does.
        const SOFTWARE: std::ops::Range<usize> = 464..512;
        let mask = vectors[xsave::MXCSR + 4..xsave::MXCSR + 8].to_vec();
        trace::vectors(self.pid, &mut vectors[..])?;
        vectors[SOFTWARE].fill(0);
        vectors[xsave::XSTATE_BV..xsave::AVX_OFFSET].fill(0);
        vectors[xsave::MXCSR + 4..xsave::MXCSR + 8].copy_from_slice(&mask);
        self.vectors[..xsave::AREA_SIZE].copy_from_slice(vectors);
        self.vectors_known = true;
        Ok(())
    }

    /// Stops before the instructions at these linear addresses, [`MOST_WATCHED`] at most, and at no
    /// others any more.
    ///
    /// # Errors
    /// [`DirectError::Refused`] when the host has no debug registers to give away.
    pub fn watch(&mut self, instructions: &[u64]) -> Result<(), DirectError> {
        let failed = refused("setting breakpoints");
        let changed: Vec<usize> =
            (0..instructions.len()).filter(|i| self.watched[*i] != instructions[*i]).collect();
        let set = |number, value| trace::set_debug_register(self.pid, number, value);
        let setting = || {
            // An address in use cannot be replaced on every host.
            set(CONTROL, 0)?;
            changed.iter().try_for_each(|index| set(*index, instructions[*index]))?;
            set(CONTROL, WATCH_BITS[instructions.len()])
        };
        setting().map_err(failed)?;
        self.watched[..instructions.len()].copy_from_slice(instructions);
        Ok(())
    }

    /// The CPU time that the process has taken so far: guest code, and the kernel on its behalf.
    pub fn cpu_time(&self) -> Duration {
        trace::cpu_time(self.pid)
    }

    /// Maps pages, in place of what was there.
    ///
    /// # Errors
    /// [`DirectError::Refused`] when the host has no room for more mappings;
    /// [`Sandbox::unmap_all`] makes room.
    pub fn map(&mut self, pages: impl IntoIterator<Item = Mapping>) -> Result<(), DirectError> {
        self.calls.extend(pages.into_iter().map(map_call));
        self.execute_calls()
    }

    /// Unmaps the pages at these linear addresses.
    ///
    /// # Errors
    /// [`DirectError::Refused`], [`DirectError::Killed`].
    pub fn unmap(&mut self, pages: impl IntoIterator<Item = u64>) -> Result<(), DirectError> {
        self.calls.extend(pages.into_iter().map(|at| unmap_call(at, PAGE)));
        self.execute_calls()
    }

    /// Unmaps everything.
    ///
    /// # Errors
    /// As [`Sandbox::unmap`].
    pub fn unmap_all(&mut self) -> Result<(), DirectError> {
        self.calls.extend(child::unmap_everything().map(|(at, len)| unmap_call(at, len)));
        self.execute_calls()
    }

    fn execute_calls(&mut self) -> Result<(), DirectError> {
        let calls = std::mem::take(&mut self.calls);
        for portion in calls.chunks(MOST_CALLS) {
            self.list.write(portion);
            self.execute_list()?;
        }
        self.calls = calls;
        self.calls.clear();
        Ok(())
    }

    fn execute_list(&mut self) -> Result<(), DirectError> {
        let at_stub = UserState { rip: stub::CODE, ..UserState::default() };
        trace::set_registers(self.pid, &host_registers(&at_stub))
            .map_err(refused("setting registers"))?;
        loop {
            trace::run_with_system_calls(self.pid).map_err(refused("mapping memory"))?;
            match trace::wait(self.pid).map_err(refused("mapping memory"))? {
                Wait::Signal(libc::SIGTRAP) => return self.check_calls(),
                // Sent when it was about to stop by itself.
                Wait::Signal(trace::INTERRUPT) => {}
                Wait::Ended(status) => return Err(DirectError::Killed { status }),
                other => return Err(unexpected("mapping memory", other)),
            }
        }
    }

    /// Finds out how the stub's loop has ended.
    fn check_calls(&mut self) -> Result<(), DirectError> {
        let result = trace::registers(self.pid).map_err(refused("reading registers"))?.rax as i64;
        match result {
            0 => Ok(()),
            error => {
                let cause = std::io::Error::from_raw_os_error(-error as i32);
                Err(DirectError::Refused { what: "mapping guest memory", cause })
            }
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        trace::end(self.pid);
    }
}

/// `si_code` of signals that the kernel sends without more to say.
const SI_KERNEL: i32 = 0x80;
/// `si_code` of a breakpoint in a debug register (sigaction(2)).
const TRAP_HWBKPT: i32 = 4;
/// The debug register that says which breakpoints are in use.
const CONTROL: usize = 7;

fn unexpected(what: &'static str, found: Wait) -> DirectError {
    DirectError::Refused { what, cause: std::io::Error::other(format!("{found:?}")) }
}

fn map_call(page: Mapping) -> Call {
    assert!(is_in_reach(page.linear), "a page of the guest's own: {:#x}", page.linear);
    let rights = match page.rights {
        Rights::Read => libc::PROT_READ,
        Rights::Write => libc::PROT_READ | libc::PROT_WRITE,
        Rights::Execute => libc::PROT_READ | libc::PROT_EXEC,
    };
    let flags = libc::MAP_SHARED | libc::MAP_FIXED;
    let arguments = [page.linear, PAGE, rights as u64, flags as u64, RAM_FILE as u64, page.offset];
    Call { number: libc::SYS_mmap as u64, arguments, reserved: 0 }
}

fn unmap_call(at: u64, len: u64) -> Call {
    Call { number: libc::SYS_munmap as u64, arguments: [at, len, 0, 0, 0, 0], reserved: 0 }
}

fn host_registers(state: &UserState) -> user_regs_struct {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = state.gpr;
    user_regs_struct {
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r11,
        r10,
        r9,
        r8,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        // No system call is to be begun anew.
        orig_rax: u64::MAX,
        rip: state.rip,
        cs: USER_CODE,
        eflags: state.rflags,
        rsp,
        ss: USER_STACK,
        fs_base: state.fs_base,
        gs_base: state.gs_base,
        ds: 0,
        es: 0,
        fs: 0,
        gs: 0,
    }
}

fn leave_registers(r: &user_regs_struct, state: &mut UserState) {
    state.gpr = [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ];
    (state.rip, state.rflags) = (r.rip, r.eflags);
    (state.fs_base, state.gs_base) = (r.fs_base, r.gs_base);
}

fn has_usual_segments(r: &user_regs_struct) -> bool {
    [r.cs, r.ss, r.ds, r.es, r.fs, r.gs] == [USER_CODE, USER_STACK, 0, 0, 0, 0]
}

impl List {
    /// The page, and the file that the sandbox maps.
    fn new() -> std::io::Result<(Self, OwnedFd)> {
        let file = memfd_create("ringfence-calls", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, PAGE)?;
        let (size, prot) = (PAGE as usize, ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: a new mapping at an address of the kernel's choice, of a file of our own.
        let at = unsafe { mmap(std::ptr::null_mut(), size, prot, MapFlags::SHARED, &file, 0)? };
        let at = NonNull::new(at.cast::<u8>()).ok_or(rustix::io::Errno::NOMEM)?;
        Ok((Self(at), file))
    }

    /// Writes calls, at most [`MOST_CALLS`], and the end of the list.
    fn write(&self, calls: &[Call]) {
        assert!(calls.len() <= MOST_CALLS, "too many calls for the list");
        let end = Call { number: LAST, arguments: [0; 6], reserved: 0 };
        for (index, call) in calls.iter().chain([&end]).enumerate() {
            // SAFETY: the index is below PAGE / size_of::<Call>(), and the sandbox, which only
            // reads, is stopped.
            unsafe { self.0.as_ptr().cast::<Call>().add(index).write_volatile(*call) }
        }
    }
}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, not used any more. Failure would leak it.
        let _ = unsafe { munmap(self.0.as_ptr().cast::<c_void>(), PAGE as usize) };
    }
}

// SAFETY: the page belongs to the list alone. That only the thread that made a sandbox uses it is
// for its owner to see to; the kernel refuses the requests of others.
unsafe impl Send for List {}
