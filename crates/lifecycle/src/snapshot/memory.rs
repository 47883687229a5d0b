//! The file `memory`, and the section that goes with it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use memory::{GuestRam, PAGE_SIZE, RamOffset};
use serde::{Deserialize, Serialize};
use state::Saved;

use super::{MEMORY, SnapshotError};

/// Bytes for which there is one checksum: what a reader that wants a few pages has to read.
const BLOCK: u64 = 2 << 20;

/// What the file `memory` holds.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedMemory {
    /// Bytes of guest RAM, and of the file.
    bytes: u64,
    /// Bytes of a block.
    block: u64,
    /// CRC-32 of each block; none for one that is zero, which is a hole in the file.
    checksums: Vec<Option<u32>>,
}

impl Saved for SavedMemory {
    const KIND: &'static str = "memory";
    const VERSION: u32 = 1;
}

/// Offset and length of each block.
fn blocks(bytes: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..bytes).step_by(BLOCK as usize).map(move |at| (at, BLOCK.min(bytes - at) as usize))
}

/// Offset in the block and content of each run of pages that are not zero.
fn runs(block: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let page = PAGE_SIZE as usize;
    let mut pages = block.chunks(page).enumerate().peekable();
    std::iter::from_fn(move || {
        let (first, _) = pages.find(|(_, p)| !is_zero(p))?;
        let mut end = first + 1;
        while pages.next_if(|(_, p)| !is_zero(p)).is_some() {
            end += 1;
        }
        let range = first * page..(end * page).min(block.len());
        Some((range.start, &block[range]))
    })
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}

/// Writes `ram` into the empty file `file`. The vCPUs are parked.
pub(super) fn write(ram: &GuestRam, file: &File) -> io::Result<SavedMemory> {
    let bytes = ram.size();
    let mut buffer = vec![0; BLOCK as usize];
    let mut checksums = Vec::new();
    for (at, len) in blocks(bytes) {
        let block = &mut buffer[..len];
        ram.read_at(RamOffset(at), block);
        let mut written = false;
        for (offset, run) in runs(block) {
            file.write_all_at(run, at + offset as u64)?;
            written = true;
        }
        checksums.push(written.then(|| crc32fast::hash(block)));
    }
    file.set_len(bytes)?;
    Ok(SavedMemory { bytes, block: BLOCK, checksums })
}

/// Fills `ram`, which is zero, from `file`.
pub(super) fn read(saved: &SavedMemory, file: &File, ram: &GuestRam) -> Result<(), SnapshotError> {
    let damaged = |cause: String| SnapshotError::damaged(MEMORY, cause);
    if saved.bytes != ram.size() || saved.block != BLOCK {
        return Err(damaged(format!(
            "{} bytes in blocks of {} were saved for a machine with {}",
            saved.bytes,
            saved.block,
            ram.size()
        )));
    }
    let len = file.metadata().map_err(|e| SnapshotError::io("look at", MEMORY, e))?.len();
    if len != saved.bytes || saved.checksums.len() != blocks(saved.bytes).count() {
        return Err(damaged(format!("it has {len} bytes instead of {}", saved.bytes)));
    }
    let mut buffer = vec![0; BLOCK as usize];
    for ((at, len), checksum) in blocks(saved.bytes).zip(&saved.checksums) {
        let Some(checksum) = checksum else { continue };
        let block = &mut buffer[..len];
        file.read_exact_at(block, at).map_err(|e| SnapshotError::io("read", MEMORY, e))?;
        if crc32fast::hash(block) != *checksum {
            return Err(damaged(format!("the block at {at:#x} does not match its checksum")));
        }
        for (offset, run) in runs(block) {
            fill(ram, at + offset as u64, run);
        }
    }
    Ok(())
}

/// Writes whole pages from the RAM offset `at`.
fn fill(ram: &GuestRam, at: u64, content: &[u8]) {
    let offsets = (at..).step_by(PAGE_SIZE as usize).map(RamOffset);
    for (page, at) in content.chunks(PAGE_SIZE as usize).zip(offsets) {
        ram.prepare_write(at);
        ram.write_at(at, page);
        ram.mark_dirty(at);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use memory::Gpa;

    use super::*;

    const SIZE: u64 = 3 * BLOCK + 5 * PAGE_SIZE;

    fn ram() -> GuestRam {
        GuestRam::new(&[(0, BLOCK), (8 << 20, SIZE - BLOCK)]).unwrap()
    }

    /// RAM with something in the first, the third and the last block.
    fn sample() -> GuestRam {
        let ram = ram();
        ram.write(Gpa(PAGE_SIZE * 3 + 7), b"first").unwrap();
        ram.write(Gpa(PAGE_SIZE * 5 - 2), b"straddle").unwrap();
        ram.write(Gpa((8 << 20) + BLOCK), b"third").unwrap();
        ram.write(Gpa((8 << 20) + SIZE - BLOCK - 4), b"last").unwrap();
        ram
    }

    fn content(ram: &GuestRam) -> Vec<u8> {
        let mut all = vec![0; SIZE as usize];
        ram.read_at(RamOffset(0), &mut all);
        all
    }

    fn saved() -> (SavedMemory, File) {
        let file = tempfile::tempfile().unwrap();
        (write(&sample(), &file).unwrap(), file)
    }

    #[test]
    fn round_trip_and_sparse() {
        let (saved, file) = saved();
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), SIZE);
        assert!(metadata.blocks() * 512 <= 8 * PAGE_SIZE, "{} blocks", metadata.blocks());
        assert!(saved.checksums[1].is_none() && saved.checksums[2].is_some());
        let restored = ram();
        read(&saved, &file, &restored).unwrap();
        assert!(content(&restored) == content(&sample()));
    }

    #[test]
    fn runs_are_whole_pages() {
        let mut block = vec![0; 6 * PAGE_SIZE as usize];
        for page in [0, 2, 3, 5] {
            block[page * PAGE_SIZE as usize + 9] = 1;
        }
        let found: Vec<_> = runs(&block).map(|(at, run)| (at / 4096, run.len() / 4096)).collect();
        assert_eq!(found, [(0, 1), (2, 2), (5, 1)]);
        assert_eq!(runs(&[0; 8192]).count(), 0);
    }

    #[test]
    fn damage_names_the_block() {
        let (saved, file) = saved();
        file.write_all_at(b"x", 2 * BLOCK + 1).unwrap();
        let error = read(&saved, &file, &ram()).unwrap_err().to_string();
        assert!(error.contains("memory is damaged: the block at 0x400000"), "{error}");
    }

    #[test]
    fn another_size_is_refused() {
        let (saved, file) = saved();
        file.set_len(SIZE - 1).unwrap();
        let error = read(&saved, &file, &ram()).unwrap_err().to_string();
        assert!(error.contains("bytes instead of"), "{error}");
        let other = GuestRam::new(&[(0, 2 * BLOCK)]).unwrap();
        assert!(read(&saved, &file, &other).is_err());
    }
}
