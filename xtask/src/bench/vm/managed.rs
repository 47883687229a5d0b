//! Ringfence's side: managed VMs in a folder of their own, driven by verbs and the control API.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::{PATIENCE, Samples, probe, wait_for};
use crate::bench::machines::Bench;

/// Memory of the guest that is cloned, MiB: what `tiny` needs.
const CLONED: u32 = 128;
/// How often what takes no time is measured in a round.
const REPEATS: usize = 5;
/// How long idle clones are watched.
const IDLE: Duration = Duration::from_secs(5);

/// One round.
pub fn measure(bench: &Bench, engine: &str, clones: u32, samples: &mut Samples) -> Result<()> {
    let home = Home { bench, folder: TempDir::new()? };
    home.create("load", engine, bench.memory(), "do=vm LOAD=1")?;
    home.run(&["start", "load"])?;
    probe(&mut home.console("load")?, "up")?;
    pauses(&home, samples)?;
    snapshots(&home, samples)?;
    suspension(&home, samples)?;
    hops(&home, engine, samples)?;
    let start = Instant::now();
    home.run(&["clone", "load", "copy"])?;
    samples.add_since("clone", start);
    home.run(&["kill", "load", "copy"])?;
    if clones > 0 { density(&home, engine, clones, samples) } else { Ok(()) }
}

fn pauses(home: &Home<'_>, samples: &mut Samples) -> Result<()> {
    for _ in 0..REPEATS {
        let start = Instant::now();
        home.post("load", "/v1/pause", "")?;
        samples.add_since("pause", start);
        let start = Instant::now();
        home.post("load", "/v1/resume", "")?;
        samples.add_since("resume-paused", start);
    }
    Ok(())
}

fn snapshots(home: &Home<'_>, samples: &mut Samples) -> Result<()> {
    let names = [("one", "snapshot-pause", "snapshot"), ("two", "difference-pause", "difference")];
    for (name, pause, total) in names {
        let request = serde_json::json!({"name": name, "description": "", "full": false});
        let taken = home.post("load", "/v1/snapshots", &request.to_string())?;
        samples.add(pause, number(&taken, "paused_us")? / 1000.0);
        samples.add(total, number(&taken, "total_us")? / 1000.0);
    }
    home.run(&["kill", "load"])?;
    home.run(&["wait", "load"])?;
    let start = Instant::now();
    home.run(&["snapshot", "restore", "load", "one"])?;
    samples.add_since("restore", start);
    probe(&mut home.console("load")?, "restored")?;
    samples.add_since("restore-answer", start);
    Ok(())
}

fn suspension(home: &Home<'_>, samples: &mut Samples) -> Result<()> {
    let start = Instant::now();
    home.run(&["suspend", "load"])?;
    samples.add_since("suspend", start);
    let start = Instant::now();
    home.run(&["resume", "load"])?;
    samples.add_since("resume", start);
    probe(&mut home.console("load")?, "resumed")?;
    samples.add_since("resume-answer", start);
    Ok(())
}

fn hops(home: &Home<'_>, engine: &str, samples: &mut Samples) -> Result<()> {
    let other = if engine == "interpreter" { "translator" } else { "interpreter" };
    for engine in [other, engine] {
        let request = serde_json::json!({ "engine": engine });
        let hopped = home.post("load", "/v1/hop", &request.to_string())?;
        samples.add("hop-pause", number(&hopped, "paused_us")? / 1000.0);
    }
    Ok(())
}

/// Many copies of an idle guest.
fn density(home: &Home<'_>, engine: &str, clones: u32, samples: &mut Samples) -> Result<()> {
    home.create("idle", engine, CLONED, "do=vm")?;
    home.run(&["start", "idle"])?;
    probe(&mut home.console("idle")?, "up")?;
    let start = Instant::now();
    let names = home.run(&["clone", "idle", "c", "--count", &clones.to_string()])?;
    samples.add_since("clones", start);
    let names: Vec<&str> = names.lines().collect();
    // All are asked before the first is waited for.
    let mut consoles = Vec::new();
    for name in &names {
        let mut console = home.console(name)?;
        console.write_all(b"there\n")?;
        consoles.push(console);
    }
    for console in &mut consoles {
        wait_for(console, "ANSWER there")?;
    }
    samples.add_since("clones-answer", start);
    drop(consoles);
    home.run(&["kill", "idle"])?;
    let pids = home.pids()?;
    let before = cpu_time(&pids)?;
    thread::sleep(IDLE);
    let used = cpu_time(&pids)? - before;
    samples.add("clones-cpu", 1000.0 * used / IDLE.as_secs_f64());
    samples.add("clones-memory", memory(&pids)? / pids.len().max(1) as f64);
    Ok(())
}

/// The folder of the managed VMs. They end with it.
struct Home<'a> {
    bench: &'a Bench,
    folder: TempDir,
}

impl Home<'_> {
    fn create(&self, name: &str, engine: &str, memory: u32, init: &str) -> Result<String> {
        let kernel = self.bench.kernel().display().to_string();
        let initrd = self.bench.initrd().display().to_string();
        let (cmdline, memory) = (format!("console=ttyS0 quiet {init}"), memory.to_string());
        self.run(&[
            "create",
            name,
            "--kernel",
            &kernel,
            "--initrd",
            &initrd,
            "--cmdline",
            &cmdline,
            "--memory",
            &memory,
            "--engine",
            engine,
            "--net",
            "none",
        ])
    }

    /// Runs a verb to its end; gives its output.
    fn run(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(self.bench.program());
        command.args(args).env("XDG_DATA_HOME", self.folder.path());
        let output = command.output().context("cannot start ringfence")?;
        // The status of `wait` is that of the VM, and of a killed one it is not 0.
        if !output.status.success() && args[0] != "wait" {
            bail!("ringfence {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    fn connect(&self, name: &str) -> Result<UnixStream> {
        let path: PathBuf = self.folder.path().join("ringfence/vms").join(name);
        let stream = UnixStream::connect(path.join("control.sock"))
            .with_context(|| format!("VM {name} does not answer"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// A request to the control API; gives the body of the answer.
    fn post(&self, name: &str, path: &str, body: &str) -> Result<String> {
        let mut stream = self.connect(name)?;
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.starts_with("HTTP/1.1 2") => Ok(body.to_owned()),
            _ => bail!("VM {name} refuses {path}: {answer}"),
        }
    }

    /// The console as a stream of bytes in both directions.
    fn console(&self, name: &str) -> Result<UnixStream> {
        let mut stream = self.connect(name)?;
        stream.write_all(
            b"GET /v1/console HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\n\
              Upgrade: ringfence-console\r\n\r\n",
        )?;
        wait_for(&mut stream, "ringfence-role: writer")?;
        Ok(stream)
    }

    fn pids(&self) -> Result<Vec<u64>> {
        let list: serde_json::Value = serde_json::from_str(&self.run(&["ps", "--json"])?)?;
        let list = list.as_array().context("`ps --json` prints no array")?;
        let running = list.iter().filter(|vm| vm["state"] == "running");
        Ok(running.filter_map(|vm| vm["pid"].as_u64()).collect())
    }
}

impl Drop for Home<'_> {
    fn drop(&mut self) {
        // What does not run cannot be killed, and the folder goes in any case.
        let Ok(list) = self.run(&["ps", "--json"]) else { return };
        let Ok(list) = serde_json::from_str::<Vec<serde_json::Value>>(&list) else { return };
        for name in list.iter().filter_map(|vm| vm["name"].as_str()) {
            let _ = self.run(&["kill", name]);
        }
    }
}

fn number(json: &str, field: &str) -> Result<f64> {
    let value: serde_json::Value = serde_json::from_str(json)?;
    value[field].as_f64().with_context(|| format!("the answer has no {field}: {json}"))
}

/// CPU time of processes and of those that they have waited for, in seconds: fields 14 to 17 of
/// `stat` (proc(5)), in hundredths.
fn cpu_time(pids: &[u64]) -> Result<f64> {
    let mut ticks = 0;
    for pid in pids {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, fields) = stat.rsplit_once(')').context("/proc has another form")?;
        let fields = fields.split_whitespace().skip(11).take(4);
        ticks += fields.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>();
    }
    Ok(ticks as f64 / 100.0)
}

/// Proportional set size of processes, in MiB.
fn memory(pids: &[u64]) -> Result<f64> {
    let mut kib = 0;
    for pid in pids {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
        let pss = pss.and_then(|pss| pss.split_whitespace().next()?.parse::<u64>().ok());
        kib += pss.context("smaps_rollup has no Pss")?;
    }
    Ok(kib as f64 / 1024.0)
}
