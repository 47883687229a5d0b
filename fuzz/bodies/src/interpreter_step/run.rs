//! A vCPU with nothing around it, and an alarm that ends its sleep.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use device::{Answer, GuestClock, Nanos, Width};
use engine::{
    CpuBus, CpuProfile, Engine, EngineError, HypercallFrame, Level, RunState, Vcpu, VcpuConfig,
    VcpuExit, VcpuState, Vendor,
};
use interpreter::Interpreter;
use lapic::{Ipi, LocalApic, LocalApicConfig, Mailbox};
use memory::GuestRam;
use x86::cpuid::feature;

/// How long a vCPU may sleep in HLT before it is asked to stop: nobody else wakes it.
const PATIENCE: Duration = Duration::from_millis(1);

/// How often it is asked before it counts as hung.
const ALARMS: u32 = 20_000;

/// A vCPU and the bus it is on.
pub(super) struct Machine {
    vcpu: Box<dyn Vcpu>,
}

impl Machine {
    pub(super) fn new(ram: Arc<GuestRam>) -> Self {
        let apic = LocalApic::new(LocalApicConfig::default());
        let config = VcpuConfig {
            index: 0,
            apic_id: 0,
            profile: Arc::new(profile()),
            ram,
            mailbox: Arc::new(Mailbox::new(apic.destination())),
            rendezvous: Arc::new(engine::Rendezvous::new(&[])),
        };
        Self { vcpu: Interpreter::new().create_vcpu(config).expect("the host runs stubs") }
    }

    pub(super) fn save(&mut self) -> VcpuState {
        self.vcpu.save(&Nothing).expect("the interpreter always saves")
    }

    pub(super) fn restore(&mut self, state: &VcpuState) -> Result<(), EngineError> {
        self.vcpu.restore(state, &Nothing)
    }

    /// Runs for `instructions`, or until the vCPU sleeps or ends; [`VcpuExit::Paused`] when it
    /// sleeps, or takes too long (an exception handler that cannot be fetched faults for ever).
    pub(super) fn run(&mut self, instructions: u64) -> VcpuExit {
        self.vcpu.set_budget(Some(instructions));
        let kicker = self.vcpu.kicker();
        let (done, alarm) = channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                for _ in 0..ALARMS {
                    if alarm.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Timeout) {
                        return;
                    }
                    kicker.kick();
                }
                // The vCPU's thread cannot be ended from outside: the process can.
                eprintln!("the vCPU neither stops nor sleeps");
                std::process::abort();
            });
            let exit = self.run_awake();
            drop(done);
            exit
        })
    }

    /// Goes on after a first alarm, unless the vCPU slept: the host may only be busy.
    fn run_awake(&mut self) -> VcpuExit {
        let exit = self.vcpu.run(&Nothing).expect("the host does not fail");
        if exit != VcpuExit::Paused || self.save().run_state != RunState::Running {
            return exit;
        }
        self.vcpu.run(&Nothing).expect("the host does not fail")
    }
}

/// All features but random numbers: two runs must be alike.
fn profile() -> CpuProfile {
    let mut profile =
        CpuProfile::new(Level::V3, Vendor::Intel, 2_000_000, &|_| true).expect("all features");
    for hidden in [feature::RDRAND, feature::RDSEED] {
        let mut answer = profile.cpuid(hidden.leaf, hidden.subleaf);
        *answer.register_mut(hidden.register) &= !(1 << hidden.bit);
        profile.set_leaf(hidden.leaf, hidden.subleaf, answer);
    }
    profile
}

/// A bus with nobody on it, where time stands still.
struct Nothing;

impl GuestClock for Nothing {
    fn now(&self) -> Nanos {
        1_000_000
    }
}

impl CpuBus for Nothing {
    fn port_read(&self, _port: u16, width: Width) -> Answer<u32> {
        Answer::Done(width.mask())
    }

    fn port_write(&self, _port: u16, _width: Width, _value: u32) -> Answer<()> {
        Answer::Done(())
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
        0xff
    }

    fn clock(&self) -> &dyn GuestClock {
        self
    }
}
