//! What a vCPU reaches outside itself.

use device::{Answer, GuestClock, Width};
use lapic::Ipi;

/// Registers of a hypercall (VMCALL or VMMCALL): RAX is the number and the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HypercallFrame {
    /// RAX: number on entry, result on return.
    pub rax: u64,
    /// RBX, RCX, RDX, RSI: arguments.
    pub arguments: [u64; 4],
    /// Privilege level of the caller, 0 to 3.
    pub cpl: u8,
}

/// The machine as a vCPU sees it. Shared by all vCPUs and called concurrently; a call never
/// blocks, and never waits for another vCPU.
///
/// An answer of `StopAfterInstruction` makes [`crate::Vcpu::run`] return
/// [`crate::VcpuExit::Stop`] after the instruction has completed.
pub trait CpuBus: Send + Sync {
    /// Reads an I/O port; nobody there gives all-ones.
    fn port_read(&self, port: u16, width: Width) -> Answer<u32>;

    /// Writes an I/O port; nobody there is no error.
    fn port_write(&self, port: u16, width: Width, value: u32) -> Answer<()>;

    /// Reads `data.len()` (1 to 8) bytes at a guest-physical address that is not RAM; nobody there
    /// gives all-ones.
    fn mmio_read(&self, gpa: u64, data: &mut [u8]) -> Answer<()>;

    /// Writes 1 to 8 bytes at a guest-physical address that is not RAM.
    fn mmio_write(&self, gpa: u64, data: &[u8]) -> Answer<()>;

    /// Reads a platform MSR (one the architecture does not define, such as the paravirtual
    /// clock's) for vCPU `vcpu`; [`Answer::Fault`] makes the instruction raise #GP.
    fn msr_read(&self, vcpu: u32, msr: u32) -> Answer<u64>;

    /// Writes a platform MSR; [`Answer::Fault`] makes the instruction raise #GP.
    fn msr_write(&self, vcpu: u32, msr: u32, value: u64) -> Answer<()>;

    /// Serves a hypercall. [`Answer::Fault`] makes the instruction raise #UD, as without a
    /// hypervisor.
    fn hypercall(&self, vcpu: u32, frame: &mut HypercallFrame) -> Answer<()>;

    /// Delivers an interprocessor interrupt sent by vCPU `from`.
    fn send_ipi(&self, from: u32, ipi: Ipi);

    /// A level-triggered interrupt was acknowledged at the local APIC: EOI broadcast.
    fn end_of_interrupt(&self, vector: u8);

    /// The interrupt-acknowledge cycle to the 8259A for an ExtINT: its vector.
    fn acknowledge_extint(&self) -> u8;

    /// The timer of `vcpu`'s local APIC has fired; called on the vCPU's thread. Whoever keeps an
    /// account for the guest brings it up to date.
    fn timer_fired(&self, _vcpu: u32) {}

    /// The guest's real time, which the TSC follows.
    fn clock(&self) -> &dyn GuestClock;
}
