//! The stress program of `guests/stress`: its runs, and the comparison of a guest with the host.
//!
//! The program prints a line for each round, which depends on its seed and number of threads only.
//! [`Comparison`] runs it on the host beside the guest and takes the guest's console line by line.

use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use thiserror::Error;

use crate::kernel_log::complains;

/// Where the guest's initramfs has the program.
pub const GUEST_PATH: &str = "/stress";

/// What a line of a round begins with.
const ROUND: &str = "ROUND ";
/// What the program prints at its end, before the number of rounds.
const DONE: &str = "STRESS-DONE ";

/// The program: a static executable for the host and for guests.
pub fn program() -> &'static Path {
    Path::new(env!("STRESS_PROGRAM"))
}

/// When the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// After so many rounds.
    Rounds(u64),
    /// After the round that goes beyond so many seconds of its own clock.
    Seconds(u64),
}

/// A run of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where its numbers begin.
    pub seed: u64,
    /// How many threads work at once, at least 2.
    pub threads: u32,
    /// When it ends.
    pub extent: Extent,
}

impl Plan {
    /// Shell commands for a guest's [`crate::init`] that run the program.
    pub fn script(&self) -> String {
        let Self { seed, threads, extent } = self;
        let extent = match extent {
            Extent::Rounds(rounds) => format!("--rounds {rounds}"),
            Extent::Seconds(seconds) => format!("--seconds {seconds}"),
        };
        format!(
            "mkdir -p /tmp\nmount -t tmpfs none /tmp\n\
             {GUEST_PATH} --seed {seed} --threads {threads} {extent} --folder /tmp\n\
             echo STRESS-STATUS $?"
        )
    }
}

/// What is wrong with a run.
#[derive(Debug, Error)]
pub enum Finding {
    /// A round of the guest is not that of the host.
    #[error("round {round} differs from the host in {}", .jobs.join(", "))]
    Difference {
        /// Which one, from 0.
        round: u64,
        /// `name=guest's digest (host's digest)` of each job that differs, or the whole line.
        jobs: Vec<String>,
    },
    /// The program, or the kernel below it, says that something is wrong.
    #[error("the guest complains: {0}")]
    Complaint(String),
    /// The guest ended before the program did.
    #[error("the program did not come to its end; it finished {0} rounds")]
    Unfinished(u64),
    /// The host cannot run the program.
    #[error("the stress program does not run on the host: {0}; look at its messages above")]
    Host(#[from] io::Error),
}

/// A guest's run beside the host's.
pub struct Comparison {
    host: Host,
    rounds: u64,
    done: bool,
}

impl Comparison {
    /// Starts the host's run, which waits for the guest after some hundred rounds.
    ///
    /// # Errors
    /// [`Finding::Host`].
    pub fn start(plan: &Plan) -> Result<Self, Finding> {
        Ok(Self { host: Host::start(plan)?, rounds: 0, done: false })
    }

    /// Takes a line of the guest's console.
    ///
    /// # Errors
    /// What the line shows to be wrong.
    pub fn line(&mut self, line: &str) -> Result<(), Finding> {
        let line = line.trim_end();
        if line.starts_with(ROUND) {
            let expected = self.host.round()?;
            if line != expected {
                let jobs = differing_jobs(line, &expected);
                return Err(Finding::Difference { round: self.rounds, jobs });
            }
            self.rounds += 1;
        } else if let Some(rounds) = line.strip_prefix(DONE) {
            self.done = rounds.parse() == Ok(self.rounds);
        } else if is_complaint(line) {
            return Err(Finding::Complaint(line.to_owned()));
        }
        Ok(())
    }

    /// Rounds that were the same so far.
    pub fn rounds(&self) -> u64 {
        self.rounds
    }

    /// The guest has ended; how many rounds were the same.
    ///
    /// # Errors
    /// [`Finding::Unfinished`].
    pub fn finish(self) -> Result<u64, Finding> {
        if self.done && self.rounds > 0 {
            Ok(self.rounds)
        } else {
            Err(Finding::Unfinished(self.rounds))
        }
    }
}

fn is_complaint(line: &str) -> bool {
    let status = line.strip_prefix("STRESS-STATUS ");
    line.contains("VIOLATION") || status.is_some_and(|status| status != "0") || complains(line)
}

fn differing_jobs(guest: &str, host: &str) -> Vec<String> {
    let digests = |line: &str| -> Vec<String> { line.split(' ').map(str::to_owned).collect() };
    let (guest_jobs, host_jobs) = (digests(guest), digests(host));
    if guest_jobs.len() != host_jobs.len() {
        return vec![format!("its whole line: {guest:?} ({host:?})")];
    }
    let both = guest_jobs.iter().zip(&host_jobs);
    both.filter(|(guest, host)| guest != host).map(|(g, h)| format!("{g} ({h})")).collect()
}

/// The program on the host. It runs ahead until the pipe is full.
struct Host {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Host {
    fn start(plan: &Plan) -> io::Result<Self> {
        let mut command = Command::new(program());
        command.args(["--seed", &plan.seed.to_string()]);
        command.args(["--threads", &plan.threads.to_string()]);
        if let Extent::Rounds(rounds) = plan.extent {
            command.args(["--rounds", &rounds.to_string()]);
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let lines = child.stdout.take().map(BufReader::new).ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self { child, lines })
    }

    /// The next round's line.
    fn round(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        let line = line.trim_end();
        if line.starts_with(ROUND) {
            return Ok(line.to_owned());
        }
        Err(io::Error::other(format!("it printed {line:?} instead of a round")))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan { seed: 3, threads: 2, extent: Extent::Rounds(2) };

    fn run(plan: &Plan) -> String {
        let mut host = Host::start(plan).expect("the program starts");
        let mut text = String::new();
        io::Read::read_to_string(&mut host.lines, &mut text).expect("text");
        text
    }

    #[test]
    fn the_host_is_equal_to_itself() {
        let mut comparison = Comparison::start(&PLAN).expect("the program starts");
        for line in run(&PLAN).lines() {
            comparison.line(line).expect("the same");
        }
        assert_eq!(comparison.finish().expect("whole"), 2);
    }

    #[test]
    fn a_difference_names_the_job() {
        let mut comparison = Comparison::start(&PLAN).expect("the program starts");
        let first = run(&PLAN).lines().next().expect("a round").to_owned();
        let (name, digest) = first.split(' ').find_map(|job| job.split_once('=')).expect("a job");
        let wrong = first.replacen(digest, "wrong", 1);
        let finding = comparison.line(&wrong).expect_err("another digest").to_string();
        assert!(finding.contains(&format!("{name}=wrong ({name}={digest})")), "{finding}");
    }

    #[test]
    fn a_run_cut_short_is_found() {
        let mut comparison = Comparison::start(&PLAN).expect("the program starts");
        comparison.line(run(&PLAN).lines().next().expect("a round")).expect("the same");
        assert!(matches!(comparison.finish(), Err(Finding::Unfinished(1))));
    }

    #[test]
    fn what_the_guest_says_counts() {
        for line in ["VIOLATION x", "STRESS-STATUS 1", "[ 9.1] watchdog: BUG: soft lockup"] {
            let mut comparison = Comparison::start(&PLAN).expect("the program starts");
            assert!(matches!(comparison.line(line), Err(Finding::Complaint(_))), "{line}");
        }
    }
}
