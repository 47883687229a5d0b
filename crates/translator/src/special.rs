//! Instructions that take a few others: bit strings, CMPXCHG8B and CMPXCHG16B, segment bases and selectors, the
//! x87 control word.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use x86::segment::seg;

use crate::allow::{Access, Special};
use crate::context::at;
use crate::emit::{R8, RCX};
use crate::records::{Checked, Sharing};
use crate::registers::{HOST_RCX_OF_GUEST, Home, home};
use crate::translate::{Flow, Translator};

impl Translator<'_> {
    pub(crate) fn special(&mut self, instruction: &Instruction, special: Special) -> Option<Flow> {
        match special {
            Special::BitString => self.bit_string(instruction)?,
            Special::CmpxchgPair => self.cmpxchg_pair(instruction)?,
            Special::ReadBase => self.read_base(instruction),
            Special::WriteBase => self.write_base(instruction),
            Special::FromSelector => self.read_selector(instruction)?,
            Special::Fnstcw => self.fnstcw(instruction)?,
        }
        Some(Flow::Next)
    }

    fn check_explicit(
        &mut self,
        instruction: &Instruction,
        access: Access,
        len: u16,
    ) -> Option<()> {
        self.emit.linear_address(instruction)?;
        self.emit.check(Checked { access, len, alignment: 1, group: Sharing::Alone });
        Some(())
    }

    /// The bit index counts from the operand's address, in both directions (SDM vol. 2A, BT).
    fn bit_string(&mut self, instruction: &Instruction) -> Option<()> {
        let wide = instruction.op1_register().size() == 8;
        let number = instruction.op1_register().full_register().number() as u8;
        let is_read = instruction.mnemonic() == Mnemonic::Bt;
        self.emit.linear_address(instruction)?;
        self.emit.load_guest(RCX, number);
        if wide {
            dynasm!(self.emit.code ; .arch x64
                ; mov r9d, 6
                ; sarx r9, rcx, r9
                ; lea r8, [r8 + r9 * 8]
            );
        } else {
            dynasm!(self.emit.code ; .arch x64
                ; movsxd rcx, ecx
                ; mov r9d, 5
                ; sarx r9, rcx, r9
            );
            match self.request.mode.bits32 {
                false => dynasm!(self.emit.code ; .arch x64 ; lea r8, [r8 + r9 * 4]),
                true => dynasm!(self.emit.code ; .arch x64 ; lea r8d, [r8 + r9 * 4]),
            }
        }
        let access = if is_read { Access::Read } else { Access::Write };
        let len = if wide { 8 } else { 4 };
        let alignment = if instruction.has_lock_prefix() { len as u8 } else { 1 };
        self.emit.check(Checked { access, len, alignment, group: Sharing::Alone });
        // The index inside the word, without touching flags.
        dynasm!(self.emit.code ; .arch x64 ; lea r8, [r8 + r9]);
        self.emit.load_guest(RCX, number);
        if wide {
            dynasm!(self.emit.code ; .arch x64
                ; mov r9d, 58
                ; shlx rcx, rcx, r9
                ; shrx rcx, rcx, r9
            );
        } else {
            dynasm!(self.emit.code ; .arch x64
                ; mov r9d, 27
                ; shlx ecx, ecx, r9d
                ; shrx ecx, ecx, r9d
            );
        }
        self.change_bit(instruction, wide);
        Some(())
    }

    /// The operation on the word at R8 with the index in RCX.
    fn change_bit(&mut self, instruction: &Instruction, wide: bool) {
        let locked = instruction.has_lock_prefix();
        let code = &mut self.emit.code;
        match (instruction.mnemonic(), locked, wide) {
            (Mnemonic::Bt, _, true) => dynasm!(code ; .arch x64 ; bt QWORD [r8], rcx),
            (Mnemonic::Bt, _, false) => dynasm!(code ; .arch x64 ; bt DWORD [r8], ecx),
            (Mnemonic::Bts, true, true) => dynasm!(code ; .arch x64 ; lock bts QWORD [r8], rcx),
            (Mnemonic::Bts, true, false) => dynasm!(code ; .arch x64 ; lock bts DWORD [r8], ecx),
            (Mnemonic::Bts, false, true) => dynasm!(code ; .arch x64 ; bts QWORD [r8], rcx),
            (Mnemonic::Bts, false, false) => dynasm!(code ; .arch x64 ; bts DWORD [r8], ecx),
            (Mnemonic::Btr, true, true) => dynasm!(code ; .arch x64 ; lock btr QWORD [r8], rcx),
            (Mnemonic::Btr, true, false) => dynasm!(code ; .arch x64 ; lock btr DWORD [r8], ecx),
            (Mnemonic::Btr, false, true) => dynasm!(code ; .arch x64 ; btr QWORD [r8], rcx),
            (Mnemonic::Btr, false, false) => dynasm!(code ; .arch x64 ; btr DWORD [r8], ecx),
            (_, true, true) => dynasm!(code ; .arch x64 ; lock btc QWORD [r8], rcx),
            (_, true, false) => dynasm!(code ; .arch x64 ; lock btc DWORD [r8], ecx),
            (_, false, true) => dynasm!(code ; .arch x64 ; btc QWORD [r8], rcx),
            (_, false, false) => dynasm!(code ; .arch x64 ; btc DWORD [r8], ecx),
        }
    }

    fn cmpxchg_pair(&mut self, instruction: &Instruction) -> Option<()> {
        let len = instruction.memory_size().size() as u16;
        let locked = instruction.has_lock_prefix();
        let alignment = if len == 16 || locked { len as u8 } else { 1 };
        self.emit.linear_address(instruction)?;
        let access = Access::Write;
        self.emit.check(Checked { access, len, alignment, group: Sharing::Alone });
        dynasm!(self.emit.code ; .arch x64 ; mov rcx, Rq(HOST_RCX_OF_GUEST));
        match (len, locked) {
            (16, true) => dynasm!(self.emit.code ; .arch x64 ; lock cmpxchg16b [r8 + r9]),
            (16, false) => dynasm!(self.emit.code ; .arch x64 ; cmpxchg16b [r8 + r9]),
            (_, true) => dynasm!(self.emit.code ; .arch x64 ; lock cmpxchg8b [r8 + r9]),
            (_, false) => dynasm!(self.emit.code ; .arch x64 ; cmpxchg8b [r8 + r9]),
        }
        Some(())
    }

    /// Leaves to the interpreter, which raises the fault, unless the context's field is set.
    fn require_field(&mut self, field: i32) {
        dynasm!(self.emit.code ; .arch x64
            ; mov rcx, [rsp + field]
            ; jrcxz >refused
            ; jmp >allowed
            ; refused:
        );
        self.emit.interpret();
        dynasm!(self.emit.code ; .arch x64 ; allowed:);
    }

    fn read_base(&mut self, instruction: &Instruction) {
        let register = instruction.op0_register();
        self.require_field(at::FSGSBASE_ENABLED);
        let base = base_field(instruction);
        if register.size() == 8 {
            dynasm!(self.emit.code ; .arch x64 ; mov rcx, [BYTE rsp + base]);
        } else {
            dynasm!(self.emit.code ; .arch x64 ; mov ecx, [BYTE rsp + base]);
        }
        self.emit.store_guest(register.full_register().number() as u8, RCX);
    }

    fn write_base(&mut self, instruction: &Instruction) {
        let register = instruction.op0_register();
        self.require_field(at::FSGSBASE_ENABLED);
        self.emit.load_guest(R8, register.full_register().number() as u8);
        if register.size() == 8 {
            // Canonical: equal to the sign extension of the lower 48 bits.
            dynasm!(self.emit.code ; .arch x64
                ; mov r9d, 16
                ; shlx rcx, r8, r9
                ; sarx rcx, rcx, r9
                ; not rcx
                ; lea rcx, [rcx + r8 + 1]
            );
            self.emit.require_zero();
        } else {
            dynasm!(self.emit.code ; .arch x64 ; mov r8d, r8d);
        }
        let base = base_field(instruction);
        dynasm!(self.emit.code ; .arch x64 ; mov [BYTE rsp + base], r8);
    }

    fn read_selector(&mut self, instruction: &Instruction) -> Option<()> {
        let index = match instruction.op1_register() {
            Register::ES => seg::ES,
            Register::DS => seg::DS,
            Register::FS => seg::FS,
            _ => seg::GS,
        };
        let selector = at::SELECTORS + index as i32 * 8;
        if instruction.op0_kind() == OpKind::Memory {
            self.check_explicit(instruction, Access::Write, 2)?;
            dynasm!(self.emit.code ; .arch x64 ; mov rcx, [rsp + selector] ; mov [r8 + r9], cx);
            return Some(());
        }
        let register = instruction.op0_register();
        let number = register.full_register().number() as u8;
        dynasm!(self.emit.code ; .arch x64 ; mov rcx, [rsp + selector]);
        match (register.size(), home(number)) {
            (2, Home::Host(host)) => dynasm!(self.emit.code ; .arch x64 ; mov Rw(host), cx),
            (2, Home::Slot) => {
                dynasm!(self.emit.code ; .arch x64 ; mov [BYTE rsp + at::slot(number)], cx);
            }
            _ => self.emit.store_guest(number, RCX),
        }
        Some(())
    }

    /// The control word is where the x87 state is kept, at the beginning of the XSAVE area.
    fn fnstcw(&mut self, instruction: &Instruction) -> Option<()> {
        // Allowed when vector instructions are, and perhaps when they are not.
        self.require_field(at::VECTORS_ALLOWED);
        self.check_explicit(instruction, Access::Write, 2)?;
        dynasm!(self.emit.code ; .arch x64
            ; mov rcx, [rsp + at::VECTORS]
            ; mov ecx, [rcx]
            ; mov [r8 + r9], cx
        );
        Some(())
    }
}

/// Where the base that the instruction is about is kept.
fn base_field(instruction: &Instruction) -> i8 {
    match instruction.mnemonic() {
        Mnemonic::Rdfsbase | Mnemonic::Wrfsbase => at::FS_BASE,
        _ => at::GS_BASE,
    }
}
