//! A VM with several vCPUs is stopped wherever they are, saved, and restored into a fresh machine of
//! the next engine, again and again, and goes on as if nothing had happened.
//!
//! vCPUs cannot be stopped together at an instruction count, so they are kicked after a random time:
//! `SAVE_SEED` chooses the times only, and a failure may need several runs to come up again.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use engine::Engine;
use images::initramfs::Builder;
use images::kernels::Flavour;
use interpreter::Interpreter;
use lifecycle::{BootFiles, Outcome};
use oracle::random::Random;
use ringfence_tests::guests::{Oracle, all, judge, known_deviations};
use ringfence_tests::handover::hand_over;
use ringfence_tests::settings::number;
use ringfence_tests::stock::{Form, boot_files_with};
use ringfence_tests::vm::{Guest, Setup, kvm};
use translator::Translator;
use workload::stress::{Comparison, Extent, GUEST_PATH, Plan, program};

/// Handovers of a guest, if it lives that long.
const HANDOVERS: u32 = 30;
/// Some ten times what a run takes alone: the tests of a run share the host.
const LIMIT: Duration = Duration::from_secs(600);

/// Runs the guest through handovers after at most `longest` each, then to its end.
fn outlive(mut guest: Guest, longest: Duration) -> (Guest, Outcome) {
    let translator = Arc::new(Translator::new().expect("a host with BMI2 and AVX2"));
    let interpreter = Arc::new(Interpreter::new());
    let mut engines: Vec<Arc<dyn Engine>> = vec![translator, interpreter];
    engines.extend(kvm().map(|(kvm, _)| Arc::new(kvm) as _));
    let seed = number("SAVE_SEED").unwrap_or(0x5361_7665);
    let mut random = Random::new(seed, 1);
    for number in 0..HANDOVERS {
        guest.vm.resume().expect("it is paused");
        let wait = Duration::from_micros(random.below(longest.as_micros() as u64));
        if let Some(outcome) = ended_within(&guest, wait) {
            eprintln!("seed {seed}: ended after {number} handovers");
            return (guest, outcome);
        }
        if guest.vm.pause().is_err() {
            // It has ended in this very moment.
            let outcome = guest.end(LIMIT);
            return (guest, outcome);
        }
        (guest, _) = hand_over(guest, Arc::clone(&engines[number as usize % engines.len()]));
    }
    guest.vm.resume().expect("it is paused");
    let outcome = guest.end(LIMIT);
    (guest, outcome)
}

fn ended_within(guest: &Guest, time: Duration) -> Option<Outcome> {
    let begin = Instant::now();
    while begin.elapsed() < time {
        if let Some(outcome) = guest.vm.outcome() {
            return Some(outcome);
        }
        thread::sleep(Duration::from_millis(1));
    }
    None
}

/// A stock kernel and the stress program, which computes what it does on the host.
fn kernel(cpus: u32) {
    let plan = Plan { seed: 0x7361_7665, threads: cpus, extent: Extent::Rounds(1) };
    let program = std::fs::read(program()).expect("its build script has built it");
    let files = Builder::new().file(GUEST_PATH, 0o755, program);
    let script = plan.script();
    let Some(files) = boot_files_with(Flavour::Cloud, Form::Pvh, files, &script) else { return };
    let setup = Setup::new(Arc::new(Interpreter::new()), 256, files).cpus(cpus);
    let guest = setup.cmdline("console=ttyS0 quiet").create();
    let (guest, outcome) = outlive(guest, Duration::from_millis(500));
    assert_eq!(outcome, Outcome::PoweredOff, "{}", guest.last_lines());
    let mut comparison = Comparison::start(&plan).expect("the host runs it too");
    let judged = guest.text().lines().try_for_each(|line| comparison.line(line));
    if let Err(finding) = judged.and_then(|()| comparison.finish()) {
        panic!("{finding}\n{}", guest.last_lines());
    }
}

/// The guest program for several processors.
fn bare_machine(cpus: u32) {
    let (_, path) = all().iter().find(|(name, _)| *name == "smp").expect("the program");
    let elf = std::fs::read(path).expect("the build script has built it");
    let boot = BootFiles::from_bytes(elf, None).expect("an ELF file with a PVH note");
    let setup = Setup::new(Arc::new(Interpreter::new()), 128, boot).cpus(cpus);
    let (guest, outcome) = outlive(setup.debug_exit().create(), Duration::from_millis(60));
    let verdict = judge(&guest.text(), &known_deviations(Oracle::Exact, "smp"));
    assert!(
        verdict.is_success() && outcome == Outcome::DebugExit(0),
        "{outcome}\n{}\nthe console ends with\n{}",
        verdict.failures.join("\n"),
        guest.last_lines(),
    );
}

#[test]
fn a_kernel_on_two_vcpus_survives_handovers() {
    kernel(2);
}

#[test]
fn a_kernel_on_four_vcpus_survives_handovers() {
    kernel(4);
}

#[test]
fn two_bare_vcpus_survive_handovers() {
    bare_machine(2);
}

#[test]
fn four_bare_vcpus_survive_handovers() {
    bare_machine(4);
}
