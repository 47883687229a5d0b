//! A stand-in for a machine, to test a vCPU alone: a bus with nobody on it.

use device::{Answer, GuestClock, Nanos, Width};
use lapic::Ipi;

use crate::{CpuBus, HypercallFrame};

/// A bus without devices, on which writes to ports do what the test says. Time stands still.
#[derive(Clone, Copy, Debug)]
pub struct EmptyBus {
    port_write: fn(u16, u32) -> Answer<()>,
}

impl EmptyBus {
    /// Nobody is there: ports and memory read as all-ones, writes are lost, MSRs and hypercalls
    /// fault.
    pub const NOBODY: Self = Self { port_write: |_, _| Answer::Done(()) };

    /// The same, but a write to a port, whose number and value it gets, does `port_write`.
    pub const fn with_ports(port_write: fn(u16, u32) -> Answer<()>) -> Self {
        Self { port_write }
    }
}

impl CpuBus for EmptyBus {
    fn port_read(&self, _port: u16, width: Width) -> Answer<u32> {
        Answer::Done(width.mask())
    }

    fn port_write(&self, port: u16, _width: Width, value: u32) -> Answer<()> {
        (self.port_write)(port, value)
    }

    fn mmio_read(&self, _gpa: u64, data: &mut [u8]) -> Answer<()> {
        data.fill(0xff);
        Answer::Done(())
    }

    fn mmio_write(&self, _gpa: u64, _data: &[u8]) -> Answer<()> {
        Answer::Done(())
    }

    fn msr_read(&self, _vcpu: u32, _msr: u32) -> Answer<u64> {
        Answer::Fault
    }

    fn msr_write(&self, _vcpu: u32, _msr: u32, _value: u64) -> Answer<()> {
        Answer::Fault
    }

    fn hypercall(&self, _vcpu: u32, _frame: &mut HypercallFrame) -> Answer<()> {
        Answer::Fault
    }

    fn send_ipi(&self, _from: u32, _ipi: Ipi) {}

    fn end_of_interrupt(&self, _vector: u8) {}

    fn acknowledge_extint(&self) -> u8 {
        0
    }

    fn clock(&self) -> &dyn GuestClock {
        self
    }
}

impl GuestClock for EmptyBus {
    fn now(&self) -> Nanos {
        0
    }
}
