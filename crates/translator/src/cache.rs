//! The code cache: memory for generated code, mapped twice.
//!
//! One view is readable and writable, the other readable and executable; no page is ever both
//! writable and executable. The file behind them has no name. This module and `enter.rs` hold the
//! unsafe code of the crate.

use std::collections::HashSet;
use std::ffi::c_void;
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

pub(crate) struct CodeCache {
    writable: NonNull<u8>,
    executable: NonNull<u8>,
    size: usize,
    used: usize,
    /// Where blocks may be entered; in debug builds, which check what is patched.
    entries: HashSet<u64>,
}

// SAFETY: both mappings belong to the CodeCache alone; all access goes through `&mut self` or is
// execution by the thread that owns it.
unsafe impl Send for CodeCache {}

impl CodeCache {
    /// Reserves `size` bytes; they are committed as they are used.
    pub(crate) fn new(size: usize) -> std::io::Result<Self> {
        let file = memfd_create("ringfence-code", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, size as u64)?;
        let map = |prot| {
            // SAFETY: new shared mappings at addresses of the kernel's choice, over a file that
            // nobody else has.
            let at = unsafe { mmap(std::ptr::null_mut(), size, prot, MapFlags::SHARED, &file, 0)? };
            NonNull::new(at.cast::<u8>()).ok_or(rustix::io::Errno::NOMEM)
        };
        let writable = map(ProtFlags::READ | ProtFlags::WRITE)?;
        let executable = map(ProtFlags::READ | ProtFlags::EXEC)?;
        Ok(Self { writable, executable, size, used: 0, entries: HashSet::new() })
    }

    /// Host address at which the next code will execute.
    pub(crate) fn next(&self) -> u64 {
        self.executable.as_ptr() as u64 + self.used as u64
    }

    /// Addresses of the code that there is.
    #[cfg(test)]
    pub(crate) fn executable(&self) -> std::ops::Range<u64> {
        self.executable.as_ptr() as u64..self.next()
    }

    /// Bytes in use.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// Whether `len` more bytes fit.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        len <= self.size - self.used
    }

    /// Appends code; gives its address.
    ///
    /// # Panics
    /// When it does not fit: the caller checks with [`CodeCache::has_room`].
    pub(crate) fn append(&mut self, code: &[u8]) -> u64 {
        assert!(self.has_room(code.len()), "code cache overflow");
        let at = self.next();
        // SAFETY: the range lies inside the writable mapping, as checked above.
        unsafe {
            let to = self.writable.as_ptr().add(self.used);
            std::ptr::copy_nonoverlapping(code.as_ptr(), to, code.len());
        }
        self.used += code.len().next_multiple_of(16).min(self.size - self.used);
        at
    }

    /// Forgets everything behind the first `keep` bytes.
    pub(crate) fn truncate(&mut self, keep: usize) {
        self.used = keep;
        self.entries.clear();
    }

    /// Jumps may be patched to lead to `at`.
    pub(crate) fn allow_entry(&mut self, at: u64) {
        self.entries.insert(at);
    }

    /// Offset of an executable address in the cache.
    fn offset(&self, address: u64, len: usize) -> usize {
        let offset = address.wrapping_sub(self.executable.as_ptr() as u64) as usize;
        assert!(offset <= self.used && len <= self.used - offset, "address outside the code cache");
        offset
    }

    /// Overwrites the 32-bit displacement at executable address `at`, of a jump, which then leads to
    /// a block.
    pub(crate) fn patch(&mut self, at: u64, value: i32) {
        let offset = self.offset(at, 4);
        if cfg!(debug_assertions) {
            let target = at.wrapping_add(4).wrapping_add_signed(i64::from(value));
            assert!(self.entries.contains(&target), "a jump patched to lead into a block");
            assert!(self.is_jump(offset), "a patch of something else than a jump");
        }
        // SAFETY: the range lies inside the writable mapping. Only this thread executes the code,
        // and it is not executing now.
        unsafe {
            self.writable.as_ptr().add(offset).cast::<i32>().write_unaligned(value);
        }
    }
}

impl CodeCache {
    /// Whether the displacement at `offset` is that of JMP or Jcc.
    fn is_jump(&self, offset: usize) -> bool {
        let byte = |back: usize| {
            let at = offset.checked_sub(back)?;
            // SAFETY: it lies before `offset`, inside the writable mapping.
            Some(unsafe { self.writable.as_ptr().add(at).read() })
        };
        matches!((byte(2), byte(1)), (_, Some(0xe9)) | (Some(0x0f), Some(0x80..=0x8f)))
    }

    /// Replaces the five bytes at executable address `at`, a call, by a jump to `target`.
    pub(crate) fn patch_with_jump(&mut self, at: u64, target: u64) {
        const JMP: u8 = 0xe9;
        let distance = target.wrapping_sub(at + 5) as i64;
        let Ok(distance) = i32::try_from(distance) else { return };
        let offset = self.offset(at, 5);
        // SAFETY: the range lies inside the writable mapping, and nobody executes it now.
        unsafe { self.writable.as_ptr().add(offset).write(JMP) };
        self.patch(at + 1, distance);
    }
}

impl Drop for CodeCache {
    fn drop(&mut self) {
        for view in [self.writable, self.executable] {
            // SAFETY: mapped by `new` with this size, not used any more. Failure would leak it.
            let _ = unsafe { munmap(view.as_ptr().cast::<c_void>(), self.size) };
        }
    }
}
