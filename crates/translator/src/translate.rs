//! From guest code to a block of host code.
//!
//! A block begins anywhere in a page of guest code and ends at an unconditional branch, at the
//! page's end, or after [`MAX_INSTRUCTIONS`]; conditional branches leave it by the side. It is
//! independent of the linear address that the page is mapped at.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use interpreter::condition_number;

use crate::allow::{Access, Class, classify, gives_index};
use crate::context::at;
use crate::emit::{Alignment, Emitter, ExitInfo, R8, R9, RCX};
use crate::glue::Glue;
use crate::registers::{HOST_RCX_OF_GUEST, Home, home, is_high_byte, sized};

/// Longest block, in instructions.
pub(crate) const MAX_INSTRUCTIONS: u32 = 64;
/// More host code than any block has.
pub(crate) const MAX_BLOCK_BYTES: usize = 64 << 10;

const PAGE: u64 = 4096;

/// A translated block, not yet in the code cache.
pub(crate) struct Translation {
    pub(crate) host: Vec<u8>,
    /// Offset in `host` behind the poll: where the dispatcher enters.
    pub(crate) body: usize,
    pub(crate) instructions: u32,
    pub(crate) guest_bytes: u32,
}

/// Whether more instructions follow in the block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Next,
    Ends,
}

/// A side exit, emitted behind the block.
struct Cold {
    label: DynamicLabel,
    executed: u32,
    target: i64,
    info: ExitInfo,
}

struct Translator<'a> {
    emit: Emitter,
    offers: &'a dyn Fn(&Instruction) -> bool,
    vectors_loaded: bool,
    executed: u32,
    cold: Vec<Cold>,
}

/// Translates the block at page offset `start`; `page` is the content of the guest page. `None`
/// when not even its first instruction ends inside the page.
pub(crate) fn translate(
    glue: Glue,
    base: u64,
    page: &[u8],
    start: u32,
    offers: &dyn Fn(&Instruction) -> bool,
) -> Option<Translation> {
    let mut decoder =
        Decoder::with_ip(64, &page[start as usize..], u64::from(start), DecoderOptions::NONE);
    let mut translator = Translator {
        emit: Emitter::new(glue, base),
        offers,
        vectors_loaded: false,
        executed: 0,
        cold: Vec::new(),
    };
    translator.emit.poll(start);
    let body = translator.emit.position();
    let mut flow = Flow::Next;
    while flow == Flow::Next && translator.executed < MAX_INSTRUCTIONS {
        let offset = decoder.ip() as u32;
        if u64::from(offset) == PAGE {
            break;
        }
        let instruction = decoder.decode();
        translator.begin(offset);
        if instruction.is_invalid() {
            if translator.executed == 0 {
                return None;
            }
            // Invalid, or it goes on in the next page: the interpreter finds out.
            translator.interpret_and_end();
            flow = Flow::Ends;
            break;
        }
        flow = translator.instruction(&instruction);
        translator.executed += 1;
    }
    let end = decoder.ip() as u32;
    if flow == Flow::Next {
        translator.begin(end);
        translator.go_to(i64::from(end));
    }
    translator.emit_cold();
    let instructions = translator.executed;
    let host = translator.emit.finish();
    Some(Translation { host, body, instructions, guest_bytes: end - start })
}

impl Translator<'_> {
    fn begin(&mut self, offset: u32) {
        self.emit.info = ExitInfo { offset, executed: self.executed, access: None };
    }

    fn instruction(&mut self, instruction: &Instruction) -> Flow {
        if !(self.offers)(instruction) {
            return self.interpret(instruction);
        }
        let class = classify(instruction);
        let done = match class {
            Class::Nothing => Some(Flow::Next),
            Class::General(access) => self.general(instruction, access),
            Class::Vector => self.vector(instruction),
            Class::Lea => self.lea(instruction),
            Class::Div => self.div(instruction),
            Class::Push => self.push(instruction),
            Class::Pop => self.pop(instruction),
            Class::Leave => self.leave(),
            Class::Call => self.call(instruction),
            Class::Ret => self.ret(instruction),
            Class::Jmp => self.jmp(instruction),
            Class::Jcc => self.jcc(instruction),
            Class::Jrcxz => self.jrcxz(instruction),
            Class::Loop => self.loop_back(instruction),
            Class::Interpret => None,
        };
        match done {
            Some(flow) => {
                if flow == Flow::Next {
                    self.emit.resume_here();
                } else {
                    self.emit.no_resume();
                }
                flow
            }
            None => {
                self.emit.no_resume();
                self.interpret(instruction)
            }
        }
    }

    /// Leaves the instruction to the interpreter; goes on behind it when it always does.
    fn interpret(&mut self, instruction: &Instruction) -> Flow {
        if instruction.flow_control() != iced_x86::FlowControl::Next {
            self.interpret_and_end();
            return Flow::Ends;
        }
        self.emit.exit(None);
        self.emit.resume_here();
        Flow::Next
    }

    fn interpret_and_end(&mut self) {
        self.emit.exit(None);
        self.emit.no_resume();
    }

    /// Replaces register operands by their host registers. Guest registers that live in slots get
    /// scratch registers, taken from `free`; `None` when these do not suffice.
    fn map_registers(
        &self,
        instruction: &Instruction,
        free: &[u8],
    ) -> Option<(Instruction, Vec<(u8, u8)>)> {
        let mut mapped = *instruction;
        let mut slots: Vec<(u8, u8)> = Vec::new();
        for operand in 0..instruction.op_count() {
            if instruction.op_kind(operand) != OpKind::Register {
                continue;
            }
            let register = instruction.op_register(operand);
            if !register.is_gpr() {
                continue;
            }
            if is_high_byte(register) {
                if register == Register::CH {
                    return None;
                }
                continue;
            }
            let number = register.full_register().number() as u8;
            let host = match home(number) {
                Home::Host(host) => host,
                Home::Slot => match slots.iter().find(|(guest, _)| *guest == number) {
                    Some((_, scratch)) => *scratch,
                    None => {
                        let scratch = *free.get(slots.len())?;
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
    fn general(&mut self, instruction: &Instruction, access: Access) -> Option<Flow> {
        let memory = has_memory(instruction);
        let by_cl = uses_cl_as_count(instruction);
        let free: &[u8] = match (memory, by_cl) {
            (false, false) => &[RCX, R8, R9],
            (false, true) => &[R8, R9],
            (true, false) => &[RCX],
            (true, true) => &[],
        };
        let (mut mapped, slots) = self.map_registers(instruction, free)?;
        if by_cl {
            let last = instruction.op_count() - 1;
            mapped.set_op_register(last, Register::CL);
        }
        if memory {
            replace_memory(&mut mapped);
        }
        let bytes = self.emit.encode(&mapped)?;
        if memory {
            self.emit.linear_address(instruction)?;
            let size = instruction.memory_size().size() as u32;
            self.emit.check(access, size, Alignment::None);
        }
        if by_cl {
            dynasm!(self.emit.code ; .arch x64 ; mov rcx, Rq(HOST_RCX_OF_GUEST));
        }
        self.copy(instruction, &bytes, &slots);
        Some(Flow::Next)
    }

    /// The encoded instruction between loads and stores of the slots that it uses.
    fn copy(&mut self, instruction: &Instruction, bytes: &[u8], slots: &[(u8, u8)]) {
        if slots.is_empty() {
            self.emit.bytes(bytes);
            return;
        }
        let written = written_slots(instruction);
        for &(guest, scratch) in slots {
            self.emit.load_guest(scratch, guest);
        }
        self.emit.bytes(bytes);
        for &(guest, scratch) in slots {
            if written(guest) {
                self.emit.store_guest(guest, scratch);
            }
        }
    }

    fn vector(&mut self, instruction: &Instruction) -> Option<Flow> {
        let memory = has_memory(instruction);
        let free: &[u8] = if memory { &[RCX] } else { &[RCX, R8, R9] };
        let (mut mapped, slots) = self.map_registers(instruction, free)?;
        if memory {
            replace_memory(&mut mapped);
        }
        let bytes = self.emit.encode(&mapped)?;
        if !self.vectors_loaded {
            self.emit.need_vectors();
            self.vectors_loaded = true;
        }
        if memory {
            let operand = hostexec::memory_operand(instruction);
            let alignment = match hostexec::alignment_required(instruction) {
                Some(16) => Alignment::To16,
                Some(32) => Alignment::To32,
                _ => Alignment::None,
            };
            self.emit.linear_address(instruction)?;
            let access = if operand.write { Access::Write } else { Access::Read };
            self.emit.check(access, operand.size.max(1) as u32, alignment);
        }
        self.copy(instruction, &bytes, &slots);
        if gives_index(instruction) {
            self.emit.store_guest(1, RCX);
        }
        Some(Flow::Next)
    }

    fn lea(&mut self, instruction: &Instruction) -> Option<Flow> {
        let register = instruction.op0_register();
        let number = register.full_register().number() as u8;
        match home(number) {
            Home::Host(host) => self.emit.lea(instruction, sized(host, register))?,
            Home::Slot => {
                if register.size() == 2 {
                    self.emit.load_guest(RCX, number);
                }
                self.emit.lea(instruction, sized(RCX, register))?;
                self.emit.store_guest(number, RCX);
            }
        }
        Some(Flow::Next)
    }

    /// DIV and IDIV fault on the host as on the guest: cases that might go to the interpreter.
    fn div(&mut self, instruction: &Instruction) -> Option<Flow> {
        let memory = has_memory(instruction);
        let size = if memory {
            instruction.memory_size().size()
        } else {
            instruction.op0_register().size()
        };
        let wide = size == 8;
        let signed = instruction.mnemonic() == Mnemonic::Idiv;
        if memory {
            self.emit.linear_address(instruction)?;
            self.emit.check(Access::Read, size as u32, Alignment::None);
            if wide {
                dynasm!(self.emit.code ; .arch x64 ; mov r8, [r8 + r9]);
            } else {
                dynasm!(self.emit.code ; .arch x64 ; mov r8d, [r8 + r9]);
            }
        } else {
            let number = instruction.op0_register().full_register().number() as u8;
            self.emit.load_guest(R8, number);
        }
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

    /// Exits when host register `register` plus `plus` is zero.
    fn require_nonzero(&mut self, register: u8, plus: i32) {
        dynasm!(self.emit.code ; .arch x64
            ; lea rcx, [Rq(register) + plus]
            ; jrcxz >zero
            ; jmp >fine
            ; zero:
        );
        self.emit.exit(None);
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
        self.emit.exit(None);
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
        dynasm!(self.emit.code ; .arch x64 ; jrcxz >fine);
        self.emit.exit(None);
        dynasm!(self.emit.code ; .arch x64 ; fine:);
    }

    /// Reads the 8-byte memory operand into RCX.
    fn load_operand(&mut self, instruction: &Instruction) -> Option<()> {
        self.emit.linear_address(instruction)?;
        self.emit.check(Access::Read, 8, Alignment::None);
        dynasm!(self.emit.code ; .arch x64 ; mov rcx, [r8 + r9]);
        Some(())
    }

    /// Checks the stack slot below RSP; its host address is R8 + R9.
    fn check_push(&mut self) {
        dynasm!(self.emit.code ; .arch x64 ; lea r8, [r11 - 8]);
        self.emit.check(Access::Write, 8, Alignment::None);
    }

    fn push(&mut self, instruction: &Instruction) -> Option<Flow> {
        match instruction.op0_kind() {
            OpKind::Register => {
                let number = instruction.op0_register().full_register().number() as u8;
                self.check_push();
                match home(number) {
                    Home::Host(host) => {
                        dynasm!(self.emit.code ; .arch x64 ; mov [r8 + r9], Rq(host));
                    }
                    Home::Slot => {
                        self.emit.load_guest(RCX, number);
                        dynasm!(self.emit.code ; .arch x64 ; mov [r8 + r9], rcx);
                    }
                }
            }
            OpKind::Memory => {
                self.load_operand(instruction)?;
                dynasm!(self.emit.code ; .arch x64 ; gs mov [DWORD at::TEMPORARY + 8], rcx);
                self.check_push();
                dynasm!(self.emit.code ; .arch x64
                    ; gs mov rcx, [DWORD at::TEMPORARY + 8]
                    ; mov [r8 + r9], rcx
                );
            }
            _ => {
                let value = i32::try_from(instruction.try_immediate(0).ok()? as i64).ok()?;
                self.check_push();
                dynasm!(self.emit.code ; .arch x64 ; mov QWORD [r8 + r9], value);
            }
        }
        dynasm!(self.emit.code ; .arch x64 ; lea r11, [r11 - 8]);
        Some(Flow::Next)
    }

    fn pop(&mut self, instruction: &Instruction) -> Option<Flow> {
        let number = instruction.op0_register().full_register().number() as u8;
        dynasm!(self.emit.code ; .arch x64 ; mov r8, r11);
        self.emit.check(Access::Read, 8, Alignment::None);
        dynasm!(self.emit.code ; .arch x64 ; lea r11, [r11 + 8]);
        match home(number) {
            Home::Host(host) => dynasm!(self.emit.code ; .arch x64 ; mov Rq(host), [r8 + r9]),
            Home::Slot => {
                dynasm!(self.emit.code ; .arch x64 ; mov rcx, [r8 + r9]);
                self.emit.store_guest(number, RCX);
            }
        }
        Some(Flow::Next)
    }

    fn leave(&mut self) -> Option<Flow> {
        dynasm!(self.emit.code ; .arch x64 ; mov r8, rbp);
        self.emit.check(Access::Read, 8, Alignment::None);
        dynasm!(self.emit.code ; .arch x64 ; lea r11, [rbp + 8] ; mov rbp, [r8 + r9]);
        Some(Flow::Next)
    }

    /// Goes on at `target`, counted from the page's beginning.
    fn go_to(&mut self, target: i64) {
        let executed = self.executed;
        if (0..PAGE as i64).contains(&target) {
            self.emit.chain(executed, target as u32);
            return;
        }
        // Branch distances have 32 bits, so that this fits but for a page.
        self.emit.page_plus(target as i32);
        self.emit.find_target();
        self.emit.no_resume();
        self.emit.jump_found(executed);
    }

    fn direct_target(instruction: &Instruction) -> Option<i64> {
        let target = instruction.near_branch_target() as i64;
        i32::try_from(target).ok().map(i64::from)
    }

    fn jmp(&mut self, instruction: &Instruction) -> Option<Flow> {
        match instruction.op0_kind() {
            OpKind::NearBranch64 => {
                let target = Self::direct_target(instruction)?;
                self.executed += 1;
                self.go_to(target);
                self.executed -= 1;
            }
            OpKind::Register => {
                let number = instruction.op0_register().full_register().number() as u8;
                self.emit.load_guest(R8, number);
                self.emit.find_target();
                self.emit.jump_found(self.executed + 1);
            }
            _ => {
                self.load_operand(instruction)?;
                dynasm!(self.emit.code ; .arch x64 ; mov r8, rcx);
                self.emit.find_target();
                self.emit.jump_found(self.executed + 1);
            }
        }
        Some(Flow::Ends)
    }

    fn call(&mut self, instruction: &Instruction) -> Option<Flow> {
        let next = instruction.next_ip() as i32;
        let direct = match instruction.op0_kind() {
            OpKind::NearBranch64 => Some(Self::direct_target(instruction)?),
            OpKind::Memory => {
                self.load_operand(instruction)?;
                dynasm!(self.emit.code ; .arch x64 ; gs mov [DWORD at::TEMPORARY + 16], rcx);
                None
            }
            _ => None,
        };
        self.check_push();
        let executed = self.executed + 1;
        if let Some(target) = direct
            && (0..PAGE as i64).contains(&target)
        {
            self.push_return_address(next);
            self.emit.chain(executed, target as u32);
            return Some(Flow::Ends);
        }
        dynasm!(self.emit.code ; .arch x64
            ; lea r8, [r8 + r9]
            ; gs mov [DWORD at::TEMPORARY + 8], r8
        );
        match (direct, instruction.op0_kind()) {
            (Some(target), _) => self.emit.page_plus(target as i32),
            (None, OpKind::Register) => {
                let number = instruction.op0_register().full_register().number() as u8;
                self.emit.load_guest(R8, number);
            }
            _ => dynasm!(self.emit.code ; .arch x64 ; gs mov r8, [DWORD at::TEMPORARY + 16]),
        }
        self.emit.find_target();
        dynasm!(self.emit.code ; .arch x64
            ; gs mov rcx, [DWORD at::PAGE]
            ; lea rcx, [rcx + next]
            ; gs mov r8, [DWORD at::TEMPORARY + 8]
            ; mov [r8], rcx
            ; lea r11, [r11 - 8]
        );
        self.emit.jump_found(executed);
        Some(Flow::Ends)
    }

    /// Stores the return address at the checked slot and moves RSP.
    fn push_return_address(&mut self, next: i32) {
        dynasm!(self.emit.code ; .arch x64
            ; gs mov rcx, [DWORD at::PAGE]
            ; lea rcx, [rcx + next]
            ; mov [r8 + r9], rcx
            ; lea r11, [r11 - 8]
        );
    }

    fn ret(&mut self, instruction: &Instruction) -> Option<Flow> {
        let released =
            if instruction.op_count() == 1 { i32::from(instruction.immediate16()) } else { 0 };
        dynasm!(self.emit.code ; .arch x64 ; mov r8, r11);
        self.emit.check(Access::Read, 8, Alignment::None);
        dynasm!(self.emit.code ; .arch x64 ; mov r8, [r8 + r9]);
        self.emit.find_target();
        dynasm!(self.emit.code ; .arch x64 ; lea r11, [r11 + 8 + released]);
        self.emit.jump_found(self.executed + 1);
        Some(Flow::Ends)
    }

    fn cold_exit(&mut self, instruction: &Instruction) -> Option<DynamicLabel> {
        let target = Self::direct_target(instruction)?;
        let label = self.emit.code.new_dynamic_label();
        let info = self.emit.info;
        self.cold.push(Cold { label, executed: self.executed + 1, target, info });
        Some(label)
    }

    fn jcc(&mut self, instruction: &Instruction) -> Option<Flow> {
        let condition = condition_number(instruction.condition_code())?;
        let label = self.cold_exit(instruction)?;
        self.emit.jump_if(condition, label);
        Some(Flow::Next)
    }

    fn jrcxz(&mut self, instruction: &Instruction) -> Option<Flow> {
        let label = self.cold_exit(instruction)?;
        self.emit.jump_if_counter(true, label);
        Some(Flow::Next)
    }

    fn loop_back(&mut self, instruction: &Instruction) -> Option<Flow> {
        // A taken LOOP whose target lies in another page may go to the interpreter, which counts
        // down itself.
        let target = Self::direct_target(instruction)?;
        if !(0..PAGE as i64).contains(&target) {
            return None;
        }
        let label = self.cold_exit(instruction)?;
        let counter = HOST_RCX_OF_GUEST;
        dynasm!(self.emit.code ; .arch x64 ; lea Rq(counter), [Rq(counter) - 1]);
        self.emit.jump_if_counter(false, label);
        Some(Flow::Next)
    }

    fn emit_cold(&mut self) {
        for Cold { label, executed, target, info } in std::mem::take(&mut self.cold) {
            dynasm!(self.emit.code ; .arch x64 ; =>label);
            self.emit.info = info;
            self.executed = executed;
            self.go_to(target);
        }
    }
}

fn has_memory(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory)
}

/// The memory operand becomes `[r8 + r9]`.
fn replace_memory(instruction: &mut Instruction) {
    instruction.set_memory_base(Register::R8);
    instruction.set_memory_index(Register::R9);
    instruction.set_memory_index_scale(1);
    instruction.set_memory_displ_size(0);
    instruction.set_memory_displacement64(0);
    instruction.set_segment_prefix(Register::None);
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

/// Tells which guest registers the instruction may write among its operands.
fn written_slots(instruction: &Instruction) -> impl Fn(u8) -> bool {
    use iced_x86::{InstructionInfoFactory, OpAccess};
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(instruction);
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
    move |number| written >> number & 1 != 0
}
