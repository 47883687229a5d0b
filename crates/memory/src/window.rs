//! The host mapping behind guest RAM: all unsafe code of the crate.
//!
//! The guest's other vCPUs and its devices may change any byte at any time, so no Rust reference
//! to guest memory ever exists: bytes are moved by volatile accesses and by `copy` on raw pointers
//! whose range has been checked. A torn or stale value is what hardware could show as well.

use std::arch::asm;
use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// One mapping of `len` bytes.
pub(crate) struct Window {
    base: NonNull<u8>,
    len: u64,
    behind: Behind,
}

/// What is behind a window.
enum Behind {
    /// Nothing: private memory, zero-filled on first touch.
    Nothing,
    /// A file whose content untouched pages show; what is written is private.
    Content,
    /// A file without a name that other processes can map, zero-filled on first touch.
    Shared(OwnedFd),
}

// SAFETY: the mapping belongs to the Window until it is dropped, and all access goes through
// methods that tolerate concurrent change (see the module header).
unsafe impl Send for Window {}
// SAFETY: as for Send.
unsafe impl Sync for Window {}

impl Window {
    /// Reserves `len` bytes (a multiple of the page size, not zero).
    pub(crate) fn new(len: u64) -> std::io::Result<Self> {
        let size = usize::try_from(len).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), size, prot, flags)? };
        Self::with_huge_pages(base, len, Behind::Nothing)
    }

    /// Reserves `len` bytes (as for [`Window::new`]) that other processes can map.
    pub(crate) fn shared(len: u64) -> std::io::Result<Self> {
        let size = usize::try_from(len).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        let file = memfd_create("ringfence-ram", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, len)?;
        // SAFETY: as in `new`; nobody else has the file.
        let base = unsafe { mmap(std::ptr::null_mut(), size, prot, flags, &file, 0)? };
        Self::with_huge_pages(base, len, Behind::Shared(file))
    }

    fn with_huge_pages(base: *mut c_void, len: u64, behind: Behind) -> std::io::Result<Self> {
        // SAFETY: the range is the mapping just made. Huge pages are a hint: failure is no harm.
        let _ = unsafe { madvise(base, len as usize, Advice::LinuxHugepage) };
        let base = NonNull::new(base.cast::<u8>()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len, behind })
    }

    /// The file behind the window that other processes can map, if there is one.
    pub(crate) fn file(&self) -> Option<BorrowedFd<'_>> {
        match &self.behind {
            Behind::Shared(file) => Some(file.as_fd()),
            Behind::Nothing | Behind::Content => None,
        }
    }

    /// Maps the first `len` bytes (a multiple of the page size, not zero) of `file`, which has them.
    pub(crate) fn map(len: u64, file: &File) -> std::io::Result<Self> {
        let size = usize::try_from(len).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        // What others write to the file is seen as a guest sees what its devices write.
        let base = unsafe { mmap(std::ptr::null_mut(), size, prot, flags, file, 0)? };
        let base = NonNull::new(base.cast::<u8>()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len, behind: Behind::Content })
    }

    /// Host address of the first byte.
    pub(crate) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// A pointer to `len` bytes at `offset`.
    ///
    /// # Panics
    /// When the range is not inside the window: the caller's check is broken, and going on would
    /// leave guest RAM.
    #[inline]
    fn at(&self, offset: u64, len: u64) -> *mut u8 {
        assert!(
            len <= self.len && offset <= self.len - len,
            "access outside guest RAM: {offset:#x}+{len:#x} of {:#x}",
            self.len
        );
        // SAFETY: offset + len <= self.len, the size of the mapping.
        unsafe { self.base.as_ptr().add(offset as usize) }
    }

    #[inline]
    pub(crate) fn load<T: Raw>(&self, offset: u64) -> T {
        let from = self.at(offset, size_of::<T>() as u64);
        // SAFETY: the range is inside the mapping; T is an integer, for which all bits are valid.
        unsafe { T::read(from) }
    }

    #[inline]
    pub(crate) fn store<T: Raw>(&self, offset: u64, value: T) {
        let to = self.at(offset, size_of::<T>() as u64);
        // SAFETY: the range is inside the mapping.
        unsafe { T::write(to, value) }
    }

    #[inline]
    pub(crate) fn compare_exchange<T: Raw>(&self, offset: u64, old: T, new: T) -> Result<T, T> {
        let at = self.at(offset, size_of::<T>() as u64);
        assert!((at as usize).is_multiple_of(size_of::<T>()), "atomic access must be aligned");
        // SAFETY: the range is inside the mapping and aligned for T.
        unsafe { T::exchange(at, old, new) }
    }

    pub(crate) fn compare_exchange_pair(&self, offset: u64, old: u128, new: u128) -> u128 {
        let at = self.at(offset, 16);
        assert!((at as usize).is_multiple_of(16), "atomic access must be aligned");
        assert!(std::arch::is_x86_feature_detected!("cmpxchg16b"), "this host lacks CMPXCHG16B");
        // SAFETY: the range is inside the mapping and aligned, and the CPU has the instruction.
        unsafe { exchange_pair(at.cast(), old, new) }
    }

    pub(crate) fn read(&self, offset: u64, to: &mut [u8]) {
        let from = self.at(offset, to.len() as u64);
        // SAFETY: the source is inside the mapping, the destination is a Rust slice outside it.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) }
    }

    pub(crate) fn write(&self, offset: u64, from: &[u8]) {
        let to = self.at(offset, from.len() as u64);
        // SAFETY: the destination is inside the mapping, the source is a Rust slice outside it.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) }
    }

    /// Copies inside the window; the ranges may overlap (as `memmove`).
    pub(crate) fn copy_within(&self, from: u64, to: u64, len: u64) {
        let (from, to) = (self.at(from, len), self.at(to, len));
        // SAFETY: both ranges are inside the mapping; `copy` allows overlap.
        unsafe { std::ptr::copy(from, to, len as usize) }
    }

    pub(crate) fn fill(&self, offset: u64, len: u64, value: u8) {
        let to = self.at(offset, len);
        // SAFETY: the range is inside the mapping.
        unsafe { std::ptr::write_bytes(to, value, len as usize) }
    }

    /// Gives the pages of a page-aligned range back to the host; they read as zero afterwards.
    pub(crate) fn discard(&self, offset: u64, len: u64) -> std::io::Result<()> {
        let at = self.at(offset, len);
        let advice = match self.behind {
            Behind::Content => {
                // Dropping the pages would show those of the file again.
                let prot = ProtFlags::READ | ProtFlags::WRITE;
                let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
                // SAFETY: the range is inside the mapping, of which it replaces whole pages.
                unsafe { mmap_anonymous(at.cast::<c_void>(), len as usize, prot, flags)? };
                return Ok(());
            }
            Behind::Nothing => Advice::LinuxDontNeed,
            Behind::Shared(_) => Advice::LinuxRemove,
        };
        // SAFETY: the range is inside the mapping; dropping its pages only zeroes guest RAM.
        unsafe { madvise(at.cast::<c_void>(), len as usize, advice)? };
        Ok(())
    }

    /// A vm-memory region over `[offset, offset + len)`, valid while the Window lives.
    pub(crate) fn raw_region(
        &self,
        offset: u64,
        len: u64,
    ) -> Result<vm_memory::MmapRegion, vm_memory::mmap::MmapRegionError> {
        let at = self.at(offset, len);
        // SAFETY: the range is a live mapping with these properties; `LoaderView` borrows the
        // GuestRam, so that the region cannot outlive the Window, and an externally built region
        // does not unmap.
        unsafe { vm_memory::MmapRegion::build_raw(at, len as usize, nix_prot(), vm_memory_flags()) }
    }
}

/// PROT_READ | PROT_WRITE, as vm-memory wants it.
fn nix_prot() -> i32 {
    (ProtFlags::READ | ProtFlags::WRITE).bits() as i32
}

/// MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, as vm-memory wants it.
fn vm_memory_flags() -> i32 {
    const MAP_ANONYMOUS: i32 = 0x20;
    (MapFlags::PRIVATE | MapFlags::NORESERVE).bits() as i32 | MAP_ANONYMOUS
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length and nothing refers to it any more.
        // Failure would leak it, which is all that could be done.
        let _ = unsafe { munmap(self.base.as_ptr().cast::<c_void>(), self.len as usize) };
    }
}

/// Sequentially consistent compare-and-exchange of 16 bytes; gives what was there.
///
/// # Safety
/// `at` is readable and writable for 16 bytes, and aligned to them; the CPU has CMPXCHG16B.
unsafe fn exchange_pair(at: *mut u128, old: u128, new: u128) -> u128 {
    let (low, high): (u64, u64);
    // SAFETY: the caller vouches for range and alignment. RBX, which the compiler keeps for itself,
    // is put back.
    unsafe {
        asm!(
            "xchg {new}, rbx",
            "lock cmpxchg16b [{at}]",
            "mov rbx, {new}",
            at = in(reg) at,
            new = inout(reg) new as u64 => _,
            in("rcx") (new >> 64) as u64,
            inout("rax") old as u64 => low,
            inout("rdx") (old >> 64) as u64 => high,
            options(nostack),
        );
    }
    u128::from(high) << 64 | u128::from(low)
}

/// How an integer is moved to and from raw memory. Not implementable elsewhere.
pub trait Raw: Sized {
    /// Loads with acquire order; one access when aligned.
    ///
    /// # Safety
    /// `from` is readable for the size of the type.
    unsafe fn read(from: *const u8) -> Self;

    /// Stores with release order; one access when aligned.
    ///
    /// # Safety
    /// `to` is writable for the size of the type.
    unsafe fn write(to: *mut u8, value: Self);

    /// Sequentially consistent compare-and-exchange.
    ///
    /// # Safety
    /// `at` is readable and writable for the size of the type, and aligned to it.
    unsafe fn exchange(at: *mut u8, old: Self, new: Self) -> Result<Self, Self>;
}

/// An integer at any address: volatile access to it is one move instruction.
#[repr(C, packed)]
struct Unaligned<T>(T);

macro_rules! raw {
    ($($int:ty, $atomic:ty);*) => { $(
        impl Raw for $int {
            #[inline]
            unsafe fn read(from: *const u8) -> Self {
                // On x86 a plain load has acquire order; only the compiler must be told.
                // SAFETY: the caller vouches for the range; unaligned is allowed.
                let value = unsafe { from.cast::<Unaligned<$int>>().read_volatile() }.0;
                fence(Ordering::Acquire);
                value
            }
            #[inline]
            unsafe fn write(to: *mut u8, value: Self) {
                fence(Ordering::Release);
                // SAFETY: the caller vouches for the range; unaligned is allowed.
                unsafe { to.cast::<Unaligned<$int>>().write_volatile(Unaligned(value)) }
            }
            #[inline]
            unsafe fn exchange(at: *mut u8, old: Self, new: Self) -> Result<Self, Self> {
                // SAFETY: the caller vouches for range and alignment.
                let atomic = unsafe { <$atomic>::from_ptr(at.cast()) };
                atomic.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
            }
        }
    )* };
}

raw!(u8, AtomicU8; u16, AtomicU16; u32, AtomicU32; u64, AtomicU64);
