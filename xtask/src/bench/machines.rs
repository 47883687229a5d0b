//! The machines that are measured: the host itself, Ringfence, and QEMU without KVM.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use images::initramfs::{Builder, Compression};
use images::kernels::{self, Flavour};
use images::{Silent, Store};
use tempfile::TempDir;

use super::Common;
use super::capture::{Capture, capture};
use crate::workspace::{self, has_program};

const QEMU: &str = "qemu-system-x86_64";
const GUEST_INIT: &str = include_str!("../../../benches/guest/guest-init");
pub const GUEST_BENCH: &str = include_str!("../../../benches/guest/guest-bench.sh");
pub const CRYPTO_BENCH: &str = include_str!("../../../benches/guest/crypto-bench.sh");

/// The kernel writes to the first serial port. Nothing else is told to it, so that a boot here is
/// the boot of a user.
const CONSOLE: &str = "console=ttyS0";

/// Where something runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Machine {
    Native,
    Ringfence { engine: String },
    Qemu,
}

impl Machine {
    pub fn name(&self) -> String {
        match self {
            Self::Native => "native".to_owned(),
            Self::Ringfence { engine } => format!("ringfence {engine}"),
            Self::Qemu => "qemu tcg".to_owned(),
        }
    }
}

/// Everything that a run needs, made once.
pub struct Bench {
    guests: Vec<Machine>,
    ringfence: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
    busybox: PathBuf,
    memory: u32,
    timeout: Duration,
    scratch: TempDir,
}

impl Bench {
    /// Builds Ringfence, fetches the kernel and busybox, packs the initramfs.
    pub fn prepare(common: &Common) -> Result<Self> {
        Self::prepare_with(common, Builder::new())
    }

    /// The same with what `files` has in the initramfs.
    pub fn prepare_with(common: &Common, files: Builder) -> Result<Self> {
        let ringfence = match &common.ringfence {
            Some(file) => file.clone(),
            None => workspace::ringfence()?,
        };
        let store = Store::open_default()?;
        let kernel = match &common.kernel {
            Some(kernel) => kernel.clone(),
            None => kernels::fetch(Flavour::Cloud, &store, &Silent)?,
        };
        let scratch = TempDir::new()?;
        let busybox = executable(&kernels::busybox(&store, &Silent)?, scratch.path())?;
        let initrd = scratch.path().join("initrd.img");
        fs::write(&initrd, initramfs(&busybox, files)?)?;
        let (guests, memory) = (guests(common), common.memory);
        let timeout = Duration::from_secs(common.timeout);
        Ok(Self { guests, ringfence, kernel, initrd, busybox, memory, timeout, scratch })
    }

    /// The machines that run guests here.
    pub fn guests(&self) -> &[Machine] {
        &self.guests
    }

    /// Boots a guest whose `/init` is told `arguments`; it powers off by itself.
    pub fn boot(&self, machine: &Machine, arguments: &str) -> Result<Capture> {
        self.boot_with_cpus(machine, arguments, 1)
    }

    /// The same with so many CPUs.
    pub fn boot_with_cpus(&self, machine: &Machine, arguments: &str, cpus: u32) -> Result<Capture> {
        capture(&mut self.command(machine, arguments, cpus)?, self.timeout)
    }

    /// The command that boots such a guest.
    pub fn command(&self, machine: &Machine, arguments: &str, cpus: u32) -> Result<Command> {
        let cmdline = format!("{CONSOLE} {arguments}");
        Ok(match machine {
            Machine::Ringfence { engine } => self.ringfence(engine, &cmdline, cpus),
            Machine::Qemu => self.qemu(&cmdline, cpus),
            Machine::Native => bail!("the host boots no guest"),
        })
    }

    /// Runs one of the scripts of `benches/guest` on the host, by the same busybox as in the guests,
    /// with these variables. The script names busybox by its path there, so that a copy of the
    /// script is changed.
    pub fn native(&self, script: &str, variables: &[(&str, String)]) -> Result<Capture> {
        let copy = self.scratch.path().join("native.sh");
        let line = format!("B={}", self.busybox.display());
        if !script.contains("\nB=/bin/busybox\n") {
            bail!("a script of benches/guest no longer sets B=/bin/busybox");
        }
        fs::write(&copy, script.replace("\nB=/bin/busybox\n", &format!("\n{line}\n")))?;
        let mut command = Command::new(&self.busybox);
        command.arg("sh").arg(&copy).envs(variables.iter().cloned());
        capture(&mut command, self.timeout)
    }

    /// Runs a program on the host.
    pub fn native_program(&self, command: &mut Command) -> Result<Capture> {
        capture(command, self.timeout)
    }

    /// The ringfence that is measured.
    pub fn program(&self) -> &Path {
        &self.ringfence
    }

    /// The guests' kernel.
    pub fn kernel(&self) -> &Path {
        &self.kernel
    }

    /// Their initramfs.
    pub fn initrd(&self) -> &Path {
        &self.initrd
    }

    /// Their memory, MiB.
    pub fn memory(&self) -> u32 {
        self.memory
    }

    /// The busybox that all machines have.
    pub fn busybox(&self) -> &Path {
        &self.busybox
    }

    /// Guest instructions of the last run of Ringfence, where the engine counts them.
    pub fn instructions(&self) -> Result<Option<u64>> {
        let path = self.stats();
        let text =
            fs::read(&path).with_context(|| format!("no statistics at {}", path.display()))?;
        Ok(number(&serde_json::from_slice(&text)?, "instructions"))
    }

    fn stats(&self) -> PathBuf {
        self.scratch.path().join("stats.json")
    }

    fn ringfence(&self, engine: &str, cmdline: &str, cpus: u32) -> Command {
        let mut command = Command::new(&self.ringfence);
        command.arg("run").arg("--kernel").arg(&self.kernel).arg("--initrd").arg(&self.initrd);
        command.args(["--cmdline", cmdline, "--memory", &self.memory.to_string()]);
        command.args(["--cpus", &cpus.to_string()]);
        command.args(["--engine", engine, "--no-reboot", "--stats"]).arg(self.stats());
        command
    }

    fn qemu(&self, cmdline: &str, cpus: u32) -> Command {
        let mut command = Command::new(QEMU);
        command.args(["-accel", "tcg", "-cpu", "max", "-nodefaults"]);
        command.args(["-smp", &cpus.to_string()]);
        command.args(["-display", "none", "-serial", "stdio", "-no-reboot"]);
        command.args(["-m", &self.memory.to_string(), "-append", cmdline]);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initrd);
        command
    }
}

fn guests(common: &Common) -> Vec<Machine> {
    let engines = common.engines.iter();
    let mut guests: Vec<Machine> =
        engines.map(|engine| Machine::Ringfence { engine: engine.clone() }).collect();
    if !common.no_qemu && has_program(QEMU) {
        guests.push(Machine::Qemu);
    } else if !common.no_qemu {
        eprintln!("note: {QEMU} is not installed; measuring without it");
    }
    guests
}

/// A copy of a program that may be executed: what the store keeps is data.
fn executable(program: &Path, folder: &Path) -> Result<PathBuf> {
    let copy = folder.join("busybox");
    fs::copy(program, &copy).with_context(|| format!("cannot copy {}", program.display()))?;
    fs::set_permissions(&copy, Permissions::from_mode(0o755))?;
    Ok(copy)
}

fn initramfs(busybox: &Path, files: Builder) -> Result<Vec<u8>> {
    let program = fs::read(busybox)?;
    let builder = files
        .busybox(&program)
        .file("/init", 0o755, GUEST_INIT)
        .file("/guest-bench.sh", 0o755, GUEST_BENCH)
        .file("/crypto-bench.sh", 0o755, CRYPTO_BENCH);
    Ok(builder.finish(Compression::None)?)
}

/// The sum of the numbers under `key`, wherever they stand: each vCPU may have its own.
fn number(value: &serde_json::Value, key: &str) -> Option<u64> {
    use serde_json::Value;
    let sum = |found: &mut dyn Iterator<Item = Option<u64>>| {
        found.flatten().fold(None, |sum: Option<u64>, n| Some(sum.unwrap_or(0) + n))
    };
    match value {
        Value::Object(map) => match map.get(key).and_then(Value::as_u64) {
            Some(number) => Some(number),
            None => sum(&mut map.values().map(|value| number(value, key))),
        },
        Value::Array(list) => sum(&mut list.iter().map(|value| number(value, key))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_found_and_added() {
        let stats =
            serde_json::json!({"wall": 1.5, "vcpus": [{"instructions": 3}, {"instructions": 4}]});
        assert_eq!(number(&stats, "instructions"), Some(7));
        assert_eq!(number(&serde_json::json!({"instructions": null}), "instructions"), None);
    }
}
