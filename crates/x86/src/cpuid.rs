//! CPUID leaves and feature bits (SDM vol. 2A, CPUID; AMD APM vol. 3 appendix E).

use serde::{Deserialize, Serialize};

/// Registers of a CPUID answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// Which register of an answer a feature bit is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

impl Answer {
    /// The register `which`.
    pub const fn register(&self, which: Register) -> u32 {
        match which {
            Register::Eax => self.eax,
            Register::Ebx => self.ebx,
            Register::Ecx => self.ecx,
            Register::Edx => self.edx,
        }
    }

    /// The register `which`, to change.
    pub const fn register_mut(&mut self, which: Register) -> &mut u32 {
        match which {
            Register::Eax => &mut self.eax,
            Register::Ebx => &mut self.ebx,
            Register::Ecx => &mut self.ecx,
            Register::Edx => &mut self.edx,
        }
    }
}

/// A feature: one bit of one answer. Its name is Linux's in `/proc/cpuinfo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Name for messages.
    pub name: &'static str,
    /// Leaf (EAX of the query).
    pub leaf: u32,
    /// Subleaf (ECX of the query).
    pub subleaf: u32,
    /// Register of the answer.
    pub register: Register,
    /// Bit, 0 to 31.
    pub bit: u8,
}

macro_rules! features {
    ($($(#[$doc:meta])* $id:ident $name:literal $leaf:literal.$sub:literal $reg:ident $bit:literal;)*) => {
        /// All features that this project knows by name.
        pub mod feature {
            use super::{Feature, Register};
            $(
                #[doc = concat!("`", $name, "`, leaf ", stringify!($leaf), " ", stringify!($reg), " bit ", stringify!($bit), ".")]
                pub const $id: Feature = Feature {
                    name: $name, leaf: $leaf, subleaf: $sub, register: Register::$reg, bit: $bit,
                };
            )*
            /// Every one of them.
            pub const ALL: &[Feature] = &[$($id),*];
        }
    };
}

features! {
    FPU "fpu" 1 .0 Edx 0; DE "de" 1 .0 Edx 2; PSE "pse" 1 .0 Edx 3; TSC "tsc" 1 .0 Edx 4;
    MSR "msr" 1 .0 Edx 5; PAE "pae" 1 .0 Edx 6; MCE "mce" 1 .0 Edx 7; CX8 "cx8" 1 .0 Edx 8;
    APIC "apic" 1 .0 Edx 9; SEP "sep" 1 .0 Edx 11; MTRR "mtrr" 1 .0 Edx 12; PGE "pge" 1 .0 Edx 13;
    MCA "mca" 1 .0 Edx 14; CMOV "cmov" 1 .0 Edx 15; PAT "pat" 1 .0 Edx 16;
    PSE36 "pse36" 1 .0 Edx 17; CLFLUSH "clflush" 1 .0 Edx 19; MMX "mmx" 1 .0 Edx 23;
    FXSR "fxsr" 1 .0 Edx 24; SSE "sse" 1 .0 Edx 25; SSE2 "sse2" 1 .0 Edx 26;
    SSE3 "pni" 1 .0 Ecx 0; PCLMULQDQ "pclmulqdq" 1 .0 Ecx 1; SSSE3 "ssse3" 1 .0 Ecx 9;
    FMA "fma" 1 .0 Ecx 12; CX16 "cx16" 1 .0 Ecx 13; PCID "pcid" 1 .0 Ecx 17;
    SSE4_1 "sse4_1" 1 .0 Ecx 19; SSE4_2 "sse4_2" 1 .0 Ecx 20; X2APIC "x2apic" 1 .0 Ecx 21;
    MOVBE "movbe" 1 .0 Ecx 22; POPCNT "popcnt" 1 .0 Ecx 23;
    TSC_DEADLINE "tsc_deadline_timer" 1 .0 Ecx 24; AES "aes" 1 .0 Ecx 25;
    XSAVE "xsave" 1 .0 Ecx 26; OSXSAVE "osxsave" 1 .0 Ecx 27; AVX "avx" 1 .0 Ecx 28;
    F16C "f16c" 1 .0 Ecx 29; RDRAND "rdrand" 1 .0 Ecx 30; HYPERVISOR "hypervisor" 1 .0 Ecx 31;
    ARAT "arat" 6 .0 Eax 2;
    FSGSBASE "fsgsbase" 7 .0 Ebx 0; TSC_ADJUST "tsc_adjust" 7 .0 Ebx 1; BMI1 "bmi1" 7 .0 Ebx 3;
    AVX2 "avx2" 7 .0 Ebx 5; FDP_EXCPTN_ONLY "fdp_excptn_only" 7 .0 Ebx 6; SMEP "smep" 7 .0 Ebx 7;
    BMI2 "bmi2" 7 .0 Ebx 8; ERMS "erms" 7 .0 Ebx 9; INVPCID "invpcid" 7 .0 Ebx 10;
    ZERO_FCS_FDS "zero_fcs_fds" 7 .0 Ebx 13; RDSEED "rdseed" 7 .0 Ebx 18; ADX "adx" 7 .0 Ebx 19;
    SMAP "smap" 7 .0 Ebx 20; CLFLUSHOPT "clflushopt" 7 .0 Ebx 23; CLWB "clwb" 7 .0 Ebx 24;
    SHA "sha_ni" 7 .0 Ebx 29;
    UMIP "umip" 7 .0 Ecx 2; RDPID "rdpid" 7 .0 Ecx 22;
    FSRM "fsrm" 7 .0 Edx 4; ARCH_CAPABILITIES "arch_capabilities" 7 .0 Edx 29;
    XSAVEOPT "xsaveopt" 0xd .1 Eax 0; XSAVEC "xsavec" 0xd .1 Eax 1; XGETBV1 "xgetbv1" 0xd .1 Eax 2;
    LAHF "lahf_lm" 0x8000_0001 .0 Ecx 0; LZCNT "abm" 0x8000_0001 .0 Ecx 5;
    PREFETCHW "3dnowprefetch" 0x8000_0001 .0 Ecx 8;
    SYSCALL "syscall" 0x8000_0001 .0 Edx 11; NX "nx" 0x8000_0001 .0 Edx 20;
    PDPE1GB "pdpe1gb" 0x8000_0001 .0 Edx 26; RDTSCP "rdtscp" 0x8000_0001 .0 Edx 27;
    LM "lm" 0x8000_0001 .0 Edx 29; INVARIANT_TSC "nonstop_tsc" 0x8000_0007 .0 Edx 8;
    AMD_IBRS "amd_ibrs" 0x8000_0008 .0 Ebx 14; AMD_STIBP "amd_stibp" 0x8000_0008 .0 Ebx 15;
    AMD_SSBD "amd_ssbd" 0x8000_0008 .0 Ebx 24; AMD_SSB_NO "amd_ssb_no" 0x8000_0008 .0 Ebx 26;
    BTC_NO "btc_no" 0x8000_0008 .0 Ebx 29; SRSO_NO "srso_no" 0x8000_0021 .0 Eax 29;
}
