//! The kvm engine: guest code runs on the host CPU, through /dev/kvm.
//!
//! The guest's state is either in the kernel or in an interpreter that each vCPU has beside it
//! ([`KvmVcpu`]). KVM executes as long as it can; the interpreter executes what KVM fails to
//! emulate, accesses to MSRs that KVM is not asked to keep, HLT, and everything under an
//! instruction budget. So every value that is not in a CPU register has one meaning, that of the
//! software engines. Interrupts come from the machine's own local APIC (`lapic`), in user space.
//!
//! - [`device`]: opening /dev/kvm; [`probe`]: whether it is emulated; [`cpuid`]: what guests see;
//! - [`handle`], [`wake`]: the vCPU's system calls, and how others interrupt them;
//! - [`vcpu`], [`exits`]: the loop; [`registers`]: to and from `engine::VcpuState`.
//!
//! Limits: one vCPU; no TSC scaling where the host has none; memory that the guest writes is not
//! in the dirty bitmaps of `memory`, which nobody reads from yet; the xAPIC page cannot be moved
//! over RAM. IA32_SPEC_CTRL is not passed through: guests see no more features than their profile.
//! A KVM that answers an instruction it cannot emulate with #UD in the guest, instead of reporting
//! it, cannot be helped: on one such host TZCNT in a kernel ends Linux before its user space.
//!
//! Specification: Linux, Documentation/virt/kvm/api.rst.
//! Neighbours: implements `engine`; uses `memory`, `lapic`, `interpreter`.

mod cpuid;
mod device;
mod error;
mod exits;
mod handle;
mod probe;
mod registers;
mod vcpu;
mod wake;

use std::sync::Arc;

use engine::{Engine, EngineError, Vcpu, VcpuConfig};

pub use error::KvmError;
pub use probe::Speed;
pub use vcpu::KvmVcpu;

/// Name of the engine on the command line.
pub(crate) const NAME: &str = "kvm";

/// The kvm engine of this host.
#[derive(Clone)]
pub struct Kvm {
    opened: Arc<device::Opened>,
}

impl Kvm {
    /// Opens /dev/kvm.
    ///
    /// # Errors
    /// [`KvmError`] says what this host lacks.
    pub fn open() -> Result<Self, KvmError> {
        Ok(Self { opened: Arc::new(device::open()?) })
    }

    /// Measures whether KVM runs guest kernels on the CPU; takes a few milliseconds, some ten
    /// where it does not.
    ///
    /// # Errors
    /// [`KvmError::Call`].
    pub fn speed(&self) -> Result<Speed, KvmError> {
        probe::measure(&self.opened)
    }
}

impl Engine for Kvm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn fixed_tsc_khz(&self) -> Option<u32> {
        self.opened.fixed_tsc_khz
    }

    fn create_vcpu(&self, config: VcpuConfig) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(KvmVcpu::new(config, &self.opened)?))
    }
}
