//! `snapshot`.

use std::fs;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use api::{SnapshotRequest, SnapshotResult};
use control::Client;
use lifecycle::{Manifest, SnapshotTree};
use vms::{DiskFile, Operation, Store, VmDir, member};

use super::args::{
    SnapshotCommand, SnapshotCreateArgs, SnapshotListArgs, SnapshotName, SnapshotRestoreArgs,
};
use super::power;
use super::spawn::{self, Begin};
use crate::table::{Table, bytes};
use crate::{age, report};

/// Does what `command` says.
///
/// # Errors
/// One line that names the VM or the snapshot.
pub fn run(store: &Store, command: SnapshotCommand) -> anyhow::Result<()> {
    match command {
        SnapshotCommand::Create(args) => create(store, args),
        SnapshotCommand::Ls(args) => ls(store, &args),
        SnapshotCommand::Restore(args) => restore(store, &args),
        SnapshotCommand::Rm(args) => rm(store, &args),
        SnapshotCommand::Check(args) => check(store, &args),
    }
}

/// The snapshots of a VM.
///
/// # Errors
/// When their folder cannot be used.
pub fn tree(vm: &VmDir) -> anyhow::Result<SnapshotTree> {
    Ok(SnapshotTree::open(vm.path(member::SNAPSHOTS))?)
}

fn create(store: &Store, args: SnapshotCreateArgs) -> anyhow::Result<()> {
    let vm = store.vm(&args.vm)?;
    vms::check_name(&args.snapshot)?;
    let _operation = vm.begin("snapshot create")?;
    power::expect_process(&vm)?;
    let SnapshotCreateArgs { snapshot, description, full, json, .. } = args;
    let request = SnapshotRequest { name: snapshot, description, full };
    let taken: SnapshotResult = Client::connect(&vm)?.post_json(api::SNAPSHOTS, &request)?;
    if json {
        report::print(&(serde_json::to_string_pretty(&taken)? + "\n"))?;
    }
    Ok(())
}

fn ls(store: &Store, args: &SnapshotListArgs) -> anyhow::Result<()> {
    let vm = store.vm(&args.vm.name)?;
    let (list, damaged) = control::list_snapshots(&tree(&vm)?)?;
    damaged.iter().for_each(|text| report::error(text));
    if args.json {
        return Ok(report::print(&(serde_json::to_string_pretty(&list)? + "\n"))?);
    }
    let current = vm.state()?.current;
    let mut table = Table::new(["", "NAME", "PARENT", "TAKEN", "KIND", "SIZE", "DESCRIPTION"]);
    for snapshot in list {
        let created = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(snapshot.created));
        table.row([
            if current.as_ref() == Some(&snapshot.name) { "*" } else { "" }.to_owned(),
            snapshot.name,
            snapshot.parent.unwrap_or_default(),
            age(created.unwrap_or(SystemTime::UNIX_EPOCH), SystemTime::now()),
            snapshot.kind,
            bytes(snapshot.size),
            snapshot.description,
        ]);
    }
    Ok(report::print(&table.text())?)
}

fn restore(store: &Store, args: &SnapshotRestoreArgs) -> anyhow::Result<()> {
    let (vm, name) = (store.vm(&args.which.vm)?, &args.which.snapshot);
    let operation = vm.begin("snapshot restore")?;
    let tree = tree(&vm)?;
    // All that can be wrong with it is to be known before the VM is ended.
    let manifest = tree.manifest(name)?;
    tree.snapshot(name)?;
    let disks = prepare_disks(&vm, name, &manifest)?;
    power::end(&operation)?;
    power::forget_suspended_state(&vm)?;
    use_disks(&operation, &disks)?;
    spawn::start(&operation, &Begin::Snapshot(name.clone()), args.engine)?.wait()
}

fn rm(store: &Store, args: &SnapshotName) -> anyhow::Result<()> {
    let vm = store.vm(&args.vm)?;
    let _operation = vm.begin("snapshot rm")?;
    let tree = tree(&vm)?;
    tree.sweep()?;
    Ok(tree.remove(&args.snapshot)?)
}

fn check(store: &Store, args: &SnapshotName) -> anyhow::Result<()> {
    let vm = store.vm(&args.vm)?;
    Ok(tree(&vm)?.snapshot(&args.snapshot)?.verify()?)
}

/// Copies the disks of a snapshot into the VM's folder; the VM goes on to use what it has.
fn prepare_disks(vm: &VmDir, name: &str, manifest: &Manifest) -> anyhow::Result<Vec<DiskFile>> {
    let from = vm.path(member::SNAPSHOTS).join(name);
    copy_disks(vm, &from, manifest)
}

/// Copies the disks of the snapshot in `from` into the folder of `vm`, under fresh names.
///
/// # Errors
/// What the host says.
pub fn copy_disks(
    vm: &VmDir,
    from: &std::path::Path,
    manifest: &Manifest,
) -> anyhow::Result<Vec<DiskFile>> {
    if manifest.disks.is_empty() {
        return Ok(Vec::new());
    }
    let folder = vm.path(member::DISKS);
    fs::create_dir_all(&folder).context("cannot make the folder for disks")?;
    let mut disks = Vec::new();
    for disk in &manifest.disks {
        let name = format!("disk{}", disk.index);
        let len = fs::metadata(from.join(&name)).map(|file| file.len());
        match len {
            Ok(len) if len == disk.bytes => {}
            _ => bail!("the snapshot's file {name} is missing or truncated; restore another one"),
        }
        let file = format!("{name}-{}", vms::fresh_name()?);
        control::copy_file(&from.join(&name), &folder.join(&file))
            .context("cannot copy a disk out of the snapshot")?;
        disks.push(DiskFile { index: disk.index as usize, file });
    }
    Ok(disks)
}

/// Puts the VM on these disks, and removes those of its own that it had before.
fn use_disks(vm: &Operation<'_>, disks: &[DiskFile]) -> anyhow::Result<()> {
    let mut record = vm.dir().record()?;
    let replaced = |old: &DiskFile| disks.iter().any(|new| new.index == old.index);
    let (gone, kept): (Vec<_>, Vec<_>) = record.disks.into_iter().partition(replaced);
    record.disks = kept.into_iter().chain(disks.iter().cloned()).collect();
    vm.dir().write_record(&record)?;
    for old in gone {
        // A file too many costs room and nothing else.
        let _ = fs::remove_file(vm.dir().path(member::DISKS).join(old.file));
    }
    Ok(())
}
