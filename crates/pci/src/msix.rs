//! MSI-X (PCI Local Bus 3.0, 6.8.2): the table of vectors and the pending bit array.
//!
//! Both lie in one BAR of 4096 bytes: the table at 0, the pending bits at [`Msix::PENDING`]. The
//! enable and mask bits of the capability are in the function's [`ConfigSpace`], at the offset
//! that [`MsixCapability`] has.

use device::Message;
use serde::{Deserialize, Serialize};

use crate::ConfigSpace;

/// Capability id.
const ID: u8 = 0x11;
/// Message control: the function's vectors are all masked.
const CONTROL_MASKED: u16 = 1 << 14;
/// Message control: messages instead of INTx#.
const CONTROL_ENABLED: u16 = 1 << 15;
/// Bytes of a table entry.
const ENTRY: u64 = 16;
/// Vector control: this vector is masked.
const MASKED: u32 = 1;

/// The capability of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixCapability {
    offset: u8,
}

impl MsixCapability {
    /// Adds the capability for `vectors` vectors whose table is in BAR `bar`.
    ///
    /// # Panics
    /// For no vectors, or more than the BAR has room for.
    pub fn add(space: &mut ConfigSpace, vectors: u16, bar: u8) -> Self {
        assert!((1..=Msix::MAX_VECTORS).contains(&vectors), "{vectors} MSI-X vectors");
        let mut body = (vectors - 1).to_le_bytes().to_vec();
        body.extend(u32::from(bar).to_le_bytes());
        body.extend((Msix::PENDING as u32 | u32::from(bar)).to_le_bytes());
        let writable = (CONTROL_ENABLED | CONTROL_MASKED).to_le_bytes();
        Self { offset: space.add_capability(ID, &body, &writable) }
    }

    fn control(self, space: &ConfigSpace) -> u16 {
        space.word(self.offset + 2)
    }

    /// Whether the function sends messages and does not use INTx#.
    pub fn is_enabled(self, space: &ConfigSpace) -> bool {
        self.control(space) & CONTROL_ENABLED != 0
    }

    /// Whether a vector that is not masked itself sends.
    fn sends(self, space: &ConfigSpace) -> bool {
        self.control(space) & (CONTROL_ENABLED | CONTROL_MASKED) == CONTROL_ENABLED
    }
}

/// A vector as it is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedVector {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// Whether the vector is masked.
    pub masked: bool,
    /// Whether a message waits for the mask to be lifted.
    pub pending: bool,
}

/// The vectors of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Msix {
    capability: MsixCapability,
    vectors: Vec<SavedVector>,
}

impl Msix {
    /// Bytes of the BAR.
    pub const BAR_SIZE: u32 = 4096;
    /// Offset of the pending bits in the BAR.
    pub const PENDING: u64 = 0x800;
    /// What the BAR has room for.
    pub const MAX_VECTORS: u16 = (Self::PENDING / ENTRY) as u16;

    /// Adds MSI-X with `vectors` vectors to a function; the table is in BAR `bar`, which the
    /// function has.
    ///
    /// # Panics
    /// As [`MsixCapability::add`].
    pub fn new(space: &mut ConfigSpace, vectors: u16, bar: u8) -> Self {
        let capability = MsixCapability::add(space, vectors, bar);
        let mut msix = Self { capability, vectors: Vec::new() };
        msix.vectors.resize(vectors.into(), UNUSED);
        msix
    }

    /// Number of vectors.
    pub fn count(&self) -> u16 {
        self.vectors.len() as u16
    }

    /// Whether the function sends messages and does not use INTx#.
    pub fn is_enabled(&self, space: &ConfigSpace) -> bool {
        self.capability.is_enabled(space)
    }

    /// Vector `index` fires: the message to send now, if any. A masked one becomes pending; one
    /// that does not exist does nothing.
    #[must_use]
    pub fn fire(&mut self, index: u16, space: &ConfigSpace) -> Option<Message> {
        if !self.is_enabled(space) {
            return None;
        }
        let vector = self.vectors.get_mut(usize::from(index))?;
        vector.pending = true;
        self.take(usize::from(index), space)
    }

    /// Messages that may be sent now that a mask was lifted: after each write to the table or to
    /// the capability.
    #[must_use]
    pub fn unmasked(&mut self, space: &ConfigSpace) -> Vec<Message> {
        (0..self.vectors.len()).filter_map(|index| self.take(index, space)).collect()
    }

    fn take(&mut self, index: usize, space: &ConfigSpace) -> Option<Message> {
        let sends = self.capability.sends(space);
        let vector = self.vectors.get_mut(index)?;
        if !sends || vector.masked || !vector.pending {
            return None;
        }
        vector.pending = false;
        Some(Message { address: vector.address, data: vector.data })
    }

    /// Reads from the BAR.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            let bytes = self.dword(at & !3).to_le_bytes();
            *byte = bytes[(at & 3) as usize];
        }
    }

    /// Writes to the BAR: aligned 32-bit and 64-bit accesses, as the specification demands;
    /// others do nothing. To be followed by [`Msix::unmasked`].
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if !offset.is_multiple_of(4) || !matches!(data.len(), 4 | 8) {
            return;
        }
        for (at, chunk) in (offset..).step_by(4).zip(data.chunks_exact(4)) {
            let value = chunk.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
            self.set_dword(at, value);
        }
    }

    fn dword(&self, at: u64) -> u32 {
        if at >= Self::PENDING {
            let first = (at - Self::PENDING) as usize * 8;
            let bits = self.vectors.iter().skip(first).take(32).enumerate();
            return bits.fold(0, |bits, (n, vector)| bits | u32::from(vector.pending) << n);
        }
        let Some(vector) = self.vectors.get((at / ENTRY) as usize) else { return 0 };
        match at % ENTRY {
            0 => vector.address as u32,
            4 => (vector.address >> 32) as u32,
            8 => vector.data,
            _ => u32::from(vector.masked),
        }
    }

    fn set_dword(&mut self, at: u64, value: u32) {
        if at >= Self::PENDING {
            return;
        }
        let Some(vector) = self.vectors.get_mut((at / ENTRY) as usize) else { return };
        let wide = u64::from(value);
        match at % ENTRY {
            0 => vector.address = vector.address & !0xffff_ffff | wide & !3,
            4 => vector.address = vector.address & 0xffff_ffff | wide << 32,
            8 => vector.data = value,
            _ => vector.masked = value & MASKED != 0,
        }
    }

    /// As after power-on: all masked, none pending.
    pub fn reset(&mut self) {
        self.vectors.fill(UNUSED);
    }

    /// The vectors, to be saved.
    pub fn save(&self) -> Vec<SavedVector> {
        self.vectors.clone()
    }

    /// Replaces the vectors; whether there are as many as there must be.
    #[must_use]
    pub fn restore(&mut self, saved: &[SavedVector]) -> bool {
        let fits = saved.len() == self.vectors.len() && saved.iter().all(|v| v.address & 3 == 0);
        if fits {
            self.vectors.copy_from_slice(saved);
        }
        fits
    }
}

const UNUSED: SavedVector = SavedVector { address: 0, data: 0, masked: true, pending: false };

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bar, Identity};

    fn function() -> (ConfigSpace, Msix) {
        let identity =
            Identity { vendor: 1, device: 2, revision: 0, class: [0; 3], subsystem: (0, 0) };
        let mut space = ConfigSpace::new(identity).with_bar(1, Bar::Memory32(Msix::BAR_SIZE));
        let msix = Msix::new(&mut space, 3, 1);
        (space, msix)
    }

    fn read(msix: &Msix, offset: u64) -> u32 {
        let mut data = [0; 4];
        msix.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Address, data and mask of a vector.
    fn program(msix: &mut Msix, index: u64, masked: u32) {
        msix.write(16 * index, &(0xfee0_1003_u64).to_le_bytes());
        msix.write(16 * index + 8, &(0x40 + index as u32).to_le_bytes());
        msix.write(16 * index + 12, &masked.to_le_bytes());
    }

    #[test]
    fn the_capability_says_where_the_table_is() {
        let (space, msix) = function();
        assert_eq!(space.dword(0x40), 0x0002_0011);
        assert_eq!((space.dword(0x44), space.dword(0x48)), (1, 0x801));
        assert_eq!(msix.count(), 3);
        assert_eq!(read(&msix, 12), 1, "masked after power-on");
    }

    #[test]
    fn a_vector_sends_when_nothing_masks_it() {
        let (mut space, mut msix) = function();
        program(&mut msix, 1, 0);
        assert_eq!(msix.fire(1, &space), None, "not enabled");
        assert_eq!(read(&msix, 0x800), 0, "and not pending");
        space.write(0x42, &[0, 0x80]);
        let message = Message { address: 0xfee0_1000, data: 0x41 };
        assert_eq!(msix.fire(1, &space), Some(message));
        assert_eq!(msix.fire(3, &space), None, "no such vector");
        space.write(0x42, &[0, 0xc0]);
        assert_eq!(msix.fire(1, &space), None);
        assert_eq!(read(&msix, 0x800), 2, "pending while the function is masked");
        space.write(0x42, &[0, 0x80]);
        assert_eq!(msix.unmasked(&space), [message]);
        assert_eq!(msix.unmasked(&space), []);
    }

    #[test]
    fn a_masked_vector_waits() {
        let (mut space, mut msix) = function();
        space.write(0x42, &[0, 0x80]);
        program(&mut msix, 2, 1);
        assert_eq!(msix.fire(2, &space), None);
        assert_eq!(msix.fire(2, &space), None);
        assert_eq!(read(&msix, 0x800), 4);
        program(&mut msix, 2, 0);
        assert_eq!(msix.unmasked(&space).len(), 1, "several are one");
        assert_eq!(read(&msix, 0x800), 0);
    }

    #[test]
    fn odd_accesses_do_nothing() {
        let (_, mut msix) = function();
        let before = msix.clone();
        for (offset, len) in [(0, 1), (0, 2), (1, 4), (2, 8), (0x30, 4), (0x800, 8), (0xffc, 8)] {
            msix.write(offset, &[0xff; 8][..len]);
        }
        assert_eq!(msix, before);
        let mut data = [0; 8];
        msix.read(0xffc, &mut data);
        msix.read(u64::from(u32::MAX), &mut data);
    }
}
