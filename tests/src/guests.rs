//! The bare-machine test programs of `guests/`, built by this package's build
//! script, and the reading of what they print.
//!
//! A program prints `PASS name`, `FAIL name: ..` and `SKIP name: ..` lines and
//! a last line `N passed, N failed, N skipped`, and leaves through the
//! debug-exit port. [`judge`] turns the output into a [`Verdict`]; failures
//! that a machine is known for ([`known_deviations`]) do not count against it.

/// Name and path of every program.
pub fn all() -> &'static [(&'static str, &'static str)] {
    include!(concat!(env!("OUT_DIR"), "/guests.rs"))
}

/// Machines whose deviations from the manuals are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oracle {
    /// QEMU 7.2 with `-accel tcg -cpu max`.
    QemuTcg,
    /// A KVM that emulates guest kernels.
    EmulatedKvm,
    /// No deviation is accepted.
    Exact,
}

/// The checks of `program` that `oracle` is known to fail, by name.
///
/// The reason, with the section of the manual, is beside each name in
/// `guests/deviations-qemu.txt` or `guests/deviations-kvm.txt`.
pub fn known_deviations(oracle: Oracle, program: &str) -> Vec<&'static str> {
    let list = match oracle {
        Oracle::QemuTcg => include_str!("../../guests/deviations-qemu.txt"),
        Oracle::EmulatedKvm => include_str!("../../guests/deviations-kvm.txt"),
        Oracle::Exact => "",
    };
    list.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(" | ")?.0.trim_end().split_once(": "))
        .filter(|(of, _)| *of == program)
        .map(|(_, check)| check)
        .collect()
}

/// What a run of a program showed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Number of PASS lines.
    pub passed: usize,
    /// FAIL lines that are no known deviation.
    pub failures: Vec<String>,
    /// FAIL lines that are known deviations.
    pub deviations: Vec<String>,
    /// SKIP lines.
    pub skipped: Vec<String>,
    /// Whether the summary line came and agrees with the lines before it.
    pub complete: bool,
}

impl Verdict {
    /// Whether the program ran to its end with nothing unexpected.
    pub fn is_success(&self) -> bool {
        self.complete && self.passed > 0 && self.failures.is_empty()
    }
}

/// Reads the output of a program, given the names of accepted failures.
pub fn judge(output: &str, accepted: &[&str]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut failed = 0;
    for line in output.lines().map(str::trim_end) {
        if line.starts_with("PASS ") {
            verdict.passed += 1;
        } else if let Some(rest) = line.strip_prefix("FAIL ") {
            failed += 1;
            // The name itself may hold a colon, never this phrase.
            let name = rest.split(": expected ").next().unwrap_or(rest);
            let list = if accepted.contains(&name) {
                &mut verdict.deviations
            } else {
                &mut verdict.failures
            };
            list.push(rest.to_owned());
        } else if let Some(rest) = line.strip_prefix("SKIP ") {
            verdict.skipped.push(rest.to_owned());
        } else if line.ends_with(" skipped") {
            let summary = format!(
                "{} passed, {failed} failed, {} skipped",
                verdict.passed,
                verdict.skipped.len()
            );
            verdict.complete = line == summary;
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_run_succeeds() {
        let verdict = judge("PASS a\nSKIP b: not offered\n1 passed, 0 failed, 1 skipped\n", &[]);
        assert!(verdict.is_success());
    }

    #[test]
    fn failures_count_unless_accepted() {
        let output = "PASS a\nFAIL b: c: expected 1 got 2\n1 passed, 1 failed, 0 skipped\n";
        assert!(!judge(output, &[]).is_success());
        let accepted = judge(output, &["b: c"]);
        assert!(accepted.is_success());
        assert_eq!(accepted.deviations, ["b: c: expected 1 got 2"]);
    }

    #[test]
    fn a_run_cut_short_is_incomplete() {
        assert!(!judge("PASS a\nPASS b\n", &[]).is_success());
        assert!(!judge("PASS a\n2 passed, 0 failed, 0 skipped\n", &[]).is_success());
        assert!(!judge("", &[]).is_success());
    }

    #[test]
    fn every_listed_deviation_names_a_program() {
        let qemu = include_str!("../../guests/deviations-qemu.txt").lines();
        for line in qemu.chain(include_str!("../../guests/deviations-kvm.txt").lines()) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (check, reason) = line.split_once(" | ").expect("a reason after ' | '");
            let (program, _) = check.split_once(": ").expect("program: check");
            assert!(all().iter().any(|(name, _)| *name == program), "no program {program}");
            assert!(!reason.trim().is_empty());
        }
    }
}
