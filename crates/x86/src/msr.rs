//! Numbers of model-specific registers (SDM vol. 4; the KVM paravirtual interface).

/// IA32_TIME_STAMP_COUNTER.
pub const TSC: u32 = 0x10;
/// IA32_PLATFORM_ID: which microcode updates fit.
pub const PLATFORM_ID: u32 = 0x17;
/// IA32_APIC_BASE.
pub const APIC_BASE: u32 = 0x1b;
/// IA32_FEATURE_CONTROL.
pub const FEATURE_CONTROL: u32 = 0x3a;
/// IA32_TSC_ADJUST.
pub const TSC_ADJUST: u32 = 0x3b;
/// IA32_SPEC_CTRL.
pub const SPEC_CTRL: u32 = 0x48;
/// IA32_PRED_CMD.
pub const PRED_CMD: u32 = 0x49;
/// IA32_BIOS_UPDT_TRIG.
pub const UCODE_WRITE: u32 = 0x79;
/// IA32_BIOS_SIGN_ID: microcode revision.
pub const UCODE_REV: u32 = 0x8b;
/// MSR_PLATFORM_INFO.
pub const PLATFORM_INFO: u32 = 0xce;
/// IA32_MTRRCAP.
pub const MTRR_CAP: u32 = 0xfe;
/// IA32_ARCH_CAPABILITIES.
pub const ARCH_CAPABILITIES: u32 = 0x10a;
/// IA32_SYSENTER_CS.
pub const SYSENTER_CS: u32 = 0x174;
/// IA32_SYSENTER_ESP.
pub const SYSENTER_ESP: u32 = 0x175;
/// IA32_SYSENTER_EIP.
pub const SYSENTER_EIP: u32 = 0x176;
/// IA32_MCG_CAP.
pub const MCG_CAP: u32 = 0x179;
/// IA32_MCG_STATUS.
pub const MCG_STATUS: u32 = 0x17a;
/// IA32_MISC_ENABLE.
pub const MISC_ENABLE: u32 = 0x1a0;
/// IA32_DEBUGCTL.
pub const DEBUGCTL: u32 = 0x1d9;
/// IA32_MTRR_PHYSBASE0; base and mask alternate.
pub const MTRR_PHYSBASE0: u32 = 0x200;
/// IA32_MTRR_FIX64K_00000.
pub const MTRR_FIX64K: u32 = 0x250;
/// IA32_PAT.
pub const PAT: u32 = 0x277;
/// IA32_MTRR_DEF_TYPE.
pub const MTRR_DEF_TYPE: u32 = 0x2ff;
/// IA32_TSC_DEADLINE.
pub const TSC_DEADLINE: u32 = 0x6e0;
/// First x2APIC register.
pub const X2APIC_FIRST: u32 = 0x800;
/// Last x2APIC register.
pub const X2APIC_LAST: u32 = 0x8ff;
/// IA32_XSS.
pub const XSS: u32 = 0xda0;
/// EFER.
pub const EFER: u32 = 0xc000_0080;
/// STAR: selectors of SYSCALL and SYSRET.
pub const STAR: u32 = 0xc000_0081;
/// LSTAR: target of SYSCALL from 64-bit code.
pub const LSTAR: u32 = 0xc000_0082;
/// CSTAR: target of SYSCALL from compatibility code (AMD).
pub const CSTAR: u32 = 0xc000_0083;
/// SFMASK: RFLAGS bits that SYSCALL clears.
pub const SFMASK: u32 = 0xc000_0084;
/// FS base.
pub const FS_BASE: u32 = 0xc000_0100;
/// GS base.
pub const GS_BASE: u32 = 0xc000_0101;
/// The base that SWAPGS exchanges.
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// TSC_AUX, read by RDTSCP and RDPID.
pub const TSC_AUX: u32 = 0xc000_0103;

/// Bits of IA32_ARCH_CAPABILITIES (SDM vol. 4 table 2-2): what the CPU is not affected by.
pub mod arch_capabilities {
    /// Rogue data cache load (Meltdown).
    pub const RDCL_NO: u64 = 1 << 0;
    /// IBRS can stay set: enhanced IBRS.
    pub const IBRS_ALL: u64 = 1 << 1;
    /// The first-level cache need not be flushed on VM entry.
    pub const SKIP_L1DFL_VMENTRY: u64 = 1 << 3;
    /// Speculative store bypass.
    pub const SSB_NO: u64 = 1 << 4;
    /// Microarchitectural data sampling.
    pub const MDS_NO: u64 = 1 << 5;
    /// Machine check on a page-size change.
    pub const IF_PSCHANGE_MC_NO: u64 = 1 << 6;
    /// TSX asynchronous abort.
    pub const TAA_NO: u64 = 1 << 8;
    /// Shared buffers data read, and sideband stale data propagator.
    pub const SBDR_SSDP_NO: u64 = 1 << 13;
    /// Fill buffer stale data propagator.
    pub const FBSDP_NO: u64 = 1 << 14;
    /// Primary stale data propagator.
    pub const PSDP_NO: u64 = 1 << 15;
    /// Branch history injection.
    pub const BHI_NO: u64 = 1 << 20;
    /// Return predictions after a barrier.
    pub const PBRSB_NO: u64 = 1 << 24;
    /// Gather data sampling.
    pub const GDS_NO: u64 = 1 << 26;
    /// Register file data sampling.
    pub const RFDS_NO: u64 = 1 << 27;
    /// Indirect target selection.
    pub const ITS_NO: u64 = 1 << 62;
}

/// Bits of IA32_SPEC_CTRL (SDM vol. 4 table 2-2).
pub mod spec_ctrl {
    /// Indirect branch restricted speculation.
    pub const IBRS: u64 = 1 << 0;
    /// Single thread indirect branch predictors.
    pub const STIBP: u64 = 1 << 1;
    /// Speculative store bypass disable.
    pub const SSBD: u64 = 1 << 2;
}
