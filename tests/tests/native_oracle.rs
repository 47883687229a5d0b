//! The software engines against the host CPU: generated instruction sequences run natively in a
//! sealed process and on an engine, and everything must be equal (see the crate `oracle`). The
//! translator also runs each case several times in the same vCPU, so that its inlined TLB hits.
//!
//! `ORACLE_CASES` (default 100,000) and `ORACLE_SEED` choose the cases; `ORACLE_CASE` runs a
//! single one by its number. For millions of cases:
//! `cargo run -p oracle --release --example hunt -- --cases 10000000 --seed N`.

use interpreter::Interpreter;
use oracle::{
    Case, Plan, Subject, SubjectError, SubjectOutcome, Summary, VcpuSubject, WarmSubject, check,
};
use ringfence_tests::settings::number;
use translator::Translator;

const SEED: u64 = 0x5269_6e67;
const CASES: u64 = 100_000;

fn plan(cases: u64) -> Plan {
    let plan = Plan::new(number("ORACLE_SEED").unwrap_or(SEED), cases);
    match number("ORACLE_CASE") {
        Some(case) => Plan { first: case, cases: 1, ..plan },
        None => plan,
    }
}

/// So few cases may be discarded that the others still say something.
fn assert_is_broad(summary: &Summary, cases: u64) {
    assert!(summary.discarded() * 50 < cases, "too many cases discarded: {summary}");
    assert!(summary.mnemonics.len() > 800, "too few instructions: {summary}");
    for vector in [0, 1, 3, 6, 12, 13, 14, 16, 17, 19] {
        let count = summary.compared.get(&vector).copied().unwrap_or(0);
        assert!(count * 2000 > cases, "vector {vector} is rare: {summary}");
    }
}

/// Compares what `make` makes with the host.
#[track_caller]
fn agrees<S: Subject>(make: impl Fn() -> Result<S, SubjectError> + Sync) {
    let plan = plan(number("ORACLE_CASES").unwrap_or(CASES));
    let (summary, findings) = check(&plan, make).unwrap();
    eprintln!("{summary}");
    for finding in &findings {
        eprintln!("{finding}");
    }
    assert!(findings.is_empty(), "{} of {} cases differ", findings.len(), summary.total());
    if plan.cases >= CASES {
        assert_is_broad(&summary, plan.cases);
    }
}

fn translator() -> Translator {
    Translator::new().expect("a host with BMI2 and AVX2")
}

#[test]
fn the_interpreter_agrees_with_the_host() {
    let engine = Interpreter::new();
    agrees(|| VcpuSubject::new(&engine));
}

#[test]
fn the_translator_agrees_with_the_host() {
    let engine = translator();
    agrees(|| VcpuSubject::new(&engine));
}

#[test]
fn the_translator_agrees_with_the_host_on_what_it_has_seen_before() {
    let engine = translator();
    agrees(|| WarmSubject::new(&engine));
}

/// An interpreter that is wrong in one place.
struct Wrong(VcpuSubject);

impl Subject for Wrong {
    fn run(&mut self, case: &Case, instructions: u64) -> Result<SubjectOutcome, SubjectError> {
        let mut outcome = self.0.run(case, instructions)?;
        if let SubjectOutcome::Observed(observation) = &mut outcome {
            // The upper half of a register survives a 32-bit write that should clear it.
            if observation.image.gpr[1] == u64::from(case.image.gpr[1] as u32) {
                observation.image.gpr[1] = case.image.gpr[1];
            }
        }
        Ok(outcome)
    }
}

#[test]
fn a_wrong_interpreter_is_found_out() {
    let engine = Interpreter::new();
    let make = || Ok(Wrong(VcpuSubject::new(&engine)?));
    let (_, findings) = check(&Plan { findings: 1, ..Plan::new(SEED, CASES) }, make).unwrap();
    let text = findings.first().map(ToString::to_string).unwrap_or_default();
    assert!(text.contains("-> rcx"), "not found out: {text}");
}
