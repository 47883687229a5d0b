//! String instructions: MOVS, CMPS, SCAS, LODS, STOS, INS, OUTS with their prefixes.
//!
//! A repeated instruction does one element after the other and is interruptible between them:
//! after a chunk it leaves RIP on itself, so that interrupts are taken, as hardware does. MOVS and
//! STOS take whole runs inside a page at once when nothing can be observed in between.

use device::Width;
use iced_x86::{Instruction, Mnemonic};
use memory::{RamOffset, Scalar};
use x86::cr::rflags::DF;
use x86::exception::Exception;
use x86::gpr;
use x86::segment::seg;

use super::{bits, mask};
use crate::access::{Linear, Place};
use crate::cpu::{Bus, CodeSize, Cpu, Exec, Raised, Step};
use crate::op::{FLAT, Op, REP, REPNE, read_reg, write_reg};
use crate::tlb::Use;

const RAX: u8 = gpr::RAX as u8;
const RCX: u8 = gpr::RCX as u8;
const RDX: u8 = gpr::RDX as u8;
const RSI: u8 = gpr::RSI as u8;
const RDI: u8 = gpr::RDI as u8;

/// Elements that a repeated instruction does before it lets interrupts in.
const CHUNK: u64 = 1024;
/// Runs inside a page that MOVS and STOS take at once before they let interrupts in.
const RUNS: u32 = 16;

/// What one element does; `false` ends the repetition (CMPS, SCAS).
type Element = fn(&mut Cpu, &Op, Bus<'_>) -> Result<bool, Raised>;

/// Sets a register of the address size.
fn set_address(cpu: &mut Cpu, op: &Op, register: u8, value: u64) {
    let kept = if op.address_mask == 0xffff { cpu.reg(register) & !0xffff } else { 0 };
    cpu.set_reg(register, kept | value & op.address_mask);
}

/// Moves an index register by `count` elements in the direction of DF.
fn step<W: Scalar>(cpu: &mut Cpu, op: &Op, register: u8, count: u64) {
    let bytes = W::BYTES.wrapping_mul(count);
    let delta = if cpu.system_flags & DF != 0 { bytes.wrapping_neg() } else { bytes };
    let value = cpu.reg(register).wrapping_add(delta);
    set_address(cpu, op, register, value);
}

fn source<W: Scalar>(cpu: &mut Cpu, op: &Op) -> Result<Linear, Raised> {
    let offset = cpu.reg(RSI) & op.address_mask;
    op.linear_at(cpu, offset, W::BYTES, false)
}

/// The destination is always in ES.
fn destination<W: Scalar>(cpu: &mut Cpu, op: &Op, write: bool) -> Result<Linear, Raised> {
    let offset = cpu.reg(RDI) & op.address_mask;
    if cpu.is_64bit() {
        return Ok(Linear::system(offset));
    }
    cpu.segmented(seg::ES, offset, W::BYTES, write)
}

fn movs<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Result<bool, Raised> {
    let from = source::<W>(cpu, op)?;
    let value = cpu.read::<W>(bus, from)?;
    let to = destination::<W>(cpu, op, true)?;
    cpu.write::<W>(bus, to, value)?;
    step::<W>(cpu, op, RSI, 1);
    step::<W>(cpu, op, RDI, 1);
    Ok(true)
}

fn stos<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Result<bool, Raised> {
    let to = destination::<W>(cpu, op, true)?;
    let value = read_reg::<W>(cpu, RAX);
    cpu.write::<W>(bus, to, value)?;
    step::<W>(cpu, op, RDI, 1);
    Ok(true)
}

fn lods<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Result<bool, Raised> {
    let from = source::<W>(cpu, op)?;
    let value = cpu.read::<W>(bus, from)?;
    write_reg::<W>(cpu, RAX, value);
    step::<W>(cpu, op, RSI, 1);
    Ok(true)
}

/// Whether REPE or REPNE goes on after a comparison.
fn goes_on(cpu: &Cpu, op: &Op) -> bool {
    cpu.flags.zf() != op.has(REPNE)
}

fn cmps<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Result<bool, Raised> {
    let from = source::<W>(cpu, op)?;
    let a = cpu.read::<W>(bus, from)?;
    let to = destination::<W>(cpu, op, false)?;
    let b = cpu.read::<W>(bus, to)?;
    cpu.flags.sub(bits::<W>(), a, b, a.wrapping_sub(b) & mask::<W>());
    step::<W>(cpu, op, RSI, 1);
    step::<W>(cpu, op, RDI, 1);
    Ok(goes_on(cpu, op))
}

fn scas<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Result<bool, Raised> {
    let to = destination::<W>(cpu, op, false)?;
    let b = cpu.read::<W>(bus, to)?;
    let a = read_reg::<W>(cpu, RAX);
    cpu.flags.sub(bits::<W>(), a, b, a.wrapping_sub(b) & mask::<W>());
    step::<W>(cpu, op, RDI, 1);
    Ok(goes_on(cpu, op))
}

fn port_width<W: Scalar>() -> Width {
    match W::BYTES {
        1 => Width::Byte,
        2 => Width::Word,
        _ => Width::Dword,
    }
}

fn ins<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Result<bool, Raised> {
    let port = cpu.reg(RDX) as u16;
    cpu.check_port(bus, port, W::BYTES as u16)?;
    let to = destination::<W>(cpu, op, true)?;
    // The store must not fault after the device was read.
    cpu.probe_write(to, W::BYTES)?;
    cpu.counters.port_accesses += 1;
    let answer = bus.port_read(port, port_width::<W>());
    let value = cpu.take(answer, Exception::GP0)?;
    cpu.write::<W>(bus, to, u64::from(value))?;
    step::<W>(cpu, op, RDI, 1);
    Ok(cpu.stop.is_none())
}

fn outs<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Result<bool, Raised> {
    let port = cpu.reg(RDX) as u16;
    cpu.check_port(bus, port, W::BYTES as u16)?;
    let from = source::<W>(cpu, op)?;
    let value = cpu.read::<W>(bus, from)?;
    cpu.counters.port_accesses += 1;
    let answer = bus.port_write(port, port_width::<W>(), value as u32);
    cpu.take(answer, Exception::GP0)?;
    step::<W>(cpu, op, RSI, 1);
    Ok(cpu.stop.is_none())
}

/// What a repeat prefix with 32-bit addresses does even without iterations: hosts clear the upper
/// half of the count, and of the pointers of MOVS and STOS.
fn narrow(cpu: &mut Cpu, op: &Op, registers: &[u8]) {
    if op.address_mask == 0xffff_ffff && op.has(REP | REPNE) {
        for register in registers {
            set_address(cpu, op, *register, cpu.reg(*register));
        }
    }
}

/// One element, or, with a repeat prefix, up to a chunk of them.
fn repeat(cpu: &mut Cpu, op: &Op, bus: Bus<'_>, element: Element) -> Step {
    if !op.has(REP | REPNE) {
        return element(cpu, op, bus).map(|_| ());
    }
    narrow(cpu, op, &[RCX]);
    let mut count = cpu.reg(RCX) & op.address_mask;
    let flags = cpu.flags;
    for _ in 0..CHUNK {
        if count == 0 {
            return Ok(());
        }
        let more = match element(cpu, op, bus) {
            Ok(more) => more,
            Err(raised) => {
                // A fault shows the flags from before the instruction (SDM vol. 2B, REP).
                cpu.flags = flags;
                return Err(raised);
            }
        };
        count -= 1;
        set_address(cpu, op, RCX, count);
        if !more && (cpu.stop.is_none() || count == 0) {
            return Ok(());
        }
        // Single-step, breakpoints, rewritten code and stops end the chunk at this element.
        if cpu.leave_block || cpu.careful || cpu.system_flags & x86::cr::rflags::TF != 0 {
            break;
        }
    }
    if count != 0 {
        // So does an interruption: only the last iteration is seen to set them.
        cpu.flags = flags;
        cpu.repeating = true;
        cpu.leave_block = true;
    }
    Ok(())
}

/// How many elements of a forward run starting at `at` stay inside its page.
fn run_in_page<W: Scalar>(at: Linear) -> u64 {
    (4096 - at.address % 4096) / W::BYTES
}

/// A place in RAM that nobody watches, through the TLB.
fn plain_ram(cpu: &mut Cpu, at: Linear, usage: Use) -> Result<Option<RamOffset>, Raised> {
    match cpu.translate(at, usage, cpu.mode)? {
        Place::Ram(to) if usage == Use::Read || cpu.ram.is_quiet(to) => Ok(Some(to)),
        _ => Ok(None),
    }
}

/// Whether a repeated instruction may take several elements at once: forward, flat, not watched.
/// `source` is the segment of its source.
fn may_run(cpu: &Cpu, op: &Op, source: Option<u8>) -> bool {
    let flat = match cpu.code_size {
        CodeSize::Bits64 => op.address_mask == u64::MAX && source.is_none_or(|s| s == FLAT),
        _ => {
            let is_flat = |index: usize| {
                let segment = &cpu.segment[index];
                segment.spans_all() && segment.base == 0
            };
            // A fault of the stack segment has a vector of its own.
            let source = source.map(|s| usize::from(s) % 6);
            op.address_mask == 0xffff_ffff
                && is_flat(seg::ES)
                && source.is_none_or(|s| s != seg::SS && is_flat(s))
        }
    };
    flat && op.has(REP | REPNE)
        && cpu.system_flags & (DF | x86::cr::rflags::TF) == 0
        && !cpu.careful
}

fn rep_stos<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    for _ in 0..RUNS {
        if !may_run(cpu, op, None) {
            break;
        }
        let count = cpu.reg(RCX) & op.address_mask;
        let to = Linear::system(cpu.reg(RDI) & op.address_mask);
        let run = count.min(run_in_page::<W>(to));
        if run == 0 {
            break;
        }
        let Some(ram) = plain_ram(cpu, to, Use::Write)? else { break };
        let value = read_reg::<W>(cpu, RAX);
        fill::<W>(cpu, ram, run, value);
        set_address(cpu, op, RDI, to.address.wrapping_add(run * W::BYTES));
        set_address(cpu, op, RCX, count - run);
    }
    narrow(cpu, op, &[RDI]);
    repeat(cpu, op, bus, stos::<W>)
}

fn fill<W: Scalar>(cpu: &Cpu, to: RamOffset, count: u64, value: u64) {
    let bytes = value.to_le_bytes();
    let pattern = &bytes[..W::BYTES as usize];
    if pattern.iter().all(|b| *b == pattern[0]) {
        cpu.ram.fill_at(to, count * W::BYTES, pattern[0]);
        return;
    }
    for element in 0..count {
        cpu.ram.store::<W>(RamOffset(to.0 + element * W::BYTES), W::from_u64(value));
    }
}

fn rep_movs<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    for _ in 0..RUNS {
        if !may_run(cpu, op, Some(op.segment)) {
            break;
        }
        let count = cpu.reg(RCX) & op.address_mask;
        let from = Linear::system(cpu.reg(RSI) & op.address_mask);
        let to = Linear::system(cpu.reg(RDI) & op.address_mask);
        let run = count.min(run_in_page::<W>(from)).min(run_in_page::<W>(to));
        // A destination shortly above its source repeats a pattern, element by element.
        let overlap = to.address.wrapping_sub(from.address) < run * W::BYTES;
        if run == 0 || overlap {
            break;
        }
        let Some(source) = plain_ram(cpu, from, Use::Read)? else { break };
        let Some(target) = plain_ram(cpu, to, Use::Write)? else { break };
        if target.0.wrapping_sub(source.0) < run * W::BYTES {
            // The same through two mappings of one page.
            break;
        }
        cpu.ram.copy_within(source, target, run * W::BYTES);
        set_address(cpu, op, RSI, from.address.wrapping_add(run * W::BYTES));
        set_address(cpu, op, RDI, to.address.wrapping_add(run * W::BYTES));
        set_address(cpu, op, RCX, count - run);
    }
    narrow(cpu, op, &[RSI, RDI]);
    repeat(cpu, op, bus, movs::<W>)
}

macro_rules! repeated {
    ($($name:ident $element:ident),*) => { $(
        fn $name<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
            repeat(cpu, op, bus, $element::<W>)
        }
    )* };
}
repeated!(rep_lods lods, rep_cmps cmps, rep_scas scas);

/// The permission for the port is checked even when nothing is left to transfer.
macro_rules! repeated_port {
    ($($name:ident $element:ident),*) => { $(
        fn $name<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
            let port = cpu.reg(RDX) as u16;
            cpu.check_port(bus, port, W::BYTES as u16)?;
            repeat(cpu, op, bus, $element::<W>)
        }
    )* };
}
repeated_port!(rep_ins ins, rep_outs outs);

pub(crate) fn lower(instruction: &Instruction) -> Option<Exec> {
    use Mnemonic as M;
    if !instruction.is_string_instruction() {
        return None;
    }
    Some(match instruction.mnemonic() {
        M::Movsb => rep_movs::<u8>,
        M::Movsw => rep_movs::<u16>,
        M::Movsd => rep_movs::<u32>,
        M::Movsq => rep_movs::<u64>,
        M::Stosb => rep_stos::<u8>,
        M::Stosw => rep_stos::<u16>,
        M::Stosd => rep_stos::<u32>,
        M::Stosq => rep_stos::<u64>,
        M::Lodsb => rep_lods::<u8>,
        M::Lodsw => rep_lods::<u16>,
        M::Lodsd => rep_lods::<u32>,
        M::Lodsq => rep_lods::<u64>,
        M::Cmpsb => rep_cmps::<u8>,
        M::Cmpsw => rep_cmps::<u16>,
        M::Cmpsd => rep_cmps::<u32>,
        M::Cmpsq => rep_cmps::<u64>,
        M::Scasb => rep_scas::<u8>,
        M::Scasw => rep_scas::<u16>,
        M::Scasd => rep_scas::<u32>,
        M::Scasq => rep_scas::<u64>,
        M::Insb => rep_ins::<u8>,
        M::Insw => rep_ins::<u16>,
        M::Insd => rep_ins::<u32>,
        M::Outsb => rep_outs::<u8>,
        M::Outsw => rep_outs::<u16>,
        M::Outsd => rep_outs::<u32>,
        _ => return None,
    })
}
