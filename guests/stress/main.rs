//! A program that works a machine with several CPUs hard and says what came of it.
//!
//! `stress --seed S --threads N [--rounds N] [--seconds N] [--folder F]` prints one line for each
//! round: `ROUND n job=digest ..`. The digests depend on the seed and the number of threads only,
//! never on the schedule, the CPUs or the time: two machines that run the same seed print the same
//! lines. What can be checked at once is: a `VIOLATION` line says what was wrong, and the exit
//! status is 1.
//!
//! A round has two phases. In the first, all threads do all jobs of [`PRIVATE`] with numbers of
//! their own, each in another order, so that different jobs run at once. In the second they do the
//! jobs of [`JOINT`] together, one after the other. A signal interrupts everything all the time.
//!
//! The harnesses (the package `stress`) run it on the host and in guests and compare.

mod code;
mod compute;
mod memory;
mod process;
mod processor;
mod random;
mod sharing;
mod sys;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use random::mix;

/// Work of one thread: a digest of a seed and a folder for files.
type Private = fn(u64, &Path) -> u64;
/// Work of several threads: a digest of a seed and their number.
type Joint = fn(u64, usize) -> u64;

const PRIVATE: [(&str, Private); 16] = [
    ("integers", |seed, _| compute::integers(seed)),
    ("floats", |seed, _| compute::floats(seed)),
    ("extended", |seed, _| compute::extended_floats(seed)),
    ("vectors", |seed, _| compute::vectors(seed)),
    ("sorting", |seed, _| compute::sorting(seed)),
    ("maps", |seed, _| compute::maps(seed)),
    ("strings", |seed, _| compute::strings(seed)),
    ("mappings", |seed, _| memory::mappings(seed)),
    ("faults", |seed, _| memory::faults(seed)),
    ("code", |seed, _| code::own(seed)),
    ("children", |seed, _| process::children(seed)),
    ("sockets", |seed, _| process::sockets(seed)),
    ("signals", |seed, _| process::signals(seed)),
    ("threads", |seed, _| process::threads(seed)),
    ("files", process::files),
    ("processor", |seed, _| processor::answers(seed)),
];

const JOINT: [(&str, Joint); 9] = [
    ("counters", sharing::counters),
    ("wide", sharing::wide_exchanges),
    ("split", sharing::split_locks),
    ("locks", sharing::locks),
    ("orders", sharing::orders),
    ("discards", memory::discards),
    ("replacements", memory::replacements),
    ("crossed", code::crossed),
    ("forks", process::forks),
];

/// Microseconds between two interruptions.
const ALARM: i64 = 7000;

static VIOLATED: AtomicBool = AtomicBool::new(false);

/// Something happened that must not.
pub fn violation(what: &str) {
    VIOLATED.store(true, Ordering::Relaxed);
    say(&format!("VIOLATION {what}"));
}

/// Prints a line at once; without a reader there is nothing left to do.
fn say(line: &str) {
    let mut output = std::io::stdout().lock();
    if writeln!(output, "{line}").and_then(|()| output.flush()).is_err() {
        std::process::exit(2);
    }
}

struct Options {
    seed: u64,
    threads: usize,
    rounds: u64,
    limit: Duration,
    folder: PathBuf,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, task] = &arguments[..]
        && flag == "--child"
    {
        return process::child(task);
    }
    let options = match parse(&arguments) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("stress: {message}");
            std::process::exit(2);
        }
    };
    sys::handle(sys::signal::SEGV, memory::on_fault);
    sys::handle(sys::signal::USER, process::on_signal);
    sys::handle(sys::signal::TRAP, process::on_signal);
    sys::handle(sys::signal::ALARM, process::on_alarm);
    sys::alarm_every(ALARM);
    let (begin, mut round) = (Instant::now(), 0);
    while round < options.rounds && begin.elapsed() < options.limit {
        let digests = run_round(mix(options.seed, round), &options);
        say(&format!("ROUND {round}{digests}"));
        round += 1;
    }
    say(&format!("STRESS-DONE {round}"));
    std::process::exit(i32::from(VIOLATED.load(Ordering::Relaxed)));
}

fn parse(arguments: &[String]) -> Result<Options, String> {
    let mut options = Options {
        seed: 1,
        threads: 4,
        rounds: u64::MAX,
        limit: Duration::MAX,
        folder: std::env::temp_dir(),
    };
    let mut rest = arguments.iter();
    while let Some(flag) = rest.next() {
        let value = rest.next().ok_or_else(|| format!("{flag} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|error| format!("{flag} {value}: {error}"));
        match flag.as_str() {
            "--seed" => options.seed = number()?,
            "--threads" => options.threads = number()?.clamp(2, 64) as usize,
            "--rounds" => options.rounds = number()?,
            "--seconds" => options.limit = Duration::from_secs(number()?),
            "--folder" => options.folder = PathBuf::from(value),
            _ => return Err(format!("{flag} is no option")),
        }
    }
    Ok(options)
}

/// The digests of a round as text.
fn run_round(seed: u64, options: &Options) -> String {
    let count = PRIVATE.len();
    let folder = &options.folder;
    let job = move |thread: usize, index: usize| {
        let (_, run) = PRIVATE[index];
        run(mix(seed, (thread * count + index) as u64), folder)
    };
    let per_thread: Vec<Vec<u64>> = thread::scope(|scope| {
        let work = |thread: usize| {
            move || {
                let mut digests = vec![0; count];
                for step in 0..count {
                    let index = (step + thread * 4) % count;
                    digests[index] = job(thread, index);
                }
                digests
            }
        };
        let running: Vec<_> =
            (0..options.threads).map(|thread| scope.spawn(work(thread))).collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let mut text = String::new();
    for (index, (name, _)) in PRIVATE.iter().enumerate() {
        let digest = per_thread.iter().map(|digests| digests[index]).fold(0, mix);
        text.push_str(&format!(" {name}={:08x}", digest as u32));
    }
    for (index, (name, run)) in JOINT.iter().enumerate() {
        let digest = run(mix(seed, 1000 + index as u64), options.threads);
        text.push_str(&format!(" {name}={:08x}", digest as u32));
    }
    text
}
