//! Virtio devices (OASIS, Virtual I/O Device 1.2) on PCI, in their modern form only.
//!
//! A [`VirtioPci`] is a function on the PCI bus: the transport (4.1) with its registers, MSI-X and
//! INTx, its queues, and a thread that starts requests, so that no vCPU ever waits for a host
//! file; many may be under way at once ([`Pending`]). What a device does with a request is a [`VirtioDevice`]: [`Block`], [`Entropy`],
//! [`Net`].
//!
//! Everything in guest memory is the guest's: rings, descriptors and requests are copied out before
//! they are looked at, bounded, and may be nonsense. A request that makes no sense fails; a ring
//! that makes none stops the device until its driver resets it (2.1.1, DEVICE_NEEDS_RESET).
//!
//! rust-vmm's `virtio-queue` was considered and not taken: it reaches guest memory by host pointers,
//! past the hooks by which `memory` keeps translated code and snapshots right ([`Dma`]).
//!
//! Neighbours: `pci` is the bus; `backend` has the contracts of what is behind the devices; `memory`
//! is guest RAM.
//!
//! Invariants:
//! - Guest memory is accessed only while the device may: DRIVER_OK, bus master, not paused.
//! - Between [`VirtioPci::pause`] and [`VirtioPci::resume`] no request is under way, and nothing is
//!   held that is not in the saved state: what waits is in the guest's rings, or was put off and is
//!   saved by its number.
//! - Once the status reads 0 after a reset, no memory of the guest is written any more.

#![forbid(unsafe_code)]

mod block;
mod chain;
mod common;
mod device;
mod dma;
mod entropy;
mod net;
mod pending;
mod queue;
#[cfg(test)]
mod testing;
mod transport;
mod worker;

pub use block::Block;
pub use chain::{Chain, Reader, Segment, Writer};
pub use device::{DeviceError, DeviceKind, VirtioDevice};
pub use dma::{Dma, NotRam};
pub use entropy::Entropy;
pub use net::{Net, NetCounters};
pub use pending::Pending;
pub use queue::{Queue, QueueError, RingFeatures};
pub use transport::{Requests, VirtioPci};
