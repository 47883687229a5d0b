//! What needs two CPUs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::{Operation, Place, processes, sys};

/// `membarrier`: an interrupt for each CPU that runs a thread of the process, and the registration
/// that it needs.
const PRIVATE_EXPEDITED: usize = 1 << 3;
const REGISTER_PRIVATE_EXPEDITED: usize = 1 << 4;

/// The first two CPUs.
fn two_cpus(place: &Place) -> Result<(usize, usize), String> {
    match place.cpus[..] {
        [first, second, ..] => Ok((first, second)),
        _ => Err("there is one CPU".to_owned()),
    }
}

/// An interrupt for another CPU, which runs a thread of this program, and its acknowledgement.
///
/// Only what happens while the thread executes counts: a CPU that runs something else gets none.
pub fn interrupt(place: &Place) -> Result<Operation, String> {
    let (own, other) = two_cpus(place)?;
    sys::barrier(REGISTER_PRIVATE_EXPEDITED);
    sys::pin(own);
    let busy = Busy::on(other);
    Ok(Box::new(move |count| {
        // All of it, so that the thread lives as long as the operation.
        let busy = &busy;
        let (mut done, mut sum) = (0, Duration::ZERO);
        while done < count {
            let before = busy.turns();
            let begin = Instant::now();
            sys::barrier(PRIVATE_EXPEDITED);
            let took = begin.elapsed();
            if busy.turns() != before {
                sum += took;
                done += 1;
            } else {
                // Another program may run there, perhaps for long.
                thread::yield_now();
            }
        }
        sum
    }))
}

/// A byte to a process on another CPU and back by pipes.
pub fn pipe(place: &Place) -> Result<Operation, String> {
    let (own, other) = two_cpus(place)?;
    // The other process stays where it was made.
    sys::pin(other);
    let operation = processes::pipe(place)?;
    sys::pin(own);
    Ok(operation)
}

/// A thread that executes until the value goes, and counts.
struct Busy {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    turns: AtomicU64,
    stop: AtomicBool,
}

impl Busy {
    fn on(cpu: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let own = shared.clone();
        let thread = thread::spawn(move || {
            sys::pin(cpu);
            while !own.stop.load(Ordering::Relaxed) {
                own.turns.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { shared, thread: Some(thread) }
    }

    fn turns(&self) -> u64 {
        self.shared.turns.load(Ordering::Relaxed)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}
