//! x87, MMX, SSE and AVX: enable bits, faults and memory operands here, the arithmetic in
//! `hostexec`. Also the XSAVE family, gathers and masked moves, whose operands may fault piece by
//! piece.

use hostexec::elements::ElementPlan;
use hostexec::image::{ImageForm, XsaveKind, xsave_area_size};
use hostexec::{HostExecError, HostOp, Outcome, Unit, X87Pointers};
use iced_x86::{Instruction, Mnemonic};
use x86::cr::{cr0, cr4, xcr0};
use x86::exception::{Exception, vector};
use x86::gpr;

use crate::access::Linear;
use crate::cpu::{Bus, CodeSize, Cpu, Exec, Raised, Step};
use crate::op::Op;

const RAX: u8 = gpr::RAX as u8;
const RDX: u8 = gpr::RDX as u8;

/// How a vector or x87 instruction is executed.
pub(crate) enum VectorOp {
    /// By a native stub; the x87 opcode for the FOP register.
    Host { op: HostOp, x87_opcode: u16 },
    /// Element by element: gathers and masked moves.
    Elements,
}

/// Picks the handler of a vector or x87 instruction. `Ok(None)`: it is none.
///
/// # Errors
/// [`HostExecError::Full`] when the stubs must be dropped first.
pub(crate) fn lower(
    cpu: &mut Cpu,
    instruction: &Instruction,
    bytes: &[u8],
) -> Result<Option<(Exec, Option<VectorOp>)>, HostExecError> {
    use Mnemonic as M;
    let plain: Option<Exec> = match instruction.mnemonic() {
        M::Xsave | M::Xsave64 => Some(xsave::<STANDARD>),
        M::Xsaveopt | M::Xsaveopt64 => Some(xsave::<OPTIMIZED>),
        M::Xsavec | M::Xsavec64 => Some(xsave::<COMPACTED>),
        M::Xrstor | M::Xrstor64 => Some(xrstor),
        _ => None,
    };
    if let Some(exec) = plain {
        return Ok(Some((exec, None)));
    }
    if ElementPlan::handles(instruction) {
        return Ok(Some((elements, Some(VectorOp::Elements))));
    }
    let Some(op) = cpu.executor.compile(instruction)? else { return Ok(None) };
    let x87_opcode = X87Pointers::opcode_of(bytes);
    let exec: Exec = match (op.unit(), op.memory().size) {
        (Unit::Sse, 0) => host_sse_registers,
        _ => host,
    };
    Ok(Some((exec, Some(VectorOp::Host { op, x87_opcode }))))
}

impl Cpu {
    /// The faults of the unit that an instruction belongs to.
    fn check_unit(&mut self, unit: Unit) -> Step {
        let em = self.cr0 & cr0::EM != 0;
        let ts = self.cr0 & cr0::TS != 0;
        let undefined = match unit {
            Unit::X87 | Unit::Wait | Unit::Fxsave => false,
            Unit::Mmx => em,
            Unit::MmxSse | Unit::Sse => em || self.cr4 & cr4::OSFXSR == 0,
            Unit::Avx => {
                let both = xcr0::SSE | xcr0::AVX;
                !self.protected_mode() || self.cr4 & cr4::OSXSAVE == 0 || self.xcr0 & both != both
            }
        };
        if undefined {
            return self.fault(Exception::UD);
        }
        let unavailable = match unit {
            Unit::X87 | Unit::Fxsave => em || ts,
            Unit::Wait => ts && self.cr0 & cr0::MP != 0,
            _ => ts,
        };
        if unavailable { self.fault(Exception::NM) } else { Ok(()) }
    }

    /// What an unmasked x87 exception raises: #MF with CR0.NE; without it the external FERR#
    /// line, which PCs lead to IRQ 13 and which this machine does not have: #MF all the same.
    fn x87_error(&mut self) -> Raised {
        self.raise(Exception::new(vector::MF))
    }
}

/// An SSE instruction between registers: the common case, without memory, x87 or AVX checks.
fn host_sse_registers(cpu: &mut Cpu, op: &Op, _bus: Bus<'_>) -> Step {
    let (stub, _) = host_op(op);
    if cpu.cr0 & (cr0::EM | cr0::TS) != 0 || cpu.cr4 & cr4::OSFXSR == 0 {
        cpu.check_unit(Unit::Sse)?;
    }
    let outcome = run(cpu, stub, &X87Pointers::default());
    finish(cpu, outcome).map(|_| ())
}

/// Any instruction that a native stub executes.
fn host(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let (stub, x87_opcode) = host_op(op);
    cpu.check_unit(stub.unit())?;
    if stub.waits_for_x87() && cpu.fpu.x87_pending() {
        return Err(cpu.x87_error());
    }
    let memory = stub.memory();
    if memory.size == 0 {
        let pointers = x87_pointers(cpu, op, x87_opcode);
        let outcome = run(cpu, stub, &pointers);
        return finish(cpu, outcome).map(|_| ());
    }
    let size = memory.size as u64;
    let at = op.linear(cpu, size, memory.write)?;
    if at.address % stub.alignment() != 0 {
        return cpu.fault(Exception::GP0);
    }
    if stub.computes_before_store() {
        return computed_store(cpu, op, bus, at);
    }
    cpu.check_operand_alignment(at, stub.checked_alignment())?;
    if memory.write {
        cpu.check_writable(at, size)?;
    }
    if memory.read {
        let mut data = [0; 512];
        cpu.read_bytes(bus, at, &mut data[..memory.size])?;
        cpu.scratch.bytes[..memory.size].copy_from_slice(&data[..memory.size]);
    }
    let pointers = x87_pointers(cpu, op, x87_opcode);
    let outcome = run(cpu, stub, &pointers);
    if finish(cpu, outcome)? && memory.write {
        let data: [u8; 512] = cpu.scratch.bytes;
        cpu.write_bytes(bus, at, &data[..memory.size])?;
    }
    Ok(())
}

/// A store whose exceptions come before those of the memory access: an unmasked one suppresses the
/// store and its faults. The instruction runs first and is undone when the store faults.
fn computed_store(cpu: &mut Cpu, op: &Op, bus: Bus<'_>, at: Linear) -> Step {
    let (stub, x87_opcode) = host_op(op);
    let before = cpu.fpu.clone();
    let pointers = x87_pointers(cpu, op, x87_opcode);
    let outcome = run(cpu, stub, &pointers);
    if !finish(cpu, outcome)? {
        return Ok(());
    }
    let data: [u8; 512] = cpu.scratch.bytes;
    let stored = cpu
        .check_operand_alignment(at, stub.checked_alignment())
        .and_then(|()| cpu.write_bytes(bus, at, &data[..stub.memory().size]));
    if stored.is_err() {
        cpu.fpu = before;
    }
    stored
}

fn host_op(op: &Op) -> (HostOp, u16) {
    match op.detail.as_ref().and_then(|d| d.vector.as_ref()) {
        Some(VectorOp::Host { op, x87_opcode }) => (*op, *x87_opcode),
        _ => unreachable!("the decoder gives this handler a stub"),
    }
}

fn x87_pointers(cpu: &Cpu, op: &Op, opcode: u16) -> X87Pointers {
    X87Pointers {
        rip: cpu.rip().wrapping_sub(u64::from(op.len)),
        data: op.offset(cpu),
        opcode,
        real_mode: !cpu.protected_mode(),
    }
}

fn run(cpu: &mut Cpu, stub: HostOp, pointers: &X87Pointers) -> Outcome {
    let mut rflags = cpu.rflags();
    let before = rflags;
    let outcome = cpu.run_stub(&stub, &mut rflags, pointers);
    if rflags != before {
        cpu.flags = crate::flags::Flags::unpack(rflags);
    }
    outcome
}

/// Whether the memory operand is to be written.
fn finish(cpu: &mut Cpu, outcome: Outcome) -> Result<bool, Raised> {
    match outcome {
        Outcome::Done => Ok(true),
        Outcome::DoneWithoutStore => Ok(false),
        Outcome::SimdException if cpu.cr4 & cr4::OSXMMEXCPT != 0 => {
            cpu.fault(Exception::new(vector::XM))
        }
        Outcome::SimdException => cpu.fault(Exception::UD),
        Outcome::X87Pending => Err(cpu.x87_error()),
        Outcome::GeneralProtection => cpu.fault(Exception::GP0),
    }
}

/// Gathers and masked moves.
fn elements(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let instruction = op.instruction();
    let Some(mut plan) = ElementPlan::new(instruction, &cpu.fpu) else {
        return cpu.fault(Exception::UD);
    };
    cpu.check_unit(plan.unit())?;
    if plan.unit() == Unit::Mmx && cpu.fpu.x87_pending() {
        return Err(cpu.x87_error());
    }
    // The operand's offset without the vector index, or RDI for MASKMOV.
    let base = op.offset(cpu);
    let size = plan.element_size() as u64;
    let active: Vec<usize> = (0..plan.len()).filter(|&i| plan.is_active(i)).collect();
    // A gather computes an address for each element; the others have one operand.
    let wraps = if plan.is_gather() { op.address_mask } else { u64::MAX };
    let address = |plan: &ElementPlan, i: usize| base.wrapping_add_signed(plan.offset(i)) & wraps;
    if plan.is_store()
        && let (Some(&first), Some(&last)) = (active.first(), active.last())
    {
        if plan.unit() == Unit::Mmx {
            let at = op.linear_at(cpu, base, 1, true)?;
            cpu.check_operand_alignment(at, 8)?;
        }
        // All elements must be writable before the first is written: they lie on two pages at most,
        // that of the first byte and that of the last.
        for offset in [address(&plan, first), address(&plan, last).wrapping_add(size - 1)] {
            let at = op.linear_at(cpu, offset, 1, true)?;
            cpu.check_writable(at, 1)?;
        }
    }
    for (done, &i) in active.iter().enumerate() {
        let offset = address(&plan, i);
        let result = transfer(cpu, op, bus, &mut plan, i, offset);
        if result.is_err() && done > 0 && plan.is_gather() && cpu.has_pending_trap() {
            // The trap comes first, between two elements (SDM vol. 2C, VGATHERDPS); the mask says
            // where to go on.
            cpu.raised = None;
            cpu.repeating = true;
            cpu.leave_block = true;
            return Ok(());
        }
        result?;
    }
    plan.finish(&mut cpu.fpu);
    Ok(())
}

/// Loads or stores element `i`, at `offset`.
fn transfer(
    cpu: &mut Cpu,
    op: &Op,
    bus: Bus<'_>,
    plan: &mut ElementPlan,
    i: usize,
    offset: u64,
) -> Step {
    let size = plan.element_size();
    let at = op.linear_at(cpu, offset, size as u64, plan.is_store())?;
    if plan.is_store() {
        return cpu.write_bytes(bus, at, &plan.store_value(i).to_le_bytes()[..size]);
    }
    let mut data = [0; 8];
    cpu.read_bytes(bus, at, &mut data[..size])?;
    plan.load(&mut cpu.fpu, i, u64::from_le_bytes(data));
    Ok(())
}

/// `KIND` of [`xsave`].
const STANDARD: u8 = 0;
const OPTIMIZED: u8 = 1;
const COMPACTED: u8 = 2;

/// Checks of the XSAVE family; gives the address and EDX:EAX masked with XCR0.
fn xsave_operand(cpu: &mut Cpu, op: &Op, write: bool) -> Result<(Linear, u64), Raised> {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return cpu.fault(Exception::UD);
    }
    if cpu.cr0 & cr0::TS != 0 {
        return cpu.fault(Exception::NM);
    }
    let requested = cpu.reg(RDX) << 32 | cpu.reg(RAX) & 0xffff_ffff;
    let rfbm = requested & cpu.xcr0;
    let at = op.linear(cpu, xsave_area_size(rfbm) as u64, write)?;
    if at.address % 64 != 0 {
        return cpu.fault(Exception::GP0);
    }
    Ok((at, rfbm))
}

fn image_form(cpu: &Cpu, op: &Op) -> ImageForm {
    let long = matches!(
        op.instruction().mnemonic(),
        Mnemonic::Xsave64 | Mnemonic::Xsaveopt64 | Mnemonic::Xsavec64 | Mnemonic::Xrstor64
    );
    ImageForm { mode64: cpu.code_size == CodeSize::Bits64, long }
}

fn xsave<const KIND: u8>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let (at, rfbm) = xsave_operand(cpu, op, true)?;
    cpu.check_writable(at, xsave_area_size(rfbm) as u64)?;
    let kind = match KIND {
        STANDARD => XsaveKind::Standard,
        OPTIMIZED => XsaveKind::Optimized,
        _ => XsaveKind::Compacted,
    };
    let mut header = [0; 8];
    cpu.read_bytes(bus, at.plus(x86::xsave::XSTATE_BV as u64), &mut header)?;
    let form = image_form(cpu, op);
    let image = cpu.fpu.xsave(rfbm, kind, form, u64::from_le_bytes(header));
    for (start, piece) in image.pieces() {
        cpu.write_bytes(bus, at.plus(start as u64), piece)?;
    }
    Ok(())
}

fn xrstor(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let (at, rfbm) = xsave_operand(cpu, op, false)?;
    let mut area = [0; hostexec::STATE_SIZE];
    cpu.read_bytes(bus, at, &mut area[..xsave_area_size(0)])?;
    let mut present = [0; 8];
    present.copy_from_slice(&area[x86::xsave::XSTATE_BV..x86::xsave::XSTATE_BV + 8]);
    let size = xsave_area_size(rfbm & u64::from_le_bytes(present));
    cpu.read_bytes(bus, at, &mut area[..size])?;
    let form = image_form(cpu, op);
    if cpu.fpu.xrstor(&area, rfbm, cpu.xcr0, form).is_err() {
        return cpu.fault(Exception::GP0);
    }
    Ok(())
}
