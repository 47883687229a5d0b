//! CPUID, time stamps, random numbers, MSRs, ports, HLT, CLI, STI and hypercalls.

use device::Width;
use engine::{HypercallFrame, RunState, Shadow, TraceEvent, Traced};
use iced_x86::{Instruction, Mnemonic};
use memory::Scalar;
use x86::cpuid::feature;
use x86::cr::{cr4, rflags};
use x86::exception::Exception;
use x86::gpr;

use super::{by_size, operand_size, widths};
use crate::cpu::{Bus, Cpu, Exec, Step};
use crate::op::{Op, read_reg, write_reg};

const RAX: u8 = gpr::RAX as u8;
const RBX: u8 = gpr::RBX as u8;
const RCX: u8 = gpr::RCX as u8;
const RDX: u8 = gpr::RDX as u8;

impl Cpu {
    /// Sets EDX:EAX, clearing the upper halves.
    fn set_edx_eax(&mut self, value: u64) {
        self.set_reg(RAX, value & 0xffff_ffff);
        self.set_reg(RDX, value >> 32);
    }

    /// Permission to use a port: CPL <= IOPL, else the TSS's I/O bitmap (SDM vol. 1 19.5.2).
    /// A permitted access is noted for I/O breakpoints.
    pub(crate) fn check_port(&mut self, bus: Bus<'_>, port: u16, bytes: u16) -> Step {
        let virtual_8086 = self.system_flags & rflags::VM != 0;
        if virtual_8086 || self.cpl > self.iopl() {
            self.check_port_bitmap(bus, port, bytes)?;
        }
        self.note_port_access(port, bytes);
        Ok(())
    }

    fn check_port_bitmap(&mut self, bus: Bus<'_>, port: u16, bytes: u16) -> Step {
        // Only the 32- and 64-bit TSS has a bitmap.
        let limit = u64::from(self.tr.limit);
        self.require(self.tr.present() && self.tr.kind() & 8 != 0 && limit >= 103)?;
        let base = self.read_system(bus, self.tr.base.wrapping_add(102), 2)?;
        let at = base + u64::from(port / 8);
        // Two bytes are read, as a port's bits may straddle them.
        self.require(at < limit)?;
        let bits = self.read_system(bus, self.tr.base.wrapping_add(at), 2)? >> (port % 8);
        self.require(bits & ((1 << bytes) - 1) == 0)
    }
}

fn cpuid(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    // Serializing: stores are done, and what follows is fetched anew (SDM vol. 3A 9.3).
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    cpu.leave_block = true;
    let (leaf, subleaf) = (cpu.reg(RAX) as u32, cpu.reg(RCX) as u32);
    let mut answer = cpu.profile.cpuid(leaf, subleaf);
    match (leaf, subleaf) {
        (1, _) => {
            answer.ebx |= cpu.mailbox.apic_id() << 24;
            if cpu.cr4 & cr4::OSXSAVE != 0 {
                answer.ecx |= 1 << feature::OSXSAVE.bit;
            }
            if cpu.apic.base_msr() & 1 << 11 == 0 {
                answer.edx &= !(1 << feature::APIC.bit);
            }
        }
        // Topology: the level is the asked one, and the x2APIC id (SDM vol. 2A table 3-8).
        (0xb, _) => {
            answer.ecx |= subleaf & 0xff;
            answer.edx = cpu.mailbox.apic_id();
        }
        // Size of the XSAVE area for the components that XCR0 enables.
        (0xd, 0 | 1) if answer.eax != 0 => {
            let size = hostexec::image::xsave_area_size(cpu.xcr0);
            answer.ebx = size as u32;
        }
        _ => {}
    }
    for (register, value) in
        [(RAX, answer.eax), (RBX, answer.ebx), (RCX, answer.ecx), (RDX, answer.edx)]
    {
        cpu.set_reg(register, u64::from(value));
    }
    Ok(())
}

/// RDTSC and RDTSCP: forbidden at CPL above 0 by CR4.TSD.
fn rdtsc(cpu: &mut Cpu, _op: &Op, bus: Bus<'_>) -> Step {
    cpu.require(cpu.cpl == 0 || cpu.cr4 & cr4::TSD == 0)?;
    let tsc = cpu.tsc(bus);
    cpu.set_edx_eax(tsc);
    Ok(())
}

fn rdtscp(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    rdtsc(cpu, op, bus)?;
    cpu.set_reg(RCX, cpu.msrs.tsc_aux);
    Ok(())
}

fn rdpid(cpu: &mut Cpu, op: &Op, _bus: Bus<'_>) -> Step {
    let value = cpu.msrs.tsc_aux;
    cpu.set_reg(op.reg, value);
    Ok(())
}

/// No performance counters: every index is out of range.
fn rdpmc(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    cpu.fault(Exception::GP0)
}

/// RDRAND and RDSEED: CF set, the other flags clear.
fn random<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let value = cpu.random(bus);
    write_reg::<W>(cpu, op.reg, value);
    cpu.flags = crate::flags::Flags::unpack(rflags::CF);
    Ok(())
}

fn rdmsr(cpu: &mut Cpu, _op: &Op, bus: Bus<'_>) -> Step {
    cpu.require_cpl0()?;
    let number = cpu.reg(RCX) as u32;
    let read = cpu.read_msr(bus, number);
    if cpu.observer.traces(Traced::MSR) {
        let (value, fault) = (read.as_ref().ok().copied(), read.is_err());
        cpu.observer.tell(TraceEvent::Msr { number, write: false, value, fault });
    }
    cpu.set_edx_eax(read?);
    Ok(())
}

fn wrmsr(cpu: &mut Cpu, _op: &Op, bus: Bus<'_>) -> Step {
    cpu.require_cpl0()?;
    let value = cpu.reg(RDX) << 32 | cpu.reg(RAX) & 0xffff_ffff;
    cpu.leave_block = true;
    let number = cpu.reg(RCX) as u32;
    let written = cpu.write_msr(bus, number, value);
    if cpu.observer.traces(Traced::MSR) {
        let (value, fault) = (Some(value), written.is_err());
        cpu.observer.tell(TraceEvent::Msr { number, write: true, value, fault });
    }
    written
}

/// The port: the immediate, or DX when `DX`.
fn port<const DX: bool>(cpu: &Cpu, op: &Op) -> u16 {
    if DX { cpu.reg(RDX) as u16 } else { u16::from(op.imm as u8) }
}

fn width<W: Scalar>() -> Width {
    match W::BYTES {
        1 => Width::Byte,
        2 => Width::Word,
        _ => Width::Dword,
    }
}

fn port_in<const DX: bool, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let port = port::<DX>(cpu, op);
    cpu.check_port(bus, port, W::BYTES as u16)?;
    cpu.counters.port_accesses += 1;
    let answer = bus.port_read(port, width::<W>());
    let value = cpu.take(answer, Exception::GP0)?;
    write_reg::<W>(cpu, RAX, u64::from(value));
    Ok(())
}

fn port_out<const DX: bool, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let port = port::<DX>(cpu, op);
    cpu.check_port(bus, port, W::BYTES as u16)?;
    cpu.counters.port_accesses += 1;
    let value = read_reg::<W>(cpu, RAX) as u32;
    let answer = bus.port_write(port, width::<W>(), value);
    // A device may have raised an interrupt: look before the next block.
    cpu.leave_block = true;
    cpu.take(answer, Exception::GP0)
}

fn hlt(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    cpu.require_cpl0()?;
    cpu.counters.halts += 1;
    cpu.run_state = RunState::Halted;
    cpu.leave_block = true;
    Ok(())
}

/// CLI and STI need CPL <= IOPL; STI takes effect after the next instruction.
fn cli(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    cpu.require(cpu.cpl <= cpu.iopl())?;
    cpu.system_flags &= !rflags::IF;
    Ok(())
}

fn sti(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    cpu.require(cpu.cpl <= cpu.iopl())?;
    if !cpu.interrupts_enabled() {
        cpu.shadow = Shadow::Sti;
    }
    cpu.system_flags |= rflags::IF;
    cpu.leave_block = true;
    Ok(())
}

/// VMCALL and VMMCALL.
fn hypercall(cpu: &mut Cpu, _op: &Op, bus: Bus<'_>) -> Step {
    let mut frame = HypercallFrame {
        rax: cpu.reg(RAX),
        arguments: [RBX, RCX, RDX, gpr::RSI as u8].map(|r| cpu.reg(r)),
        cpl: cpu.cpl,
    };
    let answer = bus.hypercall(cpu.index, &mut frame);
    cpu.take(answer, Exception::UD)?;
    cpu.set_reg(RAX, frame.rax);
    cpu.leave_block = true;
    Ok(())
}

/// UD0, UD1, UD2 and everything that this CPU does not have.
pub(crate) fn undefined(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    cpu.counters.undefined += 1;
    cpu.fault(Exception::UD)
}

/// An instruction longer than 15 bytes.
pub(crate) fn too_long(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    cpu.fault(Exception::GP0)
}

fn lower_in(instruction: &Instruction, op: &mut Op) -> Option<Exec> {
    let immediate = instruction.op1_kind() == iced_x86::OpKind::Immediate8;
    let size = operand_size(instruction, 0);
    if immediate {
        op.imm = u64::from(instruction.immediate8());
        return by_size(
            size,
            [port_in::<false, u8>, port_in::<false, u16>, port_in::<false, u32>, undefined],
        );
    }
    by_size(size, [port_in::<true, u8>, port_in::<true, u16>, port_in::<true, u32>, undefined])
}

fn lower_out(instruction: &Instruction, op: &mut Op) -> Option<Exec> {
    let immediate = instruction.op0_kind() == iced_x86::OpKind::Immediate8;
    let size = operand_size(instruction, 1);
    if immediate {
        op.imm = u64::from(instruction.immediate8());
        return by_size(
            size,
            [port_out::<false, u8>, port_out::<false, u16>, port_out::<false, u32>, undefined],
        );
    }
    by_size(size, [port_out::<true, u8>, port_out::<true, u16>, port_out::<true, u32>, undefined])
}

impl Cpu {
    /// A random number: from the host, so that a guest's keys are not predictable.
    fn random(&mut self, bus: Bus<'_>) -> u64 {
        use std::hash::{BuildHasher, Hasher};
        // RandomState is seeded by the host's generator; the clock and a counter vary the input.
        let mut hasher = self.entropy.build_hasher();
        self.entropy_counter = self.entropy_counter.wrapping_add(1);
        hasher.write_u64(self.entropy_counter);
        hasher.write_u64(bus.clock().now());
        hasher.finish()
    }
}

pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Exec> {
    use Mnemonic as M;
    Some(match instruction.mnemonic() {
        M::Cpuid => cpuid,
        M::Rdtsc => rdtsc,
        M::Rdtscp => rdtscp,
        M::Rdpid => rdpid,
        M::Rdpmc => rdpmc,
        M::Rdrand | M::Rdseed => return by_size(operand_size(instruction, 0), widths!(random)),
        M::Rdmsr => rdmsr,
        M::Wrmsr => wrmsr,
        M::In => return lower_in(instruction, op),
        M::Out => return lower_out(instruction, op),
        M::Hlt => hlt,
        M::Cli => cli,
        M::Sti => sti,
        M::Vmcall | M::Vmmcall => hypercall,
        M::Ud0 | M::Ud1 | M::Ud2 => undefined,
        _ => return None,
    })
}
