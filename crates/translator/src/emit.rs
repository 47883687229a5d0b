//! Emitting pieces of blocks: addresses, checked memory accesses, exits.
//!
//! Nothing here changes the host's status flags: they are the guest's. That is why a memory check
//! computes with LEA and PEXT and branches with JRCXZ, and why exits can happen anywhere with the
//! guest's state exact.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, VecAssembler, dynasm, x64::X64Relocation};
use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Register};

use crate::allow::Access;
use crate::context::at;
use crate::glue::Glue;
use crate::registers::{HOST_RCX_OF_GUEST, Home, home};

/// Host scratch registers.
pub(crate) const R8: u8 = 8;
pub(crate) const R9: u8 = 9;
pub(crate) const RCX: u8 = 1;

/// Alignment that a vector operand needs, folded into the TLB check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alignment {
    None,
    To16,
    To32,
}

/// What an exit's first data word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExitInfo {
    /// Offset in the page of the instruction, 0 to 4096.
    pub(crate) offset: u32,
    /// Instructions of the block executed before it.
    pub(crate) executed: u32,
    /// The access whose translation was missing; its address is in R8.
    pub(crate) access: Option<Access>,
}

impl ExitInfo {
    pub(crate) fn pack(self) -> u32 {
        let access = match self.access {
            None => 0,
            Some(Access::Read) => 1,
            Some(Access::Write) => 2,
        };
        self.offset | self.executed << 13 | access << 24
    }

    pub(crate) fn unpack(word: u32) -> Self {
        Self {
            offset: word & 0x1fff,
            executed: word >> 13 & 0x7ff,
            access: match word >> 24 {
                1 => Some(Access::Read),
                2 => Some(Access::Write),
                _ => None,
            },
        }
    }
}

/// A data word to be filled with the distance to where an exit resumes.
struct Resume {
    /// Offset of the word in the code.
    word: usize,
    /// Offset of the exit's data.
    data: usize,
}

pub(crate) struct Emitter {
    pub(crate) code: VecAssembler<X64Relocation>,
    pub(crate) glue: Glue,
    encoder: Encoder,
    /// Exits of the present instruction that resume behind it.
    pending: Vec<Resume>,
    /// Words to fill when the code is complete: offset and value.
    fixups: Vec<(usize, u32)>,
    /// Exit information of the present instruction.
    pub(crate) info: ExitInfo,
}

impl Emitter {
    pub(crate) fn new(glue: Glue, base: u64) -> Self {
        Self {
            code: VecAssembler::new(base as usize),
            glue,
            encoder: Encoder::new(64),
            pending: Vec::new(),
            fixups: Vec::new(),
            info: ExitInfo { offset: 0, executed: 0, access: None },
        }
    }

    pub(crate) fn position(&self) -> usize {
        self.code.offset().0
    }

    /// The finished code.
    pub(crate) fn finish(self) -> Vec<u8> {
        debug_assert!(self.pending.is_empty(), "an exit's resumption was forgotten");
        let mut bytes = self.code.finalize().expect("all labels of a block are defined");
        for (at, value) in self.fixups {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    /// Encodes one instruction apart; `None` when it has no encoding (AH with a REX prefix).
    pub(crate) fn encode(&mut self, instruction: &Instruction) -> Option<Vec<u8>> {
        let encoded = self.encoder.encode(instruction, 0);
        let bytes = self.encoder.take_buffer();
        encoded.ok().map(|_| bytes)
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.code.extend(bytes);
    }

    /// Loads guest register `number` into host register `to`.
    pub(crate) fn load_guest(&mut self, to: u8, number: u8) {
        match home(number) {
            Home::Host(from) => dynasm!(self.code ; .arch x64 ; mov Rq(to), Rq(from)),
            Home::Slot => {
                dynasm!(self.code ; .arch x64 ; gs mov Rq(to), [DWORD at::gpr(number)]);
            }
        }
    }

    /// Stores host register `from` into guest register `number`.
    pub(crate) fn store_guest(&mut self, number: u8, from: u8) {
        match home(number) {
            Home::Host(to) => dynasm!(self.code ; .arch x64 ; mov Rq(to), Rq(from)),
            Home::Slot => {
                dynasm!(self.code ; .arch x64 ; gs mov [DWORD at::gpr(number)], Rq(from));
            }
        }
    }

    /// A guest register as a host register for use in an address: itself, or loaded into `scratch`.
    fn address_register(&mut self, register: Register, scratch: u8) -> Register {
        if register == Register::None {
            return Register::None;
        }
        let number = register.full_register().number() as u8;
        let host = match home(number) {
            Home::Host(host) => host,
            Home::Slot => {
                self.load_guest(scratch, number);
                scratch
            }
        };
        crate::registers::sized(host, register)
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
            dynasm!(self.code ; .arch x64 ; gs mov r8, [DWORD at::PAGE]);
            let memory = MemoryOperand::with_base_displ(Register::R8, i64::from(distance));
            return self.encode_lea(to, memory);
        }
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let none = base == Register::None && index == Register::None;
        if none && i32::try_from(displacement as i64).is_err() {
            return None;
        }
        let index_register = self.address_register(index, R9);
        let base_register = self.address_register(base, R8);
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
        Some(())
    }

    /// The linear address of the memory operand into R8. `None`: not expressible; nothing that
    /// matters has been emitted.
    pub(crate) fn linear_address(&mut self, instruction: &Instruction) -> Option<()> {
        let register = if instruction.memory_base() == Register::None
            && instruction.memory_index() == Register::None
            && instruction.memory_displ_size() == 4
        {
            Register::R8D
        } else {
            Register::R8
        };
        let narrow =
            instruction.memory_base().size() == 4 || instruction.memory_index().size() == 4;
        self.lea(instruction, if narrow { Register::R8D } else { register })?;
        match instruction.segment_prefix() {
            Register::FS => {
                dynasm!(self.code ; .arch x64 ; gs mov r9, [DWORD at::FS_BASE] ; lea r8, [r8 + r9]);
            }
            Register::GS => {
                dynasm!(self.code ; .arch x64 ; gs mov r9, [DWORD at::GS_BASE] ; lea r8, [r8 + r9]);
            }
            _ => {}
        }
        Some(())
    }

    /// Checks the access of `size` bytes at the linear address in R8. Afterwards `[R8 + R9]` is
    /// the operand; RCX is free.
    pub(crate) fn check(&mut self, access: Access, size: u32, alignment: Alignment) {
        let tags = match access {
            Access::Read => at::READ,
            Access::Write => at::WRITE,
        };
        let (mask, last) = match alignment {
            Alignment::None => (at::PAGE_NUMBER, size as i32 - 1),
            Alignment::To16 => (at::PAGE_OR_16, 0),
            Alignment::To32 => (at::PAGE_OR_32, 0),
        };
        dynasm!(self.code ; .arch x64
            ; pext r9, r8, [BYTE r15 + at::TLB_INDEX]
            ; mov rcx, [r15 + r9 * 8 + tags]
            ; lea rcx, [rcx + r8 + last]
            ; pext rcx, rcx, [BYTE r15 + mask]
            ; jrcxz >hit
        );
        self.exit(Some(access));
        dynasm!(self.code ; .arch x64
            ; hit:
            ; mov r9, [r15 + r9 * 8 + at::ADDEND]
        );
    }

    /// An exit to the interpreter for the present instruction, resuming behind it.
    pub(crate) fn exit(&mut self, access: Option<Access>) {
        let info = ExitInfo { access, ..self.info };
        dynasm!(self.code ; .arch x64
            ; call extern self.glue.interpret as usize
            ; .u32 info.pack()
            ; .u32 0
        );
        let data = self.position() - 8;
        self.pending.push(Resume { word: data + 4, data });
    }

    /// The present instruction is complete: its exits resume here.
    pub(crate) fn resume_here(&mut self) {
        let here = self.position();
        for Resume { word, data } in self.pending.drain(..) {
            self.fixups.push((word, (here - data) as u32));
        }
    }

    /// The present instruction ends the block: its exits do not resume.
    pub(crate) fn no_resume(&mut self) {
        self.pending.clear();
    }

    /// Looks the target in R8 up in the jump table; on a miss the interpreter executes the present
    /// instruction, which must not have had any effect yet. Then R9 is the entry's index.
    pub(crate) fn find_target(&mut self) {
        dynasm!(self.code ; .arch x64
            ; mov r9d, 0
            ; crc32 r9, r8
            ; pext r9, r9, [BYTE r15 + at::JUMP_INDEX]
            ; mov rcx, [r15 + r9 * 8 + at::JUMP_TAG]
            ; lea rcx, [rcx + r8]
            ; jrcxz >found
        );
        self.exit(None);
        dynasm!(self.code ; .arch x64 ; found:);
    }

    /// Jumps to the target whose entry [`Emitter::find_target`] found.
    pub(crate) fn jump_found(&mut self, executed: u32) {
        self.count(executed);
        dynasm!(self.code ; .arch x64
            ; mov rcx, [r15 + r9 * 8 + at::JUMP_PAGE]
            ; gs mov [DWORD at::PAGE], rcx
            ; jmp QWORD [r15 + r9 * 8 + at::JUMP_HOST]
        );
    }

    /// Tells how many instructions of the block have been executed, for when they are counted.
    pub(crate) fn count(&mut self, executed: u32) {
        dynasm!(self.code ; .arch x64 ; gs mov DWORD [DWORD at::LAST], executed as i32);
    }

    /// Jumps to page offset `target` of this page: at first to an exit that finds the block and
    /// replaces the jump's distance.
    pub(crate) fn chain(&mut self, executed: u32, target: u32) {
        self.count(executed);
        dynasm!(self.code ; .arch x64
            ; jmp >unlinked
            ; unlinked:
            ; call extern self.glue.chain as usize
            ; .u32 target
            // Distance from these data back to the jump's displacement.
            ; .u32 13 - 4
        );
    }

    /// The page's linear address plus `distance` into R8.
    pub(crate) fn page_plus(&mut self, distance: i32) {
        dynasm!(self.code ; .arch x64
            ; gs mov r8, [DWORD at::PAGE]
            ; lea r8, [r8 + distance]
        );
    }

    /// Leaves when the poll word is set; `offset` is where the block begins.
    pub(crate) fn poll(&mut self, offset: u32) {
        dynasm!(self.code ; .arch x64
            ; gs mov rcx, [DWORD at::POLL]
            ; jrcxz >go_on
            ; call extern self.glue.poll as usize
            ; .u32 offset
            ; .u32 0
            ; go_on:
        );
    }

    /// Makes sure that the guest's vector registers are in the host's.
    pub(crate) fn need_vectors(&mut self) {
        let info = ExitInfo { access: None, ..self.info };
        dynasm!(self.code ; .arch x64
            ; gs mov rcx, [DWORD at::VECTORS_MISSING]
            ; jrcxz >loaded
            ; call extern self.glue.load_vectors as usize
            ; .u32 info.pack()
            ; .u32 0
            ; loaded:
        );
    }

    /// A conditional jump to `label` on condition `cc`.
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

    /// Jumps to `label` when guest RCX is zero (`IF_ZERO`) or not.
    pub(crate) fn jump_if_counter(&mut self, zero: bool, label: DynamicLabel) {
        dynasm!(self.code ; .arch x64 ; mov rcx, Rq(HOST_RCX_OF_GUEST) ; jrcxz >zero);
        if zero {
            dynasm!(self.code ; .arch x64 ; jmp >on ; zero: ; jmp =>label ; on:);
        } else {
            dynasm!(self.code ; .arch x64 ; jmp =>label ; zero:);
        }
    }
}
