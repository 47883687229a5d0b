//! Compiling a guest instruction to a native stub, and running it.

use iced_x86::Instruction;

use crate::catalogue::Unit;
use crate::{FpuState, HostExecError};

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
    generation: u64,
    unit: Unit,
}

impl HostOp {
    /// Which enable bits the instruction is subject to.
    #[inline]
    #[must_use]
    pub fn unit(self) -> Unit {
        self.unit
    }

    /// Whether a pending x87 exception is to be raised before the instruction
    /// and its memory accesses. [`Executor::run`] checks again.
    #[inline]
    #[must_use]
    pub fn waits_for_x87(self) -> bool {
        false
    }
}

/// Compiles guest instructions to native stubs and runs them.
///
/// Each vCPU thread has its own; nothing is shared.
#[derive(Debug)]
pub struct Executor {
    generation: u64,
}

impl Executor {
    /// An executor with an empty code buffer of 8 MiB, whose pages cost memory
    /// only when used.
    ///
    /// # Errors
    /// [`HostExecError::CodeBuffer`] if the host gives no executable memory.
    pub fn new() -> Result<Self, HostExecError> {
        Ok(Self { generation: 0 })
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
        let _ = instruction;
        Ok(None)
    }

    /// Forgets all stubs. Running a handle made before panics.
    pub fn reset(&mut self) {
        self.generation += 1;
    }

    /// Executes the instruction.
    ///
    /// `gprs` are the general registers by number (RAX, RCX, RDX, RBX, RSP,
    /// ...). Of `rflags` only the six status flags are read and written.
    ///
    /// # Panics
    /// If `op` is not of this executor or older than the last
    /// [`Executor::reset`].
    #[inline]
    pub fn run(
        &self,
        op: HostOp,
        state: &mut FpuState,
        gprs: &mut [u64; 16],
        rflags: &mut u64,
        scratch: &mut Scratch,
        x87: &X87Pointers,
    ) -> Outcome {
        assert_eq!(op.generation, self.generation, "stale handle of a host instruction");
        let _ = (state, gprs, rflags, scratch, x87);
        Outcome::Done
    }
}
