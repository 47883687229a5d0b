//! Guests with several vCPUs: the stress program of `guests/stress` under a stock kernel, compared
//! with the host round by round, stolen time, and a triple fault of a vCPU that another has started.
//!
//! `STRESS_ROUNDS` says how many rounds (1), `STRESS_SEED` which. `cargo xtask stress` does the same
//! for as long as one likes.

use std::sync::Arc;
use std::time::Duration;

use engine::Engine;
use images::initramfs::Builder;
use images::kernels::Flavour;
use interpreter::Interpreter;
use lifecycle::Outcome;
use ringfence_tests::bare;
use ringfence_tests::settings::number;
use ringfence_tests::stock::{Form, boot_files, boot_files_with, skipped};
use ringfence_tests::vm::{Setup, kvm};
use translator::{DirectPolicy, Options, Translator};
use workload::stress::{Comparison, Extent, GUEST_PATH, Plan, program};

/// Some ten times what a run takes alone: the tests of a run share the host.
const LIMIT: Duration = Duration::from_secs(600);

fn stress(engine: Arc<dyn Engine>, cpus: u32) {
    let extent = Extent::Rounds(number("STRESS_ROUNDS").unwrap_or(1));
    let seed = number("STRESS_SEED").unwrap_or(0x0073_6d70);
    let plan = Plan { seed, threads: cpus.max(2), extent };
    let program = std::fs::read(program()).expect("its build script has built it");
    let files = Builder::new().file(GUEST_PATH, 0o755, program);
    let script = plan.script();
    let Some(files) = boot_files_with(Flavour::Cloud, Form::Pvh, files, &script) else { return };
    let guest = Setup::new(engine, 512, files).cpus(cpus).cmdline("console=ttyS0 quiet").start();
    let outcome = guest.end(LIMIT);
    assert_eq!(outcome, Outcome::PoweredOff, "{}", guest.last_lines());
    let mut comparison = Comparison::start(&plan).expect("the host runs it too");
    let judged = guest.text().lines().try_for_each(|line| comparison.line(line));
    if let Err(finding) = judged.and_then(|()| comparison.finish()) {
        panic!("seed {seed}: {finding}\n{}", guest.last_lines());
    }
}

fn translator() -> Arc<dyn Engine> {
    Arc::new(Translator::new().expect("a host with BMI2 and AVX2"))
}

/// More vCPUs than cores wait for each other, and a stock kernel knows how long.
fn told_of_stolen_time(engine: Arc<dyn Engine>) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u32;
    let cpus = (cores + 2).min(16);
    let script = format!(
        "for n in $(seq {cpus}); do (n=0; while [ $n -lt 10000 ]; do n=$((n + 1)); done) & done
wait
echo STOLEN $(awk '/^cpu / {{ print $9 }}' /proc/stat)"
    );
    let Some(files) = boot_files(Flavour::Cloud, Form::Pvh, &script) else { return };
    let guest = Setup::new(engine, 512, files).cpus(cpus).cmdline("console=ttyS0 quiet").start();
    assert_eq!(guest.end(LIMIT), Outcome::PoweredOff, "{}", guest.last_lines());
    let text = guest.text();
    let stolen = text.lines().find_map(|line| line.trim().strip_prefix("STOLEN "));
    let stolen: u64 = stolen.and_then(|ticks| ticks.parse().ok()).expect("a number of ticks");
    assert!(stolen > 0, "{text}");
}

#[test]
fn stolen_time_is_told_by_the_interpreter() {
    told_of_stolen_time(Arc::new(Interpreter::new()));
}

#[test]
fn stolen_time_is_told_by_the_translator() {
    told_of_stolen_time(translator());
}

#[test]
fn two_vcpus_of_the_interpreter_compute_as_the_host() {
    stress(Arc::new(Interpreter::new()), 2);
}

#[test]
fn four_vcpus_of_the_interpreter_compute_as_the_host() {
    stress(Arc::new(Interpreter::new()), 4);
}

#[test]
fn two_vcpus_of_the_translator_compute_as_the_host() {
    stress(translator(), 2);
}

#[test]
fn four_vcpus_of_the_translator_compute_as_the_host() {
    stress(translator(), 4);
}

/// Where KVM emulates guest kernels, vCPUs take turns in it, and the interpreters know nothing of
/// what is written meanwhile.
#[test]
fn two_vcpus_of_kvm_compute_as_the_host() {
    if let Some((kvm, _)) = kvm() {
        stress(Arc::new(kvm), 2);
    }
}

/// All user code is executed by the host CPU itself.
fn directly(cpus: u32) {
    if let Err(e) = translator::direct_execution() {
        return skipped(&e.to_string());
    }
    let options = Options { direct: DirectPolicy::Always, ..Options::default() };
    let translator = Translator::with_options(options).expect("a host with BMI2 and AVX2");
    stress(Arc::new(translator), cpus);
}

#[test]
fn one_vcpu_with_direct_execution_computes_as_the_host() {
    directly(1);
}

#[test]
fn three_vcpus_with_direct_execution_compute_as_the_host() {
    directly(3);
}

/// Code is dropped and translated again all the time, on each vCPU by itself.
#[test]
fn vcpus_with_small_code_caches_compute_as_the_host() {
    let options = Options { cache_bytes: 4 << 20, ..Options::default() };
    let translator = Translator::with_options(options).expect("a host with BMI2 and AVX2");
    stress(Arc::new(translator), 3);
}

/// What shuts one processor down shuts the machine down (SDM vol. 3A 6.15, interrupt 8): a PC
/// resets then, and this VM ends by default.
#[test]
fn a_triple_fault_of_any_vcpu_ends_the_vm() {
    for engine in [Arc::new(Interpreter::new()) as Arc<dyn Engine>, translator()] {
        // lidt [0x9000], which is a limit of 0; ud2
        let second = [0x0f, 0x01, 0x1e, 0x00, 0x90, 0x0f, 0x0b];
        // hlt, again and again
        let code = bare::two_vcpus(&bare::for_ever(&[0xf4]), &second);
        let guest = Setup::new(engine, 64, bare::guest64(&code)).cpus(2).start();
        let outcome = guest.end(LIMIT);
        let of_second = matches!(&outcome, Outcome::TripleFault(fault) if fault.vcpu == 1);
        assert!(of_second, "{outcome}");
    }
}
