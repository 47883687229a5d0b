//! The interpreter as the other half of a translating engine.
//!
//! A translator executes the common instructions itself and leaves everything else here: events at
//! instruction boundaries, faults, system instructions, whole modes. The registers travel as
//! [`Registers`]; everything else about the CPU stays in the interpreter, which is the one owner
//! of its state. Changes of address translation are recorded ([`InterpreterVcpu::take_tlb_changes`])
//! so that the translator's own tables can follow them.

use std::sync::Arc;

use engine::{CpuBus, RunState, Shadow, VcpuExit, Withdrawn};
use hostexec::FpuState;
use memory::RamOffset;
use x86::cr::{cr0, cr4, efer, rflags, xcr0};
use x86::segment::seg;

use crate::access::{Linear, Place};
use crate::decode::{Decoded, MAX_LENGTH};
use crate::flags::Flags;
use crate::op::Op;
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

/// What else translated code changes itself: it follows SYSCALL, SYSRET, SWAPGS, CLI, STI, STAC
/// and CLAC without the interpreter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SystemState {
    /// RFLAGS.IF at its place, or 0.
    pub interrupt_flag: u64,
    /// RFLAGS.AC at its place, or 0.
    pub access_flag: u64,
    /// CPL. A change stands for SYSCALL (to 0) or SYSRET to 64-bit code (to 3).
    pub level: u64,
    /// FS base.
    pub fs_base: u64,
    /// GS base.
    pub gs_base: u64,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
}

/// A decoded instruction that the interpreter keeps for a place that comes to it often.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    index: u32,
    generation: u32,
}

/// An instruction kept, with the bytes that it was decoded from.
pub(crate) struct KeptOp {
    op: Op,
    code: [u8; MAX_LENGTH],
}

impl Kept {
    /// Not decoded yet.
    pub const NONE: Self = Self { index: u32::MAX, generation: 0 };
}

/// A page that an access reaches.
#[derive(Clone, Copy, Debug)]
pub struct FoundPage {
    /// Where it lies in guest RAM.
    pub ram: RamOffset,
    /// Its translation is global: it survives a change of the address space.
    pub global: bool,
}

/// Most instructions kept at a time; then all are decoded anew.
const MOST_KEPT: usize = 1 << 18;

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
        // RF is clear behind every instruction (SDM vol. 3B 18.3.1.1).
        let kept = self.cpu.system_flags & !(rflags::DF | rflags::RF);
        self.cpu.system_flags = kept | registers.flags & rflags::DF;
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

    /// Whether only the interpreter may execute now: code that is neither 64-bit nor flat 32-bit
    /// code ([`InterpreterVcpu::has_64bit_code`] tells which), single-step, breakpoints, alignment
    /// checks, an interrupt shadow, a debugger.
    #[inline]
    pub fn must_interpret(&self) -> bool {
        !self.cpu.is_translatable()
            || self.cpu.careful
            || self.cpu.debugged
            || self.cpu.steps_singly()
            || self.cpu.shadow != Shadow::None
            || self.cpu.system_flags & rflags::DF != 0
            || !matches!(self.cpu.cpl, 0 | 3)
    }

    /// Whether 64-bit code executes now.
    #[inline]
    pub fn has_64bit_code(&self) -> bool {
        self.cpu.is_64bit()
    }

    /// Executes what [`InterpreterVcpu::must_interpret`] says, serving events in between: one
    /// instruction of code that is else translated; of other code, and for a debugger, many
    /// blocks. `Some` leaves `run`.
    pub fn interpret(&mut self, bus: &dyn CpuBus) -> Option<VcpuExit> {
        for _ in 0..LONGEST_RUN {
            if self.cpu.is_translatable() && !self.cpu.debugged {
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

    /// Executes the instruction at RIP, or delivers its fault. `kept` belongs to this place in the
    /// code, which must lie inside one page of RAM, unchanged since the last time; whether
    /// execution goes on right behind it. Not for [`InterpreterVcpu::must_interpret`].
    pub fn step_kept(&mut self, kept: &mut Kept, bus: &dyn CpuBus) -> bool {
        if !self.is_kept(*kept) {
            match self.keep() {
                Some(fresh) => *kept = fresh,
                None => {
                    self.step(bus);
                    return false;
                }
            }
        }
        self.run_kept(*kept, bus)
    }

    /// The same for an instruction that goes on in the next page, which may have changed.
    pub fn step_straddling(&mut self, kept: &mut Kept, bus: &dyn CpuBus) -> bool {
        let Some(code) = self.straddling_code_at(self.cpu.rip()) else {
            self.step(bus);
            return false;
        };
        if !self.is_kept(*kept) || self.kept[kept.index as usize].code != code {
            let Decoded::Op(op, _) = self.decode_one(&code) else {
                self.step(bus);
                return false;
            };
            *kept = self.add_kept(KeptOp { op, code });
        }
        self.run_kept(*kept, bus)
    }

    /// The bytes at `rip`, from two pages of RAM.
    fn straddling_code_at(&mut self, rip: u64) -> Option<[u8; 15]> {
        let mut code = [0; MAX_LENGTH];
        let first = self.locate_code_at(rip)?;
        let in_page = (4096 - rip % 4096).min(MAX_LENGTH as u64);
        let second = self.locate_code_at(rip.wrapping_add(in_page))?;
        let (head, tail) = code.split_at_mut(in_page as usize);
        self.cpu.ram.read_at(first, head);
        self.cpu.ram.read_at(second, tail);
        Some(code)
    }

    fn run_kept(&mut self, kept: Kept, bus: &dyn CpuBus) -> bool {
        let op = &self.kept[kept.index as usize].op;
        let next = self.cpu.rip().wrapping_add(u64::from(op.len));
        let (executed, completed) = run_ops(&mut self.cpu, std::slice::from_ref(op), bus);
        self.count(executed);
        completed && self.cpu.rip() == next
    }

    fn is_kept(&mut self, kept: Kept) -> bool {
        kept.generation == self.kept_generation() && (kept.index as usize) < self.kept.len()
    }

    /// Changes when native stubs, which kept instructions refer to, have been dropped.
    fn kept_generation(&mut self) -> u32 {
        // Never 0, which is the generation of what has not been decoded.
        let generation = (self.blocks.drops as u32).wrapping_add(self.kept_rounds) | 1 << 31;
        if self.kept_at != generation {
            self.kept.clear();
            self.kept_at = generation;
        }
        generation
    }

    /// Decodes the instruction at RIP; `None` when it is not to be kept.
    fn keep(&mut self) -> Option<Kept> {
        let at = self.locate_code()?;
        let mut code = [0; MAX_LENGTH];
        let len = (4096 - at.0 % 4096).min(MAX_LENGTH as u64) as usize;
        self.cpu.ram.read_at(at, &mut code[..len]);
        let Decoded::Op(op, _) = self.decode_one(&code[..len]) else { return None };
        Some(self.add_kept(KeptOp { op, code }))
    }

    fn add_kept(&mut self, op: KeptOp) -> Kept {
        if self.kept.len() >= MOST_KEPT {
            self.kept.clear();
            self.kept_rounds += 1;
        }
        let generation = self.kept_generation();
        self.kept.push(op);
        Kept { index: self.kept.len() as u32 - 1, generation }
    }

    /// What translated code changes besides the registers.
    #[inline]
    pub fn system(&self) -> SystemState {
        let cpu = &self.cpu;
        SystemState {
            interrupt_flag: cpu.system_flags & rflags::IF,
            access_flag: cpu.system_flags & rflags::AC,
            level: u64::from(cpu.cpl),
            fs_base: cpu.segment[seg::FS].base,
            gs_base: cpu.segment[seg::GS].base,
            kernel_gs_base: cpu.msrs.kernel_gs_base,
        }
    }

    /// Replaces it.
    #[inline]
    pub fn set_system(&mut self, state: &SystemState) {
        let cpu = &mut self.cpu;
        cpu.segment[seg::FS].base = state.fs_base;
        cpu.segment[seg::GS].base = state.gs_base;
        cpu.msrs.kernel_gs_base = state.kernel_gs_base;
        let before = cpu.system_flags;
        let kept = before & !(rflags::IF | rflags::AC);
        cpu.system_flags = kept | state.interrupt_flag | state.access_flag;
        if state.level != u64::from(cpu.cpl) {
            match state.level {
                0 => cpu.enter_syscall_segments(),
                _ => cpu.enter_sysret_segments(),
            }
            cpu.refresh_level();
        } else if (before ^ cpu.system_flags) & rflags::AC != 0 {
            cpu.refresh_access();
        }
    }

    /// RFLAGS without the arithmetic flags, IF and AC: what translated code never changes.
    #[inline]
    pub fn other_flags(&self) -> u64 {
        self.cpu.system_flags & !(rflags::IF | rflags::AC | rflags::RF)
    }

    /// Where SYSCALL goes, when it does no more than clear the arithmetic flags, IF and AC and
    /// change to CPL 0.
    #[inline]
    pub fn plain_syscall(&self) -> Option<u64> {
        const CLEARED: u64 = rflags::ARITHMETIC | rflags::IF | rflags::AC;
        let mask = self.cpu.msrs.sfmask;
        let plain = self.cpu.efer & efer::SCE != 0
            && mask & CLEARED == CLEARED
            && self.other_flags() & mask & !rflags::FIXED == 0
            && x86::is_canonical(self.cpu.msrs.lstar);
        plain.then_some(self.cpu.msrs.lstar)
    }

    /// Selectors of ES, CS, SS, DS, FS and GS.
    #[inline]
    pub fn selectors(&self) -> [u64; 6] {
        self.cpu.segment.map(|segment| u64::from(segment.selector))
    }

    /// Whether FS and GS are 4 GiB of writable data each, at any base: then no access by way of
    /// them is refused in 32-bit code. (Whether one that goes on at offset 0 behind the last byte
    /// is, depends on the CPU: SDM vol. 3A 5.3.)
    #[inline]
    pub fn fs_gs_span_all(&self) -> [bool; 2] {
        [seg::FS, seg::GS].map(|index| self.cpu.segment[index].spans_all())
    }

    /// Whether RDFSBASE and its like are enabled.
    #[inline]
    pub fn fsgsbase_enabled(&self) -> bool {
        self.cpu.cr4 & cr4::FSGSBASE != 0
    }

    /// Whether SYSRET is enabled.
    #[inline]
    pub fn sysret_enabled(&self) -> bool {
        self.cpu.efer & efer::SCE != 0
    }

    /// Whether the page of `linear`, which the present mode has reached last, is global.
    #[inline]
    pub fn is_global(&self, linear: u64) -> bool {
        self.cpu.tlb.is_global(self.cpu.mode, linear)
    }

    /// Where the page of `linear` lies in guest RAM, when the present mode may access it so; walks
    /// the page tables, and sets accessed and dirty bits, as the access itself would.
    #[inline]
    pub fn data_page(&mut self, linear: u64, write: bool) -> Option<FoundPage> {
        let usage = if write { Use::Write } else { Use::Read };
        match self.cpu.translate(Linear::system(linear), usage, self.cpu.mode) {
            Ok(Place::Ram(at)) => Some(FoundPage {
                ram: RamOffset(at.0 & !0xfff),
                global: self.cpu.tlb.is_global(self.cpu.mode, linear),
            }),
            Ok(Place::Device(_)) => None,
            Err(_) => {
                self.cpu.raised = None;
                None
            }
        }
    }

    /// Installs a function that is called, from any thread, whenever the vCPU is to look up: after
    /// a kick, and when something is posted to it. Only the first one counts.
    pub fn on_wake(&self, hook: Arc<dyn Fn() + Send + Sync>) {
        let _ = self.signal.hook.set(hook);
    }

    /// When the local APIC's timer fires next, in ticks of the scaled clock: the same as long as
    /// nobody changes it.
    #[inline]
    pub fn timer_deadline(&self) -> Option<u64> {
        Some(self.cpu.apic.deadline()?.wrapping_sub(self.cpu.tsc_offset))
    }

    /// Nanoseconds from now until the timer fires.
    pub fn timer_distance_ns(&self, bus: &dyn CpuBus) -> Option<u64> {
        let ticks = self.cpu.apic.deadline()?.saturating_sub(self.cpu.tsc(bus));
        Some(self.cpu.tsc_scale.ticks_to_ns(ticks))
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
        self.locate_code_at(self.cpu.rip())
    }

    /// The same for code at `rip`.
    #[inline]
    pub fn locate_code_at(&mut self, rip: u64) -> Option<RamOffset> {
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

    /// The code on the page of `at` is about to be decoded: from now on every vCPU's writes to it
    /// change its code version, which this gives. What that takes from this one is told by
    /// [`InterpreterVcpu::take_withdrawn`].
    pub fn watch_code(&mut self, at: RamOffset) -> u32 {
        self.cpu.watch_code(at)
    }

    /// The pages to which translated code may not write any more without looking at their state,
    /// since the last call. To be asked before it runs.
    #[inline]
    pub fn take_withdrawn(&mut self) -> Option<Withdrawn> {
        (!self.cpu.withdrawn.is_empty()).then(|| std::mem::take(&mut self.cpu.withdrawn))
    }

    /// Whether there are other vCPUs.
    pub fn has_peers(&self) -> bool {
        !self.cpu.rendezvous.is_alone()
    }

    /// Whether the present mode may write to the page of `linear`, as far as that is known without
    /// a walk, which might mark it dirty.
    #[inline]
    pub fn may_write(&self, linear: u64) -> bool {
        self.cpu.tlb.lookup(self.cpu.mode, Use::Write, linear).is_some()
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
