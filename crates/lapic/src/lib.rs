//! The local APIC as a pure state machine, and the mailbox that posts interrupts to it.
//!
//! A [`LocalApic`] belongs to one vCPU and is touched only by that vCPU's thread: it has no
//! threads, no clock and no I/O of its own. Time comes in as guest TSC ticks ([`Tsc`]) and what
//! leaves the APIC comes back as [`Effects`] of a register write. Everybody else (other vCPUs,
//! devices, timers) reaches the vCPU through its [`Mailbox`]; the [`Fabric`] holds all mailboxes
//! and finds the destinations of an [`Ipi`] or of a [`device::Message`].
//!
//! The loop of an engine, between two instructions:
//!
//! ```
//! use lapic::{Event, LocalApic, LocalApicConfig, Mailbox};
//!
//! fn service(apic: &mut LocalApic, mailbox: &Mailbox, now: lapic::Tsc) -> Option<u8> {
//!     if mailbox.has_work() {
//!         mailbox.drain(|event| match event {
//!             Event::Interrupt { vector, level } => apic.accept(vector, level),
//!             Event::Init => apic.init(),
//!             Event::Sipi(_) | Event::Nmi | Event::Wake => { /* the engine's own state */ }
//!         });
//!         mailbox.publish(apic.destination());
//!     }
//!     if apic.deadline().is_some_and(|deadline| deadline <= now) {
//!         apic.tick(now);
//!     }
//!     apic.acknowledge() // only where RFLAGS.IF and the interrupt shadow permit
//! }
//!
//! let mut apic = LocalApic::new(LocalApicConfig::default());
//! let mailbox = Mailbox::new(apic.destination());
//! apic.mmio_write(0x0f0, 0x1ff, 0); // spurious-interrupt vector register: enable
//! mailbox.publish(apic.destination());
//! mailbox.post(0x41, false);
//! assert_eq!(service(&mut apic, &mailbox, 0), Some(0x41));
//! ```
//!
//! Specification: Intel SDM vol. 3A chapter 11, "Advanced Programmable Interrupt Controller
//! (APIC)". Present: xAPIC and x2APIC mode, timer with one-shot, periodic and TSC-deadline mode,
//! flat and cluster logical destinations, lowest-priority delivery. Absent, as version register
//! and CPUID say: CMCI, EOI-broadcast suppression, extended APIC space, SMM.
//!
//! Neighbours: `engine` puts a [`SavedLocalApic`] into its vCPU state; the software engines own
//! one [`LocalApic`] per vCPU; `machine` builds the [`Fabric`] and gives it to devices as their
//! [`device::MsiSender`].

#![forbid(unsafe_code)]

mod access;
mod apic;
mod destination;
mod fabric;
mod ipi;
mod local;
mod mailbox;
mod registers;
mod saved;
mod timer;
mod vectors;

pub use apic::{Effects, Fault, LocalApic, LocalApicConfig};
pub use destination::{ApicMode, Destination, DestinationInfo};
pub use fabric::Fabric;
pub use ipi::{Delivery, Ipi};
pub use local::{LocalInput, LocalSignal};
pub use mailbox::{Event, Mailbox, Waker};
pub use saved::{RestoreError, SavedCountdown, SavedLocalApic};

/// A point in time or a duration in ticks of this vCPU's guest TSC.
pub type Tsc = u64;
