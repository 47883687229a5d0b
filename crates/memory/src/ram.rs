//! Guest RAM as the rest of the project sees it.

use std::fs::File;
use std::marker::PhantomData;
use std::ops::Deref;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, PoisonError, RwLock};

use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::pages::{CODE, HOOKED, Pages};
use crate::shadow::Shadow;
use crate::window::Window;
use crate::{DirtyConsumer, Gpa, PAGE_SIZE, RamOffset, Scalar, WriteHook};

/// Why guest memory could not be made or accessed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The range is not, or not wholly, guest RAM.
    #[error("guest-physical range {gpa:#x}+{len:#x} is not guest RAM")]
    NotRam {
        /// First address.
        gpa: u64,
        /// Bytes.
        len: u64,
    },
    /// The regions overlap, are empty or are not page-aligned.
    #[error("guest RAM region {gpa:#x}+{len:#x} is empty, unaligned or overlaps another")]
    BadRegion {
        /// First address.
        gpa: u64,
        /// Bytes.
        len: u64,
    },
    /// The host has no address space or memory for it.
    #[error("cannot reserve {bytes} bytes for the guest: {cause}; choose a smaller --memory")]
    NoHostMemory {
        /// Bytes asked for.
        bytes: u64,
        /// What the host said.
        cause: std::io::Error,
    },
    /// The file to map has another size than the RAM.
    #[error("a memory file of {found} bytes cannot be the RAM of a guest with {wanted}")]
    BadFile {
        /// Bytes of the file.
        found: u64,
        /// Bytes of the RAM.
        wanted: u64,
    },
    /// The file cannot be looked at.
    #[error("cannot look at the memory file: {0}")]
    Map(std::io::Error),
    /// Handing pages back to the host failed.
    #[error("cannot return guest pages to the host: {0}")]
    Discard(std::io::Error),
    /// The view for loaders cannot be made.
    #[error("cannot show guest RAM to a loader: {0}")]
    View(String),
}

/// Whether a range is going to be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only read.
    Read,
    /// Written, perhaps also read.
    Write,
}

/// A range of guest-physical addresses that is RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First address, page-aligned.
    pub gpa: u64,
    /// Bytes, a multiple of the page size, not zero.
    pub len: u64,
    /// Where the region begins in the host window.
    pub offset: RamOffset,
}

/// The RAM of one guest; shared by vCPUs and devices.
///
/// ```
/// use memory::{Gpa, GuestRam};
/// let ram = GuestRam::new(&[(0, 1 << 20)])?;
/// ram.write(Gpa(0x1ffe), b"abcd")?;
/// assert_eq!(ram.load::<u32>(ram.translate(Gpa(0x1ffe), 4).unwrap()), u32::from_le_bytes(*b"abcd"));
/// assert!(ram.write(Gpa((1 << 20) - 1), b"ab").is_err());
/// # Ok::<(), memory::MemoryError>(())
/// ```
pub struct GuestRam {
    window: Window,
    regions: Vec<Region>,
    pages: Pages,
    hook: RwLock<Option<Arc<dyn WriteHook>>>,
    shadow: Shadow,
}

impl GuestRam {
    /// Reserves RAM for `(first address, bytes)` regions. Nothing is committed before it is
    /// touched.
    ///
    /// # Errors
    /// [`MemoryError::BadRegion`], [`MemoryError::NoHostMemory`].
    pub fn new(layout: &[(u64, u64)]) -> Result<Self, MemoryError> {
        Self::with_window(layout, Window::new)
    }

    /// RAM whose first content is that of `file`, byte for byte at its [`RamOffset`]: mapped
    /// privately, so that only pages that are touched are read, pages that are only read are shared
    /// with everybody who maps the file, and the file is never written. It must not become shorter
    /// or change while the GuestRam lives.
    ///
    /// # Errors
    /// As [`GuestRam::new`]; [`MemoryError::BadFile`] for one of another size.
    pub fn map(layout: &[(u64, u64)], file: &File) -> Result<Self, MemoryError> {
        let wanted = layout.iter().fold(0_u64, |sum, (_, len)| sum.saturating_add(*len));
        let found = file.metadata().map_err(MemoryError::Map)?.len();
        if found != wanted {
            return Err(MemoryError::BadFile { found, wanted });
        }
        Self::with_window(layout, |len| Window::map(len, file))
    }

    /// RAM that other processes can map, which direct execution needs. The host cannot merge its
    /// pages with those of other guests.
    ///
    /// # Errors
    /// As [`GuestRam::new`].
    pub fn shared(layout: &[(u64, u64)]) -> Result<Self, MemoryError> {
        Self::with_window(layout, Window::shared)
    }

    fn with_window(
        layout: &[(u64, u64)],
        window: impl FnOnce(u64) -> std::io::Result<Window>,
    ) -> Result<Self, MemoryError> {
        let mut regions: Vec<Region> = Vec::with_capacity(layout.len());
        let mut offset = 0_u64;
        for &(gpa, len) in layout {
            let bad = MemoryError::BadRegion { gpa, len };
            let aligned = len != 0 && gpa % PAGE_SIZE == 0 && len % PAGE_SIZE == 0;
            let Some(end) = gpa.checked_add(len).filter(|_| aligned) else { return Err(bad) };
            if regions.iter().any(|r| gpa < r.gpa + r.len && r.gpa < end) {
                return Err(bad);
            }
            regions.push(Region { gpa, len, offset: RamOffset(offset) });
            offset = offset.checked_add(len).ok_or(bad)?;
        }
        if offset == 0 {
            return Err(MemoryError::BadRegion { gpa: 0, len: 0 });
        }
        let window =
            window(offset).map_err(|cause| MemoryError::NoHostMemory { bytes: offset, cause })?;
        let pages = Pages::new((offset / PAGE_SIZE) as usize);
        let shadow = Shadow::default();
        Ok(Self { window, regions, pages, hook: RwLock::new(None), shadow })
    }

    /// Says of each of the sixteen segments of 16 KiB from 0xc0000 on which accesses of vCPUs do not
    /// reach RAM (bit 0 is the first segment); whether that is a change. vCPUs may know the old
    /// rights until their TLBs are flushed.
    pub fn set_shadow(&self, unreadable: u16, unwritable: u16) -> bool {
        self.shadow.set(unreadable, unwritable)
    }

    /// Whether a vCPU's access to the page at `gpa`, which is RAM, reaches it. One that does not is
    /// the bus's, and so is every access where reads do not.
    #[inline]
    pub fn is_reached(&self, gpa: Gpa, write: bool) -> bool {
        self.shadow.lets_through(gpa.0, write)
    }

    /// Whether a vCPU's write to `gpa` that came to the bus is RAM's.
    pub fn is_shadow_writable(&self, gpa: Gpa) -> bool {
        self.shadow.is_writable(gpa.0)
    }

    /// The RAM regions, in the order given.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Bytes of RAM.
    pub fn size(&self) -> u64 {
        self.window.len()
    }

    /// Where `len` bytes at `gpa` lie in the window, when all of them are in one RAM region.
    #[inline]
    pub fn translate(&self, gpa: Gpa, len: u64) -> Option<RamOffset> {
        self.regions.iter().find_map(|r| {
            let inside = gpa.0.checked_sub(r.gpa)?;
            let fits = inside < r.len && len <= r.len - inside;
            fits.then_some(RamOffset(r.offset.0 + inside))
        })
    }

    /// The guest-physical address of a window offset.
    pub fn gpa_of(&self, offset: RamOffset) -> Option<Gpa> {
        self.regions.iter().find_map(|r| {
            let inside = offset.0.checked_sub(r.offset.0)?;
            (inside < r.len).then_some(Gpa(r.gpa + inside))
        })
    }

    /// Copies out of guest RAM.
    ///
    /// # Errors
    /// [`MemoryError::NotRam`]; nothing is read then.
    pub fn read(&self, gpa: Gpa, to: &mut [u8]) -> Result<(), MemoryError> {
        let at = self.ram_range(gpa, to.len() as u64)?;
        self.window.read(at.0, to);
        Ok(())
    }

    /// Copies into guest RAM, with intent and dirty mark.
    ///
    /// # Errors
    /// [`MemoryError::NotRam`]; nothing is written then.
    pub fn write(&self, gpa: Gpa, from: &[u8]) -> Result<(), MemoryError> {
        let mut rest = from;
        for slice in self.slices(gpa, from.len() as u64, Access::Write)? {
            let (now, later) = rest.split_at(slice.len());
            slice.copy_from(now);
            rest = later;
        }
        Ok(())
    }

    /// The range as slices that each lie in one page. For [`Access::Write`] the intent has been
    /// declared for all of them; each [`Slice`] marks its page dirty when it is written or dropped.
    ///
    /// # Errors
    /// [`MemoryError::NotRam`].
    pub fn slices(
        &self,
        gpa: Gpa,
        len: u64,
        access: Access,
    ) -> Result<impl Iterator<Item = Slice<'_>>, MemoryError> {
        let start = self.ram_range(gpa, len)?;
        let end = start.0 + len;
        let mut at = start.0;
        Ok(std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let next = end.min((at / PAGE_SIZE + 1) * PAGE_SIZE);
            let offset = RamOffset(at);
            let len = (next - at) as usize;
            at = next;
            if access == Access::Write {
                self.prepare_write(offset);
            }
            Some(Slice { ram: self, offset, len, access })
        }))
    }

    /// Loads an integer with acquire order, at any alignment.
    ///
    /// # Panics
    /// When `at` did not come from [`GuestRam::translate`] for at least `T::BYTES` bytes.
    #[inline]
    pub fn load<T: Scalar>(&self, at: RamOffset) -> T {
        self.window.load(at.0)
    }

    /// Stores an integer with release order, at any alignment. The caller has made sure that the
    /// page is quiet, or wraps the call in [`GuestRam::prepare_write`] and
    /// [`GuestRam::mark_dirty`].
    ///
    /// # Panics
    /// As [`GuestRam::load`].
    #[inline]
    pub fn store<T: Scalar>(&self, at: RamOffset, value: T) {
        self.window.store(at.0, value);
    }

    /// Atomic compare-and-exchange on a naturally aligned integer; `Err` holds what was there.
    /// Hooks as for [`GuestRam::store`].
    ///
    /// # Errors
    /// The value found, when it was not `old`.
    ///
    /// # Panics
    /// As [`GuestRam::load`], and when `at` is not aligned.
    #[inline]
    pub fn compare_exchange<T: Scalar>(&self, at: RamOffset, old: T, new: T) -> Result<T, T> {
        self.window.compare_exchange(at.0, old, new)
    }

    /// Atomic compare-and-exchange of 16 aligned bytes; gives what was there. Hooks as for
    /// [`GuestRam::store`].
    ///
    /// # Panics
    /// As [`GuestRam::compare_exchange`], and on a host CPU without CMPXCHG16B, for which no
    /// CPU profile can be made.
    pub fn compare_exchange_pair(&self, at: RamOffset, old: u128, new: u128) -> u128 {
        self.window.compare_exchange_pair(at.0, old, new)
    }

    /// Copies bytes out of the window; the range must not leave it. Engines use it inside a page.
    ///
    /// # Panics
    /// As [`GuestRam::load`].
    #[inline]
    pub fn read_at(&self, at: RamOffset, to: &mut [u8]) {
        self.window.read(at.0, to);
    }

    /// Copies bytes into the window; hooks as for [`GuestRam::store`].
    ///
    /// # Panics
    /// As [`GuestRam::load`].
    #[inline]
    pub fn write_at(&self, at: RamOffset, from: &[u8]) {
        self.window.write(at.0, from);
    }

    /// Copies inside the window as `memmove`; hooks as for [`GuestRam::store`].
    ///
    /// # Panics
    /// As [`GuestRam::load`].
    pub fn copy_within(&self, from: RamOffset, to: RamOffset, len: u64) {
        self.window.copy_within(from.0, to.0, len);
    }

    /// Sets bytes; hooks as for [`GuestRam::store`].
    ///
    /// # Panics
    /// As [`GuestRam::load`].
    pub fn fill_at(&self, at: RamOffset, len: u64, value: u8) {
        self.window.fill(at.0, len, value);
    }

    /// Whether nobody watches the page at `at`: it may be written without hooks.
    #[inline]
    pub fn is_quiet(&self, at: RamOffset) -> bool {
        self.pages.is_quiet(at.page())
    }

    /// Declares the intent to write to the page at `at`, before the write. Returns whether the
    /// page held code, whose decoded or translated form is stale from now on.
    pub fn prepare_write(&self, at: RamOffset) -> bool {
        let page = at.page();
        if self.pages.is_quiet(page) {
            return false;
        }
        if self.pages.has(page, HOOKED) {
            let hook = self.hook.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(hook) = hook.as_ref() {
                hook.before_write(page);
            }
            // Only now: another vCPU that finds the page quiet writes at once.
            self.pages.clear(page, HOOKED);
        }
        let code = self.pages.clear(page, CODE);
        if code {
            self.pages.bump_code_version(page);
        }
        code
    }

    /// Marks the page at `at` as written, after the write.
    #[inline]
    pub fn mark_dirty(&self, at: RamOffset) {
        if !self.pages.is_quiet(at.page()) {
            self.pages.mark_dirty(at.page());
        }
    }

    /// An engine is about to decode code on the page at `at`: from now on a write to it goes
    /// through [`GuestRam::prepare_write`], but for those of vCPUs that have found the page quiet
    /// before ([`GuestRam::may_be_written_by`]). Returns the page's code version, which changes
    /// with each such write.
    pub fn watch_code(&self, at: RamOffset) -> u32 {
        self.pages.set(at.page(), CODE);
        self.pages.code_version(at.page())
    }

    /// vCPU `vcpu` is about to look whether the page at `at` is quiet and may, if so, write to it
    /// without looking again. Call it before [`GuestRam::is_quiet`].
    pub fn note_writer(&self, at: RamOffset, vcpu: u32) {
        self.pages.note_writer(at.page(), vcpu);
    }

    /// vCPU `vcpu` does not write to the page at `at` again without [`GuestRam::note_writer`].
    pub fn forget_writer(&self, at: RamOffset, vcpu: u32) {
        self.pages.forget_writer(at.page(), vcpu);
    }

    /// Whether vCPU `vcpu` may write to the page at `at` without looking at its state.
    pub fn may_be_written_by(&self, at: RamOffset, vcpu: u32) -> bool {
        self.pages.may_write(at.page(), vcpu)
    }

    /// The code version of the page at `at`.
    #[inline]
    pub fn code_version(&self, at: RamOffset) -> u32 {
        self.pages.code_version(at.page())
    }

    /// How often a page that held code has been written; changes whenever some page's code version
    /// does.
    #[inline]
    pub fn code_epoch(&self) -> u64 {
        self.pages.code_epoch()
    }

    /// How often pages began to be watched by a dirty log or a write hook: who keeps addresses of
    /// pages that it found quiet must look again when this has changed.
    #[inline]
    pub fn watch_epoch(&self) -> u64 {
        self.pages.watch_epoch()
    }

    /// Host address of guest RAM, for the tables of translated code. It stays valid while the
    /// GuestRam lives; using it is unsafe and must follow the rules of the crate's header.
    pub fn host_window(&self) -> *mut u8 {
        self.window.base()
    }

    /// The file that holds guest RAM, when other processes can map it ([`GuestRam::shared`]):
    /// [`RamOffset`]s are offsets in it. Who writes to it must follow the rules for
    /// [`GuestRam::host_window`].
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.window.file()
    }

    /// Starts or ends the dirty log of `consumer`; it begins empty.
    pub fn track_dirty(&self, consumer: DirtyConsumer, on: bool) {
        self.pages.track(consumer, on);
    }

    /// Indexes of the pages written since the last call (or since the log began), ascending.
    /// Call it with the vCPUs parked to have a consistent set.
    pub fn dirty_pages(&self, consumer: DirtyConsumer) -> Vec<usize> {
        self.pages.take_dirty(consumer)
    }

    /// Installs a hook that sees every page before its next write; `None` removes it. The vCPUs
    /// are parked when one is installed.
    pub fn set_write_hook(&self, hook: Option<Arc<dyn WriteHook>>) {
        let install = hook.is_some();
        *self.hook.write().unwrap_or_else(PoisonError::into_inner) = hook;
        if install {
            self.pages.set_all(HOOKED);
        }
    }

    /// The write hook does not want to see the page at `at` any more.
    pub fn release_hook(&self, at: RamOffset) {
        self.pages.clear(at.page(), HOOKED);
    }

    /// Gives whole pages back to the host; they read as zero afterwards.
    ///
    /// # Errors
    /// [`MemoryError::NotRam`] for a range that is not page-aligned RAM, [`MemoryError::Discard`].
    pub fn discard(&self, gpa: Gpa, len: u64) -> Result<(), MemoryError> {
        if !gpa.0.is_multiple_of(PAGE_SIZE) || !len.is_multiple_of(PAGE_SIZE) {
            return Err(MemoryError::NotRam { gpa: gpa.0, len });
        }
        let at = self.ram_range(gpa, len)?;
        for page in (at.0..at.0 + len).step_by(PAGE_SIZE as usize) {
            self.prepare_write(RamOffset(page));
            self.mark_dirty(RamOffset(page));
        }
        self.window.discard(at.0, len).map_err(MemoryError::Discard)
    }

    /// RAM as the rust-vmm loaders want it. Writes through it run no hooks: it is for filling
    /// memory before the first vCPU runs.
    ///
    /// # Errors
    /// [`MemoryError::View`].
    pub fn loader_view(&self) -> Result<LoaderView<'_>, MemoryError> {
        let view = |e: &dyn std::fmt::Display| MemoryError::View(e.to_string());
        let mut sorted = self.regions.clone();
        sorted.sort_by_key(|r| r.gpa);
        let mut regions = Vec::with_capacity(sorted.len());
        for region in sorted {
            let raw = self.window.raw_region(region.offset.0, region.len).map_err(|e| view(&e))?;
            let guest = GuestRegionMmap::new(raw, GuestAddress(region.gpa))
                .ok_or_else(|| view(&"address overflow"))?;
            regions.push(guest);
        }
        let memory = GuestMemoryMmap::from_regions(regions).map_err(|e| view(&e))?;
        Ok(LoaderView { memory, ram: PhantomData })
    }

    fn ram_range(&self, gpa: Gpa, len: u64) -> Result<RamOffset, MemoryError> {
        self.translate(gpa, len).ok_or(MemoryError::NotRam { gpa: gpa.0, len })
    }
}

/// A part of one page of guest RAM.
pub struct Slice<'a> {
    ram: &'a GuestRam,
    offset: RamOffset,
    len: usize,
    access: Access,
}

impl Slice<'_> {
    /// Bytes, 1 to 4096.
    #[expect(clippy::len_without_is_empty, reason = "a slice is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Copies the slice out.
    ///
    /// # Panics
    /// When `to` has another length.
    pub fn copy_to(&self, to: &mut [u8]) {
        assert_eq!(to.len(), self.len, "length of the slice");
        self.ram.window.read(self.offset.0, to);
    }

    /// Copies into the slice.
    ///
    /// # Panics
    /// When `from` has another length or the slice was asked for reading.
    pub fn copy_from(&self, from: &[u8]) {
        assert_eq!(from.len(), self.len, "length of the slice");
        assert_eq!(self.access, Access::Write, "the slice is for reading");
        self.ram.window.write(self.offset.0, from);
    }
}

impl Drop for Slice<'_> {
    fn drop(&mut self) {
        if self.access == Access::Write {
            self.ram.mark_dirty(self.offset);
        }
    }
}

/// Guest RAM for rust-vmm loaders; see [`GuestRam::loader_view`].
pub struct LoaderView<'a> {
    memory: GuestMemoryMmap,
    ram: PhantomData<&'a GuestRam>,
}

impl Deref for LoaderView<'_> {
    type Target = GuestMemoryMmap;

    fn deref(&self) -> &GuestMemoryMmap {
        &self.memory
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn two_regions() -> GuestRam {
        GuestRam::new(&[(0, MIB), (4 * MIB, MIB)]).unwrap()
    }

    #[test]
    fn bad_layouts_are_refused() {
        for layout in [
            &[][..],
            &[(0, 0)],
            &[(1, 4096)],
            &[(0, 100)],
            &[(0, 8192), (4096, 4096)],
            &[(u64::MAX - 4095, 8192)],
        ] {
            assert!(GuestRam::new(layout).is_err(), "{layout:?}");
        }
        assert!(GuestRam::new(&[(0, 1 << 60)]).is_err());
    }

    #[test]
    fn ranges_are_checked_against_regions() {
        let ram = two_regions();
        assert_eq!(ram.translate(Gpa(4 * MIB), 1), Some(RamOffset(MIB)));
        assert_eq!(ram.gpa_of(RamOffset(MIB)), Some(Gpa(4 * MIB)));
        for (gpa, len) in [(MIB, 1), (MIB - 1, 2), (5 * MIB - 1, 2), (u64::MAX, 1), (0, u64::MAX)] {
            assert_eq!(ram.translate(Gpa(gpa), len), None, "{gpa:#x}+{len:#x}");
        }
    }

    #[test]
    fn slices_are_page_granular() {
        let ram = two_regions();
        let lens: Vec<_> =
            ram.slices(Gpa(4000), 8192, Access::Read).unwrap().map(|s| s.len()).collect();
        assert_eq!(lens, [96, 4096, 4000]);
    }

    #[test]
    fn dirty_log_holds_what_was_written_since() {
        let ram = two_regions();
        ram.write(Gpa(0), b"before").unwrap();
        ram.track_dirty(DirtyConsumer::Snapshot, true);
        ram.write(Gpa(4094), b"abcd").unwrap();
        ram.write(Gpa(4 * MIB), b"x").unwrap();
        assert_eq!(ram.dirty_pages(DirtyConsumer::Snapshot), [0, 1, 256]);
        assert!(ram.dirty_pages(DirtyConsumer::Snapshot).is_empty());
        ram.write(Gpa(0), b"x").unwrap();
        assert_eq!(ram.dirty_pages(DirtyConsumer::Snapshot), [0]);
        assert!(ram.dirty_pages(DirtyConsumer::Migration).is_empty());
    }

    #[test]
    fn a_write_to_code_changes_its_version() {
        let ram = two_regions();
        let version = ram.watch_code(RamOffset(4096));
        assert!(!ram.is_quiet(RamOffset(5000)));
        ram.write(Gpa(0), b"elsewhere").unwrap();
        assert_eq!(ram.code_version(RamOffset(4096)), version);
        ram.write(Gpa(4095), b"ab").unwrap();
        assert_ne!(ram.code_version(RamOffset(4096)), version);
        assert!(ram.is_quiet(RamOffset(5000)));
    }

    #[test]
    fn who_may_write_is_known_by_page_and_vcpu() {
        let ram = two_regions();
        for vcpu in [0, 6, 7, 63] {
            ram.note_writer(RamOffset(4096), vcpu);
            assert!(ram.may_be_written_by(RamOffset(8191), vcpu));
            assert!(!ram.may_be_written_by(RamOffset(0), vcpu));
            ram.forget_writer(RamOffset(4096), vcpu);
            // Those that share a bit are asked in vain rather than not asked.
            assert_eq!(ram.may_be_written_by(RamOffset(4096), vcpu), vcpu >= 7);
        }
    }

    #[test]
    fn the_hook_sees_a_page_until_it_is_written_or_released() {
        struct Hook(Mutex<Vec<usize>>);
        impl WriteHook for Hook {
            fn before_write(&self, page: usize) {
                self.0.lock().unwrap().push(page);
            }
        }
        let ram = two_regions();
        let hook = Arc::new(Hook(Mutex::default()));
        ram.set_write_hook(Some(hook.clone()));
        ram.write(Gpa(10), b"a").unwrap();
        ram.write(Gpa(20), b"b").unwrap();
        ram.release_hook(RamOffset(4096));
        ram.write(Gpa(4096), b"c").unwrap();
        ram.write(Gpa(8192), b"d").unwrap();
        assert_eq!(*hook.0.lock().unwrap(), [0, 2]);
    }

    #[test]
    fn discarded_pages_read_zero() {
        let ram = two_regions();
        ram.write(Gpa(4096), &[1; 4096]).unwrap();
        ram.discard(Gpa(4096), 4096).unwrap();
        assert_eq!(ram.load::<u64>(RamOffset(4096)), 0);
    }

    #[test]
    fn a_mapped_file_is_the_first_content_and_stays_as_it_is() {
        let mut content = vec![0; 2 * MIB as usize];
        content[5000] = 7;
        content[MIB as usize] = 8;
        let path = std::env::temp_dir().join(format!("ringfence-map-{}", std::process::id()));
        std::fs::write(&path, &content).unwrap();
        let file = File::open(&path).unwrap();
        let ram = GuestRam::map(&[(0, MIB), (4 * MIB, MIB)], &file).unwrap();
        assert_eq!((ram.load::<u8>(RamOffset(5000)), ram.load::<u8>(RamOffset(MIB))), (7, 8));
        ram.write(Gpa(5001), b"x").unwrap();
        ram.discard(Gpa(4 * MIB), 4096).unwrap();
        assert_eq!(ram.load::<u8>(RamOffset(MIB)), 0, "given back pages are zero, not the file's");
        assert!(std::fs::read(&path).unwrap() == content);
        let other = GuestRam::map(&[(0, MIB)], &file);
        assert!(matches!(other, Err(MemoryError::BadFile { found, .. }) if found == 2 * MIB));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn loaders_see_the_same_bytes() {
        use vm_memory::Bytes;
        let ram = two_regions();
        ram.loader_view().unwrap().write_slice(b"hello", GuestAddress(4 * MIB)).unwrap();
        let mut back = [0; 5];
        ram.read(Gpa(4 * MIB), &mut back).unwrap();
        assert_eq!(&back, b"hello");
    }
}
