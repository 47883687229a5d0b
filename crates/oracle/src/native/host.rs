//! What the host CPU has, and where its maker's choices differ from the guest's CPU.

use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

use x86::cpuid::{Answer, Feature, feature};

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

/// Whether `address` is mapped in this process, and thus, outside the windows, in its workers too:
/// a case that hits upon such an address does not fault there.
pub fn is_mapped(address: u64) -> bool {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return false };
    maps.lines().any(|line| {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let Some((start, end)) = range else { return false };
        let parse = |text| u64::from_str_radix(text, 16).unwrap_or(0);
        (parse(start)..parse(end)).contains(&address)
    })
}

/// Behaviours that the architecture leaves to the maker. The guest's CPU is Intel's (profile `v3`
/// with that vendor); on other hosts what differs is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choices {
    /// The x87 instruction pointer follows every instruction, data pointer and opcode every
    /// unmasked exception, and the segment selectors are zero, as CPUID tells the guest. AMD's
    /// CPUs save and restore the pointers only while an exception is pending.
    pub x87_pointers: bool,
    /// Near branches ignore an operand-size prefix, and one to a non-canonical address faults
    /// itself; AMD's CPUs truncate the target, and fault at it.
    pub intel_branches: bool,
}

/// The choices of the host CPU.
pub fn choices() -> Choices {
    static CHOICES: OnceLock<Choices> = OnceLock::new();
    *CHOICES.get_or_init(|| Choices {
        x87_pointers: host_has(feature::FDP_EXCPTN_ONLY) && host_has(feature::ZERO_FCS_FDS),
        intel_branches: __cpuid_count(0, 0).ebx == u32::from_le_bytes(*b"Genu"),
    })
}
