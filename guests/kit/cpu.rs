//! Control registers, MSRs, CPUID, flags and the time-stamp counter.
//!
//! The `try_` functions return the vector of the exception instead of ending
//! the program.

use crate::trap::guard;
use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _rdtsc, CpuidResult};

/// Bits of RFLAGS.
pub mod flag {
    #![allow(missing_docs)] // The names are the architecture's.
    pub const CF: u64 = 1 << 0;
    pub const ZF: u64 = 1 << 6;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
}

/// Bits of CR0.
pub mod cr0 {
    #![allow(missing_docs)] // The names are the architecture's.
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

/// Bits of CR4.
pub mod cr4 {
    #![allow(missing_docs)] // The names are the architecture's.
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PAE: u64 = 1 << 5;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
}

/// MSR numbers.
pub mod msr {
    #![allow(missing_docs)] // The names are the architecture's.
    pub const TSC: u32 = 0x10;
    pub const APIC_BASE: u32 = 0x1b;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const DEBUGCTL: u32 = 0x1d9;
    pub const PAT: u32 = 0x277;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const SFMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
}

macro_rules! control_register {
    ($read:ident, $write:ident, $try_write:ident, $name:literal) => {
        #[doc = concat!("Reads ", $name, ".")]
        pub fn $read() -> u64 {
            let value: u64;
            // SAFETY: reading a control register changes nothing.
            unsafe {
                asm!(concat!("mov {}, ", $name), out(reg) value, options(nostack, preserves_flags));
            }
            value
        }

        #[doc = concat!("Writes ", $name, ".")]
        pub fn $write(value: u64) {
            // SAFETY: see the crate's contract.
            unsafe {
                asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack));
            }
        }

        #[doc = concat!("Writes ", $name, "; the vector of the exception if that faults.")]
        pub fn $try_write(value: u64) -> Option<u64> {
            guard(|| $write(value)).map(|trap| trap.vector)
        }
    };
}

control_register!(read_cr0, write_cr0, try_write_cr0, "cr0");
control_register!(read_cr2, write_cr2, try_write_cr2, "cr2");
control_register!(read_cr3, write_cr3, try_write_cr3, "cr3");
control_register!(read_cr4, write_cr4, try_write_cr4, "cr4");
control_register!(read_cr8, write_cr8, try_write_cr8, "cr8");
control_register!(read_dr0, write_dr0, try_write_dr0, "dr0");
control_register!(read_dr1, write_dr1, try_write_dr1, "dr1");
control_register!(read_dr2, write_dr2, try_write_dr2, "dr2");
control_register!(read_dr3, write_dr3, try_write_dr3, "dr3");
control_register!(read_dr6, write_dr6, try_write_dr6, "dr6");
control_register!(read_dr7, write_dr7, try_write_dr7, "dr7");

/// Reads an MSR.
pub fn rdmsr(msr: u32) -> u64 {
    let (high, low): (u32, u32);
    // SAFETY: reading an MSR changes nothing that Rust knows of.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high,
             options(nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes an MSR.
pub fn wrmsr(msr: u32, value: u64) {
    // SAFETY: see the crate's contract.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32,
             options(nostack, preserves_flags));
    }
}

/// Reads an MSR, or returns the vector of the exception.
pub fn try_rdmsr(msr: u32) -> Result<u64, u64> {
    let mut value = 0;
    match guard(|| value = rdmsr(msr)) {
        None => Ok(value),
        Some(trap) => Err(trap.vector),
    }
}

/// Writes an MSR; the vector of the exception if that faults.
pub fn try_wrmsr(msr: u32, value: u64) -> Option<u64> {
    guard(|| wrmsr(msr, value)).map(|trap| trap.vector)
}

/// Reads an extended control register.
pub fn xgetbv(index: u32) -> u64 {
    let (high, low): (u32, u32);
    // SAFETY: reading changes nothing.
    unsafe {
        asm!("xgetbv", in("ecx") index, out("eax") low, out("edx") high,
             options(nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes an extended control register; the vector of the exception if that
/// faults.
pub fn try_xsetbv(index: u32, value: u64) -> Option<u64> {
    // SAFETY: see the crate's contract.
    guard(|| unsafe {
        asm!("xsetbv", in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32,
             options(nostack, preserves_flags));
    })
    .map(|trap| trap.vector)
}

/// Executes CPUID; a leaf beyond the processor's range gives zeros.
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    if leaf > __cpuid_count(leaf & 0xffff_0000, 0).eax {
        return CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
    }
    __cpuid_count(leaf, subleaf)
}

/// A register of a CPUID leaf.
#[derive(Clone, Copy)]
#[allow(missing_docs)] // The names are the architecture's.
pub enum Output {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// A feature bit of CPUID: leaf, subleaf, register, bit.
#[derive(Clone, Copy)]
pub struct Feature(pub u32, pub u32, pub Output, pub u32);

impl Feature {
    /// Whether the processor offers it.
    pub fn offered(self) -> bool {
        let result = cpuid(self.0, self.1);
        let word = match self.2 {
            Output::Eax => result.eax,
            Output::Ebx => result.ebx,
            Output::Ecx => result.ecx,
            Output::Edx => result.edx,
        };
        word >> self.3 & 1 != 0
    }
}

/// The feature bits that programs ask for.
pub mod feature {
    #![allow(missing_docs)] // The names are the architecture's.
    use super::{Feature, Output::*};
    pub const SEP: Feature = Feature(1, 0, Edx, 11);
    pub const PGE: Feature = Feature(1, 0, Edx, 13);
    pub const MONITOR: Feature = Feature(1, 0, Ecx, 3);
    pub const PCID: Feature = Feature(1, 0, Ecx, 17);
    pub const X2APIC: Feature = Feature(1, 0, Ecx, 21);
    pub const TSC_DEADLINE: Feature = Feature(1, 0, Ecx, 24);
    pub const XSAVE: Feature = Feature(1, 0, Ecx, 26);
    pub const AVX: Feature = Feature(1, 0, Ecx, 28);
    pub const CX16: Feature = Feature(1, 0, Ecx, 13);
    pub const FSGSBASE: Feature = Feature(7, 0, Ebx, 0);
    pub const TSC_ADJUST: Feature = Feature(7, 0, Ebx, 1);
    pub const SMEP: Feature = Feature(7, 0, Ebx, 7);
    pub const INVPCID: Feature = Feature(7, 0, Ebx, 10);
    pub const SMAP: Feature = Feature(7, 0, Ebx, 20);
    pub const UMIP: Feature = Feature(7, 0, Ecx, 2);
    pub const PKU: Feature = Feature(7, 0, Ecx, 3);
    pub const LA57: Feature = Feature(7, 0, Ecx, 16);
    pub const RDPID: Feature = Feature(7, 0, Ecx, 22);
    pub const XSAVEOPT: Feature = Feature(13, 1, Eax, 0);
    pub const XSAVEC: Feature = Feature(13, 1, Eax, 1);
    pub const XSAVES: Feature = Feature(13, 1, Eax, 3);
    pub const SYSCALL: Feature = Feature(0x8000_0001, 0, Edx, 11);
    pub const NX: Feature = Feature(0x8000_0001, 0, Edx, 20);
    pub const PAGE_1G: Feature = Feature(0x8000_0001, 0, Edx, 26);
    pub const RDTSCP: Feature = Feature(0x8000_0001, 0, Edx, 27);
}

/// Whether the vendor string is AMD's or Hygon's: a few error cases differ
/// between the two architecture manuals.
pub fn is_amd() -> bool {
    let id = cpuid(0, 0);
    matches!(&id.ebx.to_le_bytes(), b"Auth" | b"Hygo")
}

/// Physical address width in bits.
pub fn physical_bits() -> u32 {
    match cpuid(0x8000_0008, 0).eax & 0xff {
        0 => 36,
        bits => bits,
    }
}

/// Reads the time-stamp counter after all earlier instructions.
pub fn tsc() -> u64 {
    // SAFETY: LFENCE and RDTSC only read.
    unsafe {
        asm!("lfence", options(nostack, preserves_flags));
        _rdtsc()
    }
}

/// Sets the interrupt flag.
pub fn sti() {
    // SAFETY: see the crate's contract.
    unsafe { asm!("sti", options(nostack)) };
}

/// Clears the interrupt flag.
pub fn cli() {
    // SAFETY: masking interrupts is always sound.
    unsafe { asm!("cli", options(nostack)) };
}

/// Lets pending interrupts in for one instruction boundary.
pub fn interrupt_window() {
    // SAFETY: see the crate's contract; the asm block is not `nostack`, so an
    // interrupt that pushes on this stack destroys nothing.
    unsafe { asm!("sti", "nop", "nop", "cli") };
}

/// Sleeps until an interrupt was handled.
pub fn sti_hlt() {
    // SAFETY: as for `interrupt_window`.
    unsafe { asm!("sti", "hlt", "cli") };
}

/// Stops with interrupts off.
pub fn halt_forever() {
    // SAFETY: nothing runs afterwards, except after an NMI.
    unsafe { asm!("cli", "hlt", options(nostack)) };
}
