//! Runs a program and dates the lines it prints.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How many lines of output an error message repeats.
const LAST_LINES: usize = 5;

/// A line, and when it arrived after the start of the program.
pub struct Line {
    pub at: Duration,
    pub text: String,
}

/// What a run showed.
pub struct Capture {
    pub lines: Vec<Line>,
    pub wall: Duration,
}

impl Capture {
    /// When the first line that holds `mark` arrived. The kernel's messages may share the line.
    pub fn time_of(&self, mark: &str) -> Option<Duration> {
        self.lines.iter().find(|line| line.text.contains(mark)).map(|line| line.at)
    }

    fn last_lines(&self) -> String {
        let from = self.lines.len().saturating_sub(LAST_LINES);
        let last: Vec<&str> = self.lines[from..].iter().map(|line| line.text.as_str()).collect();
        last.join("\n")
    }
}

/// Runs `command` to its end, at most for `timeout`.
///
/// # Errors
/// When it does not start, does not end, or ends with another status than 0; the message repeats
/// what it said last.
pub fn capture(command: &mut Command, timeout: Duration) -> Result<Capture> {
    let name = command.get_program().to_string_lossy().into_owned();
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let stderr = child.stderr.take().context("standard error is a pipe")?;
    let messages = thread::spawn(move || read_all(stderr));
    let mut capture = Capture { lines: Vec::new(), wall: Duration::ZERO };
    let ended = read_lines(&mut child, start, timeout, &mut capture.lines)?;
    if !ended {
        child.kill().context("cannot end a program that takes too long")?;
    }
    let status = child.wait()?;
    capture.wall = start.elapsed();
    let messages = messages.join().unwrap_or_default();
    check(&name, ended, status, &capture, &messages)?;
    Ok(capture)
}

fn check(
    name: &str,
    ended: bool,
    status: ExitStatus,
    capture: &Capture,
    messages: &str,
) -> Result<()> {
    let last = capture.last_lines();
    if !ended {
        bail!("{name} did not end within {} s; it said last:\n{last}", capture.wall.as_secs());
    }
    if !status.success() {
        bail!("{name} ended with {status}: {}\nIt said last:\n{last}", messages.trim());
    }
    Ok(())
}

/// Whether the output came to its end in time.
fn read_lines(
    child: &mut Child,
    start: Instant,
    timeout: Duration,
    lines: &mut Vec<Line>,
) -> Result<bool> {
    let stdout = child.stdout.take().context("standard output is a pipe")?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
            let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            if sender.send(Line { at: start.elapsed(), text }).is_err() {
                return;
            }
            bytes.clear();
        }
    });
    loop {
        match receiver.recv_timeout(timeout.saturating_sub(start.elapsed())) {
            Ok(line) => lines.push(line),
            Err(RecvTimeoutError::Disconnected) => return Ok(true),
            Err(RecvTimeoutError::Timeout) => return Ok(false),
        }
    }
}

fn read_all(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    // What could be read before an error is still worth showing.
    let _read = pipe.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout: Duration) -> Result<Capture> {
        capture(Command::new("sh").args(["-c", script]), timeout)
    }

    #[test]
    fn lines_are_dated_when_they_arrive() {
        let seen = shell("echo a; sleep 0.3; echo b", Duration::from_secs(20)).expect("runs");
        let (a, b) = (seen.time_of("a").expect("a"), seen.time_of("b").expect("b"));
        assert!(b - a >= Duration::from_millis(250), "{a:?} {b:?}");
        assert!(seen.wall >= b);
    }

    #[test]
    fn a_failure_repeats_the_last_words() {
        let error = shell("echo out; echo why >&2; exit 3", Duration::from_secs(20)).err();
        let text = error.expect("status 3").to_string();
        assert!(text.contains("exit status: 3") && text.contains("why") && text.contains("out"));
    }

    #[test]
    fn a_hang_is_ended() {
        let error = shell("echo stuck; exec sleep 100", Duration::from_millis(200)).err();
        assert!(error.expect("too long").to_string().contains("stuck"));
    }
}
