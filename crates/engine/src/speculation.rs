//! What the guest's CPU claims about speculative execution, so that guests do without mitigations
//! that only cost time. Key items: [`signature`], [`features`], [`arch_capabilities`]; the
//! neighbour `profile` puts them into CPUID, an engine into the MSRs.
//! Sources: SDM vol. 3A "Speculative Execution Side Channel Mitigations" and vol. 4 table 2-2;
//! AMD APM vol. 3 appendix E; `cpu_vuln_whitelist` in Linux's `arch/x86/kernel/cpu/common.c`.
//!
//! # Why the claims hold on the software engines
//! A mitigation names structures of the CPU that runs it. The interpreter and the translator never
//! run the guest's own branches, returns, VERW or writes to IA32_PRED_CMD: they simulate them, or
//! run other instructions at other addresses in their place. A guest's retpoline steers no
//! predictor of the host, its RSB stuffing fills no return predictor, its barriers reach no buffer.
//! The emulated CPU has none of these structures, and pays for the sequences like for any code.
//! Guest page tables do not decide what the host can load, so page-table isolation (against
//! Meltdown) keeps nothing back either. What does help in simulated code, compiled-in index
//! masking, stays in guests whatever CPUID says.
//!
//! The claims are about the emulated CPU. They do *not* say that nothing leaks: the host CPU
//! speculates while it runs an engine, and these mitigations of a guest would not change that
//! (docs/safety.md).
//!
//! # What an engine that runs guest code natively must do
//! On such an engine (KVM) every claim becomes one about the host CPU. It must take the family,
//! model and stepping from the host, mask [`arch_capabilities`] and the features by what the
//! host's kernel offers to guests, and pass IA32_SPEC_CTRL and IA32_PRED_CMD through. A VM whose
//! profile claims more than that must not be moved to such an engine: its guest has decided at boot
//! what to leave out.

use x86::cpuid::{Feature, feature as f};
use x86::msr::arch_capabilities as cap;

use crate::profile::Vendor;

/// Family, model and stepping as leaf 1 EAX has them. Guests look errata and mitigations up by
/// these, so they are chosen for what the tables say:
/// - Intel: family 6 model 0x36 stepping 1 (Saltwell), an in-order core that does not speculate.
///   Linux knows it as such since its first mitigations (4.15), and leaves out even the fences
///   at SWAPGS and the RSB stuffing that an unaffected but speculating model gets. Of the same
///   kind are 0x1c, 0x26, 0x27 and 0x35, which bring errata or TSC rules of their own.
/// - AMD: family 0x17 model 0x31 stepping 0. No AMD model counts as not speculating; the features
///   below exclude what this family is listed for.
pub(crate) const fn signature(vendor: Vendor) -> u32 {
    match vendor {
        Vendor::Intel => 0x0003_0661,
        Vendor::Amd => 0x0083_0f10,
    }
}

/// IA32_ARCH_CAPABILITIES: affected by nothing, for guests that go by claims and not by model.
/// AMD's models count as affected by branch target injection, so there it has enhanced IBRS, the
/// cheapest answer: one write at boot. No AMD CPU has the register, but Linux reads it from any.
pub(crate) const fn arch_capabilities(vendor: Vendor) -> u64 {
    match vendor {
        Vendor::Intel => UNAFFECTED,
        Vendor::Amd => UNAFFECTED | cap::IBRS_ALL,
    }
}

/// RSBA, RRSBA and FB_CLEAR stay clear, because they ask for mitigations.
const UNAFFECTED: u64 = cap::RDCL_NO
    | cap::SKIP_L1DFL_VMENTRY
    | cap::SSB_NO
    | cap::MDS_NO
    | cap::IF_PSCHANGE_MC_NO
    | cap::TAA_NO
    | cap::SBDR_SSDP_NO
    | cap::FBSDP_NO
    | cap::PSDP_NO
    | cap::BHI_NO
    | cap::PBRSB_NO
    | cap::GDS_NO
    | cap::RFDS_NO
    | cap::ITS_NO;

/// The features that go with it: on AMD IA32_SPEC_CTRL, which enhanced IBRS needs, and what
/// IA32_ARCH_CAPABILITIES has no bit for. The barrier IBPB is left out: guests would issue it.
/// Intel's one feature bit for IA32_SPEC_CTRL includes the barrier, and nothing there needs it.
pub(crate) const fn features(vendor: Vendor) -> &'static [Feature] {
    match vendor {
        Vendor::Intel => &[f::ARCH_CAPABILITIES],
        Vendor::Amd => &[
            f::ARCH_CAPABILITIES,
            f::AMD_IBRS,
            f::AMD_STIBP,
            f::AMD_SSBD,
            f::AMD_SSB_NO,
            f::BTC_NO,
            f::SRSO_NO,
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CpuProfile, Level};

    fn profile(vendor: Vendor) -> CpuProfile {
        CpuProfile::new(Level::V3, vendor, 1_000_000, &|_| true).unwrap()
    }

    /// Family and model as an operating system computes them from leaf 1 EAX (SDM vol. 2A, CPUID).
    fn family_and_model(signature: u32) -> (u32, u32) {
        let family = signature >> 8 & 0xf;
        let extended = if family == 0xf { signature >> 20 & 0xff } else { 0 };
        (family + extended, signature >> 12 & 0xf0 | signature >> 4 & 0xf)
    }

    #[test]
    fn intel_is_a_core_that_does_not_speculate() {
        assert_eq!(family_and_model(profile(Vendor::Intel).cpuid(1, 0).eax), (6, 0x36));
        assert_eq!(family_and_model(profile(Vendor::Amd).cpuid(1, 0).eax), (0x17, 0x31));
    }

    #[test]
    fn nothing_asks_for_a_mitigation() {
        for vendor in [Vendor::Intel, Vendor::Amd] {
            let claims = profile(vendor).arch_capabilities();
            // RSBA, FB_CLEAR, RRSBA, RFDS_CLEAR.
            assert_eq!(claims & (1 << 2 | 1 << 17 | 1 << 19 | 1 << 28), 0, "{vendor:?}");
            let leaf7 = profile(vendor).cpuid(7, 0);
            // MD_CLEAR, IBRS with IBPB, L1D_FLUSH.
            assert_eq!(leaf7.edx & (1 << 10 | 1 << 26 | 1 << 28), 0, "{vendor:?}");
        }
        // IBPB.
        assert_eq!(profile(Vendor::Amd).cpuid(0x8000_0008, 0).ebx & 1 << 12, 0);
    }

    #[test]
    fn every_feature_is_in_a_leaf_that_guests_reach() {
        for vendor in [Vendor::Intel, Vendor::Amd] {
            let profile = profile(vendor);
            for feature in features(vendor) {
                let answer = profile.cpuid(feature.leaf, feature.subleaf);
                let bit = answer.register(feature.register) >> feature.bit & 1;
                assert_eq!(bit, 1, "{vendor:?} {}", feature.name);
            }
        }
    }

    #[test]
    fn enhanced_ibrs_comes_with_its_register() {
        for vendor in [Vendor::Intel, Vendor::Amd] {
            let profile = profile(vendor);
            let enhanced = profile.arch_capabilities() & cap::IBRS_ALL != 0;
            assert_eq!(enhanced, profile.has(f::AMD_IBRS), "{vendor:?}");
        }
    }
}
