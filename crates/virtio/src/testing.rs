//! A driver's side of a queue, in guest memory.

use std::sync::Arc;

use memory::GuestRam;

use crate::{Dma, Queue};

/// Bytes of the guest's RAM in tests.
pub(crate) const RAM: u64 = 1 << 20;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

pub(crate) fn dma() -> Dma {
    Dma::new(Arc::new(GuestRam::new(&[(0, RAM)]).unwrap()), Arc::new(|| ()))
}

/// A ring at 0x1000 (descriptors), 0x2000 (available) and 0x3000 (used).
pub(crate) struct Ring {
    pub(crate) dma: Dma,
    pub(crate) size: u16,
}

impl Ring {
    pub(crate) const DESCRIPTORS: u64 = 0x1000;
    pub(crate) const AVAILABLE: u64 = 0x2000;
    pub(crate) const USED: u64 = 0x3000;

    pub(crate) fn new(size: u16) -> (Self, Queue) {
        let queue = Queue {
            enabled: true,
            descriptors: Self::DESCRIPTORS,
            driver: Self::AVAILABLE,
            device: Self::USED,
            ..Queue::new(size)
        };
        (Self { dma: dma(), size }, queue)
    }

    /// Writes a descriptor of the table at `table`.
    pub(crate) fn describe(
        &self,
        table: u64,
        index: u16,
        gpa: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let mut bytes = gpa.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.dma.write(table + 16 * u64::from(index), &bytes).unwrap();
    }

    /// The chain of `buffers` (address, length, whether writable) from descriptor 0 on.
    pub(crate) fn chain(&self, buffers: &[(u64, u32, bool)]) {
        for (index, (gpa, len, writable)) in (0..).zip(buffers) {
            let last = usize::from(index) + 1 == buffers.len();
            let flags = if *writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.describe(Self::DESCRIPTORS, index, *gpa, *len, flags, index + 1);
        }
    }

    /// Makes the chain from `head` available.
    pub(crate) fn offer(&self, head: u16) {
        let index = self.dma.load_u16(Self::AVAILABLE + 2).unwrap();
        let entry = Self::AVAILABLE + 4 + 2 * u64::from(index % self.size);
        self.dma.store_u16(entry, head).unwrap();
        self.dma.store_u16(Self::AVAILABLE + 2, index.wrapping_add(1)).unwrap();
    }

    /// Asks to be interrupted when the used index passes `event`.
    pub(crate) fn set_used_event(&self, event: u16) {
        self.dma.store_u16(Self::AVAILABLE + 4 + 2 * u64::from(self.size), event).unwrap();
    }

    /// The available index of which the device wants to be told.
    pub(crate) fn available_event(&self) -> u16 {
        self.dma.load_u16(Self::USED + 4 + 8 * u64::from(self.size)).unwrap()
    }

    pub(crate) fn used_index(&self) -> u16 {
        self.dma.load_u16(Self::USED + 2).unwrap()
    }

    /// Head and length of entry `index` of the used ring.
    pub(crate) fn used(&self, index: u16) -> (u32, u32) {
        let mut bytes = [0; 8];
        self.dma.read(Self::USED + 4 + 8 * u64::from(index % self.size), &mut bytes).unwrap();
        let [a, b, c, d, e, f, g, h] = bytes;
        (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
    }

    pub(crate) fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.dma.read(gpa, &mut bytes).unwrap();
        bytes
    }
}
