//! Which instructions this crate takes, and what the caller has to know about
//! each: enable bits, memory operand, alignment.

use iced_x86::Instruction;

/// Enable bits and faults that an instruction is subject to (Intel SDM
/// vol. 2A, 2.4; vol. 3A, 2.5 and 14.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// x87: #NM if CR0.EM or CR0.TS.
    X87,
    /// WAIT: #NM if CR0.MP and CR0.TS.
    Wait,
    /// MMX, also the MMX instructions that came with SSE: #UD if CR0.EM, #NM if
    /// CR0.TS.
    Mmx,
    /// SSE with an MMX operand: as SSE, besides waiting for x87 exceptions.
    MmxSse,
    /// SSE, also FXSAVE's relatives LDMXCSR and STMXCSR: #UD if CR0.EM or not
    /// CR4.OSFXSR, #NM if CR0.TS.
    Sse,
    /// FXSAVE and FXRSTOR: #NM if CR0.EM or CR0.TS.
    Fxsave,
    /// VEX: #UD unless CR4.OSXSAVE and XCR0 has SSE and AVX, in protected mode
    /// and without a LOCK, 66, F2, F3 or REX prefix (iced checks the prefixes);
    /// #NM if CR0.TS.
    Avx,
}

/// The memory operand of an instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryOperand {
    /// The operand is read: copy it to [`crate::Scratch::bytes`] beforehand.
    pub read: bool,
    /// The operand is written: check beforehand that it can be, and copy
    /// [`crate::Scratch::bytes`] to it afterwards.
    pub write: bool,
    /// Bytes that are accessed, 0 to 512.
    pub size: usize,
}

/// The explicit memory operand of an instruction that
/// [`crate::Executor::compile`] takes; all fields false and 0 if it has none.
///
/// Sizes are those of the access: PINSRW 2, MOVHPS 8, CVTPS2PD 8, PCMPISTRI 16,
/// FLD m80 10.
#[must_use]
pub fn memory_operand(instruction: &Instruction) -> MemoryOperand {
    let _ = instruction;
    MemoryOperand::default()
}

/// Alignment in bytes without which the memory operand raises #GP(0), if any:
/// 16 for most legacy SSE operands of 16 bytes and for FXSAVE, 16 or 32 for
/// aligned VEX moves. Alignment checking (#AC) is another matter.
#[must_use]
pub fn alignment_required(instruction: &Instruction) -> Option<u32> {
    let _ = instruction;
    None
}
