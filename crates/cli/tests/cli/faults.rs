//! What can happen to managed VMs: processes that are killed at any moment, and what they leave.

use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::guests;
use crate::managed::Home;
use crate::support::wait;

fn kill_9(pid: &str) {
    let killed =
        std::process::Command::new("kill").args(["-9", pid]).stderr(Stdio::null()).status();
    killed.expect("kill");
}

#[test]
fn a_vm_whose_process_was_killed_has_crashed_and_starts_again() {
    let home = Home::new(&guests::count_keys());
    home.start("a");
    home.press("a", "A");
    kill_9(&home.pid("a"));
    assert_eq!(home.run(&["wait", "a"]).status.code(), Some(1));
    assert_eq!(home.state("a"), "crashed");
    assert!(home.path("a").join("control.sock").exists(), "there is no stale socket to test");
    assert!(home.ok(&["logs", "a"]).ends_with(".A"));
    home.ok(&["start", "a"]);
    home.press("a", "A");
    kill_9(&home.pid("a"));
    home.run(&["wait", "a"]);
    home.ok(&["rm", "a"]);
}

#[test]
fn a_process_that_does_not_answer_is_killed_all_the_same() {
    let home = Home::new(&guests::count_keys());
    home.start("a");
    let pid = home.pid("a");
    let stopped = std::process::Command::new("kill").args(["-STOP", &pid]).status();
    assert!(stopped.expect("kill").success());
    // Nothing that only looks waits for it.
    assert_eq!(home.state("a"), "running");
    let socket = home.path("a").join("control.sock");
    std::fs::remove_file(socket).unwrap();
    home.ok(&["kill", "a"]);
    assert_eq!(home.state("a"), "stopped");
}

#[test]
fn remains_of_commands_that_were_killed_are_swept() {
    let home = Home::new(&guests::count_keys());
    home.create("a");
    let vms = home.path("a").parent().unwrap().to_owned();
    for name in [".new-0", ".gone-0"] {
        std::fs::create_dir(vms.join(name)).unwrap();
        std::fs::write(vms.join(name).join("memory"), "x").unwrap();
    }
    home.ok(&["ps"]);
    assert_eq!(std::fs::read_dir(&vms).unwrap().count(), 1);
}

/// Kills the VM's process at random moments of snapshots and of suspending.
fn kill_at_random(rounds: u32) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = std::env::var("KILL_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut seed: u64 = seed.unwrap_or(u64::from(now.subsec_nanos()));
    eprintln!("KILL_SEED={seed}");
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let home = Home::new(&guests::count_keys());
    home.start("a");
    home.press("a", "A");
    home.ok(&["snapshot", "create", "a", "first"]);
    for round in 0..rounds {
        let name = format!("s{round}");
        let args: &[&str] = match random(3) {
            0 => &["suspend", "a"],
            _ => &["snapshot", "create", "a", &name],
        };
        let mut command = home.command(args).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(random(40_000)));
        match random(2) {
            0 => kill_9(&home.pid("a")),
            _ => command.kill().unwrap(),
        }
        wait(&mut command);
        // Whatever is there is whole, and whatever was there is there.
        home.ok(&["snapshot", "check", "a", "first"]);
        let list = home.ok(&["snapshot", "ls", "a", "--json"]);
        let list: serde_json::Value = serde_json::from_str(&list).unwrap();
        for snapshot in list.as_array().unwrap() {
            home.ok(&["snapshot", "check", "a", snapshot["name"].as_str().unwrap()]);
        }
        if home.state("a") != "running" {
            home.run(&["wait", "a"]);
            home.ok(&["start", "a"]);
        }
    }
    home.ok(&["snapshot", "restore", "a", "first"]);
    home.press("a", "B");
    home.ok(&["snapshot", "create", "a", "last"]);
    let left = std::fs::read_dir(home.path("a").join("snapshots")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{left:?}");
}

#[test]
fn killing_a_vm_at_any_moment_leaves_its_snapshots_whole() {
    kill_at_random(8);
}

#[test]
#[ignore = "takes some minutes: run by `cargo xtask test --long`"]
fn killing_a_vm_at_200_moments_leaves_its_snapshots_whole() {
    kill_at_random(200);
}
