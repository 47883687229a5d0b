//! The interpreter as the other half of a translating engine.
//!
//! A translator executes the common instructions itself and leaves everything else here: events at
//! instruction boundaries, faults, system instructions, whole modes. The registers travel as
//! [`Registers`]; everything else about the CPU stays in the interpreter, which is the one owner
//! of its state. Changes of address translation are recorded ([`InterpreterVcpu::take_tlb_changes`])
//! so that the translator's own tables can follow them.

use std::sync::Arc;

use engine::{CpuBus, RunState, Shadow, VcpuExit};
use hostexec::FpuState;
use memory::RamOffset;
use x86::cr::{cr0, cr4, rflags, xcr0};

use crate::access::{Linear, Place};
use crate::flags::Flags;
use crate::tlb::{Mode, TlbChange, Use};
use crate::vcpu::{InterpreterVcpu, run_ops};

/// The registers that translated code keeps in host registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// The arithmetic flags and DF, at their places in RFLAGS; other bits are zero.
    pub flags: u64,
}

/// Who accesses memory: what decides access rights besides the page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessMode {
    /// CPL 0 to 2.
    Supervisor,
    /// CPL 0 to 2 with RFLAGS.AC set: SMAP is overridden.
    SupervisorAc,
    /// CPL 3.
    User,
}

/// Blocks that are interpreted before the translator follows the changes of address translation.
const LONGEST_RUN: u32 = 1024;

/// The bits of [`Registers::flags`].
pub const CARRIED_FLAGS: u64 = rflags::ARITHMETIC | rflags::DF;

impl InterpreterVcpu {
    /// Becomes the other half of a translator: records changes of address translation, and decodes
    /// only what it executes, since most of what follows is translated.
    pub fn serve_translator(&mut self) {
        self.blocks.longest = 1;
        self.cpu.tlb.changes = Some(vec![TlbChange::All]);
    }

    /// The changes since the last call, in order.
    pub fn take_tlb_changes(&mut self, into: &mut Vec<TlbChange>) {
        if let Some(changes) = &mut self.cpu.tlb.changes {
            into.append(changes);
        }
    }

    /// Whether changes wait to be taken.
    #[inline]
    pub fn has_tlb_changes(&self) -> bool {
        self.cpu.tlb.changes.as_ref().is_some_and(|changes| !changes.is_empty())
    }

    /// The registers now.
    #[inline]
    pub fn registers(&self) -> Registers {
        Registers {
            gpr: self.cpu.general(),
            rip: self.cpu.rip(),
            flags: self.cpu.rflags() & CARRIED_FLAGS,
        }
    }

    /// Replaces the registers.
    #[inline]
    pub fn set_registers(&mut self, registers: &Registers) {
        self.cpu.set_general(&registers.gpr);
        self.cpu.set_rip(registers.rip);
        self.cpu.flags = Flags::unpack(registers.flags);
        self.cpu.system_flags = self.cpu.system_flags & !rflags::DF | registers.flags & rflags::DF;
    }

    /// Serves events at an instruction boundary; `Some` leaves `run`. After `None` the CPU runs.
    #[inline]
    pub fn serve_events(&mut self, bus: &dyn CpuBus) -> Option<VcpuExit> {
        self.boundary(bus)
    }

    /// Whether [`InterpreterVcpu::serve_events`] has something to do besides looking at the clock.
    #[inline]
    pub fn needs_attention(&self) -> bool {
        self.cpu.attention
            || self.cpu.shadow != Shadow::None
            || self.cpu.run_state != RunState::Running
    }

    /// Whether only the interpreter may execute now: not 64-bit code, single-step, breakpoints,
    /// alignment checks, an interrupt shadow.
    #[inline]
    pub fn must_interpret(&self) -> bool {
        !self.cpu.is_64bit()
            || self.cpu.careful
            || self.cpu.steps_singly()
            || self.cpu.shadow != Shadow::None
    }

    /// Executes what [`InterpreterVcpu::must_interpret`] says, serving events in between: one
    /// instruction of 64-bit code, else many blocks. `Some` leaves `run`.
    pub fn interpret(&mut self, bus: &dyn CpuBus) -> Option<VcpuExit> {
        for _ in 0..LONGEST_RUN {
            if self.cpu.is_64bit() {
                self.execute(bus, 1);
                break;
            }
            let left = self.budget.unwrap_or(u64::MAX);
            self.execute(bus, usize::try_from(left).unwrap_or(usize::MAX));
            if let Some(exit) = self.boundary(bus) {
                return Some(exit);
            }
        }
        None
    }

    /// Executes one instruction, or delivers its fault.
    pub fn step(&mut self, bus: &dyn CpuBus) {
        self.execute(bus, 1);
    }

    /// Executes one instruction of 64-bit code, or delivers its fault; gives the address behind it,
    /// when it lies inside one page of RAM. Not for [`InterpreterVcpu::must_interpret`].
    pub fn step_to_next(&mut self, bus: &dyn CpuBus) -> Option<u64> {
        let rip = self.cpu.rip();
        let Some(at) = self.locate_code() else {
            self.step(bus);
            return None;
        };
        let Some(op) = self.blocks.find(&mut self.cpu, at).first() else {
            self.step(bus);
            return None;
        };
        let next = rip.wrapping_add(u64::from(op.len));
        let (executed, _) = run_ops(&mut self.cpu, std::slice::from_ref(op), bus);
        self.count(executed);
        Some(next)
    }

    /// Installs a function that is called, from any thread, whenever the vCPU is to look up: after
    /// a kick, and when something is posted to it. Only the first one counts.
    pub fn on_wake(&self, hook: Arc<dyn Fn() + Send + Sync>) {
        let _ = self.signal.hook.set(hook);
    }

    /// Guest time at which the local APIC's timer fires next, in nanoseconds.
    pub fn timer_deadline_ns(&self, bus: &dyn CpuBus) -> Option<u64> {
        let deadline = self.cpu.apic.deadline()?;
        let now = bus.clock().now();
        let ticks = deadline.saturating_sub(self.cpu.tsc(bus));
        Some(now.saturating_add(self.cpu.tsc_scale.ticks_to_ns(ticks)))
    }

    /// Accounts for instructions that translated code has executed, and lets time pass: the clock
    /// is looked at when enough have.
    pub fn account(&mut self, instructions: u64) {
        self.count(instructions);
    }

    /// Looks at the clock at the next boundary.
    pub fn expire_clock(&mut self) {
        self.next_clock = self.retired;
        self.cpu.attention = true;
    }

    /// Instructions left of the budget.
    pub fn budget(&self) -> Option<u64> {
        self.budget
    }

    /// Where the code at RIP lies in guest RAM; `None` when it must be interpreted (a fault, a
    /// device).
    #[inline]
    pub fn locate_code(&mut self) -> Option<RamOffset> {
        let rip = self.cpu.rip();
        let place = self.cpu.translate(Linear::system(rip), Use::Fetch, self.cpu.mode);
        match place {
            Ok(Place::Ram(at)) => Some(at),
            Ok(Place::Device(_)) => None,
            Err(_) => {
                self.cpu.raised = None;
                None
            }
        }
    }

    /// Where the page of `linear` lies in guest RAM, when the present mode may read (or write) it
    /// and that is known without a walk.
    #[inline]
    pub fn cached_page(&self, linear: u64, write: bool) -> Option<RamOffset> {
        let usage = if write { Use::Write } else { Use::Read };
        self.cpu.tlb.lookup(self.cpu.mode, usage, linear).map(RamOffset)
    }

    /// Who accesses memory now.
    #[inline]
    pub fn access_mode(&self) -> AccessMode {
        match self.cpu.mode {
            Mode::Supervisor => AccessMode::Supervisor,
            Mode::SupervisorAc => AccessMode::SupervisorAc,
            Mode::User => AccessMode::User,
        }
    }

    /// Bases of FS and GS.
    #[inline]
    pub fn segment_bases(&self) -> (u64, u64) {
        use x86::segment::seg;
        (self.cpu.segment[seg::FS].base, self.cpu.segment[seg::GS].base)
    }

    /// Whether SSE and AVX instructions may execute without a fault of their unit, and no SIMD
    /// exception is unmasked.
    pub fn vectors_enabled(&self) -> bool {
        const ALL_MASKED: u32 = 0x1f80;
        let both = xcr0::SSE | xcr0::AVX;
        self.cpu.cr0 & (cr0::EM | cr0::TS) == 0
            && self.cpu.cr4 & (cr4::OSFXSR | cr4::OSXSAVE) == cr4::OSFXSR | cr4::OSXSAVE
            && self.cpu.xcr0 & both == both
            && self.cpu.fpu.mxcsr() & ALL_MASKED == ALL_MASKED
    }

    /// The vector and x87 registers.
    #[inline]
    pub fn fpu_mut(&mut self) -> &mut FpuState {
        &mut self.cpu.fpu
    }

    /// Whether the CPU profile has every feature that `instruction` needs.
    pub fn offers(&self, instruction: &iced_x86::Instruction) -> bool {
        crate::features::offered(&self.cpu.profile, instruction)
    }
}
