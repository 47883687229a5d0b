//! Opening /dev/kvm, its capabilities, and VMs with memory.

use std::ffi::CStr;
use std::io::ErrorKind;
use std::sync::OnceLock;

use engine::{CpuProfile, Vendor};
use kvm_bindings::{
    CpuId, KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_CAP_IOEVENTFD, KVM_CAP_IRQFD, KVM_CAP_SIGNAL_MSI,
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_TSC_CONTROL, KVM_CAP_X86_USER_SPACE_MSR, KVM_MAX_CPUID_ENTRIES,
    KVM_MEM_LOG_DIRTY_PAGES, KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_INVAL,
    KVM_MSR_EXIT_REASON_UNKNOWN, Msrs, kvm_enable_cap, kvm_msr_entry, kvm_userspace_memory_region,
};
use kvm_ioctls::{
    Cap, Kvm as Device, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd,
};
use memory::GuestRam;
use x86::msr;

use crate::probe::{self, Speed};
use crate::{KvmError, Share};

/// The version of the interface since Linux 2.6.22.
const API_VERSION: i32 = 12;
/// Where KVM on Intel keeps pages of its own in the guest's address space: below the I/O APIC's
/// neighbours, where no platform has anything. The page tables take one page, the TSS three.
const IDENTITY_MAP: u64 = 0xfeff_c000;
const TSS: usize = 0xfeff_d000;
/// Below them, the place of a [`SparePage`].
const SPARE: u64 = 0xfeff_b000;

/// What the engine cannot do without.
const NEEDED: [(Cap, &str); 9] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::X86UserSpaceMsr, "KVM_CAP_X86_USER_SPACE_MSR"),
    (Cap::X86MsrFilter, "KVM_CAP_X86_MSR_FILTER"),
];

/// What makes a difference: in words, and whether the engine uses it where it is there.
const OPTIONAL: [(u32, &str, bool); 6] = [
    (KVM_CAP_TSC_CONTROL, "TSC scaling", true),
    (KVM_CAP_EXIT_ON_EMULATION_FAILURE, "exits at emulation failures", true),
    (KVM_CAP_SPLIT_IRQCHIP, "the local APIC in the kernel", false),
    (KVM_CAP_SIGNAL_MSI, "interrupt messages to it", false),
    (KVM_CAP_IRQFD, "irqfd", false),
    (KVM_CAP_IOEVENTFD, "ioeventfd", false),
];

/// /dev/kvm, found usable.
pub(crate) struct Opened {
    pub(crate) device: Device,
    /// What KVM can give guests.
    pub(crate) supported: CpuId,
    /// The frequency of every guest's TSC, where the CPU cannot scale it.
    pub(crate) fixed_tsc_khz: Option<u32>,
    /// As measured.
    speed: OnceLock<Speed>,
}

/// Opens /dev/kvm and looks whether it has what the engine needs.
pub(crate) fn open(path: &CStr) -> Result<Opened, KvmError> {
    let device = Device::new_with_path(path).map_err(cannot_open)?;
    check_version(device.get_api_version())?;
    if let Some((_, name)) = NEEDED.iter().find(|(cap, _)| !device.check_extension(*cap)) {
        return Err(KvmError::Lacks(name));
    }
    let supported = device
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(KvmError::call("KVM_GET_SUPPORTED_CPUID"))?;
    let mut opened = Opened { device, supported, fixed_tsc_khz: None, speed: OnceLock::new() };
    if !opened.device.check_extension(Cap::TscControl) {
        let vm = opened.create_vm()?;
        let vcpu = vm.create_vcpu(0).map_err(KvmError::call("KVM_CREATE_VCPU"))?;
        let khz = vcpu.get_tsc_khz().map_err(KvmError::call("KVM_GET_TSC_KHZ"))?;
        opened.fixed_tsc_khz = Some(khz);
    }
    Ok(opened)
}

/// Whether this is the version that the rest is written for; negative where the call failed.
fn check_version(version: i32) -> Result<(), KvmError> {
    match version {
        API_VERSION => Ok(()),
        ..0 => Err(KvmError::NotKvm),
        other => Err(KvmError::ApiVersion(other)),
    }
}

/// What it means that the device file cannot be opened.
fn cannot_open(error: kvm_ioctls::Error) -> KvmError {
    let cause = std::io::Error::from_raw_os_error(error.errno());
    match cause.kind() {
        ErrorKind::NotFound => KvmError::Missing,
        ErrorKind::PermissionDenied => KvmError::NoPermission,
        // The node is there and the module is not.
        _ if matches!(error.errno(), libc::ENXIO | libc::ENODEV) => KvmError::Missing,
        _ => KvmError::Open(cause),
    }
}

/// MSRs that KVM keeps itself, which guests access without an exit. Not the PAT: memory types mean
/// nothing without devices of the host, and KVM accepts values that no CPU does.
pub(crate) const NATIVE_MSRS: [u32; 9] = [
    msr::STAR,
    msr::LSTAR,
    msr::CSTAR,
    msr::SFMASK,
    msr::KERNEL_GS_BASE,
    msr::TSC_AUX,
    msr::SYSENTER_CS,
    msr::SYSENTER_ESP,
    msr::SYSENTER_EIP,
];

impl Opened {
    /// What KVM does with guest kernels, measured the first time.
    pub(crate) fn speed(&self) -> Result<Speed, KvmError> {
        if let Some(speed) = self.speed.get() {
            return Ok(*speed);
        }
        let measured = probe::measure(self)?;
        Ok(*self.speed.get_or_init(|| measured))
    }

    /// An empty VM.
    pub(crate) fn create_vm(&self) -> Result<VmFd, KvmError> {
        let vm = loop {
            match self.device.create_vm() {
                Err(error) if error.errno() == libc::EINTR => {}
                other => break other.map_err(KvmError::call("KVM_CREATE_VM"))?,
            }
        };
        vm.set_identity_map_address(IDENTITY_MAP)
            .map_err(KvmError::call("KVM_SET_IDENTITY_MAP_ADDR"))?;
        vm.set_tss_address(TSS).map_err(KvmError::call("KVM_SET_TSS_ADDR"))?;
        Ok(vm)
    }

    /// Makes every access to an MSR that is not in [`NATIVE_MSRS`] an exit, and every instruction
    /// that KVM should emulate and cannot.
    pub(crate) fn take_exits(&self, vm: &VmFd) -> Result<(), KvmError> {
        let reasons =
            KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER;
        let mut cap = kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, ..Default::default() };
        cap.args[0] = u64::from(reasons);
        vm.enable_cap(&cap).map_err(KvmError::call("KVM_CAP_X86_USER_SPACE_MSR"))?;
        if vm.check_extension_raw(KVM_CAP_EXIT_ON_EMULATION_FAILURE.into()) > 0 {
            // Else user code is given #UD for what KVM cannot emulate.
            let cap = KVM_CAP_EXIT_ON_EMULATION_FAILURE;
            let mut cap = kvm_enable_cap { cap, ..Default::default() };
            cap.args[0] = 1;
            vm.enable_cap(&cap).map_err(KvmError::call("KVM_CAP_EXIT_ON_EMULATION_FAILURE"))?;
        }
        // What KVM's emulator needs to execute RDMSR of the segment bases and EFER is theirs, too.
        let ranges = [(msr::SYSENTER_CS, 3), (msr::EFER, 5), (msr::FS_BASE, 4)];
        let allow = [0xff_u8];
        let ranges = ranges.map(|(base, msr_count)| MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base,
            msr_count,
            bitmap: &allow,
        });
        vm.set_msr_filter(MsrFilterDefaultAction::DENY, &ranges)
            .map_err(KvmError::call("KVM_X86_SET_MSR_FILTER"))
    }

    /// What the kernel offers of what makes a difference: in words, whether it is there, and whether
    /// the engine uses it then.
    pub(crate) fn offers(&self) -> impl Iterator<Item = (&'static str, bool, bool)> + '_ {
        let there = |cap: u32| self.device.check_extension_raw(cap.into()) > 0;
        OPTIONAL.iter().map(move |(cap, name, used)| (*name, there(*cap), *used))
    }

    /// The part of IA32_ARCH_CAPABILITIES that KVM offers guests; 0 when it has none.
    fn arch_capabilities(&self) -> u64 {
        let entry = kvm_msr_entry { index: msr::ARCH_CAPABILITIES, ..Default::default() };
        let Ok(mut msrs) = Msrs::from_entries(&[entry]) else { return 0 };
        match self.device.get_msrs(&mut msrs) {
            Ok(1) => msrs.as_slice()[0].data,
            _ => 0,
        }
    }

    /// What guests with `profile` see (crate `engine`, `speculation`).
    pub(crate) fn shown(&self, profile: &CpuProfile, share: Share) -> CpuProfile {
        let capabilities = self.arch_capabilities();
        match share {
            Share::Everything => crate::cpuid::restrict(profile, &self.supported, capabilities),
            Share::UserCode => crate::cpuid::for_user_code(profile, &self.supported, capabilities),
        }
    }

    /// Whether KVM runs on a CPU of `vendor`.
    pub(crate) fn is_vendor(&self, vendor: Vendor) -> bool {
        let name = match vendor {
            Vendor::Intel => u32::from_le_bytes(*b"Genu"),
            Vendor::Amd => u32::from_le_bytes(*b"Auth"),
        };
        self.supported.as_slice().iter().any(|entry| entry.function == 0 && entry.ebx == name)
    }
}

/// Gives `vm` all of `ram`, each region in the slot of its index, or changes whether the pages that
/// are written there are `logged`; returns how many slots that took.
pub(crate) fn map_ram(vm: &VmFd, ram: &GuestRam, logged: bool) -> Result<u32, KvmError> {
    let mut count = 0;
    let flags = if logged { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
    for (slot, region) in (0..).zip(ram.regions()) {
        let slot = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: region.gpa,
            memory_size: region.len,
            userspace_addr: ram.host_window() as u64 + region.offset.0,
        };
        // SAFETY: the region lies inside the window, which is mapped while the GuestRam lives, and
        // who made the VM keeps the GuestRam as long. The guest may change the bytes at any time,
        // as the GuestRam expects of vCPUs.
        unsafe { vm.set_user_memory_region(slot) }
            .map_err(KvmError::call("KVM_SET_USER_MEMORY_REGION"))?;
        count += 1;
    }
    Ok(count)
}

/// A page that comes and goes where nothing else is.
pub(crate) struct SparePage {
    ram: GuestRam,
    slot: u32,
}

impl SparePage {
    /// For a VM that uses the slots below `slot`.
    pub(crate) fn new(slot: u32) -> Result<Self, KvmError> {
        let ram = GuestRam::new(&[(SPARE, 4096)]).map_err(|_| KvmError::Lacks("a page"))?;
        Ok(Self { ram, slot })
    }

    /// Makes `vm` forget all it has cached of its guest's page tables: the interface has no call for
    /// that, but KVM does it when memory is removed.
    pub(crate) fn flush(&self, vm: &VmFd) -> Result<(), KvmError> {
        for memory_size in [4096, 0] {
            let slot = kvm_userspace_memory_region {
                slot: self.slot,
                flags: 0,
                guest_phys_addr: SPARE,
                memory_size,
                userspace_addr: self.ram.host_window() as u64,
            };
            // SAFETY: the window is one page, mapped while `ram` lives; the slot is empty again
            // when this returns.
            unsafe { vm.set_user_memory_region(slot) }
                .map_err(KvmError::call("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_opened_says_why() {
        let text = |errno| cannot_open(kvm_ioctls::Error::new(errno)).to_string();
        for (errno, part) in [
            (libc::ENOENT, "not there"),
            (libc::ENODEV, "not there"),
            (libc::ENXIO, "not there"),
            (libc::EACCES, "group"),
            (libc::EPERM, "group"),
            (libc::EBUSY, "busy"),
        ] {
            assert!(text(errno).contains(part), "{errno}: {}", text(errno));
            assert!(text(errno).contains("--engine auto"), "{errno}: {}", text(errno));
        }
    }

    #[test]
    fn tsc_scaling_is_told_as_it_is_used() {
        match open(c"/dev/kvm") {
            Ok(kvm) => {
                let (_, there, used) = kvm.offers().next().unwrap();
                assert!(used && there == kvm.fixed_tsc_khz.is_none());
            }
            Err(error) => eprintln!("skipped: {error}"),
        }
    }

    #[test]
    fn other_versions_of_the_interface_are_refused_by_number() {
        assert!(check_version(12).is_ok());
        let error = check_version(11).unwrap_err().to_string();
        assert!(error.contains("version 11") && error.contains("--engine auto"), "{error}");
        assert!(matches!(check_version(-1), Err(KvmError::NotKvm)));
    }

    #[test]
    fn other_files_are_not_taken_for_kvm() {
        assert!(matches!(open(c"/dev/null"), Err(KvmError::NotKvm)));
        assert!(matches!(open(c"/dev/null/kvm"), Err(KvmError::Open(_))));
        assert!(matches!(open(c"/nowhere/kvm"), Err(KvmError::Missing)));
    }
}
