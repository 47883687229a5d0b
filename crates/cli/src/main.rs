//! `ringfence`: the command line.
//!
//! [`args`] is what can be typed; [`run`] runs a VM in the terminal, with [`console`] for its
//! input and output, [`signals`] for what ends it from outside, [`status`] for how it ends and
//! [`stats`] for what it did; [`image`] and [`doctor`] are the other verbs.
//!
//! Standard output belongs to the guest, and to what a verb was asked to print; everything else
//! goes to standard error, errors as one line `ringfence: error: ...`.

#![forbid(unsafe_code)]

mod args;
mod boot_files;
mod console;
mod disks;
mod doctor;
mod image;
mod nets;
mod progress;
mod report;
mod run;
mod signals;
mod size;
mod stats;
mod status;

use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command};

fn main() -> ExitCode {
    report::install_panic_hook();
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
        Command::Run(args) => return run::run(&args),
        Command::Image(command) => image::run(command)?,
        Command::Doctor(args) => doctor::run(&args)?,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ringfence", &mut script);
            report::print(&String::from_utf8(script)?)?;
        }
    }
    Ok(status::SUCCESS)
}

/// Whether an error only says that nobody reads what is printed.
fn is_closed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}
