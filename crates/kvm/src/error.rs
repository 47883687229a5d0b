//! What can go wrong with /dev/kvm.

use engine::EngineError;
use thiserror::Error;

/// Why KVM cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KvmError {
    /// There is no device file.
    #[error(
        "/dev/kvm is not there: this kernel or container has no KVM; use --engine auto, or load \
         the module kvm_intel or kvm_amd"
    )]
    Missing,
    /// The device file may not be opened.
    #[error(
        "/dev/kvm is there but may not be opened; use --engine auto, or add this user to the \
         group that owns it (usually `kvm`)"
    )]
    NoPermission,
    /// Opening failed otherwise.
    #[error("/dev/kvm cannot be opened: {0}; use --engine auto")]
    Open(std::io::Error),
    /// Something else has its name.
    #[error("/dev/kvm is not KVM's device; use --engine auto")]
    NotKvm,
    /// The kernel speaks another version of the interface.
    #[error("/dev/kvm has API version {0} where 12 is needed; use a newer kernel or --engine auto")]
    ApiVersion(i32),
    /// The kernel lacks an extension.
    #[error("/dev/kvm lacks {0} (the kernel is too old); use a newer kernel or --engine auto")]
    Lacks(&'static str),
    /// A call failed, as when the device vanishes.
    #[error("/dev/kvm: {call} failed: {cause}; use --engine auto")]
    Call {
        /// What was called.
        call: &'static str,
        /// Why it failed.
        cause: std::io::Error,
    },
    /// The kernel ended a run in a way that nothing here asked for.
    #[error("/dev/kvm: unexpected exit {0}; use --engine auto")]
    UnexpectedExit(u32),
}

impl KvmError {
    /// For `map_err` after `call`.
    pub(crate) fn call(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |error| Self::Call { call, cause: std::io::Error::from_raw_os_error(error.errno()) }
    }
}

impl From<KvmError> for EngineError {
    fn from(error: KvmError) -> Self {
        Self::Host { engine: crate::NAME, cause: error.to_string() }
    }
}
