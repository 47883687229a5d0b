//! Each feature bit against one of its instructions: offered means that it
//! executes, not offered means #UD.

use kit::cpu::{self, Feature, Output::*, cr4, feature};
use kit::snippet::bytes;
use kit::trap::vector::UD;
use kit::{Mode, Outcome, Report, snippet};

const fn leaf1(bit: u32) -> Feature {
    Feature(1, 0, Ecx, bit)
}

const fn leaf7(bit: u32) -> Feature {
    Feature(7, 0, Ebx, bit)
}

const fn leaf7c(bit: u32) -> Feature {
    Feature(7, 0, Ecx, bit)
}

/// Name, feature bit, machine code that needs it. RBX points to 64 aligned
/// bytes.
const CASES: &[(&str, Feature, &[u8])] = &[
    ("SSE3 haddps", leaf1(0), &[0xf2, 0x0f, 0x7c, 0xc1]),
    ("PCLMULQDQ", leaf1(1), &[0x66, 0x0f, 0x3a, 0x44, 0xc1, 0]),
    ("SSSE3 pshufb", leaf1(9), &[0x66, 0x0f, 0x38, 0x00, 0xc1]),
    ("CMPXCHG16B", leaf1(13), &[0x48, 0x0f, 0xc7, 0x0b]),
    ("SSE4.1 pmulld", leaf1(19), &[0x66, 0x0f, 0x38, 0x40, 0xc1]),
    ("SSE4.2 pcmpgtq", leaf1(20), &[0x66, 0x0f, 0x38, 0x37, 0xc1]),
    ("SSE4.2 crc32", leaf1(20), &[0xf2, 0x0f, 0x38, 0xf1, 0xc1]),
    ("MOVBE", leaf1(22), &[0x0f, 0x38, 0xf0, 0x03]),
    ("POPCNT", leaf1(23), &[0xf3, 0x0f, 0xb8, 0xc1]),
    ("AES", leaf1(25), &[0x66, 0x0f, 0x38, 0xdc, 0xc1]),
    ("XGETBV", leaf1(26), &[0x31, 0xc9, 0x0f, 0x01, 0xd0]),
    ("AVX vaddps", leaf1(28), &[0xc5, 0xfc, 0x58, 0xc1]),
    ("FMA", leaf1(12), &[0xc4, 0xe2, 0x79, 0x98, 0xc1]),
    ("F16C", leaf1(29), &[0xc4, 0xe2, 0x79, 0x13, 0xc1]),
    ("RDRAND", leaf1(30), &[0x0f, 0xc7, 0xf0]),
    ("BMI1 andn", leaf7(3), &[0xc4, 0xe2, 0x70, 0xf2, 0xc1]),
    ("AVX2 vpaddd", leaf7(5), &[0xc5, 0xfd, 0xfe, 0xc1]),
    ("BMI2 pdep", leaf7(8), &[0xc4, 0xe2, 0x73, 0xf5, 0xc1]),
    ("BMI2 mulx", leaf7(8), &[0xc4, 0xe2, 0x73, 0xf6, 0xc1]),
    ("RDSEED", leaf7(18), &[0x0f, 0xc7, 0xf8]),
    ("ADX adcx", leaf7(19), &[0x66, 0x0f, 0x38, 0xf6, 0xc1]),
    ("SMAP clac", leaf7(20), &[0x0f, 0x01, 0xca]),
    ("SHA", leaf7(29), &[0x0f, 0x38, 0xc9, 0xc1]),
    ("AVX-512F vaddps", leaf7(16), &[0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc1]),
    ("GFNI", leaf7c(8), &[0x66, 0x0f, 0x38, 0xcf, 0xc1]),
    ("VAES", leaf7c(9), &[0xc4, 0xe2, 0x7d, 0xdc, 0xc1]),
    ("VPCLMULQDQ", leaf7c(10), &[0xc4, 0xe3, 0x7d, 0x44, 0xc1, 0]),
    ("RDPID", feature::RDPID, &[0xf3, 0x0f, 0xc7, 0xf8]),
    ("MOVDIRI", leaf7c(27), &[0x0f, 0x38, 0xf9, 0x03]),
    ("RDTSCP", feature::RDTSCP, &[0x0f, 0x01, 0xf9]),
    ("SYSCALL in ring 0 is no #UD", feature::SYSCALL, &[]),
    ("SSE4A extrq", Feature(0x8000_0001, 0, Ecx, 6), &[0x66, 0x0f, 0x79, 0xc1]),
    ("LAHF in 64-bit mode", Feature(0x8000_0001, 0, Ecx, 0), &[0x9f]),
    ("XSAVEOPT", feature::XSAVEOPT, &[0x0f, 0xae, 0x33]),
    ("XSAVEC", feature::XSAVEC, &[0x0f, 0xc7, 0x23]),
    ("CLFLUSHOPT", leaf7(23), &[0x66, 0x0f, 0xae, 0x3b]),
];

/// An area for the instructions that store, aligned for all of them.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Area([u8; 4096]);

static AREA: kit::Global<Area> = kit::Global::new(Area([0; 4096]));

pub fn run(t: &mut Report) {
    let xsave = feature::XSAVE.offered();
    if xsave {
        cpu::write_cr4(cpu::read_cr4() | cr4::OSXSAVE);
        let all = u64::from(cpu::cpuid(13, 0).eax) & 0xe7;
        cpu::try_xsetbv(0, all);
    }
    for &(name, feature, code) in CASES {
        let trap = bytes(code).at(Mode::Kernel64).rbx(AREA.addr()).rax(3).run();
        let expected = if feature.offered() { Outcome::Done } else { Outcome::fault(UD) };
        let got = match trap.outcome() {
            Outcome::Fault { vector: UD, .. } => Outcome::fault(UD),
            outcome => outcome,
        };
        if code.is_empty() {
            continue;
        }
        t.eq(format_args!("feature bit: {name}"), got, expected);
    }
    if xsave {
        cpu::try_xsetbv(0, 3);
        cpu::write_cr4(cpu::read_cr4() & !cr4::OSXSAVE);
    }
    random(t);
    time(t);
}

fn random(t: &mut Report) {
    if !leaf1(30).offered() {
        return t.skip("RDRAND values", "not offered");
    }
    let code = snippet!(
        "mov ecx, 1000",
        "2:",
        "rdrand rax",
        "jc 3f",
        "dec ecx",
        "jnz 2b",
        "3:",
        "setc dl"
    );
    let first = code.user();
    let second = code.user();
    t.eq("RDRAND succeeds", (first.regs.rdx & 1, second.regs.rdx & 1), (1, 1));
    t.that("RDRAND values differ", first.regs.rax != second.regs.rax);
}

/// The time-stamp counter: monotonic, settable, with its auxiliary value.
fn time(t: &mut Report) {
    use kit::cpu::msr;
    let mut last = cpu::tsc();
    let mut monotonic = true;
    for _ in 0..1000 {
        let now = cpu::tsc();
        monotonic &= now >= last;
        last = now;
    }
    t.that("TSC is monotonic", monotonic);
    let start = cpu::tsc();
    kit::pit::wait(1193);
    t.that("TSC runs", cpu::tsc() > start + 1000);
    let from_msr = cpu::rdmsr(msr::TSC);
    t.that("TSC by its MSR", from_msr >= start && cpu::tsc() >= from_msr);
    if feature::RDTSCP.offered() {
        cpu::wrmsr(msr::TSC_AUX, 0x1234_5678);
        let trap = snippet!("rdtscp").user();
        t.eq("RDTSCP gives TSC_AUX", trap.regs.rcx, 0x1234_5678);
    }
    if feature::RDPID.offered() {
        cpu::wrmsr(msr::TSC_AUX, 0x8765_4321);
        let trap = snippet!("rdpid rax").user();
        t.eq("RDPID gives TSC_AUX", trap.regs.rax, 0x8765_4321);
    }
    let before = cpu::tsc();
    cpu::wrmsr(msr::TSC, before + (1 << 50));
    let after = cpu::tsc();
    t.that("writing the TSC moves it", after - before >= 1 << 50 && after - before < 1 << 51);
    if feature::TSC_ADJUST.offered() {
        let adjust = cpu::rdmsr(msr::TSC_ADJUST);
        let off = (adjust as i64 - (1i64 << 50)).unsigned_abs();
        t.holds("TSC_ADJUST follows a write of the TSC", off, |&off| off < 1 << 45);
        cpu::wrmsr(msr::TSC_ADJUST, adjust.wrapping_sub(1 << 50));
        let back = cpu::tsc();
        t.that("writing TSC_ADJUST moves the TSC", back < after && back >= before);
        t.eq("TSC_ADJUST reads back", cpu::rdmsr(msr::TSC_ADJUST), adjust.wrapping_sub(1 << 50));
    } else {
        cpu::wrmsr(msr::TSC, before);
        t.skip("TSC_ADJUST", "not offered");
    }
}
