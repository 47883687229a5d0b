//! What a driver asks of a block device (virtio 1.2, 5.2.6).

use backend::{Disk, DiskOperation, SECTOR};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::{Failed, IO_ERROR, QUEUE, STATUS};
use crate::{Reader, Writer};

/// Bytes of a request's header: type, reserved, sector.
pub(super) const HEADER: usize = 16;
/// Segments of a request beside its header and its status.
pub(super) const SEGMENTS: u32 = QUEUE as u32 - 2;
/// Bytes of a segment.
pub(super) const SEGMENT: u32 = 256 << 10;
/// Bytes of a request, so that a device that is paused has soon done with it. A driver that keeps
/// to the two limits above stays below.
const MAX_DATA: u64 = SEGMENTS as u64 * SEGMENT as u64;
/// Bytes of a discard.
pub(super) const MAX_DISCARD: u64 = 1 << 30;
/// Bytes of a request for zeros. Fewer, since some hosts write them one by one.
pub(super) const MAX_ZEROES: u64 = 64 << 20;

/// The data of a discard or of a request for zeros: sector, number of sectors, flags.
const RANGE: usize = 16;
/// The range may be unmapped.
const UNMAP: u32 = 1 << 0;

/// A request that makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Something of the disk, which has the place.
    Disk { operation: DiskOperation, offset: u64, len: u64 },
    /// The serial number.
    Identify,
}

impl Request {
    /// Reads a request that has room for its status.
    pub(super) fn parse(
        reader: &mut Reader<'_>,
        writer: &Writer<'_>,
        disk: &dyn Disk,
    ) -> Result<Self, Failed> {
        let mut header = [0; HEADER];
        reader.read(&mut header).map_err(|_| IO_ERROR)?;
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        let kind = u32::from_le_bytes([t0, t1, t2, t3]);
        let data = |operation, len| {
            place(disk, sector, len, MAX_DATA).map(|offset| Self::Disk { operation, offset, len })
        };
        let request = match kind {
            VIRTIO_BLK_T_IN => data(DiskOperation::Read, writer.left() - STATUS)?,
            VIRTIO_BLK_T_OUT => data(DiskOperation::Write, reader.left())?,
            VIRTIO_BLK_T_FLUSH => Self::Disk { operation: DiskOperation::Flush, offset: 0, len: 0 },
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => range(kind, reader, disk)?,
            VIRTIO_BLK_T_GET_ID => Self::Identify,
            _ => return Err(Failed(VIRTIO_BLK_S_UNSUPP)),
        };
        match request {
            Self::Disk { operation: DiskOperation::Read | DiskOperation::Flush, .. }
            | Self::Identify => Ok(request),
            Self::Disk { .. } if disk.is_read_only() => Err(IO_ERROR),
            Self::Disk { .. } => Ok(request),
        }
    }

    /// Whether an operation moves data.
    pub(super) fn has_data(operation: DiskOperation) -> bool {
        matches!(operation, DiskOperation::Read | DiskOperation::Write)
    }

    /// The bytes that an operation on `len` bytes of the disk moves.
    pub(super) fn data_bytes(operation: DiskOperation, len: u64) -> u64 {
        if Self::has_data(operation) { len } else { 0 }
    }

    /// The bytes that the request moves.
    pub(super) fn bytes(self) -> u64 {
        match self {
            Self::Disk { operation, len, .. } => Self::data_bytes(operation, len),
            Self::Identify => 0,
        }
    }
}

/// The place of `len` bytes from `sector` on, if the disk has them.
fn place(disk: &dyn Disk, sector: u64, len: u64, most: u64) -> Result<u64, Failed> {
    let offset = sector.checked_mul(SECTOR).ok_or(IO_ERROR)?;
    let fits = offset.checked_add(len).is_some_and(|end| end <= disk.len());
    let whole = len != 0 && len.is_multiple_of(SECTOR) && len <= most;
    if fits && whole { Ok(offset) } else { Err(IO_ERROR) }
}

/// A discard or a request for zeros: one range, as the configuration says.
fn range(kind: u32, reader: &mut Reader<'_>, disk: &dyn Disk) -> Result<Request, Failed> {
    if reader.left() != RANGE as u64 {
        return Err(IO_ERROR);
    }
    let mut bytes = [0; RANGE];
    reader.read(&mut bytes).map_err(|_| IO_ERROR)?;
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f0, f1, f2, f3] = bytes;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let len = u64::from(u32::from_le_bytes([n0, n1, n2, n3])) * SECTOR;
    let flags = u32::from_le_bytes([f0, f1, f2, f3]);
    let zeroes = kind == VIRTIO_BLK_T_WRITE_ZEROES;
    // 5.2.6.2: a discard with a flag, and unknown flags, are not supported.
    if flags & !UNMAP != 0 || !zeroes && flags != 0 {
        return Err(Failed(VIRTIO_BLK_S_UNSUPP));
    }
    let (operation, most) = match zeroes {
        true => (DiskOperation::WriteZeroes { unmap: flags & UNMAP != 0 }, MAX_ZEROES),
        false => (DiskOperation::Discard, MAX_DISCARD),
    };
    let offset = place(disk, sector, len, most)?;
    Ok(Request::Disk { operation, offset, len })
}
