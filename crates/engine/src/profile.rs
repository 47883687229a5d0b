//! What the guest's CPU claims to be.
//!
//! A profile belongs to the VM and is fixed when the VM is created. The levels `v2` and `v3` are
//! the micro-architecture levels of the x86-64 psABI, each with the system features that every
//! engine provides; `portable` is the highest of them that the host offers; `host` adds what else
//! the host has and an engine can carry. RTM, CET, UINTR, AMX and APX are always hidden.
//!
//! The answers are tables. What the CPU says of speculative execution, its model number among it,
//! is in `speculation.rs`. The engine adds what changes at run time: the APIC id, OSXSAVE, and
//! the size of the XSAVE area for the present XCR0.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use x86::cpuid::{Answer, Feature, feature as f};

use crate::speculation;

/// Why a profile cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProfileError {
    /// The host lacks a feature of the profile.
    #[error("CPU profile {profile} needs {feature}, which this host lacks; choose a lower profile")]
    HostLacks {
        /// The profile.
        profile: String,
        /// The feature's name.
        feature: &'static str,
    },
}

/// CPU vendor: a few instructions behave differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Vendor {
    /// GenuineIntel: SYSCALL only in 64-bit code, SYSENTER in all.
    Intel,
    /// AuthenticAMD: SYSCALL also in compatibility code, SYSENTER only outside long mode.
    Amd,
}

/// Feature level of a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Level {
    /// x86-64-v2: SSE4.2, POPCNT, CMPXCHG16B.
    V2,
    /// x86-64-v3: AVX2, BMI, FMA, F16C, MOVBE.
    V3,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V2 => "v2",
            Self::V3 => "v3",
        })
    }
}

/// Features of level v2, with the system features of every profile.
const BASE: &[Feature] = &[
    f::FPU,
    f::DE,
    f::PSE,
    f::TSC,
    f::MSR,
    f::PAE,
    f::MCE,
    f::CX8,
    f::APIC,
    f::SEP,
    f::MTRR,
    f::PGE,
    f::MCA,
    f::CMOV,
    f::PAT,
    f::PSE36,
    f::CLFLUSH,
    f::MMX,
    f::FXSR,
    f::SSE,
    f::SSE2,
    f::SSE3,
    f::SSSE3,
    f::CX16,
    f::PCID,
    f::SSE4_1,
    f::SSE4_2,
    f::X2APIC,
    f::POPCNT,
    f::TSC_DEADLINE,
    f::XSAVE,
    f::HYPERVISOR,
    f::ARAT,
    f::FSGSBASE,
    f::TSC_ADJUST,
    f::SMEP,
    f::ERMS,
    f::FSRM,
    f::INVPCID,
    f::SMAP,
    f::UMIP,
    f::RDPID,
    f::LAHF,
    f::PREFETCHW,
    f::SYSCALL,
    f::NX,
    f::PDPE1GB,
    f::RDTSCP,
    f::LM,
    f::INVARIANT_TSC,
    f::XSAVEOPT,
    f::XSAVEC,
    f::XGETBV1,
    f::ZERO_FCS_FDS,
    f::FDP_EXCPTN_ONLY,
    f::CLFLUSHOPT,
    f::CLWB,
    f::RDRAND,
    f::RDSEED,
];

/// What level v3 adds.
const V3: &[Feature] = &[f::AVX, f::AVX2, f::BMI1, f::BMI2, f::F16C, f::FMA, f::LZCNT, f::MOVBE];

/// Optional accelerators of either level: offered where the host has them.
const OPTIONAL: &[Feature] = &[f::PCLMULQDQ, f::AES, f::ADX, f::SHA];

/// Features that software executes on the host CPU itself, so that the host must have them.
const HOST_EXECUTED: &[Feature] = &[
    f::CX16,
    f::SSE3,
    f::SSSE3,
    f::SSE4_1,
    f::SSE4_2,
    f::AVX,
    f::AVX2,
    f::F16C,
    f::FMA,
    f::PCLMULQDQ,
    f::AES,
    f::SHA,
];

/// The CPU that a VM's guest sees.
///
/// ```
/// use engine::{CpuProfile, Level, Vendor};
/// use x86::cpuid::feature;
///
/// let profile = CpuProfile::new(Level::V2, Vendor::Intel, 2_000_000, &|_| true).unwrap();
/// assert!(profile.has(feature::SSE4_2) && !profile.has(feature::AVX));
/// assert_eq!(profile.cpuid(0, 0).ebx, u32::from_le_bytes(*b"Genu"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuProfile {
    name: String,
    vendor: Vendor,
    tsc_khz: u32,
    leaves: BTreeMap<(u32, u32), Answer>,
    /// Profiles that were saved without it claim nothing.
    #[serde(default)]
    arch_capabilities: u64,
}

/// Highest physical address bit count that guests see.
const PHYSICAL_BITS: u32 = 46;
const LINEAR_BITS: u32 = 48;
/// Subleaves of leaf 4.
const CACHES: u32 = 3;

impl CpuProfile {
    /// The profile of `level`. `host` tells whether the host CPU has a feature.
    ///
    /// # Errors
    /// [`ProfileError::HostLacks`].
    pub fn new(
        level: Level,
        vendor: Vendor,
        tsc_khz: u32,
        host: &dyn Fn(Feature) -> bool,
    ) -> Result<Self, ProfileError> {
        let mut features = BASE.to_vec();
        if level >= Level::V3 {
            features.extend(V3);
        }
        let lacking = |f: &&Feature| HOST_EXECUTED.contains(f) && !host(**f);
        if let Some(missing) = features.iter().find(lacking) {
            return Err(ProfileError::HostLacks {
                profile: level.to_string(),
                feature: missing.name,
            });
        }
        features.extend(OPTIONAL.iter().filter(|f| host(**f)));
        features.extend(speculation::features(vendor));
        let mut profile = Self {
            name: level.to_string(),
            vendor,
            tsc_khz,
            leaves: BTreeMap::new(),
            arch_capabilities: speculation::arch_capabilities(vendor),
        };
        profile.fill_identity();
        for feature in features {
            let answer = profile.leaves.entry((feature.leaf, feature.subleaf)).or_default();
            *answer.register_mut(feature.register) |= 1 << feature.bit;
        }
        profile.fill_extended_state();
        Ok(profile)
    }

    /// The highest level that the host offers.
    ///
    /// # Errors
    /// [`ProfileError::HostLacks`] when the host does not even reach `v2`.
    pub fn portable(
        vendor: Vendor,
        tsc_khz: u32,
        host: &dyn Fn(Feature) -> bool,
    ) -> Result<Self, ProfileError> {
        Self::new(Level::V3, vendor, tsc_khz, host)
            .or_else(|_| Self::new(Level::V2, vendor, tsc_khz, host))
    }

    /// Name of the level.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// CPU vendor.
    pub fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// TSC frequency in kHz.
    pub fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }

    /// Replaces the TSC frequency, before the VM is created.
    pub fn set_tsc_khz(&mut self, khz: u32) {
        self.tsc_khz = khz;
    }

    /// Bits of a guest-physical address.
    pub fn physical_bits(&self) -> u32 {
        PHYSICAL_BITS
    }

    /// Whether the profile has `feature`.
    pub fn has(&self, feature: Feature) -> bool {
        self.leaves
            .get(&(feature.leaf, feature.subleaf))
            .is_some_and(|a| a.register(feature.register) >> feature.bit & 1 != 0)
    }

    /// The value of IA32_ARCH_CAPABILITIES (SDM vol. 4 table 2-2), where the profile has the
    /// feature of that name.
    pub fn arch_capabilities(&self) -> u64 {
        self.arch_capabilities
    }

    /// Keeps only those bits of IA32_ARCH_CAPABILITIES that `allowed` has: an engine that runs
    /// guest code natively can claim no more than the host.
    pub fn restrict_arch_capabilities(&mut self, allowed: u64) {
        self.arch_capabilities &= allowed;
    }

    /// Adds or replaces a leaf: the paravirtual leaves of the platform.
    pub fn set_leaf(&mut self, leaf: u32, subleaf: u32, answer: Answer) {
        self.leaves.insert((leaf, subleaf), answer);
    }

    /// Tells the guest that the machine has `cpus` processors (at least 1): one package of so many
    /// cores of one thread each, whose APIC ids count from 0 (SDM vol. 2A, CPUID leaves 1, 4 and
    /// 0xb; AMD APM vol. 3 E.4.7).
    pub fn set_processors(&mut self, cpus: u32) {
        let id_bits = cpus.next_power_of_two().trailing_zeros();
        let count = cpus.min(255);
        let mut identity = self.cpuid(1, 0);
        identity.ebx = identity.ebx & !(0xff << 16) | count << 16;
        // HTT: more than one logical processor in the package.
        identity.edx = identity.edx & !(1 << 28) | u32::from(cpus > 1) << 28;
        self.set_leaf(1, 0, identity);
        for subleaf in 0..CACHES {
            let mut cache = self.cpuid(4, subleaf);
            if cache.eax != 0 {
                cache.eax = cache.eax & !(0x3f << 26) | (cpus.min(64) - 1) << 26;
                self.set_leaf(4, subleaf, cache);
            }
        }
        // Level 0: threads of a core; level 1: cores of the package. The engine adds the APIC id.
        let level = |kind: u32, shift: u32, count: u32| Answer {
            eax: shift,
            ebx: count,
            ecx: kind << 8,
            edx: 0,
        };
        self.set_leaf(0xb, 0, level(1, 0, 1));
        self.set_leaf(0xb, 1, level(2, id_bits, cpus));
        if self.vendor == Vendor::Amd {
            let mut sizes = self.cpuid(0x8000_0008, 0);
            sizes.ecx = id_bits << 12 | (cpus - 1).min(255);
            self.set_leaf(0x8000_0008, 0, sizes);
            let mut features = self.cpuid(0x8000_0001, 0);
            // CmpLegacy: the logical processors are cores.
            features.ecx = features.ecx & !(1 << 1) | u32::from(cpus > 1) << 1;
            self.set_leaf(0x8000_0001, 0, features);
        }
    }

    /// The static answer for EAX = `leaf`, ECX = `subleaf`. A leaf without subleaves answers for
    /// any; one above the highest basic leaf answers as the highest basic leaf does on Intel and
    /// with zeros on AMD; others with zeros.
    pub fn cpuid(&self, leaf: u32, subleaf: u32) -> Answer {
        let highest_basic = self.leaves.get(&(0, 0)).map_or(0, |a| a.eax);
        let highest_extended = self.leaves.get(&(0x8000_0000, 0)).map_or(0, |a| a.eax);
        let known = match leaf {
            0x4000_0000..=0x4fff_ffff => self.leaves.contains_key(&(leaf, 0)),
            0x8000_0000..=0x8fff_ffff => leaf <= highest_extended,
            _ => leaf <= highest_basic,
        };
        if !known {
            return match self.vendor {
                Vendor::Intel if leaf < 0x4000_0000 || leaf > highest_extended => {
                    self.lookup(highest_basic, subleaf)
                }
                _ => Answer::default(),
            };
        }
        self.lookup(leaf, subleaf)
    }

    fn lookup(&self, leaf: u32, subleaf: u32) -> Answer {
        let has_subleaves = matches!(leaf, 4 | 7 | 0xb | 0xd);
        let key = (leaf, if has_subleaves { subleaf } else { 0 });
        self.leaves.get(&key).copied().unwrap_or_default()
    }

    fn fill_identity(&mut self) {
        // The highest extended leaf holds AMD's last feature bits.
        let (name, highest_extended) = match self.vendor {
            Vendor::Intel => (b"GenuineIntel", 0x8000_0008),
            Vendor::Amd => (b"AuthenticAMD", 0x8000_0021),
        };
        let signature = speculation::signature(self.vendor);
        let word =
            |at: usize| u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
        let (ebx, edx, ecx) = (word(0), word(4), word(8));
        self.set_leaf(0, 0, Answer { eax: 0xd, ebx, ecx, edx });
        // EBX: CLFLUSH line of 64 bytes, one logical processor; the engine adds the APIC id.
        self.set_leaf(1, 0, Answer { eax: signature, ebx: 8 << 8 | 1 << 16, ..Answer::default() });
        self.set_leaf(0x8000_0000, 0, Answer { eax: highest_extended, ebx, ecx, edx });
        self.set_leaf(0x8000_0001, 0, Answer { eax: signature, ..Answer::default() });
        let mut brand = [0_u8; 48];
        let text = format!("Ringfence x86-64-{} virtual CPU", self.name);
        brand[..text.len()].copy_from_slice(text.as_bytes());
        for (index, part) in brand.chunks_exact(16).enumerate() {
            let word = |at: usize| {
                u32::from_le_bytes([part[at], part[at + 1], part[at + 2], part[at + 3]])
            };
            let answer = Answer { eax: word(0), ebx: word(4), ecx: word(8), edx: word(12) };
            self.set_leaf(0x8000_0002 + index as u32, 0, answer);
        }
        // L2 of 1 MiB, 64-byte lines (AMD's form, which Intel shares in ECX).
        self.set_leaf(0x8000_0006, 0, Answer { ecx: 0x0400_6040, ..Answer::default() });
        let sizes = Answer { eax: PHYSICAL_BITS | LINEAR_BITS << 8, ..Answer::default() };
        self.set_leaf(0x8000_0008, 0, sizes);
        self.fill_caches();
    }

    /// Deterministic cache parameters: L1 32 KiB each, L2 1 MiB, as leaf 4 tells them.
    fn fill_caches(&mut self) {
        if self.vendor == Vendor::Amd {
            return;
        }
        // (type, level, ways, sets), 64-byte lines
        let caches = [(1, 1, 8, 64), (2, 1, 8, 64), (3, 2, 16, 1024)];
        for (index, (kind, level, ways, sets)) in caches.into_iter().enumerate() {
            let answer = Answer {
                eax: kind | level << 5 | 1 << 8,
                ebx: 63 | (ways - 1) << 22,
                ecx: sets - 1,
                edx: 0,
            };
            self.set_leaf(4, index as u32, answer);
        }
    }

    /// Leaf 0xd: components of the XSAVE area. EBX of subleaf 0 and 1 depends on XCR0 and is the
    /// engine's to fill in.
    fn fill_extended_state(&mut self) {
        let avx = self.has(f::AVX);
        let size = if avx { x86::xsave::AREA_SIZE } else { x86::xsave::AVX_OFFSET } as u32;
        let components = if avx { 7 } else { 3 };
        self.set_leaf(0xd, 0, Answer { eax: components, ebx: size, ecx: size, edx: 0 });
        if avx {
            let (size, offset) = (x86::xsave::AVX_SIZE as u32, x86::xsave::AVX_OFFSET as u32);
            self.set_leaf(0xd, 2, Answer { eax: size, ebx: offset, ecx: 0, edx: 0 });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intel(level: Level) -> CpuProfile {
        CpuProfile::new(level, Vendor::Intel, 1_000_000, &|_| true).unwrap()
    }

    #[test]
    fn a_missing_host_feature_is_named() {
        let no_avx2 = |feature: Feature| feature != f::AVX2;
        let error = CpuProfile::new(Level::V3, Vendor::Intel, 1, &no_avx2).unwrap_err();
        assert!(error.to_string().contains("avx2"), "{error}");
        let no_cx16 = |feature: Feature| feature != f::CX16;
        let error = CpuProfile::portable(Vendor::Intel, 1, &no_cx16).unwrap_err();
        assert!(error.to_string().contains("cx16"), "{error}");
        assert_eq!(CpuProfile::portable(Vendor::Intel, 1, &no_avx2).unwrap().name(), "v2");
    }

    #[test]
    fn dangerous_features_are_hidden() {
        let leaf7 = intel(Level::V3).cpuid(7, 0);
        let (rtm, mpx, cet_ss, uintr, amx, cet_ibt) =
            (1 << 11, 1 << 14, 1 << 7, 1 << 5, 1 << 24, 1 << 20);
        assert_eq!(leaf7.ebx & (rtm | mpx), 0);
        assert_eq!(leaf7.ecx & cet_ss, 0);
        assert_eq!(leaf7.edx & (uintr | amx | cet_ibt), 0);
    }

    #[test]
    fn leaves_out_of_range_answer_by_vendor() {
        let intel = intel(Level::V3);
        assert_eq!(intel.cpuid(0x1234, 0), intel.cpuid(0xd, 0));
        let amd = CpuProfile::new(Level::V3, Vendor::Amd, 1, &|_| true).unwrap();
        assert_eq!(amd.cpuid(0x1234, 0), Answer::default());
        assert_eq!(intel.cpuid(0x4000_0000, 0), Answer::default());
    }

    #[test]
    fn the_xsave_area_matches_the_features() {
        assert_eq!(intel(Level::V2).cpuid(0xd, 0).eax, 3);
        assert_eq!(intel(Level::V3).cpuid(0xd, 0).ecx, 832);
        assert_eq!(intel(Level::V3).cpuid(0xd, 2).ebx, 576);
    }
}
