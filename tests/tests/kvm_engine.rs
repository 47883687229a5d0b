//! A stock kernel on the kvm engine, as far as this host's KVM goes.
//!
//! Where KVM runs guest kernels on the CPU, it executes them. Where it emulates them, it executes
//! user code, and the interpreter the kernel. The test reports how long it took and what was
//! executed by whom: `cargo test --release -p ringfence-tests --test kvm_engine -- --nocapture`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::Engine;
use images::kernels::Flavour;
use kvm::{Kvm, Speed};
use lifecycle::{BaseEntry, EngineChoice, Outcome, SnapshotOrder, SnapshotTree};
use ringfence_tests::handover::console_with;
use ringfence_tests::stock::{Form, boot_files};
use ringfence_tests::vm::{Guest, Setup, kvm};

/// Some ten times what a boot takes alone: the tests of a run share the host.
const BOOT: Duration = Duration::from_secs(400);

/// User code for which visits to KVM pay, in more than one process, with system calls, page faults,
/// floating point, pipes and signals.
const WORK: &str = "n=0; while [ $n -lt 40000 ]; do n=$((n + 1)); done; echo LOOP $n
echo SUM $(seq 1 20000 | md5sum)
echo SHA $(seq 1 20000 | sha256sum)
echo FLOAT $(awk 'BEGIN { for (i = 1; i < 20000; i++) s += i * 1.5 / (i + 1); printf \"%.9e\", s }')
sleep 1000 & kill $! && echo KILLED";
const RESULTS: [&str; 6] = [
    "LOOP 40000",
    "SUM e071f707df7bbeee2a6a1eb48011ddd0",
    "SHA f6351f5ead9a700e34275480b3856ea738122a7c57bdeb744a631251c069587a",
    "FLOAT 2.998427891e+04",
    "KILLED",
    "GUEST-DOWN",
];

fn boot(kvm: Kvm, flavour: Flavour, cpus: u32, script: &str) -> Option<Guest> {
    let files = boot_files(flavour, Form::Pvh, script)?;
    let setup = Setup::new(Arc::new(kvm), 512, files).cpus(cpus);
    Some(setup.cmdline("console=ttyS0").start())
}

/// What goes on with the guest's snapshots.
fn fast_engine() -> Arc<dyn Engine> {
    EngineChoice::Auto.select().expect("every host has one").engine
}

/// The sum of all vCPUs' counters of this name.
fn counter(guest: &Guest, name: &str) -> u64 {
    let stats = guest.vm.stats().expect("a VM has statistics");
    let all = stats.vcpus.iter().flat_map(|vcpu| &vcpu.counters);
    all.filter(|(counter, _)| *counter == name).map(|(_, count)| count).sum()
}

#[test]
fn a_stock_kernel_boots_and_works() {
    works(1);
}

#[test]
fn a_stock_kernel_works_on_two_vcpus() {
    works(2);
}

/// Two snapshots while the guest computes, the second a difference: what KVM has written is in them.
#[test]
fn snapshots_behind_the_running_guest_are_whole() {
    let Some((kvm, _)) = kvm() else { return };
    let Some(guest) = boot(kvm, Flavour::Cloud, 2, WORK) else { return };
    guest.expect("GUEST-UP", BOOT);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tree = SnapshotTree::open(folder.path().join("snapshots")).expect("a fresh folder");
    let mut base = None;
    for (name, after) in [("full", "GUEST-UP"), ("difference", "LOOP 40000")] {
        guest.expect(after, BOOT);
        let pending = tree.begin(name).expect("a new name");
        let order = SnapshotOrder { base: base.take(), ..SnapshotOrder::default() };
        let taken = guest.vm.snapshot(&pending.dir().expect("it was made"), order).expect(name);
        tree.commit(pending, name).expect("it is finished");
        eprintln!("{name}: the guest stood still for {:?}", taken.paused);
        base = Some(BaseEntry { name: name.to_owned(), id: taken.manifest.id });
    }
    assert!(tree.manifest("difference").expect("it is there").base.is_some());
    assert!(counter(&guest, "kernel_runs") > 0, "KVM has executed nothing");
    let before = guest.text();
    drop(guest);
    let snapshot = tree.snapshot("difference").expect("it is there");
    let restored = Guest::restore(&snapshot, fast_engine(), console_with(""));
    let restored = restored.expect("it was just taken");
    restored.vm.resume().expect("it is paused");
    assert_eq!(restored.end(BOOT), Outcome::PoweredOff, "{}", restored.last_lines());
    let text = restored.text();
    for result in &RESULTS[2..] {
        // The guest ran on while it was copied, and may have come to some results before its state
        // was.
        let here = text.contains(result);
        assert!(here || before.contains(result), "no {result:?}:\n{}", restored.last_lines());
        let name = result.split_inclusive(' ').next().unwrap_or(result);
        assert_eq!(text.contains(name), here, "{name}is wrong:\n{}", restored.last_lines());
    }
}

/// What `run --engine kvm` takes until the guest is up, and what was executed by then.
#[test]
#[ignore = "minutes, for a table: smaller boots run in every test run"]
fn stock_kernels_come_up_on_several_vcpus() {
    let Some((kvm, speed)) = kvm() else { return };
    eprintln!("{speed:?}\nkernel vCPUs seconds instructions-interpreted visits failures");
    for flavour in [Flavour::Cloud, Flavour::Amd64, Flavour::Rt] {
        for cpus in [1, 2, 4] {
            let start = Instant::now();
            let Some(guest) = boot(kvm.clone(), flavour, cpus, "true") else { return };
            guest.expect("GUEST-UP", BOOT);
            let seconds = start.elapsed().as_secs_f64();
            let [carried, visits, failures] =
                ["instructions_carried", "user_code_visits", "emulation_failures"]
                    .map(|name| counter(&guest, name));
            eprintln!("{flavour:?} {cpus} {seconds:.1} {carried} {visits} {failures}");
            assert_eq!(guest.end(BOOT), Outcome::PoweredOff, "{}", guest.last_lines());
        }
    }
}

fn works(cpus: u32) {
    let Some((kvm, speed)) = kvm() else { return };
    let start = Instant::now();
    let Some(guest) = boot(kvm, Flavour::Cloud, cpus, WORK) else { return };
    guest.expect("GUEST-UP", BOOT);
    eprintln!("{speed:?}; GUEST-UP after {:.1} s", start.elapsed().as_secs_f64());
    assert_eq!(guest.end(BOOT), Outcome::PoweredOff, "{}", guest.last_lines());
    let text = guest.text();
    for result in RESULTS {
        assert!(text.contains(result), "no {result:?}:\n{}", guest.last_lines());
    }
    for word in [
        "BUG",
        "Oops",
        "Call Trace",
        "panic",
        "stall",
        "lockup",
        "segfault",
        "traps:",
        "unstable",
        "warp",
    ] {
        assert!(!text.contains(word), "{word}:\n{text}");
    }
    for name in ["instructions_carried", "kernel_runs", "user_code_visits", "emulation_failures"] {
        eprintln!("{name}: {}", counter(&guest, name));
    }
    assert!(counter(&guest, "kernel_runs") > 0, "KVM has executed nothing");
    if let Speed::Emulated(_) = speed {
        let visits = counter(&guest, "user_code_visits");
        assert!(visits > 10, "{visits} visits");
    }
}
