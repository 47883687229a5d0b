//! The kvm engine: guest code runs on the host CPU, through /dev/kvm.
//!
//! The guest's state is either in the kernel or in an interpreter that each vCPU has beside it
//! ([`KvmVcpu`]). What KVM executes is its [`Share`]:
//! - everything, where it runs guest kernels on the CPU: the interpreter then executes what KVM
//!   fails to emulate, accesses to MSRs that KVM is not asked to keep, and everything under an
//!   instruction budget;
//! - 64-bit user code, where it emulates guest kernels: the interpreter executes the rest.
//!
//! So every value that is not in a CPU register has one meaning, that of the software engines.
//! Interrupts come from the machine's own local APIC (`lapic`), in user space.
//!
//! - [`device`]: opening /dev/kvm; [`probe`]: whether it is emulated; [`cpuid`]: what guests see;
//! - [`handle`], [`wake`]: the vCPU's system calls, and how others interrupt them;
//! - [`vm`]: what the vCPUs of a VM share;
//! - [`vcpu`], [`exits`]: the loop; [`user_code`]: that of emulated hosts; [`registers`]: to and
//!   from `engine::VcpuState`.
//!
//! Limits: no TSC scaling where the host has none; what the guest writes is known only afterwards
//! (`engine::WriteLog`); no local APIC in the kernel, irqfd or ioeventfd (ARCHITECTURE.md says why);
//! the xAPIC page cannot be moved over RAM; where KVM executes the guest's kernel, RAM below 1 MiB
//! is not write-protected. IA32_SPEC_CTRL is not passed through: guests see no more features than
//! their profile.
//! On emulated hosts user code sees of the host: its XCR0 in XGETBV and XSAVE, and the number of the
//! CPU in RDTSCP, RDPID and LSL of Linux's selector for it.
//!
//! Specification: Linux, Documentation/virt/kvm/api.rst.
//! Neighbours: implements `engine`; uses `memory`, `paging`, `lapic`, `interpreter`.

mod cpuid;
mod device;
mod error;
mod exits;
mod handle;
mod probe;
mod registers;
mod user_code;
mod vcpu;
mod vm;
mod wake;

use std::ffi::CStr;
use std::sync::Arc;

use engine::{Engine, EngineError, Vcpu, VcpuConfig};

pub use error::KvmError;
pub use probe::Speed;
pub use vcpu::KvmVcpu;

/// Name of the engine on the command line.
pub(crate) const NAME: &str = "kvm";

/// What of a guest KVM executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// All it can.
    Everything,
    /// 64-bit user code of Linux guests. For hosts whose KVM emulates guest kernels: such a KVM has
    /// been seen to have no paging outside long mode, to answer CPUID with the host's features
    /// whatever the guest's are (a Linux kernel then enables states that no vCPU has), and to fail
    /// at INT3, XRSTOR and CMPXCHG16B.
    UserCode,
}

/// The kvm engine of this host.
#[derive(Clone)]
pub struct Kvm {
    opened: Arc<device::Opened>,
    share: Option<Share>,
    vms: Arc<vm::Vms>,
}

impl Kvm {
    /// Opens /dev/kvm.
    ///
    /// # Errors
    /// [`KvmError`] says what this host lacks.
    pub fn open() -> Result<Self, KvmError> {
        Self::open_at(c"/dev/kvm")
    }

    /// Opens another device file of the same kind.
    ///
    /// # Errors
    /// [`KvmError`] says what it lacks.
    pub fn open_at(path: &CStr) -> Result<Self, KvmError> {
        Ok(Self { opened: Arc::new(device::open(path)?), share: None, vms: Arc::default() })
    }

    /// With this share instead of the one that suits the host.
    #[must_use]
    pub fn with_share(self, share: Share) -> Self {
        Self { share: Some(share), ..self }
    }

    /// Measures whether KVM runs guest kernels on the CPU; takes a few milliseconds, some ten
    /// where it does not. Measured once.
    ///
    /// # Errors
    /// [`KvmError::Call`].
    pub fn speed(&self) -> Result<Speed, KvmError> {
        self.opened.speed()
    }

    /// What of KVM's features is there, used or not, and what is missing: one clause for `doctor`.
    pub fn features(&self) -> String {
        let list = |there: bool, used: bool| -> Vec<&str> {
            let fits = self.opened.offers().filter(|offer| (offer.1, offer.2) == (there, used));
            fits.map(|offer| offer.0).collect()
        };
        let always = ["the dirty log", "MSRs in user space"];
        let groups = [
            ("used", always.into_iter().chain(list(true, true)).collect()),
            ("missing", list(false, true)),
            ("there, but not used", list(true, false)),
        ];
        let clauses = groups.iter().filter(|(_, names)| !names.is_empty());
        let clauses = clauses.map(|(what, names)| format!("{what}: {}", names.join(", ")));
        clauses.collect::<Vec<_>>().join("; ")
    }

    fn share(&self) -> Result<Share, KvmError> {
        match self.share {
            Some(share) => Ok(share),
            None => Ok(match self.speed()? {
                Speed::Hardware(_) => Share::Everything,
                Speed::Emulated(_) => Share::UserCode,
            }),
        }
    }
}

impl Engine for Kvm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn fixed_tsc_khz(&self) -> Option<u32> {
        self.opened.fixed_tsc_khz
    }

    /// Guest code writes to memory on the CPU.
    fn tracks_writes(&self) -> bool {
        false
    }

    fn create_vcpu(&self, config: VcpuConfig) -> Result<Box<dyn Vcpu>, EngineError> {
        let vm = self.vms.of(&config, &self.opened)?;
        Ok(Box::new(KvmVcpu::new(config, &self.opened, vm, self.share()?)?))
    }
}
