//! Writing memory behind the running guest.
//!
//! While the vCPUs are parked, a hook is set on every page. They go on at once; a thread copies
//! page after page, and whoever is about to write to a page that is not copied yet copies it first
//! ([`WriteHook`]). So the file gets every page as it was when the vCPUs were parked.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use memory::{GuestRam, PAGE_SIZE, RamOffset, WriteHook};

use super::memory::{self as format, SavedMemory};
use super::pages::PageSet;

/// Pages that one lock is for: a guest that writes to one of them waits for no more than these.
const GROUP: usize = 64;
const PAGE: usize = PAGE_SIZE as usize;

/// Memory on its way to a file.
pub(crate) struct LiveMemory {
    ram: Arc<GuestRam>,
    file: File,
    /// The pages to write.
    layer: PageSet,
    /// The pages that are in the file, or need not be.
    done: Vec<AtomicBool>,
    groups: Vec<Mutex<()>>,
    failure: Mutex<Option<io::Error>>,
}

impl LiveMemory {
    /// The pages `layer` of `ram`, to be written to the empty file `file`. Nothing is written yet,
    /// and no hook is set.
    pub(crate) fn new(ram: Arc<GuestRam>, file: File, layer: PageSet) -> Self {
        let done = (0..layer.len()).map(|page| AtomicBool::new(!layer.contains(page))).collect();
        let groups = (0..layer.len().div_ceil(GROUP)).map(|_| Mutex::default()).collect();
        Self { ram, file, layer, done, groups, failure: Mutex::default() }
    }

    /// Sets the hook: from now on guest memory may change. The vCPUs are parked.
    pub(crate) fn watch(self: &Arc<Self>) {
        self.ram.set_write_hook(Some(Arc::clone(self) as _));
    }

    /// Writes everything that is not written yet. Several threads may do so at once.
    pub(crate) fn copy_all(&self) {
        let mut buffer = vec![0; GROUP * PAGE];
        for group in 0..self.groups.len() {
            let pages = group * GROUP..((group + 1) * GROUP).min(self.layer.len());
            self.copy_group(group, pages.clone(), &mut buffer);
            pages.for_each(|page| self.ram.release_hook(RamOffset(page as u64 * PAGE_SIZE)));
        }
    }

    /// These pages have changed since they were written, perhaps: they are to be written again.
    pub(crate) fn again(&self, pages: &[usize]) {
        for &page in pages {
            let _held = self.groups[page / GROUP].lock().unwrap_or_else(PoisonError::into_inner);
            if self.layer.contains(page) && self.done[page].swap(false, Ordering::AcqRel) {
                // A page that is zero now is not written.
                let written = self.file.write_all_at(&[0; PAGE], page as u64 * PAGE_SIZE);
                self.note(written);
            }
        }
    }

    /// Removes the hook: nobody writes to the file any more.
    pub(crate) fn unwatch(&self) {
        self.ram.set_write_hook(None);
    }

    /// The file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// What goes into the snapshot with the file, in which all pages are.
    pub(super) fn describe(&self) -> io::Result<SavedMemory> {
        match self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Err(error),
            None => format::describe(&self.file, self.ram.size(), &self.layer),
        }
    }

    /// Keeps the first failure for [`LiveMemory::describe`].
    fn note(&self, written: io::Result<()>) {
        if let Err(error) = written {
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.get_or_insert(error);
        }
    }

    fn copy_group(&self, group: usize, pages: Range<usize>, buffer: &mut [u8]) {
        let _held = self.groups[group].lock().unwrap_or_else(PoisonError::into_inner);
        let mut page = pages.start;
        while page < pages.end {
            let first = page;
            while page < pages.end && !self.done[page].load(Ordering::Acquire) {
                page += 1;
            }
            if page > first {
                self.write_run(first, &mut buffer[..(page - first) * PAGE]);
            }
            page += 1;
        }
    }

    /// Writes pages of a group whose lock is held.
    fn write_run(&self, first: usize, buffer: &mut [u8]) {
        let at = first as u64 * PAGE_SIZE;
        self.ram.read_at(RamOffset(at), buffer);
        self.note(format::write_pages(&self.file, at, buffer));
        let count = buffer.len() / PAGE;
        self.done[first..first + count].iter().for_each(|done| done.store(true, Ordering::Release));
    }
}

impl WriteHook for LiveMemory {
    fn before_write(&self, page: usize) {
        if self.done[page].load(Ordering::Acquire) {
            return;
        }
        let _held = self.groups[page / GROUP].lock().unwrap_or_else(PoisonError::into_inner);
        if !self.done[page].load(Ordering::Acquire) {
            self.write_run(page, &mut [0; PAGE]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use memory::Gpa;

    use super::*;

    const PAGES: usize = 3 * GROUP + 5;

    /// RAM whose pages begin with their index plus 1.
    fn ram() -> Arc<GuestRam> {
        let ram = GuestRam::new(&[(0, (PAGES * PAGE) as u64)]).unwrap();
        for page in 0..PAGES {
            ram.write(Gpa((page * PAGE) as u64), &(page as u64 + 1).to_le_bytes()).unwrap();
        }
        Arc::new(ram)
    }

    fn first(file: &File, page: usize) -> u64 {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, (page * PAGE) as u64).unwrap();
        u64::from_le_bytes(bytes)
    }

    #[test]
    fn the_file_has_what_was_there_before_the_writes() {
        let ram = ram();
        let file = tempfile::tempfile().unwrap();
        let live = LiveMemory::new(Arc::clone(&ram), file, PageSet::full(PAGES));
        let live = Arc::new(live);
        live.watch();
        let writers: Vec<_> = (0..4_u64)
            .map(|writer| {
                let ram = Arc::clone(&ram);
                thread::spawn(move || {
                    for page in (0..PAGES as u64).rev() {
                        ram.write(Gpa(page * PAGE_SIZE + writer * 8), &[0xff; 8]).unwrap();
                    }
                })
            })
            .collect();
        live.copy_all();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        live.unwatch();
        live.describe().unwrap().verify(live.file()).unwrap();
        assert!((0..PAGES).all(|page| first(live.file(), page) == page as u64 + 1));
        assert!((0..PAGES).all(|page| ram.is_quiet(RamOffset((page * PAGE) as u64))));
    }

    #[test]
    fn a_difference_leaves_the_other_pages_alone() {
        let ram = ram();
        let file = tempfile::tempfile().unwrap();
        let layer = PageSet::of(PAGES, &[1, GROUP]);
        let live = Arc::new(LiveMemory::new(Arc::clone(&ram), file, layer));
        live.watch();
        for page in [1, 2] {
            ram.write(Gpa(page * PAGE_SIZE), &[0; 8]).unwrap();
        }
        live.copy_all();
        live.unwatch();
        live.describe().unwrap();
        let file = live.file();
        assert_eq!([first(file, 1), first(file, 2), first(file, GROUP)], [2, 0, GROUP as u64 + 1]);
    }

    #[test]
    fn pages_that_have_changed_are_written_again() {
        let ram = ram();
        let file = tempfile::tempfile().unwrap();
        let live = LiveMemory::new(Arc::clone(&ram), file, PageSet::full(PAGES));
        live.copy_all();
        ram.write(Gpa(PAGE_SIZE), &[0; 8]).unwrap();
        ram.write(Gpa(2 * PAGE_SIZE), &7_u64.to_le_bytes()).unwrap();
        ram.write(Gpa(3 * PAGE_SIZE), &7_u64.to_le_bytes()).unwrap();
        live.again(&[1, 2]);
        live.copy_all();
        live.describe().unwrap().verify(live.file()).unwrap();
        assert_eq!([1, 2, 3].map(|page| first(live.file(), page)), [0, 7, 4]);
    }

    #[test]
    fn a_full_disk_is_reported_at_the_end() {
        let full = File::options().read(true).write(true).open("/dev/full").unwrap();
        let live = LiveMemory::new(ram(), full, PageSet::full(PAGES));
        live.copy_all();
        let error = live.describe().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NOSPC.raw_os_error()));
    }
}
