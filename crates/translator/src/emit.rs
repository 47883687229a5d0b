//! Emitting pieces of blocks: addresses, checked memory accesses, exits.
//!
//! Nothing here changes the host's status flags: they are the guest's. That is why a memory check
//! computes with LEA and PEXT and branches with JRCXZ, and why exits can happen anywhere with the
//! guest's state exact.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, VecAssembler, dynasm};
use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Register};
use interpreter::Kept;
use smallvec::SmallVec;

use crate::allow::Access;
use crate::context::at;
use crate::glue::{self, Glue};
use crate::mode::CodeMode;
use crate::plan::Pointer;
use crate::records::{Checked, Record};
use crate::registers::{HOST_RSP_OF_GUEST, Held, Home, home, sized};
use crate::translate::PAGE;

/// Host scratch registers.
pub(crate) const R8: u8 = 8;
pub(crate) const R9: u8 = 9;
pub(crate) const RCX: u8 = 1;

/// Where checked memory is on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostMemory {
    /// Host register with a pointer into it or, if `linear`, with the linear address, to which R9
    /// is to be added.
    pub(crate) base: u8,
    pub(crate) linear: bool,
    pub(crate) displacement: i32,
}

impl HostMemory {
    /// Behind a check: at the linear address in R8.
    pub(crate) const CHECKED: Self = Self { base: R8, linear: true, displacement: 0 };

    fn displacement_size(self) -> u32 {
        u32::from(self.displacement != 0)
    }

    fn index(self) -> Register {
        if self.linear { Register::R9 } else { Register::None }
    }

    fn operand(self) -> MemoryOperand {
        MemoryOperand::new(
            sized(self.base, Register::RAX),
            self.index(),
            1,
            i64::from(self.displacement),
            self.displacement_size(),
            false,
            Register::None,
        )
    }

    /// Makes it the memory operand of `instruction`.
    pub(crate) fn replace(self, instruction: &mut Instruction) {
        instruction.set_memory_base(sized(self.base, Register::RAX));
        instruction.set_memory_index(self.index());
        instruction.set_memory_index_scale(1);
        instruction.set_memory_displ_size(self.displacement_size());
        instruction.set_memory_displacement64(i64::from(self.displacement) as u64);
    }

    /// A scratch register that it does not need.
    pub(crate) fn spare(self) -> u8 {
        if self.base == RCX { R8 } else { RCX }
    }
}

/// The bytes of one instruction.
pub(crate) type Encoded = SmallVec<[u8; 16]>;

pub(crate) struct Emitter {
    pub(crate) code: glue::Code,
    pub(crate) glue: Glue,
    encoder: Encoder,
    mode: CodeMode,
    /// Host address of the block.
    base: u64,
    /// Number of the block's first record.
    first_record: u32,
    pub(crate) records: Vec<Record>,
    /// Records of the present instruction that resume behind it, from this index on.
    pending: usize,
    /// Page offset of the present instruction.
    pub(crate) offset: u32,
    /// Instructions of the block before it.
    pub(crate) executed: u32,
    present: Code,
    straddles: bool,
    /// Host address where it begins.
    retry: u64,
    /// Where host code for which page offset begins, in order.
    pub(crate) begins: Vec<(usize, u32)>,
    /// What scratch registers hold of the block's groups.
    pub(crate) held: Held,
}

/// Displacement of a group's slot: in 8 bits if it fits, else in 32.
fn group_slot(slot: u8) -> Result<i8, i32> {
    let at = at::GROUP + i32::from(slot) * 8;
    i8::try_from(at).map_err(|_| at)
}

impl Emitter {
    pub(crate) fn new(glue: Glue, base: u64, first_record: u32, mode: CodeMode) -> Self {
        Self {
            code: VecAssembler::new(base as usize),
            glue,
            encoder: Encoder::new(64),
            mode,
            base,
            first_record,
            records: Vec::new(),
            pending: 0,
            offset: 0,
            executed: 0,
            present: Code::INVALID,
            straddles: false,
            retry: base,
            begins: Vec::with_capacity(16),
            held: Held::default(),
        }
    }

    pub(crate) fn position(&self) -> usize {
        self.code.offset().0
    }

    /// Host address of what is emitted next.
    pub(crate) fn here(&self) -> u64 {
        self.base + self.position() as u64
    }

    /// An instruction begins; `executed` precede it.
    pub(crate) fn begin(&mut self, instruction: &Instruction, executed: u32) {
        self.begin_at(instruction.ip() as u32, executed);
        self.present = instruction.code();
        self.straddles = instruction.next_ip() > PAGE;
    }

    /// What follows belongs to page offset `offset`.
    pub(crate) fn begin_at(&mut self, offset: u32, executed: u32) {
        debug_assert_eq!(self.pending, self.records.len(), "an exit's resumption was forgotten");
        (self.offset, self.executed) = (offset, executed);
        self.present = Code::INVALID;
        self.straddles = false;
        self.retry = self.here();
        self.begins.push((self.position(), offset));
    }

    /// What follows of the present instruction can be begun anew by itself: what precedes has only
    /// filled the context's scratch. Two accesses whose pages need the same TLB entry would
    /// otherwise push each other out for ever.
    pub(crate) fn retry_here(&mut self) {
        self.held.lose_all();
        self.retry = self.here();
    }

    /// The finished code and its records; `instructions` is their number in the block.
    pub(crate) fn finish(self, instructions: u32) -> (Vec<u8>, Vec<Record>) {
        debug_assert_eq!(self.pending, self.records.len(), "an exit's resumption was forgotten");
        let mut records = self.records;
        for record in &mut records {
            record.left = instructions.saturating_sub(u32::from(record.left)) as u16;
        }
        (self.code.finalize().expect("all labels of a block are defined"), records)
    }

    /// Encodes one instruction apart; `None` when it has no encoding (AH with a REX prefix).
    pub(crate) fn encode(&mut self, instruction: &Instruction) -> Option<Encoded> {
        let encoded = self.encoder.encode(instruction, 0);
        let mut buffer = self.encoder.take_buffer();
        let bytes = Encoded::from_slice(&buffer);
        buffer.clear();
        self.encoder.set_buffer(buffer);
        encoded.ok().map(|_| bytes)
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.code.extend(bytes);
    }

    /// Encodes one instruction and emits it; `None` when it has no encoding.
    fn encoded(&mut self, instruction: Result<Instruction, iced_x86::IcedError>) -> Option<()> {
        let bytes = self.encode(&instruction.ok()?)?;
        self.bytes(&bytes);
        Some(())
    }

    /// An instruction on `register` and the memory that has been checked at R8.
    pub(crate) fn register_with_memory(&mut self, code: Code, register: Register) -> Option<()> {
        self.encoded(Instruction::with2(code, register, HostMemory::CHECKED.operand()))
    }

    /// An instruction on the memory that has been checked at R8 and `register`.
    pub(crate) fn memory_with_register(&mut self, code: Code, register: Register) -> Option<()> {
        self.encoded(Instruction::with2(code, HostMemory::CHECKED.operand(), register))
    }

    /// Loads 8 bytes (`wide`) or 4 of checked memory into host register `to`.
    pub(crate) fn load(&mut self, to: u8, from: HostMemory, wide: bool) -> Option<()> {
        let (code, like) = if wide {
            (Code::Mov_r64_rm64, Register::RAX)
        } else {
            (Code::Mov_r32_rm32, Register::EAX)
        };
        self.encoded(Instruction::with2(code, sized(to, like), from.operand()))
    }

    /// Loads a stack slot, or an address in checked memory, into host register `to`.
    pub(crate) fn load_word(&mut self, to: u8, from: HostMemory) -> Option<()> {
        self.load(to, from, !self.mode.bits32)
    }

    /// Stores host register `from` in a stack slot.
    pub(crate) fn store_word(&mut self, to: HostMemory, from: u8) -> Option<()> {
        let (code, like) = match self.mode.bits32 {
            false => (Code::Mov_rm64_r64, Register::RAX),
            true => (Code::Mov_rm32_r32, Register::EAX),
        };
        self.encoded(Instruction::with2(code, to.operand(), sized(from, like)))
    }

    /// Stores a constant in a stack slot.
    pub(crate) fn store_constant(&mut self, to: HostMemory, value: i32) -> Option<()> {
        let code = if self.mode.bits32 { Code::Mov_rm32_imm32 } else { Code::Mov_rm64_imm32 };
        self.encoded(Instruction::with2(code, to.operand(), value))
    }

    /// Moves the guest's stack pointer.
    pub(crate) fn move_stack(&mut self, distance: i32) {
        // With the register's name the encoding is a byte shorter than with its number.
        const { assert!(HOST_RSP_OF_GUEST == 11) };
        match (i8::try_from(distance), self.mode.bits32) {
            (Ok(near), false) => dynasm!(self.code ; .arch x64 ; lea r11, [BYTE r11 + near]),
            (Ok(near), true) => dynasm!(self.code ; .arch x64 ; lea r11d, [BYTE r11 + near]),
            (Err(_), _) => self.add_far(HOST_RSP_OF_GUEST, HOST_RSP_OF_GUEST, distance),
        }
    }

    /// Host register `from` plus `distance` into `to`, of the width of addresses.
    pub(crate) fn add(&mut self, to: u8, from: u8, distance: i32) {
        match (i8::try_from(distance), self.mode.bits32) {
            (Ok(near), false) => {
                dynasm!(self.code ; .arch x64 ; lea Rq(to), [BYTE Rq(from) + near]);
            }
            (Ok(near), true) => dynasm!(self.code ; .arch x64 ; lea Rd(to), [BYTE Rq(from) + near]),
            (Err(_), _) => self.add_far(to, from, distance),
        }
    }

    /// The same, with a distance that takes 32 bits in any case.
    pub(crate) fn add_far(&mut self, to: u8, from: u8, distance: i32) {
        match self.mode.bits32 {
            false => dynasm!(self.code ; .arch x64 ; lea Rq(to), [Rq(from) + distance]),
            true => dynasm!(self.code ; .arch x64 ; lea Rd(to), [Rq(from) + distance]),
        }
    }

    /// The host address of checked memory into host register `to`.
    pub(crate) fn address_of(&mut self, to: u8, memory: HostMemory) -> Option<()> {
        let to = sized(to, Register::RAX);
        self.encoded(Instruction::with2(Code::Lea_r64_m, to, memory.operand()))
    }

    /// Loads guest register `number` into host register `to`.
    pub(crate) fn load_guest(&mut self, to: u8, number: u8) {
        match (home(number), self.held.find_guest(number)) {
            (Home::Host(from), _) => dynasm!(self.code ; .arch x64 ; mov Rq(to), Rq(from)),
            (Home::Slot, Some(held)) if held == to => {}
            (Home::Slot, Some(held)) => dynasm!(self.code ; .arch x64 ; mov Rq(to), Rq(held)),
            (Home::Slot, None) => {
                dynasm!(self.code ; .arch x64 ; mov Rq(to), [BYTE rsp + at::slot(number)]);
            }
        }
        self.held.lose(to);
    }

    /// An address in guest register `number` into host register `to`.
    pub(crate) fn load_address(&mut self, to: u8, number: u8) {
        match (self.mode.bits32, home(number)) {
            (true, Home::Host(from)) => {
                dynasm!(self.code ; .arch x64 ; mov Rd(to), Rd(from));
                self.held.lose(to);
            }
            _ => self.load_guest(to, number),
        }
    }

    /// Guest register `number` plus `displacement` into host register `to`; what scratch registers
    /// hold is lost, as the instruction may be begun anew here.
    pub(crate) fn load_guest_plus(&mut self, to: u8, number: u8, displacement: i32) {
        self.held.lose_all();
        let from = match home(number) {
            Home::Host(from) => from,
            Home::Slot => {
                self.load_guest(to, number);
                to
            }
        };
        match displacement {
            0 if from == to => {}
            0 => self.load_address(to, number),
            _ => self.add(to, from, displacement),
        }
    }

    /// Behind the check of a group: the range's host address plus `bias` becomes its pointer, in
    /// R9 and in its slot.
    pub(crate) fn keep_group(&mut self, kept: Pointer, bias: i32) {
        match bias {
            0 => dynasm!(self.code ; .arch x64 ; lea r9, [r8 + r9]),
            _ => dynasm!(self.code ; .arch x64 ; lea r9, [BYTE r8 + r9 + bias as i8]),
        }
        match group_slot(kept.slot) {
            Ok(near) => dynasm!(self.code ; .arch x64 ; mov [BYTE rsp + near], r9),
            Err(far) => dynasm!(self.code ; .arch x64 ; mov [rsp + far], r9),
        }
        self.held.hold_pointer(R9, kept);
    }

    /// The pointer of a group into scratch register `to`, unless it is there.
    pub(crate) fn use_group(&mut self, kept: Pointer, to: u8) {
        if self.held.find_pointer(kept.slot) != Some(to) {
            match group_slot(kept.slot) {
                Ok(near) => dynasm!(self.code ; .arch x64 ; mov Rq(to), [BYTE rsp + near]),
                Err(far) => dynasm!(self.code ; .arch x64 ; mov Rq(to), [rsp + far]),
            }
        }
        self.held.hold_pointer(to, kept);
    }

    /// Stores host register `from` into guest register `number`.
    pub(crate) fn store_guest(&mut self, number: u8, from: u8) {
        match home(number) {
            Home::Host(to) => dynasm!(self.code ; .arch x64 ; mov Rq(to), Rq(from)),
            Home::Slot => {
                dynasm!(self.code ; .arch x64 ; mov [BYTE rsp + at::slot(number)], Rq(from));
                self.held.hold_guest(from, number);
            }
        }
    }

    /// The host register of a guest register, if that is in one.
    fn host_of(&self, register: Register) -> Option<u8> {
        if register == Register::None {
            return None;
        }
        let number = register.full_register().number() as u8;
        match home(number) {
            Home::Host(host) => Some(host),
            Home::Slot => self.held.find_guest(number),
        }
    }

    /// A guest register as a host register for use in an address: where it is, or loaded into
    /// `scratch`.
    fn address_register(&mut self, register: Register, scratch: u8) -> Register {
        if register == Register::None {
            return Register::None;
        }
        let host = self.host_of(register).unwrap_or_else(|| {
            let number = register.full_register().number() as u8;
            self.load_guest(scratch, number);
            self.held.hold_guest(scratch, number);
            scratch
        });
        sized(host, register)
    }

    /// LEA of the instruction's effective address, without segment base, into `to`, a register of
    /// the width wanted. Uses R8 and R9. `None`: its displacement cannot be encoded.
    pub(crate) fn lea(&mut self, instruction: &Instruction, to: Register) -> Option<()> {
        let displacement = instruction.memory_displacement64();
        if instruction.is_ip_rel_memory_operand() {
            // Decoded with the page offset as address, so that this counts from the page.
            let distance = i32::try_from(displacement as i64).ok()?;
            if instruction.memory_base() == Register::EIP {
                return None;
            }
            dynasm!(self.code ; .arch x64 ; mov r8, [BYTE rsp + at::PAGE]);
            self.held.lose(R8);
            let memory = MemoryOperand::with_base_displ(Register::R8, i64::from(distance));
            return self.encode_lea(to, memory);
        }
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let none = base == Register::None && index == Register::None;
        if none && i32::try_from(displacement as i64).is_err() {
            return None;
        }
        // Neither is loaded over the other.
        let [for_index, for_base] = match (self.host_of(index), self.host_of(base)) {
            (_, Some(R9)) | (Some(R8), _) => [R8, R9],
            _ => [R9, R8],
        };
        let index_register = self.address_register(index, for_index);
        let base_register = self.address_register(base, for_base);
        // iced: 0 is none, 1 the shortest that fits; an absolute address has that of its width.
        let size = match (none, displacement) {
            (true, _) => instruction.memory_displ_size().max(4),
            (false, 0) => 0,
            (false, _) => 1,
        };
        let memory = MemoryOperand::new(
            base_register,
            index_register,
            instruction.memory_index_scale(),
            displacement as i64,
            size,
            false,
            Register::None,
        );
        self.encode_lea(to, memory)
    }

    fn encode_lea(&mut self, to: Register, memory: MemoryOperand) -> Option<()> {
        let code = match to.size() {
            2 => Code::Lea_r16_m,
            4 => Code::Lea_r32_m,
            _ => Code::Lea_r64_m,
        };
        let instruction = Instruction::with2(code, to, memory).ok()?;
        let bytes = self.encode(&instruction)?;
        self.bytes(&bytes);
        self.held.lose(to.full_register().number() as u8);
        Some(())
    }

    /// The linear address of the memory operand into R8; what scratch registers hold is lost, as the
    /// instruction may be begun anew here. `None`: not expressible; nothing that
    /// matters has been emitted.
    pub(crate) fn linear_address(&mut self, instruction: &Instruction) -> Option<()> {
        self.held.lose_all();
        let register = if instruction.memory_base() == Register::None
            && instruction.memory_index() == Register::None
            && instruction.memory_displ_size() == 4
        {
            Register::R8D
        } else {
            Register::R8
        };
        let narrow = self.mode.bits32
            || instruction.memory_base().size() == 4
            || instruction.memory_index().size() == 4;
        self.lea(instruction, if narrow { Register::R8D } else { register })?;
        let (base, refusal) = match instruction.segment_prefix() {
            Register::FS => (at::FS_BASE, at::FS_REFUSAL),
            Register::GS => (at::GS_BASE, at::GS_REFUSAL),
            _ => return Some(()),
        };
        match self.mode.bits32 {
            false => {
                dynasm!(self.code ; .arch x64 ; mov r9, [BYTE rsp + base] ; lea r8, [r8 + r9]);
            }
            // Where the segment does not span all, the sum is an address that no check passes.
            true => dynasm!(self.code ; .arch x64
                ; mov r9, [BYTE rsp + base]
                ; lea r8d, [r8 + r9]
                ; mov r9, [rsp + refusal]
                ; lea r8, [r8 + r9]
            ),
        }
        self.held.lose_all();
        Some(())
    }

    /// Checks an access at the linear address in R8. Afterwards R9 is the host minus the linear
    /// address of its page; RCX is free.
    pub(crate) fn check(&mut self, checked: Checked) {
        self.held.lose_all();
        let (mask, last) = match checked.alignment {
            1 => (at::PAGE_NUMBER, i32::from(checked.len) - 1),
            2 => (at::PAGE_OR_2, 0),
            4 => (at::PAGE_OR_4, 0),
            8 => (at::PAGE_OR_8, 0),
            16 => (at::PAGE_OR_16, 0),
            _ => (at::PAGE_OR_32, 0),
        };
        dynasm!(self.code ; .arch x64 ; pext r9, r8, [BYTE r15 + at::TLB_INDEX]);
        match checked.access {
            Access::Read => dynasm!(self.code ; .arch x64 ; mov rcx, [r15 + r9 * 8]),
            Access::Write => dynasm!(self.code ; .arch x64 ; mov rcx, [r15 + r9 * 8 + at::WRITE]),
        }
        match last {
            0 => dynasm!(self.code ; .arch x64 ; lea rcx, [rcx + r8]),
            1..128 => dynasm!(self.code ; .arch x64 ; lea rcx, [BYTE rcx + r8 + last as i8]),
            _ => dynasm!(self.code ; .arch x64 ; lea rcx, [rcx + r8 + last]),
        }
        dynasm!(self.code ; .arch x64
            ; pext rcx, rcx, [BYTE r15 + mask]
            ; jrcxz >hit
        );
        self.exit(self.glue.miss, Some(checked));
        dynasm!(self.code ; .arch x64
            ; hit:
            ; mov r9, [r15 + r9 * 8 + at::ADDEND]
        );
    }

    /// An exit by `stub` with the present instruction's record.
    fn exit(&mut self, stub: u64, checked: Option<Checked>) {
        let site = self.here();
        let number = self.record(self.offset, self.executed, checked);
        if let Some(record) = self.records.last_mut() {
            record.site = site;
        }
        dynasm!(self.code ; .arch x64 ; call extern stub as usize ; .u32 number);
    }

    /// Makes a record; gives its number. While the block is made, `left` holds what has been
    /// executed.
    pub(crate) fn record(&mut self, offset: u32, executed: u32, checked: Option<Checked>) -> u32 {
        self.records.push(Record {
            offset: offset as u16,
            left: executed as u16,
            straddles: self.straddles,
            instruction: self.present,
            checked,
            retry: self.retry,
            resume: 0,
            site: 0,
            kept: Kept::NONE,
            taken: 0,
            taken_as: 0,
        });
        self.first_record + self.records.len() as u32 - 1
    }

    /// Leaves the present instruction to the interpreter.
    pub(crate) fn interpret(&mut self) {
        self.exit(self.glue.interpret, None);
    }

    /// Calls a stub that has the present instruction's record behind the call.
    pub(crate) fn call_with_record(&mut self, stub: u64) {
        self.exit(stub, None);
    }

    /// Leaves to the interpreter unless RCX is zero.
    pub(crate) fn require_zero(&mut self) {
        dynasm!(self.code ; .arch x64 ; jrcxz >fine);
        self.interpret();
        dynasm!(self.code ; .arch x64 ; fine:);
    }

    /// The present instruction is complete: its exits resume here.
    pub(crate) fn resume_here(&mut self) {
        let here = self.here();
        for record in &mut self.records[self.pending..] {
            record.resume = here;
            self.held.lose_all();
        }
        self.pending = self.records.len();
    }

    /// The present instruction ends the block: its exits do not resume.
    pub(crate) fn no_resume(&mut self) {
        self.pending = self.records.len();
    }

    /// Looks the target in R8 up in the jump table; R9 becomes the entry's index. On a miss the
    /// instruction, which must not have had any effect yet, is begun anew once the entry is there.
    pub(crate) fn find_target(&mut self) {
        glue::compare_first_entry(&mut self.code);
        dynasm!(self.code ; .arch x64 ; jrcxz >found);
        self.exit(self.glue.jump, None);
        dynasm!(self.code ; .arch x64 ; found:);
    }

    /// Jumps to the target whose entry [`Emitter::find_target`] found.
    pub(crate) fn jump_found(&mut self) {
        glue::jump_to_entry(&mut self.code);
    }

    /// Gives back what the block was charged for instructions that it leaves without executing.
    pub(crate) fn refund(&mut self, instructions: u32) {
        if instructions != 0 {
            dynasm!(self.code ; .arch x64
                ; mov rcx, [rsp + at::BUDGET]
                ; lea rcx, [rcx + instructions as i32]
                ; mov [rsp + at::BUDGET], rcx
            );
        }
    }

    /// Jumps to page offset `target` of this page: at first to an exit that finds the block and
    /// replaces the jump's distance. `executed` instructions of the block precede the jump.
    pub(crate) fn chain(&mut self, executed: u32, target: u32) {
        dynasm!(self.code ; .arch x64 ; jmp >unlinked ; unlinked:);
        self.chain_exit(executed, target, self.here() - 4);
    }

    /// The exit of a direct branch whose displacement is at `site`.
    pub(crate) fn chain_exit(&mut self, executed: u32, target: u32, site: u64) {
        let number = self.record(target, executed, None);
        if let Some(record) = self.records.last_mut() {
            record.site = site;
        }
        self.no_resume();
        dynasm!(self.code ; .arch x64 ; call extern self.glue.chain as usize ; .u32 number);
    }

    /// The page's linear address plus `distance` into R8.
    pub(crate) fn page_plus(&mut self, distance: i32) {
        dynasm!(self.code ; .arch x64 ; mov r8, [BYTE rsp + at::PAGE]);
        match self.mode.bits32 {
            false => dynasm!(self.code ; .arch x64 ; lea r8, [r8 + distance]),
            true => dynasm!(self.code ; .arch x64 ; lea r8d, [r8 + distance]),
        }
    }

    /// Leaves when the poll word is set.
    pub(crate) fn poll(&mut self) {
        dynasm!(self.code ; .arch x64 ; mov rcx, [BYTE rsp + at::POLL] ; jrcxz >go_on);
        self.exit(self.glue.poll, None);
        self.no_resume();
        dynasm!(self.code ; .arch x64 ; go_on:);
    }

    /// Charges the budget for the whole block, or leaves when it does not suffice. The number of
    /// instructions, not known yet, is to be filled in at the offset that this gives.
    pub(crate) fn charge(&mut self) -> usize {
        dynasm!(self.code ; .arch x64
            ; mov r8, [rsp + at::BUDGET]
            ; lea r8, [r8 + i32::MIN]
        );
        let at = self.position() - 4;
        dynasm!(self.code ; .arch x64
            ; mov r9d, 63
            ; shrx rcx, r8, r9
            ; jrcxz >enough
        );
        self.exit(self.glue.poll, None);
        self.no_resume();
        dynasm!(self.code ; .arch x64 ; enough: ; mov [rsp + at::BUDGET], r8);
        at
    }

    /// Makes sure that the guest's vector registers are in the host's.
    pub(crate) fn need_vectors(&mut self) {
        self.held.lose_all();
        dynasm!(self.code ; .arch x64 ; mov rcx, [rsp + at::VECTORS_MISSING] ; jrcxz >loaded);
        self.exit(self.glue.load_vectors, None);
        // Where the load is refused, what follows must not run here either.
        self.no_resume();
        dynasm!(self.code ; .arch x64 ; loaded:);
    }

    /// A conditional jump to `label` on condition `cc`; always with a displacement of 32 bits.
    pub(crate) fn jump_if(&mut self, cc: u8, label: DynamicLabel) {
        let code = &mut self.code;
        match cc {
            0 => dynasm!(code ; .arch x64 ; jo =>label),
            1 => dynasm!(code ; .arch x64 ; jno =>label),
            2 => dynasm!(code ; .arch x64 ; jb =>label),
            3 => dynasm!(code ; .arch x64 ; jae =>label),
            4 => dynasm!(code ; .arch x64 ; je =>label),
            5 => dynasm!(code ; .arch x64 ; jne =>label),
            6 => dynasm!(code ; .arch x64 ; jbe =>label),
            7 => dynasm!(code ; .arch x64 ; ja =>label),
            8 => dynasm!(code ; .arch x64 ; js =>label),
            9 => dynasm!(code ; .arch x64 ; jns =>label),
            10 => dynasm!(code ; .arch x64 ; jp =>label),
            11 => dynasm!(code ; .arch x64 ; jnp =>label),
            12 => dynasm!(code ; .arch x64 ; jl =>label),
            13 => dynasm!(code ; .arch x64 ; jge =>label),
            14 => dynasm!(code ; .arch x64 ; jle =>label),
            _ => dynasm!(code ; .arch x64 ; jg =>label),
        }
    }

    /// Jumps to `label` when guest RCX is zero or, with `zero` false, when it is not.
    pub(crate) fn jump_if_counter(&mut self, zero: bool, label: DynamicLabel) {
        self.load_address(RCX, 1);
        dynasm!(self.code ; .arch x64 ; jrcxz >zero);
        if zero {
            dynasm!(self.code ; .arch x64 ; jmp >on ; zero: ; jmp =>label ; on:);
        } else {
            dynasm!(self.code ; .arch x64 ; jmp =>label ; zero:);
        }
    }
}
