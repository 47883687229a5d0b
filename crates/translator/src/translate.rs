//! From guest code to a block of host code.
//!
//! A block begins anywhere in a page of guest code and ends at an unconditional branch, at the
//! page's end, or after a number of instructions; conditional branches leave it by the side. It is
//! independent of the linear address that the page is mapped at. Instructions between registers and
//! memory are in [`crate::copied`], branches in [`crate::branches`], system instructions here.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, OpKind};
use interpreter::InterpreterVcpu;
use x86::cr::rflags;

use crate::allow::{Access, Class, System, classify};
use crate::context::at;
use crate::emit::{Emitter, HostMemory, R8, R9};
use crate::glue::Glue;
use crate::mode::{CodeMode, prepare};
use crate::plan::{Planned, Pointer, Use, plan};
use crate::records::{Checked, Record, Sharing};
use crate::registers::{Home, SCRATCH, Scratch, home};

/// Longest block unless configured, in instructions.
pub(crate) const MAX_INSTRUCTIONS: u32 = 256;
/// More host code than any block has.
pub(crate) const MAX_BLOCK_BYTES: usize = 128 << 10;

pub(crate) const PAGE: u64 = 4096;

/// What a block is translated for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    /// Offset in the page.
    pub(crate) start: u32,
    pub(crate) mode: CodeMode,
    /// Accesses are checked one by one.
    pub(crate) plain: bool,
    /// The block counts its instructions against the budget.
    pub(crate) counts: bool,
    /// Longest block, in instructions.
    pub(crate) longest: u32,
}

/// A translated block, not yet in the code cache.
pub(crate) struct Translation {
    pub(crate) host: Vec<u8>,
    /// Offset in `host` behind the poll.
    pub(crate) body: usize,
    pub(crate) records: Vec<Record>,
    pub(crate) instructions: u32,
    pub(crate) guest_bytes: u32,
    /// See [`crate::blocks::Block::straddles`].
    pub(crate) straddles: bool,
    /// Where in `host` the code for which page offset begins, in order.
    pub(crate) begins: Vec<(usize, u32)>,
}

/// Whether more instructions follow in the block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Next,
    Ends,
}

/// A side exit, emitted behind the block.
pub(crate) struct Cold {
    pub(crate) label: DynamicLabel,
    /// Where the branch's displacement is, when it can be patched itself.
    pub(crate) site: Option<u64>,
    pub(crate) executed: u32,
    pub(crate) target: i64,
    pub(crate) offset: u32,
}

pub(crate) struct Translator<'a> {
    pub(crate) emit: Emitter,
    pub(crate) request: Request,
    pub(crate) info: &'a mut InstructionInfoFactory,
    pub(crate) vectors_loaded: bool,
    pub(crate) executed: u32,
    /// Instructions of the block.
    pub(crate) total: u32,
    pub(crate) cold: Vec<Cold>,
    /// For each instruction, the guest registers that live in slots and are among its operands.
    slotted: Vec<u16>,
    /// An instruction was left to the interpreter that groups were planned with.
    unforeseen: bool,
}

/// What translation needs besides the code.
pub(crate) struct Surroundings<'a> {
    pub(crate) glue: Glue,
    /// Host address and number of the first record that the block will have.
    pub(crate) base: u64,
    pub(crate) first_record: u32,
    /// Knows what the CPU profile offers.
    pub(crate) interpreter: &'a InterpreterVcpu,
    pub(crate) info: &'a mut InstructionInfoFactory,
}

/// Translates a block; `code` is the content of the guest page, perhaps with the beginning of the
/// next. `None` when there is no instruction at all.
pub(crate) fn translate(
    around: &mut Surroundings<'_>,
    code: &[u8],
    request: Request,
) -> Option<Translation> {
    let (mut block, end) = decode(around, code, request);
    if block.is_empty() {
        let straddles = code.len() as u64 == PAGE && request.start as usize > code.len() - 15;
        return straddles.then(|| Translator::new(around, request, 0).look_up_straddling());
    }
    if !request.plain {
        plan(&mut block, around.info, request.mode.word());
    }
    let mut translator = Translator::new(around, request, block.len() as u32);
    translator.slotted = block.iter().map(|planned| slotted(&planned.instruction)).collect();
    let charge = translator.enter_block(request);
    let body = translator.emit.position();
    let mut flow = Flow::Next;
    for planned in &block {
        translator.emit.begin(&planned.instruction, translator.executed);
        flow = translator.instruction(planned);
        translator.executed += 1;
        if flow == Flow::Ends {
            break;
        }
    }
    if translator.unforeseen && block.iter().any(Planned::is_in_group) {
        // A group may lack the check of its first access, or rely on a register that the
        // interpreter changes.
        return translate(around, code, Request { plain: true, ..request });
    }
    if flow == Flow::Next {
        translator.emit.begin_at(end, translator.executed);
        translator.go_to(i64::from(end));
    }
    Some(translator.finish(charge, body, end - request.start))
}

/// Whether its translation only changes scratch registers that it reports lost, and has no exits
/// but those of a check.
fn spares_scratch(planned: &Planned) -> bool {
    match planned.class {
        Class::Nothing
        | Class::General(_)
        | Class::Vector
        | Class::Lea
        | Class::Pop
        | Class::Jcc => true,
        Class::Push => planned.instruction.op0_kind() != OpKind::Memory,
        _ => false,
    }
}

/// The guest registers that live in slots and are among the operands, as a bit set.
pub(crate) fn slotted(instruction: &Instruction) -> u16 {
    let operands = (0..instruction.op_count())
        .filter(|operand| instruction.op_kind(*operand) == OpKind::Register)
        .map(|operand| instruction.op_register(operand));
    let address = [instruction.memory_base(), instruction.memory_index()];
    let mut found = 0;
    for register in operands.chain(address).filter(|register| register.is_gpr()) {
        let number = register.full_register().number();
        found |= u16::from(home(number as u8) == Home::Slot) << number;
    }
    found
}

/// The instructions of the block and the page offset behind them.
fn decode(around: &Surroundings<'_>, code: &[u8], request: Request) -> (Vec<Planned>, u32) {
    let start = u64::from(request.start);
    let code = &code[request.start as usize..];
    let mut decoder = Decoder::with_ip(request.mode.bitness(), code, start, DecoderOptions::NONE);
    let mut block = Vec::with_capacity(16);
    let mut end = request.start;
    while (block.len() as u32) < request.longest && decoder.ip() < PAGE {
        let mut instruction = decoder.decode();
        if instruction.is_invalid() {
            // Invalid, or it goes on in the next page: the interpreter finds out when it gets there.
            break;
        }
        end = decoder.ip() as u32;
        let mut class = Class::Interpret;
        let offered = around.interpreter.offers(&instruction);
        if offered && (!request.mode.bits32 || prepare(&mut instruction)) {
            class = classify(&instruction, request.mode);
        }
        if request.counts && matches!(class, Class::RepMovs(_) | Class::RepStos(_)) {
            // How often an interrupted one counts is the interpreter's to say.
            class = Class::Interpret;
        }
        let ends = match class {
            Class::Interpret => instruction.flow_control() != FlowControl::Next,
            Class::Call | Class::Ret | Class::Jmp => true,
            Class::System(System::Syscall | System::Sysret) => true,
            _ => false,
        };
        let (operand, stack) = (Use::Single, Use::Single);
        block.push(Planned { instruction, class, operand, stack, group_goes_on: false });
        if ends {
            break;
        }
    }
    if let Some(last) = block.last_mut()
        && last.class == Class::System(System::Sti)
    {
        // Its shadow covers the next instruction, before which the next block may poll.
        last.class = Class::Interpret;
    }
    (block, end)
}

impl<'a> Translator<'a> {
    fn new(around: &'a mut Surroundings<'_>, request: Request, total: u32) -> Self {
        Self {
            emit: Emitter::new(around.glue, around.base, around.first_record, request.mode),
            request,
            info: around.info,
            vectors_loaded: false,
            executed: 0,
            total,
            cold: Vec::new(),
            slotted: Vec::new(),
            unforeseen: false,
        }
    }

    /// Emits what stands behind the block, and completes it.
    fn finish(mut self, charge: Option<usize>, body: usize, guest_bytes: u32) -> Translation {
        self.emit_cold();
        let instructions = self.total;
        let begins = std::mem::take(&mut self.emit.begins);
        let (mut host, records) = self.emit.finish(instructions);
        if let Some(at) = charge {
            host[at..at + 4].copy_from_slice(&(instructions as i32).wrapping_neg().to_le_bytes());
        }
        let straddles = false;
        Translation { host, body, records, instructions, guest_bytes, straddles, begins }
    }

    /// A block in place of an instruction that goes on in the next page: it looks the linear
    /// address up in the jump table, which has the block for the page that is mapped there now.
    fn look_up_straddling(mut self) -> Translation {
        let start = self.request.start;
        self.emit.begin_at(start, 0);
        self.emit.poll();
        let body = self.emit.position();
        self.emit.page_plus(start as i32);
        self.emit.find_target();
        self.emit.no_resume();
        self.emit.jump_found();
        let begins = std::mem::take(&mut self.emit.begins);
        let (host, records) = self.emit.finish(0);
        let (instructions, guest_bytes, straddles) = (0, 0, true);
        Translation { host, body, records, instructions, guest_bytes, straddles, begins }
    }

    /// The block's entry: the poll, or the charge, whose operand is to be filled in.
    fn enter_block(&mut self, request: Request) -> Option<usize> {
        self.emit.begin_at(request.start, 0);
        self.emit.poll();
        request.counts.then(|| self.emit.charge())
    }

    fn instruction(&mut self, planned: &Planned) -> Flow {
        let Planned { instruction, class, .. } = planned;
        if !spares_scratch(planned) {
            self.emit.held.lose_all();
        }
        let done = match *class {
            Class::Nothing => Some(Flow::Next),
            Class::General(access) => self.general(planned, access),
            Class::Vector => self.vector(planned),
            Class::Lea => self.lea(instruction),
            Class::Div => self.div(planned),
            Class::Push => self.push(planned),
            Class::Pop => self.pop(planned),
            Class::Leave => self.leave(planned),
            Class::Call => self.call(planned),
            Class::Ret => self.ret(planned),
            Class::Jmp => self.jmp(planned),
            Class::Jcc => self.jcc(instruction),
            Class::Jrcxz => self.jrcxz(instruction),
            Class::Loop => self.loop_back(instruction),
            Class::Element(element) => self.element(instruction, element),
            Class::RepMovs(log) => self.string(self.emit.glue.rep_movs(self.request.mode, log)),
            Class::RepStos(log) => self.string(self.emit.glue.rep_stos(self.request.mode, log)),
            Class::System(system) => self.system(planned, system),
            Class::Special(special) => self.special(instruction, special),
            Class::Interpret => None,
        };
        if !spares_scratch(planned) {
            self.emit.held.lose_all();
        }
        let Some(flow) = done else {
            self.unforeseen |= *class != Class::Interpret;
            return self.leave_to_interpreter(instruction);
        };
        if flow == Flow::Next && !planned.group_goes_on {
            self.emit.resume_here();
        } else {
            self.emit.no_resume();
        }
        flow
    }

    /// Leaves the instruction to the interpreter; goes on behind it when it always does.
    fn leave_to_interpreter(&mut self, instruction: &Instruction) -> Flow {
        self.emit.no_resume();
        self.emit.interpret();
        if instruction.flow_control() == FlowControl::Next {
            self.emit.resume_here();
            Flow::Next
        } else {
            self.emit.no_resume();
            Flow::Ends
        }
    }

    fn string(&mut self, stub: u64) -> Option<Flow> {
        let number = self.emit.record(self.emit.offset, self.executed, None);
        dynasm!(self.emit.code ; .arch x64
            ; mov r8d, number as i32
            ; call extern stub as usize
        );
        Some(Flow::Next)
    }

    fn system(&mut self, planned: &Planned, system: System) -> Option<Flow> {
        match system {
            System::Cli => {
                dynasm!(self.emit.code ; .arch x64 ; mov QWORD [rsp + at::IF], 0);
            }
            System::Sti => {
                // An event that waits or may wait is the interpreter's matter, with the shadow of STI.
                dynasm!(self.emit.code ; .arch x64
                    ; mov rcx, [rsp + at::HELD]
                    ; mov r8, [BYTE rsp + at::POLL]
                    ; lea rcx, [rcx + r8]
                );
                self.emit.require_zero();
                dynasm!(self.emit.code ; .arch x64
                    ; mov QWORD [rsp + at::IF], rflags::IF as i32
                );
            }
            System::Clac => self.access_flag(at::TABLES_SUPERVISOR, 0),
            System::Stac => self.access_flag(at::TABLES_SUPERVISOR_AC, rflags::AC as i32),
            System::Swapgs => dynasm!(self.emit.code ; .arch x64
                ; mov rcx, [BYTE rsp + at::GS_BASE]
                ; mov r8, [rsp + at::KERNEL_GS_BASE]
                ; mov [rsp + at::KERNEL_GS_BASE], rcx
                ; mov [BYTE rsp + at::GS_BASE], r8
            ),
            System::Pushf => {
                dynasm!(self.emit.code ; .arch x64
                    ; call extern self.emit.glue.flags_image as usize
                    ; mov [BYTE rsp + at::TEMPORARY], rcx
                );
                let slot = self.check_push(planned);
                let image = slot.spare();
                dynasm!(self.emit.code ; .arch x64 ; mov Rq(image), [BYTE rsp + at::TEMPORARY]);
                self.emit.store_word(slot, image)?;
                self.emit.move_stack(-self.word());
            }
            System::Popf => {
                let slot = self.check_stack(planned, 0, Access::Read);
                self.emit.load_word(R8, slot)?;
                self.emit.call_with_record(self.emit.glue.popf(self.request.mode));
            }
            System::Syscall => {
                self.emit.page_plus(planned.instruction.next_ip() as i32);
                self.emit.call_with_record(self.emit.glue.syscall);
                return Some(Flow::Ends);
            }
            System::Sysret => {
                self.emit.call_with_record(self.emit.glue.sysret);
                return Some(Flow::Ends);
            }
        }
        Some(Flow::Next)
    }

    /// Sets RFLAGS.AC, and with it what the kernel may access.
    fn access_flag(&mut self, tables: i32, flag: i32) {
        dynasm!(self.emit.code ; .arch x64
            ; mov r15, [rsp + tables]
            ; mov [rsp + at::TABLES], r15
            ; mov QWORD [rsp + at::AC], flag
        );
    }

    /// The scratch registers of `allowed`, that first whose content is needed last.
    pub(crate) fn by_need(&mut self, allowed: &[u8]) -> Scratch {
        let behind = self.executed as usize + 1;
        let rest = self.slotted.get(behind..).unwrap_or(&[]);
        self.emit.held.by_need(allowed, |number| {
            let next = rest.iter().position(|slotted| slotted >> number & 1 != 0);
            next.map_or(u16::MAX, |distance| (behind + distance) as u16)
        })
    }

    /// Where an access of a group is to be when it has been checked.
    pub(crate) fn group_place(&mut self, how: Use, kept: Pointer, allowed: &[u8]) -> HostMemory {
        let held = match how {
            // Where its check leaves the pointer.
            Use::First { .. } => Some(R9),
            _ => self.emit.held.find_pointer(kept.slot).filter(|held| allowed.contains(held)),
        };
        let base = held.unwrap_or_else(|| self.by_need(allowed)[0]);
        HostMemory { base, linear: false, displacement: kept.distance }
    }

    /// Checks an access of a group, by guest register `base`, or that of the whole group; it is
    /// then at `place`.
    pub(crate) fn check_group(&mut self, how: Use, base: u8, own: Checked, place: HostMemory) {
        match how {
            Use::First { low, len, writes, bias, kept } => {
                let (access, group) = match (writes, own.access) {
                    (true, Access::Read) => (Access::Write, Sharing::ReadFirst),
                    _ => (own.access, Sharing::Group),
                };
                self.emit.load_guest_plus(R8, base, low);
                self.emit.check(Checked { access, len, alignment: 1, group });
                self.emit.keep_group(kept, bias);
            }
            Use::Later(kept) => self.emit.use_group(kept, place.base),
            Use::Single => {}
        }
    }

    /// Checks `len` bytes at guest register `base` plus `displacement` as planned; tells where they
    /// are.
    pub(crate) fn check_at(
        &mut self,
        how: Use,
        base: u8,
        displacement: i32,
        len: u16,
        access: Access,
    ) -> HostMemory {
        let checked = Checked { access, len, alignment: 1, group: Sharing::Alone };
        let Some(kept) = how.kept() else {
            self.emit.load_guest_plus(R8, base, displacement);
            self.emit.check(checked);
            return HostMemory::CHECKED;
        };
        let place = self.group_place(how, kept, &SCRATCH);
        self.check_group(how, base, checked, place);
        place
    }

    /// Bytes of a stack slot.
    pub(crate) fn word(&self) -> i32 {
        i32::from(self.request.mode.word())
    }

    /// Checks the slot of the stack at RSP plus `displacement`; tells where they are.
    pub(crate) fn check_stack(
        &mut self,
        planned: &Planned,
        displacement: i32,
        access: Access,
    ) -> HostMemory {
        self.check_at(planned.stack, 4, displacement, self.request.mode.word(), access)
    }

    /// Checks the stack slot below RSP.
    pub(crate) fn check_push(&mut self, planned: &Planned) -> HostMemory {
        self.check_stack(planned, -self.word(), Access::Write)
    }
}
