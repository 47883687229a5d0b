//! What openssl computes per second, natively and in guests.
//!
//! The host's own `openssl` and the libraries that it names go into the guests, so that all machines
//! run the same code wherever the CPU that they see offers the same. `benches/guest/crypto-bench.sh`
//! prints `RATE name number` for each measurement, by the clock of the machine that it runs on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use images::initramfs::Builder;
use serde::Serialize;

use super::Common;
use super::capture::Capture;
use super::machines::{Bench, CRYPTO_BENCH, Machine};
use super::report::{median, print_table, write_json};

/// Where the guest's script looks for the program.
const GUEST_OPENSSL: &str = "/usr/bin/openssl";
/// What is measured, in the order of the table.
const NAMES: [&str; 4] = ["aes-128-gcm", "sha256", "sha512", "rsa-2048-sign"];

/// Rates of one run, in the order of [`NAMES`]: bytes or signatures per second.
type Run = [f64; NAMES.len()];

/// All runs of one machine, as medians.
#[derive(Serialize)]
struct Column {
    machine: String,
    /// Bytes or signatures per second.
    rates: Vec<f64>,
    /// Of the host's, in the same round.
    ratios: Vec<f64>,
}

#[derive(Serialize)]
struct Crypto {
    runs: u32,
    seconds: u32,
    names: Vec<&'static str>,
    machines: Vec<Column>,
}

pub fn run(common: &Common, seconds: u32) -> Result<()> {
    let Some(openssl) = find_openssl() else {
        println!("skipped: the host has no openssl; install it to measure cryptography");
        return Ok(());
    };
    let bench = Bench::prepare_with(common, with_openssl(&openssl)?)?;
    let machines: Vec<Machine> =
        std::iter::once(Machine::Native).chain(bench.guests().iter().cloned()).collect();
    let mut runs: Vec<Vec<Run>> = machines.iter().map(|_| Vec::new()).collect();
    for round in 1..=common.runs {
        for (machine, runs) in machines.iter().zip(&mut runs) {
            eprintln!("run {round} of {}: {}", common.runs, machine.name());
            let capture = match machine {
                Machine::Native => {
                    let program = openssl.display().to_string();
                    let variables = [("SECS", seconds.to_string()), ("OPENSSL", program)];
                    bench.native(CRYPTO_BENCH, &variables)?
                }
                _ => bench.boot(machine, &format!("do=crypto SECS={seconds}"))?,
            };
            runs.push(read(&machine.name(), &capture)?);
        }
    }
    let crypto = summary(&machines, &runs, seconds);
    print(&crypto);
    write_json(common.json.as_deref(), &crypto)
}

fn find_openssl() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join("openssl")).find(|file| file.is_file())
}

/// An initramfs with the program and the libraries that `ldd` names.
fn with_openssl(openssl: &Path) -> Result<Builder> {
    let content =
        |file: &Path| fs::read(file).with_context(|| format!("cannot read {}", file.display()));
    let output = Command::new("ldd").arg(openssl).output().context("cannot start ldd")?;
    if !output.status.success() {
        bail!("ldd does not understand {}", openssl.display());
    }
    let mut builder = Builder::new().file(GUEST_OPENSSL, 0o755, content(openssl)?);
    for library in libraries(&String::from_utf8_lossy(&output.stdout)) {
        builder = builder.file(library, 0o755, content(Path::new(library))?);
    }
    Ok(builder)
}

/// The files that `ldd` names: `name => /path (address)` or `/path (address)`.
fn libraries(ldd: &str) -> Vec<&str> {
    ldd.lines()
        .filter_map(|line| {
            let line = line.split_once("=> ").map_or(line, |(_, path)| path);
            line.split_whitespace().next().filter(|path| path.starts_with('/'))
        })
        .collect()
}

/// Reads a run's output.
fn read(machine: &str, capture: &Capture) -> Result<Run> {
    if capture.time_of("CRYPTO-DONE").is_none() {
        bail!("{machine}: the benchmark did not come to its end");
    }
    let mut run = Run::default();
    for (name, rate) in NAMES.iter().zip(&mut run) {
        let found = capture.lines.iter().find_map(|line| {
            line.text.strip_prefix("RATE ")?.strip_prefix(name)?.trim().parse::<f64>().ok()
        });
        match found {
            Some(found) if found > 0.0 => *rate = found,
            _ => bail!("{machine}: openssl did not measure {name}"),
        }
    }
    Ok(run)
}

fn summary(machines: &[Machine], runs: &[Vec<Run>], seconds: u32) -> Crypto {
    // The first machine is the host.
    let native = &runs[0];
    let column = |(machine, own): (&Machine, &Vec<Run>)| {
        let each = |of_round: &dyn Fn(usize) -> Vec<f64>| {
            (0..NAMES.len()).map(|index| median(&of_round(index))).collect()
        };
        let rates = each(&|index| own.iter().map(|run| run[index]).collect());
        let ratios = each(&|index| {
            own.iter().zip(native).map(|(run, host)| run[index] / host[index]).collect()
        });
        Column { machine: machine.name(), rates, ratios }
    };
    let columns = machines.iter().zip(runs).map(column).collect();
    Crypto { runs: native.len() as u32, seconds, names: NAMES.to_vec(), machines: columns }
}

fn print(crypto: &Crypto) {
    let mut rows = vec![vec!["per second (of native)".to_owned()]];
    rows[0].extend(crypto.machines.iter().map(|column| column.machine.clone()));
    for (index, name) in crypto.names.iter().enumerate() {
        let cell = |column: &Column| {
            let (rate, share) = (column.rates[index], 100.0 * column.ratios[index]);
            if name.starts_with("rsa") {
                format!("{rate:.0} ({share:.0}%)")
            } else {
                format!("{:.0} MB ({share:.0}%)", rate / 1e6)
            }
        };
        let cells = crypto.machines.iter().map(cell);
        rows.push(std::iter::once((*name).to_owned()).chain(cells).collect());
    }
    print_table(&rows);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::capture::Line;
    use super::*;

    fn capture(lines: &[&str]) -> Capture {
        let line = |text: &&str| Line { at: Duration::ZERO, text: (*text).to_owned() };
        Capture { lines: lines.iter().map(line).collect(), wall: Duration::ZERO }
    }

    #[test]
    fn libraries_are_found_in_what_ldd_says() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tlibgone.so => not found\n";
        assert_eq!(libraries(text), ["/lib/x/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
    }

    #[test]
    fn a_run_has_all_rates() {
        let mut lines = vec![
            "RATE aes-128-gcm 2000.5",
            "RATE sha256 3",
            "RATE sha512 4",
            "RATE rsa-2048-sign 5",
            "CRYPTO-DONE",
        ];
        assert_eq!(read("x", &capture(&lines)).expect("a whole run"), [2000.5, 3.0, 4.0, 5.0]);
        lines[2] = "RATE sha512 0";
        assert!(read("x", &capture(&lines)).is_err());
        assert!(read("x", &capture(&lines[..2])).is_err());
    }

    #[test]
    fn ratios_are_those_of_a_round() {
        let machines = [Machine::Native, Machine::Qemu];
        let round = |rate: f64| [rate; NAMES.len()];
        let runs = [
            vec![round(100.0), round(10.0), round(40.0)],
            vec![round(50.0), round(5.0), round(8.0)],
        ];
        let crypto = summary(&machines, &runs, 2);
        assert_eq!(crypto.machines[1].ratios, [0.5; NAMES.len()]);
        assert_eq!(crypto.machines[1].rates, [8.0; NAMES.len()]);
    }
}
