//! Checks generated code before it is run: the safety argument of docs/translator.md, by machine.
//!
//! In debug builds, and in tests, every block is decoded again and walked from its beginning to its
//! end, with what is known about each register ([`values`]). Each instruction must be of the
//! allow-list and each memory operand of one of these forms:
//!
//! - `[rsp + field]`: a field of the [`Context`](crate::context::Context) that blocks use, written
//!   only if it is theirs to write;
//! - `[r15 + field]` and `[r15 + r9 * 8 + field]`: a mask or an entry of the tables, with an index
//!   that PEXT or PDEP has made with the table's mask;
//! - `[register + r9 + displacement]`: guest memory, inside the range that a check has been passed
//!   for, by the same or an earlier access of the block, and written only if that was checked.
//!
//! What has been checked is known of *values*: "the value that RBX had at the block's beginning,
//! plus 16". It is lost when the register is written by anything but an addition of a constant.
//! Values of the VMM (addends, tags, addresses) must not get where the guest can see them.
//!
//! All jumps inside a block go forward, so that one walk suffices. Code can also be entered at the
//! block's two entries, behind instructions that the interpreter has executed, and where an
//! instruction is begun anew; the records say where.
//!
//! Neighbours: `crate::vcpu` calls [`demand`] for each block. The stubs (`crate::glue`,
//! `crate::strings`) are not checked: they do not depend on the guest's code.

mod instructions;
#[cfg(test)]
mod tests;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use iced_x86::{
    Code, ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory,
    Mnemonic, OpKind, Register,
};

use crate::glue::Glue;
use crate::records::Record;
use crate::registers::{HOST_RCX_OF_GUEST, HOST_RSP_OF_GUEST};
use values::{Numbers, SCRATCH, State, Value, WORDS, divisor};

/// A block before it is put into the code cache.
#[derive(Clone, Copy)]
pub(crate) struct Candidate<'a> {
    pub(crate) host: &'a [u8],
    /// Host address that it is made for.
    pub(crate) base: u64,
    /// Offset of its second entry.
    pub(crate) body: usize,
    pub(crate) records: &'a [Record],
    /// Number of the first of them.
    pub(crate) first_record: u32,
    pub(crate) glue: &'a Glue,
}

/// Why a block must not run.
#[derive(Debug, thiserror::Error)]
#[error("translated block breaks the rules at {at:#x}: {rule}")]
pub(crate) struct Violation {
    /// Offset in the block.
    pub(crate) at: usize,
    pub(crate) rule: String,
}

/// Panics, with the block's code, when it breaks a rule.
pub(crate) fn demand(candidate: &Candidate<'_>) {
    if let Err(violation) = check(candidate) {
        panic!("{violation}\n{}", listing(candidate, violation.at));
    }
}

/// Checks a block.
///
/// # Errors
/// The first [`Violation`].
pub(crate) fn check(candidate: &Candidate<'_>) -> Result<(), Violation> {
    let mut walk = Walk::new(candidate);
    match walk.all() {
        Ok(()) => Ok(()),
        Err(rule) => Err(Violation { at: walk.at, rule }),
    }
}

/// The rule that an instruction breaks.
type Rule = Result<(), String>;

fn broken<T>(rule: impl Into<String>) -> Result<T, String> {
    Err(rule.into())
}

/// What had been known where the present instruction of the guest can be begun anew.
struct Retry {
    at: usize,
    state: State,
    /// Words that have been read since, and not written before that.
    relied_on: [bool; WORDS],
}

struct Walk<'a> {
    candidate: &'a Candidate<'a>,
    info: InstructionInfoFactory,
    numbers: Numbers,
    /// `None` behind a jump.
    state: Option<State>,
    /// Offset of the present instruction, and of the one before.
    at: usize,
    before: usize,
    /// What is known at places ahead that have been jumped to.
    jumps: BTreeMap<usize, State>,
    /// Places ahead where the interpreter lets code go on; whether vectors are loaded there.
    resumes: BTreeMap<usize, bool>,
    retries: BTreeSet<usize>,
    retry: Option<Retry>,
}

impl<'a> Walk<'a> {
    fn new(candidate: &'a Candidate<'a>) -> Self {
        let base = candidate.base;
        let retries = candidate.records.iter().map(|r| r.retry.wrapping_sub(base) as usize);
        Self {
            candidate,
            info: InstructionInfoFactory::new(),
            numbers: Numbers::default(),
            state: None,
            at: 0,
            before: 0,
            jumps: BTreeMap::new(),
            resumes: BTreeMap::new(),
            retries: retries.collect(),
            retry: None,
        }
    }

    fn all(&mut self) -> Rule {
        let Candidate { host, base, .. } = *self.candidate;
        self.records_lie_inside()?;
        let mut decoder = Decoder::with_ip(64, host, base, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        while self.at < host.len() {
            self.arrive()?;
            if decoder.set_position(self.at).is_err() {
                return broken("the block ends inside an instruction");
            }
            decoder.set_ip(base + self.at as u64);
            decoder.decode_out(&mut instruction);
            if instruction.is_invalid() {
                return broken("not an instruction");
            }
            let next = self.at + instruction.len();
            let record = self.step(&instruction)?;
            self.before = self.at;
            self.at = next + if record { 4 } else { 0 };
        }
        let left = self.jumps.keys().chain(self.resumes.keys()).next();
        match (left, &self.state) {
            (Some(target), _) => broken(format!("{target:#x} is not an instruction's beginning")),
            (None, Some(_)) => broken("the block's end is reached"),
            (None, None) if self.at != host.len() => broken("the last record is cut off"),
            (None, None) => Ok(()),
        }
    }

    fn records_lie_inside(&self) -> Rule {
        let Candidate { host, base, records, .. } = *self.candidate;
        let inside = |address: u64| address.wrapping_sub(base) < host.len() as u64;
        for record in records {
            if !inside(record.retry) || record.resume != 0 && !inside(record.resume) {
                return broken("a record leads out of the block");
            }
        }
        Ok(())
    }

    /// Merges what is known at the present place, by all the ways to it.
    fn arrive(&mut self) -> Rule {
        let at = self.at;
        if let Some(jumped) = self.jumps.remove(&at) {
            self.merge(jumped)?;
        }
        if let Some(vectors) = self.resumes.remove(&at) {
            self.resume(vectors)?;
        }
        if at == 0 || at == self.candidate.body {
            let entry = State::entry(&mut self.numbers);
            self.merge(entry)?;
        }
        if self.retries.remove(&at)
            && let Some(state) = &mut self.state
        {
            state.forget_scratch();
            let state = state.clone();
            self.retry = Some(Retry { at, state, relied_on: [false; WORDS] });
        }
        if self.state.is_none() { broken("nothing leads here") } else { Ok(()) }
    }

    fn merge(&mut self, other: State) -> Rule {
        match &mut self.state {
            None => self.state = Some(other),
            Some(state) => {
                let stack = (state.pushed, state.tables_changed);
                if stack != (other.pushed, other.tables_changed) {
                    return broken("two ways meet here with different stacks or tables");
                }
                state.meet(&other, &mut self.numbers);
            }
        }
        Ok(())
    }

    /// The interpreter has executed what stands in the guest's memory: nothing else is known.
    fn resume(&mut self, vectors: bool) -> Rule {
        let state = State { vectors, ..State::entry(&mut self.numbers) };
        self.merge(state)
    }

    /// One instruction; whether a record's number follows it.
    fn step(&mut self, i: &Instruction) -> Result<bool, String> {
        if i.has_segment_prefix() {
            return broken("a segment prefix");
        }
        if i.is_ip_rel_memory_operand() {
            return broken("a memory operand relative to RIP");
        }
        let Some(state) = &mut self.state else { return broken("nothing leads here") };
        let compared = state.compared.take();
        if state.pushed && !may_stand_between_pushes(i) {
            return broken("not while the flags are on the stack");
        }
        if state.tables_changed && !instructions::tells_tables(i) {
            return broken("the context has to be told about R15 first");
        }
        match i.flow_control() {
            FlowControl::Call => return self.call(i),
            FlowControl::UnconditionalBranch => self.jump(i)?,
            FlowControl::IndirectBranch => self.jump_found(i)?,
            FlowControl::ConditionalBranch => self.branch(i, compared)?,
            FlowControl::Next => self.straight(i)?,
            _ => return broken("a control transfer that blocks do not have"),
        }
        Ok(false)
    }

    fn present(&mut self) -> &mut State {
        self.state.as_mut().expect("`step` has looked")
    }

    /// Offset in the block of a near branch's target, which lies ahead.
    fn target(&self, i: &Instruction) -> Result<usize, String> {
        let offset = i.near_branch_target().wrapping_sub(self.candidate.base) as usize;
        if i.op0_kind() != OpKind::NearBranch64 || offset >= self.candidate.host.len() {
            return broken("a jump out of the block");
        }
        if offset <= self.at { broken("a jump backward") } else { Ok(offset) }
    }

    fn leads_to(&mut self, target: usize, state: State) -> Rule {
        let merged = match self.jumps.remove(&target) {
            None => state,
            Some(mut other) => {
                if (other.pushed, other.tables_changed) != (state.pushed, state.tables_changed) {
                    return broken("jumps meet with different stacks or tables");
                }
                other.meet(&state, &mut self.numbers);
                other
            }
        };
        self.jumps.insert(target, merged);
        Ok(())
    }

    fn jump(&mut self, i: &Instruction) -> Rule {
        let target = self.target(i)?;
        match self.state.take() {
            Some(state) => self.leads_to(target, state),
            None => Ok(()),
        }
    }

    /// A jump to the block of a jump entry.
    fn jump_found(&mut self, i: &Instruction) -> Rule {
        let Some(state) = self.state.take() else { return broken("nothing leads here") };
        let Value::JumpIndex(target) = state.registers[9] else {
            return broken("an indirect jump without a jump entry");
        };
        if i.code() != Code::Jmp_rm64 || !instructions::is_table(i, crate::context::at::JUMP_HOST) {
            return broken("an indirect jump to something else than a jump entry's block");
        }
        if state.found != Some(target) {
            return broken("a jump by an entry that may be another target's");
        }
        if state.page != Some(target) {
            return broken("a jump without the target's page");
        }
        Ok(())
    }

    /// A conditional jump, and what it tells.
    fn branch(&mut self, i: &Instruction, compared: Option<bool>) -> Rule {
        let target = self.target(i)?;
        let mut taken = self.present().clone();
        if i.code() == Code::Jrcxz_rel8_64 {
            let value = taken.registers[1];
            let divisor_value = taken.registers[8];
            match value {
                Value::Verdict(range) => taken.passed = Some(range),
                Value::JumpVerdict(target) => taken.found = Some(target),
                Value::VectorsMissing => taken.vectors = true,
                Value::SignVerdict(low, high, wide) => {
                    let now = [taken.registers[0].address(), taken.registers[2].address()];
                    if now == [Some(low), Some(high)] {
                        taken.divisor |= if wide { divisor::SIGN_64 } else { divisor::SIGN_32 };
                    }
                }
                other if other.is_harmless() => {}
                _ => return broken("JRCXZ looks at a value that is not the guest's"),
            }
            taken.registers[1] = Value::Void;
            let state = self.present();
            if value.is_harmless() && Some(value) == divisor_value.plus(0) {
                state.divisor |= divisor::NOT_ZERO;
            }
            if value.is_harmless() && Some(value) == divisor_value.plus(1) {
                state.divisor |= divisor::NOT_MINUS_ONE;
            }
            state.registers[1] = Value::Void;
        } else if !i.is_jcc_short_or_near() {
            return broken("a conditional jump that blocks do not have");
        } else if let Some(wide) = compared
            && i.condition_code() == ConditionCode::b
        {
            taken.divisor |= if wide { divisor::ABOVE_64 } else { divisor::ABOVE_32 };
        }
        self.leads_to(target, taken)
    }

    /// A call of a stub.
    fn call(&mut self, i: &Instruction) -> Result<bool, String> {
        if i.op0_kind() != OpKind::NearBranch64 {
            return broken("a call of something that is not a stub");
        }
        let (target, glue) = (i.near_branch_target(), self.candidate.glue);
        if target == glue.flags_image {
            let image = self.numbers.fresh();
            let state = self.present();
            state.forget_scratch();
            state.registers[1] = image;
            return Ok(false);
        }
        if glue.is_rep_movs(target) || glue.is_rep_stos(target) {
            return self.call_string(glue.is_rep_movs(target)).map(|()| false);
        }
        let record = self.record_behind(i)?;
        if [glue.miss, glue.jump].contains(&target) {
            self.may_begin_anew(&record)?;
        }
        let ends = [glue.interpret, glue.miss, glue.chain, glue.poll, glue.syscall, glue.sysret];
        if ends.contains(&target) {
            self.may_resume(&record)?;
            self.state = None;
        } else if target == glue.jump {
            self.may_resume(&record)?;
            self.second_entry()?;
        } else if target == glue.popf {
            self.may_resume(&record)?;
            let state = self.present();
            state.forget_scratch();
            let rsp = &mut state.registers[usize::from(HOST_RSP_OF_GUEST)];
            *rsp = rsp.plus(8).unwrap_or(Value::Void);
        } else if target == glue.popf32 {
            self.may_resume(&record)?;
            let rsp = self.numbers.fresh();
            let state = self.present();
            state.forget_scratch();
            state.registers[usize::from(HOST_RSP_OF_GUEST)] = rsp;
        } else if target == glue.load_vectors {
            self.may_resume(&record)?;
            let state = self.present();
            state.forget_scratch();
            state.vectors = true;
        } else {
            return broken("a call of something that is not a stub");
        }
        Ok(true)
    }

    /// The stub comes back with the index of the target's second entry, if that matches.
    fn second_entry(&mut self) -> Rule {
        let state = self.present();
        let (target, index) = (state.registers[8], state.registers[9]);
        let Value::JumpIndex(at) = index else {
            return broken("a search for a jump's target without an entry");
        };
        if target.address() != Some(at) {
            return broken("a search for another target");
        }
        state.forget_scratch();
        state.registers[9] = index;
        state.found = Some(at);
        Ok(())
    }

    /// REP MOVS or else REP STOS, with the record's number in R8.
    fn call_string(&mut self, movs: bool) -> Rule {
        let state = self.present();
        let Value::Constant(number) = state.registers[8] else {
            return broken("a string instruction without a record");
        };
        state.forget_scratch();
        state.words[..2].fill(Value::Void);
        let record = self.record(number as u32)?;
        // It is begun anew with RCX, RSI and RDI changed: nothing may lie between.
        if self.retry.as_ref().is_none_or(|retry| retry.at != self.before) {
            return broken("a string instruction that would not be begun anew at once");
        }
        self.may_resume(&record)?;
        const RSI: usize = 6;
        const RDI: usize = 7;
        let changed = [usize::from(HOST_RCX_OF_GUEST), RDI, RSI];
        for &register in &changed[..if movs { 3 } else { 2 }] {
            let fresh = self.numbers.fresh();
            self.present().registers[register] = fresh;
        }
        Ok(())
    }

    /// The record whose number stands behind a call.
    fn record_behind(&self, i: &Instruction) -> Result<Record, String> {
        let at = self.at + i.len();
        match self.candidate.host.get(at..at + 4).map(<[u8; 4]>::try_from) {
            Some(Ok(number)) => self.record(u32::from_le_bytes(number)),
            _ => broken("a call of an exit without a record"),
        }
    }

    fn record(&self, number: u32) -> Result<Record, String> {
        let index = number.wrapping_sub(self.candidate.first_record) as usize;
        match self.candidate.records.get(index) {
            Some(record) => Ok(*record),
            None => broken("a record of another block"),
        }
    }

    /// The code behind the record's instruction may be entered.
    fn may_resume(&mut self, record: &Record) -> Rule {
        if record.resume == 0 {
            return Ok(());
        }
        let target = record.resume.wrapping_sub(self.candidate.base) as usize;
        if target <= self.at {
            return broken("an exit resumes before itself");
        }
        let vectors = self.present().vectors;
        self.resumes.entry(target).and_modify(|known| *known &= vectors).or_insert(vectors);
        Ok(())
    }

    /// The record's instruction may be begun anew: nothing that is known there has changed since.
    fn may_begin_anew(&mut self, record: &Record) -> Rule {
        let target = record.retry.wrapping_sub(self.candidate.base) as usize;
        let (Some(retry), Some(now)) = (&self.retry, &self.state) else {
            return broken("an exit that cannot be begun anew");
        };
        if retry.at != target {
            return broken("an exit that begins another instruction anew");
        }
        if target == 0 {
            // Nothing is known at the entry.
            return Ok(());
        }
        let then = &retry.state;
        let same = |i: usize| SCRATCH.contains(&i) || then.registers[i] == now.registers[i];
        if !(0..15).all(same) || then.slots != now.slots || now.pushed {
            return broken("an instruction begun anew has had an effect already");
        }
        let kept = |i: usize| !retry.relied_on[i] || then.words[i] == now.words[i];
        if !(0..WORDS).all(kept) || then.vectors && !now.vectors {
            return broken("an instruction begun anew relies on what it has overwritten");
        }
        Ok(())
    }
}

/// Instructions between PUSHFQ and POPFQ: they do not use the stack pointer.
fn may_stand_between_pushes(i: &Instruction) -> bool {
    let registers = (0..i.op_count()).all(|operand| i.op_kind(operand) == OpKind::Register);
    i.mnemonic() == Mnemonic::Popfq
        || i.mnemonic() == Mnemonic::Cmp && registers
        || i.is_jcc_short_or_near()
}

/// The block's code, for the message of a panic.
fn listing(candidate: &Candidate<'_>, violation: usize) -> String {
    let mut text = String::new();
    let mut at = 0;
    while let Some(rest) = candidate.host.get(at..).filter(|rest| !rest.is_empty()) {
        let ip = candidate.base + at as u64;
        let i = Decoder::with_ip(64, rest, ip, DecoderOptions::NONE).decode();
        let mark = if at == violation { ">" } else { " " };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{mark} {at:5x}  {i}");
        let skips =
            i.is_call_near() && is_followed_by_record(i.near_branch_target(), candidate.glue);
        at += i.len().max(1) + if skips { 4 } else { 0 };
    }
    text
}

/// Whether a record's number follows a call of the stub `target`.
pub(crate) fn is_followed_by_record(target: u64, glue: &Glue) -> bool {
    let plain = glue.flags_image == target || glue.is_rep_movs(target) || glue.is_rep_stos(target);
    !plain
}

/// RSP and R15 are the VMM's.
fn is_reserved(register: Register) -> bool {
    matches!(register.full_register(), Register::RSP | Register::R15)
}
