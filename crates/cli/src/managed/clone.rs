//! `clone`: copies of a VM that go on beside it.
//!
//! A copy is a suspended VM: its memory file is the very file of the snapshot (a hard link), mapped
//! privately, so that all copies share the pages that none has written to. Its disks are copies of
//! the snapshot's, sharing blocks where the file system can.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use api::{RunState, SnapshotRequest, SnapshotResult};
use control::Client;
use lifecycle::{Manifest, PendingSnapshot, SnapshotDir, SnapshotTree};
use vms::{StateRecord, Store, VmDir, VmRecord, member};

use super::args::CloneArgs;
use super::power;
use super::snapshots::{copy_disks, tree};
use super::spawn::{self, Begin};
use crate::report;

/// VMs that are started at once: enough to keep the host busy while some wait for it.
const AT_ONCE: usize = 8;

/// `clone`.
///
/// # Errors
/// One line that names the VM.
pub fn run(store: &Store, args: &CloneArgs) -> anyhow::Result<()> {
    store.sweep()?;
    let (vm, snapshot) = match args.source.split_once('/') {
        Some((vm, snapshot)) => (vm, Some(snapshot)),
        None => (args.source.as_str(), None),
    };
    let names = names(vm, args);
    for name in &names {
        vms::check_name(name)?;
        if store.vm(name).is_ok() {
            bail!("there is a VM {name} already; take another name");
        }
    }
    let vm = store.vm(vm)?;
    let source = Source::open(&vm, snapshot)?;
    let mut record = vm.record()?;
    record.origin = Some(args.source.clone());
    let made = names.iter().try_for_each(|name| make(store, name, &record, &source));
    source.close(&vm)?;
    made?;
    let text: String = names.iter().map(|name| format!("{name}\n")).collect();
    if !args.no_start {
        start_all(store, &names)?;
    }
    Ok(report::print(&text)?)
}

fn names(vm: &str, args: &CloneArgs) -> Vec<String> {
    let name = args.name.clone().unwrap_or_else(|| format!("{vm}-clone"));
    match args.count {
        None => vec![name],
        Some(count) => (1..=count).map(|number| format!("{name}-{number}")).collect(),
    }
}

/// What copies are made of: the directory of a snapshot all of whose memory is in it.
struct Source {
    path: PathBuf,
    manifest: Manifest,
    /// Taken for this, and removed afterwards.
    temporary: Option<String>,
    /// Written for this: all the memory of a difference in one file.
    _flat: Option<PendingSnapshot>,
}

impl Source {
    fn open(vm: &VmDir, snapshot: Option<&str>) -> anyhow::Result<Self> {
        let tree = tree(vm)?;
        match snapshot {
            Some(name) => Self::of_snapshot(vm, &tree, name, None),
            None if vm.state()?.state.is_alive() => {
                let _operation = vm.begin("clone")?;
                let name = format!("clone-{}", vms::fresh_name()?);
                let description = "taken for `ringfence clone`".to_owned();
                let request = SnapshotRequest { name: name.clone(), description, full: true };
                let _: SnapshotResult = Client::connect(vm)?.post_json(api::SNAPSHOTS, &request)?;
                Self::of_snapshot(vm, &tree, &name, Some(name.clone()))
            }
            None if power::has_suspended_state(vm) => {
                let path = vm.path(member::SUSPENDED);
                let dir = SnapshotDir::open(&path)?;
                dir.verify()?;
                Ok(Self { manifest: dir.manifest()?, path, temporary: None, _flat: None })
            }
            None => bail!(
                "VM {name} is not running: start it, or name a snapshot, as {name}/SNAPSHOT",
                name = vm.name()
            ),
        }
    }

    fn of_snapshot(
        vm: &VmDir,
        tree: &SnapshotTree,
        name: &str,
        temporary: Option<String>,
    ) -> anyhow::Result<Self> {
        let dir = tree.snapshot(name)?;
        dir.verify()?;
        let manifest = dir.manifest()?;
        let path = vm.path(member::SNAPSHOTS).join(name);
        if manifest.base.is_none() {
            return Ok(Self { path, manifest, temporary, _flat: None });
        }
        let flat = tree.flatten(name)?;
        Ok(Self { path: flat.path().to_owned(), manifest, temporary, _flat: Some(flat) })
    }

    fn close(self, vm: &VmDir) -> anyhow::Result<()> {
        if let Some(name) = &self.temporary {
            let _operation = vm.begin("clone")?;
            tree(vm)?.remove(name)?;
        }
        Ok(())
    }
}

/// Makes one copy, suspended.
fn make(store: &Store, name: &str, record: &VmRecord, source: &Source) -> anyhow::Result<()> {
    let record = record.clone();
    store.create(name, &record, |copy| -> anyhow::Result<()> {
        let folder = copy.path(member::SUSPENDED);
        fs::create_dir(&folder).context("cannot make a folder")?;
        for file in ["state", "memory", "manifest.json"] {
            link(&source.path.join(file), &folder.join(file))?;
        }
        let disks = copy_disks(copy, &source.path, &source.manifest)?;
        if !source_has_all_disks(&record, source) {
            bail!("the snapshot lacks the content of a disk; make copies of another one");
        }
        copy.write_record(&VmRecord { disks, ..record.clone() })?;
        Ok(copy.write_state(&StateRecord::new(RunState::Suspended))?)
    })?;
    Ok(())
}

/// Whether every disk that the guest can write to is in the snapshot: a copy must not share one.
fn source_has_all_disks(record: &VmRecord, source: &Source) -> bool {
    let Ok(machine) = super::process::machine_of(record) else { return false };
    let mut writable = (0_u32..).zip(&machine.disks).filter(|(_, disk)| !disk.is_read_only());
    writable.all(|(index, _)| source.manifest.disks.iter().any(|disk| disk.index == index))
}

/// The same file under another name; a copy where the file system has no links.
fn link(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::hard_link(from, to)
        .or_else(|_| control::copy_file(from, to))
        .with_context(|| format!("cannot link {}", to.display()))
}

/// Starts the copies, some at once.
fn start_all(store: &Store, names: &[String]) -> anyhow::Result<()> {
    for some in names.chunks(AT_ONCE) {
        let vms = some.iter().map(|name| store.vm(name)).collect::<Result<Vec<_>, _>>()?;
        let operations = vms.iter().map(|vm| vm.begin("clone")).collect::<Result<Vec<_>, _>>()?;
        let begin = Begin::Suspended(true);
        let starting = operations.iter().map(|vm| spawn::start(vm, &begin, None));
        let starting = starting.collect::<Result<Vec<_>, _>>()?;
        starting.into_iter().try_for_each(spawn::Starting::wait)?;
    }
    Ok(())
}
