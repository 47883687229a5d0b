//! The block device (virtio 1.2, 5.2).
//!
//! Reads, writes, flushes, discards, zeros and the identifier, many at once and on several queues.
//! What the driver writes may be lost until it flushes; a driver that did not negotiate flushes has
//! every write flushed for it (5.2.6.2). A write for which the host has no space is put off.
//!
//! [`Request`] is what a driver asks for; [`Memory`] bounds how much of the host's memory requests
//! take; [`Bucket`] is the limit on how many there are in a second.

mod bucket;
mod memory;
mod request;
#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backend::{Disk, DiskDone, DiskOperation, DiskRequest, SECTOR};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use crate::{
    Chain, DeviceError, DeviceKind, Dma, NotRam, Pending, Reader, Requests, VirtioDevice, Writer,
};
use bucket::Bucket;
use memory::Memory;
use request::{MAX_DISCARD, MAX_ZEROES, Request, SEGMENT, SEGMENTS};

/// Entries of a queue.
const QUEUE: u16 = 256;
/// The queues of a device that has the most of them.
const QUEUES: [u16; 8] = [QUEUE; 8];

/// Requests with more data are moved in parts, one after the other.
const LARGE: u64 = 2 << 20;
/// Bytes that such a request moves at once.
const PART: u64 = 256 << 10;
/// After this time, requests that were begun are given to the host although others wait.
const OVERDUE: Duration = Duration::from_micros(100);
/// Bytes of a request's status.
const STATUS: u64 = 1;

type Id = [u8; VIRTIO_BLK_ID_BYTES as usize];

/// Offsets in the configuration structure (5.2.4).
mod config {
    pub(super) const CAPACITY: usize = 0;
    pub(super) const SIZE_MAX: usize = 8;
    pub(super) const SEG_MAX: usize = 12;
    pub(super) const BLOCK_SIZE: usize = 20;
    pub(super) const QUEUES: usize = 34;
    pub(super) const MAX_DISCARD_SECTORS: usize = 36;
    pub(super) const MAX_DISCARD_SEGMENTS: usize = 40;
    pub(super) const DISCARD_ALIGNMENT: usize = 44;
    pub(super) const MAX_ZEROES_SECTORS: usize = 48;
    pub(super) const MAX_ZEROES_SEGMENTS: usize = 52;
    pub(super) const ZEROES_MAY_UNMAP: usize = 56;
    pub(super) const LEN: usize = 64;
}

/// A disk.
pub struct Block {
    disk: Arc<dyn Disk>,
    id: Id,
    config: [u8; config::LEN],
    queues: &'static [u16],
    memory: Arc<Memory>,
    bucket: Option<Mutex<Bucket>>,
}

/// A request that failed, by its status byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failed(u32);

const IO_ERROR: Failed = Failed(VIRTIO_BLK_S_IOERR);

impl Block {
    /// The front end of `disk`, with one queue. The first 20 bytes of `id` are what the guest is
    /// told as its serial number, unless the disk has one.
    pub fn new(disk: Arc<dyn Disk>, id: &str) -> Self {
        let mut bytes = Id::default();
        for (to, from) in bytes.iter_mut().zip(disk.serial().unwrap_or(id).bytes()) {
            *to = from;
        }
        let bucket = Bucket::new(disk.limit(), Instant::now()).map(Mutex::new);
        let queues = &QUEUES[..1];
        let config = configuration(&*disk, queues.len());
        Self { disk, id: bytes, config, queues, memory: Arc::default(), bucket }
    }

    /// The same with so many queues, as far as there are: for a guest with several CPUs.
    #[must_use]
    pub fn with_queues(mut self, queues: usize) -> Self {
        self.queues = &QUEUES[..queues.clamp(1, QUEUES.len())];
        self.config = configuration(&*self.disk, self.queues.len());
        self
    }

    /// What the request says, if it makes sense.
    fn parse(&self, chain: &Chain, dma: &Dma) -> Result<Request, Failed> {
        let request = Request::parse(&mut chain.reader(dma), &chain.writer(dma), &*self.disk)?;
        if let Some(bucket) = &self.bucket {
            let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
            bucket.take(request.bytes(), Instant::now());
        }
        Ok(request)
    }

    /// Executes a request to its end; returns how many bytes it wrote to the guest.
    fn perform(
        &self,
        request: Request,
        chain: &Chain,
        dma: &Dma,
        features: u64,
    ) -> io::Result<u64> {
        let Request::Disk { operation, offset, len } = request else {
            return self.identify(chain, dma);
        };
        let (mut reader, mut writer) = (chain.reader(dma), chain.writer(dma));
        reader.skip(request::HEADER as u64);
        let most = if Request::has_data(operation) { PART } else { u64::MAX };
        let mut done = 0;
        while done < len || len == 0 {
            let now = (len - done).min(most);
            let buffer = self.memory.take(Request::data_bytes(operation, now));
            let mut part = DiskRequest { operation, offset: offset + done, len: now, buffer };
            let moved = self.perform_part(&mut part, &mut reader, &mut writer);
            self.memory.give_back(part.buffer);
            moved?;
            done += now;
            if len == 0 {
                break;
            }
        }
        if must_flush(operation, features) {
            self.disk.flush()?;
        }
        Ok(if operation == DiskOperation::Read { len } else { 0 })
    }

    fn perform_part(
        &self,
        part: &mut DiskRequest,
        reader: &mut Reader<'_>,
        writer: &mut Writer<'_>,
    ) -> io::Result<()> {
        if part.operation == DiskOperation::Write {
            reader.read(&mut part.buffer).map_err(not_ram)?;
        }
        part.execute(&*self.disk)?;
        match part.operation {
            DiskOperation::Read => writer.write(&part.buffer).map_err(not_ram),
            _ => Ok(()),
        }
    }

    fn identify(&self, chain: &Chain, dma: &Dma) -> io::Result<u64> {
        let mut writer = chain.writer(dma);
        let len = self.id.len().min((writer.left() - STATUS) as usize);
        writer.write(&self.id[..len]).map_err(not_ram)?;
        Ok(len as u64)
    }

    /// When the next request may start, if not now.
    fn ready_at(&self) -> Option<Instant> {
        let bucket = self.bucket.as_ref()?;
        bucket.lock().unwrap_or_else(PoisonError::into_inner).ready_at(Instant::now())
    }

    /// Begins a request, which may be done when this returns, or later.
    fn start(&self, pending: Pending) {
        if pending.chain().writer(pending.dma()).left() < STATUS {
            return pending.finish(Err(DeviceError), true);
        }
        let request = match self.parse(pending.chain(), pending.dma()) {
            Ok(request) => request,
            Err(failed) => return answer(pending, Err(failed), true),
        };
        match request {
            Request::Disk { operation, offset, len } if request.bytes() <= LARGE => {
                self.submit(operation, offset, len, pending);
            }
            _ => {
                // So that there is room for the parts.
                self.disk.commit();
                let features = pending.features();
                settle(self.perform(request, pending.chain(), pending.dma(), features), pending);
            }
        }
    }

    /// Gives a request to the disk. It is small enough to be moved at once.
    fn submit(&self, operation: DiskOperation, offset: u64, len: u64, pending: Pending) {
        let bytes = Request::data_bytes(operation, len);
        if !self.memory.has_room(bytes) {
            // What would make room may not have begun yet.
            self.disk.commit();
        }
        let mut buffer = self.memory.take(bytes);
        if operation == DiskOperation::Write {
            let mut reader = pending.chain().reader(pending.dma());
            reader.skip(request::HEADER as u64);
            if reader.read(&mut buffer).is_err() {
                self.memory.give_back(buffer);
                return answer(pending, Err(IO_ERROR), true);
            }
        }
        let (memory, disk) = (Arc::clone(&self.memory), Arc::clone(&self.disk));
        let flush = must_flush(operation, pending.features());
        let done: DiskDone = Box::new(move |request: DiskRequest, result, more| {
            let wrote = result.and_then(|()| data_read(&request, &pending));
            memory.give_back(request.buffer);
            match wrote {
                Err(error) if is_full(&error) => pending.put_off(),
                Err(_) => answer(pending, Err(IO_ERROR), more),
                Ok(_) if flush => flush_then_answer(&*disk, pending),
                Ok(written) => answer(pending, Ok(written), more),
            }
        });
        self.disk.submit(DiskRequest { operation, offset, len, buffer }, done);
    }
}

/// A buffer that is not in RAM makes an error like those of the host.
fn not_ram(_: NotRam) -> io::Error {
    ErrorKind::InvalidInput.into()
}

/// Copies what was read to the guest; returns how many bytes that is.
fn data_read(request: &DiskRequest, pending: &Pending) -> io::Result<u64> {
    if request.operation != DiskOperation::Read {
        return Ok(0);
    }
    let mut writer = pending.chain().writer(pending.dma());
    writer.write(&request.buffer).map_err(not_ram)?;
    Ok(request.buffer.len() as u64)
}

/// The driver does not flush, so a request ends with a flush.
fn flush_then_answer(disk: &dyn Disk, pending: Pending) {
    let request = DiskRequest {
        operation: DiskOperation::Flush,
        offset: 0,
        len: 0,
        buffer: backend::Buffer::default(),
    };
    let done: DiskDone = Box::new(|_, result, more| match result {
        Err(error) if is_full(&error) => pending.put_off(),
        result => answer(pending, result.map(|()| 0).map_err(|_| IO_ERROR), more),
    });
    disk.submit(request, done);
    disk.commit();
}

/// Whether the same request can succeed when the host has space again.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

fn must_flush(operation: DiskOperation, features: u64) -> bool {
    let writes = matches!(operation, DiskOperation::Write | DiskOperation::WriteZeroes { .. });
    writes && features >> VIRTIO_BLK_F_FLUSH & 1 == 0
}

/// Ends a request that was executed in the device's thread.
fn settle(result: io::Result<u64>, pending: Pending) {
    match result {
        Err(error) if is_full(&error) => pending.put_off(),
        result => answer(pending, result.map_err(|_| IO_ERROR), true),
    }
}

/// Returns a request with its status; `outcome` has the bytes that were written before that.
fn answer(pending: Pending, outcome: Result<u64, Failed>, more: bool) {
    let result = put_status(pending.chain(), pending.dma(), outcome);
    pending.finish(result, more);
}

fn put_status(chain: &Chain, dma: &Dma, outcome: Result<u64, Failed>) -> Result<u32, DeviceError> {
    let (status, written) = match outcome {
        Ok(written) => (VIRTIO_BLK_S_OK, written),
        Err(Failed(status)) => (status, 0),
    };
    let mut writer = chain.writer(dma);
    writer.skip_to_last(STATUS);
    writer.write(&[status as u8]).map_err(|_| DeviceError)?;
    // Bounded by what a request may have, and the status.
    Ok((written + STATUS) as u32)
}

fn configuration(disk: &dyn Disk, queues: usize) -> [u8; config::LEN] {
    let mut fields = [0; config::LEN];
    let mut put = |at: usize, bytes: &[u8]| fields[at..at + bytes.len()].copy_from_slice(bytes);
    let sectors = |bytes: u64| ((bytes / SECTOR) as u32).to_le_bytes();
    put(config::CAPACITY, &(disk.len() / SECTOR).to_le_bytes());
    put(config::SIZE_MAX, &SEGMENT.to_le_bytes());
    put(config::SEG_MAX, &SEGMENTS.to_le_bytes());
    put(config::BLOCK_SIZE, &disk.block_size().to_le_bytes());
    put(config::QUEUES, &(queues as u16).to_le_bytes());
    put(config::MAX_DISCARD_SECTORS, &sectors(MAX_DISCARD));
    put(config::MAX_DISCARD_SEGMENTS, &1_u32.to_le_bytes());
    put(config::DISCARD_ALIGNMENT, &sectors(disk.block_size().into()));
    put(config::MAX_ZEROES_SECTORS, &sectors(MAX_ZEROES));
    put(config::MAX_ZEROES_SEGMENTS, &1_u32.to_le_bytes());
    put(config::ZEROES_MAY_UNMAP, &[1]);
    fields
}

impl VirtioDevice for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind { id: VIRTIO_ID_BLOCK as u16, class: [1, 0, 0], name: "virtio-blk" }
    }

    fn features(&self) -> u64 {
        let of_access = match self.disk.is_read_only() {
            true => 1 << VIRTIO_BLK_F_RO,
            false => 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
        };
        let of_queues = u64::from(self.queues.len() > 1) << VIRTIO_BLK_F_MQ;
        1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH
            | of_access
            | of_queues
    }

    fn queues(&self) -> &'static [u16] {
        self.queues
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn execute(
        &self,
        _queue: usize,
        chain: &Chain,
        dma: &Dma,
        features: u64,
    ) -> Result<u32, DeviceError> {
        if chain.writer(dma).left() < STATUS {
            return Err(DeviceError);
        }
        let outcome = self
            .parse(chain, dma)
            .and_then(|request| self.perform(request, chain, dma, features).map_err(|_| IO_ERROR));
        put_status(chain, dma, outcome)
    }

    fn serve(&self, _queue: usize, requests: &mut Requests<'_>) -> Result<(), DeviceError> {
        let mut since = Instant::now();
        loop {
            if let Some(at) = self.ready_at() {
                requests.come_again_at(at);
                break;
            }
            let Some(chain) = requests.take() else { break };
            self.start(requests.begin(chain));
            if since.elapsed() >= OVERDUE {
                self.disk.commit();
                requests.tell();
                since = Instant::now();
            }
        }
        self.disk.commit();
        Ok(())
    }

    fn flush(&self) {
        // Nobody is left to hear of an error.
        let _ = self.disk.flush();
    }
}
