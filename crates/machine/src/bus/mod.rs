//! Routing of port and memory-mapped accesses to devices.
//!
//! A [`PortMap`] and an [`MmioMap`] are built once, with the machine, and never change: lookup is
//! a binary search without locks. Nobody at an address reads as all-ones and ignores writes, as on
//! a PC; both are counted. An access that is wider than the device at its address takes, or that
//! reaches beyond it, is split as the bus of a PC does it, lowest address first.
//!
//! Neighbours: `device` defines [`PortIo`](device::PortIo) and [`Mmio`](device::Mmio); the
//! machine's `CpuBus` puts both maps before the vCPUs.

mod mmio;
mod port;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use device::{Answer, StopCause};
use serde::Serialize;

pub use mmio::MmioMap;
pub use port::PortMap;

use crate::MachineError;

/// How often a device was accessed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AccessCount {
    /// The device's name; `unclaimed` for addresses without one.
    pub device: &'static str,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

#[derive(Default)]
struct Counter {
    reads: AtomicU64,
    writes: AtomicU64,
}

impl Counter {
    fn read(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    fn write(&self) {
        self.writes.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self, device: &'static str) -> AccessCount {
        AccessCount {
            device,
            reads: self.reads.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
        }
    }
}

/// A device and the addresses `first..=last` at which it is.
struct Slot<D: ?Sized, R> {
    name: &'static str,
    first: u64,
    last: u64,
    /// What the kind of bus needs to know besides.
    rule: R,
    device: Arc<D>,
    counter: Counter,
}

/// Slots in ascending order that do not overlap.
struct Slots<D: ?Sized, R> {
    slots: Vec<Slot<D, R>>,
    unclaimed: Counter,
}

impl<D: ?Sized, R> Default for Slots<D, R> {
    fn default() -> Self {
        Self { slots: Vec::new(), unclaimed: Counter::default() }
    }
}

impl<D: ?Sized, R> Slots<D, R> {
    /// Adds a device; `last` is its last address.
    fn insert(
        &mut self,
        name: &'static str,
        first: u64,
        last: u64,
        rule: R,
        device: Arc<D>,
    ) -> Result<(), MachineError> {
        let at = self.slots.partition_point(|s| s.last < first);
        if let Some(other) = self.slots.get(at).filter(|s| s.first <= last) {
            return Err(MachineError::Overlap { device: name, other: other.name, address: first });
        }
        let slot = Slot { name, first, last, rule, device, counter: Counter::default() };
        self.slots.insert(at, slot);
        Ok(())
    }

    #[inline]
    fn find(&self, address: u64) -> Option<&Slot<D, R>> {
        let at = self.slots.partition_point(|s| s.last < address);
        self.slots.get(at).filter(|s| s.first <= address)
    }

    /// Whether nobody is at any of `first..=last`.
    fn is_empty(&self, first: u64, last: u64) -> bool {
        let at = self.slots.partition_point(|s| s.last < first);
        self.slots.get(at).is_none_or(|s| last < s.first)
    }

    fn counts(&self) -> Vec<AccessCount> {
        let mut counts: Vec<AccessCount> = Vec::new();
        for slot in &self.slots {
            let count = slot.counter.count(slot.name);
            match counts.iter_mut().find(|c| c.device == slot.name) {
                Some(same) => {
                    same.reads += count.reads;
                    same.writes += count.writes;
                }
                None => counts.push(count),
            }
        }
        counts.push(self.unclaimed.count("unclaimed"));
        counts
    }
}

/// Combines the answers to the parts of an access: a fault wins, then the first stop.
#[derive(Default)]
struct Parts {
    fault: bool,
    stop: Option<StopCause>,
}

impl Parts {
    /// The value of a part; `T::default()` where it faulted.
    fn take<T: Default>(&mut self, answer: Answer<T>) -> T {
        match answer {
            Answer::Done(value) => value,
            Answer::Fault => {
                self.fault = true;
                T::default()
            }
            Answer::StopAfterInstruction(value, cause) => {
                self.stop.get_or_insert(cause);
                value
            }
        }
    }

    fn answer<T>(self, value: T) -> Answer<T> {
        match (self.fault, self.stop) {
            (true, _) => Answer::Fault,
            (false, Some(cause)) => Answer::StopAfterInstruction(value, cause),
            (false, None) => Answer::Done(value),
        }
    }
}
