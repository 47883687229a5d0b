//! SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS and the FS/GS base instructions
//! (SDM vol. 3A 5.8.7, 5.8.8; vol. 2).

use engine::Vendor;
use iced_x86::{Instruction, Mnemonic};
use memory::Scalar;
use x86::cr::{cr4, efer, rflags};
use x86::exception::Exception;
use x86::gpr;
use x86::is_canonical;
use x86::segment::{Segment, seg};

use super::operand_size;
use crate::cpu::{Bus, Cpu, Exec, Step};
use crate::op::{Op, read_reg, write_reg};

const RSP: u8 = gpr::RSP as u8;
const RCX: u8 = gpr::RCX as u8;
const RDX: u8 = gpr::RDX as u8;
const R11: u8 = gpr::R11 as u8;

/// Attributes of flat segments: accessed, present, granular.
const CODE64: u16 = 0xa9b;
const CODE32: u16 = 0xc9b;
const DATA32: u16 = 0xc93;
const fn at_dpl(attributes: u16, dpl: u16) -> u16 {
    attributes | dpl << 5
}

fn set_flat(cpu: &mut Cpu, index: usize, selector: u64, attributes: u16) {
    cpu.segment[index] = Segment::flat(selector as u16, attributes);
}

fn syscall(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    let long_enough = cpu.is_64bit() || cpu.profile.vendor() == Vendor::Amd && cpu.long_mode();
    if cpu.efer & efer::SCE == 0 || !long_enough {
        return cpu.fault(Exception::UD);
    }
    let target = if cpu.is_64bit() { cpu.msrs.lstar } else { cpu.msrs.cstar };
    cpu.set_reg(RCX, cpu.rip());
    cpu.set_reg(R11, cpu.rflags() & !rflags::RF);
    let flags = cpu.rflags() & !cpu.msrs.sfmask & !rflags::RF;
    cpu.set_rip(target);
    cpu.enter_syscall_segments();
    cpu.step_suppressed = flags & rflags::TF == 0;
    cpu.set_rflags(flags);
    cpu.refresh_level();
    Ok(())
}

impl Cpu {
    /// CS and SS as SYSCALL leaves them; the caller refreshes what depends on them.
    pub(crate) fn enter_syscall_segments(&mut self) {
        let selector = self.msrs.star >> 32 & 0xfffc;
        set_flat(self, seg::CS, selector, at_dpl(CODE64, 0));
        set_flat(self, seg::SS, selector + 8, at_dpl(DATA32, 0));
    }

    /// CS and SS as SYSRET to 64-bit code leaves them; the caller refreshes what depends on them.
    pub(crate) fn enter_sysret_segments(&mut self) {
        let base = self.msrs.star >> 48;
        set_flat(self, seg::CS, (base + 16) | 3, at_dpl(CODE64, 3));
        set_flat(self, seg::SS, (base + 8) | 3, at_dpl(DATA32, 3));
    }
}

/// SYSRET to 64-bit code (`W` u64) or compatibility code.
fn sysret<W: Scalar>(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    if cpu.efer & efer::SCE == 0 || !cpu.is_64bit() {
        return cpu.fault(Exception::UD);
    }
    cpu.require_cpl0()?;
    let target = read_reg::<W>(cpu, RCX);
    if W::BYTES == 8 {
        // Checked before the level changes on Intel; AMD does not check.
        cpu.require(is_canonical(target) || cpu.profile.vendor() == Vendor::Amd)?;
    }
    cpu.enter_sysret_segments();
    if W::BYTES == 4 {
        set_flat(cpu, seg::CS, cpu.msrs.star >> 48 | 3, at_dpl(CODE32, 3));
    }
    cpu.set_rip(target);
    let flags = cpu.reg(R11) & rflags::ALL & !(rflags::RF | rflags::VM);
    cpu.set_rflags(flags);
    cpu.refresh_level();
    Ok(())
}

fn sysenter(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    if cpu.profile.vendor() == Vendor::Amd && cpu.long_mode() {
        return cpu.fault(Exception::UD);
    }
    let selector = cpu.msrs.sysenter_cs & 0xfffc;
    let protected = cpu.cr0 & x86::cr::cr0::PE != 0;
    cpu.require(protected && selector != 0)?;
    let long = cpu.long_mode();
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    cpu.system_flags &= !(rflags::VM | rflags::IF | rflags::RF);
    set_flat(cpu, seg::CS, selector, at_dpl(if long { CODE64 } else { CODE32 }, 0));
    set_flat(cpu, seg::SS, selector + 8, at_dpl(DATA32, 0));
    cpu.set_reg(RSP, cpu.msrs.sysenter_esp & mask);
    cpu.set_rip(cpu.msrs.sysenter_eip & mask);
    cpu.refresh();
    Ok(())
}

/// SYSEXIT to 64-bit code (`W` u64) or 32-bit code.
fn sysexit<W: Scalar>(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    if cpu.profile.vendor() == Vendor::Amd && cpu.long_mode() {
        return cpu.fault(Exception::UD);
    }
    let selector = cpu.msrs.sysenter_cs & 0xfffc;
    let protected = cpu.cr0 & x86::cr::cr0::PE != 0;
    cpu.require(protected && selector != 0 && cpu.cpl == 0)?;
    let (rip, rsp) = (read_reg::<W>(cpu, RDX), read_reg::<W>(cpu, RCX));
    let long = W::BYTES == 8;
    cpu.require(!long || is_canonical(rip) && is_canonical(rsp))?;
    let base = if long { selector + 32 } else { selector + 16 };
    set_flat(cpu, seg::CS, base | 3, at_dpl(if long { CODE64 } else { CODE32 }, 3));
    set_flat(cpu, seg::SS, (base + 8) | 3, at_dpl(DATA32, 3));
    cpu.set_reg(RSP, rsp);
    cpu.set_rip(rip);
    cpu.refresh();
    Ok(())
}

fn swapgs(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    cpu.require_cpl0()?;
    std::mem::swap(&mut cpu.segment[seg::GS].base, &mut cpu.msrs.kernel_gs_base);
    Ok(())
}

/// #UD without CR4.FSGSBASE.
fn check_fsgsbase(cpu: &mut Cpu) -> Step {
    if cpu.cr4 & cr4::FSGSBASE == 0 { cpu.fault(Exception::UD) } else { Ok(()) }
}

fn read_base<const SEGMENT: usize, W: Scalar>(cpu: &mut Cpu, op: &Op, _bus: Bus<'_>) -> Step {
    check_fsgsbase(cpu)?;
    let base = cpu.segment[SEGMENT].base;
    write_reg::<W>(cpu, op.reg, base);
    Ok(())
}

fn write_base<const SEGMENT: usize, W: Scalar>(cpu: &mut Cpu, op: &Op, _bus: Bus<'_>) -> Step {
    check_fsgsbase(cpu)?;
    let base = read_reg::<W>(cpu, op.reg);
    cpu.require(is_canonical(base))?;
    cpu.segment[SEGMENT].base = base;
    Ok(())
}

fn lower_base<const SEGMENT: usize>(instruction: &Instruction, write: bool) -> Exec {
    match (write, operand_size(instruction, 0)) {
        (false, 8) => read_base::<SEGMENT, u64>,
        (false, _) => read_base::<SEGMENT, u32>,
        (true, 8) => write_base::<SEGMENT, u64>,
        (true, _) => write_base::<SEGMENT, u32>,
    }
}

pub(crate) fn lower(instruction: &Instruction) -> Option<Exec> {
    use Mnemonic as M;
    Some(match instruction.mnemonic() {
        M::Syscall => syscall,
        M::Sysret => sysret::<u32>,
        M::Sysretq => sysret::<u64>,
        M::Sysenter => sysenter,
        M::Sysexit => sysexit::<u32>,
        M::Sysexitq => sysexit::<u64>,
        M::Swapgs => swapgs,
        M::Rdfsbase => lower_base::<{ seg::FS }>(instruction, false),
        M::Rdgsbase => lower_base::<{ seg::GS }>(instruction, false),
        M::Wrfsbase => lower_base::<{ seg::FS }>(instruction, true),
        M::Wrgsbase => lower_base::<{ seg::GS }>(instruction, true),
        _ => return None,
    })
}
