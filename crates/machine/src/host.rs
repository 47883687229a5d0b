//! What the host offers: CPU features, vendor, TSC frequency, memory.

use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::fs;
use std::io;

use engine::Vendor;
use x86::cpuid::{Answer, Feature, feature};

/// First leaf of a hypervisor that the host itself runs in.
const HYPERVISOR: u32 = 0x4000_0000;
/// Its leaf of frequencies.
const HYPERVISOR_TIMING: u32 = 0x4000_0010;

/// The host CPU's own CPUID answer; zeros for leaves it does not have.
fn cpuid(leaf: u32, subleaf: u32) -> Answer {
    // Each range of leaves begins with one whose EAX is the last of the range.
    let highest = __cpuid(leaf & 0xf000_0000).eax;
    if leaf > highest {
        return Answer::default();
    }
    let answer = __cpuid_count(leaf, subleaf);
    Answer { eax: answer.eax, ebx: answer.ebx, ecx: answer.ecx, edx: answer.edx }
}

/// Whether programs on this host can use `feature`: the CPU has it, and the operating system
/// saves the registers that it needs (AVX state).
pub fn has(feature: Feature) -> bool {
    let present = |f: Feature| cpuid(f.leaf, f.subleaf).register(f.register) >> f.bit & 1 != 0;
    match feature {
        feature::AVX | feature::AVX2 | feature::FMA | feature::F16C => {
            // The standard library has read XCR0.
            present(feature) && std::is_x86_feature_detected!("avx")
        }
        _ => present(feature),
    }
}

/// The host CPU's vendor; others than AMD (and Hygon) behave as Intel's in what matters here.
pub fn vendor() -> Vendor {
    match &cpuid(0, 0).ebx.to_le_bytes() {
        b"Auth" | b"Hygo" => Vendor::Amd,
        _ => Vendor::Intel,
    }
}

/// The guests' TSC frequency in kHz: the host's, in whole MHz, so that an engine that lets the
/// guest read the host's counter need not scale it by much. 1 GHz where the CPU does not tell.
pub fn tsc_khz() -> u32 {
    tsc_khz_of(&cpuid).map_or(1_000_000, to_whole_mhz)
}

/// What CPUID says of the TSC: leaf 0x15 is the crystal's frequency and a ratio, leaf 0x16 the
/// base frequency in MHz (Intel SDM vol. 3B 19.7.3); inside another hypervisor leaf 0x4000_0010
/// has kHz in EAX, by a convention that VMware began.
fn tsc_khz_of(cpuid: &dyn Fn(u32, u32) -> Answer) -> Option<u32> {
    let ratio = cpuid(0x15, 0);
    if ratio.eax != 0 && ratio.ebx != 0 && ratio.ecx != 0 {
        let hz = u64::from(ratio.ecx) * u64::from(ratio.ebx) / u64::from(ratio.eax);
        return u32::try_from(hz / 1000).ok().filter(|khz| *khz != 0);
    }
    let hypervisor = feature::HYPERVISOR;
    let virtualized = cpuid(hypervisor.leaf, 0).register(hypervisor.register);
    if virtualized >> hypervisor.bit & 1 != 0 && cpuid(HYPERVISOR, 0).eax >= HYPERVISOR_TIMING {
        return Some(cpuid(HYPERVISOR_TIMING, 0).eax).filter(|khz| *khz != 0);
    }
    let mhz = cpuid(0x16, 0).eax & 0xffff;
    (mhz != 0).then(|| mhz * 1000)
}

fn to_whole_mhz(khz: u32) -> u32 {
    (khz / 1000 + u32::from(khz % 1000 >= 500)).max(1) * 1000
}

/// Memory of the host that a guest could have at most: RAM and swap, in bytes.
///
/// # Errors
/// When `/proc/meminfo` cannot be read.
pub fn memory() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    parse_meminfo(&text)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no MemTotal in /proc/meminfo"))
}

fn parse_meminfo(text: &str) -> Option<u64> {
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let total = kib("MemTotal")?.checked_add(kib("SwapTotal").unwrap_or(0))?;
    total.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_reaches_the_lowest_level() {
        assert!(has(feature::SSE2) && has(feature::LM));
        assert!(engine::CpuProfile::portable(vendor(), tsc_khz(), &has).is_ok());
        assert!(memory().unwrap() > 1 << 28);
    }

    #[test]
    fn the_frequency_comes_from_the_best_leaf() {
        let leaf15 = |leaf, _| match leaf {
            0x15 => Answer { eax: 2, ebx: 200, ecx: 24_000_000, edx: 0 },
            _ => Answer { eax: 1, ..Answer::default() },
        };
        assert_eq!(tsc_khz_of(&leaf15), Some(2_400_000));
        let leaf16 = |leaf, _| Answer { eax: if leaf == 0x16 { 3100 } else { 0 }, ..leaf15(0, 0) };
        let no_ratio = move |leaf, sub| match leaf {
            0x15 => Answer::default(),
            _ => Answer { ecx: 0, ..leaf16(leaf, sub) },
        };
        assert_eq!(tsc_khz_of(&no_ratio), Some(3_100_000));
        let guest = |leaf, _| match leaf {
            1 => Answer { ecx: 1 << 31, ..Answer::default() },
            HYPERVISOR => Answer { eax: HYPERVISOR_TIMING, ..Answer::default() },
            HYPERVISOR_TIMING => Answer { eax: 2_194_843, ..Answer::default() },
            _ => Answer::default(),
        };
        assert_eq!(tsc_khz_of(&guest), Some(2_194_843));
        assert_eq!(tsc_khz_of(&|_, _| Answer::default()), None);
    }

    #[test]
    fn frequencies_are_whole_megahertz() {
        assert_eq!(to_whole_mhz(2_194_843), 2_195_000);
        assert_eq!(to_whole_mhz(2_194_499), 2_194_000);
        assert_eq!(to_whole_mhz(3), 1000);
        assert_eq!(tsc_khz() % 1000, 0);
    }

    #[test]
    fn memory_is_ram_and_swap() {
        let text = "MemTotal:  1000 kB\nMemFree: 5 kB\nSwapTotal:  24 kB\n";
        assert_eq!(parse_meminfo(text), Some(1024 * 1024));
        assert_eq!(parse_meminfo("MemFree: 5 kB\n"), None);
    }
}
