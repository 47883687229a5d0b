//! Compiling a guest instruction to a native stub, and running it.
//!
//! The stub does what the hardware does with all exceptions masked. This
//! module adds what differs with unmasked ones, which is rare and may be slow:
//! SSE exceptions (Intel SDM vol. 1, 11.5) and x87 stores that do not happen.

use std::collections::HashMap;
use std::fmt;

use iced_x86::{Encoder, Instruction, InstructionInfoFactory, Mnemonic};

use crate::catalogue::{
    Class, MemoryOperand, Unit, alignment_required, checked_alignment, classify, memory_operand,
};
use crate::code_buffer::{CodeBuffer, Stub};
use crate::control::Control;
use crate::state::{MXCSR_MASK, bytes_at, offset};
use crate::stub::{Plan, STATUS_FLAGS, StubKey};
use crate::{FpuState, HostExecError};

/// Size of the code buffer: at some 80 bytes for a stub, 100,000 different
/// instructions, more than any program has.
const CODE_SIZE: usize = 8 << 20;

/// MXCSR exception flags, in the order of bits 0 to 5.
mod flag {
    /// Invalid operation, denormal operand and division by zero: found before
    /// the computation.
    pub const BEFORE: u32 = 0x07;
    pub const UNDERFLOW: u32 = 0x10;
    pub const ALL: u32 = 0x3f;
}

/// Distance of an exception's mask bit from its flag bit in MXCSR.
const MASK_SHIFT: u32 = 7;
/// All mask bits of MXCSR.
const ALL_MASKED: u32 = flag::ALL << MASK_SHIFT;
/// Flush-to-zero bit of MXCSR.
const FLUSH_TO_ZERO: u32 = 0x8000;

/// Memory operands on their way between guest memory and a stub.
///
/// Large enough for every memory operand of this crate (FXSAVE: 512 bytes) and
/// aligned so that no operand is ever misaligned.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Scratch {
    /// The operand, from its lowest address.
    pub bytes: [u8; 512],
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Scratch {
    /// All zero.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: [0; 512] }
    }
}

/// What x87 instructions leave behind about themselves. The default will do
/// for instructions whose [`HostOp::unit`] is not [`Unit::X87`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct X87Pointers {
    /// Offset of the instruction in its code segment (RIP of its first byte).
    pub rip: u64,
    /// Offset of the memory operand in its segment; unused without one.
    pub data: u64,
    /// Low three bits of the first opcode byte, then the ModRM byte
    /// ([`X87Pointers::opcode_of`]).
    pub opcode: u16,
    /// The CPU is in real or virtual-8086 mode, where FNSTENV and FNSAVE have
    /// another format.
    pub real_mode: bool,
}

impl X87Pointers {
    /// The x87 opcode of an instruction from its bytes: skips prefixes; 0 if
    /// there is no x87 opcode.
    #[must_use]
    pub fn opcode_of(bytes: &[u8]) -> u16 {
        let mut rest = bytes.iter().copied().skip_while(|byte| !(0xd8..=0xdf).contains(byte));
        match (rest.next(), rest.next()) {
            (Some(first), Some(modrm)) => u16::from(first & 7) << 8 | u16::from(modrm),
            _ => 0,
        }
    }
}

/// What became of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// Executed; a written memory operand is in [`Scratch::bytes`].
    Done,
    /// An x87 store raised an unmasked exception: registers are updated and
    /// the exception is pending, but guest memory must not be written.
    DoneWithoutStore,
    /// Raises #XM (#UD if CR4.OSXMMEXCPT is clear). Registers are unchanged but
    /// for the exception flags in MXCSR.
    SimdException,
    /// An earlier x87 exception is pending: raises #MF (or FERR#, with CR0.NE
    /// clear). Nothing is changed.
    X87Pending,
    /// The operand has reserved MXCSR bits: raises #GP(0). Nothing is changed.
    GeneralProtection,
}

/// Handle of a compiled instruction: small, copied freely, valid until
/// [`Executor::reset`] of the executor that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostOp {
    action: Action,
    memory: MemoryOperand,
    unit: Unit,
    /// log2 of the required alignment.
    alignment: u8,
    /// log2 of the alignment for alignment checking.
    checked_alignment: u8,
    writes_flags: bool,
    /// Where VCVTPS2PH puts its result.
    halves: Option<Halves>,
}

/// Half-precision results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Halves {
    /// Vector register, or memory.
    register: Option<u8>,
    count: u8,
}

impl Halves {
    /// The result of `instruction`, if it is VCVTPS2PH.
    fn of(instruction: &Instruction) -> Option<Self> {
        if instruction.mnemonic() != Mnemonic::Vcvtps2ph {
            return None;
        }
        let destination = instruction.op_register(0);
        let register = destination.is_xmm().then(|| destination.number() as u8);
        Some(Self { register, count: if instruction.op_register(1).is_ymm() { 8 } else { 4 } })
    }

    /// Whether one of the results is denormal.
    fn any_denormal(self, context: &Context<'_>) -> bool {
        let bytes: [u8; 16] = match self.register {
            Some(register) => context.state.xmm(usize::from(register)).to_le_bytes(),
            None => bytes_at(&context.scratch.bytes, 0),
        };
        bytes.chunks_exact(2).take(usize::from(self.count)).any(|half| {
            let half = u16::from_le_bytes([half[0], half[1]]);
            half & 0x7c00 == 0 && half & 0x03ff != 0
        })
    }
}

/// How an instruction is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Control(Control),
    /// SSE or AVX without MXCSR.
    Exact(Stub),
    /// SSE or AVX with MXCSR.
    Float(Stub),
    /// x87 and MMX without MXCSR.
    X87(Stub),
    /// SSE with MMX operands and with MXCSR.
    X87Float(Stub),
}

impl HostOp {
    /// Which enable bits the instruction is subject to.
    #[inline]
    #[must_use]
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// The memory operand, as [`memory_operand`] says.
    #[inline]
    #[must_use]
    pub fn memory(&self) -> MemoryOperand {
        self.memory
    }

    /// Required alignment of the memory operand in bytes, 1 if there is none;
    /// as [`alignment_required`] says.
    #[inline]
    #[must_use]
    pub fn alignment(&self) -> u64 {
        1 << self.alignment
    }

    /// Alignment of the memory operand in bytes without which #AC is raised while alignment
    /// checking is on; 1 if there is none.
    #[inline]
    #[must_use]
    pub fn checked_alignment(&self) -> u64 {
        1 << self.checked_alignment
    }

    /// Whether the instruction stores a result whose computation can raise exceptions: they come
    /// before the faults of the store, which happens after it has run. x87 stores and VCVTPS2PH.
    #[inline]
    #[must_use]
    pub fn computes_before_store(&self) -> bool {
        self.memory.write
            && (self.halves.is_some()
                || matches!(self.action, Action::X87(_)) && self.unit == Unit::X87)
    }

    /// Whether a pending x87 exception is to be raised before the instruction
    /// and its memory accesses. [`Executor::run`] checks again.
    #[inline]
    #[must_use]
    pub fn waits_for_x87(&self) -> bool {
        match self.action {
            Action::Control(control) => control.waits_for_x87(),
            _ => self.uses_x87_registers(),
        }
    }

    /// Whether the stub exchanges the whole x87 state.
    fn uses_x87_registers(&self) -> bool {
        matches!(self.action, Action::X87(_) | Action::X87Float(_))
    }
}

/// The guest's registers and the operand, as a stub gets them.
struct Context<'a> {
    state: &'a mut FpuState,
    gprs: &'a mut [u64; 16],
    rflags: &'a mut u64,
    scratch: &'a mut Scratch,
}

/// Compiles guest instructions to native stubs and runs them.
///
/// Each vCPU thread has its own; nothing is shared.
pub struct Executor {
    code: CodeBuffer,
    stubs: HashMap<StubKey, Stub>,
    factory: InstructionInfoFactory,
    encoder: Encoder,
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor")
            .field("code", &self.code)
            .field("stubs", &self.stubs.len())
            .finish_non_exhaustive()
    }
}

impl Executor {
    /// An executor with an empty code buffer of 8 MiB, whose pages cost memory
    /// only when used.
    ///
    /// # Errors
    /// [`HostExecError::CodeBuffer`] if the host gives no executable memory.
    pub fn new() -> Result<Self, HostExecError> {
        Self::with_code_size(CODE_SIZE)
    }

    /// With another size of the code buffer, a multiple of the page size.
    fn with_code_size(size: usize) -> Result<Self, HostExecError> {
        Ok(Self {
            code: CodeBuffer::new(size)?,
            stubs: HashMap::new(),
            factory: InstructionInfoFactory::new(),
            encoder: Encoder::new(64),
        })
    }

    /// Makes a native stub for `instruction`, or finds the one made before.
    /// Decoded for 16, 32 or 64 bits alike.
    ///
    /// `None` if the instruction is not one of this crate's, or the host
    /// lacks it: the guest gets #UD.
    ///
    /// # Errors
    /// [`HostExecError::Full`]: drop all handles, call [`Executor::reset`] and
    /// compile again.
    pub fn compile(&mut self, instruction: &Instruction) -> Result<Option<HostOp>, HostExecError> {
        let Some(class) = classify(instruction) else { return Ok(None) };
        let mut op = HostOp {
            action: Action::Control(Control::Nop),
            memory: memory_operand(instruction),
            unit: class.unit(),
            alignment: alignment_required(instruction).map_or(0, |bytes| bytes.ilog2() as u8),
            checked_alignment: checked_alignment(instruction).ilog2() as u8,
            writes_flags: false,
            halves: Halves::of(instruction),
        };
        if let Class::Control(control) = class {
            op.action = Action::Control(control);
            return Ok(Some(op));
        }
        let plan = Plan::new(instruction, class, &mut self.factory, &mut self.encoder);
        let Some(plan) = plan else {
            debug_assert!(false, "allow-listed but not encodable: {instruction:?}");
            return Ok(None);
        };
        let stub = self.stub(&plan)?;
        op.writes_flags = plan.writes_flags();
        let x87 = matches!(op.unit, Unit::X87 | Unit::Mmx | Unit::MmxSse);
        op.action = match (class, x87) {
            (Class::Float(_), false) => Action::Float(stub),
            (Class::Float(_), true) => Action::X87Float(stub),
            (_, false) => Action::Exact(stub),
            (_, true) => Action::X87(stub),
        };
        Ok(Some(op))
    }

    /// The stub of a plan: the one made before, or a new one.
    fn stub(&mut self, plan: &Plan) -> Result<Stub, HostExecError> {
        if let Some(&stub) = self.stubs.get(&plan.key()) {
            return Ok(stub);
        }
        let stub = self.code.push(&plan.emit())?;
        self.stubs.insert(plan.key(), stub);
        Ok(stub)
    }

    /// Forgets all stubs. Running a handle made before panics, unless it needs
    /// no stub.
    pub fn reset(&mut self) {
        self.code.clear();
        self.stubs.clear();
    }

    /// Executes the instruction.
    ///
    /// `gprs` are the general registers by number (RAX, RCX, RDX, RBX, RSP,
    /// ...). Of `rflags` only the six status flags are read and written.
    ///
    /// While exceptions are unmasked, the flags of an
    /// [`Outcome::SimdException`] deviate from the hardware in two rare cases.
    /// With unmasked overflow or underflow, the precision flag says whether the
    /// masked result would be inexact, not whether rounding with an unbounded
    /// exponent would be. DPPS and DPPD set the flags of all their steps, where
    /// hardware stops at the first step with an unmasked exception.
    ///
    /// # Panics
    /// If `op` is of another executor or older than the last
    /// [`Executor::reset`].
    #[inline]
    pub fn run(
        &self,
        op: &HostOp,
        state: &mut FpuState,
        gprs: &mut [u64; 16],
        rflags: &mut u64,
        scratch: &mut Scratch,
        x87: &X87Pointers,
    ) -> Outcome {
        let mut context = Context { state, gprs, rflags, scratch };
        match op.action {
            Action::Exact(stub) => {
                self.call(op, stub, &mut context);
                Outcome::Done
            }
            Action::Float(stub) if context.state.mxcsr() & ALL_MASKED == ALL_MASKED => {
                let mxcsr = self.call(op, stub, &mut context);
                context.state.put_u32(offset::MXCSR, mxcsr);
                Outcome::Done
            }
            Action::Float(stub) => self.run_unmasked(op, stub, &mut context),
            Action::X87(stub) => self.run_x87(op, stub, &mut context, x87),
            Action::X87Float(stub) => self.run_x87_float(op, stub, &mut context),
            Action::Control(control) => {
                control.run(context.state, context.gprs, context.scratch, x87)
            }
        }
    }

    /// Calls a stub and takes status flags from it if it has any.
    #[inline]
    fn call(&self, op: &HostOp, stub: Stub, context: &mut Context<'_>) -> u32 {
        let mut flags = *context.rflags;
        let mxcsr = self.code.call(stub, context.state, context.gprs, &mut flags, context.scratch);
        if op.writes_flags {
            let status = u64::from(STATUS_FLAGS);
            *context.rflags = (*context.rflags & !status) | (flags & status);
        }
        mxcsr
    }

    /// An SSE or AVX computation while an exception is unmasked: computes as if
    /// all were masked, then looks whether one should not have been.
    #[cold]
    fn run_unmasked(&self, op: &HostOp, stub: Stub, context: &mut Context<'_>) -> Outcome {
        let mxcsr = context.state.mxcsr();
        let unmasked = !(mxcsr >> MASK_SHIFT) & flag::ALL;
        let before = (context.state.clone(), *context.gprs, *context.rflags);
        let attempt = |mxcsr: u32, context: &mut Context<'_>| {
            (*context.state, *context.gprs, *context.rflags) = before.clone();
            context.state.put_u32(offset::MXCSR, (mxcsr | ALL_MASKED) & !flag::ALL);
            let raised = if op.uses_x87_registers() {
                self.call_x87(op, stub, context)
            } else {
                self.call(op, stub, context)
            };
            // Conversions to half precision do not flush.
            let tiny = op.halves.is_some_and(|halves| halves.any_denormal(context));
            let tiny = if tiny { unmasked & flag::UNDERFLOW } else { 0 };
            raised & flag::ALL | tiny
        };
        // Unmasked underflow is raised by tiny results that are exact, masked
        // underflow is not, unless results are flushed to zero. Flushing has no
        // other effect while underflow is unmasked.
        let detect = if unmasked & flag::UNDERFLOW != 0 { mxcsr | FLUSH_TO_ZERO } else { mxcsr };
        let mut raised = attempt(detect, context);
        if raised & unmasked == 0 {
            context.state.put_u32(offset::MXCSR, mxcsr | raised);
            return Outcome::Done;
        }
        if raised & unmasked & flag::BEFORE != 0 {
            raised &= flag::BEFORE;
        } else if unmasked & flag::UNDERFLOW != 0 {
            // The flushed result was inexact; the real one need not be.
            raised = (raised & flag::UNDERFLOW) | attempt(mxcsr & !FLUSH_TO_ZERO, context);
        }
        // Conversions to MMX registers turn to MMX even if they fault.
        let mmx =
            op.uses_x87_registers() && context.state.top() == 0 && context.state.ftw() == 0xff;
        (*context.state, *context.gprs, *context.rflags) = before;
        if mmx {
            context.state.begin_mmx();
        }
        context.state.put_u32(offset::MXCSR, mxcsr | raised);
        Outcome::SimdException
    }

    /// An x87 or MMX instruction.
    fn run_x87(
        &self,
        op: &HostOp,
        stub: Stub,
        context: &mut Context<'_>,
        x87: &X87Pointers,
    ) -> Outcome {
        if context.state.x87_pending() {
            return Outcome::X87Pending;
        }
        let may_trap = context.state.fcw() & 0x3f != 0x3f;
        let stored = if op.unit == Unit::X87 && op.memory.write && may_trap {
            self.call_x87_store(op, stub, context)
        } else {
            self.call_x87(op, stub, context);
            true
        };
        if op.unit == Unit::X87 {
            let state = &mut *context.state;
            let (fop, fdp) = match (state.x87_pending(), op.memory.size != 0) {
                (false, _) => (state.fop(), state.fdp()),
                (true, false) => (x87.opcode, state.fdp()),
                (true, true) => (x87.opcode, x87.data),
            };
            state.set_x87_pointers(fop, x87.rip, fdp);
        }
        if stored { Outcome::Done } else { Outcome::DoneWithoutStore }
    }

    /// Calls a stub that exchanges the whole x87 and SSE state, and puts back
    /// what belongs to the host.
    fn call_x87(&self, op: &HostOp, stub: Stub, context: &mut Context<'_>) -> u32 {
        // The stub must not wait on a pending exception: it would trap. The
        // callers check; this keeps a mistake from killing the process.
        assert!(!context.state.x87_pending(), "x87 exception is pending");
        let state = &context.state;
        let (mxcsr, fop, fip, fdp) = (state.mxcsr(), state.fop(), state.fip(), state.fdp());
        let after = self.call(op, stub, context);
        context.state.put_u32(offset::MXCSR, mxcsr);
        context.state.put_u32(offset::MXCSR_MASK, MXCSR_MASK);
        context.state.set_x87_pointers(fop, fip, fdp);
        after
    }

    /// An x87 store while an exception is unmasked; false if it stored nothing.
    ///
    /// Which exceptions prevent the store depends on the instruction. It stored
    /// if two executions over different bytes leave the same bytes.
    #[cold]
    fn call_x87_store(&self, op: &HostOp, stub: Stub, context: &mut Context<'_>) -> bool {
        let before = context.state.clone();
        context.scratch.bytes[..op.memory.size].fill(0x55);
        self.call_x87(op, stub, context);
        let first = context.scratch.bytes;
        if !context.state.x87_pending() {
            return true;
        }
        *context.state = before;
        context.scratch.bytes[..op.memory.size].fill(0xaa);
        self.call_x87(op, stub, context);
        first == context.scratch.bytes
    }

    /// A conversion between MMX and SSE registers that uses MXCSR.
    fn run_x87_float(&self, op: &HostOp, stub: Stub, context: &mut Context<'_>) -> Outcome {
        if context.state.x87_pending() {
            return Outcome::X87Pending;
        }
        self.run_unmasked(op, stub, context)
    }
}

#[cfg(test)]
mod tests;
