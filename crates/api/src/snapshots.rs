//! Snapshots, as they are asked for and listed.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of a request for a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotRequest {
    /// Its name, unique in the VM.
    pub name: String,
    /// What it is for, in the user's words.
    #[serde(default)]
    pub description: String,
    /// All of memory, also where a difference to an earlier snapshot would do.
    #[serde(default)]
    pub full: bool,
}

/// A snapshot that was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotResult {
    /// The snapshot.
    pub snapshot: SnapshotInfo,
    /// Microseconds for which the guest stood still.
    pub paused_us: u64,
    /// Microseconds until everything was on disk.
    pub total_us: u64,
}

/// One snapshot in a list: an element of `snapshot ls --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotInfo {
    /// Its name.
    pub name: String,
    /// The snapshot that the VM had gone on from when this one was taken.
    pub parent: Option<String>,
    /// What it is for, in the user's words.
    pub description: String,
    /// When it was taken, in seconds since 1970 (UTC).
    pub created: u64,
    /// `full`, or `difference`: only what changed since the parent is in it.
    pub kind: String,
    /// Bytes that it takes on disk.
    pub size: u64,
    /// The engine that executed the guest.
    pub engine: String,
}
