//! The machine as its vCPUs see it.

use std::sync::Arc;

use chipset::{IoApic, KvmClock, Pic, StealTime};
use device::{Answer, GuestClock, Width};
use engine::{CpuBus, HypercallFrame};
use lapic::{Fabric, Ipi};

use crate::{MmioMap, PortMap, VmClock};

/// Result of a KVM hypercall that does not exist: -KVM_ENOSYS (Linux,
/// Documentation/virt/kvm/x86/hypercalls.rst).
const KVM_ENOSYS: u64 = (-1000_i64) as u64;
/// CPUID leaf of KVM's features, in EAX (Linux, Documentation/virt/kvm/x86/cpuid.rst).
pub(crate) const KVM_FEATURES: u32 = 0x4000_0001;
/// KVM_HC_KICK_CPU exists: the guest's spin locks sleep instead of spinning for long.
pub(crate) const KVM_FEATURE_PV_UNHALT: u32 = 1 << 7;
/// Wakes a vCPU that waits in HLT for a lock: RBX are flags, RCX is its APIC id.
const KVM_HC_KICK_CPU: u64 = 5;
/// Result of a KVM hypercall from outside the guest's kernel: -KVM_EPERM.
const KVM_EPERM: u64 = (-1_i64) as u64;

/// What port accesses, memory-mapped accesses, platform MSRs, hypercalls and interrupts between
/// processors lead to.
pub(crate) struct PcBus {
    pub(crate) clock: Arc<VmClock>,
    pub(crate) ports: PortMap,
    pub(crate) mmio: MmioMap,
    pub(crate) fabric: Arc<Fabric>,
    pub(crate) pic: Arc<Pic>,
    pub(crate) io_apic: Arc<IoApic>,
    pub(crate) kvm_clock: Arc<KvmClock>,
    pub(crate) steal_time: Option<Arc<StealTime>>,
}

impl CpuBus for PcBus {
    #[inline]
    fn port_read(&self, port: u16, width: Width) -> Answer<u32> {
        self.ports.read(port, width)
    }

    #[inline]
    fn port_write(&self, port: u16, width: Width, value: u32) -> Answer<()> {
        self.ports.write(port, width, value)
    }

    fn mmio_read(&self, gpa: u64, data: &mut [u8]) -> Answer<()> {
        self.mmio.read(gpa, data)
    }

    fn mmio_write(&self, gpa: u64, data: &[u8]) -> Answer<()> {
        self.mmio.write(gpa, data)
    }

    fn msr_read(&self, vcpu: u32, msr: u32) -> Answer<u64> {
        let vcpu = vcpu as usize;
        let stolen = || self.steal_time.as_ref()?.msr_read(vcpu, msr);
        match self.kvm_clock.msr_read(vcpu, msr).or_else(stolen) {
            Some(value) => Answer::Done(value),
            None => Answer::Fault,
        }
    }

    fn msr_write(&self, vcpu: u32, msr: u32, value: u64) -> Answer<()> {
        let vcpu = vcpu as usize;
        let steal_time = self.steal_time.as_ref();
        match self.kvm_clock.msr_write(vcpu, msr, value)
            || steal_time.is_some_and(|steal| steal.msr_write(vcpu, msr, value))
        {
            true => Answer::Done(()),
            false => Answer::Fault,
        }
    }

    fn hypercall(&self, _vcpu: u32, frame: &mut HypercallFrame) -> Answer<()> {
        frame.rax = match (frame.cpl, frame.rax) {
            (1.., _) => KVM_EPERM,
            (0, KVM_HC_KICK_CPU) => {
                let [_flags, apic_id, ..] = frame.arguments;
                self.fabric.wake(apic_id as u32);
                0
            }
            (0, _) => KVM_ENOSYS,
        };
        Answer::Done(())
    }

    fn send_ipi(&self, _from: u32, ipi: Ipi) {
        self.fabric.deliver(&ipi);
    }

    fn end_of_interrupt(&self, vector: u8) {
        self.io_apic.eoi(vector);
    }

    fn acknowledge_extint(&self) -> u8 {
        self.pic.acknowledge()
    }

    fn timer_fired(&self, vcpu: u32) {
        if let Some(steal_time) = &self.steal_time {
            steal_time.update(vcpu as usize);
        }
    }

    fn clock(&self) -> &dyn GuestClock {
        &*self.clock
    }
}
