//! MOVS, STOS, LODS, SCAS and CMPS without a repeat prefix: one element each.
//!
//! Neighbours: [`crate::strings`] has REP MOVS and REP STOS.

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{Code, Instruction, Mnemonic as M, OpKind, Register};

use crate::allow::Access;
use crate::context::at;
use crate::emit::{R8, RCX};
use crate::mode::CodeMode;
use crate::records::{Checked, Sharing};
use crate::registers::sized;
use crate::translate::{Flow, Translator};

const RAX: u8 = 0;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// What an instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    Movs,
    Stos,
    Lods,
    Scas,
    Cmps,
}

/// The element operation of a string instruction without prefixes and with addresses of the code's
/// width.
pub(crate) fn element(instruction: &Instruction, mode: CodeMode) -> Option<Element> {
    let pointers = match mode.bits32 {
        false => [OpKind::MemorySegRSI, OpKind::MemoryESRDI],
        true => [OpKind::MemorySegESI, OpKind::MemoryESEDI],
    };
    let plain = instruction.is_string_instruction()
        && !instruction.has_rep_prefix()
        && !instruction.has_repne_prefix()
        && !instruction.has_segment_prefix()
        && (0..instruction.op_count())
            .map(|operand| instruction.op_kind(operand))
            .all(|kind| kind == OpKind::Register || pointers.contains(&kind));
    if !plain {
        return None;
    }
    Some(match instruction.mnemonic() {
        M::Movsb | M::Movsw | M::Movsd | M::Movsq => Element::Movs,
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => Element::Stos,
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => Element::Lods,
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => Element::Scas,
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => Element::Cmps,
        _ => return None,
    })
}

/// Instructions on a register and memory, by operand size.
const LOAD: [Code; 4] =
    [Code::Mov_r8_rm8, Code::Mov_r16_rm16, Code::Mov_r32_rm32, Code::Mov_r64_rm64];
const LOAD_EXTENDED: [Code; 4] =
    [Code::Movzx_r32_rm8, Code::Movzx_r32_rm16, Code::Mov_r32_rm32, Code::Mov_r64_rm64];
const STORE: [Code; 4] =
    [Code::Mov_rm8_r8, Code::Mov_rm16_r16, Code::Mov_rm32_r32, Code::Mov_rm64_r64];
const COMPARE: [Code; 4] =
    [Code::Cmp_r8_rm8, Code::Cmp_r16_rm16, Code::Cmp_r32_rm32, Code::Cmp_r64_rm64];

impl Translator<'_> {
    pub(crate) fn element(&mut self, instruction: &Instruction, element: Element) -> Option<Flow> {
        let size = instruction.memory_size().size();
        let log = (size.trailing_zeros() as usize).min(3);
        match element {
            Element::Lods => {
                self.check_element(RSI, size, Access::Read);
                self.emit.register_with_memory(LOAD[log], operand(RAX, log))?;
            }
            Element::Stos => {
                self.check_element(RDI, size, Access::Write);
                self.emit.memory_with_register(STORE[log], operand(RAX, log))?;
            }
            Element::Scas => {
                self.check_element(RDI, size, Access::Read);
                self.emit.register_with_memory(COMPARE[log], operand(RAX, log))?;
            }
            Element::Movs => {
                self.take_source(log, size)?;
                self.check_element(RDI, size, Access::Write);
                self.load_source();
                self.emit.memory_with_register(STORE[log], operand(RCX, log))?;
            }
            Element::Cmps => {
                self.take_source(log, size)?;
                self.check_element(RDI, size, Access::Read);
                self.load_source();
                self.emit.register_with_memory(COMPARE[log], operand(RCX, log))?;
            }
        }
        if !matches!(element, Element::Stos | Element::Scas) {
            self.emit.add(RSI, RSI, size as i32);
        }
        if element != Element::Lods {
            self.emit.add(RDI, RDI, size as i32);
        }
        Some(Flow::Next)
    }

    fn check_element(&mut self, pointer: u8, size: usize, access: Access) {
        self.emit.load_address(R8, pointer);
        let len = size as u16;
        self.emit.check(Checked { access, len, alignment: 1, group: Sharing::Alone });
    }

    /// Keeps the source's element in the context, so that a miss of the target begins behind it.
    fn take_source(&mut self, log: usize, size: usize) -> Option<()> {
        self.check_element(RSI, size, Access::Read);
        self.emit.register_with_memory(LOAD_EXTENDED[log], operand(RCX, log.max(2)))?;
        dynasm!(self.emit.code ; .arch x64 ; mov [BYTE rsp + at::TEMPORARY], rcx);
        self.emit.retry_here();
        Some(())
    }

    fn load_source(&mut self) {
        dynasm!(self.emit.code ; .arch x64 ; mov rcx, [BYTE rsp + at::TEMPORARY]);
    }
}

/// Host register `number` with operands of `1 << log` bytes.
fn operand(number: u8, log: usize) -> Register {
    sized(number, [Register::AL, Register::AX, Register::EAX, Register::RAX][log])
}
