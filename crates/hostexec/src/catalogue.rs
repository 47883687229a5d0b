//! Which instructions this crate takes, and what the caller has to know about
//! each: enable bits, memory operand, alignment.
//!
//! An instruction is taken if its mnemonic is on an allow-list
//! (`catalogue/tables.rs`, or the control instructions of [`crate::control`]),
//! it is not EVEX-encoded, and the host has all CPUID features that it needs.

use iced_x86::{
    Code, CpuidFeature, EncodingKind, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind,
};

use crate::control::Control;

mod tables;

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
    /// SSE, also LDMXCSR and STMXCSR: #UD if CR0.EM or not CR4.OSFXSR, #NM if
    /// CR0.TS.
    Sse,
    /// FXSAVE and FXRSTOR: #NM if CR0.EM or CR0.TS.
    Fxsave,
    /// VEX: #UD unless in protected mode and CR4.OSXSAVE is set and XCR0 has
    /// SSE and AVX; #NM if CR0.TS. (The decoder refuses forbidden prefixes.)
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

/// How an instruction is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// In Rust.
    Control(Control),
    /// By a stub; it neither uses nor changes MXCSR.
    Exact(Unit),
    /// By a stub with the guest's MXCSR.
    Float(Unit),
}

impl Class {
    /// Enable bits and faults of the instruction.
    pub fn unit(self) -> Unit {
        match self {
            Self::Control(control) => control.unit(),
            Self::Exact(unit) | Self::Float(unit) => unit,
        }
    }
}

/// Looks an instruction up in the allow-lists. `None`: not one of this crate's,
/// or not one of this host's.
pub(crate) fn classify(instruction: &Instruction) -> Option<Class> {
    let legacy = match instruction.encoding() {
        EncodingKind::Legacy => true,
        EncodingKind::VEX => false,
        _ => return None,
    };
    if !instruction.cpuid_features().iter().all(|&feature| host_has(feature)) {
        return None;
    }
    if let Some(control) = Control::of(instruction) {
        return Some(Class::Control(control));
    }
    let mnemonic = instruction.mnemonic();
    if mnemonic == Mnemonic::Wait {
        return None;
    }
    let unit = if !legacy { Unit::Avx } else { legacy_unit(instruction) };
    if tables::is_exact_vector(mnemonic) || tables::is_x87_computation(mnemonic) {
        Some(Class::Exact(unit))
    } else if tables::is_float_vector(mnemonic) {
        Some(Class::Float(unit))
    } else {
        None
    }
}

/// The unit of a computation without VEX prefix.
fn legacy_unit(instruction: &Instruction) -> Unit {
    let mnemonic = instruction.mnemonic();
    if tables::is_x87_computation(mnemonic) {
        return Unit::X87;
    }
    match mnemonic {
        // From memory there is no MMX operand: hosts neither wait nor turn to MMX.
        Mnemonic::Cvtpi2ps | Mnemonic::Cvtpi2pd if !has_mm_register(instruction) => Unit::Sse,
        Mnemonic::Cvtpi2ps
        | Mnemonic::Cvtps2pi
        | Mnemonic::Cvttps2pi
        | Mnemonic::Cvtpi2pd
        | Mnemonic::Cvtpd2pi
        | Mnemonic::Cvttpd2pi
        | Mnemonic::Movq2dq
        | Mnemonic::Movdq2q => Unit::MmxSse,
        _ if has_mm_register(instruction) => Unit::Mmx,
        _ => Unit::Sse,
    }
}

fn has_mm_register(instruction: &Instruction) -> bool {
    (0..instruction.op_count())
        .any(|i| instruction.op_kind(i) == OpKind::Register && instruction.op_register(i).is_mm())
}

/// Whether the host has a feature that an instruction needs. Features that no
/// instruction of this crate needs are not asked for, and count as missing.
fn host_has(feature: CpuidFeature) -> bool {
    match feature {
        // Part of x86-64. WAIT has the feature of the 8086.
        CpuidFeature::INTEL8086
        | CpuidFeature::FPU
        | CpuidFeature::FPU287
        | CpuidFeature::FPU387
        | CpuidFeature::CMOV
        | CpuidFeature::FXSR
        | CpuidFeature::MMX
        | CpuidFeature::SSE
        | CpuidFeature::SSE2 => true,
        CpuidFeature::SSE3 => is_x86_feature_detected!("sse3"),
        CpuidFeature::SSSE3 => is_x86_feature_detected!("ssse3"),
        CpuidFeature::SSE4_1 => is_x86_feature_detected!("sse4.1"),
        CpuidFeature::SSE4_2 => is_x86_feature_detected!("sse4.2"),
        CpuidFeature::AES => is_x86_feature_detected!("aes"),
        CpuidFeature::PCLMULQDQ => is_x86_feature_detected!("pclmulqdq"),
        CpuidFeature::SHA => is_x86_feature_detected!("sha"),
        CpuidFeature::AVX => is_x86_feature_detected!("avx"),
        CpuidFeature::AVX2 => is_x86_feature_detected!("avx2"),
        CpuidFeature::FMA => is_x86_feature_detected!("fma"),
        CpuidFeature::F16C => is_x86_feature_detected!("f16c"),
        _ => false,
    }
}

/// The explicit memory operand of an instruction that
/// [`crate::Executor::compile`] takes; all fields false and 0 if it has none.
///
/// Sizes are those of the access: PINSRW 2, MOVHPS 8, CVTPS2PD 8, PCMPISTRI 16,
/// FLD m80 10. FXSAVE counts as a read and a write of 512 bytes, because it
/// leaves part of its area as it was.
#[must_use]
pub fn memory_operand(instruction: &Instruction) -> MemoryOperand {
    let Some(index) = memory_operand_index(instruction) else {
        return MemoryOperand::default();
    };
    let size = instruction.memory_size().size();
    if matches!(instruction.mnemonic(), Mnemonic::Fxsave | Mnemonic::Fxsave64) {
        return MemoryOperand { read: true, write: true, size };
    }
    let mut factory = InstructionInfoFactory::new();
    let access = factory.info(instruction).op_access(index);
    let (read, write) = match access {
        OpAccess::Read | OpAccess::CondRead => (true, false),
        OpAccess::Write | OpAccess::CondWrite => (false, true),
        OpAccess::ReadWrite | OpAccess::ReadCondWrite => (true, true),
        OpAccess::None | OpAccess::NoMemAccess => (false, false),
    };
    MemoryOperand { read, write, size }
}

/// Number of the explicit memory operand.
fn memory_operand_index(instruction: &Instruction) -> Option<u32> {
    (0..instruction.op_count()).find(|&i| instruction.op_kind(i) == OpKind::Memory)
}

/// Alignment in bytes without which the memory operand raises #GP(0), if any:
/// 16 for most legacy SSE operands of 16 bytes and for FXSAVE, 16 or 32 for
/// aligned VEX moves (Intel SDM vol. 1, 4.1.1; vol. 2A, table 2-15). Alignment
/// checking (#AC) is another matter.
#[must_use]
pub fn alignment_required(instruction: &Instruction) -> Option<u32> {
    memory_operand_index(instruction)?;
    let size = instruction.memory_size().size();
    let aligned = match instruction.encoding() {
        EncodingKind::Legacy => legacy_is_aligned(instruction, size),
        EncodingKind::VEX => vex_is_aligned(instruction.mnemonic()),
        _ => false,
    };
    match size {
        512 if aligned => Some(16),
        16 | 32 if aligned => u32::try_from(size).ok(),
        _ => None,
    }
}

/// Alignment in bytes that alignment checking (#AC, Intel SDM vol. 3A, 6.15 table 6-7) asks of the
/// memory operand; 1 if none. Operands of 16 bytes and more are not checked, nor are those of the
/// half-precision conversions (vol. 2A, 2.4.11, exceptions type 11).
pub(crate) fn checked_alignment(instruction: &Instruction) -> u32 {
    if matches!(instruction.mnemonic(), Mnemonic::Vcvtph2ps | Mnemonic::Vcvtps2ph) {
        return 1;
    }
    match memory_operand(instruction).size {
        size @ (2 | 4 | 8) => size as u32,
        10 => 8,
        // The x87 environment and state, with 16- and 32-bit fields.
        14 | 94 => 2,
        28 | 108 => 4,
        _ => 1,
    }
}

fn legacy_is_aligned(instruction: &Instruction, size: usize) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Fxsave | Mnemonic::Fxsave64 | Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => true,
        Mnemonic::Movups
        | Mnemonic::Movupd
        | Mnemonic::Movdqu
        | Mnemonic::Lddqu
        | Mnemonic::Pcmpestri
        | Mnemonic::Pcmpestri64
        | Mnemonic::Pcmpestrm
        | Mnemonic::Pcmpestrm64
        | Mnemonic::Pcmpistri
        | Mnemonic::Pcmpistrm => false,
        // Before SSE there are no operands of 16 bytes.
        mnemonic => {
            size == 16 && (tables::is_exact_vector(mnemonic) || tables::is_float_vector(mnemonic))
        }
    }
}

fn vex_is_aligned(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Vmovaps
            | Mnemonic::Vmovapd
            | Mnemonic::Vmovdqa
            | Mnemonic::Vmovntps
            | Mnemonic::Vmovntpd
            | Mnemonic::Vmovntdq
            | Mnemonic::Vmovntdqa
    )
}

/// Whether an x87 instruction reads status flags from RFLAGS (FCMOVcc).
pub(crate) fn is_conditional_move(code: Code) -> bool {
    matches!(
        code.mnemonic(),
        Mnemonic::Fcmovb
            | Mnemonic::Fcmove
            | Mnemonic::Fcmovbe
            | Mnemonic::Fcmovu
            | Mnemonic::Fcmovnb
            | Mnemonic::Fcmovne
            | Mnemonic::Fcmovnbe
            | Mnemonic::Fcmovnu
    )
}
