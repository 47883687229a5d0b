//! Which accesses of a block share a check.
//!
//! Accesses by the same base register, while it does not change, with displacements close to each
//! other mostly lie in one page. The first of them then checks the whole range and keeps its
//! host address; the others only use that. If one of them writes, it asks for the right to
//! write, which the tables only have of pages that are dirty already; to get it there is the
//! business of an access that does write. When the range does not pass, the rest of the block runs
//! as translated without groups.
//!
//! RSP is followed through PUSH, POP and additions of constants.

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use smallvec::{SmallVec, smallvec};

use crate::allow::{Access, Class, System, atomic_alignment};
use crate::context::GROUPS;

/// Longest range of addresses that one check covers, in bytes: the longer, the more often it
/// crosses a page's end.
const LONGEST_RANGE: i64 = 256;
/// In ranges longer than `NEAR`, pointers stand `BIAS` bytes from the beginning, so that most
/// distances have 8 bits.
const NEAR: i64 = 128;
const BIAS: i64 = 120;
const RSP: u8 = 4;
const RBP: u8 = 5;

/// An instruction of the block, before it is translated.
pub(crate) struct Planned {
    pub(crate) instruction: Instruction,
    pub(crate) class: Class,
    /// How its explicit memory operand and its stack slot are checked.
    pub(crate) operand: Use,
    pub(crate) stack: Use,
    /// A group has begun and does not end with it: what follows relies on registers being as the
    /// translated instruction leaves them. The interpreter would execute what stands in memory by
    /// then, which a device may have changed.
    pub(crate) group_goes_on: bool,
}

impl Planned {
    /// Whether an access of it shares a check with others.
    pub(crate) fn is_in_group(&self) -> bool {
        self.operand != Use::Single || self.stack != Use::Single
    }
}

/// How an access is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// By itself.
    Single,
    /// It checks the range from `low` bytes beyond the base register for its group, and keeps the
    /// range's host address plus `bias` as `kept` says. `writes` tells that some access of the
    /// group does.
    First { low: i32, len: u16, writes: bool, bias: i32, kept: Pointer },
    /// It uses what the group's first access has kept.
    Later(Pointer),
}

impl Use {
    /// The group's pointer that the access uses.
    pub(crate) fn kept(self) -> Option<Pointer> {
        match self {
            Self::Single => None,
            Self::First { kept, .. } | Self::Later(kept) => Some(kept),
        }
    }
}

/// A group's pointer, as one access uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pointer {
    /// Slot of the context that it is in.
    pub(crate) slot: u8,
    /// Where the access is, from there.
    pub(crate) distance: i32,
    /// Instruction of the block with the group's next access; behind all blocks when there is none.
    pub(crate) next: u16,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Operand,
    Stack,
}

/// An access of a group: instruction, part, whether it writes, how far the base register has
/// moved since the group began, and where the access is, from where that was then.
struct Member {
    at: usize,
    part: Part,
    write: bool,
    moved: i64,
    from: i64,
}

struct Group {
    low: i64,
    high: i64,
    members: SmallVec<[Member; 2]>,
}

/// The groups being formed, one per base register, and how far that has moved since.
#[derive(Default)]
struct Forming {
    open: [Option<Group>; 16],
    moved: [i64; 16],
    closed: Vec<Group>,
    /// Bytes of a stack slot.
    word: i64,
}

/// Finds the groups of a block; a stack slot has `word` bytes.
pub(crate) fn plan(block: &mut [Planned], info: &mut InstructionInfoFactory, word: u16) {
    let mut forming = Forming { word: i64::from(word), ..Forming::default() };
    for (at, planned) in block.iter().enumerate() {
        forming.instruction(at, planned, info);
    }
    forming.close_all();
    forming.closed.retain(|group| group.members.len() > 1);
    forming.closed.sort_by_key(|group| group.members[0].at);
    let mut busy_until = [0; GROUPS];
    for group in &forming.closed {
        let (first, last) = (group.members[0].at, group.members[group.members.len() - 1].at);
        let Some(slot) = busy_until.iter().position(|until| *until <= first) else { continue };
        busy_until[slot] = last + 1;
        assign(block, group, slot as u8);
        block[first..last].iter_mut().for_each(|planned| planned.group_goes_on = true);
    }
}

fn assign(block: &mut [Planned], group: &Group, slot: u8) {
    let writes = group.members.iter().any(|member| member.write);
    let len = group.high - group.low;
    let bias = if len > NEAR { BIAS } else { 0 };
    for (number, member) in group.members.iter().enumerate() {
        let kept = Pointer {
            slot,
            distance: (member.from - group.low - bias) as i32,
            next: group.members.get(number + 1).map_or(u16::MAX, |next| next.at as u16),
        };
        let how = if number == 0 {
            let low = (group.low - member.moved) as i32;
            Use::First { low, len: len as u16, writes, bias: bias as i32, kept }
        } else {
            Use::Later(kept)
        };
        match member.part {
            Part::Operand => block[member.at].operand = how,
            Part::Stack => block[member.at].stack = how,
        }
    }
}

impl Forming {
    fn instruction(&mut self, at: usize, planned: &Planned, info: &mut InstructionInfoFactory) {
        let Planned { instruction, class, .. } = planned;
        if matches!(
            class,
            Class::Interpret | Class::System(System::Stac | System::Clac) | Class::Nothing
        ) {
            if *class != Class::Nothing {
                self.close_all();
            }
            return;
        }
        if let Some((base, displacement, size, write)) = operand(instruction, *class, self.word) {
            self.access(at, Part::Operand, base, displacement, size, write);
        }
        match class {
            Class::Push | Class::Call | Class::System(System::Pushf) => {
                self.access(at, Part::Stack, RSP, -self.word, self.word, true);
            }
            Class::Pop | Class::Ret | Class::System(System::Popf) => {
                self.access(at, Part::Stack, RSP, 0, self.word, false);
            }
            Class::Leave => self.access(at, Part::Stack, RBP, 0, self.word, false),
            _ => {}
        }
        if let Some(distance) = moves_rsp(instruction, *class, self.word) {
            self.moved[usize::from(RSP)] += distance;
            if *class == Class::Pop {
                self.close(instruction.op0_register().full_register().number());
            }
            return;
        }
        for register in info.info(instruction).used_registers() {
            let full = register.register().full_register();
            let read = matches!(register.access(), OpAccess::Read | OpAccess::CondRead);
            if full.is_gpr() && !read && register.access() != OpAccess::None {
                self.close(full.number());
            }
        }
    }

    fn access(
        &mut self,
        at: usize,
        part: Part,
        base: u8,
        displacement: i64,
        size: i64,
        write: bool,
    ) {
        let index = usize::from(base);
        if self.open[index].is_none() {
            self.moved[index] = 0;
        }
        let moved = self.moved[index];
        let (low, high) = (moved + displacement, moved + displacement + size);
        let member = |moved| Member { at, part, write, moved, from: moved + displacement };
        if let Some(group) = &mut self.open[index] {
            let (new_low, new_high) = (group.low.min(low), group.high.max(high));
            if new_high - new_low <= LONGEST_RANGE {
                (group.low, group.high) = (new_low, new_high);
                group.members.push(member(moved));
                return;
            }
            self.close(index);
            self.moved[index] = 0;
        }
        let moved = self.moved[index];
        self.open[index] = Some(Group {
            low: moved + displacement,
            high: moved + displacement + size,
            members: smallvec![member(moved)],
        });
    }

    fn close(&mut self, register: usize) {
        if let Some(group) = self.open.get_mut(register).and_then(Option::take) {
            self.closed.push(group);
        }
    }

    fn close_all(&mut self) {
        for register in 0..16 {
            self.close(register);
        }
    }
}

/// The explicit memory operand of an instruction, when it can be in a group: base register,
/// displacement, bytes and whether it is written.
fn operand(instruction: &Instruction, class: Class, word: i64) -> Option<(u8, i64, i64, bool)> {
    let has_memory = (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory);
    let base = instruction.memory_base();
    let groups = has_memory
        && base.is_gpr64()
        && instruction.memory_index() == Register::None
        && !matches!(instruction.segment_prefix(), Register::FS | Register::GS);
    if !groups {
        return None;
    }
    let (size, write) = match class {
        // A group's check does not look at alignment.
        Class::General(_) if atomic_alignment(instruction) > 1 => return None,
        Class::General(access) => (instruction.memory_size().size(), access == Access::Write),
        Class::Vector => {
            if hostexec::alignment_required(instruction).is_some() {
                return None;
            }
            let operand = hostexec::memory_operand(instruction);
            (operand.size.max(1), operand.write)
        }
        Class::Div => (instruction.memory_size().size(), false),
        Class::Push | Class::Call | Class::Jmp => (word as usize, false),
        _ => return None,
    };
    let displacement = i64::from(i32::try_from(instruction.memory_displacement64() as i64).ok()?);
    // Far from the base they would not share a page with anything.
    let near = displacement.abs() < i64::from(i32::MAX) / 2;
    near.then_some((base.number() as u8, displacement, size as i64, write))
}

/// How far an instruction moves RSP, when it changes it by a constant; what else it writes is only
/// the target of POP.
fn moves_rsp(instruction: &Instruction, class: Class, word: i64) -> Option<i64> {
    let to_rsp = instruction.op_count() > 0
        && instruction.op0_kind() == OpKind::Register
        && instruction.op0_register() == if word == 4 { Register::ESP } else { Register::RSP };
    match class {
        Class::Push | Class::System(System::Pushf) => Some(-word),
        Class::Pop if to_rsp => None,
        Class::Pop | Class::System(System::Popf) => Some(word),
        Class::General(_) if to_rsp => {
            let distance = instruction.try_immediate(1).ok()? as i64;
            match instruction.mnemonic() {
                Mnemonic::Add => Some(distance),
                Mnemonic::Sub => distance.checked_neg(),
                _ => None,
            }
            .filter(|distance| distance.abs() < 1 << 20)
        }
        _ => None,
    }
}
