//! Split virtqueues (virtio 1.2, 2.7).

use std::fmt;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_AVAIL_F_NO_INTERRUPT,
};

use crate::{Chain, Dma, NotRam};

/// Offsets in the driver area (available ring): flags, index, entries of 2 bytes, used event.
const AVAILABLE_INDEX: u64 = 2;
const AVAILABLE_RING: u64 = 4;
const AVAILABLE_ENTRY: u64 = 2;
/// Offsets in the device area (used ring): flags, index, entries of 8 bytes, available event.
const USED_INDEX: u64 = 2;
const USED_RING: u64 = 4;
const USED_ENTRY: u64 = 8;

/// What is wrong with a ring; the device stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// A ring or descriptor table is not in RAM.
    NotRam {
        /// Its address.
        gpa: u64,
    },
    /// More requests became available than the ring has room for.
    Jump {
        /// How many.
        by: u16,
    },
    /// More requests are under way than the ring has room for.
    Crowd,
    /// A descriptor is outside its table.
    Descriptor {
        /// Its index.
        index: u16,
    },
    /// A chain does not end.
    Loop {
        /// Index of its first descriptor.
        head: u16,
    },
    /// An indirect descriptor where none may be, or with an impossible table.
    Indirect {
        /// Its index.
        index: u16,
    },
    /// A buffer for reading behind one for writing.
    Order {
        /// Index of its descriptor.
        index: u16,
    },
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRam { gpa } => write!(f, "address {gpa:#x} is not RAM"),
            Self::Jump { by } => write!(f, "the available index jumped by {by}"),
            Self::Crowd => f.write_str("more requests are under way than there is room for"),
            Self::Descriptor { index } => write!(f, "there is no descriptor {index}"),
            Self::Loop { head } => write!(f, "the chain from descriptor {head} does not end"),
            Self::Indirect { index } => write!(f, "descriptor {index} is indirect and wrong"),
            Self::Order { index } => write!(f, "descriptor {index} is out of order"),
        }
    }
}

impl std::error::Error for QueueError {}

/// A queue: what its driver has set up, and how far the device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// The most entries.
    pub max_size: u16,
    /// Entries: a power of two from 1 to `max_size`.
    pub size: u16,
    /// Whether it is in use.
    pub enabled: bool,
    /// MSI-X vector.
    pub vector: u16,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the driver area, the available ring.
    pub driver: u64,
    /// Guest-physical address of the device area, the used ring.
    pub device: u64,
    /// Index of the next available entry to take, modulo 2^16.
    pub next_available: u16,
    /// Index of the next used entry to fill, modulo 2^16.
    pub next_used: u16,
    /// `next_used` when the driver was last told.
    pub signalled: u16,
}

/// The features that matter to rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingFeatures {
    event_index: bool,
    indirect: bool,
}

impl RingFeatures {
    /// Those of negotiated features.
    pub fn new(features: u64) -> Self {
        let has = |bit: u32| features >> bit & 1 != 0;
        Self {
            event_index: has(VIRTIO_RING_F_EVENT_IDX),
            indirect: has(VIRTIO_RING_F_INDIRECT_DESC),
        }
    }
}

impl Queue {
    /// A queue as after a reset, with room for `max_size` entries.
    ///
    /// # Panics
    /// When that is no power of two: it is a constant of a device.
    pub fn new(max_size: u16) -> Self {
        assert!(max_size.is_power_of_two(), "a queue of {max_size} entries");
        Self {
            max_size,
            size: max_size,
            enabled: false,
            vector: u16::MAX,
            descriptors: 0,
            driver: 0,
            device: 0,
            next_available: 0,
            next_used: 0,
            signalled: 0,
        }
    }

    /// Takes the next request, if there is one. Without one, the driver is asked to tell of the
    /// next.
    ///
    /// # Errors
    /// [`QueueError`]: the ring makes no sense.
    pub fn pop(&mut self, dma: &Dma, features: RingFeatures) -> Result<Option<Chain>, QueueError> {
        if self.waiting(dma)? == 0 {
            if !features.event_index {
                return Ok(None);
            }
            let event = self.device.saturating_add(USED_RING + USED_ENTRY * u64::from(self.size));
            store(dma, event, self.next_available)?;
            // What became available before the driver could see the event is seen here.
            fence(Ordering::SeqCst);
            if self.waiting(dma)? == 0 {
                return Ok(None);
            }
        }
        if self.next_available.wrapping_sub(self.next_used) >= self.size {
            return Err(QueueError::Crowd);
        }
        let entry = u64::from(self.next_available & (self.size - 1));
        let at = self.driver.saturating_add(AVAILABLE_RING + AVAILABLE_ENTRY * entry);
        let head = load(dma, at)?;
        let chain = self.chain(dma, head, features)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(chain))
    }

    /// The buffers of the request that begins with descriptor `head`.
    ///
    /// # Errors
    /// [`QueueError`]: the chain makes no sense.
    pub fn chain(&self, dma: &Dma, head: u16, features: RingFeatures) -> Result<Chain, QueueError> {
        Chain::walk(dma, self.descriptors, self.size, head, features.indirect)
    }

    /// Number of requests that wait.
    fn waiting(&self, dma: &Dma) -> Result<u16, QueueError> {
        let index = load(dma, self.driver.saturating_add(AVAILABLE_INDEX))?;
        let by = index.wrapping_sub(self.next_available);
        if by > self.size { Err(QueueError::Jump { by }) } else { Ok(by) }
    }

    /// Returns the request that began with descriptor `head`, into which `written` bytes were
    /// written.
    ///
    /// # Errors
    /// [`QueueError::NotRam`].
    pub fn push(&mut self, dma: &Dma, head: u16, written: u32) -> Result<(), QueueError> {
        self.push_all(dma, &[(head, written)])
    }

    /// Returns several requests, each by its first descriptor and the bytes written, in order. The
    /// driver sees all of them or none.
    ///
    /// # Errors
    /// [`QueueError::NotRam`].
    pub fn push_all(&mut self, dma: &Dma, done: &[(u16, u32)]) -> Result<(), QueueError> {
        for (head, written) in done {
            let entry = u64::from(self.next_used & (self.size - 1));
            let gpa = self.device.saturating_add(USED_RING + USED_ENTRY * entry);
            let mut element = [0; USED_ENTRY as usize];
            element[..4].copy_from_slice(&u32::from(*head).to_le_bytes());
            element[4..].copy_from_slice(&written.to_le_bytes());
            dma.write(gpa, &element).map_err(|NotRam| QueueError::NotRam { gpa })?;
            self.next_used = self.next_used.wrapping_add(1);
        }
        store(dma, self.device.saturating_add(USED_INDEX), self.next_used)
    }

    /// Whether the driver wants to be told of what was returned since this was last asked.
    ///
    /// # Errors
    /// [`QueueError::NotRam`].
    pub fn must_signal(&mut self, dma: &Dma, features: RingFeatures) -> Result<bool, QueueError> {
        let old = std::mem::replace(&mut self.signalled, self.next_used);
        if old == self.next_used {
            return Ok(false);
        }
        // The driver sees the used index before its own wish is read.
        fence(Ordering::SeqCst);
        if !features.event_index {
            let flags = load(dma, self.driver)?;
            return Ok(flags & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0);
        }
        let wish = AVAILABLE_RING + AVAILABLE_ENTRY * u64::from(self.size);
        let event = load(dma, self.driver.saturating_add(wish))?;
        // Whether `event` is one of old..next_used (2.7.10.1).
        let (new, behind) = (self.next_used.wrapping_sub(old), self.next_used.wrapping_sub(event));
        Ok(behind.wrapping_sub(1) < new)
    }
}

fn load(dma: &Dma, gpa: u64) -> Result<u16, QueueError> {
    dma.load_u16(gpa).map_err(|NotRam| QueueError::NotRam { gpa })
}

fn store(dma: &Dma, gpa: u64, value: u16) -> Result<(), QueueError> {
    dma.store_u16(gpa, value).map_err(|NotRam| QueueError::NotRam { gpa })
}

#[cfg(test)]
mod tests;
