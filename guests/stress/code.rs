//! Jobs that execute code which they have just written, in one thread and across threads.
//!
//! Intel SDM vol. 3A 9.1.3: the thread that writes needs a branch before it executes what it wrote;
//! another one needs a serializing instruction after it has learnt of it.

use std::arch::x86_64::__cpuid;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::random::{Digest, Random, mix};
use crate::sys::{self, Mapping, PAGE, protection};
use crate::violation;

/// Pages of code.
const PAGES: usize = 3;

/// `f(x) = ((x + added) ^ xored) rotated left by 7`, as machine code.
fn function(added: u32, xored: u32) -> Vec<u8> {
    // lea eax, [rdi + added]; xor eax, xored; rol eax, 7; ret
    let mut code = vec![0x8d, 0x87];
    code.extend(added.to_le_bytes());
    code.push(0x35);
    code.extend(xored.to_le_bytes());
    code.extend([0xc1, 0xc0, 7, 0xc3]);
    code
}

/// The same by the compiler's code.
fn expected(x: u32, added: u32, xored: u32) -> u32 {
    (x.wrapping_add(added) ^ xored).rotate_left(7)
}

fn call(area: &Mapping, offset: usize, x: u32) -> u32 {
    let at: *mut u8 = area.at(offset);
    // SAFETY: the caller has put `function` there, which keeps to the C calling convention.
    let code: extern "C" fn(u32) -> u32 = unsafe { std::mem::transmute(at) };
    code(x)
}

/// Writes functions over each other and calls them: with a change of protection in between, and
/// on pages that are writable and executable at once.
pub fn own(seed: u64) -> u64 {
    let mut random = Random::new(seed);
    let mut digest = Digest::default();
    let guarded = Mapping::private(PAGES, protection::WRITE);
    let open = Mapping::private(PAGES, protection::ALL);
    for round in 0..120 {
        let (added, xored, x) = (random.next() as u32, random.next() as u32, random.next() as u32);
        let code = function(added, xored);
        // Often the same place, often across two pages.
        let offset = match random.below(3) {
            0 => 64,
            1 => PAGE - random.index(code.len()),
            _ => random.index((PAGES - 1) * PAGE),
        };
        let found = if round % 4 == 0 {
            guarded.protect(0, PAGES, protection::WRITE);
            guarded.write(offset, &code);
            guarded.protect(0, PAGES, protection::EXECUTE);
            call(&guarded, offset, x)
        } else {
            open.write(offset, &code);
            call(&open, offset, x)
        };
        if found != expected(x, added, xored) {
            violation(&format!("own code at {offset:x} gave {found:x}"));
        }
        digest.add(u64::from(found));
    }
    digest.value()
}

/// One thread writes functions through one mapping, the others call them through another, and
/// call one that stays as it is, beside those, all the while.
pub fn crossed(seed: u64, threads: usize) -> u64 {
    const GENERATIONS: u64 = 60;
    const CONSTANT: usize = 2 * PAGE + 2048;
    let file = sys::memory_file(PAGES);
    let written = Mapping::of_file(&file, PAGES, protection::WRITE);
    let executed = Mapping::of_file(&file, PAGES, protection::EXECUTE);
    written.write(CONSTANT, &function(11, 22));
    let (current, finished) = (AtomicU64::new(0), AtomicU64::new(0));
    let plan = |generation: u64| {
        let chosen = mix(seed, generation);
        let offset = match generation % 3 {
            0 => 2 * PAGE + (chosen >> 40) as usize % 1024,
            1 => PAGE - 1 - (chosen >> 40) as usize % 10,
            _ => 128,
        };
        (offset, chosen as u32, (chosen >> 8) as u32)
    };
    thread::scope(|scope| {
        for reader in 1..threads as u32 {
            let (current, finished, executed) = (&current, &finished, &executed);
            scope.spawn(move || {
                for generation in 1..=GENERATIONS {
                    while current.load(Ordering::Acquire) < generation {
                        if call(executed, CONSTANT, reader) != expected(reader, 11, 22) {
                            violation("a function that nobody changed gave something else");
                        }
                        thread::yield_now();
                    }
                    let _serialized = __cpuid(0);
                    let (offset, added, xored) = plan(generation);
                    let found = call(executed, offset, reader);
                    if found != expected(reader, added, xored) {
                        violation(&format!("code of {generation} at {offset:x} gave {found:x}"));
                    }
                    finished.fetch_add(1, Ordering::Release);
                }
            });
        }
        for generation in 1..=GENERATIONS {
            let (offset, added, xored) = plan(generation);
            written.write(offset, &function(added, xored));
            current.store(generation, Ordering::Release);
            while finished.load(Ordering::Acquire) < generation * (threads as u64 - 1) {
                thread::yield_now();
            }
        }
    });
    mix(seed, finished.into_inner())
}
