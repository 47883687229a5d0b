//! How VMs end.

use std::time::{Duration, Instant};

use crate::guests;
use crate::support::{Kernel, json, read_until, signal, stderr, wait};

fn status(kernel: &[u8], args: &[&str]) -> (Option<i32>, String) {
    let output = Kernel::new(kernel).run(args);
    (output.status.code(), stderr(&output))
}

#[test]
fn power_off_is_success() {
    assert_eq!(status(&guests::power_off(), &[]), (Some(0), String::new()));
}

#[test]
fn debug_exit_gives_its_status() {
    for (value, expected) in [(0, 1), (0x10, 0x21), (0x7f, 0xff)] {
        let (code, text) = status(&guests::debug_exit(value), &["--debug-exit"]);
        assert_eq!((code, text.as_str()), (Some(expected), ""));
    }
}

#[test]
fn a_triple_fault_is_status_3_and_says_where() {
    let (code, text) = status(&guests::triple_fault(), &[]);
    assert_eq!(code, Some(3));
    for part in ["ringfence: error: ", "triple fault", "vCPU 0", "rip 0x100001", "cr3 0x0"] {
        assert!(text.contains(part), "{text} lacks {part}");
    }
    let (code, _) = status(&guests::triple_fault(), &["--triple-fault", "reset", "--no-reboot"]);
    assert_eq!(code, Some(0));
}

#[test]
fn jumping_into_nothing_is_the_guests_own_affair() {
    assert_eq!(status(&guests::jump_into_nothing(), &[]).0, Some(3));
}

#[test]
fn a_reset_reboots_or_ends() {
    assert_eq!(status(&guests::boot_three_times(), &[]), (Some(0), String::new()));
    assert_eq!(status(&guests::reset(), &["--no-reboot"]), (Some(0), String::new()));
}

#[test]
fn statistics_say_what_happened() {
    let kernel = Kernel::new(&guests::boot_three_times());
    let path = kernel.path("stats.json");
    let arguments = ["--name", "vm", "--engine", "interpreter", "--stats", path.to_str().unwrap()];
    let output = kernel.run(&arguments);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let stats = json(&path);
    assert_eq!(stats["name"], "vm");
    assert_eq!(stats["status"], 0);
    assert_eq!(stats["engine"], "interpreter");
    assert_eq!(stats["resets"], 2);
    assert!(stats["vcpus"][0]["instructions"].as_u64().unwrap() > 10, "{stats}");
    assert!(stats["wall_seconds"].as_f64().unwrap() > 0.0, "{stats}");
    let ports = stats["ports"].as_array().unwrap();
    assert!(ports.iter().any(|p| p["device"] == "pci-config" && p["writes"] == 2), "{stats}");
}

#[test]
fn statistics_are_written_after_errors_too() {
    let kernel = Kernel::new(&guests::triple_fault());
    let path = kernel.path("stats.json");
    let arguments = ["--stats", path.to_str().unwrap()];
    assert_eq!(kernel.run(&arguments).status.code(), Some(3));
    assert_eq!(json(&path)["status"], 3);
    let broken = Kernel::new(b"no kernel");
    let path = broken.path("stats.json");
    assert_eq!(broken.run(&["--stats", path.to_str().unwrap()]).status.code(), Some(1));
    assert!(json(&path)["outcome"].as_str().unwrap().contains("kernel"));
}

#[test]
fn sigterm_presses_the_power_button() {
    let kernel = Kernel::new(&guests::obey_power_button());
    let mut child = kernel.command(&[]).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    read_until(&mut out, "up");
    signal(&child, "TERM");
    read_until(&mut out, "off");
    assert_eq!(wait(&mut child).code(), Some(0));
}

#[test]
fn a_second_sigterm_ends_at_once() {
    for guest in [guests::print_and_spin("up"), guests::print_and_sleep("up")] {
        let kernel = Kernel::new(&guest);
        let mut child = kernel.command(&[]).spawn().unwrap();
        read_until(child.stdout.as_mut().unwrap(), "up");
        let begin = Instant::now();
        signal(&child, "TERM");
        std::thread::sleep(Duration::from_millis(300));
        assert!(child.try_wait().unwrap().is_none(), "the first one ended it");
        signal(&child, "TERM");
        assert_eq!(wait(&mut child).code(), Some(143));
        assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    }
}

#[test]
fn a_guest_that_ignores_the_power_button_is_ended_after_ten_seconds() {
    let kernel = Kernel::new(&guests::print_and_sleep("up"));
    let mut child = kernel.command(&[]).spawn().unwrap();
    read_until(child.stdout.as_mut().unwrap(), "up");
    let begin = Instant::now();
    signal(&child, "TERM");
    assert_eq!(wait(&mut child).code(), Some(143));
    let took = begin.elapsed();
    assert!((9..20).contains(&took.as_secs()), "{took:?}");
}

#[test]
fn other_signals_end_at_once() {
    let kernel = Kernel::new(&guests::print_and_spin("up"));
    for (name, expected) in [("INT", 130), ("HUP", 129), ("QUIT", 131)] {
        let mut child = kernel.command(&[]).spawn().unwrap();
        read_until(child.stdout.as_mut().unwrap(), "up");
        signal(&child, name);
        assert_eq!(wait(&mut child).code(), Some(expected), "SIG{name}");
    }
}

#[test]
fn a_sleeping_guest_costs_nothing() {
    let kernel = Kernel::new(&guests::print_and_sleep("up"));
    let path = kernel.path("stats.json");
    let mut child = kernel.command(&["--stats", path.to_str().unwrap()]).spawn().unwrap();
    read_until(child.stdout.as_mut().unwrap(), "up");
    std::thread::sleep(Duration::from_secs(3));
    signal(&child, "INT");
    wait(&mut child);
    let stats = json(&path);
    let cpu = stats["cpu_seconds"].as_f64().unwrap();
    assert!(cpu < 0.2, "{cpu} s of CPU time in {} s", stats["wall_seconds"]);
}
