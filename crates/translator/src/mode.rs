//! The code that is translated: 64-bit, or 32-bit in flat segments; and what differs between them.
//!
//! 32-bit code is translated as the 64-bit code that does the same. Its registers are the lower
//! halves of those that 64-bit code has, and an instruction of 32 bits does the same to them in
//! both modes; so most instructions only need another encoding ([`prepare`]). What remains is
//! emitted otherwise: addresses, which are computed modulo 2^32, stack slots of 4 bytes, and the
//! bases of FS and GS.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use interpreter::AccessMode;

/// Code that executes, and the rights that it has to memory: everything that is found by a linear
/// address is kept for each of these apart ([`crate::tables`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mode {
    pub(crate) access: AccessMode,
    pub(crate) bits32: bool,
}

/// Code that a block is translated from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CodeMode {
    /// It executes at CPL 3; else at CPL 0.
    pub(crate) user: bool,
    /// It is 32-bit code in flat segments; else 64-bit code.
    pub(crate) bits32: bool,
}

impl Mode {
    pub(crate) fn code(self) -> CodeMode {
        CodeMode { user: self.access == AccessMode::User, bits32: self.bits32 }
    }

    /// Whether code at `linear` may be translated. The last page of 32-bit addresses is the
    /// interpreter's, where code that goes on behind it would come to address 0.
    pub(crate) const fn translates(self, linear: u64) -> bool {
        !self.bits32 || linear < 0xffff_f000
    }

    /// Whether `linear` is an address that its instructions can have.
    pub(crate) const fn reaches(self, linear: u64) -> bool {
        !self.bits32 || linear <= 0xffff_ffff
    }
}

impl CodeMode {
    /// For the decoder.
    pub(crate) const fn bitness(self) -> u32 {
        if self.bits32 { 32 } else { 64 }
    }

    /// Bytes of a stack slot, and of an address in memory.
    pub(crate) const fn word(self) -> u16 {
        if self.bits32 { 4 } else { 8 }
    }
}

/// Rewrites an instruction of 32-bit code as that of 64-bit code which does the same, given its
/// memory operand's address modulo 2^32, and a stack and branches of 32 bits. False: it is left to
/// the interpreter.
pub(crate) fn prepare(instruction: &mut Instruction) -> bool {
    // VZEROUPPER leaves YMM8 to YMM15 alone outside 64-bit mode.
    if matches!(instruction.mnemonic(), Mnemonic::Syscall | Mnemonic::Vzeroupper) {
        return false;
    }
    instruction.set_code(encoding(instruction.code()));
    let has_memory = (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory);
    !has_memory || prepare_memory(instruction)
}

/// The encoding of the same instruction that 64-bit code has.
fn encoding(code: Code) -> Code {
    match code {
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        same => same,
    }
}

fn prepare_memory(instruction: &mut Instruction) -> bool {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let is_absolute = base == Register::None && index == Register::None;
    let is_32bit = |register: Register| register == Register::None || register.is_gpr32();
    let has_16bit_address = is_absolute && instruction.memory_displ_size() == 2;
    if !is_32bit(base) || !is_32bit(index) && !index.is_vector_register() || has_16bit_address {
        return false;
    }
    if instruction.memory_segment() == Register::CS {
        // It may not be readable.
        return false;
    }
    let is_bit_string = matches!(
        instruction.mnemonic(),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    ) && instruction.op1_kind() == OpKind::Register;
    if is_bit_string && matches!(instruction.memory_segment(), Register::FS | Register::GS) {
        return false;
    }
    let displacement = instruction.memory_displacement64() as u32 as i32;
    instruction.set_memory_displacement64(i64::from(displacement) as u64);
    if is_absolute {
        instruction.set_memory_displ_size(8);
    }
    instruction.set_memory_base(widened(base));
    instruction.set_memory_index(widened(index));
    true
}

fn widened(register: Register) -> Register {
    if register.is_gpr32() { register.full_register() } else { register }
}
