//! What a VM did.

use engine::VcpuStats;
use machine::MachineStats;
use serde::Serialize;

/// Counters of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VmStats {
    /// Name of the engine.
    pub engine: String,
    /// Guest real time in nanoseconds.
    pub guest_time_ns: u64,
    /// Times that the guest was reset.
    pub resets: u64,
    /// The vCPUs, by index.
    pub vcpus: Vec<VcpuStats>,
    /// Devices, buses and timers.
    #[serde(flatten)]
    pub machine: MachineStats,
}
