//! KVM's steal time: a page per vCPU in which the guest reads how long the vCPU could have executed
//! and the host executed something else (Linux, Documentation/virt/kvm/x86/msr.rst,
//! MSR_KVM_STEAL_TIME). The guest's scheduler does not count that time against its processes, and
//! tools show it as `st`.
//!
//! The structure's `preempted` byte stays 0: a process does not learn when the host takes a core
//! away from its thread, and a vCPU in HLT is one that may be given work.
//!
//! Neighbours: `machine` routes the MSR here, announces [`StealTime::FEATURE`] in CPUID, measures
//! the time as a [`StolenTime`], and calls [`StealTime::update`] on the vCPU's own thread, when its
//! timer fires.

mod saved;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use device::{Device, Nanos};

use crate::GuestMemoryWriter;
use crate::sync::lock;

/// How long the host kept vCPUs waiting.
pub trait StolenTime: Send + Sync {
    /// The time that `vcpu` has waited since the last call for it. Called on its own thread.
    fn since_last(&self, vcpu: usize) -> Nanos;
}

const MSR_STEAL_TIME: u32 = 0x4b56_4d03;
/// In the MSR: the structure is to be kept.
const ENABLED: u64 = 1;
/// In the MSR: bits that must be zero; the address is aligned to 64 bytes.
const RESERVED: u64 = 0x3e;
/// Offset of the version, and what follows it: flags, preempted and padding.
const VERSION: u64 = 8;

/// The steal time of all vCPUs.
pub struct StealTime {
    memory: Arc<dyn GuestMemoryWriter>,
    stolen: Arc<dyn StolenTime>,
    vcpus: Vec<Mutex<Account>>,
}

/// One vCPU's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Account {
    /// The MSR as last written: an address and the enable bit.
    msr: u64,
    /// Version of the structure; odd while it is being written.
    version: u32,
    /// What the structure says.
    steal: Nanos,
}

impl StealTime {
    /// KVM_FEATURE_STEAL_TIME, in EAX of CPUID leaf 0x4000_0001.
    pub const FEATURE: u32 = 1 << 5;

    /// Steal time for `vcpus` vCPUs.
    pub fn new(
        vcpus: usize,
        memory: Arc<dyn GuestMemoryWriter>,
        stolen: Arc<dyn StolenTime>,
    ) -> Self {
        Self { memory, stolen, vcpus: (0..vcpus).map(|_| Mutex::default()).collect() }
    }

    /// Reads `msr` on `vcpu`; none if it is not the one.
    pub fn msr_read(&self, vcpu: usize, msr: u32) -> Option<u64> {
        let account = self.vcpus.get(vcpu).filter(|_| msr == MSR_STEAL_TIME)?;
        Some(lock(account).msr)
    }

    /// Writes `msr` on `vcpu`; whether it is the one and the value may be. An address outside of
    /// memory is no fault: the structure is then not written.
    pub fn msr_write(&self, vcpu: usize, msr: u32, value: u64) -> bool {
        let Some(account) = self.vcpus.get(vcpu).filter(|_| msr == MSR_STEAL_TIME) else {
            return false;
        };
        if value & RESERVED != 0 {
            return false;
        }
        // What was stolen before nobody asks for.
        self.stolen.since_last(vcpu);
        let mut account = lock(account);
        account.msr = value;
        if value & ENABLED != 0 {
            self.publish(&mut account);
        }
        true
    }

    /// Brings the structure of `vcpu` up to date. Called on its own thread.
    pub fn update(&self, vcpu: usize) {
        let Some(account) = self.vcpus.get(vcpu) else { return };
        let mut account = lock(account);
        if account.msr & ENABLED == 0 {
            return;
        }
        let stolen = self.stolen.since_last(vcpu);
        if stolen != 0 {
            account.steal = account.steal.saturating_add(stolen);
            self.publish(&mut account);
        }
    }

    /// Writes `kvm_steal_time`.
    fn publish(&self, account: &mut Account) {
        let gpa = account.msr & !(ENABLED | RESERVED);
        let odd = account.version.wrapping_add(1) | 1;
        account.version = odd.wrapping_add(1);
        if self.memory.write(gpa + VERSION, &odd.to_le_bytes()) {
            self.memory.write(gpa, &account.steal.to_le_bytes());
            self.memory.write(gpa + VERSION, &account.version.to_le_bytes());
        }
    }
}

impl Device for StealTime {
    /// The structures stay in memory as they are; nothing is written to them any more.
    fn reset(&self) {
        self.vcpus.iter().for_each(|account| *lock(account) = Account::default());
    }
}
