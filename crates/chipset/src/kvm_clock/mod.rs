//! The KVM paravirtual clock: a page per vCPU from which the guest computes the time with its TSC,
//! without an exit (Linux, Documentation/virt/kvm/x86/msr.rst and cpuid.rst).
//!
//! The guest writes an address to an MSR; the clock then writes a structure there that relates
//! one moment of guest time to the TSC at that moment, and the TSC's rate. All vCPUs get the same
//! moment, and the guest's TSC is a linear function of guest time, so times read on different
//! vCPUs agree (PVCLOCK_TSC_STABLE_BIT) and the structures never need an update while the VM
//! runs. After a restore the machine calls [`KvmClock::refresh`].
//!
//! Of KVM's other paravirtual features `kvm_steal` is one more; docs/paravirtual.md has the rest.
//!
//! Neighbours: `machine` routes MSR accesses here, merges [`KvmClock::cpuid`] into the CPU profile
//! and lends guest memory as a [`GuestMemoryWriter`] and the TSC as a [`GuestTsc`].

mod saved;
mod scale;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use device::{Device, GuestClock, Nanos, WallClock};

use crate::sync::lock;
use scale::PvclockScale;

/// Guest memory, as far as the clock needs it.
pub trait GuestMemoryWriter: Send + Sync {
    /// Writes `data` to guest-physical memory at `gpa`; whether all of it is memory. Writes become
    /// visible to vCPUs in the order of the calls, each aligned group of 4 bytes at once.
    fn write(&self, gpa: u64, data: &[u8]) -> bool;
}

/// The guest's time-stamp counters.
pub trait GuestTsc: Send + Sync {
    /// Their rate in kHz, the same for all vCPUs, above 0.
    fn khz(&self) -> u32;

    /// What RDTSC gives on `vcpu` at guest time `time`, which may lie in the past. It includes
    /// what the guest wrote to IA32_TSC and IA32_TSC_ADJUST; see [`KvmClock::refresh`].
    fn at(&self, vcpu: usize, time: Nanos) -> u64;
}

/// What CPUID gives: a leaf and its EAX, EBX, ECX, EDX.
pub type CpuidLeaf = (u32, [u32; 4]);

const MSR_WALL_CLOCK_LEGACY: u32 = 0x11;
const MSR_SYSTEM_TIME_LEGACY: u32 = 0x12;
const MSR_WALL_CLOCK: u32 = 0x4b56_4d00;
const MSR_SYSTEM_TIME: u32 = 0x4b56_4d01;
/// In the system-time MSR: the structure is to be kept.
const ENABLED: u64 = 1;

const LEAF_SIGNATURE: u32 = 0x4000_0000;
const LEAF_FEATURES: u32 = 0x4000_0001;
const LEAF_FREQUENCIES: u32 = 0x4000_0010;
/// KVM_FEATURE_CLOCKSOURCE, _NOP_IO_DELAY, _CLOCKSOURCE2, _CLOCKSOURCE_STABLE_BIT.
const FEATURES: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 24;
/// Rate of the local APIC's timer before its divider, in kHz.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// PVCLOCK_TSC_STABLE_BIT of the structure's flags.
const TSC_STABLE: u8 = 1 << 0;
/// PVCLOCK_GUEST_STOPPED of the structure's flags.
const GUEST_STOPPED: u8 = 1 << 1;

/// The paravirtual clock of all vCPUs.
pub struct KvmClock {
    memory: Arc<dyn GuestMemoryWriter>,
    clock: Arc<dyn GuestClock>,
    wall: Arc<dyn WallClock>,
    tsc: Arc<dyn GuestTsc>,
    state: Mutex<State>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    /// The wall-clock MSR as last written: an address.
    wall_clock: u64,
    /// Version of the wall-clock structure.
    wall_version: u32,
    /// The moment that the structures describe.
    moment: Option<Nanos>,
    vcpus: Vec<VcpuClock>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct VcpuClock {
    /// The system-time MSR as last written: an address and the enable bit.
    system_time: u64,
    /// Version of the structure; odd while it is being written.
    version: u32,
}

impl KvmClock {
    /// A clock for `vcpus` vCPUs.
    pub fn new(
        vcpus: usize,
        memory: Arc<dyn GuestMemoryWriter>,
        clock: Arc<dyn GuestClock>,
        wall: Arc<dyn WallClock>,
        tsc: Arc<dyn GuestTsc>,
    ) -> Self {
        Self { memory, clock, wall, tsc, state: Mutex::new(State::new(vcpus)) }
    }

    /// The CPUID leaves that announce the clock, for a TSC of `tsc_khz`.
    pub fn cpuid(tsc_khz: u32) -> [CpuidLeaf; 3] {
        let word = |text: &[u8; 4]| u32::from_le_bytes(*text);
        let signature = [word(b"KVMK"), word(b"VMKV"), word(b"M\0\0\0")];
        let [b, c, d] = signature;
        [
            (LEAF_SIGNATURE, [LEAF_FREQUENCIES, b, c, d]),
            (LEAF_FEATURES, [FEATURES, 0, 0, 0]),
            (LEAF_FREQUENCIES, [tsc_khz, APIC_BUS_KHZ, 0, 0]),
        ]
    }

    /// Reads `msr` on `vcpu`; none if it is not the clock's.
    pub fn msr_read(&self, vcpu: usize, msr: u32) -> Option<u64> {
        let state = lock(&self.state);
        match msr {
            MSR_WALL_CLOCK | MSR_WALL_CLOCK_LEGACY => Some(state.wall_clock),
            MSR_SYSTEM_TIME | MSR_SYSTEM_TIME_LEGACY => Some(state.vcpus.get(vcpu)?.system_time),
            _ => None,
        }
    }

    /// Writes `msr` on `vcpu`; whether it is the clock's. An address outside of memory is no
    /// fault: the structure is then not written, as under KVM.
    pub fn msr_write(&self, vcpu: usize, msr: u32, value: u64) -> bool {
        let mut state = lock(&self.state);
        match msr {
            MSR_WALL_CLOCK | MSR_WALL_CLOCK_LEGACY => {
                state.wall_clock = value;
                self.write_wall_clock(&mut state);
            }
            MSR_SYSTEM_TIME | MSR_SYSTEM_TIME_LEGACY => {
                let Some(clock) = state.vcpus.get_mut(vcpu) else { return false };
                clock.system_time = value;
                state.moment.get_or_insert_with(|| self.clock.now());
                self.write_system_time(&mut state, vcpu, TSC_STABLE);
            }
            _ => return false,
        }
        true
    }

    /// Describes the present moment in all structures. The machine calls this with all vCPUs
    /// parked: after a restore, once memory and clocks are in place, and whenever the relation of
    /// a TSC to guest time changed (the guest set its TSC, the VM moved to another host).
    pub fn refresh(&self) {
        self.describe_now(TSC_STABLE);
    }

    /// As [`KvmClock::refresh`], after the guest's time has jumped forward: tells the guest that it
    /// was stopped, so that its watchdogs do not take that for a hang.
    pub fn refresh_after_stop(&self) {
        self.describe_now(TSC_STABLE | GUEST_STOPPED);
    }

    fn describe_now(&self, flags: u8) {
        let mut state = lock(&self.state);
        if state.moment.is_none() {
            return;
        }
        state.moment = Some(self.clock.now());
        for vcpu in 0..state.vcpus.len() {
            self.write_system_time(&mut state, vcpu, flags);
        }
    }

    /// Writes `pvclock_vcpu_time_info`.
    fn write_system_time(&self, state: &mut State, vcpu: usize, flags: u8) {
        let Some(moment) = state.moment else { return };
        let clock = &mut state.vcpus[vcpu];
        if clock.system_time & ENABLED == 0 {
            return;
        }
        let scale = PvclockScale::from_khz(self.tsc.khz());
        let mut body = [0; 28];
        body[4..12].copy_from_slice(&self.tsc.at(vcpu, moment).to_le_bytes());
        body[12..20].copy_from_slice(&moment.to_le_bytes());
        body[20..24].copy_from_slice(&scale.multiplier.to_le_bytes());
        body[24] = scale.shift as u8;
        body[25] = flags;
        self.publish(clock.system_time & !ENABLED, &mut clock.version, &body);
    }

    /// Writes `pvclock_wall_clock`: the wall-clock time at which guest time was zero.
    fn write_wall_clock(&self, state: &mut State) {
        let uptime = Duration::from_nanos(self.clock.now());
        let start = self.wall.since_epoch().saturating_sub(uptime);
        let mut body = [0; 8];
        // The structure's 32 bits of seconds wrap in 2106.
        body[..4].copy_from_slice(&(start.as_secs() as u32).to_le_bytes());
        body[4..].copy_from_slice(&start.subsec_nanos().to_le_bytes());
        self.publish(state.wall_clock, &mut state.wall_version, &body);
    }

    /// Writes a structure that begins with its version: odd while the rest changes.
    fn publish(&self, gpa: u64, version: &mut u32, body: &[u8]) {
        let odd = version.wrapping_add(1) | 1;
        *version = odd.wrapping_add(1);
        let Some(rest) = gpa.checked_add(4) else { return };
        if self.memory.write(gpa, &odd.to_le_bytes()) {
            self.memory.write(rest, body);
            self.memory.write(gpa, &version.to_le_bytes());
        }
    }
}

impl State {
    fn new(vcpus: usize) -> Self {
        let vcpus = vec![VcpuClock::default(); vcpus];
        Self { wall_clock: 0, wall_version: 0, moment: None, vcpus }
    }
}

impl Device for KvmClock {
    /// The structures stay in memory as they are; nothing is written to them any more.
    fn reset(&self) {
        let mut state = lock(&self.state);
        *state = State::new(state.vcpus.len());
    }
}
