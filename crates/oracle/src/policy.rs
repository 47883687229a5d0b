//! Which instructions may be part of a case.
//!
//! Left out is what depends on the machine rather than on the instruction set (time, random
//! numbers, CPUID, processor numbers), what the host kernel answers in the CPU's stead (system
//! calls, UMIP), what would change the segments that the host needs, and what the host has but the
//! guest's profile hides. What is left must behave the same on both sides, faults included.

use iced_x86::{Code, CpuidFeature, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};

use crate::case::FILL;
use crate::native::choices;

/// Longest instruction.
pub const LONGEST: usize = 15;

/// Features of the profile `v3` with its accelerators whose instructions are compared.
fn is_compared(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::INTEL8086
            | F::INTEL186
            | F::INTEL286
            | F::INTEL386
            | F::INTEL486
            | F::X64
            | F::ADX
            | F::AES
            | F::AVX
            | F::AVX2
            | F::BMI1
            | F::BMI2
            | F::CET_IBT
            | F::CLFLUSHOPT
            | F::CLFSH
            | F::CLWB
            | F::CMOV
            | F::CMPXCHG16B
            | F::CX8
            | F::F16C
            | F::FMA
            | F::FPU
            | F::FPU287
            | F::FPU387
            | F::FSGSBASE
            | F::FXSR
            | F::LZCNT
            | F::MMX
            | F::MOVBE
            | F::MSR
            | F::MULTIBYTENOP
            | F::PAUSE
            | F::PCLMULQDQ
            | F::POPCNT
            | F::PREFETCHW
            | F::SHA
            | F::SSE
            | F::SSE2
            | F::SSE3
            | F::SSE4_1
            | F::SSE4_2
            | F::SSSE3
    )
}

/// Instructions of compared features that are not comparable.
fn is_excluded(code: Code) -> bool {
    use Mnemonic as M;
    match code.mnemonic() {
        // The kernel's, or a path into it.
        M::Syscall | M::Sysenter | M::Sysexit | M::Sysexitq | M::Sysret | M::Sysretq => true,
        M::Int | M::Into | M::Iret | M::Iretd | M::Iretq | M::Retf | M::Getsec => true,
        // A hypervisor below the host would answer.
        M::Vmcall | M::Vmmcall | M::Cpuid | M::Xsetbv | M::Monitor | M::Mwait | M::Rsm => true,
        // Time and chance.
        M::Rdtsc | M::Rdtscp | M::Rdpmc | M::Rdpid | M::Rdrand | M::Rdseed => true,
        // The host kernel emulates them when it has UMIP, else they show host values.
        M::Sldt | M::Str | M::Smsw | M::Sgdt | M::Sidt => true,
        // Segments of the host.
        M::Lsl | M::Lar | M::Verr | M::Verw | M::Lss | M::Lfs | M::Lgs => true,
        // Images with x87 pointers.
        M::Fnstenv | M::Fstenv | M::Fnsave | M::Fsave | M::Fxsave | M::Fxsave64 => {
            !choices().x87_pointers
        }
        // Undefined result (SDM vol. 2, BSWAP of a 16-bit register).
        M::Bswap => code == Code::Bswap_r16,
        _ => matches!(
            code,
            Code::Jmp_m1616
                | Code::Jmp_m1632
                | Code::Jmp_m1664
                | Code::Call_m1616
                | Code::Call_m1632
                | Code::Call_m1664
                | Code::Mov_Sreg_rm16
                | Code::Mov_Sreg_r32m16
                | Code::Mov_Sreg_r64m16
                | Code::Popw_FS
                | Code::Popq_FS
                | Code::Popw_GS
                | Code::Popq_GS
        ),
    }
}

/// Whether `code` can be compared.
pub fn allows(code: Code) -> bool {
    code.cpuid_features().iter().all(|f| is_compared(*f)) && !is_excluded(code)
}

/// Whether every instruction that `bytes` can execute can be compared: one after the other, and
/// where there are branches, which may lead into the middle of an instruction, from any offset.
/// `rcx` is its value at the start.
pub fn allows_bytes(bytes: &[u8], rcx: u64) -> bool {
    let mut padded = bytes.to_vec();
    padded.extend([FILL; LONGEST]);
    let mut at = 0;
    let mut count = Some(rcx);
    let mut has_branches = false;
    if saves_extended_state(bytes) {
        return true;
    }
    while at < bytes.len() {
        let instruction = decode(&padded[at..], 0);
        if !allows_first(&padded[at..], &instruction, count) {
            return false;
        }
        has_branches |= is_branch(&instruction);
        count = None;
        at += instruction.len().max(1);
    }
    let allows_at = |at: usize| allows_first(&padded[at..], &decode(&padded[at..], 0), None);
    !has_branches || (0..bytes.len()).all(allows_at)
}

/// Whether `bytes` are the one sequence in which XSAVE and XRSTOR may appear.
pub fn saves_extended_state(bytes: &[u8]) -> bool {
    let (Some((&[0xb8, a, b, _, _], rest)), true) = (bytes.split_first_chunk(), bytes.len() > 12)
    else {
        return false;
    };
    /// AVX-512 and protection keys, which the host may have.
    const HOST_COMPONENTS: u16 = 0x2e0;
    u16::from_le_bytes([a, b]) & HOST_COMPONENTS == 0
        && rest[0] == 0xba
        && matches!(rest[5..], [0x48, 0x0f, 0xae, 0x27 | 0x2f] | [0x0f, 0xae, 0x27 | 0x2f])
}

/// Whether `instruction`, the first one of `bytes`, can be compared; `rcx` if it is known.
fn allows_first(bytes: &[u8], instruction: &Instruction, rcx: Option<u64>) -> bool {
    if instruction.code() == Code::INVALID {
        return !is_unknowable(bytes);
    }
    allows(instruction.code())
        && !has_undefined_result(instruction, rcx)
        && (choices().intel_branches || !is_near_branch_of_16_bits(bytes, instruction))
}

/// Whether execution may continue elsewhere, other than by an exception.
pub fn is_branch(instruction: &Instruction) -> bool {
    use FlowControl as F;
    let flow = instruction.flow_control();
    !matches!(flow, F::Next | F::Interrupt | F::Exception)
}

/// The first instruction of `bytes`, which lie at `address`.
pub fn decode(bytes: &[u8], address: u64) -> Instruction {
    Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).decode()
}

/// The instructions of `code`, which lies at `address`, one after the other. A truncated last one
/// goes on in the INT3s that follow code.
pub fn decode_all(code: &[u8], address: u64) -> Vec<Instruction> {
    let mut padded = code.to_vec();
    padded.extend([FILL; LONGEST]);
    let mut instructions = Vec::new();
    let mut at = 0;
    while at < code.len() {
        let instruction = decode(&padded[at..], address.wrapping_add(at as u64));
        at += instruction.len().max(1);
        instructions.push(instruction);
    }
    instructions
}

/// An invalid encoding that a newer CPU than the decoder may know, EVEX (AVX10, APX) and REX2, or
/// that may reach a hypervisor below the host, such as VMCALL with an ignored prefix.
fn is_unknowable(bytes: &[u8]) -> bool {
    let is_prefix = |b: &u8| matches!(b, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3);
    let opcode = bytes.iter().position(|b| !is_prefix(b)).map_or(&[][..], |at| &bytes[at..]);
    matches!(opcode, [0x62 | 0xd5, ..] | [0x0f, 0x01, 0xc0..=0xff, ..])
}

/// SHLD and SHRD of 16 bits with a count above 16: result and flags are undefined (SDM vol. 2).
/// `rcx` holds the count if it is known.
fn has_undefined_result(instruction: &Instruction, rcx: Option<u64>) -> bool {
    match instruction.code() {
        Code::Shld_rm16_r16_imm8 | Code::Shrd_rm16_r16_imm8 => instruction.immediate8() & 31 > 16,
        Code::Shld_rm16_r16_CL | Code::Shrd_rm16_r16_CL => rcx.is_none_or(|rcx| rcx & 31 > 16),
        _ => false,
    }
}

/// A near branch with an operand-size prefix.
fn is_near_branch_of_16_bits(bytes: &[u8], instruction: &Instruction) -> bool {
    is_branch(instruction) && bytes[..instruction.len()].contains(&0x66)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sensitive_instructions_are_found() {
        let allows = |bytes: &[u8]| allows_bytes(bytes, 0);
        assert!(allows(&[0x48, 0x01, 0xd8]));
        assert!(!allows(&[0x0f, 0x05]));
        assert!(!allows(&[0x90, 0xcd, 0x80]));
        // vpaddd zmm0, zmm0, zmm0
        assert!(!allows(&[0x62, 0xf1, 0x7d, 0x48, 0xfe, 0xc0]));
        // mov eax, 0x0000310f hides RDTSC, where a branch could find it
        let hidden = [0xb8, 0x0f, 0x31, 0, 0];
        assert!(allows(&hidden));
        assert!(!allows(&[&[0x74, 1], &hidden[..]].concat()));
    }

    #[test]
    fn undefined_shifts_are_found() {
        // shld ax, cx, cl
        let shift = [0x66, 0x0f, 0xa5, 0xc8];
        assert!(allows_bytes(&shift, 16) && !allows_bytes(&shift, 17));
        assert!(!allows_bytes(&[&[0x90], &shift[..]].concat(), 16));
    }
}
