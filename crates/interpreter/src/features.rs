//! Which instructions the CPU profile offers: an instruction whose CPUID features are not all in
//! the profile is undefined, as it is on a CPU without them.

use engine::CpuProfile;
use iced_x86::{CpuidFeature as C, DecoderOptions, EncodingKind, Instruction, Mnemonic};
use x86::cpuid::{Feature, feature as f};

/// Whether `profile` has everything that `instruction` needs.
pub(crate) fn offered(profile: &CpuProfile, instruction: &Instruction) -> bool {
    if !matches!(instruction.encoding(), EncodingKind::Legacy | EncodingKind::VEX) {
        return false;
    }
    // Hypercalls are answered by the machine, on any profile. RDSSP and
    // CLDEMOTE are NOPs on a CPU that has no shadow stacks, or no such hint (SDM vol. 2A and 2B).
    if matches!(
        instruction.mnemonic(),
        Mnemonic::Vmcall
            | Mnemonic::Vmmcall
            | Mnemonic::Rdsspd
            | Mnemonic::Rdsspq
            | Mnemonic::Cldemote
    ) {
        return true;
    }
    instruction.cpuid_features().iter().all(|needed| match requirement(*needed) {
        Requirement::Always => true,
        Requirement::Feature(feature) => profile.has(feature),
        Requirement::Never => false,
    })
}

/// How to decode for `profile`: a CPU that lacks one of these instructions ignores the prefix that
/// makes it another one, and compilers count on that (SDM vol. 2 TZCNT, LZCNT, WBNOINVD; no profile
/// has the last one).
pub(crate) fn decoder_options(profile: &CpuProfile) -> u32 {
    let bsf = if profile.has(f::BMI1) { 0 } else { DecoderOptions::NO_MPFX_0FBC };
    let bsr = if profile.has(f::LZCNT) { 0 } else { DecoderOptions::NO_MPFX_0FBD };
    bsf | bsr | DecoderOptions::NO_WBNOINVD
}

enum Requirement {
    Always,
    Feature(Feature),
    Never,
}

fn requirement(needed: C) -> Requirement {
    use Requirement::{Always, Feature, Never};
    let feature = match needed {
        C::INTEL8086
        | C::INTEL8086_ONLY
        | C::INTEL186
        | C::INTEL286
        | C::INTEL386
        | C::INTEL486
        | C::X64
        | C::CPUID
        | C::MULTIBYTENOP
        | C::PAUSE
        | C::RDPMC
        | C::HLE_or_RTM
        | C::FPU
        | C::FPU287
        | C::FPU387
        | C::PREFETCHITI
        | C::CET_IBT => return Always,
        C::ADX => f::ADX,
        C::AES => f::AES,
        C::AVX => f::AVX,
        C::AVX2 => f::AVX2,
        C::BMI1 => f::BMI1,
        C::BMI2 => f::BMI2,
        C::CLFLUSHOPT => f::CLFLUSHOPT,
        C::CLFSH => f::CLFLUSH,
        C::CLWB => f::CLWB,
        C::CMOV => f::CMOV,
        C::CMPXCHG16B => f::CX16,
        C::CX8 => f::CX8,
        C::F16C => f::F16C,
        C::FMA => f::FMA,
        C::FSGSBASE => f::FSGSBASE,
        C::FXSR => f::FXSR,
        C::INVPCID => f::INVPCID,
        C::LZCNT => f::LZCNT,
        C::MMX => f::MMX,
        C::MOVBE => f::MOVBE,
        C::MSR => f::MSR,
        C::PCLMULQDQ => f::PCLMULQDQ,
        C::POPCNT => f::POPCNT,
        C::PREFETCHW => f::PREFETCHW,
        C::RDPID => f::RDPID,
        C::RDRAND => f::RDRAND,
        C::RDSEED => f::RDSEED,
        C::RDTSCP => f::RDTSCP,
        C::SEP => f::SEP,
        C::SHA => f::SHA,
        C::SMAP => f::SMAP,
        C::SSE => f::SSE,
        C::SSE2 => f::SSE2,
        C::SSE3 => f::SSE3,
        C::SSE4_1 => f::SSE4_1,
        C::SSE4_2 => f::SSE4_2,
        C::SSSE3 => f::SSSE3,
        C::SYSCALL => f::SYSCALL,
        C::TSC => f::TSC,
        C::XSAVE => f::XSAVE,
        C::XSAVEC => f::XSAVEC,
        C::XSAVEOPT => f::XSAVEOPT,
        _ => return Never,
    };
    Feature(feature)
}

#[cfg(test)]
mod tests {
    use engine::{Level, Vendor};
    use iced_x86::Decoder;

    use super::*;

    #[test]
    fn without_bmi1_a_prefix_does_not_make_bsf_undefined() {
        let mnemonics = |level| {
            let profile = CpuProfile::new(level, Vendor::Intel, 1_000_000, &|_| true).unwrap();
            let options = decoder_options(&profile);
            [0x09, 0xbc, 0xbd].map(|opcode| {
                Decoder::new(64, &[0xf3, 0x0f, opcode, 0xc1], options).decode().mnemonic()
            })
        };
        assert_eq!(mnemonics(Level::V3), [Mnemonic::Wbinvd, Mnemonic::Tzcnt, Mnemonic::Lzcnt]);
        assert_eq!(mnemonics(Level::V2), [Mnemonic::Wbinvd, Mnemonic::Bsf, Mnemonic::Bsr]);
    }
}
