//! Registers and memory that an instruction needs to do something interesting.

use iced_x86::{Instruction, Mnemonic as M, OpKind};
use x86::{cr::rflags, gpr};

use super::{Builder, registers};
use crate::leeway::operand_address;
use crate::values;

impl Builder<'_> {
    /// Sets what the instruction reads implicitly, and values that random ones rarely hit.
    pub(super) fn arrange(&mut self, instruction: &mut Instruction) {
        if instruction.code().is_string_instruction() {
            self.arrange_string(instruction);
        }
        match instruction.mnemonic() {
            M::Bt | M::Bts | M::Btr | M::Btc => self.arrange_bit_offset(instruction),
            M::Div | M::Idiv => self.arrange_dividend(),
            M::Shld | M::Shrd | M::Rcl | M::Rcr => self.arrange_count(),
            M::Loop | M::Loope | M::Loopne | M::Jrcxz | M::Jecxz => {
                let count = self.random.below(4);
                self.set(gpr::RCX, count);
            }
            M::Enter => {
                instruction.set_immediate16(self.random.next() as u16 & 0x1ff);
                let level = if self.random.percent(60) { 0 } else { self.random.below(34) as u8 };
                instruction.set_immediate8_2nd(level);
                let frame = values::stack_address(self.random);
                self.set(gpr::RBP, frame);
            }
            M::Leave => {
                let frame = values::stack_address(self.random);
                self.set(gpr::RBP, frame);
            }
            M::Xlatb => {
                let table = values::address(self.random, 128);
                self.set(gpr::RBX, table);
            }
            M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu => {
                let target = values::address(self.random, 16);
                self.set(gpr::RDI, target);
            }
            M::Ret => {
                let target = values::code_address(self.random, self.at);
                self.poke_stack(target);
            }
            M::Popf | M::Popfq | M::Popfd => {
                let flags = self.flags_value();
                self.poke_stack(flags);
            }
            M::Jmp | M::Call => self.arrange_indirect(instruction),
            M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b => self.arrange_comparison(instruction),
            M::Ldmxcsr | M::Vldmxcsr => {
                let value = u64::from(registers::mxcsr(self.random));
                self.poke_operand(instruction, 0, value, 90);
            }
            M::Fldcw | M::Fldenv => {
                let value = u64::from(registers::control_word(self.random));
                self.poke_operand(instruction, 0, value, 90);
            }
            M::Fxrstor | M::Fxrstor64 => {
                let value = u64::from(registers::mxcsr(self.random));
                self.poke_operand(instruction, 24, value, 85);
            }
            _ => {}
        }
    }

    /// Sets a general register unless an earlier instruction needs it.
    fn set(&mut self, register: usize, value: u64) {
        if self.pin(register) {
            self.image.gpr[register] = value;
        }
    }

    fn arrange_string(&mut self, instruction: &Instruction) {
        let narrow = (0..instruction.op_count()).any(|n| {
            matches!(
                instruction.op_kind(n),
                OpKind::MemorySegESI | OpKind::MemoryESEDI | OpKind::MemorySegEDI
            )
        });
        for register in [gpr::RSI, gpr::RDI] {
            let size = 8 + self.random.below(64);
            let target = if narrow {
                values::low_address(self.random, size)
            } else {
                values::address(self.random, size)
            };
            self.set(register, target);
        }
        if self.random.one_in(8) && self.pinned & 1 << gpr::RDI != 0 {
            // Overlapping source and target.
            self.image.gpr[gpr::RDI] =
                self.image.gpr[gpr::RSI].wrapping_add(self.random.below(33)).wrapping_sub(16);
        }
        let count = match self.random.below(8) {
            0 => 0,
            1 => self.random.below(5000),
            2 => self.random.next() as u8 as u64 | 0xffff_ffff_0000_0000,
            _ => self.random.below(70),
        };
        self.set(gpr::RCX, count);
    }

    /// Bit offsets reach beyond the operand, but mostly not beyond the mapped pages.
    fn arrange_bit_offset(&mut self, instruction: &Instruction) {
        if instruction.op0_kind() != OpKind::Memory || instruction.op1_kind() != OpKind::Register {
            return;
        }
        let offset = match self.random.below(4) {
            0 => values::integer(self.random),
            1 => self.random.below(1 << 17).wrapping_sub(1 << 16),
            _ => self.random.below(1 << 10).wrapping_sub(1 << 9),
        };
        self.set(instruction.op1_register().number(), offset);
    }

    /// Makes the quotient fit half of the time.
    fn arrange_dividend(&mut self) {
        if self.random.percent(50) {
            let low = values::integer(self.random);
            self.set(gpr::RAX, low);
            let high = if self.random.percent(70) { 0 } else { (low as i64 >> 63) as u64 };
            self.set(gpr::RDX, high);
        }
    }

    fn arrange_count(&mut self) {
        let count =
            if self.random.percent(70) { self.random.below(34) } else { self.random.next() };
        self.set(gpr::RCX, count);
    }

    /// Flags for POPF: the dangerous ones rarely.
    fn flags_value(&mut self) -> u64 {
        let any = self.random.next();
        let quiet = !(rflags::TF | rflags::AC | rflags::NT);
        if self.random.percent(85) { any & quiet } else { any }
    }

    /// Stores a quadword where the stack pointer points.
    fn poke_stack(&mut self, value: u64) {
        self.pokes.push((self.image.gpr[gpr::RSP], value));
    }

    fn arrange_indirect(&mut self, instruction: &Instruction) {
        let target = values::code_address(self.random, self.at);
        match instruction.op0_kind() {
            OpKind::Register => self.set(instruction.op0_register().number(), target),
            OpKind::Memory => self.poke_operand(instruction, 0, target, 90),
            _ => {}
        }
    }

    /// Lets the comparison of CMPXCHG and its kin succeed in half of the cases.
    fn arrange_comparison(&mut self, instruction: &Instruction) {
        let (low, high) = (self.image.gpr[gpr::RAX], self.image.gpr[gpr::RDX]);
        let first = match instruction.mnemonic() {
            M::Cmpxchg8b => low & 0xffff_ffff | high << 32,
            _ => low,
        };
        if instruction.op0_kind() == OpKind::Memory && self.random.percent(50) {
            if instruction.mnemonic() == M::Cmpxchg16b {
                self.poke_operand(instruction, 8, high, 100);
            }
            self.poke_operand(instruction, 0, first, 100);
        }
    }

    /// Stores a quadword at an offset into the memory operand, as its registers are at the start.
    fn poke_operand(&mut self, instruction: &Instruction, offset: u64, value: u64, percent: u64) {
        if !self.random.percent(percent) {
            return;
        }
        let Some(address) = operand_address(instruction, &self.image) else { return };
        self.pokes.push((address.wrapping_add(offset), value));
    }
}
