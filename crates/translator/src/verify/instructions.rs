//! The instructions of blocks that go straight on: what they may access, and what they do to what
//! is known.

use iced_x86::{Code, Instruction, Mnemonic, OpAccess, OpKind, Register, UsedRegister};

use super::values::{Address, Range, SCRATCH, State, Value, divisor};
use super::{Rule, Walk, broken, is_reserved};
use crate::allow::{Class, Special, atomic_alignment, classify};
use crate::context::{GROUPS, at};
use crate::mode::CodeMode;
use crate::registers::SLOTTED;

/// Longest distance from an access's first byte that a check adds to its address. Were it half the
/// TLB's pages, an empty entry's tag could match.
const LONGEST: i64 = 1024;

/// The host's code.
const HOST: CodeMode = CodeMode { user: true, bits32: false };

/// A field of the context, as blocks use it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Slot(usize),
    Word(usize),
    Page,
    /// To be read and written.
    Guest,
    /// To be read.
    State,
    /// Addresses of tables: the present ones', and others to choose from.
    Tables,
    OtherTables,
    VectorArea,
    VectorsMissing,
}

/// The field at `displacement`, if blocks have anything to do with it.
fn field(displacement: i32) -> Option<Field> {
    const WORDS: [(i32, usize, usize); 2] = [(at::TEMPORARY as i32, 0, 2), (at::GROUP, 2, GROUPS)];
    if let Some(index) = SLOTTED.iter().position(|n| i32::from(at::slot(*n)) == displacement) {
        return Some(Field::Slot(index));
    }
    for (begin, first, count) in WORDS {
        let distance = displacement.wrapping_sub(begin);
        if distance >= 0 && distance % 8 == 0 && distance / 8 < count as i32 {
            return Some(Field::Word(first + distance as usize / 8));
        }
    }
    let bases = [at::FS_BASE, at::GS_BASE].map(i32::from);
    let written = [at::IF, at::AC, at::KERNEL_GS_BASE, at::BUDGET, bases[0], bases[1]];
    let read = [
        i32::from(at::POLL),
        at::HELD,
        at::VECTORS_ALLOWED,
        at::FSGSBASE_ENABLED,
        at::FS_REFUSAL,
        at::GS_REFUSAL,
    ];
    let selector = displacement.wrapping_sub(at::SELECTORS);
    Some(match displacement {
        d if d == i32::from(at::PAGE) => Field::Page,
        d if d == at::TABLES => Field::Tables,
        d if [at::TABLES_SUPERVISOR, at::TABLES_SUPERVISOR_AC].contains(&d) => Field::OtherTables,
        d if d == at::VECTORS => Field::VectorArea,
        d if d == at::VECTORS_MISSING => Field::VectorsMissing,
        d if written.contains(&d) => Field::Guest,
        d if read.contains(&d) => Field::State,
        _ if (0..48).contains(&selector) && selector % 8 == 0 => Field::State,
        _ => return None,
    })
}

/// The operand's displacement.
fn displacement(i: &Instruction) -> i32 {
    i.memory_displacement64() as i32
}

/// `[r15 + r9 * 8 + displacement]`.
pub(super) fn is_table(i: &Instruction, expected: i32) -> bool {
    i.memory_base() == Register::R15
        && i.memory_index() == Register::R9
        && i.memory_index_scale() == 8
        && displacement(i) == expected
}

/// `[r15 + mask]`.
fn is_mask(i: &Instruction, mask: i8) -> bool {
    i.memory_base() == Register::R15
        && i.memory_index() == Register::None
        && displacement(i) == i32::from(mask)
}

/// `mov [rsp + TABLES], r15`.
pub(super) fn tells_tables(i: &Instruction) -> bool {
    i.code() == Code::Mov_rm64_r64
        && is_context(i)
        && displacement(i) == at::TABLES
        && i.op1_register() == Register::R15
}

fn is_context(i: &Instruction) -> bool {
    i.op_kind(0) == OpKind::Memory && i.memory_base() == Register::RSP
        || i.op_count() > 1 && i.op1_kind() == OpKind::Memory && i.memory_base() == Register::RSP
}

fn has_memory(i: &Instruction) -> bool {
    (0..i.op_count()).any(|operand| i.op_kind(operand) == OpKind::Memory)
}

impl Walk<'_> {
    /// An instruction that goes straight on.
    pub(super) fn straight(&mut self, i: &Instruction) -> Rule {
        let memory = has_memory(i);
        match i.mnemonic() {
            Mnemonic::Pushfq => {
                self.present().pushed = true;
                Ok(())
            }
            Mnemonic::Popfq => {
                let was_pushed = std::mem::take(&mut self.present().pushed);
                if was_pushed { Ok(()) } else { broken("POPFQ without PUSHFQ") }
            }
            Mnemonic::Lea => self.lea(i),
            Mnemonic::Mov if memory && i.memory_base() == Register::RSP => self.context(i),
            _ if memory && i.memory_base() == Register::R15 => self.tables(i),
            Mnemonic::Mov if !memory => self.move_register(i),
            Mnemonic::Mov
                if self.present().get(i.memory_base()) == Value::VectorArea
                    && i.code() == Code::Mov_r32_rm32 =>
            {
                self.control_word(i)
            }
            Mnemonic::Crc32 if self.present().get(i.op0_register()) == Value::Constant(0) => {
                self.hash(i)
            }
            Mnemonic::Div | Mnemonic::Idiv => self.divide(i),
            Mnemonic::Not | Mnemonic::Sarx | Mnemonic::Shlx | Mnemonic::Shrx if !memory => {
                self.shift(i)
            }
            _ => self.copied(i),
        }
    }

    /// The value of a register that the guest may see.
    fn read(&mut self, register: Register) -> Result<Value, String> {
        let value = self.present().get(register);
        if is_reserved(register) {
            return broken(format!("{register:?} is not a value"));
        }
        if value.is_harmless() {
            return Ok(value);
        }
        broken(format!("{register:?} holds what the guest must not see: {value:?}"))
    }

    fn write(&mut self, register: Register, value: Value) -> Rule {
        if is_reserved(register) {
            return broken(format!("{register:?} is written"));
        }
        let scratch = SCRATCH.contains(&register.full_register().number());
        if !scratch && !value.is_harmless() {
            return broken(format!("{register:?} gets what the guest must not see: {value:?}"));
        }
        let value = if scratch { value } else { self.of_guest(value) };
        self.present().set(register, value);
        Ok(())
    }

    /// A value that gets into a register of the guest's becomes one of the guest's.
    fn of_guest(&mut self, value: Value) -> Value {
        let forgets = value.is_harmless() && value.address().is_none();
        if forgets { self.numbers.fresh() } else { value }
    }

    fn write_fresh(&mut self, register: Register) -> Rule {
        let value = self.numbers.fresh();
        self.write(register, value)
    }

    fn lea(&mut self, i: &Instruction) -> Rule {
        let (base, index) = (i.memory_base(), i.memory_index());
        let to = i.op0_register();
        let distance = i.memory_displacement64() as i64;
        if is_reserved(base) || is_reserved(index) {
            return broken("LEA of an address of the VMM's");
        }
        let state = self.present();
        let values = [base, index].map(|register| match register {
            Register::None => Value::Constant(0),
            _ => state.get(register),
        });
        let sum = sum(values, distance);
        let plain = to.size() == 8 && i.memory_index_scale() == 1 && base.size() == 8;
        if let (true, Some(value)) = (plain, sum) {
            return self.write(to, value);
        }
        if let ([Value::NotSign(low, wide), Value::Guest(high)], 1) = (values, distance) {
            let right = index == Register::RDX && to.size() == if wide { 8 } else { 4 };
            if right && i.memory_index_scale() == 1 {
                return self.write(to, Value::SignVerdict(low, high, wide));
            }
        }
        for register in [base, index] {
            if register != Register::None {
                self.read(register)?;
            }
        }
        self.write_fresh(to)
    }

    /// MOV between a register or a constant and the context.
    fn context(&mut self, i: &Instruction) -> Rule {
        let known = field(displacement(i));
        let (Some(field), Register::None) = (known, i.memory_index()) else {
            return broken("not a field of the context for blocks");
        };
        let register = (0..2).find(|operand| i.op_kind(*operand) == OpKind::Register);
        if register.is_some_and(|operand| !i.op_register(operand).is_gpr()) {
            return broken("a system register");
        }
        let size = i.memory_size().size();
        if i.op0_kind() == OpKind::Memory {
            return self.store_field(i, field, size);
        }
        let to = i.op0_register();
        let value = match field {
            Field::OtherTables if to == Register::R15 => return self.change_tables(),
            Field::Tables | Field::OtherTables => return broken("tables go to R15"),
            Field::VectorArea if size == 8 => Value::VectorArea,
            Field::VectorsMissing if size == 8 => Value::VectorsMissing,
            Field::VectorArea | Field::VectorsMissing => return broken("a part of a field"),
            Field::Word(word) => {
                let value = self.present().words[word];
                if let Some(retry) = &mut self.retry
                    && retry.state.words[word] == value
                {
                    retry.relied_on[word] = true;
                }
                match (value, size) {
                    (Value::Void, _) => return broken("a word of the context not written before"),
                    (value, 8) => value,
                    _ => return broken("a part of a word of the context"),
                }
            }
            Field::Slot(slot) if size == 8 => self.present().slots[slot],
            _ if size > 8 => return broken("more than a field of the context"),
            _ => self.numbers.fresh(),
        };
        self.write(to, value)
    }

    fn change_tables(&mut self) -> Rule {
        let state = self.present();
        state.tables_changed = true;
        (state.passed, state.found) = (None, None);
        // What has been checked was checked for other rights.
        for value in state.registers.iter_mut().chain(&mut state.words) {
            if !value.is_harmless() {
                *value = Value::Void;
            }
        }
        Ok(())
    }

    fn store_field(&mut self, i: &Instruction, field: Field, size: usize) -> Rule {
        let value = match i.op1_kind() {
            OpKind::Register => self.present().get(i.op1_register()),
            _ => Value::Constant(i.immediate(1)),
        };
        if field == Field::Tables {
            self.present().tables_changed = false;
            return if tells_tables(i) { Ok(()) } else { broken("the context's tables are R15's") };
        }
        if i.op1_kind() == OpKind::Register && is_reserved(i.op1_register()) {
            return broken(format!("{:?} is not a value", i.op1_register()));
        }
        let written = if size == 8 { self.of_guest(value) } else { self.numbers.fresh() };
        let state = self.state.as_mut().expect("`step` has looked");
        match (field, value) {
            (Field::Page, Value::JumpPage(target)) if size == 8 => state.page = Some(target),
            (Field::Page, _) => return broken("the context's page is that of a jump's target"),
            (Field::Word(word), Value::Host(..)) if size == 8 => state.words[word] = value,
            (Field::Word(word), value) if size == 8 && value.is_harmless() => {
                state.words[word] = value;
            }
            (Field::Slot(slot), value) if value.is_harmless() => state.slots[slot] = written,
            (Field::Guest, value) if value.is_harmless() => {}
            (Field::Slot(_) | Field::Word(_) | Field::Guest, _) => {
                return broken(format!("{value:?} is not the guest's"));
            }
            _ => return broken("a field of the context that blocks do not write"),
        }
        Ok(())
    }

    /// Loads from the tables, and PEXT and PDEP with their masks.
    fn tables(&mut self, i: &Instruction) -> Rule {
        let state = self.present();
        let (value, passed, found) = (state.registers[9], state.passed, state.found);
        if i.code() == Code::Mov_r64_rm64 {
            let value = match value {
                Value::TlbIndex(at) if is_table(i, at::READ) => Value::Tag(at, false),
                Value::TlbIndex(at) if is_table(i, at::WRITE) => Value::Tag(at, true),
                Value::TlbIndex(at) if is_table(i, at::ADDEND) => match passed {
                    Some(range) if range.at == at => Value::Addend(range),
                    _ => return broken("the addend of a page that has not been checked"),
                },
                Value::JumpIndex(target) if is_table(i, at::JUMP_TAG) => Value::JumpTag(target),
                Value::JumpIndex(target) if is_table(i, at::JUMP_PAGE) => {
                    if found != Some(target) {
                        return broken("the page of a jump entry that may be another target's");
                    }
                    Value::JumpPage(target)
                }
                _ => return broken("not an entry of the tables"),
            };
            return self.write(i.op0_register(), value);
        }
        let from = state.get(i.op1_register());
        let value = match (i.code(), from) {
            (Code::VEX_Pext_r64_r64_rm64, Value::Guest(at)) if is_mask(i, at::TLB_INDEX) => {
                Value::TlbIndex(at)
            }
            (Code::VEX_Pdep_r64_r64_rm64, Value::Hash(at)) if is_mask(i, at::JUMP_INDEX) => {
                Value::JumpIndex(at)
            }
            (Code::VEX_Pext_r64_r64_rm64, Value::Sum(at, write, last)) => {
                Value::Verdict(verdict(i, at, write, last)?)
            }
            _ => return broken("a use of the tables that blocks do not have"),
        };
        self.write(i.op0_register(), value)
    }

    /// MOV between registers, or of a constant to one.
    fn move_register(&mut self, i: &Instruction) -> Rule {
        let to = i.op0_register();
        if i.op1_kind() != OpKind::Register {
            return match to.size() {
                8 => self.write(to, Value::Constant(i.immediate(1))),
                4 => self.write(to, Value::Constant(i.immediate(1) & 0xffff_ffff)),
                _ => self.write_part(to),
            };
        }
        if !to.is_gpr() || !i.op1_register().is_gpr() {
            return broken("a system register");
        }
        let value = self.read(i.op1_register())?;
        match to.size() {
            8 => self.write(to, value),
            4 => self.write_fresh(to),
            _ => self.write_part(to),
        }
    }

    /// The rest of a register stays what it was.
    fn write_part(&mut self, register: Register) -> Rule {
        self.read(register)?;
        self.write_fresh(register)
    }

    /// The x87 control word, from the beginning of the XSAVE area.
    fn control_word(&mut self, i: &Instruction) -> Rule {
        let plain = i.memory_index() == Register::None && i.memory_displacement64() == 0;
        if plain { self.write_fresh(i.op0_register()) } else { broken("not the x87 control word") }
    }

    /// CRC32 of a jump's target, or of anything else with zero.
    fn hash(&mut self, i: &Instruction) -> Rule {
        if i.code() == Code::Crc32_r64_rm64
            && i.op1_kind() == OpKind::Register
            && i.op0_register() == Register::R9
            && let Some(target) = self.present().get(i.op1_register()).address()
        {
            return self.write(Register::R9, Value::Hash(target));
        }
        self.copied(i)
    }

    /// NOT and the shifts without flags, where something is known of the result.
    fn shift(&mut self, i: &Instruction) -> Rule {
        let state = self.present();
        let to = i.op0_register();
        let wide = to.size() == 8;
        let bits = if wide { 64 } else { 32 };
        if i.mnemonic() == Mnemonic::Not {
            return match state.get(to) {
                Value::Sign(of, width) if width == wide => self.write(to, Value::NotSign(of, wide)),
                _ => self.copied(i),
            };
        }
        let (from, count) = (state.get(i.op1_register()), state.get(i.op2_register()));
        let Value::Constant(count) = count else { return self.copied(i) };
        let value = match (i.mnemonic(), from) {
            (Mnemonic::Shlx, Value::Guest(_)) if count < bits => Value::Shifted(count),
            (Mnemonic::Shrx, Value::Shifted(by)) if by == count && count < bits => {
                Value::Below(bits - count)
            }
            (Mnemonic::Sarx, Value::Guest(of)) if count == bits - 1 && to == i.op2_register() => {
                if i.op1_register().full_register() != Register::RAX {
                    return self.copied(i);
                }
                Value::Sign(of, wide)
            }
            _ => return self.copied(i),
        };
        self.write(to, value)
    }

    fn divide(&mut self, i: &Instruction) -> Rule {
        let state = self.present();
        let wide = i.op0_kind() == OpKind::Register && i.op0_register() == Register::R8;
        if !wide && i.op0_register() != Register::R8D {
            return broken("a division by something else than R8");
        }
        let needed = match (i.mnemonic(), wide) {
            (Mnemonic::Div, true) => divisor::ABOVE_64,
            (Mnemonic::Div, false) => divisor::ABOVE_32,
            (_, true) => divisor::NOT_ZERO | divisor::NOT_MINUS_ONE | divisor::SIGN_64,
            (_, false) => divisor::NOT_ZERO | divisor::NOT_MINUS_ONE | divisor::SIGN_32,
        };
        if state.divisor & needed != needed {
            return broken("a division that may fault");
        }
        self.read(Register::R8)?;
        self.write_fresh(Register::RAX)?;
        self.write_fresh(Register::RDX)
    }

    /// An instruction of the allow-list, copied with its operands replaced.
    fn copied(&mut self, i: &Instruction) -> Rule {
        match classify(i, HOST) {
            Class::General(_) => {}
            Class::Vector if self.present().vectors => {}
            Class::Vector => return broken("vector registers that have not been loaded"),
            Class::Special(Special::BitString) => self.bit_index(i)?,
            Class::Special(Special::CmpxchgPair) => {}
            _ => return broken("an instruction that is not on the allow-list"),
        }
        if i.mnemonic() == Mnemonic::Cmp {
            self.compare(i);
        }
        let info = self.info.info(i);
        let registers = info.used_registers().to_vec();
        let accesses = info.used_memory().len();
        let operand = (0..i.op_count()).find(|operand| i.op_kind(*operand) == OpKind::Memory);
        let access = operand.map(|operand| info.op_access(operand));
        if accesses != usize::from(operand.is_some()) {
            return broken("memory accesses that are not in the operands");
        }
        if let Some(access) = access {
            self.guest_memory(i, !matches!(access, OpAccess::Read | OpAccess::CondRead))?;
        }
        self.operands(i, &registers)
    }

    /// What is read must be the guest's; what is written is something new.
    fn operands(&mut self, i: &Instruction, used: &[UsedRegister]) -> Rule {
        let addressing = [i.memory_base(), i.memory_index()].map(Register::full_register);
        for operand in 0..i.op_count() {
            if i.op_kind(operand) == OpKind::Register && i.op_register(operand).is_gpr() {
                let register = i.op_register(operand);
                if addressing.contains(&register.full_register()) {
                    self.read(register)?;
                }
            }
        }
        let mut written = Vec::with_capacity(2);
        for register in used {
            let full = register.register().full_register();
            if !full.is_gpr() {
                continue;
            }
            let access = register.access();
            let reads = !matches!(access, OpAccess::None | OpAccess::Write);
            if reads && !addressing.contains(&full) {
                self.read(full)?;
            }
            let writes = !matches!(access, OpAccess::None | OpAccess::Read | OpAccess::CondRead);
            if writes {
                written.push(full);
            }
        }
        let moved = moved_by(i, self.present());
        for register in written {
            self.write_fresh(register)?;
        }
        if let Some((register, value)) = moved {
            self.write(register, value)?;
        }
        Ok(())
    }

    fn compare(&mut self, i: &Instruction) {
        let registers = [i.op0_register(), i.op1_register()];
        if i.op0_kind() == OpKind::Register && i.op1_kind() == OpKind::Register {
            self.present().compared = match registers {
                [Register::RDX, Register::R8] => Some(true),
                [Register::EDX, Register::R8D] => Some(false),
                _ => None,
            };
        }
    }

    /// The index of a bit stays inside the word.
    fn bit_index(&mut self, i: &Instruction) -> Rule {
        let bits = 8 * i.memory_size().size() as u64;
        match self.present().get(i.op1_register()) {
            Value::Below(below) if 1 << below <= bits => Ok(()),
            _ => broken("a bit outside the word that has been checked"),
        }
    }

    /// The memory operand lies in what has been checked.
    fn guest_memory(&mut self, i: &Instruction, write: bool) -> Rule {
        let (base, index) = (i.memory_base(), i.memory_index());
        if is_reserved(base) || is_reserved(index) {
            return broken("the VMM's memory");
        }
        if base.size() != 8 || i.memory_index_scale() != 1 {
            return broken("not an address of the guest's memory");
        }
        let state = self.present();
        let other = if index == Register::None { Value::Void } else { state.get(index) };
        let (range, from) = match (state.get(base), other) {
            (Value::Host(range, from), _) if index == Register::None => (range, Some(from)),
            (Value::Guest(from), Value::Addend(range))
            | (Value::Addend(range), Value::Guest(from)) => (range, range.distance(from)),
            _ => return broken("memory at an address that has not been checked"),
        };
        let Some(from) = from else {
            return broken("memory at another address than has been checked");
        };
        let begin = from.wrapping_add(i64::from(displacement(i)));
        let size = i.memory_size().size() as i64;
        if size == 0 {
            return broken("a memory operand of unknown size");
        }
        if begin < 0 || begin > range.len - size {
            return broken("memory outside the range that has been checked");
        }
        if write && !range.write {
            return broken("a write where only reads have been checked");
        }
        let wanted = match i.mnemonic() {
            Mnemonic::Cmpxchg16b => 16,
            _ => hostexec::alignment_required(i)
                .map_or(i64::from(atomic_alignment(i)), |alignment| alignment as i64),
        };
        if wanted > range.alignment || begin % wanted != 0 {
            return broken("an operand whose alignment has not been checked");
        }
        Ok(())
    }
}

/// What LEA makes of two values and a displacement, where the sum is something known.
fn sum(values: [Value; 2], distance: i64) -> Option<Value> {
    let [one, other] = values;
    match (one, other) {
        (Value::Guest(_), Value::Constant(0)) => one.plus(distance),
        (Value::Host(range, from), Value::Constant(0)) => {
            Some(Value::Host(range, from.wrapping_add(distance)))
        }
        (Value::Tag(tag, write), Value::Guest(at)) | (Value::Guest(at), Value::Tag(tag, write))
            if tag == at && (0..LONGEST).contains(&distance) =>
        {
            Some(Value::Sum(at, write, distance))
        }
        (Value::JumpTag(tag), Value::Guest(at)) | (Value::Guest(at), Value::JumpTag(tag))
            if tag == at && distance == 0 =>
        {
            Some(Value::JumpVerdict(at))
        }
        (Value::Guest(at), Value::Addend(range)) | (Value::Addend(range), Value::Guest(at)) => {
            Some(Value::Host(range, range.distance(at)?.wrapping_add(distance)))
        }
        _ => None,
    }
}

/// What a check shows once its result is zero.
fn verdict(i: &Instruction, at: Address, write: bool, last: i64) -> Result<Range, String> {
    let aligned = |alignment| Range { at, len: alignment, write, alignment };
    if is_mask(i, at::PAGE_NUMBER) {
        return Ok(Range { at, len: last + 1, write, alignment: 1 });
    }
    let masks = [
        (2, at::PAGE_OR_2),
        (4, at::PAGE_OR_4),
        (8, at::PAGE_OR_8),
        (16, at::PAGE_OR_16),
        (32, at::PAGE_OR_32),
    ];
    match masks.into_iter().find(|(_, mask)| last == 0 && is_mask(i, *mask)) {
        Some((alignment, _)) => Ok(aligned(alignment)),
        None => broken("a check with a mask that is none"),
    }
}

/// A register that only moves by a constant.
fn moved_by(i: &Instruction, state: &State) -> Option<(Register, Value)> {
    let sign = match i.mnemonic() {
        Mnemonic::Add => 1,
        Mnemonic::Sub => -1,
        _ => return None,
    };
    let register = i.op0_register();
    if i.op0_kind() != OpKind::Register || register.size() != 8 {
        return None;
    }
    let distance = i.try_immediate(1).ok()? as i64;
    Some((register, state.get(register).plus(distance.wrapping_mul(sign))?))
}
