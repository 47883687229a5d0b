//! What the architecture leaves to the CPU's maker when an instruction faults.
//!
//! Each rule names the instructions that it is for, and makes the two observations equal in just
//! that respect; what else differs is still found.

use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};
use x86::exception::vector;
use x86::gpr;

use crate::case::Observation;
use crate::image::CpuImage;
use crate::layout::offset_of;
use crate::policy;

/// Most bytes of a memory operand (XSAVE).
const LARGEST_OPERAND: u64 = x86::xsave::AREA_SIZE as u64;
/// Exception flags of MXCSR.
const MXCSR_FLAGS: u32 = 0x3f;

/// Makes `native` and `subject` equal where both are right.
pub fn forgive(native: &mut Observation, subject: &mut Observation) {
    if !matches!(native.fault.vector, vector::SS..=vector::PF | vector::AC) {
        return;
    }
    let Some(instruction) = faulting_instruction(native) else { return };
    match instruction.mnemonic() {
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => forgive_order(native, subject),
        M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu => {
            forgive_masked(&instruction, native, subject);
        }
        M::Vcvtps2ph => forgive_early_flags(native, subject),
        M::Fxsave | M::Fxsave64 | M::Fnsave | M::Fnstenv | M::Fbstp | M::Xsave | M::Xsave64 => {
            forgive_place(native, subject);
            forgive_partial_store(&instruction, native, subject);
        }
        M::Fxrstor | M::Fxrstor64 | M::Frstor | M::Fldenv | M::Xrstor | M::Xrstor64 => {
            forgive_place(native, subject);
        }
        _ if instruction.is_vsib() => forgive_gather(&instruction, native, subject),
        _ => {}
    }
    if instruction.code().is_string_instruction() && is_narrow(&instruction) {
        forgive_upper_halves(native, subject);
    }
}

/// The instruction that RIP points to, from the memory at the end: it may have been changed.
fn faulting_instruction(native: &Observation) -> Option<Instruction> {
    let at = offset_of(native.image.rip)?;
    let end = (at + 15).min(native.memory.len());
    let mut instruction = policy::decode(&native.memory[at..end]);
    instruction.set_ip(native.image.rip);
    Some(instruction)
}

/// CMPS may read its operands in either order: where both fault, either fault is right.
fn forgive_order(native: &Observation, subject: &mut Observation) {
    if matches!(subject.fault.vector, vector::SS..=vector::PF | vector::AC) {
        subject.fault = native.fault;
    }
}

/// The address of a page fault may be that of any byte of a large operand on the page.
fn forgive_place(native: &Observation, subject: &mut Observation) {
    let distance = native.fault.address.abs_diff(subject.fault.address);
    if distance < LARGEST_OPERAND {
        subject.fault.address = native.fault.address;
    }
}

/// A large operand may be partly written before a page fault.
fn forgive_partial_store(
    instruction: &Instruction,
    native: &Observation,
    subject: &mut Observation,
) {
    let Some(start) = operand_address(instruction, &native.image) else { return };
    for address in start..start.saturating_add(LARGEST_OPERAND) {
        if let Some(offset) = offset_of(address) {
            subject.memory[offset] = native.memory[offset];
        }
    }
}

/// Masked stores of single bytes: whether bytes that are not stored fault (SDM vol. 2,
/// MASKMOVDQU: "exception and breakpoint behaviour ... is implementation dependent").
fn forgive_masked(instruction: &Instruction, native: &Observation, subject: &mut Observation) {
    let register = instruction.op2_register();
    let (mask, width) = match register.is_mm() {
        true => (
            u128::from(u64::from_le_bytes(
                native.image.get(32 + 16 * mmx_slot(&native.image, register.number())),
            )),
            8,
        ),
        false => (native.image.ymm(register.number())[0], 16),
    };
    let selects_all = (0..width).all(|byte| mask >> (8 * byte + 7) & 1 == 1);
    if !selects_all {
        *subject = native.clone();
    }
}

/// Where the XSAVE area holds an MMX register: relative to the top of the x87 stack.
fn mmx_slot(image: &CpuImage, register: usize) -> usize {
    let top = usize::from(image.fsw() >> 11 & 7);
    register.wrapping_sub(top) & 7
}

/// VCVTPS2PH may set exception flags before its store faults.
fn forgive_early_flags(native: &Observation, subject: &mut Observation) {
    let flags = native.image.mxcsr() & MXCSR_FLAGS;
    subject.image.set_mxcsr(subject.image.mxcsr() & !MXCSR_FLAGS | flags);
}

/// A repeated string instruction with 32-bit addresses may have cleared the upper halves of its
/// registers when it faults in its first iteration.
fn forgive_upper_halves(native: &Observation, subject: &mut Observation) {
    for register in [gpr::RCX, gpr::RSI, gpr::RDI] {
        let (theirs, ours) = (native.image.gpr[register], subject.image.gpr[register]);
        if theirs as u32 == ours as u32 {
            subject.image.gpr[register] = theirs;
        }
    }
}

/// A gather that faults has completed all elements below the faulting one; of those above, any; in
/// the mask only the sign bits of elements count (SDM vol. 2, VGATHERDPS).
fn forgive_gather(instruction: &Instruction, native: &mut Observation, subject: &mut Observation) {
    let (result, mask) = (instruction.op0_register(), instruction.op2_register());
    let size = instruction.memory_size().size().max(4);
    let lanes = result.size().min(mask.size()) / size;
    let done = (0..lanes)
        .take_while(|lane| bytes_of(&native.image, mask)[(lane + 1) * size - 1] & 0x80 == 0)
        .count();
    for observation in [native, subject] {
        let mut bytes = bytes_of(&observation.image, mask);
        for (at, byte) in bytes.iter_mut().enumerate() {
            let is_sign = at % size == size - 1 && at / size <= done;
            *byte &= if is_sign { 0x80 } else { 0 };
        }
        set_bytes(&mut observation.image, mask, bytes);
        let mut bytes = bytes_of(&observation.image, result);
        bytes[done * size..lanes * size].fill(0);
        set_bytes(&mut observation.image, result, bytes);
    }
}

fn bytes_of(image: &CpuImage, register: Register) -> [u8; 32] {
    let [low, high] = image.ymm(register.number());
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&low.to_le_bytes());
    bytes[16..].copy_from_slice(&high.to_le_bytes());
    bytes
}

fn set_bytes(image: &mut CpuImage, register: Register, bytes: [u8; 32]) {
    let lane = |at: usize| {
        let mut half = [0; 16];
        half.copy_from_slice(&bytes[at..at + 16]);
        u128::from_le_bytes(half)
    };
    image.set_ymm(register.number(), [lane(0), lane(16)]);
}

/// Whether a string instruction uses 32-bit addresses.
fn is_narrow(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|n| {
        use OpKind::{MemoryESEDI, MemorySegEDI, MemorySegESI};
        matches!(instruction.op_kind(n), MemorySegESI | MemoryESEDI | MemorySegEDI)
    })
}

/// Linear address of the memory operand of `instruction` with these registers.
pub fn operand_address(instruction: &Instruction, image: &CpuImage) -> Option<u64> {
    let operand =
        (0..instruction.op_count()).find(|n| instruction.op_kind(*n) == OpKind::Memory)?;
    instruction.virtual_address(operand, 0, |register, _, _| {
        if register.is_segment_register() {
            return Some(match register {
                Register::FS => image.bases[0],
                Register::GS => image.bases[1],
                _ => 0,
            });
        }
        let value = *image.gpr.get(register.full_register().number())?;
        Some(if register.is_gpr32() { value & 0xffff_ffff } else { value })
    })
}
