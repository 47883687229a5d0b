//! A vCPU with nothing around it, and an alarm that ends its sleep.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use engine::testing::EmptyBus;
use engine::{
    CpuProfile, Engine, EngineError, Level, RunState, Vcpu, VcpuConfig, VcpuExit, VcpuState, Vendor,
};
use interpreter::Interpreter;
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
        let config = VcpuConfig::alone(Arc::new(profile()), ram);
        Self { vcpu: Interpreter::new().create_vcpu(config).expect("the host runs stubs") }
    }

    pub(super) fn save(&mut self) -> VcpuState {
        self.vcpu.save(&EmptyBus::NOBODY).expect("the interpreter always saves")
    }

    pub(super) fn restore(&mut self, state: &VcpuState) -> Result<(), EngineError> {
        self.vcpu.restore(state, &EmptyBus::NOBODY)
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
        let exit = self.vcpu.run(&EmptyBus::NOBODY).expect("the host does not fail");
        if exit != VcpuExit::Paused || self.save().run_state != RunState::Running {
            return exit;
        }
        self.vcpu.run(&EmptyBus::NOBODY).expect("the host does not fail")
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
