//! QEMU's side: the same guest, by the commands of its monitor.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::{PATIENCE, Samples, probe, wait_for};
use crate::bench::machines::Bench;

/// What the monitor prints when it is done.
const PROMPT: &str = "(qemu) ";
/// How often what takes no time is measured in a round.
const REPEATS: usize = 5;

/// One round.
pub fn measure(bench: &Bench, samples: &mut Samples) -> Result<()> {
    let folder = TempDir::new()?;
    let disk = folder.path().join("state.qcow2");
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&disk)
        .arg("64M")
        .status()
        .context("cannot start qemu-img")?;
    anyhow::ensure!(made.success(), "qemu-img made no disk to save state on");
    {
        let mut qemu = Qemu::start(bench, folder.path(), &[])?;
        // What is typed before the guest listens is lost.
        wait_for(&mut qemu.console, "READY")?;
        probe(&mut qemu.console, "up")?;
        for _ in 0..REPEATS {
            samples.add("pause", qemu.timed("stop")?);
            samples.add("resume-paused", qemu.timed("cont")?);
        }
        // The guest stands still for all of it.
        for (name, pause, total) in
            [("one", "snapshot-pause", "snapshot"), ("two", "difference-pause", "difference")]
        {
            let time = qemu.timed(&format!("savevm {name}"))?;
            samples.add(pause, time);
            samples.add(total, time);
        }
    }
    let start = Instant::now();
    let mut qemu = Qemu::start(bench, folder.path(), &["-loadvm", "one"])?;
    // The monitor answers when the state is loaded.
    qemu.timed("info status")?;
    samples.add_since("restore", start);
    probe(&mut qemu.console, "restored")?;
    samples.add_since("restore-answer", start);
    Ok(())
}

/// A QEMU that runs.
struct Qemu {
    child: Child,
    monitor: UnixStream,
    console: UnixStream,
}

impl Qemu {
    fn start(bench: &Bench, folder: &Path, more: &[&str]) -> Result<Self> {
        let (monitor, console) = (folder.join("monitor"), folder.join("console"));
        for socket in [&monitor, &console] {
            // Of an earlier one.
            let _ = std::fs::remove_file(socket);
        }
        let server = |path: &Path| format!("unix:{},server=on,wait=off", path.display());
        let disk = folder.join("state.qcow2");
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-accel", "tcg", "-cpu", "max", "-nodefaults", "-display", "none"]);
        command.args(["-m", &bench.memory().to_string(), "-kernel"]).arg(bench.kernel());
        command.arg("-initrd").arg(bench.initrd());
        command.args(["-append", "console=ttyS0 quiet do=vm LOAD=1"]);
        command.arg("-drive").arg(format!("file={},format=qcow2,if=virtio", disk.display()));
        command.args(["-monitor", &server(&monitor), "-serial", &server(&console)]).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().context("cannot start QEMU")?;
        let start = Instant::now();
        let connect = |path: &Path| loop {
            match UnixStream::connect(path) {
                Ok(stream) => break Ok(stream),
                Err(error) if start.elapsed() > PATIENCE => break Err(error),
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        };
        let mut qemu = Self { child, monitor: connect(&monitor)?, console: connect(&console)? };
        qemu.monitor.set_read_timeout(Some(PATIENCE))?;
        qemu.console.set_read_timeout(Some(PATIENCE))?;
        wait_for(&mut qemu.monitor, PROMPT)?;
        Ok(qemu)
    }

    /// Executes a command of the monitor; how long it takes, in milliseconds.
    fn timed(&mut self, command: &str) -> Result<f64> {
        let start = Instant::now();
        std::io::Write::write_all(&mut self.monitor, format!("{command}\n").as_bytes())?;
        // The line is echoed first, with the prompt in front of it still to come.
        wait_for(&mut self.monitor, &format!("\n{PROMPT}"))?;
        Ok(super::millis(start.elapsed()))
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
