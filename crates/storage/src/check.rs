//! Whether a qcow2 image makes sense (QEMU, docs/interop/qcow2.txt).
//!
//! Header and tables are read once when an image is opened: every table and every cluster must be
//! in the file, and none may lie in another, but for data that refcounts share. What is refused here
//! would otherwise make the guest's writes destroy the image's own tables, or be found out much
//! later. Refcounts themselves are not compared with the tables: that is `qemu-img check`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::{StorageError, file};

/// How a qcow2 image begins.
pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Bytes of the header of version 2, and of the least of version 3.
const HEADER_V2: usize = 72;
const HEADER_V3: usize = 104;
/// Entries of the level 1 and of the refcount table: as many as the crate `imago` reads.
const MAX_TABLE: u64 = 4 << 20;
/// Bits of an entry that are the offset of a table or a cluster.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// An entry of a level 2 table is a compressed cluster.
const COMPRESSED: u64 = 1 << 62;
/// The only reference to a cluster.
const COPIED: u64 = 1 << 63;

/// Incompatible features (header, bytes 72 to 79).
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// What the header says, as far as it matters here.
struct Header {
    cluster_bits: u32,
    backing: (u64, u32),
    size: u64,
    l1: (u64, u64),
    refcounts: (u64, u64),
    refcount_order: u32,
    snapshots: u32,
}

/// Checks the header and all tables of the qcow2 image in `file`, which messages call `name`.
/// Returns the bytes of a cluster.
///
/// # Errors
/// [`StorageError::Damaged`], [`StorageError::Unsupported`], and [`StorageError::Host`] when it
/// cannot be read.
pub fn check_qcow2(file: &File, name: &str) -> Result<u64, StorageError> {
    let len = file::size(file).map_err(|e| StorageError::host("find the size of", name, e))?;
    let header = Header::read(file, name)?;
    header.check(name)?;
    Tables::new(file, name, len, &header)?.check(&header)?;
    Ok(header.cluster())
}

impl Header {
    fn read(file: &File, name: &str) -> Result<Self, StorageError> {
        let mut bytes = [0; HEADER_V3];
        read(file, name, "header", &mut bytes[..HEADER_V2], 0)?;
        if bytes[..4] != MAGIC {
            return Err(StorageError::damaged(name, "it does not begin as one"));
        }
        let version = be32(&bytes, 4);
        match version {
            2 => {}
            3 => read(file, name, "header", &mut bytes, 0)?,
            _ => return Err(StorageError::unsupported(name, format!("has version {version}"))),
        }
        if be32(&bytes, 32) != 0 {
            return Err(StorageError::unsupported(name, "is encrypted"));
        }
        features(name, if version == 3 { be64(&bytes, 72) } else { 0 })?;
        Ok(Self {
            cluster_bits: be32(&bytes, 20),
            backing: (be64(&bytes, 8), be32(&bytes, 16)),
            size: be64(&bytes, 24),
            l1: (be64(&bytes, 40), be32(&bytes, 36).into()),
            // The size of the refcount table is in clusters.
            refcounts: (be64(&bytes, 48), be32(&bytes, 56).into()),
            refcount_order: if version == 3 { be32(&bytes, 96) } else { 4 },
            snapshots: be32(&bytes, 60),
        })
    }

    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Entries of the refcount table.
    fn refcount_entries(&self) -> u64 {
        self.refcounts.1.saturating_mul(self.cluster() / 8)
    }

    fn check(&self, name: &str) -> Result<(), StorageError> {
        let damaged = |reason: String| Err(StorageError::damaged(name, reason));
        if !(9..=21).contains(&self.cluster_bits) {
            return damaged(format!("its clusters have 2^{} bytes", self.cluster_bits));
        }
        if self.refcount_order > 6 {
            return damaged(format!("its refcounts have 2^{} bits", self.refcount_order));
        }
        if self.backing.0 != 0 && self.backing.1 > 1023 {
            return damaged(format!("the name of its backing file has {} bytes", self.backing.1));
        }
        let per_l2 = u128::from(self.cluster()) * u128::from(self.cluster() / 8);
        if u128::from(self.l1.1) * per_l2 < u128::from(self.size) {
            return damaged("its level 1 table is too small for its size".to_owned());
        }
        if self.l1.1 > MAX_TABLE || self.refcount_entries() > MAX_TABLE {
            return damaged("one of its tables is too large".to_owned());
        }
        Ok(())
    }
}

fn features(name: &str, bits: u64) -> Result<(), StorageError> {
    let what = if bits & CORRUPT != 0 {
        return Err(StorageError::damaged(name, "it is marked as corrupt"));
    } else if bits & DIRTY != 0 {
        let reason = "it was not closed, and its refcounts have to be repaired first";
        return Err(StorageError::damaged(name, reason));
    } else if bits & EXTERNAL_DATA != 0 {
        "has its data in another file"
    } else if bits & (COMPRESSION_TYPE | EXTENDED_L2) != 0 {
        "uses another compression or extended level 2 entries"
    } else if bits != 0 {
        "uses features of a later version of the format"
    } else {
        return Ok(());
    };
    Err(StorageError::unsupported(name, what))
}

/// What each cluster of the file is used for.
struct Tables<'a> {
    file: &'a File,
    name: &'a str,
    len: u64,
    cluster_bits: u32,
    /// One bit for each cluster: a table, or the header.
    metadata: Vec<u64>,
    /// One bit for each cluster: data.
    data: Vec<u64>,
}

impl<'a> Tables<'a> {
    fn new(file: &'a File, name: &'a str, len: u64, header: &Header) -> Result<Self, StorageError> {
        let clusters = len.div_ceil(header.cluster());
        let words = usize::try_from(clusters.div_ceil(64)).unwrap_or(usize::MAX);
        let mut map = Vec::new();
        // A sparse file can be as long as it likes.
        if words > 1 << 27 || map.try_reserve_exact(words).is_err() {
            return Err(StorageError::unsupported(name, "has a file of some TiB"));
        }
        map.resize(words, 0);
        let data = map.clone();
        Ok(Self { file, name, len, cluster_bits: header.cluster_bits, metadata: map, data })
    }

    fn check(&mut self, header: &Header) -> Result<(), StorageError> {
        self.claim("the header", 0, 1)?;
        let (refcounts, entries) = (header.refcounts.0, header.refcount_entries());
        self.claim("the refcount table", refcounts, entries * 8)?;
        self.claim("the level 1 table", header.l1.0, header.l1.1 * 8)?;
        for block in self.table("refcount table", refcounts, entries)? {
            if block != 0 {
                self.claim("a refcount block", block, header.cluster())?;
            }
        }
        let l1 = self.table("level 1 table", header.l1.0, header.l1.1)?;
        // Internal snapshots share tables with the active state; such a one is copied on write.
        let shared = |entry: u64| header.snapshots != 0 && entry & COPIED == 0;
        let tables: Vec<u64> = l1.into_iter().filter(|entry| entry & OFFSET != 0).collect();
        for entry in &tables {
            if !shared(*entry) {
                self.claim("a level 2 table", entry & OFFSET, header.cluster())?;
            }
        }
        for entry in &tables {
            let entries = self.table("level 2 table", entry & OFFSET, header.cluster() / 8)?;
            for entry in entries {
                self.check_data(entry)?;
            }
        }
        Ok(())
    }

    /// An entry of a level 2 table.
    fn check_data(&mut self, entry: u64) -> Result<(), StorageError> {
        if entry & COMPRESSED != 0 {
            // The offset has so many bits; the rest are the length (qcow2.txt, "Compressed").
            let bits = 62 - (self.cluster_bits - 8);
            let offset = entry & ((1 << bits) - 1);
            return self.place("a compressed cluster", offset, 1).map(drop);
        }
        let offset = entry & OFFSET;
        if offset == 0 {
            return Ok(());
        }
        let cluster = self.place("a cluster of data", offset, 1)?;
        self.check_aligned("a cluster of data", offset)?;
        let (word, bit) = ((cluster / 64) as usize, 1 << (cluster % 64));
        if self.metadata[word] & bit != 0 {
            return self.damaged(format!("a cluster of data at {offset:#x} lies in a table"));
        }
        if self.data[word] & bit != 0 && entry & COPIED != 0 {
            return self.damaged(format!("the cluster at {offset:#x} is used twice"));
        }
        self.data[word] |= bit;
        Ok(())
    }

    /// Says that `len` bytes at `offset` are a table, if they are in the file and nothing else.
    fn claim(&mut self, what: &str, offset: u64, len: u64) -> Result<(), StorageError> {
        if len == 0 {
            return Ok(());
        }
        self.check_aligned(what, offset)?;
        let first = self.place(what, offset, len)?;
        for cluster in first..=(offset + len - 1) >> self.cluster_bits {
            let (word, bit) = ((cluster / 64) as usize, 1 << (cluster % 64));
            if self.metadata[word] & bit != 0 {
                return self.damaged(format!("{what} at {offset:#x} lies in another table"));
            }
            self.metadata[word] |= bit;
        }
        Ok(())
    }

    fn check_aligned(&self, what: &str, offset: u64) -> Result<(), StorageError> {
        if offset.trailing_zeros() >= self.cluster_bits {
            return Ok(());
        }
        self.damaged(format!("{what} at {offset:#x} does not begin with a cluster"))
    }

    /// The number of the cluster at `offset`, if the file has `len` bytes there.
    fn place(&self, what: &str, offset: u64, len: u64) -> Result<u64, StorageError> {
        if offset.checked_add(len).is_some_and(|end| end <= self.len) {
            return Ok(offset >> self.cluster_bits);
        }
        self.damaged(format!("{what} at {offset:#x} is beyond the end of the file"))
    }

    /// Reads a table, which is in the file.
    fn table(&self, what: &str, offset: u64, entries: u64) -> Result<Vec<u64>, StorageError> {
        self.place(what, offset, entries * 8)?;
        let mut bytes = vec![0; entries as usize * 8];
        read(self.file, self.name, what, &mut bytes, offset)?;
        Ok(bytes.chunks_exact(8).map(|entry| be64(entry, 0)).collect())
    }

    fn damaged<T>(&self, reason: String) -> Result<T, StorageError> {
        Err(StorageError::damaged(self.name, reason))
    }
}

fn read(
    file: &File,
    name: &str,
    what: &str,
    to: &mut [u8],
    offset: u64,
) -> Result<(), StorageError> {
    file.read_exact_at(to, offset).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            StorageError::damaged(name, format!("the file ends in its {what}"))
        }
        _ => StorageError::host("read", name, error),
    })
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}

#[cfg(test)]
mod tests;
