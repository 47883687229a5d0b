//! A stand-in for an engine: a vCPU that executes a script of bus and memory accesses instead of
//! machine code. Its whole state is in RIP (where in the script) and RAX (what was last read), so
//! that it saves and restores like a real one.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use backend::CaptureConsole;
use device::{Answer, Width};
use engine::{
    CpuBus, DebugStop, Debugging, Engine, EngineError, Kick, RunState, StopReason, TripleFault,
    TscScale, Vcpu, VcpuConfig, VcpuExit, VcpuState, VcpuStats, WriteLog,
};
use lapic::{LocalApic, LocalApicConfig};
use machine::{BootFiles, MachineSpec};
use memory::{Gpa, GuestRam, RamOffset};

use crate::{Policy, VmConfig};

/// Where the script begins: the kernel's entry.
pub(crate) const ENTRY: u64 = 0x10_0000;

/// One instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// Writes a port.
    Out(u16, Width, u32),
    /// Reads a port into RAX.
    In(u16, Width),
    /// Adds 1 to the 8 bytes at an address.
    Count(u64),
    /// Goes to another step.
    Jump(u64),
    /// Sleeps until somebody posts an interrupt.
    Halt,
    /// Triple-faults.
    Fault,
    /// The engine fails.
    Fail,
    /// The engine has a bug.
    Panic,
}

#[derive(Clone)]
pub(crate) struct FakeEngine {
    pub(crate) script: Vec<Step>,
    /// It writes without the hooks of `memory` and tells afterwards.
    pub(crate) logs: bool,
}

/// What a [`FakeEngine`] tells afterwards.
struct FakeLog {
    ram: Arc<GuestRam>,
    kept: AtomicBool,
    written: Mutex<BTreeSet<u64>>,
}

impl FakeLog {
    fn write(&self, gpa: u64, value: u64) {
        let at = self.ram.translate(Gpa(gpa), 8).unwrap();
        self.ram.store(at, value);
        if self.kept.load(Ordering::SeqCst) {
            self.written.lock().unwrap().insert(at.0);
        }
    }
}

impl WriteLog for FakeLog {
    fn keep(&self, on: bool) -> Result<(), EngineError> {
        self.kept.store(on, Ordering::SeqCst);
        Ok(())
    }

    fn collect(&self) -> Result<(), EngineError> {
        let written = std::mem::take(&mut *self.written.lock().unwrap());
        written.into_iter().for_each(|at| self.ram.mark_dirty(RamOffset(at)));
        Ok(())
    }
}

struct FakeVcpu {
    log: Option<Arc<FakeLog>>,
    script: Vec<Step>,
    config: VcpuConfig,
    scale: TscScale,
    state: VcpuState,
    budget: Option<u64>,
    debugging: Debugging,
    executed: u64,
    kick: Arc<FakeKick>,
}

#[derive(Default)]
struct FakeKick {
    kicked: AtomicBool,
    sleep: Mutex<()>,
    wake: Condvar,
}

impl FakeKick {
    fn wake(&self) {
        let _held = self.sleep.lock().unwrap();
        self.wake.notify_all();
    }
}

impl Kick for FakeKick {
    fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        self.wake();
    }
}

impl Engine for FakeEngine {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn tracks_writes(&self) -> bool {
        !self.logs
    }

    fn create_vcpu(&self, config: VcpuConfig) -> Result<Box<dyn Vcpu>, EngineError> {
        let apic = LocalApic::new(LocalApicConfig::default()).save(0);
        let kick = Arc::new(FakeKick::default());
        let waker = Arc::clone(&kick);
        config.mailbox.set_waker(Arc::new(move || waker.wake()));
        let (ram, kept, written) = (Arc::clone(&config.ram), false.into(), Mutex::default());
        let log = self.logs.then(|| Arc::new(FakeLog { ram, kept, written }));
        Ok(Box::new(FakeVcpu {
            log,
            script: self.script.clone(),
            scale: TscScale::new(config.profile.tsc_khz()),
            config,
            state: VcpuState {
                general: Default::default(),
                segments: Default::default(),
                control: Default::default(),
                debug: Default::default(),
                xsave: Vec::new(),
                msrs: Vec::new(),
                apic,
                events: Default::default(),
                tsc: 0,
                run_state: RunState::Running,
            },
            budget: None,
            debugging: Debugging::default(),
            executed: 0,
            kick,
        }))
    }
}

impl FakeVcpu {
    fn step(&mut self, bus: &dyn CpuBus) -> Result<Option<VcpuExit>, EngineError> {
        let at = self.state.general.rip - ENTRY;
        let step = self.script.get(at as usize).copied().unwrap_or(Step::Jump(at));
        self.state.general.rip += 1;
        self.executed += 1;
        let answer = match step {
            Step::Out(port, width, value) => bus.port_write(port, width, value),
            Step::In(port, width) => match bus.port_read(port, width) {
                Answer::Done(value) => {
                    self.state.general.gpr[0] = value.into();
                    Answer::Done(())
                }
                _ => Answer::Fault,
            },
            Step::Count(gpa) => {
                let mut value = [0; 8];
                self.config.ram.read(Gpa(gpa), &mut value).unwrap();
                let value = u64::from_le_bytes(value) + 1;
                match &self.log {
                    Some(log) => log.write(gpa, value),
                    None => self.config.ram.write(Gpa(gpa), &value.to_le_bytes()).unwrap(),
                }
                Answer::Done(())
            }
            Step::Jump(to) => {
                self.state.general.rip = ENTRY + to;
                Answer::Done(())
            }
            Step::Halt => {
                self.sleep();
                Answer::Done(())
            }
            Step::Fault => {
                self.state.run_state = RunState::Shutdown;
                let fault = TripleFault { vcpu: self.config.index, rip: ENTRY + at, cr3: 0x1000 };
                return Ok(Some(VcpuExit::TripleFault(fault)));
            }
            Step::Fail => {
                let cause = "the script says so".to_owned();
                return Err(EngineError::Host { engine: "fake", cause });
            }
            Step::Panic => panic!("a bug in the engine"),
        };
        Ok(match answer {
            Answer::StopAfterInstruction((), cause) => Some(VcpuExit::Stop(cause)),
            _ => None,
        })
    }

    fn sleep(&self) {
        let mut held = self.kick.sleep.lock().unwrap();
        while !self.config.mailbox.has_work() && !self.kick.kicked.load(Ordering::SeqCst) {
            held = self.kick.wake.wait(held).unwrap();
        }
    }

    fn base(&self, bus: &dyn CpuBus) -> u64 {
        self.scale.ns_to_ticks(bus.clock().now())
    }
}

impl Vcpu for FakeVcpu {
    fn run(&mut self, bus: &dyn CpuBus) -> Result<VcpuExit, EngineError> {
        loop {
            if self.kick.kicked.swap(false, Ordering::SeqCst) {
                return Ok(VcpuExit::Paused);
            }
            if self.budget == Some(0) {
                return Ok(VcpuExit::BudgetSpent);
            }
            let Debugging { step, breakpoints, .. } = &self.debugging;
            let step = *step;
            if !step && breakpoints.contains(&self.state.general.rip) {
                return Ok(VcpuExit::Debug(DebugStop::Breakpoint));
            }
            self.budget = self.budget.map(|left| left - 1);
            if let Some(exit) = self.step(bus)? {
                return Ok(exit);
            }
            if step {
                return Ok(VcpuExit::Debug(DebugStop::Stepped));
            }
        }
    }

    fn set_budget(&mut self, instructions: Option<u64>) {
        self.budget = instructions;
    }

    fn set_debugging(&mut self, debugging: Debugging) {
        self.debugging = debugging;
    }

    fn save(&mut self, bus: &dyn CpuBus) -> Result<VcpuState, EngineError> {
        self.state.tsc = self.base(bus);
        self.config.mailbox.drain(|_| ());
        self.state.events.extint = self.config.mailbox.extint();
        Ok(self.state.clone())
    }

    fn restore(&mut self, state: &VcpuState, bus: &dyn CpuBus) -> Result<(), EngineError> {
        if state.tsc != self.base(bus) {
            return Err(EngineError::BadState("the TSC does not follow the clock".to_owned()));
        }
        self.state = state.clone();
        Ok(())
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.kick) as _
    }

    fn write_log(&self) -> Option<Arc<dyn WriteLog>> {
        self.log.clone().map(|log| log as _)
    }

    fn stats(&self) -> VcpuStats {
        VcpuStats { instructions: Some(self.executed), ..VcpuStats::default() }
    }
}

/// A 64-bit ELF file with a PVH entry at [`ENTRY`].
pub(crate) fn kernel() -> Vec<u8> {
    const CODE: usize = 0x200;
    let mut file = vec![0; CODE];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(0x10, &[2, 0, 62, 0, 1]);
    put(0x18, &ENTRY.to_le_bytes());
    put(0x20, &0x40_u64.to_le_bytes());
    put(0x34, &[64, 0, 56, 0, 2, 0]);
    let header = |kind: u32, offset: u64, address: u64, len: u64| {
        let mut bytes = [kind.to_le_bytes(), 7_u32.to_le_bytes()].concat();
        for value in [offset, address, address, len, len, 4] {
            bytes.extend(value.to_le_bytes());
        }
        bytes
    };
    put(0x40, &header(1, CODE as u64, ENTRY, 16));
    put(0x78, &header(4, 0x100, 0, 20));
    put(0x100, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    put(0x10c, b"Xen\0");
    put(0x110, &(ENTRY as u32).to_le_bytes());
    file.extend([0xf4; 16]);
    file
}

/// A VM of 16 MiB that executes `script`.
pub(crate) fn config(script: &[Step], policy: Policy) -> (VmConfig, Arc<CaptureConsole>) {
    let console = CaptureConsole::new(1 << 16);
    let config = VmConfig {
        spec: MachineSpec { debug_exit: true, ..MachineSpec::new(16 << 20) },
        engine: Arc::new(FakeEngine { script: script.to_vec(), logs: false }),
        boot: Some(BootFiles::from_bytes(kernel(), None).expect("kernel")),
        console: Arc::clone(&console) as _,
        disks: Vec::new(),
        nets: Vec::new(),
        policy,
    };
    (config, console)
}

/// The stop reasons that scripts provoke, as port writes.
pub(crate) fn write_for(reason: StopReason) -> Step {
    match reason {
        StopReason::PowerOff => Step::Out(0x604, Width::Word, 5 << 10 | 1 << 13),
        StopReason::Reset => Step::Out(0xcf9, Width::Byte, 6),
        StopReason::DebugExit { value } => Step::Out(0xf4, Width::Dword, value.into()),
        other => panic!("no port does {other:?}"),
    }
}
