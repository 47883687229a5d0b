//! The block device (virtio 1.2, 5.2).
//!
//! Reads, writes, flushes and the identifier. What the driver writes may be lost until it flushes;
//! a driver that did not negotiate flushes has every write flushed for it (5.2.6.2).

use std::sync::Arc;

use backend::{Disk, SECTOR};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use crate::{Chain, DeviceError, DeviceKind, Dma, Reader, VirtioDevice, Writer};

/// Entries of the queue.
const QUEUE: u16 = 256;
/// Segments of a request beside its header and its status.
const SEGMENTS: u32 = QUEUE as u32 - 2;
/// Bytes of a segment.
const SEGMENT: u32 = 256 << 10;
/// Bytes of a request, so that a device that is paused has soon done with it. A driver that keeps
/// to the two limits above stays below.
const MAX_REQUEST: u64 = SEGMENTS as u64 * SEGMENT as u64;
/// Bytes that are moved between host and guest at once.
const PART: u64 = 256 << 10;

/// Bytes of a request's header: type, reserved, sector.
const HEADER: usize = 16;
/// Bytes of a request's status.
const STATUS: u64 = 1;

/// Offsets in the configuration structure (5.2.4).
mod config {
    pub(super) const CAPACITY: usize = 0;
    pub(super) const SIZE_MAX: usize = 8;
    pub(super) const SEG_MAX: usize = 12;
    pub(super) const BLOCK_SIZE: usize = 20;
    pub(super) const LEN: usize = 64;
}

/// A disk.
pub struct Block {
    disk: Arc<dyn Disk>,
    id: [u8; VIRTIO_BLK_ID_BYTES as usize],
    config: [u8; config::LEN],
}

/// How a request went: its status byte, and how many bytes were written before that.
struct Done {
    status: u32,
    written: u64,
}

/// A request that failed, by its status byte.
struct Failed(u32);

const IO_ERROR: Failed = Failed(VIRTIO_BLK_S_IOERR);

impl Block {
    /// The front end of `disk`. The first 20 bytes of `id` are what the guest is told as its
    /// serial number.
    pub fn new(disk: Arc<dyn Disk>, id: &str) -> Self {
        let mut bytes = [0; VIRTIO_BLK_ID_BYTES as usize];
        for (to, from) in bytes.iter_mut().zip(id.bytes()) {
            *to = from;
        }
        let mut fields = [0; config::LEN];
        let mut put = |at: usize, bytes: &[u8]| fields[at..at + bytes.len()].copy_from_slice(bytes);
        put(config::CAPACITY, &(disk.len() / SECTOR).to_le_bytes());
        put(config::SIZE_MAX, &SEGMENT.to_le_bytes());
        put(config::SEG_MAX, &SEGMENTS.to_le_bytes());
        put(config::BLOCK_SIZE, &(SECTOR as u32).to_le_bytes());
        Self { disk, id: bytes, config: fields }
    }

    fn request(&self, reader: &mut Reader<'_>, writer: &mut Writer<'_>, flush: bool) -> Done {
        let outcome = self.perform(reader, writer, flush);
        let (status, written) = match outcome {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(Failed(status)) => (status, 0),
        };
        Done { status, written }
    }

    /// Does what the request says; returns how many bytes it wrote to the guest.
    fn perform(
        &self,
        reader: &mut Reader<'_>,
        writer: &mut Writer<'_>,
        flush: bool,
    ) -> Result<u64, Failed> {
        let mut header = [0; HEADER];
        reader.read(&mut header).map_err(|_| IO_ERROR)?;
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([t0, t1, t2, t3]) {
            VIRTIO_BLK_T_IN => self.read(sector, writer),
            VIRTIO_BLK_T_OUT => self.write(sector, reader, flush).map(|()| 0),
            VIRTIO_BLK_T_FLUSH => self.disk.flush().map(|()| 0).map_err(|_| IO_ERROR),
            VIRTIO_BLK_T_GET_ID => {
                let len = self.id.len().min((writer.left() - STATUS) as usize);
                writer.write(&self.id[..len]).map_err(|_| IO_ERROR)?;
                Ok(len as u64)
            }
            _ => Err(Failed(VIRTIO_BLK_S_UNSUPP)),
        }
    }

    /// The place of `len` bytes from `sector` on, if the disk has them.
    fn place(&self, sector: u64, len: u64) -> Result<u64, Failed> {
        let offset = sector.checked_mul(SECTOR).ok_or(IO_ERROR)?;
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.disk.len());
        let whole = len != 0 && len.is_multiple_of(SECTOR) && len <= MAX_REQUEST;
        if fits && whole { Ok(offset) } else { Err(IO_ERROR) }
    }

    fn read(&self, sector: u64, writer: &mut Writer<'_>) -> Result<u64, Failed> {
        let len = writer.left() - STATUS;
        let mut offset = self.place(sector, len)?;
        let end = offset + len;
        let mut part = vec![0; len.min(PART) as usize];
        while offset < end {
            let part = &mut part[..(end - offset).min(PART) as usize];
            self.disk.read(offset, part).map_err(|_| IO_ERROR)?;
            writer.write(part).map_err(|_| IO_ERROR)?;
            offset += part.len() as u64;
        }
        Ok(len)
    }

    fn write(&self, sector: u64, reader: &mut Reader<'_>, flush: bool) -> Result<(), Failed> {
        let len = reader.left();
        let mut offset = self.place(sector, len)?;
        if self.disk.is_read_only() {
            return Err(IO_ERROR);
        }
        let end = offset + len;
        let mut part = vec![0; len.min(PART) as usize];
        while offset < end {
            let part = &mut part[..(end - offset).min(PART) as usize];
            reader.read(part).map_err(|_| IO_ERROR)?;
            self.disk.write(offset, part).map_err(|_| IO_ERROR)?;
            offset += part.len() as u64;
        }
        if flush { self.disk.flush().map_err(|_| IO_ERROR) } else { Ok(()) }
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind { id: VIRTIO_ID_BLOCK as u16, class: [1, 0, 0], name: "virtio-blk" }
    }

    fn features(&self) -> u64 {
        let read_only = u64::from(self.disk.is_read_only()) << VIRTIO_BLK_F_RO;
        1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH
            | read_only
    }

    fn queues(&self) -> &'static [u16] {
        &[QUEUE]
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
        let (mut reader, mut writer) = (chain.reader(dma), chain.writer(dma));
        if writer.left() < STATUS {
            return Err(DeviceError);
        }
        let flush = features >> VIRTIO_BLK_F_FLUSH & 1 == 0;
        let done = self.request(&mut reader, &mut writer, flush);
        writer.skip_to_last(STATUS);
        writer.write(&[done.status as u8]).map_err(|_| DeviceError)?;
        // At most MAX_REQUEST and the status.
        Ok((done.written + STATUS) as u32)
    }

    fn flush(&self) {
        // Nobody is left to hear of an error.
        let _ = self.disk.flush();
    }
}

#[cfg(test)]
mod tests;
