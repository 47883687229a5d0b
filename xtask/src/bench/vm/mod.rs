//! What it costs to treat a running VM as a value: pause, suspend, snapshot, restore, clone, change
//! of engine; beside what QEMU has of it (`stop`, `savevm`, `loadvm`), with the same guest.
//!
//! The guest writes to its memory as fast as it can, and answers what it is asked on its console,
//! which is how it is seen to run again. A second, idle guest is cloned for the cost of many.
//!
//! [`managed`] drives Ringfence by its verbs and its control API, [`qemu`] QEMU by its monitor.

mod managed;
mod qemu;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use images::initramfs::Builder;
use serde::Serialize;

use super::Common;
use super::machines::{Bench, Machine};
use super::report::{median, print_table, write_json};

/// The guest's part: load on `/dev/shm`, and answers.
const GUEST: &str = include_str!("../../../../benches/guest/vm-bench.sh");
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is measured: a name for the program, what a reader sees, with the unit. In the order of the
/// table.
const ROWS: [(&str, &str); 17] = [
    ("pause", "pause takes effect, ms"),
    ("resume-paused", "resume of a paused VM, ms"),
    ("snapshot-pause", "snapshot, guest stands still, ms"),
    ("snapshot", "snapshot until it is on disk, ms"),
    ("difference-pause", "second snapshot, guest stands still, ms"),
    ("difference", "second snapshot until it is on disk, ms"),
    ("restore", "restore a snapshot until the guest runs, ms"),
    ("restore-answer", "restore a snapshot until it answers, ms"),
    ("suspend", "suspend, whole command, ms"),
    ("resume", "resume, whole command, ms"),
    ("resume-answer", "resume until it answers, ms"),
    ("hop-pause", "change of engine, guest stands still, ms"),
    ("clone", "clone, whole command, ms"),
    ("clones", "all clones started, ms"),
    ("clones-answer", "all clones have answered, ms"),
    ("clones-cpu", "idle clones together, thousandths of a core"),
    ("clones-memory", "memory of a clone (PSS), MiB"),
];

/// Samples by the name of the row.
#[derive(Default)]
pub struct Samples(BTreeMap<&'static str, Vec<f64>>);

impl Samples {
    fn add(&mut self, row: &'static str, value: f64) {
        self.0.entry(row).or_default().push(value);
    }

    /// Adds the time since `start`, in milliseconds.
    fn add_since(&mut self, row: &'static str, start: Instant) {
        self.add(row, millis(start.elapsed()));
    }

    fn median(&self, row: &str) -> Option<f64> {
        self.0.get(row).map(|values| median(values))
    }
}

#[derive(Serialize)]
struct Column {
    machine: String,
    runs: u32,
    clones: u32,
    memory_mib: u32,
    medians: BTreeMap<&'static str, f64>,
}

/// Measures, with `clones` copies of the idle guest.
pub fn run(common: &Common, clones: u32) -> Result<()> {
    let bench = Bench::prepare_with(common, Builder::new().file("/vm-bench.sh", 0o755, GUEST))?;
    let mut samples: Vec<Samples> = bench.guests().iter().map(|_| Samples::default()).collect();
    for round in 1..=common.runs {
        for (machine, samples) in bench.guests().iter().zip(&mut samples) {
            eprintln!("run {round} of {}: {}", common.runs, machine.name());
            match machine {
                Machine::Ringfence { engine } => managed::measure(&bench, engine, clones, samples)?,
                Machine::Qemu => qemu::measure(&bench, samples)?,
                Machine::Native => {}
            }
        }
    }
    print(common, &bench, &samples, clones);
    let column = |(machine, samples): (&Machine, &Samples)| Column {
        machine: machine.name(),
        runs: common.runs,
        clones,
        memory_mib: common.memory,
        medians: samples.0.iter().map(|(row, values)| (*row, median(values))).collect(),
    };
    let columns: Vec<Column> = bench.guests().iter().zip(&samples).map(column).collect();
    write_json(common.json.as_deref(), &columns)
}

fn print(common: &Common, bench: &Bench, samples: &[Samples], clones: u32) {
    println!("guest of {} MiB under write load; {clones} clones of an idle one", common.memory);
    let mut rows = vec![vec![format!("medians of {} runs", common.runs)]];
    rows[0].extend(bench.guests().iter().map(Machine::name));
    for (row, text) in ROWS {
        let cells = samples.iter().map(|samples| match samples.median(row) {
            Some(value) if value < 10.0 => format!("{value:.2}"),
            Some(value) => format!("{value:.0}"),
            None => "-".to_owned(),
        });
        rows.push(std::iter::once(text.to_owned()).chain(cells).collect());
    }
    print_table(&rows);
}

fn millis(time: Duration) -> f64 {
    1000.0 * time.as_secs_f64()
}

/// Asks the guest something that was not asked before and waits for its answer.
fn probe(console: &mut (impl Read + Write), question: &str) -> Result<()> {
    console.write_all(format!("{question}\n").as_bytes())?;
    wait_for(console, &format!("ANSWER {question}"))
}

/// Reads until `text` has come; the stream has a time limit for reading.
fn wait_for(from: &mut impl Read, text: &str) -> Result<()> {
    let mut seen = Vec::new();
    let mut bytes = [0; 4096];
    while !String::from_utf8_lossy(&seen).contains(text) {
        match from.read(&mut bytes)? {
            0 => bail!("the stream ended before {text:?}: {}", String::from_utf8_lossy(&seen)),
            count => seen.extend(&bytes[..count]),
        }
    }
    Ok(())
}
