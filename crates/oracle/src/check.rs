//! Runs many cases on the host CPU and on subjects, and collects what differs.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use iced_x86::Mnemonic;

use crate::case::{Case, Observation};
use crate::compare::{Difference, compare};
use crate::generate::{Generator, decode_all, is_comparable};
use crate::native::{NativeError, NativeOutcome, NativeRunner, choices, is_mapped};
use crate::report::Finding;
use crate::shrink::shrink;
use crate::subject::{Subject, SubjectError, SubjectOutcome};

/// Cases that a thread takes at a time.
const SHARE: u64 = 64;

/// Which cases to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Where the cases come from.
    pub seed: u64,
    /// Number of the first case.
    pub first: u64,
    /// How many.
    pub cases: u64,
    /// Only cases with this instruction.
    pub only: Option<Mnemonic>,
    /// Instructions that a subject may execute of one case.
    pub budget: u64,
    /// Threads, each with a worker process and a subject of its own.
    pub threads: usize,
    /// Stop after this many findings.
    pub findings: usize,
}

impl Plan {
    /// `cases` cases of `seed` on all processors, up to 10 findings.
    pub fn new(seed: u64, cases: u64) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, Into::into);
        Self { seed, first: 0, cases, only: None, budget: 20_000, threads, findings: 10 }
    }
}

/// Why a check could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The host side failed.
    #[error(transparent)]
    Native(#[from] NativeError),
    /// The subject failed.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// No comparable instruction has this mnemonic.
    #[error("oracle: no instruction that can be compared is called {0:?}")]
    UnknownMnemonic(Mnemonic),
}

/// How many cases ended how.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Cases compared, by the vector that ended them on the host; vector 3 is a sequence that was
    /// executed to its end.
    pub compared: BTreeMap<u8, u64>,
    /// Instructions, by mnemonic, in compared cases.
    pub mnemonics: BTreeMap<String, u64>,
    /// Cases discarded because they ran too long on the host.
    pub timeouts: u64,
    /// Cases discarded because the subject spent its instructions.
    pub budget_spent: u64,
    /// Cases discarded because they reached a system call.
    pub system_calls: u64,
    /// Cases discarded because the host did not repeat its result, because they hit upon memory
    /// of the worker process, or because the maker's choice differs
    /// from the guest CPU's.
    pub unstable: u64,
    /// Cases discarded because they destroyed the worker process.
    pub deaths: u64,
    /// Cases that differ.
    pub different: u64,
}

impl Summary {
    /// Number of cases compared.
    pub fn total(&self) -> u64 {
        self.compared.values().sum()
    }

    /// Number of cases discarded.
    pub fn discarded(&self) -> u64 {
        self.timeouts + self.budget_spent + self.system_calls + self.unstable + self.deaths
    }

    fn add(&mut self, other: &Self) {
        for (vector, count) in &other.compared {
            *self.compared.entry(*vector).or_default() += count;
        }
        for (mnemonic, count) in &other.mnemonics {
            *self.mnemonics.entry(mnemonic.clone()).or_default() += count;
        }
        self.timeouts += other.timeouts;
        self.budget_spent += other.budget_spent;
        self.system_calls += other.system_calls;
        self.unstable += other.unstable;
        self.deaths += other.deaths;
        self.different += other.different;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let executed = self.compared.get(&3).copied().unwrap_or(0);
        write!(
            f,
            "{} cases compared ({} executed to the end, {} faulted), {} instructions by name, \
             {} different; discarded: {} timeouts, {} out of budget, {} system calls, \
             {} unstable, {} worker deaths; by vector:",
            self.total(),
            executed,
            self.total() - executed,
            self.mnemonics.len(),
            self.different,
            self.timeouts,
            self.budget_spent,
            self.system_calls,
            self.unstable,
            self.deaths,
        )?;
        self.compared.iter().try_for_each(|(vector, count)| write!(f, " {vector}: {count}"))
    }
}

/// Compares a subject with the host CPU on every case of the plan. `make` makes a subject for each
/// thread.
///
/// # Errors
/// [`CheckError`]; differences are no error but findings.
pub fn check<S, F>(plan: &Plan, make: F) -> Result<(Summary, Vec<Finding>), CheckError>
where
    S: Subject,
    F: Fn() -> Result<S, SubjectError> + Sync,
{
    let mut generator = Generator::new(plan.seed);
    if let Some(mnemonic) = plan.only {
        generator = generator.only(mnemonic).ok_or(CheckError::UnknownMnemonic(mnemonic))?;
    }
    let shared = Shared {
        plan,
        generator,
        next: AtomicU64::new(0),
        enough: AtomicBool::new(false),
        result: Mutex::new((Summary::default(), Vec::new())),
    };
    std::thread::scope(|scope| {
        let work = || shared.work(&make);
        let threads: Vec<_> = (0..plan.threads.max(1)).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .try_for_each(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
    })?;
    let (summary, mut findings) =
        shared.result.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    findings.sort_by_key(|f: &Finding| f.number);
    Ok((summary, findings))
}

/// A branch to a non-canonical address, on a host whose maker chose to fault elsewhere.
fn is_makers_choice(native: &Observation) -> bool {
    !choices().intel_branches && !x86::is_canonical(native.image.rip)
}

/// What the threads of a check share.
struct Shared<'a> {
    plan: &'a Plan,
    generator: Generator,
    next: AtomicU64,
    enough: AtomicBool,
    result: Mutex<(Summary, Vec<Finding>)>,
}

impl Shared<'_> {
    /// Takes shares of the cases until there are none left.
    fn work<S, F>(&self, make: F) -> Result<(), CheckError>
    where
        S: Subject,
        F: Fn() -> Result<S, SubjectError>,
    {
        let mut pair = Pair { native: NativeRunner::new()?, subject: make()?, plan: self.plan };
        while !self.enough.load(Relaxed) {
            let first = self.next.fetch_add(SHARE, Relaxed);
            if first >= self.plan.cases {
                break;
            }
            let end = (first + SHARE).min(self.plan.cases);
            let (summary, found) =
                pair.check_share(&self.generator, self.plan.first + first..self.plan.first + end)?;
            let mut result = self.result.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            result.0.add(&summary);
            result.1.extend(found);
            if result.1.len() >= self.plan.findings {
                self.enough.store(true, Relaxed);
            }
        }
        Ok(())
    }
}

/// The host CPU and a subject.
struct Pair<'a, S> {
    native: NativeRunner,
    subject: S,
    plan: &'a Plan,
}

impl<S: Subject> Pair<'_, S> {
    fn check_share(
        &mut self,
        generator: &Generator,
        numbers: std::ops::Range<u64>,
    ) -> Result<(Summary, Vec<Finding>), CheckError> {
        let cases: Vec<Case> = numbers.clone().map(|number| generator.case(number)).collect();
        let outcomes = self.native.run(&cases)?;
        let mut summary = Summary::default();
        let mut findings = Vec::new();
        for ((number, case), outcome) in numbers.zip(&cases).zip(&outcomes) {
            let differences = self.judge(case, outcome, &mut summary)?;
            if !differences.is_empty() {
                summary.different += 1;
                findings.push(self.finding(number, case)?);
            }
        }
        Ok((summary, findings))
    }

    /// Runs the subject where the host gave a result, counts, and compares.
    fn judge(
        &mut self,
        case: &Case,
        outcome: &NativeOutcome,
        summary: &mut Summary,
    ) -> Result<Vec<Difference>, CheckError> {
        let native = match outcome {
            NativeOutcome::Observed(observation) if is_makers_choice(observation) => {
                summary.unstable += 1;
                return Ok(Vec::new());
            }
            NativeOutcome::Observed(observation) => observation,
            NativeOutcome::Timeout => {
                summary.timeouts += 1;
                return Ok(Vec::new());
            }
            NativeOutcome::SystemCall => {
                summary.system_calls += 1;
                return Ok(Vec::new());
            }
            NativeOutcome::WorkerDied => {
                summary.deaths += 1;
                return Ok(Vec::new());
            }
        };
        let subject = match self.subject.run(case, self.plan.budget)? {
            SubjectOutcome::Observed(observation) => observation,
            SubjectOutcome::BudgetSpent => {
                summary.budget_spent += 1;
                return Ok(Vec::new());
            }
        };
        let differences = compare(case, native, &subject);
        let is_faulty = !differences.is_empty()
            && (is_mapped(subject.fault.address) || !self.repeats(case, native)?);
        if is_faulty {
            summary.unstable += 1;
            return Ok(Vec::new());
        }
        *summary.compared.entry(native.fault.vector).or_default() += 1;
        for instruction in decode_all(case) {
            let name = format!("{:?}", instruction.mnemonic()).to_lowercase();
            *summary.mnemonics.entry(name).or_default() += 1;
        }
        Ok(differences)
    }

    /// Whether the host gives the same result again.
    fn repeats(&mut self, case: &Case, before: &Observation) -> Result<bool, CheckError> {
        let again = self.native.run(std::slice::from_ref(case))?;
        Ok(matches!(&again[..], [NativeOutcome::Observed(now)] if **now == *before))
    }

    /// What differs in `case`, if the host gives a result and the subject ends.
    fn differences(&mut self, case: &Case) -> Result<Vec<Difference>, CheckError> {
        let outcomes = self.native.run(std::slice::from_ref(case))?;
        let [NativeOutcome::Observed(native)] = &outcomes[..] else { return Ok(Vec::new()) };
        match self.subject.run(case, self.plan.budget)? {
            SubjectOutcome::Observed(subject) if is_mapped(subject.fault.address) => Ok(Vec::new()),
            SubjectOutcome::Observed(subject) => Ok(compare(case, native, &subject)),
            SubjectOutcome::BudgetSpent => Ok(Vec::new()),
        }
    }

    /// The smallest case like `case` that still differs.
    fn finding(&mut self, number: u64, case: &Case) -> Result<Finding, CheckError> {
        let mut failure = None;
        let small = shrink(case, |candidate| {
            is_comparable(candidate)
                && match self.differences(candidate) {
                    Ok(differences) => !differences.is_empty(),
                    Err(error) => {
                        failure = Some(error);
                        false
                    }
                }
        });
        if let Some(error) = failure {
            return Err(error);
        }
        let differences = self.differences(&small)?;
        Ok(Finding { seed: self.plan.seed, number, case: small, differences })
    }
}
