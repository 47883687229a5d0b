//! The CPUID of a guest on KVM: the VM's profile, less what the host's kernel cannot give.
//!
//! Claims about speculative execution hold for an emulated CPU and not for the host's, so family,
//! model and stepping come from the host, and features and IA32_ARCH_CAPABILITIES are reduced to
//! what KVM offers (`engine::speculation`). IA32_SPEC_CTRL is offered only where profile and KVM
//! both have it.

use engine::CpuProfile;
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use x86::cpuid::{Answer, feature as f};

use crate::KvmError;

/// Feature registers: leaf, subleaf, and which of EAX, EBX, ECX, EDX hold features.
const FEATURES: [(u32, u32, [bool; 4]); 8] = [
    (1, 0, [false, false, true, true]),
    (7, 0, [false, true, true, true]),
    (0xd, 1, [true, false, false, false]),
    (0x8000_0001, 0, [false, false, true, true]),
    (0x8000_0007, 0, [false, false, false, true]),
    (0x8000_0008, 0, [false, true, false, false]),
    (0x8000_0021, 0, [true, false, false, false]),
    (0xd, 0, [true, false, false, false]),
];

/// The leaf of KVM's paravirtual features, and in EAX those of the clock: both generations, and that
/// it never goes backwards (Linux, Documentation/virt/kvm/x86/cpuid.rst).
const PARAVIRTUAL_FEATURES: u32 = 0x4000_0001;
const CLOCK_FEATURES: u32 = 1 << 0 | 1 << 3 | 1 << 24;
/// Spin locks that wake each other by a hypercall. The kernel answers hypercalls itself, and knows
/// nobody to wake without a local APIC of its own.
const PV_UNHALT: u32 = 1 << 7;

/// Leaves whose answer depends on ECX, with the subleaves that are given.
const SUBLEAVES: [(u32, u32); 4] = [(4, 4), (7, 1), (0xb, 2), (0xd, 3)];

fn supported_answer(supported: &CpuId, leaf: u32, subleaf: u32) -> Answer {
    let entry = supported.as_slice().iter().find(|entry| {
        let indexed = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
        entry.function == leaf && (!indexed || entry.index == subleaf)
    });
    entry.map_or_else(Answer::default, |e| Answer {
        eax: e.eax,
        ebx: e.ebx,
        ecx: e.ecx,
        edx: e.edx,
    })
}

/// `profile` reduced to what KVM supports.
pub(crate) fn restrict(profile: &CpuProfile, supported: &CpuId, capabilities: u64) -> CpuProfile {
    let mut restricted = profile.clone();
    for (leaf, subleaf, features) in FEATURES {
        let (mut answer, can) =
            (profile.cpuid(leaf, subleaf), supported_answer(supported, leaf, subleaf));
        let registers = [&mut answer.eax, &mut answer.ebx, &mut answer.ecx, &mut answer.edx];
        let can = [can.eax, can.ebx, can.ecx, can.edx];
        for ((register, can), _) in registers.into_iter().zip(can).zip(features).filter(|r| r.1) {
            *register &= can;
        }
        if leaf == 1 {
            // The local APIC, and what else the engine provides whatever KVM does.
            answer.ecx |= 1 << f::X2APIC.bit | 1 << f::TSC_DEADLINE.bit | 1 << f::HYPERVISOR.bit;
            answer.edx |= 1 << f::APIC.bit;
            answer.eax = supported_answer(supported, 1, 0).eax;
        }
        if leaf == 0x8000_0008 {
            let bits = supported_answer(supported, leaf, 0).eax & 0xff;
            answer.eax = answer.eax & !0xff | (answer.eax & 0xff).min(bits.max(36));
        }
        restricted.set_leaf(leaf, subleaf, answer);
    }
    let mut extended = restricted.cpuid(0x8000_0001, 0);
    extended.eax = restricted.cpuid(1, 0).eax;
    restricted.set_leaf(0x8000_0001, 0, extended);
    let mut answer = restricted.cpuid(PARAVIRTUAL_FEATURES, 0);
    answer.eax &= !PV_UNHALT;
    restricted.set_leaf(PARAVIRTUAL_FEATURES, 0, answer);
    restricted.restrict_arch_capabilities(capabilities);
    restricted
}

/// `profile` for a guest of which KVM executes user code: all its instructions are there, the kernel's
/// in the interpreter and the user's on the CPU. What it says of the CPU itself is KVM's. The
/// paravirtual clock is gone: it is a function of the VM's time, which begins at zero, and the
/// guest's TSC is the host's.
pub(crate) fn for_user_code(
    profile: &CpuProfile,
    supported: &CpuId,
    capabilities: u64,
) -> CpuProfile {
    let mut shared = profile.clone();
    for leaf in [1, 0x8000_0001] {
        let mut answer = shared.cpuid(leaf, 0);
        answer.eax = supported_answer(supported, 1, 0).eax;
        shared.set_leaf(leaf, 0, answer);
    }
    let mut answer = shared.cpuid(PARAVIRTUAL_FEATURES, 0);
    answer.eax &= !CLOCK_FEATURES;
    shared.set_leaf(PARAVIRTUAL_FEATURES, 0, answer);
    shared.restrict_arch_capabilities(capabilities);
    shared
}

/// The profile of the interpreter beside KVM: `restricted`, with those features of `whole` that
/// unlock bits of CR4. It must take over whatever KVM let the guest set, and a KVM has been seen
/// that lets guests set more than their CPUID says.
pub(crate) fn for_carrier(whole: &CpuProfile, restricted: &CpuProfile) -> CpuProfile {
    let mut profile = restricted.clone();
    for feature in [f::UMIP, f::FSGSBASE, f::PCID, f::XSAVE, f::SMEP, f::SMAP] {
        let mut answer = profile.cpuid(feature.leaf, feature.subleaf);
        *answer.register_mut(feature.register) |= u32::from(whole.has(feature)) << feature.bit;
        profile.set_leaf(feature.leaf, feature.subleaf, answer);
    }
    profile
}

/// The answers for KVM_SET_CPUID2. KVM itself adds what changes at run time.
pub(crate) fn entries(profile: &CpuProfile, apic_id: u32) -> Result<CpuId, KvmError> {
    let basic = 0..=profile.cpuid(0, 0).eax;
    let paravirtual = 0x4000_0000..=profile.cpuid(0x4000_0000, 0).eax.min(0x4000_0010);
    let extended = 0x8000_0000..=profile.cpuid(0x8000_0000, 0).eax;
    let mut entries = Vec::new();
    for leaf in basic.chain(paravirtual).chain(extended) {
        let indexed = SUBLEAVES.iter().find(|(indexed, _)| *indexed == leaf);
        for index in 0..indexed.map_or(1, |(_, count)| *count) {
            let Answer { eax, mut ebx, ecx, mut edx } = profile.cpuid(leaf, index);
            match leaf {
                1 => ebx |= apic_id << 24,
                0xb => edx = apic_id,
                _ => {}
            }
            let flags = if indexed.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
            let function = leaf;
            entries.push(kvm_cpuid_entry2 {
                function,
                index,
                flags,
                eax,
                ebx,
                ecx,
                edx,
                ..Default::default()
            });
        }
    }
    CpuId::from_entries(&entries).map_err(|_| KvmError::Lacks("room for the CPU profile"))
}

#[cfg(test)]
mod tests {
    use engine::{Level, Vendor};

    use super::*;

    #[test]
    fn nothing_is_claimed_that_kvm_lacks() {
        let mut profile = CpuProfile::new(Level::V3, Vendor::Intel, 1_000_000, &|_| true).unwrap();
        let features = Answer { eax: CLOCK_FEATURES | PV_UNHALT, ..Answer::default() };
        profile.set_leaf(PARAVIRTUAL_FEATURES, 0, features);
        let signature = kvm_cpuid_entry2 { function: 1, eax: 0x806f8, ..Default::default() };
        let supported = CpuId::from_entries(&[signature]).unwrap();
        let restricted = restrict(&profile, &supported, 0);
        assert_eq!(restricted.cpuid(PARAVIRTUAL_FEATURES, 0).eax, CLOCK_FEATURES);
        assert!(!restricted.has(f::AVX2) && !restricted.has(f::ARCH_CAPABILITIES));
        assert!(restricted.has(f::X2APIC) && restricted.has(f::APIC));
        assert_eq!(restricted.cpuid(1, 0).eax, 0x806f8);
        assert_eq!(restricted.cpuid(0x8000_0001, 0).eax, 0x806f8);
        assert_eq!(restricted.arch_capabilities(), 0);
    }

    #[test]
    fn the_interpreter_takes_over_every_bit_of_cr4() {
        let whole = CpuProfile::new(Level::V3, Vendor::Intel, 1_000_000, &|_| true).unwrap();
        let nothing = restrict(&whole, &CpuId::from_entries(&[]).unwrap(), 0);
        assert!(!nothing.has(f::SMEP) && !nothing.has(f::XSAVE));
        let carrier = for_carrier(&whole, &nothing);
        assert!(carrier.has(f::SMEP) && carrier.has(f::XSAVE) && !carrier.has(f::AVX2));
    }

    #[test]
    fn user_code_has_every_instruction_but_no_clock() {
        let mut profile = CpuProfile::new(Level::V3, Vendor::Intel, 1_000_000, &|_| true).unwrap();
        let features = Answer { eax: 0x0100_000b, ..Answer::default() };
        profile.set_leaf(PARAVIRTUAL_FEATURES, 0, features);
        let signature = kvm_cpuid_entry2 { function: 1, eax: 0x806f8, ..Default::default() };
        let supported = CpuId::from_entries(&[signature]).unwrap();
        let shared = for_user_code(&profile, &supported, 0);
        assert!(shared.has(f::AVX2) && shared.has(f::XSAVEC));
        assert_eq!(shared.cpuid(PARAVIRTUAL_FEATURES, 0).eax, 2);
        assert_eq!(shared.cpuid(1, 0).eax, 0x806f8);
        assert_eq!(shared.arch_capabilities(), 0);
    }

    #[test]
    fn the_entries_are_the_profile() {
        let profile = CpuProfile::new(Level::V3, Vendor::Intel, 1_000_000, &|_| true).unwrap();
        let entries = entries(&profile, 0).unwrap();
        let find = |leaf, index| {
            let found = entries.as_slice().iter().find(|e| e.function == leaf && e.index == index);
            found.copied().unwrap()
        };
        assert_eq!(find(7, 0).ebx, profile.cpuid(7, 0).ebx);
        assert_eq!(find(0xd, 2).eax, profile.cpuid(0xd, 2).eax);
        assert_eq!(find(0x8000_0008, 0).eax, profile.cpuid(0x8000_0008, 0).eax);
    }
}
