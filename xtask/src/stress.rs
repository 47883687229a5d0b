//! Runs the stress program of `guests/stress` in a guest with several vCPUs, and compares what it
//! prints with the same run on the host, line by line.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{fs, io};

use anyhow::{Context, Result, bail};
use clap::Args;
use images::initramfs::{Builder, Compression};
use images::kernels::{self, Flavour};
use images::{Silent, Store};
use tempfile::TempDir;
use workload::stress::{Comparison, Extent, GUEST_PATH, Plan, program};

use crate::workspace;

/// Time between two messages about the progress.
const PROGRESS: Duration = Duration::from_secs(60);

/// Lines of the guest's console that a failure repeats.
const LAST_LINES: usize = 30;

#[derive(Args)]
pub struct Options {
    /// vCPUs of the guest
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// How long the program runs by the guest's clock
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Threads of the program; two for each vCPU if not given
    #[arg(long)]
    threads: Option<u32>,
    /// Where its numbers begin; the time if not given
    #[arg(long)]
    seed: Option<u64>,
    /// The engine
    #[arg(long, default_value = "translator")]
    engine: String,
    /// A kernel other than the stock cloud kernel
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Memory of the guest, MiB
    #[arg(long, default_value_t = 512)]
    memory: u32,
    /// Longest silence of the guest, seconds
    #[arg(long, default_value_t = 300)]
    stall: u64,
    /// A ringfence to run instead of building one
    #[arg(long, value_name = "FILE")]
    ringfence: Option<PathBuf>,
}

pub fn run(options: &Options) -> Result<()> {
    let seed = match options.seed {
        Some(seed) => seed,
        None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    };
    let threads = options.threads.unwrap_or(options.cpus * 2).max(2);
    let plan = Plan { seed, threads, extent: Extent::Seconds(options.minutes * 60) };
    let ringfence = match &options.ringfence {
        Some(file) => file.clone(),
        None => workspace::ringfence()?,
    };
    let scratch = TempDir::new()?;
    println!("{} vCPUs on {}, {threads} threads, seed {seed}", options.cpus, options.engine);
    let mut command = guest(options, &ringfence, &plan, scratch.path())?;
    let mut comparison = Comparison::start(&plan)?;
    let mut last = LastLines::default();
    let begin = Instant::now();
    let outcome = watch(&mut command, options, &mut comparison, &mut last);
    let (rounds, took) = (comparison.rounds(), begin.elapsed().as_secs());
    if let Err(error) = outcome.and_then(|()| Ok(comparison.finish()?)) {
        eprintln!("the guest said last:\n{}", last.0.join("\n"));
        return Err(error.context(format!("seed {seed}, after {rounds} rounds and {took} s")));
    }
    println!("{rounds} rounds in {took} s, no difference");
    Ok(())
}

/// The command that runs the guest.
fn guest(options: &Options, ringfence: &Path, plan: &Plan, scratch: &Path) -> Result<Command> {
    let store = Store::open_default()?;
    let kernel = match &options.kernel {
        Some(kernel) => kernel.clone(),
        None => kernels::fetch(Flavour::Cloud, &store, &Silent)?,
    };
    let busybox = fs::read(kernels::busybox(&store, &Silent)?)?;
    let archive = Builder::new()
        .busybox(&busybox)
        .file(GUEST_PATH, 0o755, fs::read(program())?)
        .file("/init", 0o755, workload::init(&plan.script()))
        .finish(Compression::None)?;
    let initrd = scratch.join("initrd.img");
    fs::write(&initrd, archive)?;
    let mut command = Command::new(ringfence);
    command.args(["run", "--engine", &options.engine, "--cpus", &options.cpus.to_string()]);
    command.args(["--memory", &options.memory.to_string(), "--no-reboot"]);
    command.args(["--cmdline", "console=ttyS0 quiet"]);
    command.arg("--kernel").arg(kernel).arg("--initrd").arg(initrd);
    Ok(command)
}

/// The end of the guest's console.
#[derive(Default)]
struct LastLines(Vec<String>);

impl LastLines {
    fn add(&mut self, line: String) {
        if self.0.len() == LAST_LINES {
            self.0.remove(0);
        }
        self.0.push(line);
    }
}

/// Runs the guest to its end, or to the first finding.
fn watch(
    command: &mut Command,
    options: &Options,
    comparison: &mut Comparison,
    last: &mut LastLines,
) -> Result<()> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut running = Running(child.context("cannot start ringfence")?);
    let lines = lines_of(&mut running.0)?;
    let (begin, mut told) = (Instant::now(), Instant::now());
    loop {
        let line = match lines.recv_timeout(Duration::from_secs(options.stall)) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => bail!("the guest is silent for {} s", options.stall),
            Err(RecvTimeoutError::Disconnected) => break,
        };
        last.add(line.clone());
        comparison.line(&line)?;
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            println!("{} s: {} rounds", begin.elapsed().as_secs(), comparison.rounds());
        }
    }
    let status = running.0.wait()?;
    if !status.success() {
        bail!("ringfence ended with {status}");
    }
    Ok(())
}

fn lines_of(child: &mut Child) -> Result<Receiver<String>> {
    let output = child.stdout.take().context("standard output is a pipe")?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || -> io::Result<()> {
        let mut output = BufReader::new(output);
        let mut bytes = Vec::new();
        while output.read_until(b'\n', &mut bytes)? > 0 {
            let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            if sender.send(line).is_err() {
                break;
            }
            bytes.clear();
        }
        Ok(())
    });
    Ok(receiver)
}

/// A program that is ended when the value goes.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}
