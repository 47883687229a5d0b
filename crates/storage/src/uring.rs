//! Requests by io_uring (io_uring(7)): many at once, without a thread for each.
//!
//! Whoever submits fills the submission queue; [`Uring::commit`] hands it to the kernel and takes
//! what is done already, which is everything that the page cache has. What takes longer is waited
//! for by a thread of the ring, the reaper. A request and its buffer belong to the table of
//! [`Flight`]s until the kernel is done with them.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use backend::{DiskDone, DiskOperation, DiskRequest};
use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};
use rustix::fs::FallocateFlags;

use crate::raw::RawFile;

/// Entries of the submission queue: as many as a queue of the guest has.
const ENTRIES: u32 = 256;
/// `IORING_ENTER_GETEVENTS`: wait for a completion.
const GET_EVENTS: u32 = 1;

/// A ring for the requests to one file. Dropping it waits for what is under way.
#[derive(Debug)]
pub(crate) struct Uring {
    shared: Arc<Shared>,
    reaper: Option<JoinHandle<()>>,
}

struct Shared {
    // Before the file and the table in the order of dropping: the kernel lets go of both first.
    ring: IoUring,
    image: Arc<RawFile>,
    /// Who has it fills and hands over the submission queue.
    submitting: Mutex<()>,
    /// Who has it empties the completion queue.
    completing: Mutex<()>,
    flights: Mutex<Flights>,
    /// Something is under way, or the ring ends.
    changed: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring").field("image", &self.image).finish_non_exhaustive()
    }
}

/// A request that the kernel has.
struct Flight {
    request: DiskRequest,
    done: DiskDone,
}

#[derive(Default)]
struct Flights {
    /// By the number that the kernel gives back.
    table: Vec<Option<Flight>>,
    free: Vec<usize>,
    under_way: usize,
    ended: bool,
}

impl Flights {
    fn add(&mut self, flight: Flight) -> usize {
        self.under_way += 1;
        match self.free.pop() {
            Some(index) => {
                self.table[index] = Some(flight);
                index
            }
            None => {
                self.table.push(Some(flight));
                self.table.len() - 1
            }
        }
    }

    fn remove(&mut self, index: usize) -> Option<Flight> {
        let flight = self.table.get_mut(index)?.take()?;
        self.free.push(index);
        self.under_way -= 1;
        Some(flight)
    }
}

impl Uring {
    /// A ring for `image`.
    pub(crate) fn new(image: Arc<RawFile>) -> io::Result<Self> {
        let ring = restricted_ring()?;
        let shared = Arc::new(Shared {
            ring,
            image,
            submitting: Mutex::default(),
            completing: Mutex::default(),
            flights: Mutex::default(),
            changed: Condvar::new(),
        });
        let served = Arc::clone(&shared);
        let reaper = thread::Builder::new().name("io_uring".to_owned());
        let reaper = Some(reaper.spawn(move || served.serve())?);
        Ok(Self { shared, reaper })
    }

    /// As [`Disk::submit`].
    pub(crate) fn submit(&self, request: DiskRequest, done: DiskDone) {
        let image = &*self.shared.image;
        let refused = match request.operation {
            DiskOperation::Write => image.check_write(request.offset, request.buffer.len() as u64),
            DiskOperation::Discard | DiskOperation::WriteZeroes { .. } => {
                image.check_write(request.offset, request.len)
            }
            DiskOperation::Flush if !image.begin_flush() => return done(request, Ok(()), false),
            DiskOperation::Flush | DiskOperation::Read => Ok(()),
        };
        match refused {
            Err(error) => done(request, Err(error), false),
            Ok(()) => self.shared.push(Flight { request, done }),
        }
    }

    /// As [`Disk::commit`].
    pub(crate) fn commit(&self) {
        {
            let _submitting = lock(&self.shared.submitting);
            self.shared.hand_over();
        }
        self.shared.reap();
        if lock(&self.shared.flights).under_way != 0 {
            self.shared.changed.notify_all();
        }
    }
}

/// A ring for what disks need and nothing else: a ring could also open files and make sockets, past
/// the filter of system calls that the process lives under (crate `isolation`).
fn restricted_ring() -> io::Result<IoUring> {
    // Fails before Linux 5.10. Later ones never lose completions.
    let ring: IoUring = IoUring::builder().setup_r_disabled().build(ENTRIES)?;
    let operations =
        [opcode::Read::CODE, opcode::Write::CODE, opcode::Fsync::CODE, opcode::Fallocate::CODE];
    ring.submitter().register_restrictions(&mut operations.map(Restriction::sqe_op))?;
    ring.submitter().register_enable_rings()?;
    Ok(ring)
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.commit();
        lock(&self.shared.flights).ended = true;
        self.shared.changed.notify_all();
        if let Some(reaper) = self.reaper.take()
            && reaper.thread().id() != thread::current().id()
        {
            // A thread that panicked has said so. The reaper itself may be the last to let go of
            // the disk: it ends by itself.
            let _ = reaper.join();
        }
    }
}

impl Shared {
    /// Puts a request into the submission queue.
    fn push(&self, flight: Flight) {
        let _submitting = lock(&self.submitting);
        let entry = {
            let mut flights = lock(&self.flights);
            let index = flights.add(flight);
            let flight = flights.table[index].as_mut().expect("just added");
            self.entry(&mut flight.request).user_data(index as u64)
        };
        loop {
            // SAFETY: `submitting` is held, so this is the only view of the submission queue.
            let mut queue = unsafe { self.ring.submission_shared() };
            // SAFETY: the buffer that the entry points to belongs to a request in the table, whose
            // memory does not move and is not touched until its completion was taken.
            if unsafe { queue.push(&entry) }.is_ok() {
                return;
            }
            drop(queue);
            self.hand_over();
        }
    }

    /// The kernel's form of a request.
    fn entry(&self, request: &mut DiskRequest) -> squeue::Entry {
        let file = types::Fd(self.image.file().as_raw_fd());
        let (offset, len) = (request.offset, request.buffer.len() as u32);
        let allocate = |flags: FallocateFlags| {
            let flags = flags | FallocateFlags::KEEP_SIZE;
            opcode::Fallocate::new(file, request.len)
                .offset(offset)
                .mode(flags.bits() as i32)
                .build()
        };
        match request.operation {
            DiskOperation::Read => {
                opcode::Read::new(file, request.buffer.as_mut_ptr(), len).offset(offset).build()
            }
            DiskOperation::Write => {
                opcode::Write::new(file, request.buffer.as_ptr(), len).offset(offset).build()
            }
            DiskOperation::Flush => {
                opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build()
            }
            DiskOperation::Discard | DiskOperation::WriteZeroes { unmap: true } => {
                allocate(FallocateFlags::PUNCH_HOLE)
            }
            DiskOperation::WriteZeroes { unmap: false } => allocate(FallocateFlags::ZERO_RANGE),
        }
    }

    /// Hands the submission queue to the kernel; `submitting` is held.
    fn hand_over(&self) {
        while let Err(error) = self.ring.submit() {
            // It is short of memory, or its completion queue overflows.
            if !matches!(error.raw_os_error(), Some(errno::EAGAIN | errno::EBUSY)) {
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                // Cannot be for a ring that was set up; without it no request would ever end.
                panic!("io_uring_enter failed: {error}");
            }
            self.reap();
            thread::yield_now();
        }
    }

    /// Ends what the kernel is done with.
    fn reap(&self) {
        let mut done: Vec<(Flight, i32)> = Vec::new();
        {
            let _completing = lock(&self.completing);
            // SAFETY: `completing` is held, so this is the only view of the completion queue.
            let queue = unsafe { self.ring.completion_shared() };
            let mut flights = lock(&self.flights);
            for entry in queue {
                let flight = flights.remove(entry.user_data() as usize);
                done.extend(flight.map(|flight| (flight, entry.result())));
            }
        }
        let mut left = done.len();
        for (flight, result) in done {
            left -= 1;
            self.end(flight, result, left != 0);
        }
    }

    /// Ends a request of which the kernel says `result`: bytes, or an error.
    fn end(&self, flight: Flight, result: i32, more: bool) {
        let Flight { mut request, done } = flight;
        let image = &*self.image;
        let whole = match request.operation {
            DiskOperation::Read | DiskOperation::Write => request.buffer.len() as i64,
            _ => 0,
        };
        let outcome = if i64::from(result) == whole {
            Ok(())
        } else if result < 0 && !is_passing(-result, request.operation) {
            Err(io::Error::from_raw_os_error(-result))
        } else {
            // A part was moved, or what was asked is not supported: from the beginning, by the
            // common means, which also say what is wrong.
            request.execute(image)
        };
        match request.operation {
            DiskOperation::Read => {}
            DiskOperation::Flush if outcome.is_ok() => {}
            _ => image.note_written(),
        }
        done(request, outcome, more);
    }

    /// The reaper: waits for what is under way.
    fn serve(&self) {
        loop {
            let mut flights = lock(&self.flights);
            while flights.under_way == 0 {
                if flights.ended {
                    return;
                }
                flights = self.changed.wait(flights).unwrap_or_else(PoisonError::into_inner);
            }
            drop(flights);
            // SAFETY: no argument is a pointer.
            let waited = unsafe { self.ring.submitter().enter::<()>(0, 1, GET_EVENTS, None) };
            if waited.is_err() {
                // Interrupted, or short of memory: what is done is taken, and it is tried again.
                thread::yield_now();
            }
            self.reap();
        }
    }
}

/// Whether a request that failed with this error can be tried again by the common means.
fn is_passing(error: i32, operation: DiskOperation) -> bool {
    let moves = matches!(operation, DiskOperation::Discard | DiskOperation::WriteZeroes { .. });
    match error {
        errno::EAGAIN | errno::EINTR => true,
        errno::EOPNOTSUPP | errno::ENOSYS | errno::EINVAL => moves,
        _ => false,
    }
}

/// Numbers of errors (errno(3)) on x86-64.
mod errno {
    pub(super) const EINTR: i32 = 4;
    pub(super) const EAGAIN: i32 = 11;
    pub(super) const EBUSY: i32 = 16;
    pub(super) const EINVAL: i32 = 22;
    pub(super) const ENOSYS: i32 = 38;
    pub(super) const EOPNOTSUPP: i32 = 95;
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
