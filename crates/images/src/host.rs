//! Runs the host's programs (apt-get, apt-cache) without a terminal.
//!
//! Output goes to files in a scratch folder, so that no pipe can fill up while
//! the caller reports progress.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::{Error, Result};

/// How often the progress of a running program is looked at.
const POLL: Duration = Duration::from_millis(50);

/// How many lines of standard error an error message repeats.
const ERROR_LINES: usize = 2;

/// The file in the scratch folder with what the last program wrote to standard error.
pub(crate) const STDERR: &str = "stderr.log";

/// What a program left behind.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Standard output, lossily decoded.
    pub stdout: String,
    /// Standard error, lossily decoded.
    pub stderr: String,
    /// Whether the exit status was 0.
    pub success: bool,
    /// The exit status or signal in words.
    status: String,
    /// The command line for messages.
    command: String,
}

impl Finished {
    /// The error for a failed run.
    pub(crate) fn error(&self, way_out: &'static str) -> Error {
        Error::Command {
            command: self.command.clone(),
            status: self.status.clone(),
            detail: last_lines(&self.stderr),
            way_out,
        }
    }

    /// The same by a short name instead of its command line.
    pub(crate) fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.command);
        self
    }

    /// The same without the messages that begin with one of `prefixes`.
    pub(crate) fn without(mut self, prefixes: &[&str]) -> Self {
        let is_own = |line: &&str| !prefixes.iter().any(|prefix| line.starts_with(prefix));
        let own: Vec<&str> = self.stderr.lines().filter(is_own).collect();
        self.stderr = own.join("\n");
        self
    }

    /// This run, or the error when it failed.
    pub(crate) fn ok_or(self, way_out: &'static str) -> Result<Self> {
        if self.success { Ok(self) } else { Err(self.error(way_out)) }
    }
}

/// The last lines of a program's messages, as one line.
pub(crate) fn last_lines(stderr: &str) -> String {
    // apt marks errors and warnings by a letter.
    let unmarked =
        |line| ["E: ", "W: "].iter().fold(str::trim(line), |l, mark| l.trim_start_matches(mark));
    let lines: Vec<&str> = stderr.lines().map(unmarked).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        return "it gave no reason".to_owned();
    }
    lines[lines.len().saturating_sub(ERROR_LINES)..].join("; ")
}

/// The command line of `command` for messages.
pub(crate) fn command_line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|part| part.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Messages in English, no questions: what every program here is given.
pub(crate) fn prepare(command: &mut Command) -> &mut Command {
    command
        .env("LC_ALL", "C")
        .env_remove("LANGUAGE")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
}

/// Runs `command` to its end, calling `tick` while it runs.
///
/// The output files are made in `scratch`, which one caller at a time may use.
pub(crate) fn run(
    command: &mut Command,
    scratch: &Path,
    tick: &mut dyn FnMut(),
) -> Result<Finished> {
    let path = scratch.join("stdout.log");
    prepare(command).stdout(File::create(&path).map_err(Error::io("create", &path))?);
    let finished = run_prepared(command, scratch, tick)?;
    let stdout = read_lossily(&path)?;
    Ok(Finished { stdout, ..finished })
}

/// The same with files as standard input and output; `stdout` of what is returned is empty.
pub(crate) fn run_through(
    command: &mut Command,
    input: File,
    output: File,
    scratch: &Path,
    tick: &mut dyn FnMut(),
) -> Result<Finished> {
    prepare(command).stdin(input).stdout(output);
    run_prepared(command, scratch, tick)
}

fn run_prepared(command: &mut Command, scratch: &Path, tick: &mut dyn FnMut()) -> Result<Finished> {
    let stderr_path = scratch.join(STDERR);
    command.stderr(File::create(&stderr_path).map_err(Error::io("create", &stderr_path))?);
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |source| Error::Program { program: program.clone(), source };
    let mut child = command.spawn().map_err(failed)?;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        tick();
        std::thread::sleep(POLL);
    };
    tick();
    Ok(Finished {
        stdout: String::new(),
        stderr: read_lossily(&stderr_path)?,
        success: status.success(),
        status: status.to_string(),
        command: command_line(command),
    })
}

fn read_lossily(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_program_is_named_with_its_last_words() {
        let scratch = tempfile::tempdir().expect("tempdir");
        let mut command = Command::new("sh");
        command.args(["-c", "for i in 1 2 3 4 5 6; do echo E: line $i >&2; done; exit 7"]);
        let finished = run(&mut command, scratch.path(), &mut || {}).expect("sh runs");
        let text = finished.ok_or("try again").expect_err("status 7").to_string();
        assert!(text.contains("sh -c"), "{text}");
        assert!(text.contains("exit status: 7"), "{text}");
        assert!(text.contains("line 5; line 6; try again"), "{text}");
        assert!(!text.contains("line 4;"), "{text}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let scratch = tempfile::tempdir().expect("tempdir");
        let mut command = Command::new("/nonexistent/apt-get");
        let error = run(&mut command, scratch.path(), &mut || {}).expect_err("missing");
        assert!(error.to_string().contains("/nonexistent/apt-get"), "{error}");
        assert!(error.to_string().contains("Debian"), "{error}");
    }

    #[test]
    fn programs_speak_english() {
        let scratch = tempfile::tempdir().expect("tempdir");
        let mut command = Command::new("sh");
        command.args(["-c", "echo $LC_ALL"]);
        let finished = run(&mut command, scratch.path(), &mut || {}).expect("sh runs");
        assert_eq!(finished.stdout, "C\n");
    }
}
