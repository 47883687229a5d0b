//! What the standard library does not offer of the system: memory mappings, `fork`, signals.
//!
//! The functions are those of the C library that std links (POSIX.1-2017, Linux man-pages).

use std::ffi::{c_char, c_int, c_long, c_uint, c_void};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::null_mut;
use std::sync::atomic::AtomicU64;

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// What a mapping allows: PROT_READ, PROT_WRITE, PROT_EXEC.
pub mod protection {
    use std::ffi::c_int;
    /// No access.
    pub const NONE: c_int = 0;
    /// Loads.
    pub const READ: c_int = 1;
    /// Loads and stores.
    pub const WRITE: c_int = 3;
    /// Loads and instruction fetches.
    pub const EXECUTE: c_int = 5;
    /// Everything.
    pub const ALL: c_int = 7;
}

/// Signals.
pub mod signal {
    use std::ffi::c_int;
    /// Of a breakpoint.
    pub const TRAP: c_int = 5;
    /// For the program's own use.
    pub const USER: c_int = 10;
    /// Of a forbidden access to memory.
    pub const SEGV: c_int = 11;
    /// Of the interval timer.
    pub const ALARM: c_int = 14;
}

const MAP_SHARED: c_int = 1;
const MAP_PRIVATE: c_int = 2;
const MAP_FIXED: c_int = 0x10;
const MAP_ANONYMOUS: c_int = 0x20;
const MADV_DONTNEED: c_int = 4;
const ITIMER_REAL: c_int = 0;
const SYS_GETCPU: c_long = 309;

/// `struct itimerval`: seconds and microseconds of the interval and of the first expiry.
#[repr(C)]
struct IntervalTimer([i64; 4]);

unsafe extern "C" {
    fn mmap(
        at: *mut c_void,
        len: usize,
        prot: c_int,
        how: c_int,
        fd: c_int,
        from: i64,
    ) -> *mut c_void;
    fn munmap(at: *mut c_void, len: usize) -> c_int;
    fn mprotect(at: *mut c_void, len: usize, prot: c_int) -> c_int;
    fn madvise(at: *mut c_void, len: usize, advice: c_int) -> c_int;
    fn memfd_create(name: *const c_char, flags: c_uint) -> c_int;
    fn fork() -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn _exit(status: c_int) -> !;
    #[link_name = "signal"]
    fn set_handler(number: c_int, handler: extern "C" fn(c_int)) -> usize;
    #[link_name = "raise"]
    fn raise_signal(number: c_int) -> c_int;
    fn syscall(number: c_long, cpu: *mut c_uint, node: *mut c_uint, unused: usize) -> c_long;
    fn setitimer(which: c_int, new: *const IntervalTimer, old: *mut IntervalTimer) -> c_int;
}

fn check(what: &str, result: c_int) -> c_int {
    assert!(result >= 0, "{what}: {}", std::io::Error::last_os_error());
    result
}

/// Memory of its own, which goes with the value. Its protection is the caller's concern: who
/// accesses a page without the right to gets a signal, as in C.
pub struct Mapping {
    at: *mut u8,
    len: usize,
}

// SAFETY: nothing but an address range, accessed by atomics or under the callers' own rules.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `pages` pages of zeros, private to this process.
    pub fn private(pages: usize, prot: c_int) -> Self {
        Self::new(pages, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1)
    }

    /// `pages` pages of zeros, which children share.
    pub fn shared(pages: usize, prot: c_int) -> Self {
        Self::new(pages, prot, MAP_SHARED | MAP_ANONYMOUS, -1)
    }

    /// The first `pages` pages of a file, shared with whoever else maps it.
    pub fn of_file(file: &File, pages: usize, prot: c_int) -> Self {
        Self::new(pages, prot, MAP_SHARED, file.as_raw_fd())
    }

    fn new(pages: usize, prot: c_int, how: c_int, fd: c_int) -> Self {
        let len = pages * PAGE;
        // SAFETY: a new mapping where nothing is.
        let at = unsafe { mmap(null_mut(), len, prot, how, fd, 0) };
        assert!(at as isize != -1, "mmap: {}", std::io::Error::last_os_error());
        Self { at: at.cast(), len }
    }

    /// The address of byte `offset`.
    pub fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.len, "an offset inside the mapping");
        // SAFETY: inside the mapping, as just asserted.
        unsafe { self.at.add(offset) }
    }

    /// The aligned word `index`, in units of 8 bytes.
    pub fn word(&self, index: usize) -> &AtomicU64 {
        // SAFETY: an aligned address inside the mapping, which outlives the reference.
        unsafe { &*self.at(index * 8).cast::<AtomicU64>() }
    }

    /// Copies bytes in; nobody else may access them meanwhile.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.len, "bytes inside the mapping");
        // SAFETY: in range, as just asserted; the bytes are not the mapping's.
        unsafe { self.at(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Copies bytes out; nobody else may write to them meanwhile.
    pub fn read(&self, offset: usize, count: usize) -> Vec<u8> {
        assert!(offset + count <= self.len, "bytes inside the mapping");
        // SAFETY: in range, as just asserted.
        unsafe { std::slice::from_raw_parts(self.at(offset), count) }.to_vec()
    }

    /// Changes what is allowed on `count` pages from page `first`.
    pub fn protect(&self, first: usize, count: usize, prot: c_int) {
        let (at, len) = self.range(first, count);
        // SAFETY: pages of this mapping, which only raw pointers and atomics refer to.
        check("mprotect", unsafe { mprotect(at, len, prot) });
    }

    /// Drops the content of `count` pages from page `first`: zeros, if the memory is private.
    pub fn discard(&self, first: usize, count: usize) {
        let (at, len) = self.range(first, count);
        // SAFETY: as in `protect`.
        check("madvise", unsafe { madvise(at, len, MADV_DONTNEED) });
    }

    /// Puts page `page` of `file` where page `at` of this mapping is.
    pub fn replace(&self, at: usize, file: &File, page: usize, prot: c_int) {
        let (place, len) = self.range(at, 1);
        let (how, from) = (MAP_SHARED | MAP_FIXED, (page * PAGE) as i64);
        // SAFETY: as in `protect`; the range is this mapping's own.
        let mapped = unsafe { mmap(place, len, prot, how, file.as_raw_fd(), from) };
        assert!(mapped == place, "mmap: {}", std::io::Error::last_os_error());
    }

    fn range(&self, first: usize, count: usize) -> (*mut c_void, usize) {
        assert!((first + count) * PAGE <= self.len, "pages inside the mapping");
        // SAFETY: inside the mapping, as just asserted.
        (unsafe { self.at.add(first * PAGE) }.cast(), count * PAGE)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping goes with the last thing that refers to it.
        check("munmap", unsafe { munmap(self.at.cast(), self.len) });
    }
}

/// A file without a name, of `pages` pages of zeros.
pub fn memory_file(pages: usize) -> File {
    // SAFETY: the name ends with a zero.
    let fd = check("memfd_create", unsafe { memfd_create(c"stress".as_ptr(), 0) });
    // SAFETY: the descriptor is new and nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len((pages * PAGE) as u64).expect("a memory file grows");
    file
}

/// Changes the protection of a page, from within a signal handler.
pub fn protect_page(at: usize, prot: c_int) {
    // SAFETY: the caller names a page of a mapping of its own.
    check("mprotect", unsafe { mprotect(at as *mut c_void, PAGE, prot) });
}

/// Runs `child` in a copy of the process, with its result as exit status; gives the child's id.
/// There may be other threads, which the child has not: it must not allocate or take locks.
pub fn fork_child(child: impl FnOnce() -> u8) -> c_int {
    // SAFETY: the child does what is allowed after a fork, see above, and leaves by `_exit`.
    match check("fork", unsafe { fork() }) {
        // SAFETY: ends the process at once.
        0 => unsafe { _exit(c_int::from(child())) },
        pid => pid,
    }
}

/// Waits for a child; its exit status, `None` when a signal killed it.
pub fn wait_child(pid: c_int) -> Option<u8> {
    let mut status = 0;
    // SAFETY: the status is ours.
    check("waitpid", unsafe { waitpid(pid, &raw mut status, 0) });
    (status & 0x7f == 0).then_some((status >> 8) as u8)
}

/// Sets the handler of a signal; interrupted system calls go on.
pub fn handle(number: c_int, handler: extern "C" fn(c_int)) {
    // SAFETY: the handlers here do what is allowed in one: atomics and mprotect.
    let old = unsafe { set_handler(number, handler) };
    assert!(old != usize::MAX, "signal: {}", std::io::Error::last_os_error());
}

/// Sends a signal to the calling thread, which has run its handler on return.
pub fn raise(number: c_int) {
    // SAFETY: the signal has a handler.
    check("raise", unsafe { raise_signal(number) });
}

/// The number of the CPU that this executes on, by the kernel's word: the C library would ask the
/// processor.
pub fn current_cpu() -> u32 {
    let mut cpu = 0;
    // SAFETY: getcpu writes the number; it is not asked for the node.
    let result = unsafe { syscall(SYS_GETCPU, &raw mut cpu, null_mut(), 0) };
    assert!(result == 0, "getcpu: {}", std::io::Error::last_os_error());
    cpu
}

/// SIGALRM every so many microseconds from now on, below a second; 0 ends it.
pub fn alarm_every(microseconds: i64) {
    let timer = IntervalTimer([0, microseconds, 0, microseconds]);
    // SAFETY: the timer is valid, the old one is not asked for.
    check("setitimer", unsafe { setitimer(ITIMER_REAL, &raw const timer, null_mut()) });
}
