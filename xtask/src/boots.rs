//! Boots stock kernels time and again: whether they come up each time, with every number of CPUs.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use images::initramfs::{Builder, Compression};
use images::kernels::{self, Flavour};
use images::{Silent, Store};
use tempfile::TempDir;
use workload::kernel_log::complaints;

use crate::bench::capture::{Capture, capture};
use crate::bench::report::{median, print_table};
use crate::workspace;

/// What the guest does once it is up: every CPU computes.
const WORK: &str = "echo CPUS $(nproc)
for part in 1 2 3 4; do (echo PART $(seq 1 20000 | md5sum)) & done
wait";
const PART: &str = "PART e071f707df7bbeee2a6a1eb48011ddd0";

#[derive(Args)]
pub struct Options {
    /// Boots of each kernel with each number of CPUs
    #[arg(long, default_value_t = 20, value_name = "N")]
    times: usize,
    /// Kernels
    #[arg(long, value_enum, value_delimiter = ',', default_value = "cloud,amd64,rt,686-pae")]
    kernels: Vec<Kernel>,
    /// Numbers of CPUs; the 32-bit kernel gets at most two
    #[arg(long, value_delimiter = ',', default_value = "1,2,4", value_name = "N")]
    cpus: Vec<u32>,
    /// The engine
    #[arg(long, default_value = "translator")]
    engine: String,
    /// Longest time of a boot, seconds
    #[arg(long, default_value_t = 300)]
    timeout: u64,
    /// A ringfence to run instead of building one
    #[arg(long, value_name = "FILE")]
    ringfence: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kernel {
    Cloud,
    Amd64,
    Rt,
    #[value(name = "686-pae")]
    Pae686,
}

impl Kernel {
    fn flavour(self) -> Flavour {
        match self {
            Self::Cloud => Flavour::Cloud,
            Self::Amd64 => Flavour::Amd64,
            Self::Rt => Flavour::Rt,
            Self::Pae686 => Flavour::Pae686,
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

pub fn run(options: &Options) -> Result<()> {
    let ringfence = match &options.ringfence {
        Some(file) => file.clone(),
        None => workspace::ringfence()?,
    };
    let scratch = TempDir::new()?;
    let header = ["kernel", "CPUs", "boots", "median, s", "longest, s"];
    let mut rows = vec![header.map(String::from).to_vec()];
    let mut failed = 0;
    for kernel in &options.kernels {
        let files = Files::prepare(*kernel, scratch.path())?;
        for cpus in options.cpus.iter().filter(|cpus| !kernel.flavour().is_32bit() || **cpus <= 2) {
            let mut times = Vec::new();
            for time in 1..=options.times {
                match boot(options, &ringfence, &files, *cpus) {
                    Ok(took) => times.push(took.as_secs_f64()),
                    Err(error) => eprintln!("{kernel}, {cpus} CPUs, boot {time}: {error:#}"),
                }
            }
            failed += options.times - times.len();
            eprintln!("{kernel}, {cpus} CPUs: {} of {}", times.len(), options.times);
            rows.push(vec![
                kernel.to_string(),
                cpus.to_string(),
                format!("{}/{}", times.len(), options.times),
                format!("{:.2}", median(&times)),
                format!("{:.2}", times.iter().copied().fold(0.0, f64::max)),
            ]);
        }
    }
    print_table(&rows);
    if failed > 0 {
        bail!("{failed} boots failed");
    }
    Ok(())
}

/// What a guest boots from.
struct Files {
    kernel: PathBuf,
    initrd: PathBuf,
}

impl Files {
    /// Kernels of 64 bits are unpacked here, which spares the guest the unpacking.
    fn prepare(kernel: Kernel, scratch: &Path) -> Result<Self> {
        let (flavour, store) = (kernel.flavour(), Store::open_default()?);
        let mut file = kernels::fetch(flavour, &store, &Silent)?;
        if !flavour.is_32bit() {
            let unpacked = boot::vmlinux::extract(fs::read(&file)?, flavour.package())?;
            file = scratch.join(format!("{kernel}.elf"));
            fs::write(&file, unpacked)?;
        }
        let busybox = match flavour.is_32bit() {
            true => kernels::busybox_32bit(&store, &Silent)?,
            false => kernels::busybox(&store, &Silent)?,
        };
        let archive = Builder::new()
            .busybox(&fs::read(busybox)?)
            .file("/init", 0o755, workload::init(WORK))
            .finish(Compression::None)?;
        let initrd = scratch.join(format!("{kernel}.cpio"));
        fs::write(&initrd, archive)?;
        Ok(Self { kernel: file, initrd })
    }
}

/// Boots a guest to its end; the time to its first program.
fn boot(options: &Options, ringfence: &Path, files: &Files, cpus: u32) -> Result<Duration> {
    let mut command = Command::new(ringfence);
    command.args(["run", "--engine", &options.engine, "--cpus", &cpus.to_string()]);
    command.args(["--memory", "512", "--no-reboot", "--cmdline", "console=ttyS0"]);
    command.arg("--kernel").arg(&files.kernel).arg("--initrd").arg(&files.initrd);
    let capture = capture(&mut command, Duration::from_secs(options.timeout))?;
    judge(&capture, cpus)?;
    capture.time_of("GUEST-UP").context("no GUEST-UP")
}

/// Whether the guest found its CPUs, computed right, came to its end and had nothing to complain of.
fn judge(capture: &Capture, cpus: u32) -> Result<()> {
    let text: Vec<&str> = capture.lines.iter().map(|line| line.text.as_str()).collect();
    let text = text.join("\n");
    for mark in ["GUEST-UP", &format!("CPUS {cpus}"), "GUEST-DOWN"] {
        if !text.contains(mark) {
            bail!("no {mark:?}; it said last: {}", text.lines().last().unwrap_or("nothing"));
        }
    }
    let right = text.matches(PART).count();
    if right != 4 {
        bail!("{right} of 4 sums are right");
    }
    let complaints = complaints(&text);
    if !complaints.is_empty() {
        bail!("the kernel complains: {}", complaints.join("; "));
    }
    Ok(())
}
