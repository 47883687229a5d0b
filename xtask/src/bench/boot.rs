//! Boots the stock kernel: time to GUEST-UP, and guest instructions per second.

use anyhow::{Context, Result};
use serde::Serialize;

use super::Common;
use super::machines::{Bench, Machine};
use super::report::{median, print_table, write_json};

/// What `/init` prints first.
const UP: &str = "GUEST-UP";

/// Medians of one machine.
#[derive(Serialize)]
struct Boot {
    machine: String,
    /// Start of the program to GUEST-UP.
    seconds_to_up: f64,
    /// Start of the program to its end.
    seconds_to_off: f64,
    /// Guest instructions of the whole run, where they are counted.
    instructions: Option<u64>,
    /// Guest instructions by the time of the whole run, in millions.
    million_instructions_per_second: Option<f64>,
    runs: u32,
}

#[derive(Default)]
struct Samples {
    up: Vec<f64>,
    off: Vec<f64>,
    instructions: Vec<f64>,
    speed: Vec<f64>,
}

pub fn run(common: &Common) -> Result<()> {
    let bench = Bench::prepare(common)?;
    let mut samples: Vec<Samples> = bench.guests().iter().map(|_| Samples::default()).collect();
    for round in 1..=common.runs {
        for (machine, samples) in bench.guests().iter().zip(&mut samples) {
            eprintln!("run {round} of {}: {}", common.runs, machine.name());
            measure(&bench, machine, samples)?;
        }
    }
    let results: Vec<Boot> = bench
        .guests()
        .iter()
        .zip(&samples)
        .map(|(machine, samples)| summary(machine, samples, common.runs))
        .collect();
    print(&results);
    write_json(common.json.as_deref(), &results)
}

fn measure(bench: &Bench, machine: &Machine, samples: &mut Samples) -> Result<()> {
    let capture = bench.boot(machine, "")?;
    let up = capture.time_of(UP);
    let up = up.with_context(|| format!("{} ended without {UP}", machine.name()))?;
    samples.up.push(up.as_secs_f64());
    samples.off.push(capture.wall.as_secs_f64());
    if let Machine::Ringfence { .. } = machine
        && let Some(instructions) = bench.instructions()?
    {
        samples.instructions.push(instructions as f64);
        samples.speed.push(instructions as f64 / capture.wall.as_secs_f64());
    }
    Ok(())
}

fn summary(machine: &Machine, samples: &Samples, runs: u32) -> Boot {
    let counted = !samples.instructions.is_empty();
    Boot {
        machine: machine.name(),
        seconds_to_up: median(&samples.up),
        seconds_to_off: median(&samples.off),
        instructions: counted.then(|| median(&samples.instructions) as u64),
        million_instructions_per_second: counted.then(|| median(&samples.speed) / 1e6),
        runs,
    }
}

fn print(results: &[Boot]) {
    let header = ["machine", "to GUEST-UP, s", "to power-off, s", "instructions", "million/s"];
    let mut rows = vec![header.map(String::from).to_vec()];
    for boot in results {
        rows.push(vec![
            boot.machine.clone(),
            format!("{:.2}", boot.seconds_to_up),
            format!("{:.2}", boot.seconds_to_off),
            boot.instructions.map_or("-".to_owned(), |n| n.to_string()),
            boot.million_instructions_per_second.map_or("-".to_owned(), |n| format!("{n:.1}")),
        ]);
    }
    print_table(&rows);
}
