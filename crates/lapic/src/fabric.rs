//! The fabric: finds the vCPUs that a message is for and posts to their mailboxes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use device::{Message, MsiSender};

use crate::{Delivery, Destination, DestinationInfo, Ipi, Mailbox};

/// All vCPUs' mailboxes: what stands for the system bus between APICs.
pub struct Fabric {
    mailboxes: Vec<Arc<Mailbox>>,
    dropped: AtomicU64,
}

impl Fabric {
    /// A fabric of these vCPUs, whose APIC ids are distinct.
    pub fn new(mailboxes: Vec<Arc<Mailbox>>) -> Self {
        Self { mailboxes, dropped: AtomicU64::new(0) }
    }

    /// The mailboxes, in the order given.
    pub fn mailboxes(&self) -> &[Arc<Mailbox>] {
        &self.mailboxes
    }

    /// Messages that reached nobody: no APIC matched, or the kind is not supported (SMI, ExtINT
    /// by message, reserved delivery modes).
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Delivers an interprocessor interrupt.
    pub fn deliver(&self, ipi: &Ipi) {
        let target = Target { destination: ipi.destination, source: Some(ipi.source) };
        self.route(target, Some(ipi.delivery), ipi.vector, false);
    }

    /// Wakes the vCPU with APIC id `apic_id` from its HLT; nobody there is no error.
    pub fn wake(&self, apic_id: u32) {
        if let Some(mailbox) = self.mailboxes.iter().find(|m| m.apic_id() == apic_id) {
            mailbox.post_wake();
        }
    }

    /// Delivers a message of a device or an I/O APIC. One outside the interrupt address range
    /// `0xfeex_xxxx` is dropped.
    pub fn deliver_message(&self, message: Message) {
        if message.address >> 20 != 0xfee {
            self.count_dropped();
            return;
        }
        let destination = Destination::from_xapic(message.logical(), message.destination());
        let target = Target { destination, source: None };
        let delivery = Delivery::from_message(message.delivery_mode());
        self.route(target, delivery, message.vector(), message.level_triggered());
    }

    fn route(&self, target: Target, delivery: Option<Delivery>, vector: u8, level: bool) {
        let reached = match delivery {
            Some(Delivery::LowestPriority) => self.post_lowest(target, vector, level),
            Some(Delivery::Fixed) => self.post_all(target, true, |m| m.post(vector, level)),
            Some(Delivery::Nmi) => self.post_all(target, false, Mailbox::post_nmi),
            Some(Delivery::Init) => self.post_all(target, false, Mailbox::post_init),
            Some(Delivery::Startup) => self.post_all(target, false, |m| m.post_sipi(vector)),
            Some(Delivery::Smi | Delivery::ExtInt) | None => false,
        };
        if !reached {
            self.count_dropped();
        }
    }

    /// Posts to every destination; whether there was one.
    fn post_all(&self, target: Target, maskable: bool, post: impl Fn(&Mailbox)) -> bool {
        let mut reached = false;
        for mailbox in self.mailboxes.iter().filter(|m| target.is(&m.destination(), maskable)) {
            post(mailbox);
            reached = true;
        }
        reached
    }

    /// Posts to the destination with the lowest processor priority (Intel SDM vol. 3A 11.6.2.4).
    /// Among equals the vector chooses, so that different interrupts go to different processors
    /// and each stays with its own.
    fn post_lowest(&self, target: Target, vector: u8, level: bool) -> bool {
        let mut lowest = u8::MAX;
        let mut candidates: Vec<&Mailbox> = Vec::new();
        for mailbox in &self.mailboxes {
            let info = mailbox.destination();
            if !target.is(&info, true) || info.priority > lowest {
                continue;
            }
            if info.priority < lowest {
                lowest = info.priority;
                candidates.clear();
            }
            candidates.push(mailbox);
        }
        if candidates.is_empty() {
            return false;
        }
        candidates[usize::from(vector) % candidates.len()].post(vector, level);
        true
    }

    fn count_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

impl MsiSender for Fabric {
    fn send(&self, message: Message) {
        self.deliver_message(message);
    }
}

/// A destination as seen from its sender.
#[derive(Clone, Copy)]
struct Target {
    destination: Destination,
    /// APIC id of the sending APIC; `None` for a device.
    source: Option<u32>,
}

impl Target {
    /// Whether the APIC is meant, and takes a message that is `maskable`: a software-disabled
    /// APIC only takes INIT, NMI and start-up IPIs (Intel SDM vol. 3A 11.4.7.2).
    fn is(self, info: &DestinationInfo, maskable: bool) -> bool {
        info.matches(self.destination, self.source) && (info.software_enabled || !maskable)
    }
}
