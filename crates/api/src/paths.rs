//! Where the requests go. All paths begin with the version of the API.

/// What the VM is and does: [`crate::VmStatus`].
pub const VM: &str = "/v1/vm";
/// What the VM has used: [`crate::VmUsage`].
pub const STATS: &str = "/v1/stats";
/// The same for Prometheus, as text.
pub const METRICS: &str = "/v1/metrics";
/// Stops the guest where it is.
pub const PAUSE: &str = "/v1/pause";
/// Lets it go on.
pub const RESUME: &str = "/v1/resume";
/// Writes state and memory to disk and ends the process.
pub const SUSPEND: &str = "/v1/suspend";
/// Presses the power button.
pub const POWER_BUTTON: &str = "/v1/power-button";
/// Ends the VM at once.
pub const KILL: &str = "/v1/kill";
/// Takes a snapshot: [`crate::SnapshotRequest`].
pub const SNAPSHOTS: &str = "/v1/snapshots";
/// Switches the engine: [`crate::HopRequest`].
pub const HOP: &str = "/v1/hop";
/// The console: the connection is upgraded to a stream of bytes in both directions.
pub const CONSOLE: &str = "/v1/console";
/// What the connection of the console is upgraded to.
pub const CONSOLE_PROTOCOL: &str = "ringfence-console";
/// Header of the console's answer: `writer` or `viewer`.
pub const CONSOLE_ROLE: &str = "ringfence-role";
