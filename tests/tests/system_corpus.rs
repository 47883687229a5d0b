//! Every bare-machine program of `guests/`, on every engine.
//!
//! A program tests what user mode cannot show and reports on the console; any check that fails
//! fails its test. An engine is added by one line of [`corpus!`].

use std::sync::Arc;
use std::time::Duration;

use engine::Engine;
use lifecycle::{BootFiles, Outcome};
use ringfence_tests::guests::{Oracle, all, judge, known_deviations};
use ringfence_tests::vm::Setup;

include!(concat!(env!("OUT_DIR"), "/each_program.rs"));

/// A module of tests for each engine.
macro_rules! corpus {
    ($($name:ident: $engine:expr),+ $(,)?) => {$(
        mod $name {
            fn run(program: &str) {
                run_on(program, 1);
            }

            fn run_on(program: &str, cpus: u32) {
                super::run(program, std::sync::Arc::new($engine), cpus, super::Oracle::Exact);
            }

            each_program!(run);
            several_cpus!(run_on);
        }
    )+};
}

/// The programs for several vCPUs, on more than the one that all programs run on.
macro_rules! several_cpus {
    ($run:expr) => {
        #[test]
        fn smp_on_two_vcpus() {
            $run("smp", 2);
        }

        #[test]
        fn smp_on_three_vcpus() {
            $run("smp", 3);
        }

        #[test]
        fn smp_on_four_vcpus() {
            $run("smp", 4);
        }
    };
}

corpus! {
    interpreter: interpreter::Interpreter::new(),
    translator: translator::Translator::new().expect("a host with BMI2 and AVX2"),
}

/// The kvm engine where /dev/kvm opens.
mod kvm {
    use std::sync::Arc;

    use ::kvm::{Share, Speed};
    use ringfence_tests::guests::Oracle;
    use ringfence_tests::stock::skipped;
    use ringfence_tests::vm::kvm;

    /// What a KVM that emulates guest kernels executes to the end; what it gets wrong of that is in
    /// `guests/deviations-kvm.txt`. The others look at what it does not have, such as paging outside
    /// long mode, or at the time that it takes.
    const ENDED_WHEN_EMULATED: [&str; 15] = [
        "bios",
        "debug",
        "exceptions",
        "gates",
        "lockout",
        "modes",
        "multiboot",
        "real_mode",
        "segmentation",
        "segments",
        "smc",
        "smp",
        "string",
        "task_switch",
        "v86",
    ];

    fn run(program: &str) {
        run_on(program, 1);
    }

    fn run_on(program: &str, cpus: u32) {
        if let Some((kvm, _)) = kvm() {
            super::run(program, Arc::new(kvm), cpus, Oracle::Exact);
        }
    }

    each_program!(run);
    several_cpus!(run_on);

    /// Where KVM executes only user code, these programs are the interpreter's. Here KVM executes
    /// them, and the interpreter what KVM fails to: a second opinion on the programs, and on what
    /// the two hand to each other.
    #[test]
    fn an_emulated_kvm_executes_kernels_with_the_help_of_the_interpreter() {
        let Some((kvm, speed)) = kvm() else { return };
        if let Speed::Hardware(_) = speed {
            return skipped("this KVM is not emulated");
        }
        let everything = Arc::new(kvm.with_share(Share::Everything));
        for program in ENDED_WHEN_EMULATED {
            super::run(program, Arc::clone(&everything) as _, 1, Oracle::EmulatedKvm);
        }
    }
}

/// Far above what a program takes alone: the tests of a run share the host.
const LIMIT: Duration = Duration::from_secs(300);
/// What a program in which nothing failed writes to the debug-exit port, and what any other does.
const SUCCESS: Outcome = Outcome::DebugExit(0);
const FAILURE: Outcome = Outcome::DebugExit(1);

fn run(program: &str, engine: Arc<dyn Engine>, cpus: u32, oracle: Oracle) {
    let (_, path) = all().iter().find(|(name, _)| *name == program).expect("a program");
    let elf = std::fs::read(path).expect("the build script has built it");
    let boot = BootFiles::from_bytes(elf, None).expect("an ELF file with a PVH note");
    let guest = Setup::new(engine, 128, boot).cpus(cpus).debug_exit().start();
    let outcome = guest.end(LIMIT);
    let output = guest.text();
    let verdict = judge(&output, &known_deviations(oracle, program));
    let expected = if verdict.deviations.is_empty() { SUCCESS } else { FAILURE };
    assert!(
        verdict.is_success() && outcome == expected,
        "{program} on {cpus} vCPUs: {outcome}; {} passed\n{}\nthe console ends with\n{}",
        verdict.passed,
        verdict.failures.join("\n"),
        guest.last_lines(),
    );
}
