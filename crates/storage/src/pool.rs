//! Threads that execute requests, where the host has no better means.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use backend::{Disk, DiskDone, DiskRequest, RateLimit};

/// Requests that are executed at once.
const THREADS: usize = 4;

/// A disk whose requests are executed by several threads. Dropping it waits until they are done.
pub struct Pool {
    disk: Arc<dyn Disk>,
    work: Arc<Work>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Work {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Requests that wait for [`Disk::commit`].
    collected: Vec<(DiskRequest, DiskDone)>,
    waiting: VecDeque<(DiskRequest, DiskDone)>,
    /// Threads that execute a request.
    busy: usize,
    ended: bool,
}

impl Pool {
    /// Threads for the requests of `disk`, which several threads may use at once.
    ///
    /// # Errors
    /// When the host has no threads for it.
    pub fn new(disk: Arc<dyn Disk>) -> io::Result<Self> {
        let work = Arc::new(Work::default());
        let mut pool = Self { disk, work, threads: Vec::new() };
        for _ in 0..THREADS {
            let (disk, work) = (Arc::clone(&pool.disk), Arc::clone(&pool.work));
            let thread = thread::Builder::new().name("disk".to_owned());
            pool.threads.push(thread.spawn(move || work.serve(&*disk))?);
        }
        Ok(pool)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.commit();
        self.work.lock().ended = true;
        self.work.changed.notify_all();
        for thread in self.threads.drain(..) {
            // One of them may be the last to let go of the pool. A thread that panicked has said
            // so.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl Work {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, disk: &dyn Disk) {
        let mut state = self.lock();
        loop {
            if let Some((request, done)) = state.waiting.pop_front() {
                state.busy += 1;
                drop(state);
                backend::submit_now(disk, request, done);
                state = self.lock();
                state.busy -= 1;
            } else if state.ended {
                return;
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl Disk for Pool {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn is_read_only(&self) -> bool {
        self.disk.is_read_only()
    }

    fn block_size(&self) -> u32 {
        self.disk.block_size()
    }

    fn serial(&self) -> Option<&str> {
        self.disk.serial()
    }

    fn limit(&self) -> RateLimit {
        self.disk.limit()
    }

    fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset, to)
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.disk.write(offset, from)
    }

    fn flush(&self) -> io::Result<()> {
        self.disk.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.disk.write_zeroes(offset, len, unmap)
    }

    fn submit(&self, request: DiskRequest, done: DiskDone) {
        self.work.lock().collected.push((request, done));
    }

    fn commit(&self) {
        let mut state = self.work.lock();
        let mut collected = std::mem::take(&mut state.collected);
        let alone = collected.len() == 1 && state.waiting.is_empty() && state.busy == 0;
        if alone && let Some((request, done)) = collected.pop() {
            drop(state);
            // Nothing else is to be done meanwhile: the way to another thread is saved.
            return backend::submit_now(&*self.disk, request, done);
        }
        if !collected.is_empty() {
            state.waiting.extend(collected);
            drop(state);
            self.work.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use backend::{Buffer, DiskOperation, MemoryDisk, SECTOR};

    use super::*;

    #[test]
    fn everything_that_was_submitted_is_done_also_when_the_pool_ends() {
        for count in [1, 2, 100] {
            let disk = Arc::new(MemoryDisk::new(128));
            let pool = Pool::new(Arc::clone(&disk) as _).unwrap();
            let (sender, receiver) = channel();
            for number in 0..count {
                let mut buffer = Buffer::new(SECTOR as usize);
                buffer.fill(number as u8 + 1);
                let offset = number * SECTOR;
                let operation = DiskOperation::Write;
                let request = DiskRequest { operation, offset, len: SECTOR, buffer };
                let sender = sender.clone();
                pool.submit(
                    request,
                    Box::new(move |request, result, _| {
                        sender.send((request.offset, result.is_ok())).unwrap();
                    }),
                );
            }
            drop((pool, sender));
            let mut done: Vec<_> = receiver.iter().collect();
            done.sort_unstable();
            let expected: Vec<_> = (0..count).map(|number| (number * SECTOR, true)).collect();
            assert_eq!(done, expected);
            assert_eq!(disk.content()[(count as usize - 1) * 512], count as u8);
        }
    }
}
