//! The file `memory`, and the section that goes with it.
//!
//! A snapshot has a *layer* of memory: all pages, or those that differ from its base. Each page of
//! the layer is in the file at its offset in RAM; pages that are zero, and those of other layers,
//! are holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use memory::{GuestRam, PAGE_SIZE, RamOffset};
use serde::{Deserialize, Serialize};
use state::{Saved, Section, StateError};

use super::pages::PageSet;
use super::{MEMORY, SnapshotError};

/// Bytes for which there is one checksum: what a reader that wants a few pages has to read.
const BLOCK: u64 = 2 << 20;
const PAGES_OF_BLOCK: usize = (BLOCK / PAGE_SIZE) as usize;
const PAGE: usize = PAGE_SIZE as usize;
/// More RAM than any machine has: what a file may claim.
const MOST: u64 = 1 << 42;

/// What the file `memory` holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedMemory {
    /// Bytes of guest RAM, and of the file.
    bytes: u64,
    /// Bytes of a block.
    block: u64,
    /// CRC-32 of the layer's pages in each block, in order; none where all of them are zero.
    checksums: Vec<Option<u32>>,
    /// The layer's pages, as first page and number of pages of each run; without, it has all.
    #[serde(default)]
    pages: Option<Vec<(u64, u64)>>,
}

impl Saved for SavedMemory {
    const KIND: &'static str = "memory";
    /// Version 1 has no `pages`.
    const VERSION: u32 = 2;

    fn upgrade(version: u32, section: &Section) -> Result<Self, StateError> {
        match version {
            1 => Section { version: Self::VERSION, ..section.clone() }.decode(),
            _ => Err(section.damaged(format!("unknown old version {version}"))),
        }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}

/// Writes `pages`, which begin at RAM offset `at`, but for those that are zero.
pub(super) fn write_pages(file: &File, at: u64, pages: &[u8]) -> io::Result<()> {
    let mut chunks = pages.chunks(PAGE).enumerate().peekable();
    while let Some((first, _)) = chunks.find(|(_, page)| !is_zero(page)) {
        let mut end = first + 1;
        while chunks.next_if(|(_, page)| !is_zero(page)).is_some() {
            end += 1;
        }
        let run = &pages[first * PAGE..(end * PAGE).min(pages.len())];
        file.write_all_at(run, at + (first * PAGE) as u64)?;
    }
    Ok(())
}

/// Writes all of `ram` into the empty file `file`. The vCPUs are parked.
pub(super) fn write(ram: &GuestRam, file: &File) -> io::Result<SavedMemory> {
    let all = PageSet::full((ram.size() / PAGE_SIZE) as usize);
    let mut buffer = vec![0; BLOCK as usize];
    for (first, count) in all.runs_within(PAGES_OF_BLOCK) {
        let (at, content) = (first as u64 * PAGE_SIZE, &mut buffer[..count * PAGE]);
        ram.read_at(RamOffset(at), content);
        write_pages(file, at, content)?;
    }
    describe(file, ram.size(), &all)
}

/// Makes the section for a file with the pages `layer`, which is complete but for its length.
pub(super) fn describe(file: &File, bytes: u64, layer: &PageSet) -> io::Result<SavedMemory> {
    file.set_len(bytes)?;
    let mut checksums = Vec::new();
    let mut buffer = vec![0; BLOCK as usize];
    for block in 0..bytes.div_ceil(BLOCK) as usize {
        checksums.push(checksum(file, layer, block, &mut buffer)?);
    }
    let pages = (!layer.is_full())
        .then(|| layer.runs().map(|(first, count)| (first as u64, count as u64)).collect());
    Ok(SavedMemory { bytes, block: BLOCK, checksums, pages })
}

/// The checksum of the layer's pages in a block.
fn checksum(
    file: &File,
    layer: &PageSet,
    block: usize,
    buffer: &mut [u8],
) -> io::Result<Option<u32>> {
    let range = block * PAGES_OF_BLOCK..((block + 1) * PAGES_OF_BLOCK).min(layer.len());
    let mut hasher = crc32fast::Hasher::new();
    let mut zero = true;
    for (first, count) in layer.runs_in(range) {
        let content = &mut buffer[..count * PAGE];
        file.read_exact_at(content, first as u64 * PAGE_SIZE)?;
        zero = zero && is_zero(content);
        hasher.update(content);
    }
    Ok((!zero).then(|| hasher.finalize()))
}

impl SavedMemory {
    /// The layer's pages.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] for what no layer of a machine with `ram` bytes is.
    pub(super) fn layer(&self, ram: u64) -> Result<PageSet, SnapshotError> {
        let damaged = |cause: String| SnapshotError::damaged(MEMORY, cause);
        if self.bytes != ram || ram > MOST || self.block != BLOCK {
            return Err(damaged(format!(
                "{} bytes in blocks of {} were saved for a machine with {ram}",
                self.bytes, self.block,
            )));
        }
        if self.checksums.len() as u64 != ram.div_ceil(BLOCK) {
            return Err(damaged(format!("it has checksums of {} blocks", self.checksums.len())));
        }
        let count = (ram / PAGE_SIZE) as usize;
        let Some(runs) = &self.pages else { return Ok(PageSet::full(count)) };
        let mut layer = PageSet::empty(count);
        let mut end = 0;
        for (first, pages) in runs {
            let next = first.checked_add(*pages).filter(|next| *next <= count as u64);
            match next {
                Some(next) if *first >= end && *pages > 0 => end = next,
                _ => return Err(damaged(format!("it has no {pages} pages from {first}"))),
            }
            layer.insert_run(*first as usize, *pages as usize);
        }
        Ok(layer)
    }

    /// Bytes of guest RAM.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether it has all pages.
    pub(super) fn is_full(&self) -> bool {
        self.pages.is_none()
    }

    /// Compares the size of the file.
    pub(super) fn check_size(&self, file: &File) -> Result<(), SnapshotError> {
        let len = file.metadata().map_err(|e| SnapshotError::io("look at", MEMORY, e))?.len();
        if len != self.bytes {
            let cause = format!("it has {len} bytes instead of {}", self.bytes);
            return Err(SnapshotError::damaged(MEMORY, cause));
        }
        Ok(())
    }

    /// Compares all checksums.
    pub(super) fn verify(&self, file: &File) -> Result<(), SnapshotError> {
        self.check_size(file)?;
        let layer = self.layer(self.bytes)?;
        let mut buffer = vec![0; BLOCK as usize];
        for (block, expected) in self.checksums.iter().enumerate() {
            let found = checksum(file, &layer, block, &mut buffer)
                .map_err(|e| SnapshotError::io("read", MEMORY, e))?;
            if found != *expected {
                let at = block as u64 * BLOCK;
                let cause = format!("the block at {at:#x} does not match its checksum");
                return Err(SnapshotError::damaged(MEMORY, cause));
            }
        }
        Ok(())
    }
}

/// Copies the pages `layer` from `file` into `ram`.
pub(super) fn fill(ram: &GuestRam, file: &File, layer: &PageSet) -> Result<(), SnapshotError> {
    let mut buffer = vec![0; BLOCK as usize];
    for (first, count) in layer.runs_within(PAGES_OF_BLOCK) {
        let content = &mut buffer[..count * PAGE];
        file.read_exact_at(content, first as u64 * PAGE_SIZE)
            .map_err(|e| SnapshotError::io("read", MEMORY, e))?;
        for (page, content) in (first..).zip(content.chunks(PAGE)) {
            let at = RamOffset(page as u64 * PAGE_SIZE);
            let mut there = [0; PAGE];
            ram.read_at(at, &mut there);
            // Comparing keeps a page unallocated, or shared with the file that is mapped.
            if there != content {
                ram.prepare_write(at);
                ram.write_at(at, content);
                ram.mark_dirty(at);
            }
        }
    }
    Ok(())
}

/// Copies the pages `layer` from one file to another of the same size, which may have others in
/// their place.
pub(super) fn copy_over(from: &File, to: &File, layer: &PageSet) -> io::Result<()> {
    let mut buffer = vec![0; BLOCK as usize];
    for (first, count) in layer.runs_within(PAGES_OF_BLOCK) {
        let (at, content) = (first as u64 * PAGE_SIZE, &mut buffer[..count * PAGE]);
        from.read_exact_at(content, at)?;
        for (page, content) in (first as u64..).zip(content.chunks(PAGE)) {
            let mut there = [0; PAGE];
            to.read_exact_at(&mut there, page * PAGE_SIZE)?;
            if there != content {
                to.write_all_at(content, page * PAGE_SIZE)?;
            }
        }
    }
    Ok(())
}

/// Copies the pages `layer` from one file to another.
pub(super) fn copy(from: &File, to: &File, layer: &PageSet) -> io::Result<()> {
    let mut buffer = vec![0; BLOCK as usize];
    for (first, count) in layer.runs_within(PAGES_OF_BLOCK) {
        let (at, content) = (first as u64 * PAGE_SIZE, &mut buffer[..count * PAGE]);
        from.read_exact_at(content, at)?;
        write_pages(to, at, content)?;
    }
    Ok(())
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
        fill(&restored, &file, &saved.layer(SIZE).unwrap()).unwrap();
        assert!(content(&restored) == content(&sample()));
        saved.verify(&file).unwrap();
    }

    #[test]
    fn a_difference_has_its_pages_only_also_those_that_became_zero() {
        let (_, base) = saved();
        let mut layer = PageSet::empty((SIZE / PAGE_SIZE) as usize);
        layer.insert_run(3, 1);
        layer.insert_run(9, 2);
        let file = tempfile::tempfile().unwrap();
        write_pages(&file, 9 * PAGE_SIZE, &[7; 2 * PAGE]).unwrap();
        let saved = describe(&file, SIZE, &layer).unwrap();
        assert_eq!(saved.pages, Some(vec![(3, 1), (9, 2)]));
        saved.verify(&file).unwrap();
        let restored = GuestRam::map(&[(0, SIZE)], &base).unwrap();
        fill(&restored, &file, &saved.layer(SIZE).unwrap()).unwrap();
        let mut expected = content(&sample());
        expected[3 * PAGE..4 * PAGE].fill(0);
        expected[9 * PAGE..11 * PAGE].fill(7);
        assert!(content(&restored) == expected);
    }

    #[test]
    fn damage_names_the_block() {
        let (saved, file) = saved();
        file.write_all_at(b"x", 2 * BLOCK + 1).unwrap();
        let error = saved.verify(&file).unwrap_err().to_string();
        assert!(error.contains("memory is damaged: the block at 0x400000"), "{error}");
    }

    #[test]
    fn impossible_layers_are_refused() {
        let (saved, file) = saved();
        file.set_len(SIZE - 1).unwrap();
        let error = saved.verify(&file).unwrap_err().to_string();
        assert!(error.contains("bytes instead of"), "{error}");
        assert!(saved.layer(2 * BLOCK).is_err());
        let pages = SIZE / PAGE_SIZE;
        for runs in [
            vec![(0, 0)],
            vec![(pages, 1)],
            vec![(0, pages + 1)],
            vec![(u64::MAX, 2)],
            vec![(4, 2), (5, 1)],
            vec![(4, 1), (2, 1)],
        ] {
            let saved = SavedMemory { pages: Some(runs.clone()), ..saved.clone() };
            assert!(saved.layer(SIZE).is_err(), "{runs:?}");
        }
        let saved = SavedMemory { checksums: Vec::new(), ..saved };
        assert!(saved.layer(SIZE).is_err());
    }
}
