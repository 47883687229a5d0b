//! Descriptor chains: the buffers of one request (virtio 1.2, 2.7.5).

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use crate::{Dma, NotRam, QueueError};

/// Bytes of a descriptor.
pub(crate) const DESCRIPTOR: u64 = 16;
/// The most descriptors of an indirect table: as many as drivers are known to use.
const MAX_INDIRECT: u32 = 1024;

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// A range of guest-physical memory, not empty; not yet known to be RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First address.
    pub gpa: u64,
    /// Bytes.
    pub len: u32,
}

/// The buffers of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Index of the first descriptor: by it the request is returned.
    pub head: u16,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

struct Descriptor {
    gpa: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// A table of descriptors: that of the queue, or an indirect one.
#[derive(Clone, Copy)]
struct Table {
    gpa: u64,
    /// Number of descriptors, not 0.
    len: u32,
}

impl Table {
    fn read(self, dma: &Dma, index: u16) -> Result<Descriptor, QueueError> {
        if u32::from(index) >= self.len {
            return Err(QueueError::Descriptor { index });
        }
        let mut bytes = [0; DESCRIPTOR as usize];
        let gpa = self.gpa.saturating_add(DESCRIPTOR * u64::from(index));
        dma.read(gpa, &mut bytes).map_err(|NotRam| QueueError::NotRam { gpa })?;
        let [a, b, c, d, e, f, g, h, len @ .., f0, f1, n0, n1] = bytes;
        Ok(Descriptor {
            gpa: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            len: u32::from_le_bytes(len),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        })
    }
}

impl Chain {
    /// A request of these buffers.
    pub fn new(head: u16, readable: Vec<Segment>, writable: Vec<Segment>) -> Self {
        Self { head, readable, writable }
    }

    /// Follows the chain from `head` in the table of `size` descriptors at `table`. It ends after
    /// as many descriptors as the table has, so that loops are found.
    pub(crate) fn walk(
        dma: &Dma,
        table: u64,
        size: u16,
        head: u16,
        indirect: bool,
    ) -> Result<Self, QueueError> {
        let mut chain = Self { head, ..Self::default() };
        let mut table = Table { gpa: table, len: size.into() };
        let mut left = table.len;
        let mut index = head;
        let mut nested = false;
        loop {
            let descriptor = table.read(dma, index)?;
            left = left.checked_sub(1).ok_or(QueueError::Loop { head })?;
            if descriptor.flags & INDIRECT != 0 {
                let alone = descriptor.flags & NEXT == 0;
                if !indirect || nested || !alone {
                    return Err(QueueError::Indirect { index });
                }
                nested = true;
                table = indirect_table(&descriptor).ok_or(QueueError::Indirect { index })?;
                (left, index) = (table.len, 0);
                continue;
            }
            chain.append(&descriptor, index)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(chain);
            }
            index = descriptor.next;
        }
    }

    fn append(&mut self, descriptor: &Descriptor, index: u16) -> Result<(), QueueError> {
        let segment = Segment { gpa: descriptor.gpa, len: descriptor.len };
        let writable = descriptor.flags & WRITE != 0;
        if !writable && !self.writable.is_empty() {
            return Err(QueueError::Order { index });
        }
        if segment.len != 0 {
            match writable {
                true => self.writable.push(segment),
                false => self.readable.push(segment),
            }
        }
        Ok(())
    }

    /// What the device reads.
    pub fn reader<'a>(&'a self, dma: &'a Dma) -> Reader<'a> {
        Reader { dma, cursor: Cursor::new(&self.readable) }
    }

    /// What the device writes.
    pub fn writer<'a>(&'a self, dma: &'a Dma) -> Writer<'a> {
        Writer { dma, cursor: Cursor::new(&self.writable) }
    }
}

fn indirect_table(descriptor: &Descriptor) -> Option<Table> {
    let len = descriptor.len / DESCRIPTOR as u32;
    let whole = descriptor.len.is_multiple_of(DESCRIPTOR as u32);
    (whole && (1..=MAX_INDIRECT).contains(&len)).then_some(Table { gpa: descriptor.gpa, len })
}

/// A place in a list of segments.
struct Cursor<'a> {
    segments: &'a [Segment],
    /// Bytes of the first segment that are behind the cursor.
    done: u32,
}

impl<'a> Cursor<'a> {
    fn new(segments: &'a [Segment]) -> Self {
        Self { segments, done: 0 }
    }

    /// Bytes before the end.
    fn left(&self) -> u64 {
        let all: u64 = self.segments.iter().map(|segment| u64::from(segment.len)).sum();
        all - u64::from(self.done)
    }

    /// The next piece of at most `max` bytes (not 0), as address and length; the cursor goes
    /// behind it.
    fn next(&mut self, max: u64) -> Option<(u64, u64)> {
        let (first, rest) = self.segments.split_first()?;
        let len = u64::from(first.len - self.done).min(max);
        // What would wrap around is not RAM, which is found when it is accessed.
        let gpa = first.gpa.saturating_add(self.done.into());
        self.done += len as u32;
        if self.done == first.len {
            (self.segments, self.done) = (rest, 0);
        }
        Some((gpa, len))
    }

    /// Moves `len` bytes on, doing `each` to the pieces with their place in the whole.
    fn advance(
        &mut self,
        len: usize,
        mut each: impl FnMut(u64, std::ops::Range<usize>) -> Result<(), NotRam>,
    ) -> Result<(), NotRam> {
        let mut at = 0;
        while at < len {
            let (gpa, part) = self.next((len - at) as u64).ok_or(NotRam)?;
            each(gpa, at..at + part as usize)?;
            at += part as usize;
        }
        Ok(())
    }
}

/// Reads what a request brings.
pub struct Reader<'a> {
    dma: &'a Dma,
    cursor: Cursor<'a>,
}

impl Reader<'_> {
    /// Bytes that are left.
    pub fn left(&self) -> u64 {
        self.cursor.left()
    }

    /// Leaves out the next `bytes`, or all that are left.
    pub fn skip(&mut self, bytes: u64) {
        let mut left = bytes;
        while left != 0
            && let Some((_, skipped)) = self.cursor.next(left)
        {
            left -= skipped;
        }
    }

    /// Fills `to`.
    ///
    /// # Errors
    /// [`NotRam`] when there is less, or it does not lie in RAM.
    pub fn read(&mut self, to: &mut [u8]) -> Result<(), NotRam> {
        let dma = self.dma;
        self.cursor.advance(to.len(), |gpa, part| dma.read(gpa, &mut to[part]))
    }
}

/// Writes what a request wants.
pub struct Writer<'a> {
    dma: &'a Dma,
    cursor: Cursor<'a>,
}

impl Writer<'_> {
    /// Bytes for which there is room.
    pub fn left(&self) -> u64 {
        self.cursor.left()
    }

    /// Writes `from`.
    ///
    /// # Errors
    /// [`NotRam`] when there is too little room, or it does not lie in RAM; a part may have been
    /// written.
    pub fn write(&mut self, from: &[u8]) -> Result<(), NotRam> {
        let dma = self.dma;
        self.cursor.advance(from.len(), |gpa, part| dma.write(gpa, &from[part]))
    }

    /// Leaves out bytes until `left` remain, or does nothing when less remain.
    pub fn skip_to_last(&mut self, left: u64) {
        while let Some(skip) = self.left().checked_sub(left).filter(|skip| *skip != 0) {
            self.cursor.next(skip);
        }
    }
}
