//! The command line of managed VMs.

use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCompleter;

use super::complete;
use crate::args::{EngineArg, RunArgs};

/// The verbs of managed VMs.
#[derive(Debug, Subcommand)]
pub enum ManagedCommand {
    /// Make a VM that is kept, without starting it
    Create(Box<CreateArgs>),
    /// Start VMs; suspended ones go on where they were
    Start(StartArgs),
    /// Press the power button of VMs and wait until they are off
    Stop(StopArgs),
    /// End VMs at once
    Kill(Names),
    /// Remove VMs with all that belongs to them
    Rm(RmArgs),
    /// List the VMs
    Ps(ListArgs),
    /// Show how a VM was made and what it does, as JSON
    Inspect(Name),
    /// Print what a VM's guest wrote to its console
    Logs(LogsArgs),
    /// Attach to a VM's console
    #[command(after_help = CONSOLE_HELP)]
    Console(ConsoleArgs),
    /// Wait for the end of a VM; the exit status is that of `run`
    Wait(Name),
    /// Give a VM another name; it may be running
    Rename(RenameArgs),
    /// Stop the guests of VMs where they are
    Pause(Names),
    /// Let paused and suspended VMs go on
    Resume(Names),
    /// Write state and memory of VMs to disk and end their processes
    Suspend(Names),
    /// Take, list, restore and remove snapshots
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Make copies of a VM, running or not, or of a snapshot
    Clone(CloneArgs),
    /// Let another engine execute a running VM
    Hop(HopArgs),
    /// Show what running VMs use
    Stats(StatsArgs),
    /// The process of a VM
    #[command(hide = true)]
    VmProcess(ProcessArgs),
}

const CONSOLE_HELP: &str = "\
In a terminal, Ctrl-A D detaches, Ctrl-A Ctrl-A sends Ctrl-A to the guest, and Ctrl-A H shows help. \
Without a terminal, standard input goes to the guest and the guest's output to standard output, \
until the VM ends. One console at a time writes to the guest; the others look.";

/// Options of `create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name of the VM
    #[arg(value_name = "NAME")]
    pub vm: String,
    /// The machine.
    #[command(flatten)]
    pub run: RunArgs,
}

/// One VM.
#[derive(Debug, Args)]
pub struct Name {
    /// The VM
    #[arg(add = ArgValueCompleter::new(complete::vms))]
    pub name: String,
}

/// One VM or several.
#[derive(Debug, Args)]
pub struct Names {
    /// The VMs
    #[arg(required = true, value_name = "NAME", add = ArgValueCompleter::new(complete::vms))]
    pub names: Vec<String>,
}

/// Options of `start`.
#[derive(Debug, Args)]
pub struct StartArgs {
    /// The VMs.
    #[command(flatten)]
    pub vms: Names,
    /// Boot, also where there is suspended state, which is thrown away
    #[arg(long)]
    pub fresh: bool,
    /// Engine that executes the guest from now on [default: as it was created]
    #[arg(long, value_enum)]
    pub engine: Option<EngineArg>,
}

/// Options of `stop`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// The VMs.
    #[command(flatten)]
    pub vms: Names,
    /// Seconds that the guest has
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    pub timeout: u64,
    /// Kill a VM that is not off by then
    #[arg(long)]
    pub force: bool,
}

/// Options of `rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// The VMs.
    #[command(flatten)]
    pub vms: Names,
    /// Kill those that run
    #[arg(long)]
    pub force: bool,
}

/// Options of `ps`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print JSON: an array of {name, state, pid, engine, platform}
    #[arg(long)]
    pub json: bool,
}

/// Options of `logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The VM.
    #[command(flatten)]
    pub vm: Name,
    /// Go on until the VM ends
    #[arg(long, short)]
    pub follow: bool,
    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    pub tail: Option<usize>,
    /// What the VM's process said, instead of the guest
    #[arg(long)]
    pub messages: bool,
}

/// Options of `console`.
#[derive(Debug, Args)]
pub struct ConsoleArgs {
    /// The VM.
    #[command(flatten)]
    pub vm: Name,
    /// Only look, also where nobody writes
    #[arg(long)]
    pub view: bool,
    /// Bytes of the past to begin with [default: 4096 in a terminal, else 0]
    #[arg(long, value_name = "BYTES")]
    pub scroll_back: Option<u64>,
}

/// Options of `rename`.
#[derive(Debug, Args)]
pub struct RenameArgs {
    /// The VM.
    #[command(flatten)]
    pub vm: Name,
    /// Its new name
    pub new_name: String,
}

/// `snapshot`.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Take a snapshot of a running or paused VM
    Create(SnapshotCreateArgs),
    /// List the snapshots of a VM
    Ls(SnapshotListArgs),
    /// Go back to a snapshot; the VM runs afterwards
    Restore(SnapshotRestoreArgs),
    /// Remove a snapshot; those that were taken after it stay
    Rm(SnapshotName),
    /// Compare the checksums of a snapshot
    Check(SnapshotName),
}

/// One snapshot of a VM.
#[derive(Debug, Args)]
pub struct SnapshotName {
    /// The VM
    #[arg(add = ArgValueCompleter::new(complete::vms))]
    pub vm: String,
    /// The snapshot
    #[arg(add = ArgValueCompleter::new(complete::snapshots))]
    pub snapshot: String,
}

/// Options of `snapshot create`.
#[derive(Debug, Args)]
pub struct SnapshotCreateArgs {
    /// The VM
    #[arg(add = ArgValueCompleter::new(complete::vms))]
    pub vm: String,
    /// Name of the snapshot
    pub snapshot: String,
    /// What it is for
    #[arg(long, default_value = "")]
    pub description: String,
    /// Save all of memory, also where a difference to an earlier snapshot would do
    #[arg(long)]
    pub full: bool,
    /// Print JSON: {snapshot, paused_us, total_us}
    #[arg(long)]
    pub json: bool,
}

/// Options of `snapshot ls`.
#[derive(Debug, Args)]
pub struct SnapshotListArgs {
    /// The VM.
    #[command(flatten)]
    pub vm: Name,
    /// Print JSON: an array of {name, parent, description, created, kind, size, engine}
    #[arg(long)]
    pub json: bool,
}

/// Options of `snapshot restore`.
#[derive(Debug, Args)]
pub struct SnapshotRestoreArgs {
    /// Which.
    #[command(flatten)]
    pub which: SnapshotName,
    /// Engine that executes the guest from now on [default: as it was created]
    #[arg(long, value_enum)]
    pub engine: Option<EngineArg>,
}

/// Options of `clone`.
#[derive(Debug, Args)]
pub struct CloneArgs {
    /// What to copy
    #[arg(value_name = "VM|VM/SNAPSHOT", add = ArgValueCompleter::new(complete::vms))]
    pub source: String,
    /// Name of the copy; with --count, of all copies, with `-1` and so on behind it
    /// [default: that of the VM with `-clone` behind it]
    pub name: Option<String>,
    /// How many copies
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub count: Option<u32>,
    /// Leave the copies suspended
    #[arg(long)]
    pub no_start: bool,
}

/// Options of `hop`.
#[derive(Debug, Args)]
pub struct HopArgs {
    /// The VM.
    #[command(flatten)]
    pub vm: Name,
    /// The engine
    #[arg(long, value_enum)]
    pub engine: EngineArg,
    /// Print JSON: {paused_us}
    #[arg(long)]
    pub json: bool,
}

/// Options of `stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// The VMs [default: all that run]
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::vms))]
    pub names: Vec<String>,
    /// Print JSON once: an object with an element for each VM
    #[arg(long)]
    pub json: bool,
    /// Print what Prometheus reads, once; for one VM
    #[arg(long, conflicts_with = "json")]
    pub metrics: bool,
    /// Print the table once, also in a terminal
    #[arg(long)]
    pub once: bool,
}

/// Options of a VM's process.
#[derive(Debug, Args)]
pub struct ProcessArgs {
    /// The VM
    pub name: String,
    /// Go on with the suspended state
    #[arg(long)]
    pub suspended: bool,
    /// Go on from this snapshot
    #[arg(long)]
    pub snapshot: Option<String>,
    /// The VM is a copy: give it another identity
    #[arg(long)]
    pub is_copy: bool,
    /// Engine that executes the guest
    #[arg(long, value_enum)]
    pub engine: Option<EngineArg>,
}
