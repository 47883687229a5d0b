//! Decoding: from bytes of guest code to [`Op`]s.
//!
//! iced-x86 decodes; [`lower`] asks each family of instructions for a handler. What nobody takes,
//! or what the CPU profile does not have, becomes #UD and is counted.

use hostexec::HostExecError;
use iced_x86::{
    Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register,
};
use x86::segment::seg;

use crate::cpu::{CodeSize, Cpu, Exec, RIP, ZERO};
use crate::features;
use crate::fpu;
use crate::op::{Detail, FLAT, HIGH_BYTE, LOCKED, Op, REP, REPNE, STACK};
use crate::ops::{
    alu, bits, control, data, far, flow, legacy, muldiv, segment, shift, stack, string, syscall,
    system,
};

/// Longest instruction (SDM vol. 2A 2.3.11).
pub(crate) const MAX_LENGTH: usize = 15;

/// What came of decoding at an address.
pub(crate) enum Decoded {
    Op(Op, Flow),
    /// The bytes end in the middle of the instruction.
    Truncated,
}

/// Whether the next instruction in memory may be the next one executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    Next,
    Ends,
}

/// Decodes the first instruction of `bytes` (at most 15 are looked at).
///
/// # Errors
/// [`HostExecError::Full`] when native stubs must be dropped first.
pub(crate) fn decode(cpu: &mut Cpu, bytes: &[u8]) -> Result<Decoded, HostExecError> {
    let window = &bytes[..bytes.len().min(MAX_LENGTH)];
    let mut decoder =
        Decoder::new(cpu.code_size as u32, window, features::decoder_options(&cpu.profile));
    let instruction = decoder.decode();
    match decoder.last_error() {
        DecoderError::None => {}
        DecoderError::NoMoreBytes => return Ok(Decoded::Truncated),
        _ if is_too_long(cpu, window) => {
            return Ok(Decoded::Op(Op::bare(system::too_long, MAX_LENGTH), Flow::Ends));
        }
        _ => return Ok(Decoded::Op(Op::bare(system::undefined, 1), Flow::Ends)),
    }
    let op = lower(cpu, &instruction, &window[..instruction.len()])?;
    let flow = match instruction.flow_control() {
        FlowControl::Next => Flow::Next,
        // A branch not taken goes on behind it, but the block is cheaper to find than to check.
        _ => Flow::Ends,
    };
    Ok(Decoded::Op(op, flow))
}

/// Whether what the decoder refused needs more bytes than an instruction may have. The decoder does
/// not tell that from an illegal instruction when it has all 15 bytes; so it gets them again without
/// the prefixes that do not change the length.
fn is_too_long(cpu: &Cpu, window: &[u8]) -> bool {
    if window.len() < MAX_LENGTH {
        return false;
    }
    let is_rex = |byte: u8| cpu.code_size == CodeSize::Bits64 && byte & 0xf0 == 0x40;
    // The last of REPNE and REP selects an opcode.
    let group = |byte: u8| if byte == 0xf2 { 0xf3 } else { byte };
    let selects = |byte: u8| matches!(group(byte), 0x66 | 0x67 | 0xf3);
    let is_inert = |byte: u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0xf0);
    let is_prefix = |byte: u8| is_rex(byte) || selects(byte) || is_inert(byte);
    let count = window.iter().take_while(|byte| is_prefix(**byte)).count();
    let (prefixes, rest) = window.split_at(count);
    let mut condensed: Vec<u8> = Vec::with_capacity(MAX_LENGTH);
    for (index, &prefix) in prefixes.iter().enumerate() {
        let later = &prefixes[index + 1..];
        let again = later.iter().any(|byte| group(*byte) == group(prefix));
        // REX counts only as the last prefix.
        let counts = if is_rex(prefix) { later.is_empty() } else { !again };
        if counts && !is_inert(prefix) {
            condensed.push(prefix);
        }
    }
    condensed.extend(rest);
    // An opcode may be illegal just with a prefix: its length shows without.
    let plain: Vec<u8> = condensed.iter().copied().skip_while(|byte| selects(*byte)).collect();
    match decoder_error(cpu, &condensed) {
        DecoderError::InvalidInstruction => decoder_error(cpu, &plain) == DecoderError::NoMoreBytes,
        error => error == DecoderError::NoMoreBytes,
    }
}

fn decoder_error(cpu: &Cpu, bytes: &[u8]) -> DecoderError {
    let mut decoder = Decoder::new(cpu.code_size as u32, bytes, DecoderOptions::NONE);
    let _ = decoder.decode();
    decoder.last_error()
}

impl Op {
    /// An instruction without operands.
    pub(crate) fn bare(exec: Exec, len: usize) -> Self {
        Self {
            exec,
            imm: 0,
            disp: 0,
            address_mask: u64::MAX,
            detail: None,
            len: len as u8,
            reg: ZERO,
            src: ZERO,
            base: ZERO,
            index: ZERO,
            scale: 0,
            segment: FLAT,
            bits: 0,
        }
    }
}

fn lower(cpu: &mut Cpu, instruction: &Instruction, bytes: &[u8]) -> Result<Op, HostExecError> {
    let mut op = Op::bare(system::undefined, instruction.len());
    if !features::offered(&cpu.profile, instruction) {
        return Ok(op);
    }
    set_prefixes(&mut op, instruction);
    set_registers(&mut op, instruction);
    set_immediate(&mut op, instruction);
    set_memory(&mut op, instruction, cpu.code_size);
    let general = data::lower(instruction, &mut op)
        .or_else(|| alu::lower(instruction))
        .or_else(|| flow::lower(instruction, &mut op, cpu.code_size))
        .or_else(|| stack::lower(instruction, &mut op))
        .or_else(|| shift::lower(instruction, &mut op))
        .or_else(|| bits::lower(instruction, &mut op))
        .or_else(|| string::lower(instruction))
        .or_else(|| muldiv::lower(instruction, &mut op))
        .or_else(|| system_family(instruction, &mut op));
    if let Some(exec) = general {
        op.exec = exec;
        if needs_instruction(instruction) {
            op.detail = Some(Box::new(Detail { instruction: *instruction, vector: None }));
        }
    } else if let Some((exec, vector)) = fpu::lower(cpu, instruction, bytes)? {
        op.exec = exec;
        op.detail = Some(Box::new(Detail { instruction: *instruction, vector }));
    }
    Ok(op)
}

fn system_family(instruction: &Instruction, op: &mut Op) -> Option<Exec> {
    segment::lower(instruction, op)
        .or_else(|| far::lower(instruction, op))
        .or_else(|| syscall::lower(instruction))
        .or_else(|| control::lower(instruction))
        .or_else(|| system::lower(instruction, op))
        .or_else(|| legacy::lower(instruction, op))
}

/// General instructions whose handlers look at the decoded form.
fn needs_instruction(instruction: &Instruction) -> bool {
    instruction.is_jmp_far()
        || instruction.is_call_far()
        || matches!(instruction.mnemonic(), Mnemonic::Lgdt | Mnemonic::Lidt)
}

fn set_prefixes(op: &mut Op, instruction: &Instruction) {
    let locks = instruction.has_lock_prefix()
        || instruction.mnemonic() == Mnemonic::Xchg && instruction.op0_kind() == OpKind::Memory;
    op.bits |= if locks { LOCKED } else { 0 };
    if instruction.is_string_instruction() {
        op.bits |= if instruction.has_rep_prefix() { REP } else { 0 };
        op.bits |= if instruction.has_repne_prefix() { REPNE } else { 0 };
    }
}

/// A register as op fields number it.
fn field(register: Register) -> u8 {
    match register {
        Register::AH => HIGH_BYTE,
        Register::CH => HIGH_BYTE | 1,
        Register::DH => HIGH_BYTE | 2,
        Register::BH => HIGH_BYTE | 3,
        _ if register.is_gpr() => register.full_register().number() as u8,
        _ => register.number() as u8,
    }
}

/// The first register operand is the destination; the second, or the one beside a memory operand
/// that comes first, the source.
fn set_registers(op: &mut Op, instruction: &Instruction) {
    if instruction.op0_kind() == OpKind::Register && instruction.op_count() > 0 {
        op.reg = field(instruction.op0_register());
    }
    if instruction.op_count() > 1 && instruction.op1_kind() == OpKind::Register {
        op.src = field(instruction.op1_register());
    }
}

fn set_immediate(op: &mut Op, instruction: &Instruction) {
    for operand in 0..instruction.op_count() {
        if let Ok(value) = instruction.try_immediate(operand) {
            op.imm = value;
            return;
        }
    }
}

fn set_memory(op: &mut Op, instruction: &Instruction, code: CodeSize) {
    for operand in 0..instruction.op_count() {
        let mask = match instruction.op_kind(operand) {
            OpKind::Memory => {
                set_explicit_memory(op, instruction, code);
                return;
            }
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => u64::MAX,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => 0xffff_ffff,
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => 0xffff,
            _ => continue,
        };
        op.address_mask = mask;
        op.base = x86::gpr::RDI as u8;
        op.segment = segment_field(instruction.memory_segment(), code);
    }
}

fn set_explicit_memory(op: &mut Op, instruction: &Instruction, code: CodeSize) {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let address_register = if base == Register::None { index } else { base };
    let size = if address_register.is_gpr() || address_register.is_ip() {
        address_register.size() as u32
    } else {
        // No general register: the size of the displacement tells, 8-bit ones cannot be.
        instruction.memory_displ_size()
    };
    op.address_mask = match size {
        2 => 0xffff,
        4 => 0xffff_ffff,
        8 => u64::MAX,
        _ => u64::MAX >> (64 - code as u32),
    };
    op.disp = instruction.memory_displacement64();
    if base.is_ip() {
        // iced gives the absolute address; the op must not depend on where it was decoded.
        op.base = RIP;
        op.disp = op.disp.wrapping_sub(instruction.next_ip());
    } else if base != Register::None {
        op.base = base.full_register().number() as u8;
    }
    // XLAT has AL as index, gathers a vector: their handlers add it.
    if index.is_gpr() && index != Register::AL {
        op.index = index.full_register().number() as u8;
        op.scale = instruction.memory_index_scale().trailing_zeros() as u8;
    }
    op.segment = segment_field(instruction.memory_segment(), code);
    let on_stack = matches!(
        base,
        Register::RSP | Register::RBP | Register::ESP | Register::EBP | Register::SP | Register::BP
    );
    if on_stack && op.segment == FLAT {
        op.bits |= STACK;
    }
}

/// In 64-bit code only FS and GS count.
fn segment_field(register: Register, code: CodeSize) -> u8 {
    let number = register.number() as u8;
    let counts = code != CodeSize::Bits64 || usize::from(number) >= seg::FS;
    if counts && register.is_segment_register() { number } else { FLAT }
}
