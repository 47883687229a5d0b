//! A VM is saved at random points of a boot and restored into a fresh machine, which goes on as if
//! nothing had happened.
//!
//! One chain of machines boots to the end, with [`POINTS`] handovers at random instruction counts.
//! At each, what is saved is restored and saved again: equal byte for byte. Some snapshots are also
//! run to the end on their own. `SAVE_POINTS` says how many of those (4), `SAVE_SEED` which points.
//!
//! A second chain, of [`CROSSINGS`] handovers, goes through all pairs of engines.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use engine::Engine;
use images::kernels::Flavour;
use interpreter::Interpreter;
use kvm::Kvm;
use lifecycle::{Outcome, Progress, SnapshotDir};
use oracle::random::Random;
use ringfence_tests::handover::{console_with, hand_over};
use ringfence_tests::settings::number;
use ringfence_tests::stock::{Form, boot_files};
use ringfence_tests::vm::{Guest, Setup, engine};
use translator::Translator;

/// Handovers of the chain.
const POINTS: usize = 100;
/// Handovers of the chain that changes engines.
const CROSSINGS: usize = 24;
/// Snapshots that are also run to the end alone.
const ALONE: usize = 4;
/// MiB of RAM.
const MEMORY: u64 = 128;
const LIMIT: Duration = Duration::from_secs(600);
/// What the guest does at the shell: processes, pipes, floating point.
const SCRIPT: &str = "n=0; while [ $n -lt 20 ]; do n=$((n + 1)); /bin/true; done
echo SUM $(seq 1 20000 | md5sum)
echo SHA $(seq 1 20000 | sha256sum)
echo FLOAT $(awk 'BEGIN { for (i = 1; i < 2000; i++) s += i * 1.5 / (i + 1); printf \"%.9e\", s }')
sleep 1";
/// What it prints, each once.
const RESULTS: [&str; 5] = [
    "GUEST-UP",
    "SUM e071f707df7bbeee2a6a1eb48011ddd0",
    "SHA f6351f5ead9a700e34275480b3856ea738122a7c57bdeb744a631251c069587a",
    "FLOAT 2.987732448e+03",
    "GUEST-DOWN",
];

fn new_guest(engine: Arc<dyn Engine>) -> Option<Guest> {
    let files = boot_files(Flavour::Cloud, Form::Pvh, SCRIPT)?;
    Some(Setup::new(engine, MEMORY, files).cmdline("console=ttyS0").create())
}

/// Runs to the end, and checks what the guest printed in its whole life.
fn finish(guest: &Guest) {
    guest.vm.resume().expect("it is paused");
    assert_eq!(guest.end(LIMIT), Outcome::PoweredOff, "{}", guest.last_lines());
    let text = guest.text();
    for result in RESULTS {
        let times = text.matches(result).count();
        assert_eq!(times, 1, "{result:?} came {times} times:\n{}", guest.last_lines());
    }
    for word in ["BUG", "Oops", "Call Trace", "panic", "stall", "unstable", "lockup", "segfault"] {
        assert!(!text.contains(word), "{word}:\n{text}");
    }
}

/// Instructions of a whole life of the guest, which is checked on the way; `None` where there is no
/// kernel. The interpreter counts them.
fn life() -> Option<u64> {
    static LIFE: OnceLock<Option<u64>> = OnceLock::new();
    *LIFE.get_or_init(|| {
        let guest = new_guest(Arc::new(Interpreter::new()))?;
        finish(&guest);
        let stats = guest.vm.stats().expect("a VM has statistics");
        stats.vcpus[0].instructions
    })
}

/// The random points of a chain of `count` handovers, ascending.
fn points(count: usize, life: u64) -> Vec<u64> {
    let seed = number("SAVE_SEED").unwrap_or(0x5361_7665);
    let mut random = Random::new(seed, 0);
    // Lives differ a little in length: the last part is left alone.
    let mut points: Vec<u64> = (0..count).map(|_| random.below(life / 20 * 19)).collect();
    points.sort_unstable();
    eprintln!("seed {seed}, {life} instructions");
    points
}

#[test]
fn a_boot_survives_handovers_at_random_points() {
    let Some(life) = life() else { return };
    let alone = number("SAVE_POINTS").map_or(ALONE, |n| n as usize);
    let every = POINTS.div_ceil(alone.max(1));
    let mut guest = new_guest(engine()).expect("it was there before");
    let mut at = 0;
    for (number, point) in points(POINTS, life).into_iter().enumerate() {
        run_for(&guest, point - at);
        at = point;
        let (restored, folder) = hand_over(guest, engine());
        guest = restored;
        if alone > 0 && number % every == every / 2 {
            let snapshot = SnapshotDir::open(&folder.path().join("first")).expect("a snapshot");
            let console = console_with(&guest.text());
            let other = Guest::restore(&snapshot, engine(), console).expect("it was just saved");
            finish(&other);
        }
    }
    finish(&guest);
}

/// What one engine saves, another restores, and saves as it was: all pairs of engines, in turn.
#[test]
fn a_boot_survives_changes_of_the_engine() {
    let Some(life) = life() else { return };
    let engines = engines_in_turn();
    let mut guest = new_guest(Arc::clone(&engines[0])).expect("it was there before");
    let mut at = 0;
    for (number, point) in points(CROSSINGS, life).into_iter().enumerate() {
        run_for(&guest, point - at);
        at = point;
        (guest, _) = hand_over(guest, Arc::clone(&engines[(number + 1) % engines.len()]));
    }
    finish(&guest);
}

/// Engines in an order in which each follows each other one, the first following the last.
fn engines_in_turn() -> Vec<Arc<dyn Engine>> {
    let interpreter: Arc<dyn Engine> = Arc::new(Interpreter::new());
    let translator: Arc<dyn Engine> =
        Arc::new(Translator::new().expect("a host with BMI2 and AVX2"));
    match Kvm::open() {
        Ok(kvm) => {
            let kvm: Arc<dyn Engine> = Arc::new(kvm);
            let again = [&interpreter, &kvm, &translator].map(Arc::clone);
            [interpreter, translator, kvm].into_iter().chain(again).collect()
        }
        Err(error) => {
            eprintln!("SKIPPED the pairs with kvm: {error}");
            vec![interpreter, translator]
        }
    }
}

/// Lets the paused guest execute some instructions, through which it lives.
#[track_caller]
fn run_for(guest: &Guest, instructions: u64) {
    let progress = guest.vm.run_for(instructions).expect("it is paused");
    assert_eq!(progress, Progress::Paused, "{}", guest.last_lines());
}
