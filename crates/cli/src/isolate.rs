//! Isolating the process of a VM: what it may still do, from its options.
//!
//! In two steps, with the making of the VM in between: files and privileges are given up while the
//! process has one thread, system calls when everything is set up and before the guest's first
//! instruction. See the crate `isolation`.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use anyhow::Context;
use isolation::{Done, Files, Network};
use lifecycle::storage;

use crate::args::RunArgs;
use crate::disks::DiskArg;
use crate::{nets, report};

/// A process that is isolated half.
#[must_use]
pub struct Isolation {
    network: Network,
    /// The user does not want it.
    off: bool,
}

/// Restricts which files the process opens from now on to what the VM of `args` needs; anything may
/// be done in `folders`. The process has one thread.
///
/// # Errors
/// When the host refuses what it offers.
pub fn begin(args: &RunArgs, folders: Vec<PathBuf>) -> anyhow::Result<Isolation> {
    let (mut files, network) = nets::needs(&args.nets);
    let isolation = Isolation { network, off: args.no_isolation };
    if isolation.off {
        report::note("the VM's process is not isolated, as --no-isolation says");
        return Ok(isolation);
    }
    for folder in &files.folders {
        // One that is made later could not be.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    files.folders.extend(folders);
    // With a kernel from a disk, it is read when that is open.
    files.read.extend(args.initrd.clone());
    args.disks.iter().for_each(|disk| add_disk(disk, &mut files));
    isolation::give_up_privileges()?;
    tell("files", &isolation::restrict_files(&files)?);
    Ok(isolation)
}

impl Isolation {
    /// Restricts the process's system calls.
    ///
    /// # Errors
    /// When the host refuses what it offers.
    pub fn complete(self) -> anyhow::Result<()> {
        if !self.off {
            tell("system calls", &isolation::restrict_calls(self.network)?);
        }
        Ok(())
    }
}

/// A snapshot copies disks, so their files are opened again.
fn add_disk(DiskArg(options): &DiskArg, files: &mut Files) {
    files.read.extend(storage::backing_files(options));
    let list = if options.read_only { &mut files.read } else { &mut files.write };
    list.push(options.path.clone());
}

fn tell(what: &str, done: &Done) {
    match done {
        Done::Whole => {}
        Done::Partly(why) => report::note(&format!("{what} are restricted in part: {why}")),
        Done::Not(why) => report::note(&format!("{what} are not restricted: {why}")),
    }
}
