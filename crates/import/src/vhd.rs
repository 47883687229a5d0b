//! VHD images, fixed and dynamic ("Virtual Hard Disk Image Format Specification", Microsoft, 2006).
//!
//! All numbers are big-endian. The last sector is the footer. A dynamic image has a table of blocks,
//! each with a map of its sectors before it.

use std::io;

use backend::Disk;

use crate::file::Part;
use crate::{MAX_DISK, Result};

const SECTOR: u64 = 512;

/// Values of the footer's disk type.
const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;

/// An entry of the table for a block that is not there.
const UNUSED: u32 = u32::MAX;

/// The largest block in bytes; usual are 2 MiB.
const MAX_BLOCK: u64 = 256 << 20;

/// A VHD image.
#[derive(Debug)]
pub struct VhdDisk {
    part: Part,
    len: u64,
    /// For a dynamic image its blocks.
    blocks: Option<Blocks>,
}

#[derive(Debug)]
struct Blocks {
    /// Bytes of a block.
    size: u64,
    /// Bytes of the map before it.
    map: u64,
    /// First sectors of the blocks in the file.
    table: Vec<u32>,
}

impl VhdDisk {
    /// Reads footer, header and table.
    pub(crate) fn open(part: Part) -> Result<Self> {
        let place = part.len().saturating_sub(SECTOR);
        let footer = part.bytes("the footer", place, SECTOR)?;
        check_sum(&part, "the footer", &footer, 64)?;
        let len = u64_at(&footer, 48);
        if len == 0 || !len.is_multiple_of(SECTOR) || len > MAX_DISK {
            return Err(part.damaged("the size of its disk cannot be"));
        }
        let blocks = match u32_at(&footer, 60) {
            FIXED if len <= place => None,
            FIXED => return Err(part.damaged("the file is shorter than its disk")),
            DYNAMIC => Some(Blocks::read(&part, u64_at(&footer, 16), len)?),
            DIFFERENCING => {
                return Err(part.unsupported("has the differences to another image"));
            }
            other => return Err(part.unsupported(format!("is a VHD of the type {other}"))),
        };
        Ok(Self { part, len, blocks })
    }
}

impl Blocks {
    fn read(part: &Part, at: u64, len: u64) -> Result<Self> {
        let header = part.bytes("the dynamic header", at, 1024)?;
        if &header[..8] != b"cxsparse" {
            return Err(part.damaged("the dynamic header is none"));
        }
        check_sum(part, "the dynamic header", &header, 36)?;
        let size = u64::from(u32_at(&header, 32));
        if !size.is_power_of_two() || !(SECTOR..=MAX_BLOCK).contains(&size) {
            return Err(part.damaged("the size of its blocks cannot be"));
        }
        let count = len.div_ceil(size);
        if u64::from(u32_at(&header, 28)) < count {
            return Err(part.damaged("the table of blocks is too short"));
        }
        let table = part.bytes("the table of blocks", u64_at(&header, 16), count * 4)?;
        let table = table.chunks_exact(4).map(|entry| u32_at(entry, 0)).collect();
        Ok(Self { size, map: (size / SECTOR).div_ceil(8).next_multiple_of(SECTOR), table })
    }
}

impl Disk for VhdDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, mut to: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(to.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let Some(blocks) = &self.blocks else { return self.part.read(offset, to) };
        let mut at = offset;
        while !to.is_empty() {
            let within = at % blocks.size;
            let len = (blocks.size - within).min(to.len() as u64);
            let (part, rest) = to.split_at_mut(len as usize);
            match blocks.table.get((at / blocks.size) as usize) {
                None | Some(&UNUSED) => part.fill(0),
                Some(&sector) => self
                    .part
                    .read(u64::from(sector) * SECTOR + blocks.map + within, part)
                    .map_err(|_| self.part.invalid("a block is not in the file"))?,
            }
            at += len;
            to = rest;
        }
        Ok(())
    }

    fn write(&self, _offset: u64, _from: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The checksum at `at` is the complement of the sum of all other bytes.
fn check_sum(part: &Part, what: &str, bytes: &[u8], at: usize) -> Result<()> {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    if !(sum(bytes) - sum(&bytes[at..at + 4])) == u32_at(bytes, at) {
        Ok(())
    } else {
        Err(part.damaged(format!("the checksum of {what} is wrong")))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_be_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_be_bytes(*b))
}
