//! Mappings and page faults.

use std::arch::asm;
use std::ffi::{c_int, c_void};
use std::time::{Duration, Instant};

use crate::sys::{self, MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, PAGE, PROT_READ, PROT_WRITE};
use crate::{Operation, Place, timed};

/// Pages of a file that are mapped at once.
const MAPPED_PAGES: usize = 16;

/// Maps pages of a file, reads of every one, unmaps them.
pub fn mmap(place: &Place) -> Result<Operation, String> {
    const LEN: usize = MAPPED_PAGES * PAGE;
    let file = sys::open(&place.file).ok_or("the file is gone")?;
    Ok(timed(move || {
        let at = sys::map(LEN, PROT_READ, MAP_SHARED, Some((file, 0))).expect("maps");
        for page in 0..MAPPED_PAGES {
            // SAFETY: inside the mapping.
            unsafe { ((at + page * PAGE) as *const u8).read_volatile() };
        }
        // SAFETY: nothing refers to the mapping.
        unsafe { sys::unmap(at, LEN) };
    }))
}

/// Bytes of the instruction that faults below.
const STORE_LEN: u64 = 2;

/// SIGSEGV: goes on behind the store.
extern "C" fn skip_store(_: c_int, _: *mut c_void, context: *mut c_void) {
    // SAFETY: the kernel gives the context of the interrupted code, which the handler may change.
    unsafe { *context.byte_add(sys::CONTEXT_RIP).cast::<u64>() += STORE_LEN };
}

/// A store to a page without the right to, and the handler of the signal.
pub fn protection(_: &Place) -> Result<Operation, String> {
    sys::handle(sys::SIGSEGV, skip_store);
    let how = MAP_PRIVATE | MAP_ANONYMOUS;
    let page = sys::map(PAGE, PROT_READ, how, None).ok_or("no memory")?;
    Ok(timed(move || {
        // SAFETY: `mov [rcx], al` has two bytes and is skipped by the handler.
        unsafe { asm!("mov byte ptr [rcx], al", in("rcx") page, in("al") 1_u8, options(nostack)) };
    }))
}

/// Pages that are touched between two preparations.
const PAGES: usize = Place::FILE_LEN / PAGE;

/// The first write to a page of zeros.
pub fn anonymous(_: &Place) -> Result<Operation, String> {
    let at = sys::map_private(PAGES * PAGE);
    Ok(Box::new(move |count| {
        let mut sum = Duration::ZERO;
        touch_in_rounds(count, |pages| {
            sum += touch(at, pages);
            // SAFETY: the mapping is ours, and nothing refers to it.
            unsafe { sys::discard(at, PAGES * PAGE) };
        });
        sum
    }))
}

/// The first write to a page of a file that is in memory, by a new mapping.
pub fn file(place: &Place) -> Result<Operation, String> {
    let file = sys::open(&place.file).ok_or("the file is gone")?;
    Ok(Box::new(move |count| {
        let mut sum = Duration::ZERO;
        touch_in_rounds(count, |pages| {
            let source = Some((file, 0));
            let at = sys::map(PAGES * PAGE, PROT_WRITE, MAP_SHARED, source).expect("maps");
            sum += touch(at, pages);
            // SAFETY: nothing refers to the mapping.
            unsafe { sys::unmap(at, PAGES * PAGE) };
        });
        sum
    }))
}

/// Calls `touch` with up to [`PAGES`] pages each time, `count` in all.
fn touch_in_rounds(count: u64, mut touch: impl FnMut(usize)) {
    let mut left = count;
    while left > 0 {
        let pages = left.min(PAGES as u64);
        touch(pages as usize);
        left -= pages;
    }
}

/// Writes to each of the pages at `at`; how long that took.
fn touch(at: usize, pages: usize) -> Duration {
    let begin = Instant::now();
    for page in 0..pages {
        // SAFETY: the caller mapped them.
        unsafe { ((at + page * PAGE) as *mut u8).write_volatile(1) };
    }
    begin.elapsed()
}
