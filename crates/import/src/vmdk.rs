//! VMDK images in one file: monolithicSparse and streamOptimized ("Virtual Disk Format 5.0", VMware).
//!
//! A grain directory points to grain tables, and these to grains of the disk's content. In a
//! streamOptimized image each grain is compressed and says where it belongs; its directory is at the
//! end, and so is the header that counts.

use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};

use backend::Disk;
use flate2::read::ZlibDecoder;

use crate::file::Part;
use crate::{MAX_DISK, Result};

const SECTOR: u64 = 512;

/// Bits of the header's flags.
const ZEROED_GRAINS: u32 = 1 << 2;
const COMPRESSED: u32 = 1 << 16;

/// The place of a directory that is said at the end of the file.
const AT_END: u64 = u64::MAX;

/// Grains have at most so many bytes; VMware's have 64 KiB.
const MAX_GRAIN: u64 = 1 << 20;

/// The most entries of a grain table; VMware's have 512.
const MAX_TABLE: u32 = 4096;

/// The most bytes of a description.
const MAX_DESCRIPTION: u64 = 64 << 10;

/// What precedes a compressed grain: its first sector on the disk, and its bytes in the file.
const MARKER: u64 = 12;

/// A VMDK image.
#[derive(Debug)]
pub struct VmdkDisk {
    part: Part,
    len: u64,
    /// Bytes of a grain.
    grain: u64,
    /// Entries of a table.
    entries: u64,
    /// First sectors of the tables in the file; 0 for none.
    directory: Vec<u32>,
    flags: u32,
    /// The table that was used last, and the grain, with their numbers.
    recent: Mutex<Recent>,
}

#[derive(Debug, Default)]
struct Recent {
    table: Option<(u64, Vec<u32>)>,
    grain: Option<(u64, Vec<u8>)>,
}

/// The fields of a header that count.
struct Header {
    flags: u32,
    capacity: u64,
    grain: u64,
    description: (u64, u64),
    entries: u32,
    directory: u64,
    compression: u16,
}

impl VmdkDisk {
    /// Reads header, description and directory.
    pub(crate) fn open(part: Part) -> Result<Self> {
        let mut header = Header::read(&part, 0)?;
        check_description(&part, header.description)?;
        if header.directory == AT_END {
            let at = part.len().saturating_sub(2 * SECTOR);
            header = Header::read(&part, at)?;
        }
        let Header { flags, capacity, grain, entries, .. } = header;
        let len = capacity.checked_mul(SECTOR).filter(|len| (SECTOR..=MAX_DISK).contains(len));
        let grain = grain
            .checked_mul(SECTOR)
            .filter(|grain| grain.is_power_of_two() && (8 * SECTOR..=MAX_GRAIN).contains(grain));
        let (Some(len), Some(grain)) = (len, grain) else {
            return Err(part.damaged("the size of its disk or of its grains cannot be"));
        };
        if entries == 0 || entries > MAX_TABLE {
            return Err(part.damaged("the size of its grain tables cannot be"));
        }
        if flags & COMPRESSED != 0 && header.compression != 1 {
            return Err(part.unsupported(format!("has compression {}", header.compression)));
        }
        let tables = len.div_ceil(grain).div_ceil(u64::from(entries));
        let at = header.directory.checked_mul(SECTOR);
        let at = at.ok_or_else(|| part.damaged("the grain directory is not in the file"))?;
        let directory = part.bytes("the grain directory", at, tables * 4)?;
        let directory = directory.chunks_exact(4).map(|entry| u32_at(entry, 0)).collect();
        let recent = Mutex::default();
        Ok(Self { part, len, grain, entries: u64::from(entries), directory, flags, recent })
    }

    /// The entry of a grain: its first sector in the file, 0 for none.
    fn entry(&self, recent: &mut Recent, grain: u64) -> io::Result<u32> {
        let (number, index) = (grain / self.entries, (grain % self.entries) as usize);
        if recent.table.as_ref().is_none_or(|(kept, _)| *kept != number) {
            let place = self.directory.get(number as usize).copied().unwrap_or_default();
            let mut bytes = vec![0; self.entries as usize * 4];
            if place != 0 {
                self.part
                    .read(u64::from(place) * SECTOR, &mut bytes)
                    .map_err(|_| self.part.invalid("a grain table is not in the file"))?;
            }
            let table = bytes.chunks_exact(4).map(|entry| u32_at(entry, 0)).collect();
            recent.table = Some((number, table));
        }
        let table = recent.table.as_ref().map(|(_, table)| table.as_slice()).unwrap_or_default();
        Ok(table.get(index).copied().unwrap_or_default())
    }

    fn read_within(&self, grain: u64, within: u64, to: &mut [u8]) -> io::Result<()> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = self.entry(&mut recent, grain)?;
        if entry == 0 || (entry == 1 && self.flags & ZEROED_GRAINS != 0) {
            to.fill(0);
            return Ok(());
        }
        let place = u64::from(entry) * SECTOR;
        if self.flags & COMPRESSED == 0 {
            let read = self.part.read(place + within, to);
            return read.map_err(|_| self.part.invalid("a grain is not in the file"));
        }
        if recent.grain.as_ref().is_none_or(|(kept, _)| *kept != grain) {
            recent.grain = Some((grain, self.unpack(grain, place)?));
        }
        let content = recent.grain.as_ref().map(|(_, content)| content.as_slice());
        let content = content.unwrap_or_default().get(within as usize..).unwrap_or_default();
        let content = content.get(..to.len());
        to.copy_from_slice(content.ok_or_else(|| self.part.invalid("a grain is too short"))?);
        Ok(())
    }

    /// The content of the compressed grain at `place`.
    fn unpack(&self, grain: u64, place: u64) -> io::Result<Vec<u8>> {
        let mut marker = [0; MARKER as usize];
        let missing = |_| self.part.invalid("a grain is not in the file");
        self.part.read(place, &mut marker).map_err(missing)?;
        let (sector, size) = (u64_at(&marker, 0), u64::from(u32_at(&marker, 8)));
        if sector != grain * self.grain / SECTOR {
            return Err(self.part.invalid("a grain belongs to another place"));
        }
        // What does not get smaller is a little larger.
        if size > 2 * self.grain {
            return Err(self.part.invalid("a grain is too large"));
        }
        let mut packed = vec![0; size as usize];
        self.part.read(place + MARKER, &mut packed).map_err(missing)?;
        let mut content = Vec::new();
        let unpacked = ZlibDecoder::new(&packed[..]).take(self.grain).read_to_end(&mut content);
        unpacked.map_err(|_| self.part.invalid("a grain cannot be unpacked"))?;
        Ok(content)
    }
}

impl Disk for VmdkDisk {
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
        let mut at = offset;
        while !to.is_empty() {
            let within = at % self.grain;
            let len = (self.grain - within).min(to.len() as u64);
            let (part, rest) = to.split_at_mut(len as usize);
            self.read_within(at / self.grain, within, part)?;
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

impl Header {
    fn read(part: &Part, at: u64) -> Result<Self> {
        let bytes = part.bytes("the header", at, SECTOR)?;
        if &bytes[..4] != b"KDMV" {
            return Err(part.damaged("there is no header at its end"));
        }
        let version = u32_at(&bytes, 4);
        if !(1..=3).contains(&version) {
            return Err(part.unsupported(format!("has version {version}")));
        }
        Ok(Self {
            flags: u32_at(&bytes, 8),
            capacity: u64_at(&bytes, 12),
            grain: u64_at(&bytes, 20),
            description: (u64_at(&bytes, 28), u64_at(&bytes, 36)),
            entries: u32_at(&bytes, 44),
            directory: u64_at(&bytes, 56),
            compression: u16::from_le_bytes([bytes[77], bytes[78]]),
        })
    }
}

/// Refuses images that are only a part of a disk, as their description says.
fn check_description(part: &Part, (at, sectors): (u64, u64)) -> Result<()> {
    let (Some(at), Some(len)) = (at.checked_mul(SECTOR), sectors.checked_mul(SECTOR)) else {
        return Err(part.damaged("the description is not in the file"));
    };
    let text = part.bytes("the description", at, len.min(MAX_DESCRIPTION))?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let value = |key: &str| {
        text.lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            (name.trim() == key).then(|| value.trim().trim_matches('"').to_owned())
        })
    };
    if let Some(parent) = value("parentCID").filter(|id| !id.eq_ignore_ascii_case("ffffffff")) {
        return Err(part.unsupported(format!("has the differences to another image ({parent})")));
    }
    match value("createType") {
        Some(kind) if !["monolithicSparse", "streamOptimized"].contains(&kind.as_str()) => {
            Err(part.unsupported(format!("is of the type {kind:?}")))
        }
        _ => Ok(()),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
}
