//! How a VM ends.

use std::fmt;

use engine::TripleFault;

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The guest powered off.
    PoweredOff,
    /// The guest reset itself, and the policy is not to reboot.
    Reset,
    /// The guest triple-faulted, and the policy is to stop.
    TripleFault(TripleFault),
    /// The guest wrote this to the debug-exit device.
    DebugExit(u8),
    /// It was killed.
    Killed,
    /// Ringfence or the host failed.
    Failed(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest reset itself"),
            Self::TripleFault(TripleFault { vcpu, rip, cr3 }) => {
                write!(f, "triple fault on vCPU {vcpu} at rip {rip:#x}, cr3 {cr3:#x}")
            }
            Self::DebugExit(value) => write!(f, "the guest wrote {value:#x} to debug-exit"),
            Self::Killed => f.write_str("it was killed"),
            Self::Failed(cause) => f.write_str(cause),
        }
    }
}

/// How far [`crate::Vm::run_for`] came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The instructions are executed; the VM is paused.
    Paused,
    /// The VM ended before.
    Ended(Outcome),
}
