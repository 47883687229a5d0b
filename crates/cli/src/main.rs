//! `ringfence`: the command line.
//!
//! [`args`] is what can be typed; [`run`] runs a VM in the terminal, with [`console`] for its
//! input and output, [`signals`] for what ends it from outside, [`status`] for how it ends and
//! [`stats`] for what it did, [`profile`] (with names by [`symbols`]) and [`trace`] for where and
//! when; [`managed`] has the verbs of VMs that are kept; [`image`] and [`doctor`]
//! are the others. [`boot_files`] and [`image_disk`] find what is booted; [`cloud`] makes
//! the disk for cloud-init.
//!
//! Standard output belongs to the guest, and to what a verb was asked to print; everything else
//! goes to standard error, errors as one line `ringfence: error: ...`.

#![forbid(unsafe_code)]

mod args;
mod boot_files;
mod cloud;
mod console;
mod disks;
mod doctor;
mod image;
mod image_disk;
mod isolate;
mod managed;
mod nets;
mod profile;
mod progress;
mod report;
mod run;
mod signals;
mod size;
mod stats;
mod status;
mod symbols;
mod table;
mod trace;
mod vm_config;

use std::io;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use clap_complete::CompleteEnv;
use clap_complete::env::Shells;

use args::{Cli, Command};

fn main() -> ExitCode {
    report::install_panic_hook();
    // A shell that asks for completions says so in the environment; the program ends here then.
    CompleteEnv::with_factory(Cli::command).complete();
    let status = match Cli::try_parse() {
        Ok(cli) => dispatch(cli.command).unwrap_or_else(|error| {
            report::error(&format!("{error:#}"));
            status::FAILURE
        }),
        Err(error) => report::usage(&error),
    };
    console::terminal::restore();
    ExitCode::from(status)
}

fn dispatch(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Run(args) if args.detach => {
            // Clap sees to it that there is a name.
            managed::run_detached(args.name.as_deref().unwrap_or_default(), &args)?;
        }
        Command::Run(args) => return run::run(&args),
        Command::Managed(command) => return managed::run(command),
        Command::Image(command) => image::run(command)?,
        Command::Doctor(args) => doctor::run(&args)?,
        Command::Completions { shell } => report::print(&completion_script(shell)?)?,
    }
    Ok(status::SUCCESS)
}

/// The script that makes `shell` ask this program for completions, which knows the names of VMs,
/// snapshots and images.
fn completion_script(shell: clap_complete::Shell) -> anyhow::Result<String> {
    let shells = Shells::builtins();
    let name = shell.to_string();
    let completer = shells.completer(&name).context("there are no completions for this shell")?;
    let mut script = Vec::new();
    completer.write_registration("COMPLETE", "ringfence", "ringfence", "ringfence", &mut script)?;
    Ok(String::from_utf8(script)?)
}

/// How long ago `time` was, for people.
fn age(time: SystemTime, now: SystemTime) -> String {
    let age = now.duration_since(time).unwrap_or_default().as_secs();
    match age {
        0..120 => "now".to_owned(),
        120..7200 => format!("{} minutes ago", age / 60),
        7200..172_800 => format!("{} hours ago", age / 3600),
        _ => format!("{} days ago", age / 86_400),
    }
}

/// Whether an error only says that nobody reads what is printed.
fn is_closed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}
