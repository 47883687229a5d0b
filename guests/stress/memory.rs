//! Jobs on page tables: mappings that come and go, faults that a handler repairs, and changes that
//! every other thread has to see at once.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::random::{Digest, Random, mix};
use crate::sys::{self, Mapping, PAGE, protection, signal};
use crate::violation;

/// Words of a page.
const WORDS: usize = PAGE / 8;

/// Pages are written, protected, dropped and read in random order, and compared with what they
/// should hold.
pub fn mappings(seed: u64) -> u64 {
    const PAGES: usize = 48;
    let mut random = Random::new(seed);
    let mut digest = Digest::default();
    for _ in 0..3 {
        let area = Mapping::private(PAGES, protection::WRITE);
        let mut expected = [0; PAGES];
        for _ in 0..150 {
            let page = random.index(PAGES);
            let count = 1 + random.index((PAGES - page).min(5));
            match random.below(4) {
                0 => {
                    area.discard(page, count);
                    expected[page..page + count].fill(0);
                }
                1 => {
                    area.protect(page, count, protection::READ);
                    digest.add(area.word(page * WORDS).load(Ordering::Relaxed));
                    area.protect(page, count, protection::WRITE);
                }
                _ => {
                    expected[page] = random.next();
                    area.word(page * WORDS + 7).store(expected[page], Ordering::Relaxed);
                    area.word(page * WORDS).store(expected[page], Ordering::Relaxed);
                }
            }
        }
        for (page, &expected) in expected.iter().enumerate() {
            let found = area.word(page * WORDS + 7).load(Ordering::Relaxed);
            if found != expected {
                violation(&format!("page {page} holds {found:x}, not {expected:x}"));
            }
            digest.add(found);
        }
    }
    digest.value()
}

thread_local! {
    /// The page whose faults this thread expects, and how many there were.
    static EXPECTED_FAULTS: Cell<(usize, u64)> = const { Cell::new((0, 0)) };
}

/// SIGSEGV: makes the expected page writable. Any other fault ends the program.
pub extern "C" fn on_fault(_: i32) {
    let (page, count) = EXPECTED_FAULTS.get();
    if page == 0 {
        std::process::abort();
    }
    EXPECTED_FAULTS.set((page, count + 1));
    sys::protect_page(page, protection::WRITE);
}

/// Accesses that fault and are repeated once the handler has allowed them.
pub fn faults(seed: u64) -> u64 {
    let mut random = Random::new(seed);
    let area = Mapping::private(2, protection::NONE);
    EXPECTED_FAULTS.set((area.at(0) as usize, 0));
    let mut digest = Digest::default();
    for _ in 0..30 {
        let (value, at) = (random.next(), random.index(WORDS));
        area.protect(0, 1, protection::NONE);
        digest.add(area.word(at).load(Ordering::Relaxed));
        area.protect(0, 1, protection::READ);
        area.word(at).store(value, Ordering::Relaxed);
        area.protect(0, 1, protection::READ);
        digest.add(area.word(at).fetch_add(value, Ordering::Relaxed));
    }
    let (_, count) = EXPECTED_FAULTS.replace((0, 0));
    if count != 90 {
        violation(&format!("{count} faults instead of 90"));
    }
    digest.add(signal::SEGV as u64);
    digest.value()
}

/// Pages of the jobs below.
const PLACES: usize = 16;

/// One thread writes pages and drops them, the others read: a page that was dropped, as they know,
/// must not show what it held.
pub fn discards(seed: u64, threads: usize) -> u64 {
    const GENERATIONS: u64 = 400;
    let area = Mapping::private(PLACES, protection::WRITE);
    let dropped: [AtomicU64; PLACES] = Default::default();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| {
                let mut place = 0;
                while !done.load(Ordering::Relaxed) {
                    place = (place + 1) % PLACES;
                    let before = dropped[place].load(Ordering::Acquire);
                    let found = area.word(place * WORDS + place).load(Ordering::Acquire);
                    if found != 0 && found <= before {
                        violation(&format!("page {place} shows {found}, dropped at {before}"));
                    }
                }
            });
        }
        let mut random = Random::new(seed);
        for generation in 1..=GENERATIONS {
            let place = random.index(PLACES);
            area.word(place * WORDS + place).store(generation, Ordering::Release);
            area.discard(place, 1);
            dropped[place].store(generation, Ordering::Release);
        }
        done.store(true, Ordering::Relaxed);
    });
    mix(seed, GENERATIONS)
}

/// One thread maps other pages of a file in place of what was there, the others read: they must
/// see the page that was mapped last, as far as they know.
pub fn replacements(seed: u64, threads: usize) -> u64 {
    const GENERATIONS: u64 = 300;
    const FILE_PAGES: u64 = 32;
    let file = sys::memory_file(FILE_PAGES as usize);
    let whole = Mapping::of_file(&file, FILE_PAGES as usize, protection::WRITE);
    for page in 0..FILE_PAGES {
        whole.word(page as usize * WORDS).store(page + 1, Ordering::Relaxed);
    }
    let area = Mapping::private(PLACES, protection::READ);
    // Generations that were begun and that were finished, for each place.
    let begun: [AtomicU64; PLACES] = Default::default();
    let finished: [AtomicU64; PLACES] = Default::default();
    let done = AtomicBool::new(false);
    let page_of = |generation: u64| mix(seed, generation) % FILE_PAGES;
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| {
                let mut place = 0;
                while !done.load(Ordering::Relaxed) {
                    place = (place + 1) % PLACES;
                    let before = finished[place].load(Ordering::SeqCst);
                    let found = area.word(place * WORDS).load(Ordering::SeqCst);
                    let after = begun[place].load(Ordering::SeqCst);
                    if before == after && before != 0 && found != page_of(before) + 1 {
                        let expected = page_of(before) + 1;
                        violation(&format!("place {place} shows {found}, not {expected}"));
                    }
                }
            });
        }
        let mut random = Random::new(seed);
        for generation in 1..=GENERATIONS {
            let place = random.index(PLACES);
            begun[place].store(generation, Ordering::SeqCst);
            area.replace(place, &file, page_of(generation) as usize, protection::READ);
            finished[place].store(generation, Ordering::SeqCst);
        }
        done.store(true, Ordering::Relaxed);
    });
    (0..PLACES).map(|place| area.word(place * WORDS).load(Ordering::Relaxed)).fold(seed, mix)
}
