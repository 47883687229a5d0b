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
                super::run(program, std::sync::Arc::new($engine));
            }

            each_program!(run);
        }
    )+};
}

corpus! {
    interpreter: interpreter::Interpreter::new(),
    translator: translator::Translator::new().expect("a host with BMI2 and AVX2"),
}

/// The kvm engine where /dev/kvm opens. Where KVM itself emulates guest kernels, it deviates from
/// the manuals in much that the programs look at, and only those run that it is known to pass.
mod kvm {
    use ::kvm::{Kvm, Speed};

    const PASS_WHEN_EMULATED: [&str; 4] = ["real_mode", "smc", "task_switch", "v86"];

    fn run(program: &str) {
        let found = Kvm::open().and_then(|kvm| Ok((kvm.speed()?, kvm)));
        match found {
            Err(error) => eprintln!("SKIPPED {program} on kvm: {error}"),
            Ok((Speed::Emulated(_), _)) if !PASS_WHEN_EMULATED.contains(&program) => {
                eprintln!("SKIPPED {program} on kvm: this KVM is emulated");
            }
            Ok((_, kvm)) => super::run(program, std::sync::Arc::new(kvm)),
        }
    }

    each_program!(run);
}

/// Far above what a program takes alone: the tests of a run share the host.
const LIMIT: Duration = Duration::from_secs(120);
/// What a program in which nothing failed writes to the debug-exit port.
const SUCCESS: Outcome = Outcome::DebugExit(0);

fn run(program: &str, engine: Arc<dyn Engine>) {
    let (_, path) = all().iter().find(|(name, _)| *name == program).expect("a program");
    let elf = std::fs::read(path).expect("the build script has built it");
    let boot = BootFiles::from_bytes(elf, None).expect("an ELF file with a PVH note");
    let guest = Setup::new(engine, 128, boot).debug_exit().start();
    let outcome = guest.end(LIMIT);
    let output = guest.text();
    let verdict = judge(&output, &known_deviations(Oracle::Exact, program));
    assert!(
        verdict.is_success() && outcome == SUCCESS,
        "{program}: {outcome}; {} passed\n{}\nthe console ends with\n{}",
        verdict.passed,
        verdict.failures.join("\n"),
        guest.last_lines(),
    );
}
