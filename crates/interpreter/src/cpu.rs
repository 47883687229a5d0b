//! The state of one CPU and the few primitives that every instruction uses.
//!
//! [`Cpu`] holds the architectural registers, what is derived from them ([`Cpu::refresh`]), the
//! TLB and the local APIC. Memory access is in `access`, event delivery in `events`, the
//! instructions in `ops`.

use std::hash::RandomState;
use std::sync::Arc;

use device::StopCause;
use engine::{
    CpuBus, CpuProfile, DebugStop, Debugging, Observer, Rendezvous, RunState, Shadow, TscScale,
    Withdrawn,
};
use hostexec::{Executor, FpuState, HostOp, Outcome, Scratch, X87Pointers};
use lapic::{LocalApic, Mailbox};
use memory::GuestRam;
use x86::cr::{cr0, cr4, dr, efer, rflags, xcr0};
use x86::exception::Exception;
use x86::segment::{Segment, TableRegister, seg};

use crate::flags::Flags;
use crate::msrs::Msrs;
use crate::op::Op;
use crate::sharing::Settled;
use crate::tlb::{Mode, Tlb};

/// The machine, as handed to every instruction.
pub(crate) type Bus<'a> = &'a dyn CpuBus;

/// Proof that an exception waits in [`Cpu::raised`]: the instruction ends without effect.
#[derive(Debug)]
pub(crate) struct Raised(());

/// How an instruction ends. `Err` is a fault: RIP goes back to the instruction.
pub(crate) type Step = Result<(), Raised>;

/// Executes one decoded instruction.
pub(crate) type Exec = fn(&mut Cpu, &Op, Bus<'_>) -> Step;

/// Index in [`Cpu::gpr`] of a register that is always zero.
pub(crate) const ZERO: u8 = 16;
/// Index in [`Cpu::gpr`] of RIP; during an instruction it is the address of the next one.
pub(crate) const RIP: u8 = 17;
/// Size of the register array: a power of two, so that masking an index proves it in range.
const REGISTERS: usize = 32;

/// Size of code: what CS.L, CS.D and EFER.LMA make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CodeSize {
    Bits16 = 16,
    Bits32 = 32,
    Bits64 = 64,
}

/// Counters for `--stats`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) exceptions: u64,
    pub(crate) interrupts: u64,
    pub(crate) undefined: u64,
    pub(crate) halts: u64,
    pub(crate) port_accesses: u64,
    pub(crate) mmio_accesses: u64,
    pub(crate) code_writes: u64,
    pub(crate) split_locks: u64,
}

pub(crate) struct Cpu {
    gpr: [u64; REGISTERS],
    pub(crate) flags: Flags,
    /// RFLAGS without the arithmetic flags.
    pub(crate) system_flags: u64,
    pub(crate) segment: [Segment; 6],
    pub(crate) ldtr: Segment,
    pub(crate) tr: Segment,
    pub(crate) gdtr: TableRegister,
    pub(crate) idtr: TableRegister,
    pub(crate) cr0: u64,
    pub(crate) cr2: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) efer: u64,
    pub(crate) xcr0: u64,
    pub(crate) pdptr: [u64; 4],
    pub(crate) dr: [u64; 4],
    pub(crate) dr6: u64,
    pub(crate) dr7: u64,
    pub(crate) fpu: FpuState,
    pub(crate) msrs: Msrs,
    pub(crate) apic: LocalApic,

    // Derived by `refresh`.
    /// Current privilege level: SS.DPL (SDM vol. 3A 5.5).
    pub(crate) cpl: u8,
    pub(crate) code_size: CodeSize,
    pub(crate) mode: Mode,
    pub(crate) paging: paging::Config,
    /// Every access must take the checked way: alignment checks, data breakpoints or a debugger's
    /// watchpoints are on.
    pub(crate) careful: bool,

    // Events.
    pub(crate) raised: Option<Exception>,
    pub(crate) run_state: RunState,
    pub(crate) shadow: Shadow,
    /// DR6 bits of a debug trap that waits for the end of the instruction.
    pub(crate) debug_trap: u64,
    pub(crate) nmi_pending: bool,
    pub(crate) nmi_blocked: bool,
    /// The present or the next HLT ends at once.
    pub(crate) woken: bool,
    /// Something may have to be done at the next instruction boundary.
    pub(crate) attention: bool,
    /// An APIC register was written: an interrupt may have become deliverable.
    pub(crate) apic_changed: bool,
    /// The instruction entered a handler or cleared TF: no single-step trap after it.
    pub(crate) step_suppressed: bool,
    /// The block being executed must be left after this instruction.
    pub(crate) leave_block: bool,
    pub(crate) stop: Option<StopCause>,
    /// What a debugger wants.
    pub(crate) debugger: Debugging,
    /// Something is wanted.
    pub(crate) debugged: bool,
    /// What the debugger is to be told at the next boundary.
    pub(crate) debug_stop: Option<DebugStop>,
    /// An exception could not be delivered at all.
    pub(crate) shutdown: bool,
    /// The instruction is repeated: RIP stays on it though it did not fault (REP, interrupted).
    pub(crate) repeating: bool,
    /// One instruction took as long as many: the clock is to be looked at.
    pub(crate) clock_due: bool,

    // Surroundings.
    pub(crate) index: u32,
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) tlb: Tlb,
    pub(crate) executor: Executor,
    pub(crate) profile: Arc<CpuProfile>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) rendezvous: Arc<Rendezvous>,
    /// What another cache of translations must follow: pages that are watched from now on.
    pub(crate) withdrawn: Withdrawn,
    pub(crate) settled: Settled,
    /// PAUSE instructions executed.
    pub(crate) pauses: u64,
    pub(crate) tsc_scale: TscScale,
    /// Guest TSC minus the scaled clock.
    pub(crate) tsc_offset: u64,
    pub(crate) counters: Counters,
    /// Who is told what the CPU does.
    pub(crate) observer: Arc<Observer>,
    /// Operands of vector instructions on their way to and from the host.
    pub(crate) scratch: Box<Scratch>,
    /// Source of RDRAND and RDSEED.
    pub(crate) entropy: RandomState,
    pub(crate) entropy_counter: u64,
}

impl Cpu {
    /// A CPU in its power-on state (SDM vol. 3A table 10-1).
    pub(crate) fn new(config: engine::VcpuConfig, apic: LocalApic, executor: Executor) -> Self {
        let mut cpu = Self {
            gpr: [0; REGISTERS],
            flags: Flags::default(),
            system_flags: rflags::FIXED,
            segment: [Segment::default(); 6],
            ldtr: Segment::default(),
            tr: Segment::default(),
            gdtr: TableRegister::default(),
            idtr: TableRegister::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: xcr0::X87,
            pdptr: [0; 4],
            dr: [0; 4],
            dr6: dr::DR6_FIXED,
            dr7: dr::DR7_FIXED,
            fpu: FpuState::new(),
            msrs: Msrs::new(&config.profile),
            apic,
            cpl: 0,
            code_size: CodeSize::Bits16,
            mode: Mode::Supervisor,
            paging: paging::Config::default(),
            careful: false,
            raised: None,
            run_state: if config.index == 0 { RunState::Running } else { RunState::WaitForSipi },
            shadow: Shadow::None,
            debug_trap: 0,
            nmi_pending: false,
            nmi_blocked: false,
            woken: false,
            attention: true,
            apic_changed: false,
            step_suppressed: false,
            leave_block: false,
            stop: None,
            debugger: Debugging::default(),
            debugged: false,
            debug_stop: None,
            shutdown: false,
            repeating: false,
            clock_due: false,
            index: config.index,
            ram: config.ram,
            tlb: Tlb::new(),
            executor,
            tsc_scale: TscScale::new(config.profile.tsc_khz()),
            profile: config.profile,
            mailbox: config.mailbox,
            rendezvous: config.rendezvous,
            withdrawn: Withdrawn::default(),
            settled: Settled::new(),
            pauses: 0,
            tsc_offset: 0,
            counters: Counters::default(),
            observer: Arc::default(),
            scratch: Box::new(Scratch::new()),
            entropy: RandomState::new(),
            entropy_counter: 0,
        };
        cpu.reset_registers();
        cpu
    }

    /// Registers as after RESET or INIT, except what INIT keeps.
    pub(crate) fn reset_registers(&mut self) {
        self.gpr = [0; REGISTERS];
        // Family, model and stepping of CPUID.1:EAX.
        self.gpr[x86::gpr::RDX] = u64::from(self.profile.cpuid(1, 0).eax);
        self.set_rip(0xfff0);
        self.flags = Flags::unpack(0);
        self.system_flags = rflags::FIXED;
        let data = Segment { selector: 0, base: 0, limit: 0xffff, attributes: 0x93 };
        self.segment = [data; 6];
        self.segment[seg::CS] =
            Segment { selector: 0xf000, base: 0xffff_0000, limit: 0xffff, attributes: 0x9b };
        self.ldtr = Segment { attributes: 0x82, limit: 0xffff, ..Segment::default() };
        self.tr = Segment { attributes: 0x8b, limit: 0xffff, ..Segment::default() };
        self.gdtr = TableRegister { base: 0, limit: 0xffff };
        self.idtr = TableRegister { base: 0, limit: 0xffff };
        self.cr0 = cr0::ET | cr0::NW | cr0::CD;
        (self.cr2, self.cr3, self.cr4, self.efer) = (0, 0, 0, 0);
        self.dr = [0; 4];
        (self.dr6, self.dr7) = (dr::DR6_FIXED, dr::DR7_FIXED);
        self.raised = None;
        self.shadow = Shadow::None;
        (self.debug_trap, self.nmi_pending, self.nmi_blocked) = (0, false, false);
        self.woken = false;
        self.tlb.flush_all();
        self.refresh();
    }

    /// Derives CPL, code size, access mode and paging from the registers. Call it after any
    /// change of CS, SS, CR0, CR3, CR4, EFER, RFLAGS.AC or DR7.
    pub(crate) fn refresh(&mut self) {
        self.refresh_level();
        self.paging = self.paging_config();
    }

    /// The part of [`Cpu::refresh`] that depends on CS, SS and RFLAGS.
    pub(crate) fn refresh_level(&mut self) {
        let protected = self.cr0 & cr0::PE != 0;
        let virtual_8086 = self.system_flags & rflags::VM != 0;
        self.cpl = match (protected, virtual_8086) {
            (false, _) => 0,
            (true, true) => 3,
            (true, false) => self.segment[seg::SS].dpl(),
        };
        let cs = &self.segment[seg::CS];
        self.code_size = if self.long_mode() && cs.long() {
            CodeSize::Bits64
        } else if cs.big() {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        };
        self.refresh_access();
        self.leave_block = true;
    }

    /// The part of [`Cpu::refresh`] that depends on RFLAGS.AC, CPL, CR0.AM and DR7.
    pub(crate) fn refresh_access(&mut self) {
        let ac = self.system_flags & rflags::AC != 0;
        self.mode = match (self.cpl == 3, ac) {
            (true, _) => Mode::User,
            (false, true) => Mode::SupervisorAc,
            (false, false) => Mode::Supervisor,
        };
        let alignment = self.cpl == 3 && ac && self.cr0 & cr0::AM != 0;
        let watched = self.dr7 & dr::DR7_ENABLES != 0 || !self.debugger.watchpoints.is_empty();
        self.careful = alignment || watched;
    }

    fn paging_config(&self) -> paging::Config {
        let mode = if self.cr0 & cr0::PG == 0 {
            paging::Mode::Off
        } else if self.long_mode() {
            paging::Mode::FourLevel
        } else if self.cr4 & cr4::PAE != 0 {
            paging::Mode::Pae
        } else {
            paging::Mode::Legacy
        };
        paging::Config {
            mode,
            root: self.cr3 & !0xfff & !x86::paging::CR3_NOFLUSH,
            pdptr: self.pdptr,
            wp: self.cr0 & cr0::WP != 0,
            nxe: self.efer & efer::NXE != 0,
            pse: self.cr4 & cr4::PSE != 0,
            pge: self.cr4 & cr4::PGE != 0,
            smep: self.cr4 & cr4::SMEP != 0,
            smap: self.cr4 & cr4::SMAP != 0,
            gigabyte_pages: self.profile.has(x86::cpuid::feature::PDPE1GB),
            physical_bits: self.profile.physical_bits(),
        }
    }

    /// EFER.LMA.
    #[inline]
    pub(crate) fn long_mode(&self) -> bool {
        self.efer & efer::LMA != 0
    }

    /// 64-bit code is executing.
    #[inline]
    pub(crate) fn is_64bit(&self) -> bool {
        self.code_size == CodeSize::Bits64
    }

    /// 32-bit code in protected mode, also under a 64-bit kernel, whose offsets are linear
    /// addresses: CS, SS, DS and ES are 4 GiB at address 0, the stack and data writable.
    #[inline]
    pub(crate) fn has_flat_32bit_code(&self) -> bool {
        let is_flat =
            |index: usize| self.segment[index].spans_all() && self.segment[index].base == 0;
        let cs = &self.segment[seg::CS];
        self.code_size == CodeSize::Bits32
            && self.protected_mode()
            && (cs.base, cs.limit) == (0, 0xffff_ffff)
            && is_flat(seg::SS)
            && self.segment[seg::SS].big()
            && is_flat(seg::DS)
            && is_flat(seg::ES)
    }

    /// Code of a kind that a translator takes: 64-bit, or flat 32-bit.
    #[inline]
    pub(crate) fn is_translatable(&self) -> bool {
        self.is_64bit() || self.has_flat_32bit_code()
    }

    /// CR0.PE is set and RFLAGS.VM is not.
    #[inline]
    pub(crate) fn protected_mode(&self) -> bool {
        self.cr0 & cr0::PE != 0 && self.system_flags & rflags::VM == 0
    }

    /// Virtual-8086 mode: CR0.PE and RFLAGS.VM are set.
    #[inline]
    pub(crate) fn virtual_8086(&self) -> bool {
        self.cr0 & cr0::PE != 0 && self.system_flags & rflags::VM != 0
    }

    /// The register `index`: 0 to 15 as encoded, [`ZERO`] or [`RIP`].
    #[inline(always)]
    pub(crate) fn reg(&self, index: u8) -> u64 {
        self.gpr[usize::from(index) % REGISTERS]
    }

    /// Sets all 64 bits of a register.
    #[inline(always)]
    pub(crate) fn set_reg(&mut self, index: u8, value: u64) {
        self.gpr[usize::from(index) % REGISTERS] = value;
    }

    /// The sixteen general registers.
    pub(crate) fn general(&self) -> [u64; 16] {
        std::array::from_fn(|i| self.gpr[i])
    }

    /// Replaces the sixteen general registers.
    pub(crate) fn set_general(&mut self, gpr: &[u64; 16]) {
        self.gpr[..16].copy_from_slice(gpr);
    }

    /// Runs a native stub on the registers and the scratch buffer.
    #[inline]
    pub(crate) fn run_stub(
        &mut self,
        stub: &HostOp,
        rflags: &mut u64,
        x87: &X87Pointers,
    ) -> Outcome {
        let Some(gprs) = self.gpr.first_chunk_mut::<16>() else {
            unreachable!("there are more than sixteen registers");
        };
        self.executor.run(stub, &mut self.fpu, gprs, rflags, &mut self.scratch, x87)
    }

    /// RIP: inside an instruction, the address of the next one.
    #[inline(always)]
    pub(crate) fn rip(&self) -> u64 {
        self.reg(RIP)
    }

    #[inline(always)]
    pub(crate) fn set_rip(&mut self, rip: u64) {
        self.set_reg(RIP, rip);
    }

    /// RFLAGS, all bits.
    pub(crate) fn rflags(&self) -> u64 {
        self.system_flags | self.flags.pack()
    }

    /// Replaces RFLAGS as it stands; the caller has masked what may not change.
    pub(crate) fn set_rflags(&mut self, value: u64) {
        self.flags = Flags::unpack(value);
        self.system_flags = value & rflags::ALL & !rflags::ARITHMETIC | rflags::FIXED;
        self.refresh_access();
    }

    /// RFLAGS.IOPL.
    pub(crate) fn iopl(&self) -> u8 {
        (self.system_flags >> 12 & 3) as u8
    }

    /// RFLAGS.IF.
    #[inline]
    pub(crate) fn interrupts_enabled(&self) -> bool {
        self.system_flags & rflags::IF != 0
    }

    /// Ends the instruction with a fault.
    #[cold]
    pub(crate) fn raise(&mut self, exception: Exception) -> Raised {
        self.raised = Some(exception);
        Raised(())
    }

    /// Ends the instruction with a fault, as a result.
    #[cold]
    pub(crate) fn fault<T>(&mut self, exception: Exception) -> Result<T, Raised> {
        Err(self.raise(exception))
    }

    /// Raises #GP(0) unless `allowed`.
    #[inline]
    pub(crate) fn require(&mut self, allowed: bool) -> Step {
        if allowed { Ok(()) } else { self.fault(Exception::GP0) }
    }

    /// Raises #GP(0) unless CPL is 0.
    #[inline]
    pub(crate) fn require_cpl0(&mut self) -> Step {
        self.require(self.cpl == 0)
    }

    /// Guest TSC now.
    pub(crate) fn tsc(&self, bus: Bus<'_>) -> u64 {
        self.tsc_scale.ns_to_ticks(bus.clock().now()).wrapping_add(self.tsc_offset)
    }

    /// Takes a bus answer: a fault becomes `exception`, a stop is remembered.
    pub(crate) fn take<T>(
        &mut self,
        answer: device::Answer<T>,
        exception: Exception,
    ) -> Result<T, Raised> {
        match answer {
            device::Answer::Done(value) => Ok(value),
            device::Answer::Fault => self.fault(exception),
            device::Answer::StopAfterInstruction(value, cause) => {
                self.stop = Some(cause);
                self.leave_block = true;
                Ok(value)
            }
        }
    }
}
