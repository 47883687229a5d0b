//! The allow-list: which instructions may be executed by the host, and how.
//!
//! What is not listed goes to the interpreter, never to the host. Listed instructions depend only
//! on their operands, the status flags and, for vectors, MXCSR.

use iced_x86::{Code, CpuidFeature as C, EncodingKind, Instruction, Mnemonic as M, OpKind};

use crate::elements::{Element, element};
use crate::mode::CodeMode;

/// How an instruction is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// No effect.
    Nothing,
    /// Copied, with registers and memory operand replaced; the memory operand is accessed so.
    General(Access),
    /// Vector instruction, copied alike.
    Vector,
    Lea,
    Div,
    Push,
    Pop,
    Leave,
    Call,
    Ret,
    Jmp,
    Jcc,
    /// JRCXZ with a counter of the width of addresses.
    Jrcxz,
    /// LOOP with such a counter.
    Loop,
    /// A string instruction without a repeat prefix.
    Element(Element),
    /// REP MOVS and REP STOS with addresses of the code's width; operand size 1 << n.
    RepMovs(u8),
    RepStos(u8),
    System(System),
    Special(Special),
    /// By the interpreter.
    Interpret,
}

/// System instructions that are translated, those but SYSCALL and PUSHF only at CPL 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum System {
    Cli,
    Sti,
    Clac,
    Stac,
    Swapgs,
    Pushf,
    Popf,
    Syscall,
    Sysret,
}

/// Instructions that take a few others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    /// BT, BTS, BTR or BTC of a bit string in memory.
    BitString,
    /// CMPXCHG8B or CMPXCHG16B.
    CmpxchgPair,
    ReadBase,
    WriteBase,
    /// MOV from DS, ES, FS or GS.
    FromSelector,
    Fnstcw,
}

/// Access to the memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// How `instruction` is translated; one of 32-bit code is as [`crate::mode::prepare`] makes it.
pub(crate) fn classify(instruction: &Instruction, mode: CodeMode) -> Class {
    let CodeMode { user, bits32 } = mode;
    let slot = i32::from(mode.word());
    if let Some(element) = element(instruction, mode) {
        return Class::Element(element);
    }
    match instruction.mnemonic() {
        M::Movsb | M::Movsw | M::Movsd | M::Movsq | M::Stosb | M::Stosw | M::Stosd | M::Stosq
            if instruction.is_string_instruction() =>
        {
            string(instruction, bits32)
        }
        M::Cli if !user => Class::System(System::Cli),
        M::Sti if !user => Class::System(System::Sti),
        M::Clac if !user => Class::System(System::Clac),
        M::Stac if !user => Class::System(System::Stac),
        M::Swapgs if !user => Class::System(System::Swapgs),
        M::Pushfq | M::Pushfd => Class::System(System::Pushf),
        M::Popfq | M::Popfd if !user => Class::System(System::Popf),
        M::Syscall if user => Class::System(System::Syscall),
        M::Sysretq if !user => Class::System(System::Sysret),
        M::Nop
        | M::Endbr64
        | M::Endbr32
        // DF is clear whenever translated code runs.
        | M::Cld
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchw
        | M::Reservednop => Class::Nothing,
        M::Cmpxchg8b | M::Cmpxchg16b => Class::Special(Special::CmpxchgPair),
        M::Rdfsbase | M::Rdgsbase => Class::Special(Special::ReadBase),
        M::Wrfsbase | M::Wrgsbase => Class::Special(Special::WriteBase),
        M::Fnstcw => Class::Special(Special::Fnstcw),
        M::Bt | M::Bts | M::Btr | M::Btc if is_bit_string(instruction) => {
            Class::Special(Special::BitString)
        }
        M::Mov if reads_selector(instruction) => Class::Special(Special::FromSelector),
        M::Lea => Class::Lea,
        M::Div | M::Idiv if operand_bits(instruction, 0) >= 32 => Class::Div,
        M::Push if instruction.stack_pointer_increment() == -slot && !has_segment(instruction) => {
            Class::Push
        }
        M::Pop
            if instruction.stack_pointer_increment() == slot
                && instruction.op0_kind() == OpKind::Register
                && !has_segment(instruction) =>
        {
            Class::Pop
        }
        M::Leave if instruction.stack_pointer_increment() == 0 && is_plain_leave(instruction) => {
            Class::Leave
        }
        M::Call if is_near(instruction) => Class::Call,
        M::Jmp if is_near(instruction) => Class::Jmp,
        M::Ret
            if matches!(
                instruction.code(),
                Code::Retnq | Code::Retnq_imm16 | Code::Retnd | Code::Retnd_imm16
            ) =>
        {
            Class::Ret
        }
        _ if matches!(instruction.code(), Code::Jrcxz_rel8_64 | Code::Jecxz_rel8_32) => {
            Class::Jrcxz
        }
        _ if matches!(instruction.code(), Code::Loop_rel8_64_RCX | Code::Loop_rel8_32_ECX) => {
            Class::Loop
        }
        _ if instruction.is_jcc_short_or_near()
            && matches!(instruction.op0_kind(), OpKind::NearBranch64 | OpKind::NearBranch32) =>
        {
            Class::Jcc
        }
        _ => copied(instruction),
    }
}

/// A register index reaches beyond the memory operand.
fn is_bit_string(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::Memory
        && instruction.op1_kind() == OpKind::Register
        && instruction.op1_register().size() >= 4
}

fn reads_selector(instruction: &Instruction) -> bool {
    use iced_x86::Register as R;
    instruction.op1_kind() == OpKind::Register
        && matches!(instruction.op1_register(), R::DS | R::ES | R::FS | R::GS)
}

/// REP MOVS and REP STOS without a segment and with addresses of the code's width.
fn string(instruction: &Instruction, bits32: bool) -> Class {
    use OpKind as K;
    let (to, from) = (instruction.op0_kind(), instruction.op1_kind());
    // REPNE means the same as REP here, but nobody writes it.
    let plain = instruction.has_rep_prefix()
        && !instruction.has_segment_prefix()
        && to == if bits32 { K::MemoryESEDI } else { K::MemoryESRDI }
        && match bits32 {
            false => matches!(from, K::MemorySegRSI | K::Register),
            true => matches!(from, K::MemorySegESI | K::Register),
        };
    let log = instruction.memory_size().size().trailing_zeros() as u8;
    match (plain, from) {
        (true, K::Register) => Class::RepStos(log),
        (true, _) => Class::RepMovs(log),
        _ => Class::Interpret,
    }
}

fn is_plain_leave(instruction: &Instruction) -> bool {
    matches!(instruction.code(), Code::Leaveq | Code::Leaved)
}

/// A near branch with a target of the width of addresses.
fn is_near(instruction: &Instruction) -> bool {
    matches!(
        instruction.code(),
        Code::Call_rel32_64
            | Code::Call_rm64
            | Code::Jmp_rel8_64
            | Code::Jmp_rel32_64
            | Code::Jmp_rm64
            | Code::Call_rel32_32
            | Code::Call_rm32
            | Code::Jmp_rel8_32
            | Code::Jmp_rel32_32
            | Code::Jmp_rm32
    )
}

fn has_segment(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::Register && instruction.op0_register().is_segment_register()
}

fn operand_bits(instruction: &Instruction, index: u32) -> usize {
    8 * match instruction.op_kind(index) {
        OpKind::Register => instruction.op_register(index).size(),
        _ => instruction.memory_size().size(),
    }
}

fn copied(instruction: &Instruction) -> Class {
    if let Some(access) = general(instruction) {
        let plain = (0..instruction.op_count()).all(|i| match instruction.op_kind(i) {
            OpKind::Register => instruction.op_register(i).is_gpr(),
            OpKind::Memory => !is_absolute64(instruction),
            OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => true,
            _ => false,
        });
        return if plain { Class::General(access) } else { Class::Interpret };
    }
    if is_vector(instruction) { Class::Vector } else { Class::Interpret }
}

/// MOV with a 64-bit absolute address has an encoding of its own.
fn is_absolute64(instruction: &Instruction) -> bool {
    instruction.mnemonic() == M::Mov
        && instruction.memory_displ_size() == 8
        && instruction.memory_base() == iced_x86::Register::None
        && instruction.memory_index() == iced_x86::Register::None
        && matches!(
            instruction.code(),
            Code::Mov_AL_moffs8
                | Code::Mov_AX_moffs16
                | Code::Mov_EAX_moffs32
                | Code::Mov_RAX_moffs64
                | Code::Mov_moffs8_AL
                | Code::Mov_moffs16_AX
                | Code::Mov_moffs32_EAX
                | Code::Mov_moffs64_RAX
        )
}

/// General instructions that are copied, with how they access a memory operand.
fn general(instruction: &Instruction) -> Option<Access> {
    let first_is_memory = instruction.op_count() > 0 && instruction.op0_kind() == OpKind::Memory;
    let changes_first = if first_is_memory { Access::Write } else { Access::Read };
    Some(match instruction.mnemonic() {
        M::Mov
        | M::Movnti
        | M::Movbe
        | M::Add
        | M::Adc
        | M::Sub
        | M::Sbb
        | M::And
        | M::Or
        | M::Xor
        | M::Inc
        | M::Dec
        | M::Neg
        | M::Not
        | M::Shl
        | M::Sal
        | M::Shr
        | M::Sar
        | M::Rol
        | M::Ror
        | M::Rcl
        | M::Rcr
        | M::Shld
        | M::Shrd => changes_first,
        M::Xadd | M::Cmpxchg | M::Xchg => {
            // XCHG may name its memory operand second.
            let any = (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory);
            if any { Access::Write } else { Access::Read }
        }
        M::Cmp
        | M::Test
        | M::Movzx
        | M::Movsx
        | M::Movsxd
        | M::Imul
        | M::Mul
        | M::Bsf
        | M::Bsr
        | M::Tzcnt
        | M::Lzcnt
        | M::Popcnt
        | M::Andn
        | M::Bextr
        | M::Blsi
        | M::Blsmsk
        | M::Blsr
        | M::Bzhi
        | M::Pdep
        | M::Pext
        | M::Rorx
        | M::Sarx
        | M::Shlx
        | M::Shrx
        | M::Mulx
        | M::Adcx
        | M::Adox
        | M::Crc32
        | M::Bswap
        | M::Cbw
        | M::Cwde
        | M::Cdqe
        | M::Cwd
        | M::Cdq
        | M::Cqo
        | M::Clc
        | M::Stc
        | M::Cmc
        | M::Lahf
        | M::Sahf
        | M::Lfence
        | M::Mfence
        | M::Sfence => Access::Read,
        // A register index reaches beyond the memory operand.
        M::Bt if !first_is_memory || instruction.op1_kind() != OpKind::Register => Access::Read,
        M::Bts | M::Btr | M::Btc
            if !first_is_memory || instruction.op1_kind() != OpKind::Register =>
        {
            changes_first
        }
        _ if is_setcc_or_cmov(instruction) => changes_first,
        _ => return None,
    })
}

/// What the memory operand's address must be a multiple of, so that the host locks no more than a
/// cache line: its size when the access is atomic (LOCK, XCHG), else 1.
pub(crate) fn atomic_alignment(instruction: &Instruction) -> u8 {
    let exchanges = instruction.mnemonic() == M::Xchg;
    if exchanges || instruction.has_lock_prefix() {
        instruction.memory_size().size() as u8
    } else {
        1
    }
}

fn is_setcc_or_cmov(instruction: &Instruction) -> bool {
    let name = instruction.mnemonic();
    matches!(
        name,
        M::Seta
            | M::Setae
            | M::Setb
            | M::Setbe
            | M::Sete
            | M::Setg
            | M::Setge
            | M::Setl
            | M::Setle
            | M::Setne
            | M::Setno
            | M::Setnp
            | M::Setns
            | M::Seto
            | M::Setp
            | M::Sets
            | M::Cmova
            | M::Cmovae
            | M::Cmovb
            | M::Cmovbe
            | M::Cmove
            | M::Cmovg
            | M::Cmovge
            | M::Cmovl
            | M::Cmovle
            | M::Cmovne
            | M::Cmovno
            | M::Cmovnp
            | M::Cmovns
            | M::Cmovo
            | M::Cmovp
            | M::Cmovs
    )
}

/// Vector instructions that are copied: those of the features below whose registers are all
/// vector or general ones, without the special cases.
fn is_vector(instruction: &Instruction) -> bool {
    if !matches!(instruction.encoding(), EncodingKind::Legacy | EncodingKind::VEX) {
        return false;
    }
    let known = |feature: &C| {
        matches!(
            feature,
            C::SSE
                | C::SSE2
                | C::SSE3
                | C::SSSE3
                | C::SSE4_1
                | C::SSE4_2
                | C::AVX
                | C::AVX2
                | C::FMA
                | C::F16C
                | C::AES
                | C::PCLMULQDQ
                | C::SHA
        )
    };
    let features = instruction.cpuid_features();
    let operands = (0..instruction.op_count()).all(|i| match instruction.op_kind(i) {
        OpKind::Register => {
            let register = instruction.op_register(i);
            register.is_xmm() || register.is_ymm() || register.is_gpr()
        }
        OpKind::Memory | OpKind::Immediate8 => true,
        _ => false,
    });
    !features.is_empty() && features.iter().all(known) && operands && !is_special(instruction)
}

/// Whether a vector instruction leaves an index in ECX.
pub(crate) fn gives_index(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        M::Pcmpestri
            | M::Pcmpistri
            | M::Pcmpestri64
            | M::Vpcmpestri
            | M::Vpcmpistri
            | M::Vpcmpestri64
    )
}

/// Control state, element-wise faults, general registers.
fn is_special(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        M::Ldmxcsr
            | M::Stmxcsr
            | M::Vldmxcsr
            | M::Vstmxcsr
            | M::Maskmovdqu
            | M::Vmaskmovdqu
            | M::Vmaskmovps
            | M::Vmaskmovpd
            | M::Vpmaskmovd
            | M::Vpmaskmovq
            | M::Vzeroall
            | M::Movnti
            | M::Crc32
            | M::Popcnt
            | M::Vgatherdpd
            | M::Vgatherdps
            | M::Vgatherqpd
            | M::Vgatherqps
            | M::Vpgatherdd
            | M::Vpgatherdq
            | M::Vpgatherqd
            | M::Vpgatherqq
    )
}
