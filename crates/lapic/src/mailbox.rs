//! The mailbox: how other threads post interrupts to a vCPU.
//!
//! Posting sets bits and never waits for the vCPU. The vCPU's engine polls [`Mailbox::has_work`],
//! one relaxed load, between instructions, and empties the mailbox into its
//! [`LocalApic`](crate::LocalApic) with [`Mailbox::drain`]. A vCPU that sleeps is woken by the
//! [`Waker`], which is called after each post.
//!
//! A mailbox is not saved: its owner drains it before it saves the vCPU, and the interrupt
//! controllers set their lines again after a restore.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::DestinationInfo;

/// Called after each post, on the thread that posts: makes a sleeping vCPU thread look into its
/// mailbox, as by `Thread::unpark`. It must not block and not post to the same mailbox.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// What the mailbox hands to the vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// INIT: comes first, whatever else was posted with it.
    Init,
    /// Start-up IPI that followed the INIT; ignored by a processor that does not wait for it.
    Sipi(u8),
    /// Non-maskable interrupt; several that were posted together are one.
    Nmi,
    /// The end of a HLT whatever waits, asked for by another vCPU ([`Mailbox::post_wake`]).
    Wake,
    /// A maskable interrupt for [`LocalApic::accept`](crate::LocalApic::accept).
    Interrupt {
        /// The vector.
        vector: u8,
        /// Whether it is level-triggered, so that its EOI is to be broadcast.
        level: bool,
    },
}

const INIT: u32 = 1 << 0;
const NMI: u32 = 1 << 1;
const SIPI: u32 = 1 << 2;
const WAKE: u32 = 1 << 3;
/// Vector of the pending start-up IPI.
const SIPI_VECTOR: u32 = 0xff << 8;

/// One vCPU's mailbox, shared by the vCPU and everybody who interrupts it.
pub struct Mailbox {
    /// Set by every post, cleared by `drain`.
    work: AtomicBool,
    edge: [AtomicU64; 4],
    level: [AtomicU64; 4],
    /// INIT, NMI and start-up IPI.
    control: AtomicU32,
    /// The level of the 8259's INTR output.
    extint: AtomicBool,
    apic_id: u32,
    /// The published [`DestinationInfo`], packed.
    destination: AtomicU32,
    waker: RwLock<Option<Waker>>,
}

impl Mailbox {
    /// An empty mailbox without a waker for the APIC that is described by `destination`
    /// ([`LocalApic::destination`](crate::LocalApic::destination)).
    pub fn new(destination: DestinationInfo) -> Self {
        Self {
            work: AtomicBool::new(false),
            edge: Default::default(),
            level: Default::default(),
            control: AtomicU32::new(0),
            extint: AtomicBool::new(false),
            apic_id: destination.apic_id,
            destination: AtomicU32::new(destination.pack()),
            waker: RwLock::new(None),
        }
    }

    /// Replaces the waker.
    pub fn set_waker(&self, waker: Waker) {
        *self.waker.write().unwrap_or_else(PoisonError::into_inner) = Some(waker);
    }

    /// Posts a maskable interrupt; `level` if it is level-triggered.
    pub fn post(&self, vector: u8, level: bool) {
        let words = if level { &self.level } else { &self.edge };
        words[usize::from(vector >> 6)].fetch_or(1 << (vector & 63), Ordering::Relaxed);
        self.kick();
    }

    /// Posts a non-maskable interrupt.
    pub fn post_nmi(&self) {
        self.control.fetch_or(NMI, Ordering::Relaxed);
        self.kick();
    }

    /// Posts an INIT. A start-up IPI that came before it is forgotten.
    pub fn post_init(&self) {
        self.update_control(|control| control & !(SIPI | SIPI_VECTOR) | INIT);
    }

    /// Posts a start-up IPI. Of several before the next drain the first counts, since it takes
    /// the processor out of the state in which it listens to them.
    pub fn post_sipi(&self, vector: u8) {
        self.update_control(|control| match control & SIPI {
            0 => control | SIPI | u32::from(vector) << 8,
            _ => control,
        });
    }

    /// Ends the present HLT, or the next one if there is none: what KVM_HC_KICK_CPU does.
    pub fn post_wake(&self) {
        self.control.fetch_or(WAKE, Ordering::Relaxed);
        self.kick();
    }

    /// Sets the level of the 8259's INTR output, which is wired to LINT0 of the first processor.
    pub fn set_extint(&self, level: bool) {
        if self.extint.swap(level, Ordering::Relaxed) != level {
            self.kick();
        }
    }

    /// The level of the 8259's INTR output.
    pub fn extint(&self) -> bool {
        self.extint.load(Ordering::Relaxed)
    }

    /// Marks the mailbox as having work and wakes the vCPU, with nothing new in it: its owner
    /// looks up from running or sleeping, as for a pause.
    pub fn kick(&self) {
        self.work.store(true, Ordering::Release);
        let waker = self.waker.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(waker) = waker {
            waker();
        }
    }

    /// Whether anything was posted, or the INTR level changed, since the last drain. One relaxed
    /// load, for polling between instructions.
    #[inline]
    pub fn has_work(&self) -> bool {
        self.work.load(Ordering::Relaxed)
    }

    /// Takes everything that was posted: INIT first, then start-up IPI, NMI, and maskable
    /// interrupts. What is posted meanwhile is either taken or sets [`has_work`](Self::has_work)
    /// again.
    pub fn drain(&self, mut f: impl FnMut(Event)) {
        // Cleared before the bits are taken: a post that comes between is seen twice, never lost.
        self.work.swap(false, Ordering::AcqRel);
        let control = self.control.swap(0, Ordering::Relaxed);
        if control & INIT != 0 {
            f(Event::Init);
        }
        if control & SIPI != 0 {
            f(Event::Sipi((control >> 8) as u8));
        }
        if control & NMI != 0 {
            f(Event::Nmi);
        }
        if control & WAKE != 0 {
            f(Event::Wake);
        }
        for (words, level) in [(&self.edge, false), (&self.level, true)] {
            for (index, word) in words.iter().enumerate() {
                let mut bits = word.swap(0, Ordering::Relaxed);
                while bits != 0 {
                    let vector = index as u8 * 64 + bits.trailing_zeros() as u8;
                    f(Event::Interrupt { vector, level });
                    bits &= bits - 1;
                }
            }
        }
    }

    /// APIC id of the vCPU.
    pub fn apic_id(&self) -> u32 {
        self.apic_id
    }

    /// Tells senders what the APIC answers to. The vCPU's engine calls it after a reset, a
    /// restore, and where [`Effects::destination_changed`](crate::Effects) says so. The APIC id
    /// is fixed: that of `destination` is not looked at.
    pub fn publish(&self, destination: DestinationInfo) {
        let packed = destination.pack();
        if self.destination.load(Ordering::Relaxed) != packed {
            self.destination.store(packed, Ordering::Release);
        }
    }

    /// What the APIC answers to, as last published.
    pub fn destination(&self) -> DestinationInfo {
        DestinationInfo::unpack(self.apic_id, self.destination.load(Ordering::Acquire))
    }

    fn update_control(&self, change: impl Fn(u32) -> u32) {
        // The closure always gives a value, so the update cannot fail.
        let _ = self
            .control
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |control| Some(change(control)));
        self.kick();
    }
}
