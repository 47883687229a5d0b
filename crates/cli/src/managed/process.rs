//! The process of a managed VM: `vm-process`, which [`super::spawn`] starts.
//!
//! It takes the VM's run lock, opens what the VM needs, makes it, serves the control API, gives up
//! what it does not need any more ([`isolate`]), and says on standard output `ok` or, in one line,
//! what is wrong. Then it waits for the VM's end.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Parser;
use control::{ConsoleHub, DiskSource, Guest, Launch, Origin, Server};
use signal_hook::consts::signal::{SIGCONT, SIGTERM};
use vms::{Lock, Store, VmDir, VmRecord, member};

use super::args::{CreateArgs, ManagedCommand, ProcessArgs};
use crate::args::{Cli, Command, RunArgs};
use crate::disks::{DiskArg, WhenFull};
use crate::nets::NetArg;
use crate::vm_config::{self, Use};
use crate::{image_disk, isolate, report, signals, status};

/// How long a guest has after the power button when the process is told to end.
const GRACE: Duration = Duration::from_secs(10);

/// Runs the VM; returns the exit status.
///
/// # Errors
/// What kept it from running, which whoever started the process is told too.
pub fn run(args: &ProcessArgs) -> anyhow::Result<u8> {
    // A session of its own: neither Ctrl-C nor the end of a terminal concerns it. A process that
    // leads its session already is content.
    let _ = rustix::process::setsid();
    let started = start(args);
    let text = match &started {
        Ok(_) => "ok".to_owned(),
        Err(error) => format!("{error:#}").replace('\n', " "),
    };
    // Whoever started the process may have gone.
    let _ = writeln!(io::stdout(), "{text}").and_then(|()| io::stdout().flush());
    close_stdout();
    let Running { guest, server, _lock } = started?;
    let mut exit = status::SUCCESS;
    let outcome = guest.wait(|outcome| {
        exit = status::of_outcome(outcome).unwrap_or(status::SUCCESS);
        exit
    })?;
    server.finish();
    if exit == status::FAILURE {
        report::error(&outcome.to_string());
    }
    Ok(exit)
}

/// A VM that runs.
struct Running {
    guest: Arc<Guest>,
    server: control::Serving,
    /// Says that the VM has a process.
    _lock: Lock,
}

fn start(args: &ProcessArgs) -> anyhow::Result<Running> {
    let dir = Arc::new(Store::open_default()?.vm(&args.name)?);
    let lock = dir.take_run_lock()?;
    let record = dir.record()?;
    let mut machine = machine_of(&record)?;
    if let Some(engine) = args.engine {
        machine.engine = engine;
    }
    if record.origin.is_some() {
        machine.name = Some(args.name.clone());
        machine.nets = machine.nets.iter().map(NetArg::without_forwards).collect();
    }
    let disks = use_own_disks(&mut machine, &record, &dir)?;
    let origin = origin(args)?;
    let purpose = if origin == Origin::Boot { Use::Boot } else { Use::Restore };
    let files = vm_config::open_files(&machine, purpose)?;
    let isolation = isolate::begin(&machine, vec![dir.path("")])?;
    // From here on there are threads.
    let console = ConsoleHub::start(&dir).context("cannot open the console's log")?;
    // Bound before anything else takes time, so that whoever is told `ok` can connect.
    let server = Server::bind(&dir)?;
    let (full, full_disks) = channel();
    let when_full: WhenFull = Arc::new(move |name: &str| drop(full.send(name.to_owned())));
    let mut config = vm_config::config(&machine, files, Arc::clone(&console) as _, &when_full)?;
    config.policy.catch_up = true;
    let guest = Guest::launch(Launch { dir, config, console, disks, origin })?;
    let server = server.serve(Arc::clone(&guest))?;
    watch_signals(&guest)?;
    watch_disks(&guest, full_disks)?;
    isolation.complete()?;
    guest.begin()?;
    Ok(Running { guest, server, _lock: lock })
}

/// The machine that the command line describes with which the VM was made.
pub fn machine_of(record: &VmRecord) -> anyhow::Result<RunArgs> {
    let line = std::iter::once("ringfence").chain(record.options.iter().map(String::as_str));
    let cli = Cli::try_parse_from(line).map_err(|e| {
        let what = e.to_string();
        let what = what.lines().next().unwrap_or_default();
        anyhow!("the options of the VM are not understood: {what}; make it anew")
    })?;
    let args = match cli.command {
        Command::Run(args) => *args,
        Command::Managed(ManagedCommand::Create(args)) => {
            let CreateArgs { vm, run } = *args;
            RunArgs { name: Some(vm), ..run }
        }
        _ => bail!("the VM was made by something else than `create` or `run`; make it anew"),
    };
    image_disk::resolve_managed(&args, record.image_disk.as_ref())
}

/// Puts the VM's own files in the place of those disks that it has such for; gives all disks.
fn use_own_disks(
    machine: &mut RunArgs,
    record: &VmRecord,
    dir: &VmDir,
) -> anyhow::Result<Vec<DiskSource>> {
    for own in &record.disks {
        vms::check_name(&own.file)?;
        let disk = machine.disks.get_mut(own.index);
        let disk = disk.with_context(|| format!("the VM has no disk {}", own.index))?;
        *disk = disk.with_path(dir.path(member::DISKS).join(&own.file));
    }
    Ok((0..).zip(&machine.disks).map(|(index, disk)| source(index, disk)).collect())
}

fn source(index: u32, disk: &DiskArg) -> DiskSource {
    // Relative to the folder in which this process was started.
    let path = PathBuf::from(disk.path());
    DiskSource { index, path, read_only: disk.is_read_only() }
}

fn origin(args: &ProcessArgs) -> anyhow::Result<Origin> {
    Ok(match &args.snapshot {
        Some(name) => Origin::Snapshot(name.clone(), identity()?),
        None if args.suspended => Origin::Suspended(args.is_copy.then(identity).transpose()?),
        None => Origin::Boot,
    })
}

/// A new identity for a copy.
fn identity() -> anyhow::Result<[u8; 16]> {
    let mut id = [0; 16];
    let mut random = std::fs::File::open("/dev/urandom").context("cannot open /dev/urandom")?;
    io::Read::read_exact(&mut random, &mut id).context("cannot read /dev/urandom")?;
    Ok(id)
}

/// A VM whose disk the host has no space for is paused, until it is resumed.
fn watch_disks(guest: &Arc<Guest>, full: Receiver<String>) -> anyhow::Result<()> {
    let guest = Arc::downgrade(guest);
    let watch = move || {
        for name in full {
            let Some(guest) = guest.upgrade() else { return };
            // One that is paused already, or has ended, was told of before.
            if guest.pause().is_ok() {
                report::note(&format!(
                    "the host has no space for disk image {name}: the VM is paused; free some, \
                     then `ringfence resume` it"
                ));
            }
        }
    };
    thread::Builder::new()
        .name("full disks".to_owned())
        .spawn(watch)
        .context("cannot start a thread")?;
    Ok(())
}

/// SIGTERM presses the power button, and ends the VM after a while; other signals end it at once.
fn watch_signals(guest: &Arc<Guest>) -> anyhow::Result<()> {
    let guest = Arc::clone(guest);
    signals::watch(move |signal| {
        if signal == SIGCONT {
            return;
        }
        if signal != SIGTERM {
            guest.kill();
            return;
        }
        guest.press_power_button();
        let guest = Arc::clone(&guest);
        let later = thread::Builder::new().name("grace".to_owned());
        // Without a thread the guest has as long as it likes.
        let _ = later.spawn(move || {
            thread::sleep(GRACE);
            guest.kill();
        });
    })
    .context("cannot watch for signals")
}

/// Nobody listens any more; who started the process need not wait for its end.
fn close_stdout() {
    if let Ok(null) = std::fs::File::options().write(true).open("/dev/null") {
        // Where that fails, somebody may wait until the VM ends.
        let _ = rustix::stdio::dup2_stdout(null);
    }
}
