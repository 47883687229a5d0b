//! Reads a disk at any place and in any portion.

use std::cell::{Cell, RefCell};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::rc::Rc;
use std::sync::Arc;

use backend::{Buffer, Disk};

/// Bytes that are read from the disk at a time, and kept.
const CHUNK: u64 = 64 << 10;

/// How many chunks are kept.
const KEPT: usize = 64;

/// How many reads there can be before the file systems are taken for endless: the largest files take
/// a tenth of this.
const MAX_READS: u64 = 8 << 20;

/// A disk that is read; clones share what was read and how much that was.
#[derive(Clone)]
pub(crate) struct Source(Rc<Shared>);

struct Shared {
    disk: Arc<dyn Disk>,
    /// Chunks by their number on the disk; the oldest is replaced.
    kept: RefCell<Vec<(u64, Buffer)>>,
    next: Cell<usize>,
    reads: Cell<u64>,
}

impl Source {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Self {
        let (kept, next, reads) = (RefCell::default(), Cell::default(), Cell::default());
        Self(Rc::new(Shared { disk, kept, next, reads }))
    }

    /// Bytes of the disk.
    pub(crate) fn len(&self) -> u64 {
        self.0.disk.len()
    }

    /// Whether there were too many reads.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.0.reads.get() > MAX_READS
    }

    /// Fills `to` from `offset` on.
    pub(crate) fn read(&self, offset: u64, mut to: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(to.len() as u64);
        if end.is_none_or(|end| end > self.len()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.0.reads.set(self.0.reads.get() + 1);
        if self.is_exhausted() {
            return Err(io::Error::other("too much is read"));
        }
        let mut at = offset;
        while !to.is_empty() {
            let within = (at % CHUNK) as usize;
            let len = to.len().min(CHUNK as usize - within);
            let (part, rest) = to.split_at_mut(len);
            self.with_chunk(at / CHUNK, |chunk| part.copy_from_slice(&chunk[within..][..len]))?;
            at += len as u64;
            to = rest;
        }
        Ok(())
    }

    fn with_chunk(&self, number: u64, act: impl FnOnce(&[u8])) -> io::Result<()> {
        let mut kept = self.0.kept.borrow_mut();
        if let Some((_, chunk)) = kept.iter().find(|(kept, _)| *kept == number) {
            act(chunk);
            return Ok(());
        }
        let start = number * CHUNK;
        let mut chunk = Buffer::new((self.len() - start).min(CHUNK) as usize);
        self.0.disk.read(start, &mut chunk)?;
        act(&chunk);
        if kept.len() < KEPT {
            kept.push((number, chunk));
        } else {
            let next = self.0.next.get();
            kept[next] = (number, chunk);
            self.0.next.set((next + 1) % KEPT);
        }
        Ok(())
    }
}

/// A part of a disk, such as a partition: what file systems are read from. Writing is refused.
pub(crate) struct Part {
    source: Source,
    start: u64,
    len: u64,
    position: u64,
}

impl Part {
    /// `len` bytes of a disk from `start` on, which are all on it.
    pub(crate) fn new(source: &Source, start: u64, len: u64) -> Self {
        Self { source: source.clone(), start, len, position: 0 }
    }

    /// Fills `to` from `offset` on.
    pub(crate) fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(to.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.source.read(self.start + offset, to)
    }
}

impl ext4_view::Ext4Read for Part {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        Ok(self.read_at(start_byte, dst)?)
    }
}

impl Read for Part {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let len = self.len.saturating_sub(self.position).min(to.len() as u64) as usize;
        self.read_at(self.position.min(self.len), &mut to[..len])?;
        self.position += len as u64;
        Ok(len)
    }
}

impl Seek for Part {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.len.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

// Only because fatfs has no other kind of file system.
impl Write for Part {
    fn write(&mut self, _from: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
