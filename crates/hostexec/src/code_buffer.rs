//! Executable memory, and calls into it. All unsafe code of the crate.
//!
//! The buffer is one memfd mapped twice: a writable view to emit into and an
//! executable view to run from, so that no page is ever writable and
//! executable at one address. x86 keeps instruction fetch coherent with stores
//! by physical address; fetching freshly written code needs no flush.

use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::stub::StubCode;
use crate::{FpuState, HostExecError, Scratch};

/// Stubs start at multiples of this, the width of an instruction fetch.
const STUB_ALIGNMENT: usize = 16;

/// Calling convention of a stub, see [`crate::stub`]: state, general registers,
/// flags, scratch; returns MXCSR if it is a stub that uses MXCSR.
type Entry =
    unsafe extern "sysv64" fn(*mut FpuState, *mut [u64; 16], *mut u64, *mut Scratch) -> u32;

/// Numbers the fillings of all buffers of the process, so that a handle fits
/// exactly one filling of one buffer.
static NEXT_GENERATION: AtomicU64 = AtomicU64::new(1);

/// A stub in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stub {
    generation: u64,
    offset: u32,
}

/// A fixed amount of executable memory, filled from its start.
#[derive(Debug)]
pub(crate) struct CodeBuffer {
    writable: NonNull<u8>,
    executable: NonNull<u8>,
    size: usize,
    used: usize,
    generation: u64,
}

// SAFETY: the two views belong to this value alone, and nothing about mappings
// depends on the thread.
unsafe impl Send for CodeBuffer {}

impl CodeBuffer {
    /// Maps `size` bytes, a multiple of the page size. Pages cost memory once
    /// they are written.
    pub fn new(size: usize) -> Result<Self, HostExecError> {
        let failed = |cause| HostExecError::CodeBuffer { size, cause };
        assert!(u32::try_from(size).is_ok(), "offsets of stubs have 32 bits");
        // Where the kernel distinguishes, ask for memory that may be executed;
        // older kernels refuse the flag and allow it anyway.
        let executable = MemfdFlags::CLOEXEC | MemfdFlags::EXEC;
        let file = match memfd_create("ringfence-stubs", executable) {
            Err(Errno::INVAL) => memfd_create("ringfence-stubs", MemfdFlags::CLOEXEC),
            other => other,
        }
        .map_err(failed)?;
        ftruncate(&file, size as u64).map_err(failed)?;
        let map = |protection| {
            // SAFETY: a new mapping at an address of the kernel's choice
            // overlaps nothing. The file is private to this function, so that
            // its length does not change.
            let view =
                unsafe { mmap(ptr::null_mut(), size, protection, MapFlags::SHARED, &file, 0) };
            view.map(|start| NonNull::new(start.cast::<u8>()).expect("mmap does not map page 0"))
        };
        let writable = map(ProtFlags::READ | ProtFlags::WRITE).map_err(failed)?;
        let executable = map(ProtFlags::READ | ProtFlags::EXEC).map_err(|cause| {
            unmap(writable, size);
            failed(cause)
        })?;
        let generation = next_generation();
        Ok(Self { writable, executable, size, used: 0, generation })
    }

    /// Forgets all stubs; their handles become stale.
    pub fn clear(&mut self) {
        self.used = 0;
        self.generation = next_generation();
    }

    /// Adds a stub.
    pub fn push(&mut self, code: &StubCode) -> Result<Stub, HostExecError> {
        let bytes = code.bytes();
        let start = self.used;
        let end = start + bytes.len();
        if end > self.size {
            return Err(HostExecError::Full { size: self.size });
        }
        // SAFETY: start..end lies within the writable view, which is mapped as
        // long as self lives; nothing else refers to these bytes: calls into
        // the executable view end before self can be borrowed mutably.
        unsafe {
            ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.writable.as_ptr().add(start),
                bytes.len(),
            );
        }
        self.used = end.next_multiple_of(STUB_ALIGNMENT);
        Ok(Stub { generation: self.generation, offset: start as u32 })
    }

    /// Calls a stub. Returns MXCSR after the instruction if the stub uses it.
    ///
    /// Panics if the stub is of another buffer, or older than the last
    /// [`CodeBuffer::clear`].
    #[inline]
    pub fn call(
        &self,
        stub: Stub,
        state: &mut FpuState,
        gprs: &mut [u64; 16],
        rflags: &mut u64,
        scratch: &mut Scratch,
    ) -> u32 {
        assert_eq!(stub.generation, self.generation, "stale handle of a host instruction");
        // SAFETY: generations are unique in the process, so this stub was made
        // by `push` into the present filling of this buffer, and its offset is
        // the start of a whole stub. A `StubCode` is a function of type `Entry`
        // that keeps to the calling convention and accesses memory only
        // through its four arguments within their types (contract of
        // crate::stub, checked there in debug builds).
        unsafe {
            let start = self.executable.as_ptr().add(stub.offset as usize);
            let entry = std::mem::transmute::<*mut u8, Entry>(start);
            entry(state, gprs, rflags, scratch)
        }
    }
}

impl Drop for CodeBuffer {
    fn drop(&mut self) {
        unmap(self.writable, self.size);
        unmap(self.executable, self.size);
    }
}

fn next_generation() -> u64 {
    NEXT_GENERATION.fetch_add(1, Ordering::Relaxed)
}

fn unmap(start: NonNull<u8>, size: usize) {
    // SAFETY: called once for each view that `new` mapped, when no reference
    // into it is left. Failure would leak the view and nothing worse.
    let _ = unsafe { munmap(start.as_ptr().cast::<c_void>(), size) };
}
