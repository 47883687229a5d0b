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
                super::run(program, std::sync::Arc::new($engine), cpus);
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
    use ringfence_tests::stock::skipped;
    use ringfence_tests::vm::kvm;

    /// What a KVM that emulates guest kernels executes right. The others look at what it does not
    /// have, such as paging outside long mode, or does not do as the manuals say.
    const PASS_WHEN_EMULATED: [&str; 4] = ["real_mode", "smc", "task_switch", "v86"];

    fn run(program: &str) {
        run_on(program, 1);
    }

    fn run_on(program: &str, cpus: u32) {
        if let Some((kvm, _)) = kvm() {
            super::run(program, Arc::new(kvm), cpus);
        }
    }

    each_program!(run);
    several_cpus!(run_on);

    /// Where KVM executes only user code, these programs are the interpreter's. Here KVM executes
    /// them, and the interpreter what KVM fails to.
    #[test]
    fn an_emulated_kvm_executes_kernels_with_the_help_of_the_interpreter() {
        let Some((kvm, speed)) = kvm() else { return };
        if let Speed::Hardware(_) = speed {
            return skipped("this KVM is not emulated");
        }
        let everything = Arc::new(kvm.with_share(Share::Everything));
        for program in PASS_WHEN_EMULATED {
            super::run(program, Arc::clone(&everything) as _, 1);
        }
    }
}

/// Far above what a program takes alone: the tests of a run share the host.
const LIMIT: Duration = Duration::from_secs(300);
/// What a program in which nothing failed writes to the debug-exit port.
const SUCCESS: Outcome = Outcome::DebugExit(0);

fn run(program: &str, engine: Arc<dyn Engine>, cpus: u32) {
    let (_, path) = all().iter().find(|(name, _)| *name == program).expect("a program");
    let elf = std::fs::read(path).expect("the build script has built it");
    let boot = BootFiles::from_bytes(elf, None).expect("an ELF file with a PVH note");
    let guest = Setup::new(engine, 128, boot).cpus(cpus).debug_exit().start();
    let outcome = guest.end(LIMIT);
    let output = guest.text();
    let verdict = judge(&output, &known_deviations(Oracle::Exact, program));
    assert!(
        verdict.is_success() && outcome == SUCCESS,
        "{program} on {cpus} vCPUs: {outcome}; {} passed\n{}\nthe console ends with\n{}",
        verdict.passed,
        verdict.failures.join("\n"),
        guest.last_lines(),
    );
}
