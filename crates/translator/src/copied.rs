//! Instructions between registers and memory: copied with their operands replaced, or built from a
//! few others.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Instruction, Mnemonic, OpAccess, OpKind, Register};
use smallvec::SmallVec;

use crate::allow::{Access, atomic_alignment, gives_index};
use crate::emit::{HostMemory, R8, R9, RCX};
use crate::plan::{Planned, Use};
use crate::records::{Checked, Sharing};
use crate::registers::{HOST_RCX_OF_GUEST, Home, SCRATCH, Scratch, home, is_high_byte, sized};
use crate::translate::{Flow, Translator, slotted};

const RBP: u8 = 5;

/// Guest registers that live in slots, and the scratch register that stands for each.
type Loaded = SmallVec<[(u8, u8); SCRATCH.len()]>;

impl Translator<'_> {
    /// Replaces register operands by their host registers. Guest registers that live in slots get
    /// scratch registers, taken from `free`; `None` when these do not suffice.
    fn map_registers(
        &self,
        instruction: &Instruction,
        free: &[u8],
    ) -> Option<(Instruction, Loaded)> {
        let mut mapped = without_prefixes(instruction);
        let mut slots = Loaded::new();
        let mut free = Scratch::from_slice(free);
        for operand in 0..instruction.op_count() {
            if instruction.op_kind(operand) != OpKind::Register {
                continue;
            }
            let register = instruction.op_register(operand);
            if !register.is_gpr() {
                continue;
            }
            if is_high_byte(register) {
                continue;
            }
            let number = register.full_register().number() as u8;
            let host = match home(number) {
                Home::Host(host) => host,
                Home::Slot => match slots.iter().find(|(guest, _)| *guest == number) {
                    Some((_, scratch)) => *scratch,
                    None => {
                        let held = self.emit.held.find_guest(number);
                        let at = free.iter().position(|scratch| Some(*scratch) == held);
                        if free.is_empty() {
                            return None;
                        }
                        let scratch = free.remove(at.unwrap_or(0));
                        slots.push((number, scratch));
                        scratch
                    }
                },
            };
            mapped.set_op_register(operand, sized(host, register));
        }
        Some((mapped, slots))
    }

    /// An instruction between general registers, or with one memory operand.
    pub(crate) fn general(&mut self, planned: &Planned, access: Access) -> Option<Flow> {
        let instruction = &planned.instruction;
        if has_high_byte(instruction) {
            return self.high_byte(planned, access);
        }
        let memory = has_memory(instruction);
        let by_cl = uses_cl_as_count(instruction);
        let allowed: &[u8] = if by_cl { &[R9, R8] } else { &SCRATCH };
        let place = memory.then(|| self.place(planned, allowed));
        let free = self.free(allowed, place);
        let (mut mapped, slots) = self.map_registers(instruction, &free)?;
        if by_cl {
            let last = instruction.op_count() - 1;
            mapped.set_op_register(last, Register::CL);
        }
        if let Some(place) = place {
            place.replace(&mut mapped);
        }
        let bytes = self.emit.encode(&mapped)?;
        if let Some(place) = place {
            let len = instruction.memory_size().size() as u16;
            let alignment = atomic_alignment(instruction);
            let checked = Checked { access, len, alignment, group: Sharing::Alone };
            self.check_operand(planned, checked, place)?;
        }
        if by_cl {
            dynasm!(self.emit.code ; .arch x64 ; mov rcx, Rq(HOST_RCX_OF_GUEST));
            self.emit.held.lose(RCX);
        }
        self.copy(instruction, &bytes, &slots);
        Some(Flow::Next)
    }

    /// An instruction with AH, CH, DH or BH, which no REX prefix allows: the address of a memory
    /// operand goes to RCX; guest RCX, unless there is a memory operand, too.
    fn high_byte(&mut self, planned: &Planned, access: Access) -> Option<Flow> {
        let instruction = &planned.instruction;
        let memory = has_memory(instruction);
        let uses = |register| {
            (0..instruction.op_count()).any(|i| {
                instruction.op_kind(i) == OpKind::Register
                    && instruction.op_register(i).full_register() == register
            })
        };
        let uses_rcx = uses(Register::RCX);
        // Without REX the registers are RAX to RDI. The host's RSP is not the guest's.
        if memory && uses_rcx || uses(Register::RSP) {
            return None;
        }
        let mut mapped = without_prefixes(instruction);
        if memory {
            HostMemory { base: RCX, linear: false, displacement: 0 }.replace(&mut mapped);
        }
        let bytes = self.emit.encode(&mapped)?;
        if memory {
            let len = instruction.memory_size().size() as u16;
            let alignment = atomic_alignment(instruction);
            let checked = Checked { access, len, alignment, group: Sharing::Alone };
            let place = self.place(planned, &SCRATCH);
            self.check_operand(planned, checked, place)?;
            self.emit.address_of(RCX, place)?;
        } else if uses_rcx {
            dynasm!(self.emit.code ; .arch x64 ; mov rcx, Rq(HOST_RCX_OF_GUEST));
        }
        self.emit.held.lose(RCX);
        self.emit.bytes(&bytes);
        if uses_rcx && self.written_registers(instruction) >> 1 & 1 != 0 {
            dynasm!(self.emit.code ; .arch x64 ; mov Rq(HOST_RCX_OF_GUEST), rcx);
        }
        Some(Flow::Next)
    }

    /// Where the explicit memory operand is to be when it has been checked, with the use of
    /// scratch registers of `allowed` only.
    fn place(&mut self, planned: &Planned, allowed: &[u8]) -> HostMemory {
        match planned.operand.kept() {
            Some(kept) => self.group_place(planned.operand, kept, allowed),
            None if count_slotted(&planned.instruction) + 2 <= allowed.len() => HostMemory::CHECKED,
            None => HostMemory { base: R9, linear: false, displacement: 0 },
        }
    }

    /// The scratch registers of `allowed` that a memory operand at `place` leaves free.
    fn free(&mut self, allowed: &[u8], place: Option<HostMemory>) -> Scratch {
        let taken = |register| match place {
            Some(place) => register == place.base || place.linear && register == R9,
            None => false,
        };
        let free: Scratch = allowed.iter().copied().filter(|r| !taken(*r)).collect();
        self.by_need(&free)
    }

    /// Checks the explicit memory operand, which is then at `place`.
    fn check_operand(
        &mut self,
        planned: &Planned,
        checked: Checked,
        place: HostMemory,
    ) -> Option<()> {
        let instruction = &planned.instruction;
        if planned.operand == Use::Single {
            self.emit.linear_address(instruction)?;
            self.emit.check(checked);
            if !place.linear {
                self.emit.address_of(place.base, HostMemory::CHECKED)?;
            }
            return Some(());
        }
        let base = instruction.memory_base().number() as u8;
        self.check_group(planned.operand, base, checked, place);
        Some(())
    }

    /// The encoded instruction between loads and stores of the slots that it uses.
    fn copy(&mut self, instruction: &Instruction, bytes: &[u8], slots: &[(u8, u8)]) {
        if slots.is_empty() {
            self.emit.bytes(bytes);
            return;
        }
        let written = self.written_registers(instruction);
        let read = !self.replaced_registers(instruction);
        for &(guest, scratch) in slots {
            if read >> guest & 1 != 0 {
                self.emit.load_guest(scratch, guest);
            }
            self.emit.held.lose(scratch);
        }
        self.emit.bytes(bytes);
        for &(guest, scratch) in slots {
            if written >> guest & 1 != 0 {
                self.emit.store_guest(guest, scratch);
            } else {
                self.emit.held.hold_guest(scratch, guest);
            }
        }
    }

    /// The guest registers of which the instruction replaces every bit without a look at them, as a
    /// bit set.
    fn replaced_registers(&mut self, instruction: &Instruction) -> u16 {
        // BSF and BSR of zero leave their target alone.
        if matches!(instruction.mnemonic(), Mnemonic::Bsf | Mnemonic::Bsr) {
            return 0;
        }
        let info = self.info.info(instruction);
        let mut replaced = 0_u16;
        let mut read = 0_u16;
        for operand in 0..instruction.op_count() {
            let register = instruction.op_register(operand);
            if instruction.op_kind(operand) != OpKind::Register || !register.is_gpr() {
                continue;
            }
            let bit = 1 << register.full_register().number();
            if info.op_access(operand) == OpAccess::Write && register.size() >= 4 {
                replaced |= bit;
            } else {
                read |= bit;
            }
        }
        replaced & !read
    }

    /// The guest registers that the instruction may write among its operands, as a bit set.
    fn written_registers(&mut self, instruction: &Instruction) -> u16 {
        let info = self.info.info(instruction);
        let mut written = 0_u16;
        for operand in 0..instruction.op_count() {
            let writes = !matches!(
                info.op_access(operand),
                OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
            );
            if writes && instruction.op_kind(operand) == OpKind::Register {
                let register = instruction.op_register(operand);
                if register.is_gpr() {
                    written |= 1 << register.full_register().number();
                }
            }
        }
        written
    }

    pub(crate) fn vector(&mut self, planned: &Planned) -> Option<Flow> {
        let instruction = &planned.instruction;
        if !self.vectors_loaded {
            self.emit.held.lose_all();
        }
        let place = has_memory(instruction).then(|| self.place(planned, &SCRATCH));
        let free = self.free(&SCRATCH, place);
        let (mut mapped, slots) = self.map_registers(instruction, &free)?;
        if let Some(place) = place {
            place.replace(&mut mapped);
        }
        let bytes = self.emit.encode(&mapped)?;
        if !self.vectors_loaded {
            self.emit.need_vectors();
            self.vectors_loaded = true;
        }
        if let Some(place) = place {
            let operand = hostexec::memory_operand(instruction);
            let alignment = hostexec::alignment_required(instruction).unwrap_or(1) as u8;
            let access = if operand.write { Access::Write } else { Access::Read };
            let len = operand.size.max(1) as u16;
            let checked = Checked { access, len, alignment, group: Sharing::Alone };
            self.check_operand(planned, checked, place)?;
        }
        self.copy(instruction, &bytes, &slots);
        if gives_index(instruction) {
            self.emit.store_guest(1, RCX);
            self.emit.held.lose(RCX);
        }
        Some(Flow::Next)
    }

    pub(crate) fn lea(&mut self, instruction: &Instruction) -> Option<Flow> {
        let register = instruction.op0_register();
        let number = register.full_register().number() as u8;
        match home(number) {
            Home::Host(host) => self.emit.lea(instruction, sized(host, register))?,
            Home::Slot => {
                if register.size() == 2 {
                    self.emit.held.lose_all();
                    self.emit.load_guest(RCX, number);
                }
                self.emit.lea(instruction, sized(RCX, register))?;
                self.emit.store_guest(number, RCX);
            }
        }
        Some(Flow::Next)
    }

    /// DIV and IDIV fault on the host as on the guest: cases that might go to the interpreter.
    pub(crate) fn div(&mut self, planned: &Planned) -> Option<Flow> {
        let instruction = &planned.instruction;
        let wide = if has_memory(instruction) {
            instruction.memory_size().size() == 8
        } else {
            instruction.op0_register().size() == 8
        };
        let signed = instruction.mnemonic() == Mnemonic::Idiv;
        self.load_divisor(planned, wide)?;
        if !wide {
            let code = &mut self.emit.code;
            if signed {
                dynasm!(code ; .arch x64 ; movsxd r8, r8d);
            } else {
                dynasm!(code ; .arch x64 ; mov r8d, r8d);
            }
        }
        if signed {
            self.require_nonzero(R8, 0);
            self.require_nonzero(R8, 1);
            self.require_sign_extended(wide);
        } else {
            self.require_quotient_fits(wide);
        }
        let code = &mut self.emit.code;
        match (signed, wide) {
            (false, true) => dynasm!(code ; .arch x64 ; div r8),
            (false, false) => dynasm!(code ; .arch x64 ; div r8d),
            (true, true) => dynasm!(code ; .arch x64 ; idiv r8),
            (true, false) => dynasm!(code ; .arch x64 ; idiv r8d),
        }
        Some(Flow::Next)
    }

    fn load_divisor(&mut self, planned: &Planned, wide: bool) -> Option<()> {
        let instruction = &planned.instruction;
        if !has_memory(instruction) {
            let number = instruction.op0_register().full_register().number() as u8;
            self.emit.load_guest(R8, number);
            return Some(());
        }
        self.load_operand_to(planned, R8, wide)
    }

    /// Reads the memory operand, of 8 bytes (`wide`) or 4, into a scratch register.
    fn load_operand_to(&mut self, planned: &Planned, to: u8, wide: bool) -> Option<()> {
        let (access, len) = (Access::Read, if wide { 8 } else { 4 });
        let place = self.place(planned, &SCRATCH);
        let checked = Checked { access, len, alignment: 1, group: Sharing::Alone };
        self.check_operand(planned, checked, place)?;
        self.emit.load(to, place, wide)?;
        self.emit.held.lose(to);
        Some(())
    }

    /// Exits when host register `register` plus `plus` is zero.
    fn require_nonzero(&mut self, register: u8, plus: i32) {
        dynasm!(self.emit.code ; .arch x64
            ; lea rcx, [Rq(register) + plus]
            ; jrcxz >zero
            ; jmp >fine
            ; zero:
        );
        self.emit.interpret();
        dynasm!(self.emit.code ; .arch x64 ; fine:);
    }

    /// Exits unless the upper half of the dividend is below the divisor in R8: then the quotient
    /// fits and the divisor is not zero. Compares with the flags saved.
    fn require_quotient_fits(&mut self, wide: bool) {
        dynasm!(self.emit.code ; .arch x64 ; pushfq);
        if wide {
            dynasm!(self.emit.code ; .arch x64 ; cmp rdx, r8);
        } else {
            dynasm!(self.emit.code ; .arch x64 ; cmp edx, r8d);
        }
        dynasm!(self.emit.code ; .arch x64 ; jb >fits ; popfq);
        self.emit.interpret();
        dynasm!(self.emit.code ; .arch x64 ; fits: ; popfq);
    }

    /// Exits unless the upper half of the dividend is the sign of the lower.
    fn require_sign_extended(&mut self, wide: bool) {
        if wide {
            dynasm!(self.emit.code ; .arch x64
                ; mov ecx, 63
                ; sarx rcx, rax, rcx
                ; not rcx
                ; lea rcx, [rcx + rdx + 1]
            );
        } else {
            dynasm!(self.emit.code ; .arch x64
                ; mov ecx, 31
                ; sarx ecx, eax, ecx
                ; not ecx
                ; lea ecx, [rcx + rdx + 1]
            );
        }
        self.emit.require_zero();
    }

    /// Reads the memory operand, of the size of a stack slot, into RCX.
    pub(crate) fn load_operand(&mut self, planned: &Planned) -> Option<()> {
        self.load_operand_to(planned, RCX, !self.request.mode.bits32)
    }

    pub(crate) fn push(&mut self, planned: &Planned) -> Option<Flow> {
        use crate::context::at;
        let instruction = &planned.instruction;
        match instruction.op0_kind() {
            OpKind::Register => {
                let number = instruction.op0_register().full_register().number() as u8;
                let slot = self.check_push(planned);
                match home(number) {
                    Home::Host(host) => self.emit.store_word(slot, host)?,
                    Home::Slot => {
                        self.emit.held.lose(slot.spare());
                        self.emit.load_guest(slot.spare(), number);
                        self.emit.store_word(slot, slot.spare())?;
                    }
                }
            }
            OpKind::Memory => {
                self.load_operand(planned)?;
                dynasm!(self.emit.code ; .arch x64 ; mov [BYTE rsp + at::TEMPORARY], rcx);
                self.emit.retry_here();
                let slot = self.check_push(planned);
                let value = slot.spare();
                dynasm!(self.emit.code ; .arch x64 ; mov Rq(value), [BYTE rsp + at::TEMPORARY]);
                self.emit.store_word(slot, value)?;
            }
            _ => {
                let value = instruction.try_immediate(0).ok()? as i64;
                let value = match self.request.mode.bits32 {
                    true => value as i32,
                    false => i32::try_from(value).ok()?,
                };
                let slot = self.check_push(planned);
                self.emit.store_constant(slot, value)?;
            }
        }
        self.emit.move_stack(-self.word());
        Some(Flow::Next)
    }

    pub(crate) fn pop(&mut self, planned: &Planned) -> Option<Flow> {
        let number = planned.instruction.op0_register().full_register().number() as u8;
        let slot = self.check_stack(planned, 0, Access::Read);
        match home(number) {
            Home::Host(host) if number == 4 => {
                self.emit.load_word(host, slot)?;
                return Some(Flow::Next);
            }
            Home::Host(host) => self.emit.load_word(host, slot)?,
            Home::Slot => {
                self.emit.held.lose(slot.spare());
                self.emit.load_word(slot.spare(), slot)?;
                self.emit.store_guest(number, slot.spare());
            }
        }
        self.emit.move_stack(self.word());
        Some(Flow::Next)
    }

    pub(crate) fn leave(&mut self, planned: &Planned) -> Option<Flow> {
        let saved = self.check_at(planned.stack, RBP, 0, self.request.mode.word(), Access::Read);
        match self.request.mode.bits32 {
            false => dynasm!(self.emit.code ; .arch x64 ; lea r11, [rbp + 8]),
            true => dynasm!(self.emit.code ; .arch x64 ; lea r11d, [rbp + 4]),
        }
        self.emit.load_word(RBP, saved)?;
        Some(Flow::Next)
    }
}

/// The instruction without the prefixes that mean nothing to the host's: the segment's, which the
/// address contains, and those of repetition, with which XCHG of another register would be PAUSE.
fn without_prefixes(instruction: &Instruction) -> Instruction {
    let mut bare = *instruction;
    bare.set_segment_prefix(Register::None);
    bare.set_has_rep_prefix(false);
    bare.set_has_repne_prefix(false);
    bare
}

pub(crate) fn has_memory(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory)
}

fn has_high_byte(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|i| {
        instruction.op_kind(i) == OpKind::Register && is_high_byte(instruction.op_register(i))
    })
}

/// How many guest registers that live in slots an instruction has as operands.
fn count_slotted(instruction: &Instruction) -> usize {
    let mut without_memory = *instruction;
    without_memory.set_memory_base(Register::None);
    without_memory.set_memory_index(Register::None);
    slotted(&without_memory).count_ones() as usize
}

/// A shift whose count is CL.
fn uses_cl_as_count(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let last = instruction.op_count().wrapping_sub(1);
    matches!(
        instruction.mnemonic(),
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    ) && instruction.op_kind(last) == OpKind::Register
        && instruction.op_register(last) == Register::CL
}
