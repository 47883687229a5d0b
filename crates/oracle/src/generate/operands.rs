//! Operands by their kinds.

use iced_x86::{Code, Instruction, OpCodeOperandKind as Kind, OpKind, Register};
use x86::gpr;

use super::Builder;
use crate::layout::{FS_BASE, GS_BASE, HIGH, LOW};
use crate::values;

/// Registers of a vector index.
#[derive(Clone, Copy, Debug)]
struct VectorIndex {
    first: Register,
    /// Bytes of an index element.
    element: usize,
}

impl Builder<'_> {
    /// An instruction of this form with operands. `None` when there is no way to give it any.
    pub(super) fn instruction(&mut self, code: Code) -> Option<Instruction> {
        let mut instruction = Instruction::default();
        instruction.set_code(code);
        let kinds = code.op_code().op_kinds();
        for (operand, kind) in kinds.iter().enumerate() {
            self.operand(&mut instruction, operand as u32, *kind)?;
        }
        self.choose_prefixes(&mut instruction);
        self.arrange(&mut instruction);
        Some(instruction)
    }

    fn choose_prefixes(&mut self, instruction: &mut Instruction) {
        let info = instruction.code().op_code();
        let to_memory = info.op_count() > 0 && instruction.op0_kind() == OpKind::Memory;
        if info.can_use_lock_prefix() && (to_memory && self.random.one_in(3)) {
            instruction.set_has_lock_prefix(true);
        }
        let repeat = self.random.below(4);
        if info.can_use_rep_prefix() && repeat < 2 {
            instruction.set_has_rep_prefix(true);
        } else if info.can_use_repne_prefix() && repeat == 2 {
            instruction.set_has_repne_prefix(true);
        }
    }

    fn operand(&mut self, instruction: &mut Instruction, n: u32, kind: Kind) -> Option<()> {
        if let Some(register) = self.register_operand(kind) {
            instruction.set_op_kind(n, OpKind::Register);
            instruction.set_op_register(n, register);
            return Some(());
        }
        if self.immediate_operand(instruction, n, kind) {
            return Some(());
        }
        self.memory_operand(instruction, n, kind)
    }

    /// A register, for the kinds that take one; half the time for those that could be memory.
    fn register_operand(&mut self, kind: Kind) -> Option<Register> {
        if is_register_or_memory(kind) && self.random.percent(55) {
            return None;
        }
        let any = |first: Register, count: u64, builder: &mut Self| {
            Some(first + builder.random.below(count) as u32)
        };
        match kind {
            Kind::r8_or_mem | Kind::r8_reg | Kind::r8_opcode => any(Register::AL, 20, self),
            Kind::r16_or_mem
            | Kind::r16_reg
            | Kind::r16_reg_mem
            | Kind::r16_rm
            | Kind::r16_opcode => any(Register::AX, 16, self),
            Kind::r32_or_mem
            | Kind::r32_reg
            | Kind::r32_reg_mem
            | Kind::r32_rm
            | Kind::r32_opcode
            | Kind::r32_vvvv => any(Register::EAX, 16, self),
            Kind::r64_or_mem
            | Kind::r64_reg
            | Kind::r64_reg_mem
            | Kind::r64_rm
            | Kind::r64_opcode
            | Kind::r64_vvvv => any(Register::RAX, 16, self),
            Kind::mm_or_mem | Kind::mm_reg | Kind::mm_rm => any(Register::MM0, 8, self),
            Kind::xmm_or_mem
            | Kind::xmm_reg
            | Kind::xmm_rm
            | Kind::xmm_vvvv
            | Kind::xmm_is4
            | Kind::xmm_is5 => any(Register::XMM0, 16, self),
            Kind::ymm_or_mem
            | Kind::ymm_reg
            | Kind::ymm_rm
            | Kind::ymm_vvvv
            | Kind::ymm_is4
            | Kind::ymm_is5 => any(Register::YMM0, 16, self),
            Kind::sti_opcode => any(Register::ST0, 8, self),
            Kind::seg_reg => any(Register::ES, 6, self),
            Kind::cr_reg => Some(self.random.pick(&[
                Register::CR0,
                Register::CR2,
                Register::CR3,
                Register::CR4,
                Register::CR8,
            ])),
            Kind::dr_reg => any(Register::DR0, 8, self),
            Kind::es => Some(Register::ES),
            Kind::cs => Some(Register::CS),
            Kind::ss => Some(Register::SS),
            Kind::ds => Some(Register::DS),
            Kind::fs => Some(Register::FS),
            Kind::gs => Some(Register::GS),
            Kind::al => Some(Register::AL),
            Kind::cl => Some(Register::CL),
            Kind::ax => Some(Register::AX),
            Kind::dx => Some(Register::DX),
            Kind::eax => Some(Register::EAX),
            Kind::rax => Some(Register::RAX),
            Kind::st0 => Some(Register::ST0),
            _ => None,
        }
    }

    fn immediate_operand(&mut self, instruction: &mut Instruction, n: u32, kind: Kind) -> bool {
        let value = values::integer(self.random);
        let second = n > 0 && is_immediate(instruction.op_kind(n - 1));
        match kind {
            Kind::imm8 if second => {
                instruction.set_op_kind(n, OpKind::Immediate8_2nd);
                instruction.set_immediate8_2nd(value as u8);
            }
            Kind::imm8 | Kind::imm4_m2z => {
                let mask = if kind == Kind::imm8 { 0xff } else { 0xf };
                instruction.set_op_kind(n, OpKind::Immediate8);
                instruction.set_immediate8(value as u8 & mask);
            }
            Kind::imm8_const_1 => {
                instruction.set_op_kind(n, OpKind::Immediate8);
                instruction.set_immediate8(1);
            }
            Kind::imm8sex16 => {
                instruction.set_op_kind(n, OpKind::Immediate8to16);
                instruction.set_immediate8to16(value as i8 as i16);
            }
            Kind::imm8sex32 => {
                instruction.set_op_kind(n, OpKind::Immediate8to32);
                instruction.set_immediate8to32(value as i8 as i32);
            }
            Kind::imm8sex64 => {
                instruction.set_op_kind(n, OpKind::Immediate8to64);
                instruction.set_immediate8to64(value as i8 as i64);
            }
            Kind::imm16 => {
                instruction.set_op_kind(n, OpKind::Immediate16);
                instruction.set_immediate16(value as u16);
            }
            Kind::imm32 => {
                instruction.set_op_kind(n, OpKind::Immediate32);
                instruction.set_immediate32(value as u32);
            }
            Kind::imm32sex64 => {
                instruction.set_op_kind(n, OpKind::Immediate32to64);
                instruction.set_immediate32to64(value as i32 as i64);
            }
            Kind::imm64 => {
                instruction.set_op_kind(n, OpKind::Immediate64);
                instruction.set_immediate64(value);
            }
            _ => return false,
        }
        true
    }

    fn memory_operand(&mut self, instruction: &mut Instruction, n: u32, kind: Kind) -> Option<()> {
        let narrow = self.random.one_in(10);
        let either = |wide, short| if narrow { short } else { wide };
        let op_kind = match kind {
            Kind::seg_rSI => either(OpKind::MemorySegRSI, OpKind::MemorySegESI),
            Kind::es_rDI => either(OpKind::MemoryESRDI, OpKind::MemoryESEDI),
            Kind::seg_rDI => either(OpKind::MemorySegRDI, OpKind::MemorySegEDI),
            Kind::br64_1 | Kind::br64_4 => {
                instruction.set_op_kind(n, OpKind::NearBranch64);
                let target = self.branch_target(kind == Kind::br64_1);
                instruction.set_near_branch64(target);
                return Some(());
            }
            _ => OpKind::Memory,
        };
        // Two implicit operands have one address size.
        let agrees = (0..n).all(|m| {
            let earlier = instruction.op_kind(m);
            !is_implicit(earlier) || is_narrow(earlier) == is_narrow(op_kind)
        });
        if !agrees {
            return None;
        }
        instruction.set_op_kind(n, op_kind);
        match kind {
            Kind::seg_rSI | Kind::es_rDI | Kind::seg_rDI => {
                if kind != Kind::es_rDI {
                    self.override_segment(instruction);
                }
            }
            Kind::seg_rBX_al => {
                instruction.set_memory_base(if narrow { Register::EBX } else { Register::RBX });
                instruction.set_memory_index(Register::AL);
                instruction.set_memory_index_scale(1);
            }
            Kind::mem_offs => {
                instruction.set_memory_displ_size(8);
                let size = size_of_memory(instruction);
                instruction.set_memory_displacement64(values::address(self.random, size));
            }
            Kind::mem_vsib32x | Kind::mem_vsib64x | Kind::mem_vsib32y | Kind::mem_vsib64y => {
                self.vector_indexed(instruction, vector_index(kind));
            }
            _ if is_register_or_memory(kind) || kind == Kind::mem => self.address(instruction),
            _ => return None,
        }
        Some(())
    }

    /// Somewhere that a relative branch reaches.
    fn branch_target(&mut self, short: bool) -> u64 {
        let start = self.image.rip;
        // Rarely backwards: most such cases never end.
        if self.random.one_in(32) {
            return start;
        }
        if short || self.random.percent(60) {
            return self.near_target();
        }
        let target = values::code_address(self.random, self.at);
        if target.wrapping_sub(self.at) as i64 as i32 as i64 as u64 == target.wrapping_sub(self.at)
        {
            target
        } else {
            self.at + 0x1000
        }
    }

    fn near_target(&mut self) -> u64 {
        let reach = if self.random.one_in(4) { 100 } else { 12 };
        self.at + 2 + self.random.below(reach)
    }

    /// An ordinary memory operand that lies at an interesting address.
    fn address(&mut self, instruction: &mut Instruction) {
        let size = size_of_memory(instruction);
        let segment_base = self.override_segment(instruction);
        let is_low = self.at < HIGH;
        match self.random.below(20) {
            0 | 1 => {
                let target = self.near_address(size, is_low);
                instruction.set_memory_base(Register::RIP);
                instruction.set_memory_displ_size(8);
                let target = target.wrapping_sub(segment_base);
                // The segment base may put it out of reach: then without a segment.
                let reach = target.wrapping_sub(self.at) as i64;
                if reach.unsigned_abs() >> 31 == 0 {
                    instruction.set_memory_displacement64(target);
                } else {
                    instruction.set_memory_displacement64(self.at);
                }
            }
            2 => {
                let target = values::low_address(self.random, size) as i32 as i64 as u64;
                instruction.set_memory_displ_size(8);
                instruction.set_memory_displacement64(target);
            }
            3 => {
                let target = values::low_address(self.random, size);
                self.based(instruction, target.wrapping_sub(segment_base), true);
            }
            _ => {
                let target = values::address(self.random, size);
                self.based(instruction, target.wrapping_sub(segment_base), false);
            }
        }
    }

    fn near_address(&mut self, size: u64, is_low: bool) -> u64 {
        let target = values::low_address(self.random, size);
        if is_low { target } else { target.wrapping_sub(LOW).wrapping_add(HIGH) }
    }

    /// `[base + index * scale + displacement]`, with the registers set so that it is `target`
    /// where no earlier instruction needs them.
    fn based(&mut self, instruction: &mut Instruction, target: u64, narrow: bool) {
        let first = if narrow { Register::EAX } else { Register::RAX };
        let displacement = match self.random.below(8) {
            0..=3 => 0,
            4..=6 => self.random.next() as i8 as i64,
            _ => self.random.next() as i32 as i64,
        };
        let mut rest = target.wrapping_sub(displacement as u64);
        let base = self.free_register();
        if self.random.percent(35) {
            let index = self.random.below(16) as usize;
            if index != gpr::RSP {
                let scale = 1 << self.random.below(4);
                if index != base && self.pin(index) {
                    self.image.gpr[index] = self.index_value();
                }
                instruction.set_memory_index(first + index as u32);
                instruction.set_memory_index_scale(scale);
                rest = rest.wrapping_sub(self.image.gpr[index].wrapping_mul(u64::from(scale)));
            }
        }
        instruction.set_memory_base(first + base as u32);
        instruction.set_memory_displ_size(match displacement {
            0 => 0,
            -128..=127 => 1,
            _ if narrow => 4,
            _ => 8,
        });
        let displacement = if narrow { displacement as u32 as u64 } else { displacement as u64 };
        instruction.set_memory_displacement64(displacement);
        if self.pin(base) {
            self.image.gpr[base] = rest;
        }
    }

    /// A base and vector of indexes that make addresses around one target.
    fn vector_indexed(&mut self, instruction: &mut Instruction, index: VectorIndex) {
        let register = self.random.below(16);
        let scale = 1 << self.random.below(4);
        instruction.set_memory_index(index.first + register as u32);
        instruction.set_memory_index_scale(scale);
        let base = self.free_register();
        instruction.set_memory_base(Register::RAX + base as u32);
        instruction.set_memory_displ_size(0);
        if self.pin(base) {
            self.image.gpr[base] = values::address(self.random, 8);
        }
        let spread = if self.random.one_in(4) { 4096 } else { 64 };
        let mut bytes = [0_u8; 32];
        for element in bytes.chunks_exact_mut(index.element) {
            let offset = self.random.below(2 * spread) as i64 - spread as i64;
            element.copy_from_slice(&offset.to_le_bytes()[..index.element]);
        }
        let (low, high) = bytes.split_at(16);
        let lane = |half: &[u8]| u128::from_le_bytes(half.try_into().expect("16 bytes"));
        self.image.set_ymm(register as usize, [lane(low), lane(high)]);
    }

    /// A register that no earlier instruction needs, if there is one among a few tries.
    fn free_register(&mut self) -> usize {
        let mut register = 0;
        for _ in 0..4 {
            register = self.random.below(16) as usize;
            if self.pinned & 1 << register == 0 {
                break;
            }
        }
        register
    }

    /// Claims a register; false when another instruction has it.
    pub(super) fn pin(&mut self, register: usize) -> bool {
        let free = self.pinned & 1 << register == 0;
        self.pinned |= 1 << register;
        free
    }

    fn index_value(&mut self) -> u64 {
        match self.random.below(4) {
            0 => values::integer(self.random),
            1 => self.random.next() as i16 as i64 as u64,
            _ => self.random.below(64),
        }
    }

    /// Rarely uses FS or GS. Returns the segment's base.
    fn override_segment(&mut self, instruction: &mut Instruction) -> u64 {
        let (register, base) = match self.random.below(24) {
            0 => (Register::FS, FS_BASE),
            1 => (Register::GS, GS_BASE),
            2 => (Register::SS, 0),
            _ => return 0,
        };
        instruction.set_segment_prefix(register);
        base
    }
}

/// Bytes of the memory operand, for placing it against edges.
fn size_of_memory(instruction: &Instruction) -> u64 {
    (instruction.memory_size().size() as u64).max(1)
}

fn is_register_or_memory(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::r8_or_mem
            | Kind::r16_or_mem
            | Kind::r32_or_mem
            | Kind::r64_or_mem
            | Kind::mm_or_mem
            | Kind::xmm_or_mem
            | Kind::ymm_or_mem
    )
}

fn vector_index(kind: Kind) -> VectorIndex {
    match kind {
        Kind::mem_vsib32x => VectorIndex { first: Register::XMM0, element: 4 },
        Kind::mem_vsib64x => VectorIndex { first: Register::XMM0, element: 8 },
        Kind::mem_vsib32y => VectorIndex { first: Register::YMM0, element: 4 },
        _ => VectorIndex { first: Register::YMM0, element: 8 },
    }
}

fn is_immediate(kind: OpKind) -> bool {
    matches!(kind, OpKind::Immediate8 | OpKind::Immediate16 | OpKind::Immediate32)
}

fn is_implicit(kind: OpKind) -> bool {
    is_narrow(kind)
        || matches!(kind, OpKind::MemorySegRSI | OpKind::MemoryESRDI | OpKind::MemorySegRDI)
}

fn is_narrow(kind: OpKind) -> bool {
    matches!(kind, OpKind::MemorySegESI | OpKind::MemoryESEDI | OpKind::MemorySegEDI)
}
