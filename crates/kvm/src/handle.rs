//! One KVM vCPU: its system calls, with the few that no library call exists for, and its run page.

use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicU8;

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, Msrs, kvm_device_attr, kvm_interrupt, kvm_msr_entry,
    kvm_run,
};
use kvm_ioctls::VcpuFd;
use x86::msr;

use crate::KvmError;

/// `_IOW(KVMIO, 0x86, struct kvm_interrupt)`.
const KVM_INTERRUPT: libc::c_ulong = 0x4004_ae86;
/// `_IOW(KVMIO, 0xe1, struct kvm_device_attr)` and its sibling.
const KVM_SET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee1;
const KVM_GET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee2;

/// A vCPU of the kernel.
pub(crate) struct Handle {
    pub(crate) fd: VcpuFd,
    /// Bytes of the mapping of the run page and what belongs to it (KVM_GET_VCPU_MMAP_SIZE).
    pub(crate) run_size: usize,
}

/// A port access that waits for its data.
#[derive(Clone, Copy)]
pub(crate) struct PortExit {
    pub(crate) port: u16,
    pub(crate) size: usize,
    pub(crate) write: bool,
}

impl Handle {
    /// The run page, which the kernel shares with this process.
    pub(crate) fn page(&mut self) -> &mut kvm_run {
        self.fd.get_kvm_run()
    }

    /// The byte that ends KVM_RUN when it is not zero; valid as long as the Handle.
    pub(crate) fn immediate_exit(&mut self) -> *const AtomicU8 {
        (&raw const self.page().immediate_exit).cast()
    }

    /// Sets or clears the byte; others may set it at the same time.
    pub(crate) fn set_immediate_exit(&mut self, on: bool) {
        let byte = self.immediate_exit();
        // SAFETY: the byte lies in the run page, which is mapped while `fd` lives; AtomicU8 has
        // the layout of u8.
        unsafe { &*byte }.store(u8::from(on), std::sync::atomic::Ordering::SeqCst);
    }

    /// After KVM_EXIT_IO: the access, and its data: `size` bytes for each repetition.
    pub(crate) fn port_exit(&mut self) -> (PortExit, &mut [u8]) {
        let mapped = self.run_size;
        let page = self.page();
        // SAFETY: the caller has seen KVM_EXIT_IO; all fields are integers.
        let io = unsafe { page.__bindgen_anon_1.io };
        let len = usize::from(io.size) * io.count as usize;
        let offset = io.data_offset as usize;
        assert!(offset.checked_add(len).is_some_and(|end| end <= mapped), "the kernel's port data");
        // SAFETY: the range lies inside the mapping of the run page, as just checked; it is not
        // accessed by anyone else while the borrow lives.
        let data = unsafe {
            std::slice::from_raw_parts_mut(std::ptr::from_mut(page).cast::<u8>().add(offset), len)
        };
        (PortExit { port: io.port, size: io.size.into(), write: io.direction != 0 }, data)
    }

    /// Delivers an interrupt when the guest next runs. The guest must be able to take it.
    pub(crate) fn interrupt(&self, vector: u8) -> Result<(), KvmError> {
        let interrupt = kvm_interrupt { irq: vector.into() };
        // SAFETY: the kernel reads one kvm_interrupt.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_INTERRUPT, &interrupt) };
        checked(result, "KVM_INTERRUPT")
    }

    /// The guest's TSC.
    pub(crate) fn tsc(&self) -> Result<u64, KvmError> {
        Ok(self.msrs(&[msr::TSC])?[0])
    }

    /// Makes the guest's TSC show `tsc` now, by moving its offset: KVM takes a write to the MSR
    /// that is less than a second off for an attempt to synchronise, and ignores it. `agreed` makes
    /// of the offset that leads there the one that is set.
    pub(crate) fn set_tsc(
        &self,
        tsc: u64,
        agreed: impl FnOnce(u64) -> u64,
    ) -> Result<(), KvmError> {
        let delta = tsc.wrapping_sub(self.tsc()?);
        let mut offset = 0_u64;
        let attribute = kvm_device_attr {
            group: KVM_VCPU_TSC_CTRL,
            attr: KVM_VCPU_TSC_OFFSET.into(),
            addr: (&raw mut offset) as u64,
            flags: 0,
        };
        // SAFETY: the kernel reads the structure and writes 8 bytes to its address, `offset`.
        let found =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_GET_DEVICE_ATTR, &attribute) } == 0;
        if !found {
            // Before Linux 5.16: as exact as it can be.
            return self.set_msrs(&[(msr::TSC, tsc)]);
        }
        // SAFETY: the attribute's address is that of `offset`, to which the kernel has written;
        // volatile, since only the number tells the compiler so.
        unsafe {
            let at = &raw mut offset;
            at.write_volatile(agreed(at.read_volatile().wrapping_add(delta)));
        }
        // SAFETY: the kernel reads the structure and the 8 bytes at its address.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_SET_DEVICE_ATTR, &attribute) };
        checked(result, "KVM_VCPU_TSC_OFFSET")
    }

    /// The values of MSRs that KVM has.
    pub(crate) fn msrs(&self, numbers: &[u32]) -> Result<Vec<u64>, KvmError> {
        let entries: Vec<_> =
            numbers.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
        let mut msrs =
            Msrs::from_entries(&entries).map_err(|_| KvmError::Lacks("room for MSRs"))?;
        let read = self.fd.get_msrs(&mut msrs).map_err(KvmError::call("KVM_GET_MSRS"))?;
        if read != numbers.len() {
            return Err(KvmError::Lacks("an MSR of the guest (KVM_GET_MSRS)"));
        }
        Ok(msrs.as_slice().iter().map(|entry| entry.data).collect())
    }

    /// Sets MSRs that KVM has.
    pub(crate) fn set_msrs(&self, values: &[(u32, u64)]) -> Result<(), KvmError> {
        let entries: Vec<_> = values
            .iter()
            .map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() })
            .collect();
        let msrs = Msrs::from_entries(&entries).map_err(|_| KvmError::Lacks("room for MSRs"))?;
        let written = self.fd.set_msrs(&msrs).map_err(KvmError::call("KVM_SET_MSRS"))?;
        if written != values.len() {
            return Err(KvmError::Lacks("an MSR of the guest (KVM_SET_MSRS)"));
        }
        Ok(())
    }
}

fn checked(result: libc::c_int, call: &'static str) -> Result<(), KvmError> {
    if result == 0 {
        return Ok(());
    }
    Err(KvmError::Call { call, cause: std::io::Error::last_os_error() })
}
