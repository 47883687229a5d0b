//! The measuring program of `guests/micro`, and what it prints.

use std::path::Path;
use std::time::Duration;

use thiserror::Error;

/// Where a guest's initramfs has the program.
pub const GUEST_PATH: &str = "/micro";

/// How far a machine's clock may be off: a part of the time, and what the way of a line takes.
const CLOCK_TOLERANCE: (f64, Duration) = (0.02, Duration::from_millis(50));

/// The program: a static executable for the host and for guests.
pub fn program() -> &'static Path {
    Path::new(env!("MICRO_PROGRAM"))
}

/// What is wrong with a run.
#[derive(Debug, Error)]
pub enum Finding {
    /// The program did not come to its end.
    #[error("the measurements did not come to their end")]
    Unfinished,
    /// A line that is none of the program's, though it begins like one.
    #[error("cannot read {0:?}")]
    Line(String),
    /// The machine's clock is not the host's.
    #[error(
        "the machine's clock advanced {own:?} in {host:?} of the host's; its times are worthless"
    )]
    Clock {
        /// By the machine's clock.
        own: Duration,
        /// By the host's.
        host: Duration,
    },
}

/// What a run measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// Names, and nanoseconds of one operation, in the order of the program.
    pub times: Vec<(String, f64)>,
    /// Names of what cannot be measured there, and why.
    pub without: Vec<(String, String)>,
}

/// Reads what the program printed: lines, each with the host's time when it arrived.
///
/// # Errors
/// When the program did not end, or its clock is not that of the host.
pub fn read<'a>(lines: impl Iterator<Item = (Duration, &'a str)>) -> Result<Run, Finding> {
    let mut run = Run::default();
    let (mut clocks, mut done) = (Vec::new(), false);
    for (at, line) in lines {
        let mut words = line.split_whitespace();
        let unreadable = || Finding::Line(line.to_owned());
        let kind = words.next().unwrap_or_default();
        match kind {
            "MICRO" => {
                let name = words.next().ok_or_else(unreadable)?;
                let time = words.next().and_then(|time| time.parse::<f64>().ok());
                run.times.push((name.to_owned(), time.ok_or_else(unreadable)?));
            }
            "MICRO-WITHOUT" => {
                let name = words.next().ok_or_else(unreadable)?;
                let reason = words.collect::<Vec<_>>().join(" ");
                run.without.push((name.to_owned(), reason));
                continue;
            }
            "MICRO-BEGIN" => {}
            "MICRO-DONE" => done = true,
            _ => continue,
        }
        let own = words.next().and_then(|word| word.parse().ok()).map(Duration::from_nanos);
        clocks.push((at, own.ok_or_else(unreadable)?));
    }
    if !done {
        return Err(Finding::Unfinished);
    }
    check_clock(&clocks)?;
    Ok(run)
}

/// Compares times of the host with those of the machine. A line may arrive late, never early, so
/// that the earliest of each half of the run says how the clocks differ.
fn check_clock(clocks: &[(Duration, Duration)]) -> Result<(), Finding> {
    let (first, second) = clocks.split_at(clocks.len() / 2);
    let earliest = |half: &[(Duration, Duration)]| {
        half.iter()
            .copied()
            .min_by_key(|(host, own)| host.as_nanos() as i128 - own.as_nanos() as i128)
    };
    let (Some(begin), Some(end)) = (earliest(first), earliest(second)) else {
        return Err(Finding::Unfinished);
    };
    let (host, own) = (end.0.saturating_sub(begin.0), end.1.saturating_sub(begin.1));
    let (part, constant) = CLOCK_TOLERANCE;
    if own.abs_diff(host) > host.mul_f64(part) + constant {
        return Err(Finding::Clock { own, host });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn read_at(lines: &[(u64, &str)]) -> Result<Run, Finding> {
        read(lines.iter().map(|&(at, line)| (Duration::from_millis(at), line)))
    }

    #[test]
    fn the_program_measures_and_says_what_it_cannot() {
        let output =
            Command::new(program()).args(["--batch", "1"]).output().expect("the program starts");
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).expect("text");
        // Dated by its own clock, which is not what is tested here.
        let lines = text.lines().filter(|line| !line.starts_with("MICRO-DONE"));
        let lines = lines.chain(["MICRO-DONE 0"]);
        let own = |line: &str| line.rsplit(' ').next().and_then(|word| word.parse().ok());
        let lines = lines.map(|line| (Duration::from_nanos(own(line).unwrap_or(0)), line));
        let run = read(lines).expect("a whole run");
        let has = |name: &str| run.times.iter().any(|(found, time)| found == name && *time > 0.0);
        for name in ["null-call", "signal-handle", "page-fault", "pipe", "fork-exec"] {
            assert!(has(name), "{name} in {run:?}");
        }
        assert!(run.without.iter().any(|(name, _)| name == "mmio-read"), "{run:?}");
    }

    #[test]
    fn a_run_is_read() {
        let run = read_at(&[
            (0, "[    0.1] MICRO of the kernel"),
            (10, "MICRO-BEGIN 5000000"),
            (500, "MICRO null-call 84.5 495000000"),
            (500, "MICRO-WITHOUT ipi there is one CPU"),
            (1010, "MICRO-DONE 1005000000"),
        ]);
        let run = run.expect("a whole run");
        assert_eq!(run.times, [("null-call".to_owned(), 84.5)]);
        assert_eq!(run.without, [("ipi".to_owned(), "there is one CPU".to_owned())]);
    }

    #[test]
    fn a_clock_that_is_wrong_is_found() {
        let found = read_at(&[(0, "MICRO-BEGIN 0"), (2000, "MICRO-DONE 1000000000")]);
        assert!(matches!(found, Err(Finding::Clock { .. })), "{found:?}");
        let late = [(900, "MICRO-BEGIN 0"), (1000, "MICRO a 1.0 1000000000")];
        let late =
            [&late[..], &[(2500, "MICRO b 1.0 2000000000"), (3000, "MICRO-DONE 3000000000")]];
        assert!(read_at(&late.concat()).is_ok(), "lines that arrive late are no drift");
        let found = read_at(&[(0, "MICRO-BEGIN 0"), (1000, "MICRO read 1.0 1")]);
        assert!(matches!(found, Err(Finding::Unfinished)), "{found:?}");
    }
}
