//! The reference follows: the subject runs as machines do, without counting instructions, until it
//! is kicked at some time; then the reference executes single instructions until it comes to the
//! same registers. What only happens between kicks (linked blocks, resumed ones) is compared so.

use std::sync::{Arc, Mutex, PoisonError};

use engine::{
    CpuBus, Debugging, Engine, EngineError, Kick, Vcpu, VcpuConfig, VcpuExit, VcpuState, VcpuStats,
};
use interpreter::{InterpreterVcpu, Registers};

use super::flags;

/// Registers that differ from the target's in the closest instruction that is remembered.
const CLOSE: usize = 3;

/// Where the reference is to come to, and how it got on.
#[derive(Clone, Debug, Default)]
pub(super) struct Chase {
    /// The registers to come to; none: run as usual.
    pub(super) target: Option<Registers>,
    /// Instructions that may still be executed.
    pub(super) left: u64,
    /// Instructions executed.
    pub(super) executed: u64,
    /// Whether the target was reached.
    pub(super) reached: bool,
    /// The registers that came closest, at the target's RIP, and in how many they differ.
    pub(super) closest: Option<(usize, Registers)>,
}

/// The interpreter, with a chase that its vCPU takes part in.
#[derive(Default)]
pub(super) struct Pursuit(Arc<Mutex<Chase>>);

impl Pursuit {
    /// Sets a chase, or looks at how it went.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut Chase) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Engine for Pursuit {
    fn name(&self) -> &'static str {
        "interpreter"
    }

    fn create_vcpu(&self, config: VcpuConfig) -> Result<Box<dyn Vcpu>, EngineError> {
        let interpreter = InterpreterVcpu::new(config)?;
        Ok(Box::new(Pursuer { interpreter, chase: Arc::clone(&self.0) }))
    }
}

struct Pursuer {
    interpreter: InterpreterVcpu,
    chase: Arc<Mutex<Chase>>,
}

impl Pursuer {
    /// Whether the chase goes on from here.
    fn goes_on(&self, chase: &mut Chase, target: &Registers) -> bool {
        let now = self.interpreter.registers();
        let differing = differing(target, &now);
        chase.reached = differing == 0;
        if now.rip == target.rip && differing <= CLOSE {
            let closest = chase.closest.as_ref().map_or(usize::MAX, |(count, _)| *count);
            if differing < closest {
                chase.closest = Some((differing, now));
            }
        }
        !chase.reached && chase.left > 0
    }
}

/// In how many registers, flags and RIP two sets differ, but for undefined flags.
fn differing(a: &Registers, b: &Registers) -> usize {
    let differ = |a: u64, b: u64| a != b && !flags::differ_undefined(a, b);
    let general = a.gpr.iter().zip(&b.gpr).filter(|(a, b)| differ(**a, **b)).count();
    // As images of RFLAGS, in which bit 1 is set.
    general + usize::from(a.rip != b.rip) + usize::from(differ(a.flags | 2, b.flags | 2))
}

impl Vcpu for Pursuer {
    fn run(&mut self, bus: &dyn CpuBus) -> Result<VcpuExit, EngineError> {
        let chase = Arc::clone(&self.chase);
        let mut chase = chase.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(target) = chase.target else { return self.interpreter.run(bus) };
        self.interpreter.bind_thread();
        while self.goes_on(&mut chase, &target) {
            self.interpreter.set_budget(Some(1));
            let before = self.interpreter.registers().rip;
            let exit = match self.interpreter.serve_events(bus) {
                Some(exit) => exit,
                None => {
                    // The subject may have been kicked behind the delivery of an event, before it
                    // executed anything.
                    let delivered = self.interpreter.registers().rip != before;
                    if delivered && !self.goes_on(&mut chase, &target) {
                        break;
                    }
                    self.interpreter.run(bus)?
                }
            };
            if exit != VcpuExit::BudgetSpent {
                return Ok(exit);
            }
            chase.left -= 1;
            chase.executed += 1;
        }
        Ok(VcpuExit::BudgetSpent)
    }

    fn set_budget(&mut self, instructions: Option<u64>) {
        self.interpreter.set_budget(instructions);
    }

    fn set_debugging(&mut self, debugging: Debugging) {
        self.interpreter.set_debugging(debugging);
    }

    fn save(&mut self, bus: &dyn CpuBus) -> Result<VcpuState, EngineError> {
        self.interpreter.save(bus)
    }

    fn restore(&mut self, state: &VcpuState, bus: &dyn CpuBus) -> Result<(), EngineError> {
        self.interpreter.restore(state, bus)
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.interpreter.kicker()
    }

    fn stats(&self) -> VcpuStats {
        self.interpreter.stats()
    }
}
