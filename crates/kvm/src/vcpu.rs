//! The vCPU: where its state is, how it gets there, and who executes next.

use std::num::NonZeroU32;
use std::sync::Arc;

use engine::{
    Activity, CpuBus, Debugging, EngineError, Kick, Observer, RunState, StopReason, TscScale, Vcpu,
    VcpuConfig, VcpuExit, VcpuState, VcpuStats, WriteLog,
};
use interpreter::{Alarm, InterpreterVcpu};
use lapic::{LocalApic, LocalApicConfig, Mailbox};
use x86::cpuid::feature;
use x86::msr;
use x86::segment::seg;

use crate::device::{NATIVE_MSRS, Opened};
use crate::handle::Handle;
use crate::registers as r;
use crate::user_code::UserCode;
use crate::vm::SharedVm;
use crate::wake::{Kicker, Waker};
use crate::{KvmError, Share};

/// Frequency of the local APIC's timer, in kHz: the one KVM's interface reports.
const APIC_BUS_KHZ: u32 = 1_000_000;
/// The interpreter executes this many instructions at most before KVM tries again.
const CARRY_LIMIT: u64 = 10_000;
/// Instructions between two looks whether the guest has entered user mode.
const CARRY_STEP: u64 = 32;
/// A difference of the TSC, in nanoseconds, that is corrected when the vCPU goes on.
const TSC_TOLERANCE_NS: u64 = 50_000;
/// TSCs of two vCPUs that differ by no more, in nanoseconds, are meant to be the same.
const TSC_SAME_NS: u64 = 2 * TSC_TOLERANCE_NS;

/// A TSC frequency that is off by less than one part in this many needs no scaling.
const TSC_FRACTION: u32 = 2_000;

/// Who has the guest's state.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Carrier,
    Kernel,
}

/// Why KVM cannot go on after an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handover {
    /// The next instruction failed, or is not for KVM.
    Carry {
        /// How many instructions the interpreter executes at most.
        limit: u64,
    },
    /// A triple fault.
    Shutdown,
}

impl Handover {
    /// After an instruction that KVM cannot execute: others of its kind will follow.
    pub(crate) const FAILED: Self = Self::Carry { limit: CARRY_LIMIT };
    /// One instruction.
    pub(crate) const ONE: Self = Self::Carry { limit: 1 };
}

/// What happened so far.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) runs: u64,
    pub(crate) ports: u64,
    pub(crate) mmio: u64,
    pub(crate) msrs: u64,
    pub(crate) halts: u64,
    pub(crate) windows: u64,
    pub(crate) signals: u64,
    pub(crate) interrupts: u64,
    pub(crate) failures: u64,
    pub(crate) entry_failures: u64,
    pub(crate) visits: u64,
    pub(crate) flushes: u64,
}

/// A vCPU on KVM, with an interpreter that executes what KVM does not.
pub struct KvmVcpu {
    pub(crate) handle: Handle,
    pub(crate) vm: Arc<SharedVm>,
    /// As of when this vCPU has dropped decoded code last.
    rounds: u64,
    /// How much of the VM's lead its TSC has.
    lead: u64,
    /// KVM has executed HLT, and nothing has ended it yet.
    pub(crate) halted: bool,
    /// Somebody has asked for the end of the next HLT.
    pub(crate) woken: bool,
    /// An NMI was handed to the kernel since it ran last.
    pub(crate) nmi_posted: bool,
    pub(crate) index: u32,
    pub(crate) mailbox: Arc<Mailbox>,
    /// Executes, and has the state, while `place` says so; it owns the mailbox then.
    pub(crate) carrier: InterpreterVcpu,
    pub(crate) place: Place,
    /// Where KVM executes nothing but user code.
    pub(crate) user: Option<UserCode>,
    /// The interpreter may have changed page tables since KVM executed.
    pub(crate) tables_stale: bool,
    /// What was last loaded into the kernel; the parts that KVM does not have are in force.
    kept: VcpuState,
    /// In force while the state is in the kernel.
    pub(crate) apic: LocalApic,
    pub(crate) waker: Arc<Waker>,
    pub(crate) alarm: Alarm,
    pub(crate) scale: TscScale,
    /// The MSRs that KVM keeps.
    native: Vec<u32>,
    /// The kernel is in the middle of an instruction, which the next KVM_RUN completes.
    pub(crate) incomplete: bool,
    /// The run page tells whether an interrupt can be taken.
    pub(crate) window_known: bool,
    pub(crate) handover: Option<Handover>,
    /// What a bus access asked for.
    pub(crate) stop: Option<StopReason>,
    /// The kernel's TSC has not followed what the guest's should be.
    tsc_stale: bool,
    /// TSC and guest time when `run` ended with the state in the kernel.
    parked: Option<(u64, u64)>,
    budget: Option<u64>,
    /// Somebody debugs: the interpreter executes everything.
    debugged: bool,
    pub(crate) counters: Counters,
}

fn unsupported(missing: &str) -> EngineError {
    EngineError::Unsupported { engine: crate::NAME, missing: missing.to_owned() }
}

impl KvmVcpu {
    /// A vCPU of `vm` in its power-on state.
    pub(crate) fn new(
        mut config: VcpuConfig,
        kvm: &Opened,
        vm: Arc<SharedVm>,
        share: Share,
    ) -> Result<Self, EngineError> {
        if !kvm.is_vendor(config.profile.vendor()) {
            return Err(unsupported("the CPU profile is of another vendor than the host's CPU"));
        }
        let khz = config.profile.tsc_khz();
        let profile = kvm.shown(&config.profile, share);
        let fd =
            vm.fd.create_vcpu(config.apic_id.into()).map_err(KvmError::call("KVM_CREATE_VCPU"))?;
        let host_khz = fd.get_tsc_khz().map_err(KvmError::call("KVM_GET_TSC_KHZ"))?;
        let tsc_fits = khz.abs_diff(host_khz) <= khz / TSC_FRACTION || fd.set_tsc_khz(khz).is_ok();
        if !tsc_fits && share == Share::Everything {
            return Err(unsupported(&format!(
                "the host cannot scale its TSC of {host_khz} kHz to the VM's {khz} kHz"
            )));
        }
        let cpuid = crate::cpuid::entries(&profile, config.apic_id)?;
        fd.set_cpuid2(&cpuid).map_err(KvmError::call("KVM_SET_CPUID2"))?;
        let run_size = vm.fd.run_size();
        config.profile = Arc::new(crate::cpuid::for_carrier(&config.profile, &profile));
        let handle = Handle { fd, run_size };
        let user =
            (share == Share::UserCode).then(|| UserCode::new(&handle, tsc_fits)).transpose()?;
        Self::around(handle, vm, user, config)
    }

    fn around(
        handle: Handle,
        vm: Arc<SharedVm>,
        user: Option<UserCode>,
        config: VcpuConfig,
    ) -> Result<Self, EngineError> {
        let has_aux = config.profile.has(feature::RDTSCP);
        let native = NATIVE_MSRS.into_iter().filter(|n| has_aux || *n != msr::TSC_AUX).collect();
        let khz = |value: u32| NonZeroU32::new(value).unwrap_or(NonZeroU32::MIN);
        let apic = LocalApic::new(LocalApicConfig {
            apic_id: config.apic_id,
            bsp: config.index == 0,
            physical_address_bits: config.profile.physical_bits() as u8,
            tsc_khz: khz(config.profile.tsc_khz()),
            bus_khz: khz(APIC_BUS_KHZ),
        });
        let waker = Arc::new(Waker::default());
        let (theirs, visitor) = (Arc::clone(&waker), Arc::clone(&vm.visitor));
        let wake: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
            theirs.wake();
            visitor.interrupt();
        });
        let alarm = Alarm::new(Arc::clone(&wake)).map_err(|e| EngineError::Host {
            engine: crate::NAME,
            cause: format!("no timer thread: {e}"),
        })?;
        let (index, mailbox) = (config.index, Arc::clone(&config.mailbox));
        let scale = TscScale::new(config.profile.tsc_khz());
        let carrier = InterpreterVcpu::new(config)?;
        carrier.on_wake(wake);
        vm.join(index, carrier.kicker());
        let saved_apic = apic.clone().save(0);
        Ok(Self {
            handle,
            rounds: vm.rounds(),
            lead: vm.lead(),
            halted: false,
            woken: false,
            nmi_posted: false,
            vm,
            user,
            tables_stale: false,
            index,
            mailbox,
            carrier,
            place: Place::Carrier,
            kept: r::blank(saved_apic),
            apic,
            waker,
            alarm,
            scale,
            native,
            incomplete: false,
            window_known: false,
            handover: None,
            stop: None,
            tsc_stale: true,
            parked: None,
            budget: None,
            debugged: false,
            counters: Counters::default(),
        })
    }

    /// Moves the state from the interpreter to the kernel; false when the guest halts or has an
    /// event that only the interpreter delivers.
    fn load(&mut self, bus: &dyn CpuBus) -> Result<bool, EngineError> {
        let state = self.carrier.save(bus)?;
        if state.run_state != RunState::Running || state.events.debug_trap != 0 {
            return Ok(false);
        }
        self.apic
            .restore(&state.apic, state.tsc)
            .map_err(|e| EngineError::BadState(e.to_string()))?;
        self.drop_stale_tables()?;
        self.write_registers(&state)?;
        let adjusted = |s: &VcpuState| s.msrs.iter().find(|m| m.0 == msr::TSC_ADJUST).map(|m| m.1);
        if std::mem::take(&mut self.tsc_stale) || adjusted(&state) != adjusted(&self.kept) {
            self.set_tsc(state.tsc)?;
        }
        self.woken = state.events.woken;
        self.kept = state;
        self.place = Place::Kernel;
        (self.incomplete, self.window_known, self.handover) = (false, false, None);
        self.halted = false;
        Ok(true)
    }

    /// Before KVM executes: it caches the guest's page tables by their place in memory, and unless
    /// the CPU has page tables for guests, it does not see what the interpreter writes to them.
    pub(crate) fn drop_stale_tables(&mut self) -> Result<(), KvmError> {
        if std::mem::take(&mut self.tables_stale) {
            self.counters.flushes += 1;
            self.vm.flush()?;
        }
        Ok(())
    }

    pub(crate) fn write_registers(&self, state: &VcpuState) -> Result<(), KvmError> {
        let fd = &self.handle.fd;
        fd.set_sregs(&r::to_sregs(state)).map_err(KvmError::call("KVM_SET_SREGS"))?;
        fd.set_regs(&r::to_regs(state)).map_err(KvmError::call("KVM_SET_REGS"))?;
        fd.set_xcrs(&r::to_xcrs(state)).map_err(KvmError::call("KVM_SET_XCRS"))?;
        // SAFETY: a guest without dynamically enabled components has an area of 4096 bytes.
        unsafe { fd.set_xsave(&r::to_xsave(state)) }.map_err(KvmError::call("KVM_SET_XSAVE"))?;
        let native: Vec<_> =
            state.msrs.iter().copied().filter(|(n, _)| self.native.contains(n)).collect();
        self.handle.set_msrs(&native)?;
        fd.set_debug_regs(&r::to_debug(state)).map_err(KvmError::call("KVM_SET_DEBUGREGS"))?;
        fd.set_vcpu_events(&r::to_events(&state.events))
            .map_err(KvmError::call("KVM_SET_VCPU_EVENTS"))
    }

    /// The state that the kernel has, without completing an instruction.
    fn read_state(&mut self) -> Result<VcpuState, EngineError> {
        let mut state = self.kept.clone();
        let fd = &self.handle.fd;
        r::from_regs(&fd.get_regs().map_err(KvmError::call("KVM_GET_REGS"))?, &mut state);
        r::from_sregs(&fd.get_sregs().map_err(KvmError::call("KVM_GET_SREGS"))?, &mut state);
        r::from_xcrs(&fd.get_xcrs().map_err(KvmError::call("KVM_GET_XCRS"))?, &mut state);
        r::from_xsave(&fd.get_xsave().map_err(KvmError::call("KVM_GET_XSAVE"))?, &mut state);
        let debug = fd.get_debug_regs().map_err(KvmError::call("KVM_GET_DEBUGREGS"))?;
        r::from_debug(&debug, &mut state);
        let values = self.handle.msrs(&self.native)?;
        for (number, value) in &mut state.msrs {
            if let Some(at) = self.native.iter().position(|native| native == number) {
                *value = values[at];
            }
        }
        state.tsc = self.handle.tsc()?;
        state.apic = self.apic.save(state.tsc);
        state.events.extint = self.mailbox.extint();
        let events = fd.get_vcpu_events().map_err(KvmError::call("KVM_GET_VCPU_EVENTS"))?;
        r::from_events(&events, &mut state);
        state.events.woken = self.woken;
        Ok(state)
    }

    /// Makes the kernel's TSC show `tsc` now, or what the other vCPUs' show if that is nearly it.
    fn set_tsc(&self, tsc: u64) -> Result<(), KvmError> {
        let same = self.scale.ns_to_ticks(TSC_SAME_NS);
        self.handle.set_tsc(tsc, |offset| self.vm.agree(offset, same))
    }

    /// Moves the state from the kernel to the interpreter, at an instruction boundary.
    fn unload(&mut self, bus: &dyn CpuBus) -> Result<(), EngineError> {
        self.complete(bus)?;
        if self.place == Place::Carrier {
            return Ok(());
        }
        let mut state = self.read_state()?;
        if self.handover == Some(Handover::Shutdown) {
            state.run_state = RunState::Shutdown;
        } else if std::mem::take(&mut self.halted) {
            state.run_state = RunState::Halted;
        }
        self.give_to_carrier(&state, bus)
    }

    /// Leaves the instruction that the kernel is in the middle of, an access to an MSR, to the
    /// interpreter.
    pub(crate) fn abandon(&mut self, bus: &dyn CpuBus) -> Result<(), EngineError> {
        let state = self.read_state()?;
        // What the kernel makes of it is overwritten.
        self.handle.page().__bindgen_anon_1.msr.error = 0;
        self.complete(bus)?;
        self.give_to_carrier(&state, bus)?;
        self.handover = Some(Handover::ONE);
        Ok(())
    }

    pub(crate) fn give_to_carrier(
        &mut self,
        state: &VcpuState,
        bus: &dyn CpuBus,
    ) -> Result<(), EngineError> {
        self.carrier.take_over(state, bus)?;
        // Changes to the TSC show as changes to this.
        self.kept = state.clone();
        self.place = Place::Carrier;
        self.alarm.set(None);
        Ok(())
    }

    /// The interpreter executes at most `limit` instructions; more than one only until user mode.
    fn carry(&mut self, bus: &dyn CpuBus, limit: u64) -> Result<Option<VcpuExit>, EngineError> {
        let mut left = limit;
        self.tables_stale |= limit > 1;
        while left != 0 {
            let step = left.min(CARRY_STEP);
            if !self.vm.is_alone() {
                // Another vCPU may write to code meanwhile.
                self.carrier.forget_code();
            }
            self.carrier.set_budget(Some(step));
            match self.carrier.run(bus)? {
                VcpuExit::BudgetSpent => {}
                VcpuExit::Paused if self.waker.take_kick() => return Ok(Some(VcpuExit::Paused)),
                // A kick that was answered already.
                VcpuExit::Paused => continue,
                exit => return Ok(Some(exit)),
            }
            left -= step;
            if limit > 1 && self.carrier.selectors()[seg::CS] & 3 == 3 {
                break;
            }
        }
        Ok(None)
    }

    /// Everything is executed by the interpreter, which counts exactly and serves debuggers.
    fn run_carried(&mut self, bus: &dyn CpuBus) -> Result<Option<VcpuExit>, EngineError> {
        self.tables_stale = true;
        self.carrier.set_budget(self.budget);
        let exit = self.carrier.run(bus)?;
        self.budget = self.carrier.budget();
        if exit == VcpuExit::Paused && !self.waker.take_kick() {
            return Ok(None);
        }
        Ok(Some(exit))
    }

    fn run_until_exit(&mut self, bus: &dyn CpuBus) -> Result<VcpuExit, EngineError> {
        loop {
            self.follow_others(bus);
            if let Some(exit) = self.leave(bus)? {
                return Ok(exit);
            }
            let exit = if self.budget.is_some() || self.debugged {
                if self.place == Place::Kernel {
                    self.unload(bus)?;
                }
                self.handover = None;
                self.run_carried(bus)?
            } else if self.user.is_some() {
                self.run_sharing(bus)?
            } else if let Some(handover) = self.handover {
                if self.place == Place::Kernel {
                    self.unload(bus)?;
                }
                self.handover = None;
                let limit = if let Handover::Carry { limit } = handover { limit } else { 1 };
                self.carry(bus, limit)?
            } else if self.place == Place::Carrier && !self.load(bus)? {
                self.carry(bus, 1)?
            } else if self.halted {
                self.halt(bus)?;
                None
            } else {
                self.enter(bus)?;
                None
            };
            if let Some(exit) = exit {
                return Ok(exit);
            }
        }
    }

    /// Does what follows from other vCPUs' visits to KVM.
    pub(crate) fn follow_others(&mut self, bus: &dyn CpuBus) {
        let rounds = self.vm.rounds();
        if std::mem::replace(&mut self.rounds, rounds) != rounds {
            self.carrier.forget_code();
        }
        let lead = self.vm.lead();
        let ahead = lead.wrapping_sub(std::mem::replace(&mut self.lead, lead));
        if ahead != 0 && self.place == Place::Carrier {
            self.carrier.shift_tsc(ahead, bus);
        }
    }

    /// The VM's lead has become what this vCPU's TSC has.
    pub(crate) fn took_lead(&mut self) {
        self.lead = self.vm.lead();
    }

    /// A reason to leave `run` now; the present instruction is completed then.
    fn leave(&mut self, bus: &dyn CpuBus) -> Result<Option<VcpuExit>, EngineError> {
        let stops = self.stop.is_some();
        if !stops && !self.waker.take_kick() {
            return Ok(None);
        }
        if self.place == Place::Kernel {
            self.complete(bus)?;
        }
        Ok(Some(self.stop.take().map_or(VcpuExit::Paused, VcpuExit::Stop)))
    }

    /// The guest's time has stood, or gone on, while the vCPU was outside `run`: its TSC follows.
    fn resume_time(&mut self, bus: &dyn CpuBus) -> Result<(), EngineError> {
        let Some((tsc, then)) = self.parked.take() else {
            self.tsc_stale = true;
            return Ok(());
        };
        let passed = bus.clock().now().saturating_sub(then);
        let due = tsc.wrapping_add(self.scale.ns_to_ticks(passed));
        let off = due.wrapping_sub(self.handle.tsc()?).cast_signed().unsigned_abs();
        if off > self.scale.ns_to_ticks(TSC_TOLERANCE_NS) {
            self.set_tsc(due)?;
        }
        Ok(())
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self, bus: &dyn CpuBus) -> Result<VcpuExit, EngineError> {
        self.carrier.bind_thread();
        self.carrier.observer().enter(Activity::Interpreter);
        let byte = self.handle.immediate_exit();
        // SAFETY: the byte is valid as long as the handle, which outlives this call.
        let entered = unsafe { self.waker.enter(byte) };
        self.resume_time(bus)?;
        self.begin_user_code(bus)?;
        let exit = self.run_until_exit(bus);
        drop(entered);
        self.alarm.set(None);
        if self.place == Place::Kernel {
            self.parked = Some((self.handle.tsc()?, bus.clock().now()));
        }
        exit
    }

    fn set_budget(&mut self, instructions: Option<u64>) {
        self.budget = instructions;
    }

    fn set_debugging(&mut self, debugging: Debugging) {
        self.debugged = debugging.is_active();
        self.carrier.set_debugging(debugging);
    }

    fn observe(&mut self, observer: Arc<Observer>) {
        self.carrier.observe(observer);
    }

    fn save(&mut self, bus: &dyn CpuBus) -> Result<VcpuState, EngineError> {
        if self.place == Place::Kernel {
            self.resume_time(bus)?;
            self.unload(bus)?;
            if self.handover == Some(Handover::Shutdown) {
                self.handover = None;
            }
        }
        self.carrier.save(bus)
    }

    fn restore(&mut self, state: &VcpuState, bus: &dyn CpuBus) -> Result<(), EngineError> {
        self.carrier.restore(state, bus)?;
        self.carrier.forget_code();
        (self.lead, self.woken, self.halted) = (self.vm.lead(), false, false);
        if self.user.is_none() && self.index != 0 && state.run_state != RunState::WaitForSipi {
            self.vm.met_started_guest();
        }
        if let Some(user) = &mut self.user {
            user.restored(state);
        }
        (self.place, self.handover, self.parked) = (Place::Carrier, None, None);
        (self.incomplete, self.stop, self.tsc_stale) = (false, None, true);
        self.tables_stale = true;
        Ok(())
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::new(Kicker { waker: Arc::clone(&self.waker), carrier: self.carrier.kicker() })
    }

    fn write_log(&self) -> Option<Arc<dyn WriteLog>> {
        Some(Arc::clone(&self.vm) as _)
    }

    fn stats(&self) -> VcpuStats {
        let c = &self.counters;
        VcpuStats {
            instructions: None,
            counters: vec![
                ("kernel_runs", c.runs),
                ("port_exits", c.ports),
                ("mmio_exits", c.mmio),
                ("msr_exits", c.msrs),
                ("halts", c.halts),
                ("interrupt_windows", c.windows),
                ("signals", c.signals),
                ("interrupts", c.interrupts),
                ("emulation_failures", c.failures),
                ("entry_failures", c.entry_failures),
                ("instructions_carried", self.carrier.retired()),
                ("user_code_visits", c.visits),
                ("page_table_flushes", c.flushes),
            ],
            ..VcpuStats::default()
        }
    }
}
