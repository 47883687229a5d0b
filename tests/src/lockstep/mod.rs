//! Two machines that must do the same, instruction by instruction.
//!
//! Both boot the same program, one on a *reference* engine and one on the engine under test, the
//! *subject*. Their time passes only by hand and by as much on both sides, so that whatever they
//! do depends on nothing but their instructions: timers fire and interrupts arrive at the same
//! instruction. In each step both execute the same random number of instructions; then all of the
//! vCPU's state must be equal, and from time to time all of memory.
//!
//! When something differs, both are made anew and brought to where they were last equal, and go on
//! in small portions, with the reference executing single instructions: the report has the
//! instructions in which the difference came up ([`Divergence`]).
//!
//! Or the subject runs freely, until it is kicked at some time, and the reference follows it
//! ([`Lockstep::run_freely`]): engines may do things while nobody counts instructions that they do
//! not do otherwise.
//!
//! `side` is one machine, `report` tells differences, `flags` which of them are none, `pursuit` is a
//! reference that follows. Neighbours: `machine` for machines without
//! threads, `engine` for what runs them.

mod flags;
mod free;
mod pursuit;
mod report;
mod side;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use engine::{Engine, VcpuExit};
use lifecycle::BootFiles;
use machine::MachineSpec;
use memory::{DirtyConsumer, Gpa, GuestRam};
use oracle::random::Random;

pub use report::Divergence;
use report::{Executed, differences, next_instruction, physical};
use side::{Pulse, Side, Snapshot, Stop, chunks, read};

/// Makes the files that a machine boots.
pub type Boot<'a> = &'a dyn Fn() -> BootFiles;

/// A vCPU that does not come back is kicked this often: how a sleeping one is noticed.
const PULSE: Duration = Duration::from_micros(300);
/// Pages of memory differing that a report names.
const SHOWN_PAGES: usize = 4;
/// Bytes of a page.
const PAGE: usize = 4096;
/// Timers in a row that fire without waking anybody: the guest sleeps for good.
const IDLE_EVENTS: u32 = 10_000;
/// Instructions of a portion, at most, when a difference is looked for closely: what comes up only
/// in long runs is looked for in longer ones.
const PORTIONS: [u64; 5] = [16, 64, 256, 1024, u64::MAX];
/// Instructions of a portion that a report has.
const SHOWN_INSTRUCTIONS: usize = 96;
/// Instructions by which one side may be behind when both have counted as many.
const SKEW: u64 = 64;
/// Code pages that are remembered, to make stale.
const PAGES: usize = 32;

/// How two machines are run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where random numbers come from.
    pub seed: u64,
    /// Instructions that the reference executes alone before, in which case the subject takes
    /// over its saved state.
    pub skip: u64,
    /// Instructions of a step, at most.
    pub longest: u64,
    /// Whether code pages are made stale now and then.
    pub disturb: bool,
    /// Host time after which it is enough, when at least `least` instructions have been executed;
    /// ten times as much is enough in any case.
    pub limit: Duration,
    /// See `limit`.
    pub least: u64,
}

impl Plan {
    fn is_over(&self, begun: Instant, executed: u64) -> bool {
        let spent = begun.elapsed();
        spent >= self.limit && (executed >= self.least || spent >= self.limit * 10)
    }
}

/// What two machines did that did not differ.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Instructions executed by each, without what was skipped.
    pub instructions: u64,
    /// Steps.
    pub steps: u64,
    /// Steps after which the sides had counted repeated string instructions differently.
    pub aligned: u64,
    /// How the machines ended, if they did before the limit.
    pub end: Option<VcpuExit>,
    /// What the guest printed after what was skipped.
    pub console: String,
    /// Events by name on the subject.
    pub counters: Vec<(&'static str, u64)>,
}

/// A program and the engines that are compared on it.
pub struct Lockstep<'a> {
    /// The machine.
    pub spec: MachineSpec,
    /// What it boots.
    pub boot: Boot<'a>,
    /// The engine that is right.
    pub reference: &'a dyn Engine,
    /// The engine under test.
    pub subject: &'a dyn Engine,
}

impl Lockstep<'_> {
    /// Runs both machines until they end or the plan's time is over.
    ///
    /// # Errors
    /// The first [`Divergence`], narrowed down.
    ///
    /// # Panics
    /// When a machine cannot be made, or an engine fails for another reason than its guest.
    pub fn run(&self, plan: &Plan) -> Result<Summary, Box<Divergence>> {
        let start = self.skipped(plan);
        let mut pair = self.pair(start.as_ref());
        pair.run(plan).map_err(|found| Box::new(self.narrow(plan, start.as_ref(), found)))
    }

    /// The reference alone, until the subject is to join.
    fn skipped(&self, plan: &Plan) -> Option<Snapshot> {
        if plan.skip == 0 {
            return None;
        }
        let mut side = Side::new(self.reference, &self.spec, self.boot);
        let pulse = Pulse::new(PULSE);
        let mut left = plan.skip;
        while left > 0 {
            let share = left.min(10_000);
            side.vcpu.set_budget(Some(share));
            let mut idle = 0;
            while side.go(&pulse) == Stop::Halted && idle < IDLE_EVENTS {
                idle += 1;
                let ns = side.next_event().unwrap_or(1_000_000);
                side.advance(ns + 1);
                side.look();
            }
            side.advance(share);
            side.look();
            left -= share;
        }
        Some(side.snapshot())
    }

    fn pair(&self, start: Option<&Snapshot>) -> Pair {
        self.pair_with(self.reference, start, PULSE)
    }

    fn pair_with(&self, reference: &dyn Engine, start: Option<&Snapshot>, pulse: Duration) -> Pair {
        let side = |engine| {
            let mut side = Side::new(engine, &self.spec, self.boot);
            if let Some(snapshot) = start {
                side.restore(snapshot);
            }
            side
        };
        Pair {
            reference: side(reference),
            subject: side(self.subject),
            pulse: Pulse::new(pulse),
            pages: Vec::new(),
            retired: 0,
            aligned: 0,
            idle: 0,
        }
    }

    /// Repeats what led to `found`, and looks closely where it came up.
    fn narrow(&self, plan: &Plan, start: Option<&Snapshot>, mut found: Divergence) -> Divergence {
        // A difference in a register has come up in its own step, one in memory since memory was
        // last compared.
        let in_memory = found.differences.iter().any(|line| line.starts_with("memory"));
        let closely_from = match in_memory {
            true => found.memory_equal_at.map_or(0, |step| step + 1),
            false => found.step,
        };
        for portion in PORTIONS {
            let mut pair = self.pair(start);
            for step in 0..=found.step {
                // Recording changes how memory is accessed: only where it is of use.
                if step == closely_from && in_memory {
                    pair.track_dirty();
                }
                let portion = (step >= closely_from).then_some(portion);
                match pair.step(plan, step, portion) {
                    Ok(None) => {}
                    Ok(Some(_)) => break,
                    Err(closer) => return closer,
                }
            }
        }
        found.differences.push(format!(
            "(it does not come up when looked at closely from step {closely_from} on)"
        ));
        found
    }
}

/// What a step is to be: a function of seed and number, so that it can be repeated.
struct Step {
    instructions: u64,
    /// Nanoseconds that pass after it.
    passes: u64,
    /// Which of the pages is made stale.
    stale: Option<u64>,
    random: Random,
}

impl Step {
    fn new(plan: &Plan, number: u64) -> Self {
        let mut random = Random::new(plan.seed, number);
        // As many short ones as long ones.
        let bound = plan.longest >> random.below(u64::from(plan.longest.ilog2()) + 1);
        let instructions = 1 + random.below(bound.max(1));
        // Sometimes a timer is due at once.
        let jump = if random.one_in(64) { random.below(5_000_000) } else { 0 };
        let stale = (plan.disturb && random.one_in(4)).then(|| random.next());
        Self { instructions, passes: instructions + jump, stale, random }
    }
}

/// The two machines.
struct Pair {
    reference: Side,
    subject: Side,
    pulse: Pulse,
    /// Guest-physical addresses where code was executed lately.
    pages: Vec<u64>,
    retired: u64,
    /// How often the sides had counted differently.
    aligned: u64,
    /// Times in a row that both slept without anything to do.
    idle: u32,
}

impl Pair {
    fn run(&mut self, plan: &Plan) -> Result<Summary, Divergence> {
        // All of memory is some milliseconds' work: as much as some million instructions.
        const MEMORY_EVERY: u64 = 16_000_000;
        let before = self.subject.console.text().len();
        let begun = Instant::now();
        let mut memory_equal_at = None;
        let mut compared_at = 0;
        let mut step = 0;
        let end = loop {
            let ended = self.step(plan, step, None).map_err(|mut found| {
                found.memory_equal_at = memory_equal_at;
                found
            })?;
            let over = ended.is_some() || plan.is_over(begun, self.retired);
            if over || self.retired - compared_at >= MEMORY_EVERY {
                compared_at = self.retired;
                let differences = self.compare_memory();
                if !differences.is_empty() {
                    let executed = Vec::new();
                    return Err(Divergence { step, memory_equal_at, differences, executed });
                }
                memory_equal_at = Some(step);
            }
            step += 1;
            if over {
                break ended;
            }
        };
        Ok(Summary {
            instructions: self.retired,
            steps: step,
            aligned: self.aligned,
            end,
            console: self.subject.console.text().split_off(before),
            counters: self.subject.vcpu.stats().counters,
        })
    }

    /// Does a step on both sides, in portions of at most `closely` instructions where it is looked
    /// at closely. Gives how both machines ended, if they did.
    fn step(
        &mut self,
        plan: &Plan,
        number: u64,
        closely: Option<u64>,
    ) -> Result<Option<VcpuExit>, Divergence> {
        let mut step = Step::new(plan, number);
        let mut left = step.instructions;
        while left > 0 {
            let portion = match closely {
                Some(longest) => (1 + step.random.below(longest)).min(left),
                None => left,
            };
            let mut executed = VecDeque::new();
            let trace = closely.is_some().then_some(&mut executed);
            let written = closely.is_some();
            let ended = self.execute(portion, trace).and_then(|ended| match ended {
                None => self.align(written),
                Some(_) => self.compare(written).map(|()| ended),
            });
            let ended = ended.map_err(|differences| Divergence {
                step: number,
                memory_equal_at: None,
                differences,
                executed: executed.into(),
            })?;
            if ended.is_some() {
                return Ok(ended);
            }
            left -= portion;
        }
        self.retired += step.instructions;
        self.pass(&step);
        Ok(None)
    }

    /// Compares the sides after equal numbers of instructions, and aligns them where an engine has
    /// counted a repeated string instruction more often than the other: each counts one for every
    /// part that it does without looking up, and what makes a part end is its own business.
    fn align(&mut self, written: bool) -> Result<Option<VcpuExit>, Vec<String>> {
        let Err(lines) = self.compare(written) else { return Ok(None) };
        if !self.skewed() {
            return Err(lines);
        }
        self.aligned += 1;
        let target = self.subject.state.clone();
        for _ in 0..SKEW {
            if let Some(end) = self.reference_ends() {
                return self.subject_must_end(end);
            }
            if self.reference.state == flags::overlooked(&self.reference.state, &target) {
                return self.compare(written).map(|()| None);
            }
        }
        // The reference was not behind: the subject has to come to where it is now.
        for _ in 0..2 * SKEW {
            self.subject.vcpu.set_budget(Some(1));
            if self.subject.go(&self.pulse) != Stop::Spent {
                return Err(lines);
            }
            if self.compare(written).is_ok() {
                return Ok(None);
            }
        }
        Err(lines)
    }

    /// Whether a difference may be one of counting.
    fn skewed(&self) -> bool {
        self.reference.state.general.rip != self.subject.state.general.rip
            || self.reference.at_repetition()
    }

    /// Lets the reference execute one instruction; tells how it ended, if it did.
    fn reference_ends(&mut self) -> Option<Stop> {
        self.reference.vcpu.set_budget(Some(1));
        let stop = self.reference.go(&self.pulse);
        self.reference.look();
        (stop != Stop::Spent).then_some(stop)
    }

    /// The reference came to `end` while it was aligned: so must the subject.
    fn subject_must_end(&mut self, end: Stop) -> Result<Option<VcpuExit>, Vec<String>> {
        self.subject.vcpu.set_budget(Some(2 * SKEW));
        let stop = self.subject.go(&self.pulse);
        match (end, stop) {
            (Stop::End(a), Stop::End(b)) if a == b => Ok(Some(a)),
            (Stop::Halted, Stop::Halted) => self.compare(false).map(|()| None),
            (a, b) => Err(vec![format!("the reference stops with {a:?}, the subject with {b:?}")]),
        }
    }

    /// What happens between two steps: code becomes stale, time passes.
    fn pass(&mut self, step: &Step) {
        self.disturb(step);
        for side in [&mut self.reference, &mut self.subject] {
            side.advance(step.passes);
            // A timer of the local APIC that is due now interrupts before the next instruction.
            side.look();
        }
    }

    /// Lets both execute `instructions`, through any sleep.
    fn execute(
        &mut self,
        instructions: u64,
        mut trace: Option<&mut VecDeque<Executed>>,
    ) -> Result<Option<VcpuExit>, Vec<String>> {
        self.subject.vcpu.set_budget(Some(instructions));
        self.reference.vcpu.set_budget(Some(instructions));
        let mut left = instructions;
        let mut idle = 0;
        loop {
            let reference = match &mut trace {
                Some(trace) => self.reference_singly(&mut left, trace),
                None => self.reference.go(&self.pulse),
            };
            let subject = self.subject.go(&self.pulse);
            match (reference, subject) {
                (Stop::Spent, Stop::Spent) => return Ok(None),
                (Stop::Halted, Stop::Halted) if idle < IDLE_EVENTS => {
                    self.compare(false)?;
                    idle += 1;
                    self.wake();
                }
                (Stop::Halted, Stop::Halted) => return Ok(Some(VcpuExit::Paused)),
                (Stop::End(a), Stop::End(b)) if a == b => return Ok(Some(a)),
                (a, b) => {
                    let mut lines =
                        vec![format!("the reference stops with {a:?}, the subject with {b:?}")];
                    let (a, b) = (self.reference.look().clone(), self.subject.look());
                    lines.extend(differences(&a, b));
                    return Err(lines);
                }
            }
        }
    }

    /// The reference, one instruction at a time.
    fn reference_singly(&mut self, left: &mut u64, trace: &mut VecDeque<Executed>) -> Stop {
        while *left > 0 {
            let side = &mut self.reference;
            side.look();
            if trace.len() == SHOWN_INSTRUCTIONS {
                trace.pop_front();
            }
            trace.push_back(next_instruction(side.machine.ram(), &side.state));
            side.vcpu.set_budget(Some(1));
            match side.go(&self.pulse) {
                Stop::Spent => *left -= 1,
                other => return other,
            }
        }
        Stop::Spent
    }

    /// Both sleep: time goes on to the next event.
    fn wake(&mut self) {
        let ns = self.reference.next_event().unwrap_or(1_000_000) + 1;
        for side in [&mut self.reference, &mut self.subject] {
            side.advance(ns);
            side.look();
        }
    }

    /// Compares the vCPUs, and what was written if that is recorded.
    fn compare(&mut self, written: bool) -> Result<(), Vec<String>> {
        let subject = self.subject.look();
        let reference = self.reference.look();
        let mut lines = match reference == subject {
            true => Vec::new(),
            false => differences(reference, &flags::overlooked(reference, subject)),
        };
        if written {
            lines.extend(self.compare_written());
        }
        if lines.is_empty() { Ok(()) } else { Err(lines) }
    }

    /// Makes a page of code stale that was executed lately.
    fn disturb(&mut self, step: &Step) {
        let Some(choice) = step.stale else { return };
        let state = &self.reference.state;
        if let Some(page) = physical(self.reference.machine.ram(), state, state.general.rip) {
            match self.pages.len() < PAGES {
                true => self.pages.push(page),
                false => self.pages[choice as usize % PAGES] = page,
            }
        }
        if let Some(page) = self.pages.get((choice >> 32) as usize % self.pages.len().max(1)) {
            for side in [&self.reference, &self.subject] {
                side.touch(*page);
            }
        }
    }

    /// Records from now on which pages are written.
    fn track_dirty(&self) {
        for side in [&self.reference, &self.subject] {
            side.machine.ram().track_dirty(DirtyConsumer::Migration, true);
        }
    }

    /// Differences in the pages that either side has written lately.
    fn compare_written(&self) -> Vec<String> {
        let (a, b) = (self.reference.machine.ram(), self.subject.machine.ram());
        let mut pages = a.dirty_pages(DirtyConsumer::Migration);
        pages.extend(b.dirty_pages(DirtyConsumer::Migration));
        pages.sort_unstable();
        pages.dedup();
        let page = |ram: &GuestRam, index: usize| {
            let mut bytes = vec![0; PAGE];
            let offset = memory::RamOffset((index * PAGE) as u64);
            let gpa = ram.gpa_of(offset).unwrap_or_default();
            ram.read(gpa, &mut bytes).expect("a page of RAM");
            (gpa.0, bytes)
        };
        let differing = pages.into_iter().filter_map(|index| {
            let ((gpa, a), (_, b)) = (page(a, index), page(b, index));
            memory_difference(gpa, &a, &b).map(|(_, line)| line)
        });
        differing.take(SHOWN_PAGES).collect()
    }

    /// Differences in all of memory.
    fn compare_memory(&self) -> Vec<String> {
        self.memory_differences().map(|(_, line)| line).take(SHOWN_PAGES).collect()
    }

    /// The first address in all of memory where the sides differ, and how.
    fn first_difference(&self) -> Option<(u64, String)> {
        self.memory_differences().next()
    }

    /// Address and text of the first difference in each page.
    fn memory_differences(&self) -> impl Iterator<Item = (u64, String)> {
        let (a, b) = (self.reference.machine.ram(), self.subject.machine.ram());
        chunks(a).flat_map(move |at| {
            let (a, b) = (read(a, at), read(b, at));
            let pages = if a == b { 0 } else { a.len() / PAGE };
            (0..pages).filter_map(move |index| {
                let page = index * PAGE..(index + 1) * PAGE;
                memory_difference(at + page.start as u64, &a[page.clone()], &b[page])
            })
        })
    }
}

/// The first quadword in which two pages at `gpa` differ, and how.
fn memory_difference(gpa: u64, a: &[u8], b: &[u8]) -> Option<(u64, String)> {
    let quadwords = a.chunks(8).zip(b.chunks(8)).enumerate();
    let (index, (a, b)) = quadwords
        .filter(|(_, (a, b))| a != b)
        .find(|(_, (a, b))| !flags::differ_undefined(flags::quadword(a), flags::quadword(b)))?;
    let at = Gpa(gpa + index as u64 * 8);
    let text = format!("memory at {at:#x}: {a:02x?} in the reference, {b:02x?} in the subject");
    Some((at.0, text))
}
