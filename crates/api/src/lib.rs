//! Types of the control API: what a VM's process and its callers say to each other.
//!
//! Each managed VM is a process that serves HTTP with JSON bodies on a Unix socket of its owner.
//! The types here are the only definition of these bodies; the OpenAPI description in
//! `docs/openapi.json` is generated from them. Fields are only added, never renamed or removed.
//!
//! Key types: [`VmSummary`] and [`VmStatus`] (what a VM is and does), [`SnapshotInfo`],
//! [`ErrorBody`] (every answer that is not a success).
//!
//! Neighbours: `control` has the server and the client; `vms` keeps [`RunState`] and
//! [`VmSummary`] on disk; the command line prints them.

#![forbid(unsafe_code)]

mod paths;
mod snapshots;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use paths::*;
pub use snapshots::{SnapshotInfo, SnapshotRequest, SnapshotResult};

/// What a VM does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// The guest executes.
    Running,
    /// The process is there, the guest stands still.
    Paused,
    /// There is no process; state and memory are on disk, and `resume` goes on with them.
    Suspended,
    /// There is no process and no state: `start` boots.
    Stopped,
    /// The process ended without saying how; `start` boots again.
    Crashed,
}

impl RunState {
    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Suspended => "suspended",
            Self::Stopped => "stopped",
            Self::Crashed => "crashed",
        }
    }

    /// Whether there is a process.
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// One VM in a list: an element of `ps --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmSummary {
    /// The VM's name.
    pub name: String,
    /// What it does.
    pub state: RunState,
    /// Its process, while there is one.
    pub pid: Option<u32>,
    /// The engine that executes it, while there is a process.
    pub engine: Option<String>,
    /// Kind of machine.
    pub platform: String,
}

/// What a VM's process says of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmStatus {
    /// `running` or `paused`.
    pub state: RunState,
    /// The process.
    pub pid: u32,
    /// The engine that executes the guest.
    pub engine: String,
    /// Kind of machine.
    pub platform: String,
    /// Guest RAM in bytes.
    pub memory: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// When the process began, in seconds since 1970 (UTC).
    pub started: u64,
    /// The snapshot that the next difference is taken against.
    pub base: Option<String>,
}

/// What a VM's process has used so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmUsage {
    /// Seconds since the process began.
    pub wall_seconds: f64,
    /// CPU time of all its threads, in seconds.
    pub cpu_seconds: f64,
    /// Memory that the host has given to it, in bytes: resident, shared pages counted whole.
    pub resident: u64,
    /// The part of it that no other process shares, in bytes.
    pub private: u64,
    /// Guest time in nanoseconds.
    pub guest_time_ns: u64,
    /// Guest instructions, as far as the engine counts them.
    pub instructions: u64,
    /// Counters of the VM, in the form that `run --stats` writes.
    #[schema(value_type = Object)]
    pub vm: serde_json::Value,
}

/// Body of a request to switch the engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HopRequest {
    /// `auto`, `kvm`, `translator` or `interpreter`.
    pub engine: String,
}

/// How long the guest stood still for what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PauseReport {
    /// Microseconds.
    pub paused_us: u64,
}

/// Every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// One line: name, cause, way out.
    pub error: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_printed_as_they_are_encoded() {
        use RunState::*;
        for state in [Running, Paused, Suspended, Stopped, Crashed] {
            let json = serde_json::to_value(state).unwrap();
            assert_eq!(json, state.as_str());
            assert_eq!(state.is_alive(), matches!(state, Running | Paused));
        }
    }

    #[test]
    fn the_list_has_the_promised_fields() {
        let vm = VmSummary {
            name: "a".to_owned(),
            state: RunState::Running,
            pid: Some(7),
            engine: Some("translator".to_owned()),
            platform: "pc".to_owned(),
        };
        let expected =
            r#"{"name":"a","state":"running","pid":7,"engine":"translator","platform":"pc"}"#;
        assert_eq!(serde_json::to_string(&vm).unwrap(), expected);
    }
}
