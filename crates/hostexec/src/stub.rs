//! Emits native stubs.
//!
//! A stub is a function that loads the registers which its instruction uses,
//! executes the instruction, and stores what it wrote:
//!
//! ```text
//! extern "sysv64" fn(rdi: *mut FpuState, rsi: *mut [u64; 16],
//!                    rdx: *mut u64 (rflags), rcx: *mut Scratch) -> u32 (mxcsr)
//! ```
//!
//! Guest vector registers live in the host registers of the same numbers. A
//! general register operand is renamed to RAX, the memory operand becomes `[R8]`,
//! the scratch buffer; `[R9]` takes the flags. Implicit operands RAX, RDX and RCX
//! (PCMPESTRI) keep their places, for which R8 and R9 make room.
//!
//! What the System V ABI wants of a function holds: MXCSR control bits and the
//! x87 control word are the caller's again, the x87 stack is empty, no vector register has
//! a dirty upper half, direction flag and callee-saved registers are untouched.
//! Words below RSP are in the red zone: PUSHFQ uses the first, [`Slot`] the
//! next.
//!
//! On recent CPUs it costs 100 ns to change an exception flag of MXCSR by
//! LDMXCSR, and 30 ns if an instruction sets one. Therefore the guest's MXCSR is
//! loaded with the flags it has, and its flags are left in the host's, where
//! they mean nothing (the ABI preserves the control bits only): usually no
//! flag changes at all.

use iced_x86::{
    Encoder, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register, RflagsBits,
};

use crate::catalogue::{Class, Unit, is_conditional_move};
use crate::state::{offset, xmm_offset, ymm_high_offset};

/// Status flags: CF, PF, AF, ZF, SF and OF.
pub(crate) const STATUS_FLAGS: u32 = 0x8d5;

/// Longest instruction, in bytes.
const MAX_INSTRUCTION: usize = 15;

/// Where the memory operand is.
const MEMORY_BASE: Register = Register::R8;

/// Machine code of one stub. Only this module makes it; see the module's
/// documentation for what it is bound to.
#[derive(Debug)]
pub(crate) struct StubCode {
    bytes: Vec<u8>,
}

impl StubCode {
    /// The code.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// What a stub depends on; equal keys have equal stubs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StubKey {
    instruction: [u8; MAX_INSTRUCTION],
    /// Guest register that RAX stands for.
    gpr: u8,
}

/// A guest instruction made fit for a stub.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The instruction with operands renamed, as 64-bit code.
    instruction: Instruction,
    encoded: [u8; MAX_INSTRUCTION],
    length: usize,
    class: Class,
    /// Guest register that RAX stands for.
    gpr: u8,
    accesses: Accesses,
}

/// Registers that an instruction uses; bit i stands for register i.
#[derive(Debug, Default)]
struct Accesses {
    vector_read: u16,
    vector_written: u16,
    gpr_read: u16,
    gpr_written: u16,
}

impl Plan {
    /// Renames the operands of `instruction`. `None` if it has an operand that
    /// no instruction of this crate has, or that cannot be encoded.
    pub fn new(
        instruction: &Instruction,
        class: Class,
        factory: &mut InstructionInfoFactory,
        encoder: &mut Encoder,
    ) -> Option<Self> {
        let (renamed, gpr) = rename_operands(instruction)?;
        encoder.encode(&renamed, 0).ok()?;
        let bytes = encoder.take_buffer();
        let mut encoded = [0; MAX_INSTRUCTION];
        encoded.get_mut(..bytes.len())?.copy_from_slice(&bytes);
        let accesses = register_accesses(&renamed, factory)?;
        Some(Self {
            instruction: renamed,
            encoded,
            length: bytes.len(),
            class,
            gpr: gpr.unwrap_or(0),
            accesses,
        })
    }

    /// See [`StubKey`].
    pub fn key(&self) -> StubKey {
        StubKey { instruction: self.encoded, gpr: self.gpr }
    }

    /// Whether the instruction writes status flags.
    pub fn writes_flags(&self) -> bool {
        self.instruction.rflags_modified() != RflagsBits::NONE
    }

    /// Emits the stub.
    pub fn emit(&self) -> StubCode {
        let mut out = Assembler { bytes: Vec::with_capacity(160) };
        match self.class.unit() {
            Unit::X87 | Unit::Mmx | Unit::MmxSse => self.emit_x87(&mut out),
            _ => self.emit_vector(&mut out),
        }
        let stub = StubCode { bytes: out.bytes };
        #[cfg(debug_assertions)]
        self.check(&stub);
        stub
    }

    fn is_float(&self) -> bool {
        matches!(self.class, Class::Float(_))
    }

    /// A stub for an SSE or AVX instruction: loads and stores the registers
    /// which it uses.
    fn emit_vector(&self, out: &mut Assembler) {
        let vex = self.class.unit() == Unit::Avx;
        let width = if vex && uses_ymm(&self.instruction) { Width::Ymm } else { Width::Xmm };
        out.free_argument_registers();
        if self.is_float() {
            out.store_mxcsr(Slot::HostMxcsr);
            out.raw(&[0x0f, 0xae, 0x57, offset::MXCSR as u8]); // ldmxcsr [rdi+24]
        }
        // Legacy instructions may leave parts of a destination: load it too.
        let kept = if vex { 0 } else { self.accesses.vector_written };
        for index in bits(self.accesses.vector_read | kept) {
            out.load_vector(index, vex, width);
        }
        self.load_gprs(out);
        out.raw(&self.encoded[..self.length]);
        if self.writes_flags() {
            out.store_flags();
        }
        if self.is_float() {
            out.store_mxcsr(Slot::GuestMxcsr);
        }
        self.store_gprs(out);
        for index in bits(self.accesses.vector_written) {
            out.store_vector(index, vex);
        }
        if vex {
            out.raw(&[0xc5, 0xf8, 0x77]); // vzeroupper
        }
        if self.is_float() {
            out.restore_host_mxcsr();
        }
        out.raw(&[0xc3]); // ret
    }

    /// A stub for an x87 or MMX instruction: exchanges the whole x87 and SSE
    /// state. The caller made sure that no exception is pending, so nothing
    /// traps here; an exception that the instruction raises stays in the
    /// saved state.
    fn emit_x87(&self, out: &mut Assembler) {
        out.free_argument_registers();
        out.store_mxcsr(Slot::HostMxcsr);
        out.raw(&[0xd9, 0x7c, 0x24, Slot::HostControlWord as u8]); // fnstcw [rsp+d8]
        out.raw(&[0x48, 0x0f, 0xae, 0x0f]); // fxrstor64 [rdi]
        if is_conditional_move(self.instruction.code()) || self.writes_flags() {
            out.load_flags();
        }
        self.load_gprs(out);
        out.raw(&self.encoded[..self.length]);
        if self.writes_flags() {
            out.store_flags();
        }
        out.store_mxcsr(Slot::GuestMxcsr);
        self.store_gprs(out);
        out.raw(&[0x48, 0x0f, 0xae, 0x07]); // fxsave64 [rdi]
        out.raw(&[0xdb, 0xe3]); // fninit: drops pending exceptions, empties the stack
        out.raw(&[0xd9, 0x6c, 0x24, Slot::HostControlWord as u8]); // fldcw [rsp+d8]
        out.restore_host_mxcsr();
        out.raw(&[0xc3]); // ret
    }

    fn load_gprs(&self, out: &mut Assembler) {
        for host in bits(self.accesses.gpr_read) {
            out.gpr(0x8b, host, self.guest_gpr(host)); // mov host, [rsi+guest*8]
        }
    }

    fn store_gprs(&self, out: &mut Assembler) {
        for host in bits(self.accesses.gpr_written) {
            out.gpr(0x89, host, self.guest_gpr(host)); // mov [rsi+guest*8], host
        }
    }

    /// Guest register that a host register stands for.
    fn guest_gpr(&self, host: usize) -> usize {
        if host == 0 { usize::from(self.gpr) } else { host }
    }

    /// Decodes the stub again: nothing but valid instructions, the last one
    /// RET, the guest's instruction in it as planned.
    #[cfg(debug_assertions)]
    fn check(&self, stub: &StubCode) {
        use iced_x86::{Code, Decoder, DecoderOptions};
        let mut decoder = Decoder::new(64, &stub.bytes, DecoderOptions::NONE);
        let mut found = false;
        let mut last = Code::INVALID;
        for decoded in &mut decoder {
            assert_ne!(decoded.code(), Code::INVALID, "stub of {:?}", self.instruction);
            let start = decoded.ip() as usize;
            let end = decoded.next_ip() as usize;
            found |= stub.bytes[start..end] == self.encoded[..self.length]
                && decoded.code() == self.instruction.code()
                && (0..decoded.op_count()).all(|i| {
                    decoded.op_kind(i) != OpKind::Register
                        || decoded.op_register(i) == self.instruction.op_register(i)
                });
            last = decoded.code();
        }
        assert!(found, "stub lacks {:?}", self.instruction);
        assert_eq!(last, Code::Retnq, "stub of {:?}", self.instruction);
    }
}

/// The numbers of the set bits.
fn bits(set: u16) -> impl Iterator<Item = usize> {
    (0..16).filter(move |i| set >> i & 1 == 1)
}

/// Gives the instruction the operands of a stub; also returns the guest's
/// general register operand.
fn rename_operands(instruction: &Instruction) -> Option<(Instruction, Option<u8>)> {
    let mut renamed = *instruction;
    renamed.set_code_size(iced_x86::CodeSize::Code64);
    renamed.set_segment_prefix(Register::None);
    renamed.set_has_rep_prefix(false);
    renamed.set_has_repne_prefix(false);
    let mut gpr = None;
    for i in 0..instruction.op_count() {
        match instruction.op_kind(i) {
            OpKind::Register if instruction.op_register(i).is_gpr() => {
                let register = instruction.op_register(i);
                let renamed_register = match register.size() {
                    4 => Register::EAX,
                    8 => Register::RAX,
                    _ => return None,
                };
                if gpr.replace(register.number() as u8).is_some() {
                    return None; // no instruction of this crate has two
                }
                renamed.set_op_register(i, renamed_register);
            }
            OpKind::Memory => {
                renamed.set_memory_base(MEMORY_BASE);
                renamed.set_memory_index(Register::None);
                renamed.set_memory_index_scale(1);
                renamed.set_memory_displacement64(0);
                renamed.set_memory_displ_size(0);
            }
            OpKind::Register | OpKind::Immediate8 | OpKind::Immediate8_2nd => {}
            _ => return None,
        }
    }
    Some((renamed, gpr))
}

/// Registers that the renamed instruction reads and writes. `None` for one
/// that stubs do not handle.
fn register_accesses(
    renamed: &Instruction,
    factory: &mut InstructionInfoFactory,
) -> Option<Accesses> {
    let mut accesses = Accesses::default();
    for used in factory.info(renamed).used_registers() {
        let register = used.register();
        let (read, written) = match used.access() {
            OpAccess::Read | OpAccess::CondRead => (true, false),
            OpAccess::Write => (false, true),
            // Not written is written with what was read.
            OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => (true, true),
            OpAccess::None | OpAccess::NoMemAccess => (false, false),
        };
        let number = register.number();
        let set = |condition: bool| if condition { 1_u16 << number } else { 0 };
        if register.is_vector_register() && number < 16 {
            accesses.vector_read |= set(read);
            accesses.vector_written |= set(written);
        } else if register.is_gpr() && register.full_register() == MEMORY_BASE {
            // The scratch buffer.
        } else if register.is_gpr() && number < 3 {
            accesses.gpr_read |= set(read);
            accesses.gpr_written |= set(written);
        } else if !register.is_mm() && !register.is_st() {
            return None;
        }
    }
    Some(accesses)
}

fn uses_ymm(instruction: &Instruction) -> bool {
    (0..instruction.op_count())
        .any(|i| instruction.op_kind(i) == OpKind::Register && instruction.op_register(i).is_ymm())
}

/// Words in the red zone, as displacements from RSP.
#[derive(Clone, Copy, Debug)]
#[repr(i8)]
enum Slot {
    HostMxcsr = -16,
    GuestMxcsr = -24,
    HostControlWord = -32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Xmm,
    Ymm,
}

/// Emits the instructions around the guest's one. Operand encodings: Intel SDM
/// vol. 2A, 2.1 and 2.3.
struct Assembler {
    bytes: Vec<u8>,
}

impl Assembler {
    fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn disp32(&mut self, value: usize) {
        self.raw(&(value as u32).to_le_bytes());
    }

    /// mov r8, rcx; mov r9, rdx
    fn free_argument_registers(&mut self) {
        self.raw(&[0x49, 0x89, 0xc8, 0x49, 0x89, 0xd1]);
    }

    /// mov between a host register below 8 and `[rsi + guest * 8]`, by `opcode`.
    fn gpr(&mut self, opcode: u8, host: usize, guest: usize) {
        self.raw(&[0x48, opcode, 0x46 | (host as u8) << 3, (guest * 8) as u8]);
    }

    /// stmxcsr `[rsp + slot]`
    fn store_mxcsr(&mut self, slot: Slot) {
        self.raw(&[0x0f, 0xae, 0x5c, 0x24, slot as u8]);
    }

    /// Loads the host's MXCSR with the guest's flags; leaves the guest's in EAX.
    fn restore_host_mxcsr(&mut self) {
        self.raw(&[0x8b, 0x44, 0x24, Slot::GuestMxcsr as u8]); // mov eax, [rsp+d8]
        self.raw(&[0x8b, 0x4c, 0x24, Slot::HostMxcsr as u8]); // mov ecx, [rsp+d8]
        self.raw(&[0x89, 0xc2]); // mov edx, eax
        self.raw(&[0x83, 0xe2, 0x3f]); // and edx, 0x3f
        self.raw(&[0x83, 0xe1, 0xc0]); // and ecx, ~0x3f
        self.raw(&[0x09, 0xd1]); // or ecx, edx
        self.raw(&[0x89, 0x4c, 0x24, Slot::HostMxcsr as u8]); // mov [rsp+d8], ecx
        self.raw(&[0x0f, 0xae, 0x54, 0x24, Slot::HostMxcsr as u8]); // ldmxcsr [rsp+d8]
    }

    /// pushfq; pop `[r9]`
    fn store_flags(&mut self) {
        self.raw(&[0x9c, 0x41, 0x8f, 0x01]);
    }

    /// Loads the guest's status flags.
    fn load_flags(&mut self) {
        self.raw(&[0x41, 0x8b, 0x01]); // mov eax, [r9]
        self.raw(&[0x25]); // and eax, imm32
        self.raw(&STATUS_FLAGS.to_le_bytes());
        self.raw(&[0x50, 0x9d]); // push rax; popfq
    }

    /// Loads a vector register from its two places in the state.
    fn load_vector(&mut self, index: usize, vex: bool, width: Width) {
        self.move_low(0x28, index, vex); // (v)movaps xmm, [low]
        if width == Width::Ymm {
            // vinsertf128 ymm, ymm, [high], 1
            let vvvv = (!index as u8 & 0xf) << 3;
            self.raw(&[0xc4, vex_extension(index) | 0x03, vvvv | 0x05, 0x18, rdi_operand(index)]);
            self.disp32(ymm_high_offset(index));
            self.raw(&[1]);
        }
    }

    /// Stores a vector register. VEX instructions define all 256 bits: those of
    /// 128 bits zero the upper half.
    fn store_vector(&mut self, index: usize, vex: bool) {
        self.move_low(0x29, index, vex); // (v)movaps [low], xmm
        if vex {
            // vextractf128 [high], ymm, 1
            self.raw(&[0xc4, vex_extension(index) | 0x03, 0x7d, 0x19, rdi_operand(index)]);
            self.disp32(ymm_high_offset(index));
            self.raw(&[1]);
        }
    }

    fn move_low(&mut self, opcode: u8, index: usize, vex: bool) {
        if vex {
            let r = if index < 8 { 0x80 } else { 0 };
            self.raw(&[0xc5, r | 0x78, opcode, rdi_operand(index)]);
        } else if index < 8 {
            self.raw(&[0x0f, opcode, rdi_operand(index)]);
        } else {
            self.raw(&[0x44, 0x0f, opcode, rdi_operand(index)]);
        }
        self.disp32(xmm_offset(index));
    }
}

/// ModRM byte for register `index` and memory at `[rdi + disp32]`.
fn rdi_operand(index: usize) -> u8 {
    0x87 | (index as u8 & 7) << 3
}

/// Inverted R, X and B bits of a three-byte VEX prefix.
fn vex_extension(index: usize) -> u8 {
    if index < 8 { 0xe0 } else { 0x60 }
}
