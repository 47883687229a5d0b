//! Managed VMs: VMs that are kept under a name, each with a process of its own while it runs.
//!
//! The verbs find a VM by its folder (`vms`), talk to its process (`control`), or start one
//! ([`spawn`]), which then runs [`process`]. There is no daemon.

pub mod args;
mod attach;
mod clone;
pub mod complete;
mod list;
mod power;
mod process;
mod snapshots;
mod spawn;
mod stats;

use std::env;

use anyhow::{Context, bail};
use vms::{Store, VmRecord};

use crate::args::{PlatformArg, RunArgs};
use crate::disks::DiskArg;
use crate::managed::args::{CreateArgs, ManagedCommand};
use crate::{boot_files, cloud, image_disk, report, status, vm_config};

/// Does what `command` says; returns the exit status.
///
/// # Errors
/// One line that names the VM.
pub fn run(command: ManagedCommand) -> anyhow::Result<u8> {
    if let ManagedCommand::VmProcess(args) = &command {
        return process::run(args);
    }
    let store = Store::open_default()?;
    match command {
        ManagedCommand::Create(args) => create(&store, &args)?,
        ManagedCommand::Start(args) => power::start(&store, &args)?,
        ManagedCommand::Stop(args) => power::stop(&store, &args)?,
        ManagedCommand::Kill(args) => power::kill(&store, &args)?,
        ManagedCommand::Rm(args) => power::rm(&store, &args)?,
        ManagedCommand::Ps(args) => list::ps(&store, &args)?,
        ManagedCommand::Inspect(args) => list::inspect(&store, &args)?,
        ManagedCommand::Logs(args) => list::logs(&store, &args)?,
        ManagedCommand::Console(args) => attach::run(&store, &args)?,
        ManagedCommand::Wait(args) => return power::wait(&store, &args),
        ManagedCommand::Rename(args) => power::rename(&store, &args)?,
        ManagedCommand::Pause(args) => power::pause(&store, &args)?,
        ManagedCommand::Resume(args) => power::resume(&store, &args)?,
        ManagedCommand::Suspend(args) => power::suspend(&store, &args)?,
        ManagedCommand::Snapshot(command) => snapshots::run(&store, command)?,
        ManagedCommand::Clone(args) => clone::run(&store, &args)?,
        ManagedCommand::Hop(args) => stats::hop(&store, &args)?,
        ManagedCommand::Stats(args) => stats::run(&store, &args)?,
        ManagedCommand::VmProcess(_) => {}
    }
    Ok(status::SUCCESS)
}

fn create(store: &Store, args: &CreateArgs) -> anyhow::Result<()> {
    if args.run.name.is_some() || args.run.detach {
        bail!("`create` has the name already, and starts nothing; leave --name and --detach out");
    }
    make(store, &args.vm, &args.run)
}

/// `run --name NAME --detach`: makes a VM and starts it.
///
/// # Errors
/// What keeps it from being made or started.
pub fn run_detached(name: &str, args: &RunArgs) -> anyhow::Result<()> {
    let store = Store::open_default()?;
    make(&store, name, args)?;
    power::start_one(&store, name, &spawn::Begin::Boot, None)
}

/// Makes the VM `name` from the command line of this process, whose machine is `args`.
fn make(store: &Store, name: &str, args: &RunArgs) -> anyhow::Result<()> {
    store.sweep()?;
    if args.stats.is_some() {
        bail!("--stats is for a VM in the terminal; `ringfence stats {name}` shows those of this");
    }
    if args.gdb.is_some() {
        bail!("--gdb is for a VM in the terminal; leave it out");
    }
    if args.profile.is_some() || args.trace.is_some() {
        bail!("--profile and --trace are for a VM in the terminal; leave them out");
    }
    if args.ephemeral || args.disks.iter().any(DiskArg::has_overlay) {
        bail!(
            "overlays are for a VM in the terminal: snapshots do not have them yet; make one with \
             `qemu-img create -b` and give it as the disk"
        );
    }
    vm_config::check(args)?;
    cloud::disk(args)?;
    // Finds out now what is missing, and builds an image that there is not yet.
    let image_disk = image_disk::to_copy(args)?;
    let machine = image_disk::resolve_managed(args, image_disk.as_ref().map(|(own, _)| own))?;
    if !machine.boots_first_disk {
        boot_files::open(&machine, &[])?;
    }
    let options = env::args_os().skip(1).map(|arg| arg.into_string());
    let options = options.collect::<Result<Vec<_>, _>>();
    let Ok(options) = options else { bail!("the command line of a VM that is kept must be UTF-8") };
    let folder = env::current_dir().context("cannot find the current folder")?;
    let platform = match args.platform {
        PlatformArg::Pc => "pc",
        PlatformArg::XenPvh => "xen-pvh",
        PlatformArg::XenPv => "xen-pv",
    };
    let mut record = VmRecord::new(options, folder, platform);
    record.image_disk = image_disk.as_ref().map(|(own, _)| own.clone());
    store.create(name, &record, |vm| -> anyhow::Result<()> {
        if let Some((_, image)) = &image_disk {
            let disks = vec![image_disk::copy(image, vm)?];
            vm.write_record(&VmRecord { disks, ..record.clone() })?;
        }
        Ok(())
    })?;
    Ok(())
}

/// Does something to each of several VMs; all are tried, and failures are reported one by one.
fn each(names: &[String], act: impl Fn(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut failure = None;
    for name in names {
        if let Err(error) = act(name)
            && let Some(earlier) = failure.replace(error)
        {
            report::error(&format!("{earlier:#}"));
        }
    }
    failure.map_or(Ok(()), Err)
}
