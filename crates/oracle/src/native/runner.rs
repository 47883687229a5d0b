//! The side of the worker's parent.

use std::io;
use std::mem::size_of;
use std::ptr;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, Instant};

use x86::exception::vector;

use super::shared::{BATCH, Header, Shared, Slot, status, turn};
use super::worker::{self, Resources};
use super::{NativeError, NativeOutcome};
use crate::case::{Case, Fault, Memory, Observation};
use crate::layout::MEMORY;

/// How often the runner looks whether a worker that does not answer still lives.
const PATIENCE: Duration = Duration::from_millis(50);
/// A worker that takes longer for a batch is beyond what its own timer can stop.
const BATCH_LIMIT: Duration = Duration::from_secs(20);

/// Executes cases in a worker process. Belongs to one thread: the worker dies with it.
#[derive(Debug)]
pub struct NativeRunner {
    resources: Worker,
    /// Workers that cases destroyed.
    deaths: u64,
}

/// A worker process and what it shares with the runner.
#[derive(Debug)]
struct Worker {
    shared: *mut Shared,
    memory_file: i32,
    signal_stack: *mut u8,
    pid: i32,
}

impl NativeRunner {
    /// Starts a worker.
    ///
    /// # Errors
    /// [`NativeError`].
    pub fn new() -> Result<Self, NativeError> {
        check_host()?;
        let mut worker = Worker {
            shared: ptr::null_mut(),
            memory_file: -1,
            signal_stack: ptr::null_mut(),
            pid: 0,
        };
        let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        worker.shared = map(size_of::<Shared>(), shared)?.cast();
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        worker.signal_stack = map(Resources::SIGNAL_STACK, private)?;
        // SAFETY: creates a memory file; the name is a constant string.
        worker.memory_file = unsafe { libc::memfd_create(c"oracle".as_ptr(), libc::MFD_CLOEXEC) };
        if worker.memory_file < 0 {
            return Err(failed("memfd_create"));
        }
        // SAFETY: the descriptor is ours.
        if unsafe { libc::ftruncate(worker.memory_file, MEMORY as i64) } < 0 {
            return Err(failed("ftruncate"));
        }
        worker.start()?;
        Ok(Self { resources: worker, deaths: 0 })
    }

    /// Number of worker processes that cases have destroyed.
    pub fn deaths(&self) -> u64 {
        self.deaths
    }

    /// Executes `cases` in order.
    ///
    /// # Errors
    /// [`NativeError`] when a worker that died cannot be replaced.
    pub fn run(&mut self, cases: &[Case]) -> Result<Vec<NativeOutcome>, NativeError> {
        let mut outcomes = Vec::with_capacity(cases.len());
        for batch in cases.chunks(BATCH) {
            self.run_batch(batch, &mut outcomes)?;
        }
        Ok(outcomes)
    }

    fn run_batch(
        &mut self,
        cases: &[Case],
        outcomes: &mut Vec<NativeOutcome>,
    ) -> Result<(), NativeError> {
        for (index, case) in cases.iter().enumerate() {
            let slot = self.resources.slot(index);
            slot.input = case.image.clone();
            case.fill(&mut slot.memory);
        }
        let mut first = 0;
        while first < cases.len() {
            let end = self.resources.execute(first, cases.len());
            for index in first..end {
                outcomes.push(self.resources.slot(index).outcome());
            }
            first = end;
            if end < cases.len() {
                outcomes.push(NativeOutcome::WorkerDied);
                self.deaths += 1;
                first += 1;
                self.resources.start()?;
            }
        }
        Ok(())
    }
}

impl Slot {
    fn outcome(&self) -> NativeOutcome {
        match self.status {
            status::EXCEPTION => NativeOutcome::Observed(Box::new(self.observation())),
            status::SYSTEM_CALL => NativeOutcome::SystemCall,
            _ => NativeOutcome::Timeout,
        }
    }

    fn observation(&self) -> Observation {
        let mut image = self.output.clone();
        image.set_extended(&self.output.xsave);
        let is_page_fault = self.vector == u32::from(vector::PF);
        let fault = Fault {
            vector: self.vector as u8,
            error_code: self.error_code,
            address: if is_page_fault { self.address } else { 0 },
        };
        let mut memory: Box<Memory> =
            vec![0; MEMORY].into_boxed_slice().try_into().expect("the size is the array's");
        memory.copy_from_slice(&self.memory);
        Observation { image, fault, memory }
    }
}

impl Worker {
    fn header(&self) -> &Header {
        // SAFETY: the mapping lives as long as `self`; the header consists of atomics.
        unsafe { &(*self.shared).header }
    }

    fn slot(&mut self, index: usize) -> &mut Slot {
        assert!(index < BATCH);
        // SAFETY: the mapping lives as long as `self`; the worker is waiting for its turn, so the
        // slots are ours; all-zero bytes are a valid slot.
        unsafe { &mut (*self.shared).slots[index] }
    }

    /// Lets the worker execute slots. Returns the first one that was not finished because the
    /// worker died, or `end`.
    fn execute(&mut self, first: usize, end: usize) -> usize {
        let header = self.header();
        header.first.store(first as u32, Relaxed);
        header.count.store(end as u32, Relaxed);
        header.turn.store(turn::WORKER, SeqCst);
        // SAFETY: the futex word is valid shared memory.
        unsafe { libc::syscall(libc::SYS_futex, header.turn.as_ptr(), libc::FUTEX_WAKE, 1) };
        match self.wait_while(turn::WORKER) {
            Ok(()) => end,
            Err(_status) => self.header().first.load(SeqCst) as usize,
        }
    }

    /// Waits until `turn` changes. Fails with the wait status when the worker ended.
    fn wait_while(&mut self, turn: u32) -> Result<(), i32> {
        let started = Instant::now();
        let word = self.header().turn.as_ptr();
        let patience = libc::timespec { tv_sec: 0, tv_nsec: i64::from(PATIENCE.subsec_nanos()) };
        while self.header().turn.load(SeqCst) == turn {
            // SAFETY: the futex word is valid shared memory, the time is on our stack.
            unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAIT, turn, &patience) };
            if self.header().turn.load(SeqCst) != turn {
                break;
            }
            let mut status = 0;
            // SAFETY: asks after our own child.
            if unsafe { libc::waitpid(self.pid, &mut status, libc::WNOHANG) } == self.pid {
                self.pid = 0;
                return Err(status);
            }
            if started.elapsed() > BATCH_LIMIT {
                self.end();
                return Err(libc::SIGKILL);
            }
        }
        Ok(())
    }

    /// Forks a worker and waits until it is ready.
    fn start(&mut self) -> Result<(), NativeError> {
        self.header().turn.store(turn::STARTING, SeqCst);
        let resources = Resources {
            memory_file: self.memory_file,
            shared: self.shared,
            signal_stack: self.signal_stack,
            // SAFETY: no preconditions.
            parent: unsafe { libc::getpid() },
        };
        // SAFETY: the child only runs `worker::main`, which neither allocates nor locks.
        match unsafe { libc::fork() } {
            -1 => return Err(failed("fork")),
            // SAFETY: this is the new process; everything in `resources` is valid in it.
            0 => unsafe { worker::main(&resources) },
            pid => self.pid = pid,
        }
        self.wait_while(turn::STARTING).map_err(|status| NativeError::WorkerFailed { status })
    }

    /// Kills the worker.
    fn end(&mut self) {
        if self.pid > 0 {
            // SAFETY: the process is our own child and has not been waited for.
            unsafe {
                libc::kill(self.pid, libc::SIGKILL);
                libc::waitpid(self.pid, ptr::null_mut(), 0);
            }
            self.pid = 0;
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
        // SAFETY: nobody else uses the mappings and the descriptor, which are ours or were never
        // made (then the calls fail harmlessly: a null mapping is skipped).
        unsafe {
            if !self.shared.is_null() {
                libc::munmap(self.shared.cast(), size_of::<Shared>());
            }
            if !self.signal_stack.is_null() {
                libc::munmap(self.signal_stack.cast(), Resources::SIGNAL_STACK);
            }
            if self.memory_file >= 0 {
                libc::close(self.memory_file);
            }
        }
    }
}

/// The worker needs WRFSBASE in user mode, and the cases AVX2 and its companions.
fn check_host() -> Result<(), NativeError> {
    /// HWCAP2_FSGSBASE of the kernel's `asm/hwcap2.h`.
    const FSGSBASE: u64 = 1 << 1;
    // SAFETY: no preconditions.
    if unsafe { libc::getauxval(libc::AT_HWCAP2) } & FSGSBASE == 0 {
        return Err(NativeError::HostLacks { missing: "FSGSBASE in user mode" });
    }
    if !std::is_x86_feature_detected!("avx2") {
        return Err(NativeError::HostLacks { missing: "AVX2" });
    }
    Ok(())
}

fn map(length: usize, flags: i32) -> Result<*mut u8, NativeError> {
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new anonymous mapping at an address that the kernel chooses.
    let mapped = unsafe { libc::mmap(ptr::null_mut(), length, rights, flags, -1, 0) };
    if mapped == libc::MAP_FAILED { Err(failed("mmap")) } else { Ok(mapped.cast()) }
}

fn failed(call: &'static str) -> NativeError {
    NativeError::System { call, cause: io::Error::last_os_error() }
}
