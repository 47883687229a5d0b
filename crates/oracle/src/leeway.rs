//! What the architecture leaves to the CPU's maker when an instruction faults.
//!
//! Each rule names the instructions that it is for, and makes the two observations equal in just
//! that respect; what else differs is still found.

use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};
use x86::exception::{pf, vector};
use x86::gpr;

use crate::case::{Case, Fault, Observation};
use crate::generate::decode_all;
use crate::image::CpuImage;
use crate::layout::offset_of;
use crate::policy;

/// Most bytes of a memory operand (XSAVE).
const LARGEST_OPERAND: u64 = x86::xsave::AREA_SIZE as u64;
/// Exception flags of MXCSR.
const MXCSR_FLAGS: u32 = 0x3f;

/// Makes `native` and `subject`, which started from `case`, equal where both are right.
pub fn forgive(case: &Case, native: &mut Observation, subject: &mut Observation) {
    if decode_all(case).iter().any(is_narrow_string) {
        forgive_upper_halves(native, subject);
    }
    let Some(instruction) = faulting_instruction(native) else { return };
    if instruction.is_invalid() {
        forgive_fetch(native, subject);
    }
    match native.fault.vector {
        vector::XM => forgive_later_flags(&instruction, native, subject),
        vector::DB if instruction.is_vsib() => {
            forgive_trap(native, subject);
            forgive_gather(&instruction, native, subject);
        }
        _ => {}
    }
    if !is_operand_fault(native) {
        return;
    }
    match instruction.mnemonic() {
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => forgive_order(native, subject),
        M::Maskmovdqu | M::Vmaskmovdqu => {
            forgive_place(native, subject);
            forgive_masked(&instruction, native, subject);
        }
        M::Maskmovq => {
            forgive_place(native, subject);
            forgive_masked(&instruction, native, subject);
            forgive_early_mmx(native, subject);
        }
        M::Movd | M::Movq | M::Movntq if instruction.op1_register().is_mm() => {
            forgive_early_mmx(native, subject);
        }
        M::Vcvtps2ph => forgive_early_flags(native, subject),
        M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq => {
            forgive_place(native, subject);
        }
        M::Fnsave | M::Fnstenv | M::Fbstp | M::Fstp => {
            forgive_place(native, subject);
            forgive_partial_store(&instruction, native, subject);
        }
        M::Fxsave | M::Fxsave64 | M::Xsave | M::Xsave64 => {
            forgive_misalignment(native, subject);
            forgive_place(native, subject);
            forgive_partial_store(&instruction, native, subject);
        }
        M::Fxrstor | M::Fxrstor64 | M::Xrstor | M::Xrstor64 => {
            forgive_misalignment(native, subject);
            forgive_place(native, subject);
        }
        M::Frstor | M::Fldenv => forgive_place(native, subject),
        _ if instruction.is_vsib() => forgive_gather(&instruction, native, subject),
        _ => {}
    }
}

/// #SS, #GP, #PF or #AC.
fn is_operand_fault(observation: &Observation) -> bool {
    matches!(observation.fault.vector, vector::SS..=vector::PF | vector::AC)
}

/// The instruction that RIP points to, from the memory at the end: it may have been changed.
fn faulting_instruction(native: &Observation) -> Option<Instruction> {
    let rip = native.image.rip;
    let bytes = bytes_at(native, rip, policy::LONGEST);
    (!bytes.is_empty()).then(|| policy::decode(&bytes, rip))
}

/// Up to `count` bytes of memory from `address`, to the end of what is mapped.
fn bytes_at(observation: &Observation, address: u64, count: usize) -> Vec<u8> {
    (0..count as u64)
        .map_while(|at| offset_of(address.wrapping_add(at)))
        .map(|offset| observation.memory[offset])
        .collect()
}

/// Not the maker's choice but ours: with unmasked overflow or underflow PE tells whether the result
/// was exact but for its exponent, and DPPS and DPPD stop before their additions; an engine that
/// computes with masked exceptions does not know.
fn forgive_later_flags(instruction: &Instruction, native: &Observation, subject: &mut Observation) {
    const UNDERFLOW_OVERFLOW: u32 = 1 << 4 | 1 << 3;
    const INEXACT: u32 = 1 << 5;
    let theirs = native.image.mxcsr();
    let unmasked = theirs & !(theirs >> 7) & UNDERFLOW_OVERFLOW != 0;
    let later = match instruction.mnemonic() {
        M::Dpps | M::Dppd | M::Vdpps | M::Vdppd => MXCSR_FLAGS,
        _ if unmasked => INEXACT,
        _ => return,
    };
    subject.image.set_mxcsr(subject.image.mxcsr() & !later | theirs & later);
}

/// A gather that is single-stepped and faults may deliver the trap of an element already gathered
/// in the fault's stead (SDM vol. 2, VGATHERDPS).
fn forgive_trap(native: &Observation, subject: &mut Observation) {
    if is_operand_fault(subject) && subject.image.rip == native.image.rip {
        *subject = native.clone();
    }
}

/// An illegal or overlong instruction may be known as such before all of its bytes have been
/// fetched; one that is both may raise #UD or #GP.
fn forgive_fetch(native: &Observation, subject: &mut Observation) {
    let is_fetch = |fault: Fault| fault.vector == vector::PF && fault.error_code & pf::FETCH != 0;
    let is_illegal = |fault: Fault| matches!(fault.vector, vector::UD | vector::GP);
    let pair = [native.fault, subject.fault];
    let early = pair.into_iter().any(is_fetch) && pair.into_iter().any(is_illegal);
    let either = pair.into_iter().all(is_illegal) && is_illegal_when_short(native);
    if early || either {
        subject.fault = native.fault;
    }
}

/// Whether the instruction at RIP is illegal even without the repeated prefixes that may make it
/// too long.
fn is_illegal_when_short(native: &Observation) -> bool {
    let mut short: Vec<u8> = Vec::new();
    for byte in bytes_at(native, native.image.rip, 2 * policy::LONGEST) {
        let is_prefix =
            matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3);
        if !(is_prefix && short.contains(&byte)) {
            short.push(byte);
        }
    }
    policy::decode(&short, native.image.rip).is_invalid()
}

/// A misaligned FXSAVE or XSAVE area raises #GP, or #AC where alignment is checked (SDM vol. 2,
/// FXSAVE).
fn forgive_misalignment(native: &Observation, subject: &mut Observation) {
    if [native.fault.vector, subject.fault.vector] == [vector::AC, vector::GP] {
        subject.fault = native.fault;
    }
}

/// A store of an MMX register may have entered MMX mode (TOP zero, all tags valid) when its store faults.
fn forgive_early_mmx(native: &Observation, subject: &mut Observation) {
    const STATUS_AND_TAGS: usize = 2;
    const REGISTERS: usize = 32;
    subject.image.put(STATUS_AND_TAGS, &native.image.get::<3>(STATUS_AND_TAGS));
    subject.image.put(REGISTERS, &native.image.get::<128>(REGISTERS));
}

/// CMPS may read its operands in either order: where both fault, either fault is right.
fn forgive_order(native: &Observation, subject: &mut Observation) {
    if is_operand_fault(subject) {
        subject.fault = native.fault;
    }
}

/// The address of a page fault may be that of any byte of a large operand. Across the
/// canonical boundary the address or the canonicality may be checked first.
fn forgive_place(native: &Observation, subject: &mut Observation) {
    const CANONICAL_END: u64 = 1 << 47;
    let at_boundary = |o: &Observation| {
        o.fault.vector != vector::PF || CANONICAL_END.abs_diff(o.fault.address) < LARGEST_OPERAND
    };
    if is_operand_fault(subject) && at_boundary(native) && at_boundary(subject) {
        subject.fault = native.fault;
    }
    let are_page_faults = [native, &*subject].iter().all(|o| o.fault.vector == vector::PF);
    // An operand may lie around address zero.
    let distance = native.fault.address.wrapping_sub(subject.fault.address);
    let distance = distance.min(distance.wrapping_neg());
    if are_page_faults && distance < LARGEST_OPERAND {
        subject.fault = native.fault;
    }
}

/// A large operand may be partly written before a page fault.
fn forgive_partial_store(
    instruction: &Instruction,
    native: &Observation,
    subject: &mut Observation,
) {
    let Some(start) = operand_address(instruction, &native.image) else { return };
    let size = match instruction.memory_size().size() as u64 {
        0 => LARGEST_OPERAND,
        size => size,
    };
    for byte in 0..size {
        if let Some(offset) = offset_of(start.wrapping_add(byte)) {
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
/// registers when it faults in its first iteration, or makes none.
fn forgive_upper_halves(native: &Observation, subject: &mut Observation) {
    for register in [gpr::RCX, gpr::RSI, gpr::RDI] {
        let (theirs, ours) = (native.image.gpr[register], subject.image.gpr[register]);
        let is_cleared = theirs >> 32 == 0 || ours >> 32 == 0;
        if theirs as u32 == ours as u32 && is_cleared {
            subject.image.gpr[register] = theirs;
        }
    }
}

/// A gather that faults has completed all elements below the faulting one; of those above, any, and
/// it may have cleared what lies above all elements; in the mask only the sign bits of elements
/// count (SDM vol. 2, VGATHERDPS).
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
        bytes[done * size..].fill(0);
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

/// Whether it is a string instruction that uses 32-bit addresses.
pub(crate) fn is_narrow_string(instruction: &Instruction) -> bool {
    let is_narrow =
        |n| matches!(instruction.op_kind(n), OpKind::MemorySegESI | OpKind::MemoryESEDI);
    instruction.code().is_string_instruction() && (0..instruction.op_count()).any(is_narrow)
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
