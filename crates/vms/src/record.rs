//! What is written down about a VM.

use std::path::PathBuf;

use api::RunState;
use serde::{Deserialize, Serialize};

/// Newest format of the records.
pub(crate) const FORMAT: u32 = 1;

/// How a VM was made: `vm.json`.
///
/// The machine is kept as the options of `ringfence run` that describe it: their names and
/// meanings never change, so that every later version reads what an earlier one wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// Version of this format.
    pub format: u32,
    /// When it was made, in seconds since 1970 (UTC).
    pub created: u64,
    /// The options of `run`, as they were given.
    pub options: Vec<String>,
    /// The folder that relative paths in the options begin at.
    pub folder: PathBuf,
    /// Kind of machine, as `ps` shows it.
    pub platform: String,
    /// What it was cloned from: `VM` or `VM/SNAPSHOT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Files of the VM that stand for disks of the options: those of a clone, and of a VM that went
    /// back to a snapshot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskFile>,
    /// The VM has a disk before those of the options, which it is booted from: the content of an
    /// image, copied when the VM was made, and in `disks` since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_disk: Option<ImageDisk>,
}

/// How a VM is booted from the disk that it got from an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDisk {
    /// The kernel's command line that the image says; empty for the one on the disk.
    pub cmdline: String,
    /// The format of the disk, as `--disk` calls it.
    pub format: String,
}

/// A file that stands for a disk of the options.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFile {
    /// Which disk, from 0: the one of an image if there is one, then each `--disk`.
    pub index: usize,
    /// Name of the file in the VM's folder `disks`.
    pub file: String,
}

impl VmRecord {
    /// A new VM with these options, whose relative paths begin at `folder`.
    pub fn new(options: Vec<String>, folder: PathBuf, platform: &str) -> Self {
        Self {
            format: FORMAT,
            created: now(),
            options,
            folder,
            platform: platform.to_owned(),
            origin: None,
            disks: Vec::new(),
            image_disk: None,
        }
    }
}

/// What a VM does or how it ended: `state.json`, written by its process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRecord {
    /// Version of this format.
    pub format: u32,
    /// What it does.
    pub state: RunState,
    /// Its process, the last one if there is none now.
    #[serde(default)]
    pub pid: Option<u32>,
    /// The engine.
    #[serde(default)]
    pub engine: Option<String>,
    /// When the process began, in seconds since 1970 (UTC).
    #[serde(default)]
    pub started: Option<u64>,
    /// When it ended.
    #[serde(default)]
    pub ended: Option<u64>,
    /// The exit status that `ringfence run` would have had.
    #[serde(default)]
    pub status: Option<u8>,
    /// The end in words.
    #[serde(default)]
    pub outcome: Option<String>,
    /// The snapshot that the VM has gone on from.
    #[serde(default)]
    pub current: Option<String>,
}

impl StateRecord {
    /// A VM in `state`, of which nothing else is known.
    pub fn new(state: RunState) -> Self {
        Self {
            format: FORMAT,
            state,
            pid: None,
            engine: None,
            started: None,
            ended: None,
            status: None,
            outcome: None,
            current: None,
        }
    }

    /// The record of this process, which runs a VM on `engine`.
    pub fn of_this_process(engine: &str) -> Self {
        Self {
            pid: Some(std::process::id()),
            engine: Some(engine.to_owned()),
            started: Some(now()),
            ..Self::new(RunState::Running)
        }
    }

    /// The same VM after its end.
    pub fn ended(self, state: RunState, status: u8, outcome: &str) -> Self {
        let ended = Some(now());
        Self { state, status: Some(status), outcome: Some(outcome.to_owned()), ended, ..self }
    }
}

fn now() -> u64 {
    let age = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    age.map_or(0, |age| age.as_secs())
}
