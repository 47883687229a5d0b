//! Running the program.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use tempfile::TempDir;

/// Longer than anything here takes.
pub const LONG: Duration = Duration::from_secs(60);

/// `ringfence` with an image store of its own, no input and captured output.
pub fn ringfence(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
    command
        .args(args)
        .env("RINGFENCE_IMAGES", std::env::temp_dir().join("ringfence-cli-tests"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs `ringfence` to its end.
pub fn finish(args: &[&str]) -> Output {
    ringfence(args).output().expect("run")
}

/// Standard error as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A folder with a kernel file in it.
pub struct Kernel {
    folder: TempDir,
}

impl Kernel {
    /// A file `kernel` with this content.
    pub fn new(content: &[u8]) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join("kernel"), content).expect("write");
        Self { folder }
    }

    /// Path of a file in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `run --kernel` this, with more arguments.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = ringfence(&["run", "--memory", "32M", "--kernel"]);
        command.arg(self.path("kernel")).args(args);
        command
    }

    /// Runs it to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("run")
    }
}

/// Sends a signal by its name.
pub fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args(["-s", name, &child.id().to_string()]).status();
    assert!(sent.expect("kill").success());
}

/// Waits for the end, at most [`LONG`].
pub fn wait(child: &mut Child) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return status;
        }
        if start.elapsed() > LONG {
            child.kill().expect("kill");
            panic!("the program does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Reads until `text` has come, at most [`LONG`] for each byte; returns all that came.
pub fn read_until(input: &mut (impl Read + AsFd), text: &str) -> String {
    let limit = Timespec { tv_sec: LONG.as_secs() as i64, tv_nsec: 0 };
    let mut all = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&all).contains(text) {
        let ready = poll(&mut [PollFd::new(&*input, PollFlags::IN)], Some(&limit)).expect("poll");
        assert!(ready == 1, "nothing more after {:?}", String::from_utf8_lossy(&all));
        match input.read(&mut byte) {
            Ok(1) => all.push(byte[0]),
            other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&all)),
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// Writes all, now.
pub fn send(output: &mut impl Write, bytes: &[u8]) {
    output.write_all(bytes).and_then(|()| output.flush()).expect("write");
}

/// The JSON in a file.
pub fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).expect("read")).expect("JSON")
}
