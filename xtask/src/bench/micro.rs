//! What single operations of a Linux kernel cost, natively and in guests.
//!
//! The program of `guests/micro` measures them by the clock of the machine that it runs on, which
//! is compared with the host's by the arrival of its first and last line. What needs two CPUs is
//! measured in a second guest that has two, since kernels behave otherwise there.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use images::initramfs::Builder;
use serde::Serialize;
use workload::micro::{self, GUEST_PATH};

use super::Common;
use super::capture::Capture;
use super::machines::{Bench, Machine};
use super::report::{geometric_mean, median, print_table, write_json};

/// Where files of the measurements are, on all machines: a tmpfs.
const FOLDER: &str = "/dev/shm";
/// Where guests have busybox.
const GUEST_SHELL: &str = "/bin/busybox";
/// The only engine that has one vCPU whatever is asked for.
const SINGLE: &str = "kvm";

/// One row: an operation on every machine.
#[derive(Serialize)]
struct Row {
    name: String,
    /// Nanoseconds, in the order of the machines; null where it cannot be measured.
    nanoseconds: Vec<Option<f64>>,
    /// The same relative to the host.
    ratios: Vec<Option<f64>>,
}

#[derive(Serialize)]
struct Micro {
    runs: u32,
    machines: Vec<String>,
    rows: Vec<Row>,
    /// Of the ratios of all rows that the machine and the host have.
    mean_ratios: Vec<f64>,
}

pub fn run(common: &Common, only: Option<&str>) -> Result<()> {
    let program = fs::read(micro::program()).context("no measuring program")?;
    let bench = Bench::prepare_with(common, Builder::new().file(GUEST_PATH, 0o755, program))?;
    let machines: Vec<Machine> =
        std::iter::once(Machine::Native).chain(bench.guests().iter().cloned()).collect();
    let mut runs: Vec<Vec<micro::Run>> = machines.iter().map(|_| Vec::new()).collect();
    for round in 1..=common.runs {
        for (machine, runs) in machines.iter().zip(&mut runs) {
            eprintln!("run {round} of {}: {}", common.runs, machine.name());
            runs.push(measure(&bench, machine, only)?);
        }
    }
    let micro = summary(&machines, &runs);
    print(&micro);
    print_gaps(&machines, &runs);
    write_json(common.json.as_deref(), &micro)
}

/// Both parts of a run.
fn measure(bench: &Bench, machine: &Machine, only: Option<&str>) -> Result<micro::Run> {
    let mut run = part(bench, machine, only, 1)?;
    if !matches!(machine, Machine::Ringfence { engine } if engine == SINGLE) {
        let several = part(bench, machine, only, 2)?;
        run.times.extend(several.times);
        run.without.extend(several.without);
    }
    Ok(run)
}

fn part(bench: &Bench, machine: &Machine, only: Option<&str>, cpus: u32) -> Result<micro::Run> {
    let native = *machine == Machine::Native;
    let shell = if native { bench.busybox().display().to_string() } else { GUEST_SHELL.into() };
    let mut arguments = vec!["--folder", FOLDER, "--shell", &shell];
    arguments.extend((cpus > 1).then_some("--several-cpus"));
    arguments.extend((!native).then_some("--devices"));
    arguments.extend(only.map(|name| ["--only", name]).into_iter().flatten());
    let capture: Capture = if native {
        bench.native_program(Command::new(micro::program()).args(arguments))?
    } else {
        // Linux lets nobody else access a device that it uses, without the first of these.
        let cmdline = format!("iomem=relaxed do=micro MICRO={}", arguments.join(","));
        bench.boot_with_cpus(machine, &cmdline, cpus)?
    };
    let lines = capture.lines.iter().map(|line| (line.at, line.text.as_str()));
    micro::read(lines).with_context(|| machine.name())
}

fn summary(machines: &[Machine], runs: &[Vec<micro::Run>]) -> Micro {
    // The guests measure more than the host: devices.
    let longest = runs.iter().filter_map(|runs| runs.first()).max_by_key(|run| run.times.len());
    let names = longest.iter().flat_map(|run| &run.times).map(|(name, _)| name);
    let rows: Vec<Row> = names.map(|name| row(name, runs)).collect();
    let mean = |machine: usize| {
        let ratios: Vec<f64> = rows.iter().filter_map(|row| row.ratios[machine]).collect();
        geometric_mean(&ratios)
    };
    let mean_ratios = (0..machines.len()).map(mean).collect();
    let names = machines.iter().map(Machine::name).collect();
    Micro { runs: runs[0].len() as u32, machines: names, rows, mean_ratios }
}

fn row(name: &str, runs: &[Vec<micro::Run>]) -> Row {
    let time = |runs: &Vec<micro::Run>| {
        let times = runs.iter().flat_map(|run| &run.times).filter(|(found, _)| found == name);
        let times: Vec<f64> = times.map(|(_, time)| *time).collect();
        (!times.is_empty()).then(|| median(&times))
    };
    let nanoseconds: Vec<Option<f64>> = runs.iter().map(time).collect();
    let ratio = |time: &Option<f64>| Some((*time)? / nanoseconds[0]?);
    let ratios = nanoseconds.iter().map(ratio).collect();
    Row { name: name.to_owned(), nanoseconds, ratios }
}

fn print(micro: &Micro) {
    let mut rows = vec![vec!["microseconds (against native)".to_owned()]];
    rows[0].extend(micro.machines.iter().cloned());
    let cell = |(time, ratio): (&Option<f64>, &Option<f64>)| match (time, ratio) {
        (None, _) => "-".to_owned(),
        (Some(time), None) => format!("{:.2}", time / 1e3),
        (Some(time), Some(ratio)) => format!("{:.2} ({ratio:.1}x)", time / 1e3),
    };
    for row in &micro.rows {
        let cells = row.nanoseconds.iter().zip(&row.ratios).map(cell);
        rows.push(std::iter::once(row.name.clone()).chain(cells).collect());
    }
    let means = micro.mean_ratios.iter().map(|mean| format!("{mean:.1}x"));
    rows.push(std::iter::once("geometric mean".to_owned()).chain(means).collect());
    print_table(&rows);
}

/// Says what the table lacks, and why.
fn print_gaps(machines: &[Machine], runs: &[Vec<micro::Run>]) {
    for (machine, runs) in machines.iter().zip(runs) {
        for (name, reason) in runs.last().iter().flat_map(|run| &run.without) {
            println!("{}: no {name}: {reason}", machine.name());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(times: &[(&str, f64)]) -> micro::Run {
        let times = times.iter().map(|&(name, time)| (name.to_owned(), time)).collect();
        micro::Run { times, without: Vec::new() }
    }

    #[test]
    fn what_the_host_lacks_has_no_ratio() {
        let native = vec![run(&[("read", 100.0)]), run(&[("read", 300.0)])];
        let guest = vec![run(&[("read", 800.0), ("port-read", 5.0)])];
        let micro = summary(&[Machine::Native, Machine::Qemu], &[native, guest]);
        assert_eq!(micro.rows[0].nanoseconds, [Some(200.0), Some(800.0)]);
        assert_eq!(micro.rows[0].ratios, [Some(1.0), Some(4.0)]);
        assert_eq!(micro.rows[1].nanoseconds, [None, Some(5.0)]);
        assert_eq!(micro.rows[1].ratios, [None, None]);
        assert!((micro.mean_ratios[1] - 4.0).abs() < 1e-9);
    }
}
