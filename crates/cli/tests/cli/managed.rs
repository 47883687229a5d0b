//! Managed VMs: their verbs, one after the other and at once.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::guests;
use crate::support::{read_until, ringfence, send, stderr, wait};

/// A folder for VMs, with a kernel. The VMs end with it.
pub struct Home {
    folder: TempDir,
}

impl Home {
    /// A home whose VMs run `kernel`.
    pub fn new(kernel: &[u8]) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join("kernel"), kernel).expect("write");
        Self { folder }
    }

    /// `ringfence` with these arguments.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = ringfence(args);
        command.env("XDG_DATA_HOME", self.folder.path()).current_dir(self.folder.path());
        command
    }

    /// Runs it to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("run")
    }

    /// Runs what must succeed; gives its output.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs what must fail; gives the message.
    pub fn refused(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?} did not fail");
        let text = stderr(&output);
        assert_eq!(text.lines().count(), 1, "{text}");
        text
    }

    /// Makes the VM `name`.
    pub fn create(&self, name: &str) {
        self.ok(&["create", name, "--kernel", "kernel", "--memory", "32M"]);
    }

    /// Makes and starts the VM `name`.
    pub fn start(&self, name: &str) {
        self.create(name);
        self.ok(&["start", name]);
    }

    /// The state of the VM `name`, as `ps` shows it.
    pub fn state(&self, name: &str) -> String {
        let list: serde_json::Value = serde_json::from_str(&self.ok(&["ps", "--json"])).unwrap();
        let vm = list.as_array().unwrap().iter().find(|vm| vm["name"] == name);
        vm.map_or("none", |vm| vm["state"].as_str().unwrap()).to_owned()
    }

    /// The process of the VM `name`.
    pub fn pid(&self, name: &str) -> String {
        let text = self.ok(&["inspect", name]);
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["pid"].to_string()
    }

    /// Where the VM `name` is kept.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("ringfence/vms").join(name)
    }

    /// Attaches to the console of the VM `name`.
    pub fn console(&self, name: &str, args: &[&str]) -> Console {
        let mut command = self.command(&["console", name]);
        let child = command.args(args).stdin(Stdio::piped()).spawn().expect("spawn");
        Console(child)
    }

    /// Presses a key in the VM `name`; the guest must answer with `answer`.
    pub fn press(&self, name: &str, answer: &str) {
        self.console(name, &[]).press(answer);
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let Ok(entries) = std::fs::read_dir(self.folder.path().join("ringfence/vms")) else {
            return;
        };
        for entry in entries.flatten() {
            // What is left of a test that failed.
            let _ = self.run(&["rm", "--force", &entry.file_name().to_string_lossy()]);
        }
    }
}

/// A console that is attached.
pub struct Console(Child);

impl Console {
    fn press(&mut self, answer: &str) {
        send(self.0.stdin.as_mut().unwrap(), b"k");
        read_until(self.0.stdout.as_mut().unwrap(), answer);
    }

    /// Tells the guest to power off, which ends the console.
    fn quit(mut self) {
        send(self.0.stdin.as_mut().unwrap(), b"q");
        assert!(wait(&mut self.0).success());
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // It may have ended with its VM.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_vm_goes_through_its_verbs() {
    let home = Home::new(&guests::count_keys());
    home.create("a");
    assert_eq!(home.state("a"), "stopped");
    home.ok(&["start", "a"]);
    assert_eq!(home.state("a"), "running");
    home.press("a", "A");
    home.ok(&["pause", "a"]);
    assert_eq!(home.state("a"), "paused");
    home.ok(&["rename", "a", "b"]);
    home.ok(&["resume", "b"]);
    home.press("b", "B");
    home.ok(&["suspend", "b"]);
    assert_eq!(home.state("b"), "suspended");
    home.ok(&["resume", "b"]);
    home.press("b", "C");
    home.ok(&["suspend", "b"]);
    home.ok(&["start", "b"]);
    home.press("b", "D");
    assert_eq!(home.ok(&["logs", "b"]), ".ABCD");
    assert_eq!(home.ok(&["logs", "b", "--tail", "1"]), ".ABCD");
    assert!(home.ok(&["stats", "b"]).contains('b'));
    assert!(home.ok(&["stats", "b", "--metrics"]).contains("ringfence_vm_running 1\n"));
    home.console("b", &[]).quit();
    assert_eq!(home.run(&["wait", "b"]).status.code(), Some(0));
    assert_eq!(home.state("b"), "stopped");
    home.ok(&["rm", "b"]);
    assert_eq!(home.ok(&["ps", "--json"]).trim(), "[]");
}

#[test]
fn a_vm_goes_back_to_any_snapshot() {
    let home = Home::new(&guests::count_keys());
    home.start("a");
    home.press("a", "A");
    home.ok(&["snapshot", "create", "a", "one", "--description", "the first"]);
    home.press("a", "B");
    home.ok(&["snapshot", "create", "a", "two"]);
    home.press("a", "C");
    home.ok(&["snapshot", "restore", "a", "one"]);
    home.press("a", "B");
    home.ok(&["snapshot", "create", "a", "branch"]);
    let list = home.ok(&["snapshot", "ls", "a", "--json"]);
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    for snapshot in list.as_array().unwrap() {
        let first = snapshot["name"] == "one";
        assert_eq!(snapshot["kind"], if first { "full" } else { "difference" });
        assert_eq!(snapshot["parent"].as_str(), if first { None } else { Some("one") });
    }
    home.ok(&["snapshot", "rm", "a", "one"]);
    for (name, answer) in [("two", "C"), ("branch", "C")] {
        home.ok(&["snapshot", "check", "a", name]);
        home.ok(&["snapshot", "restore", "a", name, "--engine", "interpreter"]);
        home.press("a", answer);
    }
    let memory = home.path("a").join("snapshots/two/memory");
    let file = std::fs::File::options().write(true).open(&memory).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", 0x20_0001).unwrap();
    assert!(home.refused(&["snapshot", "check", "a", "two"]).contains("memory is damaged"));
    assert!(home.refused(&["snapshot", "restore", "a", "one"]).contains("no snapshot one"));
    assert_eq!(home.state("a"), "running", "a snapshot that is not there ended the VM");
}

#[test]
fn damaged_memory_ends_a_vm_that_goes_on_with_it() {
    let home = Home::new(&guests::count_keys());
    home.start("a");
    home.press("a", "A");
    home.ok(&["suspend", "a"]);
    let memory = home.path("a").join("suspended/memory");
    let file = std::fs::File::options().write(true).open(&memory).unwrap();
    // Far from what the guest uses: only the checksum knows.
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", 0x100_0000).unwrap();
    home.run(&["resume", "a"]);
    assert_eq!(home.run(&["wait", "a"]).status.code(), Some(1));
    assert!(home.ok(&["inspect", "a"]).contains("memory is damaged"));
}

#[test]
fn copies_go_on_beside_the_original() {
    let home = Home::new(&guests::count_keys());
    home.start("a");
    home.press("a", "A");
    let names = home.ok(&["clone", "a", "copy", "--count", "3"]);
    assert_eq!(names, "copy-1\ncopy-2\ncopy-3\n");
    for name in ["copy-1", "copy-2", "copy-3", "a"] {
        home.press(name, "B");
    }
    home.press("copy-2", "C");
    home.ok(&["snapshot", "create", "copy-2", "s"]);
    home.ok(&["clone", "copy-2/s", "grandchild"]);
    home.press("grandchild", "D");
    home.press("a", "C");
    assert_eq!(home.ok(&["snapshot", "ls", "a", "--json"]).trim(), "[]");
    assert!(home.refused(&["clone", "a", "copy-1"]).contains("copy-1"));
}

#[test]
fn a_running_vm_changes_its_engine() {
    let home = Home::new(&guests::count_keys());
    home.start("a");
    for (engine, answer) in [("interpreter", "A"), ("auto", "B"), ("interpreter", "C")] {
        home.ok(&["hop", "a", "--engine", engine]);
        home.press("a", answer);
    }
    assert!(home.ok(&["ps"]).contains("interpreter"));
}

#[test]
fn the_process_of_a_vm_is_isolated_unless_the_user_says_otherwise() {
    let home = Home::new(&guests::count_keys());
    home.start("a");
    home.ok(&["create", "b", "--kernel", "kernel", "--memory", "32M", "--no-isolation"]);
    home.ok(&["start", "b"]);
    let isolated = |name: &str| {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", home.pid(name))).unwrap();
        let status = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("status")));
        let has = |status: std::io::Result<String>| {
            let status = status.unwrap();
            // 2: a filter (proc(5)).
            status.contains("NoNewPrivs:\t1\n") && status.contains("Seccomp:\t2\n")
        };
        status.map(has).collect::<Vec<_>>()
    };
    let (a, b) = (isolated("a"), isolated("b"));
    assert!(a.len() > 5 && a.iter().all(|isolated| *isolated), "{a:?}");
    assert!(!b.iter().any(|isolated| *isolated), "{b:?}");
    for vm in ["a", "b"] {
        let denied = home.ok(&["logs", "--messages", vm]);
        assert_eq!(denied.contains("not isolated"), vm == "b", "{denied}");
    }
}

#[test]
fn one_console_writes_and_all_see() {
    let home = Home::new(&guests::count_keys());
    home.start("a");
    let mut writer = home.console("a", &[]);
    writer.press("A");
    let mut viewer = home.console("a", &["--scroll-back", "100"]);
    read_until(viewer.0.stderr.as_mut().unwrap(), "keys go nowhere");
    read_until(viewer.0.stdout.as_mut().unwrap(), ".A");
    send(viewer.0.stdin.as_mut().unwrap(), b"k");
    writer.press("B");
    read_until(viewer.0.stdout.as_mut().unwrap(), "B");
    drop(writer);
    // What the writer leaves another one takes.
    home.press("a", "C");
    home.console("a", &[]).quit();
    assert!(wait(&mut viewer.0).success(), "a console ends with its VM");
}

#[test]
fn the_power_button_or_else() {
    let home = Home::new(&guests::obey_power_button());
    home.start("a");
    home.ok(&["pause", "a"]);
    home.ok(&["stop", "a"]);
    assert_eq!(home.state("a"), "stopped");
    home.ok(&["stop", "a"]);
    let deaf = Home::new(&guests::count_keys());
    deaf.start("a");
    let text = deaf.refused(&["stop", "a", "--timeout", "0"]);
    assert!(text.contains("ringfence kill a"), "{text}");
    deaf.ok(&["stop", "a", "--timeout", "0", "--force"]);
    assert_eq!(deaf.state("a"), "stopped");
    deaf.ok(&["run", "--name", "b", "--detach", "--kernel", "kernel", "--memory", "32M"]);
    deaf.ok(&["kill", "b"]);
    assert!(deaf.refused(&["kill", "b"]).contains("not running"));
}

#[test]
fn what_cannot_be_done_is_said_in_one_line() {
    let home = Home::new(&guests::count_keys());
    home.create("a");
    for (args, named) in [
        (&["start", "none"][..], "no VM none"),
        (&["start", "../a"], "cannot be a name"),
        (&["create", "a", "--kernel", "kernel"], "already"),
        (&["create", "b", "--kernel", "missing"], "missing"),
        (&["create", "b", "--name", "c", "--kernel", "kernel"], "--name"),
        (&["create", "b", "--stats", "f", "--kernel", "kernel"], "--stats"),
        (&["pause", "a"], "stopped"),
        (&["console", "a"], "start it first"),
        (&["resume", "a"], "ringfence start a"),
        (&["suspend", "a"], "stopped"),
        (&["clone", "a"], "not running"),
        (&["clone", "a/none"], "no snapshot none"),
        (&["snapshot", "create", "a", "s"], "start it first"),
        (&["snapshot", "rm", "a", "../../a"], "no snapshot"),
        (&["rename", "a", "a"], "already"),
        (&["hop", "a", "--engine", "auto"], "start it first"),
    ] {
        let text = home.refused(args);
        assert!(text.contains(named), "{args:?}: {text}");
    }
    std::fs::remove_file(home.folder.path().join("kernel")).unwrap();
    assert!(home.refused(&["start", "a"]).contains("kernel"));
    assert_eq!(home.state("a"), "stopped");
}

#[test]
fn commands_at_once_take_turns_or_are_told_why_not() {
    let home = Home::new(&guests::count_keys());
    home.create("a");
    let at_once = |args: &[&str], count: usize| {
        let children: Vec<_> =
            (0..count).map(|_| home.command(args).spawn().expect("spawn")).collect();
        let outputs = children.into_iter().map(|child| child.wait_with_output().unwrap());
        outputs.filter(|output| output.status.success()).count()
    };
    assert_eq!(at_once(&["start", "a"], 4), 1);
    assert_eq!(at_once(&["pause", "a"], 4), 4);
    assert_eq!(at_once(&["resume", "a"], 4), 4);
    assert_eq!(at_once(&["snapshot", "create", "a", "s"], 3), 1);
    assert_eq!(at_once(&["create", "b", "--kernel", "kernel", "--memory", "32M"], 4), 1);
    home.press("a", "A");
    home.ok(&["snapshot", "check", "a", "s"]);
}

#[test]
fn what_has_nothing_to_wait_for_is_quick() {
    const LIMIT: Duration = Duration::from_millis(100);
    let home = Home::new(&guests::print_and_sleep("up"));
    home.start("a");
    home.create("b");
    for args in [
        &["ps"][..],
        &["ps", "--json"],
        &["inspect", "a"],
        &["logs", "a"],
        &["pause", "a"],
        &["resume", "a"],
        &["snapshot", "ls", "a"],
        &["stats", "a", "--json"],
        &["rename", "b", "b"],
        &["wait", "b"],
    ] {
        // The best of some: the host has other things to do as well.
        let time = |_| {
            let start = Instant::now();
            home.run(args);
            start.elapsed()
        };
        let best = (0..5).map(time).min().unwrap();
        assert!(best < LIMIT, "{args:?} took {best:?}");
    }
}

#[test]
fn a_terminal_detaches_and_leaves_the_vm_alone() {
    let home = Home::new(&guests::count_keys());
    home.start("a");
    let mut console = home.console("a", &[]);
    console.press("A");
    // Not a terminal: escape keys are the guest's, and the end of the input changes nothing.
    console.0.stdin.take().unwrap().write_all(b"\x01d").unwrap();
    read_until(console.0.stdout.as_mut().unwrap(), "C");
    drop(console);
    home.press("a", "D");
}
