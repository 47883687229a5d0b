//! Runs all tests on a fresh machine.
//!
//! The tests need programs of the host. A Debian-like machine has most of them; the others are
//! installed here when this runs as root, and named with the command that installs them otherwise.

use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;

use crate::workspace::{cargo, has_program, run as run_command};

/// Programs that tests start, with their Debian packages and what they are for.
const PROGRAMS: [(&str, &str, &str); 3] = [
    ("cc", "gcc", "links every program"),
    ("apt-get", "apt", "fetches the stock kernels and busybox that guests run"),
    ("apt-cache", "apt", "finds the newest stock kernel"),
];

/// What may be on the machine: tests use it as a second opinion and run without it.
const OPTIONAL: [(&str, &str, &str); 1] =
    [("qemu-system-x86_64", "qemu-system-x86", "is a second opinion on the guest programs")];

#[derive(Args, Default)]
pub struct Options {
    /// Instead run the tests that take long, which are ignored otherwise, in a release build
    #[arg(long)]
    long: bool,
    /// Arguments for `cargo test`, such as `--package lapic` or a test's name
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    provide_programs()?;
    for (program, package, purpose) in OPTIONAL {
        if !has_program(program) {
            eprintln!("note: {program} (Debian package {package}) {purpose}; going on without it");
        }
    }
    let mut command = cargo();
    // All of them, so that one run shows every failure.
    command.args(["test", "--no-fail-fast"]);
    if options.arguments.is_empty() {
        command.arg("--workspace");
    }
    if options.long {
        command.arg("--release");
    }
    command.args(&options.arguments);
    if options.long {
        command.args(["--", "--ignored"]);
    }
    run_command(&mut command)
}

fn provide_programs() -> Result<()> {
    let missing: Vec<_> = PROGRAMS.iter().filter(|(name, ..)| !has_program(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for (name, _, purpose) in &missing {
        eprintln!("{name} is missing: it {purpose}");
    }
    let mut packages: Vec<&str> = missing.iter().map(|(_, package, _)| *package).collect();
    packages.dedup();
    if !has_program("apt-get") {
        bail!("this host has no apt-get: the tests need a Debian-like machine");
    }
    if !is_root()? {
        bail!("install what is missing: sudo apt-get install {}", packages.join(" "));
    }
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    run_command(apt().arg("update"))?;
    run_command(apt().args(["install", "--yes", "--no-install-recommends"]).args(packages))
}

fn is_root() -> Result<bool> {
    let output = Command::new("id").arg("-u").output()?;
    Ok(output.stdout.trim_ascii() == b"0")
}
