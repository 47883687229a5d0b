//! Lockstep with a subject that runs freely.

use std::time::{Duration, Instant};

use engine::VcpuExit;
use interpreter::{CARRIED_FLAGS, Registers};
use memory::Gpa;
use oracle::random::Random;

use super::pursuit::{Chase, Pursuit};
use super::report::differences;
use super::side::{Side, Stop};
use super::{Divergence, IDLE_EVENTS, Lockstep, Pair, Plan, Step, Summary, flags};

/// Instructions within which the reference must come to where the subject was kicked: more than a
/// host executes while it is so loaded that it does not get round to kicking.
const FOLLOWS_WITHIN: u64 = 5_000_000_000;
/// How long the subject runs at least.
const KICK: Duration = Duration::from_micros(40);

impl Lockstep<'_> {
    /// Lets the subject run without counting until it is kicked, and the interpreter follow, again
    /// and again, until the plan's time is over. Kicks come by the host's clock: what is found this
    /// way comes up again soon, but not at once.
    ///
    /// # Errors
    /// The first [`Divergence`], where it was seen.
    ///
    /// # Panics
    /// As [`Lockstep::run`].
    pub fn run_freely(&self, plan: &Plan) -> Result<Summary, Box<Divergence>> {
        let pursuit = Pursuit::default();
        let start = self.skipped(plan);
        let mut pair = self.pair_with(&pursuit, start.as_ref(), KICK);
        let before = pair.subject.console.text().len();
        let begun = Instant::now();
        let mut segment = 0;
        let mut end = None;
        while end.is_none() && !plan.is_over(begun, pair.retired) {
            end = pair.segment(plan, segment, &pursuit).map_err(|differences| {
                let executed = Vec::new();
                Divergence { step: segment, memory_equal_at: None, differences, executed }
            })?;
            segment += 1;
        }
        Ok(Summary {
            instructions: pair.retired,
            steps: segment,
            aligned: 0,
            end,
            console: pair.subject.console.text().split_off(before),
            counters: pair.subject.vcpu.stats().counters,
        })
    }
}

impl Pair {
    /// From one kick to the next. Gives how both machines ended, if they did.
    fn segment(
        &mut self,
        plan: &Plan,
        number: u64,
        pursuit: &Pursuit,
    ) -> Result<Option<VcpuExit>, Vec<String>> {
        let stop = self.subject.go_freely(&self.pulse);
        if let Stop::End(exit) = stop {
            return self.follow_to_end(exit, pursuit);
        }
        self.subject.look();
        let executed = self.follow(pursuit)?;
        self.retired += executed;
        let mut random = Random::new(plan.seed, number);
        let jump = if random.one_in(4) { random.below(5_000_000) } else { 0 };
        let stale = (plan.disturb && random.one_in(4)).then(|| random.next());
        let sleep = match stop {
            Stop::Halted => self.reference.next_event().unwrap_or(1_000_000) + 1,
            _ => 0,
        };
        self.idle = if sleep == 0 { 0 } else { self.idle + 1 };
        if self.idle > IDLE_EVENTS {
            return Ok(Some(VcpuExit::Paused));
        }
        // Whatever the guest has executed took a nanosecond for each instruction.
        let passes = executed + jump + sleep;
        self.pass(&Step { instructions: executed, passes, stale, random });
        Ok(None)
    }

    /// Lets the reference come to the subject's state; gives how many instructions that took.
    ///
    /// A loop may come by the same registers in every turn: then memory, or other state, tells in
    /// which turn the subject is.
    fn follow(&mut self, pursuit: &Pursuit) -> Result<u64, Vec<String>> {
        let target = registers(&self.subject);
        pursuit.with(|chase| {
            *chase = Chase { target: Some(target), left: FOLLOWS_WITHIN, ..Chase::default() };
        });
        // What differed when the registers were equal first, and where memory did last.
        let mut first = None;
        let mut differing = None;
        let result = loop {
            let stop = self.reference.go(&self.pulse);
            if stop == Stop::Halted && self.compare(false).is_ok() {
                break Ok(pursuit.with(|chase| chase.executed));
            }
            let chase = pursuit.with(|chase| chase.clone());
            if stop != Stop::Spent || !chase.reached {
                break Err(first.unwrap_or_else(|| self.lost(&chase, &stop)));
            }
            let other_turn = differing.is_some_and(|at| self.differs_at(at));
            let found = if other_turn { Err(Vec::new()) } else { self.compare(false) };
            let found = found.and_then(|()| match self.first_difference() {
                None => Ok(()),
                Some((at, line)) => {
                    differing = Some(at);
                    Err(vec![line])
                }
            });
            match found {
                Ok(()) => break Ok(chase.executed),
                Err(lines) if chase.left == 0 => break Err(first.unwrap_or(lines)),
                Err(lines) => {
                    first.get_or_insert(lines);
                    self.step_on(pursuit);
                }
            }
        };
        pursuit.with(|chase| chase.target = None);
        result
    }

    /// Whether memory differs in the quadword at `gpa`.
    fn differs_at(&self, gpa: u64) -> bool {
        let [a, b] = [&self.reference, &self.subject].map(|side| {
            let mut bytes = [0; 8];
            side.machine.ram().read(Gpa(gpa), &mut bytes).expect("an address of RAM");
            u64::from_le_bytes(bytes)
        });
        a != b && !flags::differ_undefined(a, b)
    }

    /// Takes the reference past registers that are the target's by chance.
    fn step_on(&mut self, pursuit: &Pursuit) {
        let target = pursuit.with(|chase| chase.target.take());
        self.reference.vcpu.set_budget(Some(1));
        // Whatever stops it stops it again.
        self.reference.go(&self.pulse);
        pursuit.with(|chase| {
            chase.target = target;
            chase.left = chase.left.saturating_sub(1);
            chase.executed += 1;
        });
    }

    /// What to say when the reference did not come by.
    fn lost(&mut self, chase: &Chase, stop: &Stop) -> Vec<String> {
        let mut lines = vec![format!(
            "the subject was kicked at {:#x}; the reference did not come to these registers within \
             {} instructions ({stop:?})",
            self.subject.state.general.rip, chase.executed
        )];
        match &chase.closest {
            Some((_, closest)) => {
                lines.push("where it came closest:".to_owned());
                let mut state = self.subject.state.clone();
                (state.general.gpr, state.general.rip) = (closest.gpr, closest.rip);
                state.general.rflags = state.general.rflags & !CARRIED_FLAGS | closest.flags;
                lines.extend(differences(&state, &self.subject.state));
            }
            None => lines.push("it did not even come close to them there".to_owned()),
        }
        lines
    }

    /// The subject's machine has ended: so must the reference's.
    fn follow_to_end(
        &mut self,
        exit: VcpuExit,
        pursuit: &Pursuit,
    ) -> Result<Option<VcpuExit>, Vec<String>> {
        pursuit.with(|chase| chase.target = None);
        self.reference.vcpu.set_budget(Some(FOLLOWS_WITHIN));
        match self.reference.go(&self.pulse) {
            Stop::End(other) if other == exit => self.compare(false).map(|()| Some(exit)),
            other => Err(vec![format!("the subject ends with {exit:?}, the reference: {other:?}")]),
        }
    }
}

/// The registers that a chase is for.
fn registers(side: &Side) -> Registers {
    let general = &side.state.general;
    Registers { gpr: general.gpr, rip: general.rip, flags: general.rflags & CARRIED_FLAGS }
}
