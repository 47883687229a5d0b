//! The harness itself: it finds nothing when the subject is the host CPU, and finds every kind of
//! difference when the subject is wrong.

use oracle::{
    Case, NativeOutcome, NativeRunner, Observation, Plan, Subject, SubjectError, SubjectOutcome,
    check,
};

/// The host CPU, with what it did changed afterwards.
struct Changed<F> {
    runner: NativeRunner,
    change: F,
}

impl<F: Fn(&Case, &mut Observation)> Subject for Changed<F> {
    fn run(&mut self, case: &Case, _: u64) -> Result<SubjectOutcome, SubjectError> {
        match self.runner.run(std::slice::from_ref(case)).unwrap().remove(0) {
            NativeOutcome::Observed(mut observation) => {
                (self.change)(case, &mut observation);
                Ok(SubjectOutcome::Observed(observation))
            }
            _ => Ok(SubjectOutcome::BudgetSpent),
        }
    }
}

/// Differences that are found when the subject's results are changed so.
fn found(cases: u64, change: impl Fn(&Case, &mut Observation) + Sync) -> Vec<String> {
    let plan = Plan { findings: 3, ..Plan::new(0x7e57, cases) };
    let make = || Ok(Changed { runner: NativeRunner::new().unwrap(), change: &change });
    let (summary, findings) = check(&plan, make).unwrap();
    assert!(summary.total() > 0 && summary.deaths == 0, "{summary}");
    findings.iter().map(ToString::to_string).collect()
}

#[test]
fn the_host_agrees_with_itself() {
    let found = found(10_000, |_, _| ());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_kind_of_difference_is_found() {
    type Change = fn(&mut Observation);
    let changes: [(&str, Change); 12] = [
        ("rax ", |o| o.image.gpr[0] ^= 1 << 63),
        ("r15 ", |o| o.image.gpr[15] ^= 1),
        ("rip ", |o| o.image.rip ^= 1),
        ("rflags ", |o| o.image.rflags ^= 1 << 10),
        ("fs base", |o| o.image.bases[0] ^= 1),
        ("mxcsr ", |o| o.image.set_mxcsr(o.image.mxcsr() ^ 1)),
        ("fsw ", |o| o.image.put(3, &[o.image.get::<1>(3)[0] ^ 1])),
        ("st7 ", |o| o.image.set_st(7, &[0x5a; 10])),
        ("ymm9 ", |o| o.image.set_ymm(9, [o.image.ymm(9)[0], o.image.ymm(9)[1] ^ 1])),
        ("fault ", |o| o.fault.vector ^= 1),
        ("fault ", |o| o.fault.error_code ^= 2),
        ("[0x1000008000]", |o| o.memory[3 * 4096] ^= 1),
    ];
    for (part, change) in changes {
        let found = found(200, |_, observation| change(observation));
        assert!(found.len() >= 3, "{part}: not found");
        assert!(found[0].contains(&format!("-> {part}")), "{part}: {}", found[0]);
    }
}

#[test]
fn one_wrong_instruction_is_found_and_isolated() {
    // A CPU whose ADC forgets to set the carry flag.
    let is_adc = |bytes: &[u8]| {
        iced_x86::Decoder::new(64, bytes, 0).decode().mnemonic() == iced_x86::Mnemonic::Adc
    };
    let found = found(50_000, |case, observation| {
        if case.instructions.last().is_some_and(|last| is_adc(last)) {
            observation.image.rflags &= !1;
        }
    });
    assert!(found.len() >= 3);
    for text in found {
        assert!(text.contains("adc") && text.contains("-> rflags"), "{text}");
        let instructions =
            text.lines().filter(|line| line.starts_with("  1") || line.starts_with("  3"));
        assert_eq!(instructions.count(), 1, "not made smaller: {text}");
    }
}
