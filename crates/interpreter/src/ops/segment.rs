//! Segment registers: loading with all descriptor checks (SDM vol. 3A 5.4 to 5.6), MOV to and
//! from them, LDS and relatives, LLDT, LTR, SLDT, STR, LAR, LSL, VERR, VERW.

use iced_x86::{Instruction, Mnemonic};
use memory::Scalar;
use x86::cr::{cr4, efer};
use x86::exception::{Exception, vector};
use x86::segment::{Segment, seg, system};

use super::{
    Mem, Operand, Reg, Src, Target, by_size, is_memory, is_register, operand_size, widths,
};
use crate::cpu::{Bus, Cpu, Exec, Raised, Step};
use crate::op::{Op, write_reg};
use engine::Shadow;

/// A descriptor as read from its table.
#[derive(Clone, Copy)]
pub(crate) struct Descriptor {
    /// Linear address of its first byte.
    pub(crate) at: u64,
    /// The low 8 bytes.
    pub(crate) raw: u64,
    pub(crate) segment: Segment,
}

impl Descriptor {
    /// System type, when S is clear.
    pub(crate) fn system_type(&self) -> Option<u8> {
        (!self.segment.is_code_or_data()).then_some(self.segment.kind())
    }
}

/// The part of a selector that goes into an error code.
pub(crate) const fn error_of(selector: u16) -> u32 {
    selector as u32 & !3
}

/// Whether a selector is null.
pub(crate) const fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

impl Cpu {
    /// Linear address of the descriptor of `selector`, when `bytes` of it lie in the table.
    fn descriptor_address(&self, selector: u16, bytes: u64) -> Option<u64> {
        let offset = u64::from(selector & !7);
        let local = selector & 4 != 0;
        let (base, limit) = if local {
            (self.ldtr.base, u64::from(self.ldtr.limit))
        } else {
            (self.gdtr.base, u64::from(self.gdtr.limit))
        };
        let usable = !local || self.ldtr.present() && !is_null(self.ldtr.selector);
        (usable && offset + bytes - 1 <= limit).then(|| base.wrapping_add(offset))
    }

    /// Reads the descriptor of `selector`; outside the table the fault is `vector(selector)`, with
    /// `external` as the EXT bit.
    pub(crate) fn descriptor(
        &mut self,
        bus: Bus<'_>,
        selector: u16,
        vector: u8,
        external: u32,
    ) -> Result<Descriptor, Raised> {
        let Some(at) = self.descriptor_address(selector, 8) else {
            return self.fault(Exception::with_code(vector, error_of(selector) | external));
        };
        let raw = self.read_system(bus, at, 8)?;
        Ok(Descriptor { at, raw, segment: Segment::from_descriptor(selector, raw) })
    }

    /// The upper half of a 16-byte system descriptor, in long mode: base bits 63:32.
    pub(crate) fn descriptor_high(
        &mut self,
        bus: Bus<'_>,
        selector: u16,
        vector: u8,
    ) -> Result<u64, Raised> {
        match self.descriptor_address(selector, 16) {
            Some(at) => self.read_system(bus, at.wrapping_add(8), 8),
            None => self.fault(Exception::with_code(vector, error_of(selector))),
        }
    }

    /// Sets the accessed bit of a code or data descriptor.
    pub(crate) fn mark_accessed(&mut self, bus: Bus<'_>, descriptor: &mut Descriptor) -> Step {
        if descriptor.raw & 1 << 40 == 0 {
            self.write_system(
                bus,
                descriptor.at.wrapping_add(5),
                1,
                descriptor.raw >> 40 & 0xff | 1,
            )?;
            descriptor.raw |= 1 << 40;
            descriptor.segment.attributes |= 1;
        }
        Ok(())
    }

    /// Loads ES, SS, DS, FS or GS as MOV and POP do.
    pub(crate) fn load_segment(&mut self, bus: Bus<'_>, index: usize, selector: u16) -> Step {
        if !self.protected_mode() {
            self.load_real_segment(index, selector);
        } else if index == seg::SS {
            let loaded = self.stack_segment(bus, selector, self.cpl, vector::GP, 0)?;
            self.segment[seg::SS] = loaded;
        } else {
            let loaded = self.data_segment(bus, selector, vector::GP, 0)?;
            self.segment[index] = loaded;
        }
        if index == seg::SS {
            self.shadow = Shadow::MovSs;
            self.leave_block = true;
            self.refresh();
        }
        Ok(())
    }

    /// Loads a segment register in real or virtual-8086 mode. Real mode leaves limit and attributes
    /// as they are, so that what protected mode loaded reaches beyond 64 KiB (SDM vol. 3A 10.9.2).
    pub(crate) fn load_real_segment(&mut self, index: usize, selector: u16) {
        if self.virtual_8086() {
            self.segment[index] = Segment::virtual_8086(selector);
        } else {
            self.segment[index].selector = selector;
            self.segment[index].base = u64::from(selector) << 4;
        }
    }

    /// Checks a data segment; `bad` is the vector of a wrong one (#GP, or #TS in a task switch),
    /// `external` the EXT bit of error codes.
    pub(crate) fn data_segment(
        &mut self,
        bus: Bus<'_>,
        selector: u16,
        bad: u8,
        external: u32,
    ) -> Result<Segment, Raised> {
        if is_null(selector) {
            return Ok(Segment { selector, ..Segment::default() });
        }
        let code = error_of(selector) | external;
        let mut found = self.descriptor(bus, selector, bad, external)?;
        let segment = found.segment;
        let rpl = selector as u8 & 3;
        let privileged =
            !segment.is_conforming() && (rpl > segment.dpl() || self.cpl > segment.dpl());
        if !segment.is_readable() || privileged {
            return self.fault(Exception::with_code(bad, code));
        }
        if !segment.present() {
            return self.fault(Exception::with_code(vector::NP, code));
        }
        self.mark_accessed(bus, &mut found)?;
        Ok(found.segment)
    }

    /// Checks a stack segment for privilege level `cpl`; `bad` is the vector of a wrong one (#GP,
    /// or #TS when it comes from a TSS), `external` the EXT bit of error codes.
    pub(crate) fn stack_segment(
        &mut self,
        bus: Bus<'_>,
        selector: u16,
        cpl: u8,
        bad: u8,
        external: u32,
    ) -> Result<Segment, Raised> {
        let rpl = selector as u8 & 3;
        let code = error_of(selector) | external;
        if is_null(selector) {
            if self.is_64bit() && cpl < 3 && rpl == cpl {
                return Ok(null_stack(selector, cpl));
            }
            return self.fault(Exception::with_code(bad, external));
        }
        let mut found = self.descriptor(bus, selector, bad, external)?;
        let segment = found.segment;
        if rpl != cpl || !segment.is_writable() || segment.dpl() != cpl {
            return self.fault(Exception::with_code(bad, code));
        }
        if !segment.present() {
            return self.fault(Exception::with_code(vector::SS, code));
        }
        self.mark_accessed(bus, &mut found)?;
        Ok(found.segment)
    }

    /// Loads LDTR (LLDT).
    fn load_ldtr(&mut self, bus: Bus<'_>, selector: u16) -> Step {
        if is_null(selector) {
            self.ldtr = Segment { selector, ..Segment::default() };
            return Ok(());
        }
        let found = self.system_descriptor(bus, selector)?;
        if found.system_type() != Some(system::LDT) {
            return self.fault(Exception::gp(error_of(selector)));
        }
        if !found.segment.present() {
            return self.fault(Exception::with_code(vector::NP, error_of(selector)));
        }
        self.ldtr = found.segment;
        Ok(())
    }

    /// Loads TR (LTR) and marks the TSS busy.
    fn load_tr(&mut self, bus: Bus<'_>, selector: u16) -> Step {
        if is_null(selector) {
            return self.fault(Exception::GP0);
        }
        let found = self.system_descriptor(bus, selector)?;
        let available = match found.system_type() {
            Some(system::TSS_AVAILABLE) => true,
            Some(system::TSS16_AVAILABLE) => !self.long_mode(),
            _ => false,
        };
        if !available {
            return self.fault(Exception::gp(error_of(selector)));
        }
        if !found.segment.present() {
            return self.fault(Exception::with_code(vector::NP, error_of(selector)));
        }
        self.write_system(bus, found.at.wrapping_add(5), 1, found.raw >> 40 & 0xff | 2)?;
        self.tr = found.segment;
        self.tr.attributes |= 2;
        Ok(())
    }

    /// A descriptor for LLDT and LTR: in the GDT, 16 bytes in long mode, with a canonical base.
    fn system_descriptor(&mut self, bus: Bus<'_>, selector: u16) -> Result<Descriptor, Raised> {
        if selector & 4 != 0 {
            return self.fault(Exception::gp(error_of(selector)));
        }
        let mut found = self.descriptor(bus, selector, vector::GP, 0)?;
        if self.long_mode() {
            let high = self.descriptor_high(bus, selector, vector::GP)?;
            found.segment.base |= high << 32;
            // Bits of the second half's type field must be zero.
            if high >> 40 & 0x1f != 0 || !x86::is_canonical(found.segment.base) {
                return self.fault(Exception::gp(error_of(selector)));
            }
        }
        Ok(found)
    }

    /// #GP(0) in user mode when CR4.UMIP forbids SGDT, SIDT, SLDT, SMSW and STR.
    pub(crate) fn check_umip(&mut self) -> Step {
        self.require(self.cpl != 3 || self.cr4 & cr4::UMIP == 0)
    }
}

/// SS after a privilege change in long mode, or a null selector loaded in 64-bit code.
pub(crate) const fn null_stack(selector: u16, cpl: u8) -> Segment {
    Segment { selector, base: 0, limit: 0, attributes: (cpl as u16) << 5 }
}

/// MOV to a segment register.
fn load<S: Operand>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let selector = S::read::<u16>(cpu, op, bus)? as u16;
    cpu.load_segment(bus, usize::from(op.reg) % 6, selector)
}

/// MOV from a segment register: 16 bits to memory, zero-extended to a register.
fn store_mem(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let selector = cpu.segment[usize::from(op.src) % 6].selector;
    Mem::write::<u16>(cpu, op, bus, u64::from(selector))
}

fn store_reg<W: Scalar>(cpu: &mut Cpu, op: &Op, _bus: Bus<'_>) -> Step {
    let selector = cpu.segment[usize::from(op.src) % 6].selector;
    write_reg::<W>(cpu, op.reg, u64::from(selector));
    Ok(())
}

/// LDS, LES, LFS, LGS, LSS: offset, then selector. The segment is in `imm`.
fn load_far<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let at = op.linear(cpu, W::BYTES + 2, false)?;
    let offset = cpu.read::<W>(bus, at)?;
    let selector = cpu.read::<u16>(bus, at.plus(W::BYTES))? as u16;
    let shadow = cpu.shadow;
    cpu.load_segment(bus, op.imm as usize % 6, selector)?;
    // Only MOV SS and POP SS hold off interrupts, not LSS.
    cpu.shadow = shadow;
    write_reg::<W>(cpu, op.reg, offset);
    Ok(())
}

/// #UD outside protected mode.
fn require_protected(cpu: &mut Cpu) -> Step {
    if cpu.protected_mode() { Ok(()) } else { cpu.fault(Exception::UD) }
}

fn lldt<S: Operand>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    require_protected(cpu)?;
    cpu.require_cpl0()?;
    let selector = S::read::<u16>(cpu, op, bus)? as u16;
    cpu.load_ldtr(bus, selector)
}

fn ltr<S: Operand>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    require_protected(cpu)?;
    cpu.require_cpl0()?;
    let selector = S::read::<u16>(cpu, op, bus)? as u16;
    cpu.load_tr(bus, selector)
}

fn sldt<D: Target, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    require_protected(cpu)?;
    cpu.check_umip()?;
    let selector = u64::from(cpu.ldtr.selector);
    D::write::<W>(cpu, op, bus, selector)
}

fn str<D: Target, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    require_protected(cpu)?;
    cpu.check_umip()?;
    let selector = u64::from(cpu.tr.selector);
    D::write::<W>(cpu, op, bus, selector)
}

/// What LAR, LSL, VERR and VERW ask of a descriptor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Query {
    AccessRights,
    Limit,
    Read,
    Write,
}

/// The descriptor of `selector`, if `query` may see it; never faults for a bad selector.
fn visible(
    cpu: &mut Cpu,
    bus: Bus<'_>,
    selector: u16,
    query: Query,
) -> Result<Option<Descriptor>, Raised> {
    if is_null(selector) || cpu.descriptor_address(selector, 8).is_none() {
        return Ok(None);
    }
    let found = cpu.descriptor(bus, selector, vector::GP, 0)?;
    let segment = found.segment;
    let long = cpu.efer & efer::LMA != 0;
    let suitable = match (query, found.system_type()) {
        (Query::Read, None) => segment.is_readable(),
        (Query::Write, None) => segment.is_writable(),
        (Query::Read | Query::Write, Some(_)) => false,
        (_, None) => true,
        (Query::Limit, Some(kind)) if long => matches!(kind, 2 | 9 | 11),
        (Query::Limit, Some(kind)) => matches!(kind, 1 | 2 | 3 | 9 | 11),
        (Query::AccessRights, Some(kind)) if long => matches!(kind, 2 | 9 | 11 | 12),
        (Query::AccessRights, Some(kind)) => matches!(kind, 1..=5 | 9 | 11 | 12),
    };
    let rpl = selector as u8 & 3;
    let privileged = !segment.is_conforming() && (cpu.cpl > segment.dpl() || rpl > segment.dpl());
    Ok((suitable && !privileged).then_some(found))
}

fn lar<S: Operand, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    require_protected(cpu)?;
    let selector = S::read::<u16>(cpu, op, bus)? as u16;
    let found = visible(cpu, bus, selector, Query::AccessRights)?;
    if let Some(found) = found {
        write_reg::<W>(cpu, op.reg, found.raw >> 32 & 0x00ff_ff00);
    }
    cpu.flags.set_zf(found.is_some());
    Ok(())
}

fn lsl<S: Operand, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    require_protected(cpu)?;
    let selector = S::read::<u16>(cpu, op, bus)? as u16;
    let found = visible(cpu, bus, selector, Query::Limit)?;
    if let Some(found) = found {
        write_reg::<W>(cpu, op.reg, u64::from(found.segment.limit));
    }
    cpu.flags.set_zf(found.is_some());
    Ok(())
}

fn verr<S: Operand>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    require_protected(cpu)?;
    let selector = S::read::<u16>(cpu, op, bus)? as u16;
    let found = visible(cpu, bus, selector, Query::Read)?;
    cpu.flags.set_zf(found.is_some());
    Ok(())
}

fn verw<S: Operand>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    require_protected(cpu)?;
    let selector = S::read::<u16>(cpu, op, bus)? as u16;
    let found = visible(cpu, bus, selector, Query::Write)?;
    cpu.flags.set_zf(found.is_some());
    Ok(())
}

fn lower_mov(instruction: &Instruction, op: &mut Op) -> Option<Exec> {
    let is_segment =
        |i: u32| is_register(instruction, i) && instruction.op_register(i).is_segment_register();
    if is_segment(0) {
        // MOV CS is #UD.
        let allowed = usize::from(op.reg) != seg::CS;
        return allowed.then_some(if is_memory(instruction, 1) {
            load::<Mem>
        } else {
            load::<Src>
        });
    }
    if !is_segment(1) {
        return None;
    }
    if is_memory(instruction, 0) {
        return Some(store_mem);
    }
    by_size(operand_size(instruction, 0), widths!(store_reg))
}

/// The stores of a system selector: memory takes 16 bits whatever the operand size.
fn selector_store(instruction: &Instruction, memory: Exec, register: [Exec; 4]) -> Option<Exec> {
    if is_memory(instruction, 0) {
        return Some(memory);
    }
    by_size(operand_size(instruction, 0), register)
}

pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Exec> {
    use Mnemonic as M;
    let memory = is_memory(instruction, 0);
    let size = operand_size(instruction, 0);
    let source_memory = is_memory(instruction, 1);
    let far = match instruction.mnemonic() {
        M::Les => Some(seg::ES),
        M::Lds => Some(seg::DS),
        M::Lss => Some(seg::SS),
        M::Lfs => Some(seg::FS),
        M::Lgs => Some(seg::GS),
        _ => None,
    };
    if let Some(index) = far {
        op.imm = index as u64;
        return by_size(size, widths!(load_far));
    }
    match instruction.mnemonic() {
        M::Mov => lower_mov(instruction, op),
        M::Lldt => Some(if memory { lldt::<Mem> } else { lldt::<Reg> }),
        M::Ltr => Some(if memory { ltr::<Mem> } else { ltr::<Reg> }),
        M::Sldt => selector_store(instruction, sldt::<Mem, u16>, widths!(sldt, Reg)),
        M::Str => selector_store(instruction, str::<Mem, u16>, widths!(str, Reg)),
        M::Lar if source_memory => by_size(size, widths!(lar, Mem)),
        M::Lar => by_size(size, widths!(lar, Src)),
        M::Lsl if source_memory => by_size(size, widths!(lsl, Mem)),
        M::Lsl => by_size(size, widths!(lsl, Src)),
        M::Verr => Some(if memory { verr::<Mem> } else { verr::<Reg> }),
        M::Verw => Some(if memory { verw::<Mem> } else { verw::<Reg> }),
        _ => None,
    }
}
