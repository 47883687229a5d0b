//! What the host CPU has.

use std::arch::x86_64::__cpuid_count;

use x86::cpuid::{Answer, Feature};

/// Whether the host CPU has `feature`.
pub fn host_has(feature: Feature) -> bool {
    let highest = __cpuid_count(feature.leaf & 0x8000_0000, 0).eax;
    if feature.leaf > highest {
        return false;
    }
    let leaf = __cpuid_count(feature.leaf, feature.subleaf);
    let answer = Answer { eax: leaf.eax, ebx: leaf.ebx, ecx: leaf.ecx, edx: leaf.edx };
    answer.register(feature.register) >> feature.bit & 1 != 0
}
