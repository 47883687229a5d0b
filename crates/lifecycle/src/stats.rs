//! What a VM did.

use engine::{ExitSite, VcpuStats};
use machine::MachineStats;
use serde::ser::{SerializeSeq, Serializer};
use serde::{Serialize, ser::SerializeMap};

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
    #[serde(serialize_with = "vcpus")]
    pub vcpus: Vec<VcpuStats>,
    /// Devices, buses and timers.
    #[serde(flatten)]
    pub machine: MachineStats,
}

/// Counters become an object instead of a list of pairs.
fn vcpus<S: Serializer>(vcpus: &[VcpuStats], serializer: S) -> Result<S::Ok, S::Error> {
    let mut list = serializer.serialize_seq(Some(vcpus.len()))?;
    for VcpuStats { instructions, counters, exit_sites } in vcpus {
        list.serialize_element(&Vcpu { instructions: *instructions, counters, exit_sites })?;
    }
    list.end()
}

#[derive(Serialize)]
struct Vcpu<'a> {
    instructions: Option<u64>,
    #[serde(serialize_with = "counters")]
    counters: &'a [(&'static str, u64)],
    exit_sites: &'a [ExitSite],
}

fn counters<S: Serializer>(
    counters: &[(&'static str, u64)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(counters.len()))?;
    for (name, value) in counters {
        map.serialize_entry(name, value)?;
    }
    map.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_an_object() {
        let site = ExitSite { instruction: "hlt".to_owned(), reason: "interpret", count: 3 };
        let vcpu = VcpuStats {
            instructions: Some(7),
            counters: vec![("halts", 1), ("kicks", 2)],
            exit_sites: vec![site],
        };
        let stats = VmStats { vcpus: vec![vcpu], ..VmStats::default() };
        let json = serde_json::to_value(stats).unwrap();
        assert_eq!(json["vcpus"][0]["instructions"], 7);
        assert_eq!(json["vcpus"][0]["counters"]["kicks"], 2);
        assert_eq!(json["vcpus"][0]["exit_sites"][0]["count"], 3);
        assert_eq!(json["interrupts_dropped"], 0);
    }
}
