//! The guest benchmark suite, natively and in guests.
//!
//! The script prints `BEGIN part` and `END part` around each part, which are dated here, then
//! `SUM part md5` of what the part computed. A part that failed, is missing, or has another sum
//! than natively makes the whole measurement fail: a wrong result has no speed.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use anyhow::{Result, bail};
use serde::Serialize;

use super::Common;
use super::capture::{Capture, Line};
use super::machines::{Bench, GUEST_BENCH, Machine};
use super::report::{geometric_mean, median, print_table, write_json};

/// One run of the script.
#[derive(Debug, Default, PartialEq)]
struct Run {
    /// Parts in order, with their seconds.
    parts: Vec<(String, f64)>,
    /// Sum of each part.
    sums: BTreeMap<String, String>,
}

/// All runs of one machine, as medians.
#[derive(Serialize)]
struct Column {
    machine: String,
    /// Seconds of each part, in the order of the table.
    seconds: Vec<f64>,
    /// The same relative to the host.
    ratios: Vec<f64>,
    /// Geometric mean of the ratios.
    mean_ratio: f64,
}

#[derive(Serialize)]
struct Suite {
    runs: u32,
    scale: u32,
    parts: Vec<String>,
    machines: Vec<Column>,
}

pub fn run(common: &Common, scale: u32) -> Result<()> {
    let bench = Bench::prepare(common)?;
    let machines: Vec<Machine> =
        std::iter::once(Machine::Native).chain(bench.guests().iter().cloned()).collect();
    let mut runs: Vec<Vec<Run>> = machines.iter().map(|_| Vec::new()).collect();
    for round in 1..=common.runs {
        for (machine, runs) in machines.iter().zip(&mut runs) {
            eprintln!("run {round} of {}: {}", common.runs, machine.name());
            runs.push(measure(&bench, machine, scale)?);
        }
    }
    compare_sums(&machines, &runs)?;
    let suite = summary(&machines, &runs, common.runs, scale);
    print(&suite);
    write_json(common.json.as_deref(), &suite)
}

fn measure(bench: &Bench, machine: &Machine, scale: u32) -> Result<Run> {
    let capture = match machine {
        Machine::Native => bench.native(GUEST_BENCH, &[("SCALE", scale.to_string())])?,
        _ => bench.boot(machine, &format!("do=bench SCALE={scale}"))?,
    };
    read(&machine.name(), &capture)
}

/// Reads a run's output.
fn read(machine: &str, capture: &Capture) -> Result<Run> {
    let mut run = Run::default();
    let mut begun: Option<(&str, f64)> = None;
    for line in &capture.lines {
        let Some((word, name)) = marked(line) else { continue };
        let at = line.at.as_secs_f64();
        match (word, begun) {
            ("BEGIN", None) => begun = Some((name, at)),
            ("END", Some((part, since))) if part == name => {
                run.parts.push((name.to_owned(), at - since));
                begun = None;
            }
            ("FAILED", _) => bail!("{machine}: part {name} failed"),
            ("SUM", _) => {
                let Some((part, sum)) = name.split_once(' ') else { continue };
                run.sums.insert(part.to_owned(), sum.to_owned());
            }
            _ => bail!("{machine}: {word} {name} comes out of order"),
        }
    }
    if capture.time_of("BENCH-DONE").is_none() || run.parts.is_empty() {
        bail!("{machine}: the benchmark did not come to its end");
    }
    Ok(run)
}

/// The word and what follows it, of a line that means something here.
fn marked(line: &Line) -> Option<(&str, &str)> {
    let (word, rest) = line.text.split_once(' ')?;
    matches!(word, "BEGIN" | "END" | "SUM" | "FAILED").then_some((word, rest.trim()))
}

/// Every run of every machine computed the same.
fn compare_sums(machines: &[Machine], runs: &[Vec<Run>]) -> Result<()> {
    let mut expected: BTreeMap<&str, &str> = BTreeMap::new();
    for (machine, runs) in machines.iter().zip(runs) {
        for (part, sum) in runs.iter().flat_map(|run| &run.sums) {
            match expected.entry(part) {
                Entry::Vacant(entry) => {
                    entry.insert(sum);
                }
                Entry::Occupied(entry) if *entry.get() != sum => {
                    let first = entry.get();
                    bail!("{}: part {part} computed {sum}, the first run {first}", machine.name());
                }
                Entry::Occupied(_) => {}
            }
        }
        if let Some(run) = runs.iter().find(|run| run.sums.len() != expected.len()) {
            let (has, wants) = (run.sums.len(), expected.len());
            bail!("{}: {has} sums where the first run has {wants}", machine.name());
        }
    }
    Ok(())
}

fn summary(machines: &[Machine], runs: &[Vec<Run>], count: u32, scale: u32) -> Suite {
    // The first machine is the host, and all machines have the same parts by now.
    let parts: Vec<String> = runs[0][0].parts.iter().map(|(name, _)| name.clone()).collect();
    let seconds_of = |runs: &[Run]| -> Vec<f64> {
        let of_part = |part: &String| {
            let found = runs.iter().flat_map(|run| &run.parts).filter(|(name, _)| name == part);
            median(&found.map(|(_, seconds)| *seconds).collect::<Vec<_>>())
        };
        parts.iter().map(of_part).collect()
    };
    let native = seconds_of(&runs[0]);
    let column = |(machine, runs): (&Machine, &Vec<Run>)| {
        let seconds = seconds_of(runs);
        let ratios: Vec<f64> = seconds.iter().zip(&native).map(|(own, host)| own / host).collect();
        let mean_ratio = geometric_mean(&ratios);
        Column { machine: machine.name(), seconds, ratios, mean_ratio }
    };
    let machines = machines.iter().zip(runs).map(column).collect();
    Suite { runs: count, scale, parts, machines }
}

fn print(suite: &Suite) {
    let mut header = vec!["part, s (against native)".to_owned()];
    header.extend(suite.machines.iter().map(|column| column.machine.clone()));
    let mut rows = vec![header];
    let cell = |seconds: f64, ratio: f64| format!("{seconds:.2} ({ratio:.1}x)");
    for (index, part) in suite.parts.iter().enumerate() {
        let cells = suite.machines.iter().map(|c| cell(c.seconds[index], c.ratios[index]));
        rows.push(std::iter::once(part.clone()).chain(cells).collect());
    }
    let means = suite.machines.iter().map(|column| format!("{:.1}x", column.mean_ratio));
    rows.push(std::iter::once("geometric mean".to_owned()).chain(means).collect());
    print_table(&rows);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn capture(lines: &[(u64, &str)]) -> Capture {
        let line = |&(at, text): &(u64, &str)| Line {
            at: Duration::from_millis(at),
            text: text.to_owned(),
        };
        Capture { lines: lines.iter().map(line).collect(), wall: Duration::ZERO }
    }

    #[test]
    fn parts_are_timed_by_arrival() {
        let seen = capture(&[
            (0, "[    0.1] BEGIN of a kernel message"),
            (10, "BEGIN sort"),
            (260, "END sort"),
            (261, "SUM sort 0123"),
            (262, "BENCH sort 0.25"),
            (263, "BENCH-DONE"),
        ]);
        let run = read("x", &seen).expect("a whole run");
        assert_eq!(run.parts, [("sort".to_owned(), 0.25)]);
        assert_eq!(run.sums["sort"], "0123");
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        let failed = capture(&[(0, "BEGIN a"), (1, "FAILED a"), (2, "END a"), (3, "BENCH-DONE")]);
        assert!(read("x", &failed).is_err());
        assert!(read("x", &capture(&[(0, "BEGIN a"), (1, "END a")])).is_err());
        assert!(read("x", &capture(&[(0, "BEGIN a"), (1, "END b"), (2, "BENCH-DONE")])).is_err());
    }

    #[test]
    fn a_different_sum_is_an_error() {
        let run = |sum: &str| Run {
            parts: vec![("a".to_owned(), 1.0)],
            sums: BTreeMap::from([("a".to_owned(), sum.to_owned())]),
        };
        let machines = [Machine::Native, Machine::Qemu];
        assert!(compare_sums(&machines, &[vec![run("1")], vec![run("1")]]).is_ok());
        let error = compare_sums(&machines, &[vec![run("1")], vec![run("2")]]).unwrap_err();
        assert!(error.to_string().contains("qemu tcg: part a"), "{error}");
        let error = compare_sums(&machines, &[vec![run("1")], vec![Run::default()]]);
        assert!(error.is_err());
    }
}
