//! Control and debug registers, descriptor-table registers, TLB invalidation, XSETBV
//! (SDM vol. 3A 2.5, 2.6, 2.8, 4.10.4).

use iced_x86::{Instruction, Mnemonic};
use memory::Scalar;
use x86::cpuid::feature;
use x86::cr::{cr0, cr4, dr, efer, xcr0};
use x86::exception::{Exception, vector};
use x86::gpr;
use x86::is_canonical;
use x86::paging::{CR3_NOFLUSH, PCID_MASK};
use x86::segment::{TableRegister, seg};

use super::{Mem, Operand, Reg, Target, by_size, is_memory, is_register, operand_size, widths};
use crate::cpu::{Bus, Cpu, Exec, Step};
use crate::op::{Op, read_reg, write_reg};

const RAX: u8 = gpr::RAX as u8;
const RDX: u8 = gpr::RDX as u8;

impl Cpu {
    /// Bits of CR4 that the profile has.
    pub(crate) fn cr4_allowed(&self) -> u64 {
        let optional = [
            (feature::UMIP, cr4::UMIP),
            (feature::FSGSBASE, cr4::FSGSBASE),
            (feature::PCID, cr4::PCIDE),
            (feature::XSAVE, cr4::OSXSAVE),
            (feature::SMEP, cr4::SMEP),
            (feature::SMAP, cr4::SMAP),
        ];
        // No VME and PVI: no profile offers the extensions of virtual-8086 mode.
        let base = cr4::TSD
            | cr4::DE
            | cr4::PSE
            | cr4::PAE
            | cr4::MCE
            | cr4::PGE
            | cr4::PCE
            | cr4::OSFXSR
            | cr4::OSXMMEXCPT;
        optional
            .iter()
            .filter(|(feature, _)| self.profile.has(*feature))
            .fold(base, |all, (_, bit)| all | bit)
    }

    fn write_cr0(&mut self, value: u64) -> Step {
        let pages = value & cr0::PG != 0;
        let inconsistent = pages && value & cr0::PE == 0
            || value & (cr0::NW | cr0::CD) == cr0::NW
            || value >> 32 != 0;
        self.require(!inconsistent)?;
        // Bits that do not exist are ignored; ET reads as one.
        let value = value & cr0::ALL | cr0::ET;
        let turned_on = pages && self.cr0 & cr0::PG == 0;
        let turned_off = !pages && self.cr0 & cr0::PG != 0;
        let cs_long = self.segment[seg::CS].long();
        if turned_on && self.efer & efer::LME != 0 {
            let tss_16bit = self.tr.kind() & 8 == 0;
            self.require(self.cr4 & cr4::PAE != 0 && !cs_long && !tss_16bit)?;
            self.efer |= efer::LMA;
        } else if pages && (self.cr0 ^ value) & (cr0::PG | cr0::CD | cr0::NW) != 0 {
            self.reload_pdptr(self.cr4, self.cr3)?;
        }
        if turned_off {
            let refused = self.long_mode() && self.is_64bit() || self.cr4 & cr4::PCIDE != 0;
            self.require(!refused)?;
            self.efer &= !efer::LMA;
        }
        let changed = self.cr0 ^ value;
        self.cr0 = value;
        if changed & (cr0::PG | cr0::PE | cr0::WP) != 0 {
            self.tlb.flush_all();
        }
        self.refresh();
        Ok(())
    }

    fn write_cr3(&mut self, value: u64) -> Step {
        let pcids = self.cr4 & cr4::PCIDE != 0;
        let keep = pcids && value & CR3_NOFLUSH != 0;
        let value = if pcids { value & !CR3_NOFLUSH } else { value };
        self.require(value >> self.profile.physical_bits() == 0)?;
        if self.cr0 & cr0::PG != 0 {
            self.reload_pdptr(self.cr4, value)?;
        }
        self.cr3 = value;
        let pcid = if pcids { (value & PCID_MASK) as u16 } else { 0 };
        self.tlb.select_pcid(pcid);
        if !keep {
            self.tlb.flush_pcid(pcid);
        }
        self.refresh();
        Ok(())
    }

    /// Loads the PDPTE registers when paging with `cr4` is PAE paging; #GP(0) for reserved bits in
    /// an entry that is present. Writes to CR3 do this, and those to CR0 and CR4 that change what
    /// SDM vol. 3A 4.4.1 lists. The caller knows that paging is or will be on.
    pub(crate) fn reload_pdptr(&mut self, cr4: u64, cr3: u64) -> Step {
        if cr4 & cr4::PAE == 0 || self.long_mode() {
            return Ok(());
        }
        let table = cr3 & 0xffff_ffe0;
        let mut entries = [0; 4];
        for (index, entry) in entries.iter_mut().enumerate() {
            let gpa = memory::Gpa(table + index as u64 * 8);
            *entry = self.ram.translate(gpa, 8).map_or(0, |at| self.ram.load(at));
            let beyond = !((1_u64 << self.profile.physical_bits()) - 1);
            let reserved = *entry & (0x1e6 | beyond) != 0;
            self.require(*entry & 1 == 0 || !reserved)?;
        }
        self.pdptr = entries;
        Ok(())
    }

    fn write_cr4(&mut self, value: u64) -> Step {
        self.require(value & !self.cr4_allowed() == 0)?;
        let changed = self.cr4 ^ value;
        if self.long_mode() {
            self.require(value & cr4::PAE != 0)?;
        }
        if changed & value & cr4::PCIDE != 0 {
            self.require(self.long_mode() && self.cr3 & PCID_MASK == 0)?;
        }
        let reloading = cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP;
        if self.cr0 & cr0::PG != 0 && changed & reloading != 0 {
            self.reload_pdptr(value, self.cr3)?;
        }
        self.cr4 = value;
        let flushing = cr4::PGE | cr4::PAE | cr4::PSE | cr4::PCIDE | cr4::SMEP | cr4::SMAP;
        if changed & flushing != 0 {
            self.tlb.flush_all();
        }
        if changed & cr4::PCIDE != 0 {
            self.tlb.select_pcid(0);
        }
        self.refresh();
        Ok(())
    }

    /// WRMSR to EFER.
    pub(crate) fn write_efer(&mut self, value: u64) -> Step {
        let known = efer::SCE | efer::LME | efer::LMA | efer::NXE;
        let toggles_lme = (value ^ self.efer) & efer::LME != 0;
        let paging = self.cr0 & cr0::PG != 0;
        self.require(value & !known == 0 && !(toggles_lme && paging))?;
        // LMA is read-only and ignored.
        let changed = self.efer ^ value;
        self.efer = value & !efer::LMA | self.efer & efer::LMA;
        if changed & efer::NXE != 0 {
            self.tlb.flush_all();
        }
        self.refresh();
        Ok(())
    }

    /// DR4 and DR5 are DR6 and DR7 unless CR4.DE is set; with DR7.GD any access traps.
    fn debug_register(&mut self, number: u8) -> Result<u8, crate::cpu::Raised> {
        let number = match number {
            4 | 5 if self.cr4 & cr4::DE != 0 => return self.fault(Exception::UD),
            4 | 5 => number + 2,
            8..=15 => return self.fault(Exception::UD),
            _ => number,
        };
        self.require_cpl0()?;
        if self.dr7 & dr::DR7_GD != 0 {
            self.dr6 |= dr::DR6_BD;
            return self.fault(Exception::new(vector::DB));
        }
        Ok(number)
    }
}

fn mov_from_cr(cpu: &mut Cpu, op: &Op, _bus: Bus<'_>) -> Step {
    if matches!(op.src, 1 | 5..=7 | 9..) {
        return cpu.fault(Exception::UD);
    }
    cpu.require_cpl0()?;
    let value = match op.src {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        _ => u64::from(cpu.apic.cr8()),
    };
    set_native(cpu, op.reg, value);
    Ok(())
}

/// Moves of control and debug registers are 64 bits wide in 64-bit code, else 32.
fn set_native(cpu: &mut Cpu, register: u8, value: u64) {
    if cpu.is_64bit() {
        cpu.set_reg(register, value);
    } else {
        write_reg::<u32>(cpu, register, value);
    }
}

fn get_native(cpu: &Cpu, register: u8) -> u64 {
    if cpu.is_64bit() { cpu.reg(register) } else { read_reg::<u32>(cpu, register) }
}

fn mov_to_cr(cpu: &mut Cpu, op: &Op, _bus: Bus<'_>) -> Step {
    if matches!(op.reg, 1 | 5..=7 | 9..) {
        return cpu.fault(Exception::UD);
    }
    cpu.require_cpl0()?;
    let value = get_native(cpu, op.src);
    match op.reg {
        0 => cpu.write_cr0(value),
        2 => {
            cpu.cr2 = value;
            Ok(())
        }
        3 => cpu.write_cr3(value),
        4 => cpu.write_cr4(value),
        _ => {
            cpu.require(value < 16)?;
            cpu.apic.set_cr8(value as u8);
            cpu.apic_changed = true;
            cpu.leave_block = true;
            Ok(())
        }
    }
}

fn mov_from_dr(cpu: &mut Cpu, op: &Op, _bus: Bus<'_>) -> Step {
    let value = match cpu.debug_register(op.src)? {
        6 => cpu.dr6,
        7 => cpu.dr7,
        number => cpu.dr[usize::from(number) & 3],
    };
    set_native(cpu, op.reg, value);
    Ok(())
}

fn mov_to_dr(cpu: &mut Cpu, op: &Op, _bus: Bus<'_>) -> Step {
    let number = cpu.debug_register(op.reg)?;
    let value = get_native(cpu, op.src);
    match number {
        6 | 7 => {
            cpu.require(value >> 32 == 0)?;
            if number == 6 {
                cpu.dr6 = value & dr::DR6_WRITABLE | dr::DR6_FIXED;
            } else {
                cpu.dr7 = value & dr::DR7_WRITABLE | dr::DR7_FIXED;
            }
        }
        _ => cpu.dr[usize::from(number) & 3] = value,
    }
    cpu.refresh();
    Ok(())
}

fn clts(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    cpu.require_cpl0()?;
    cpu.cr0 &= !cr0::TS;
    Ok(())
}

/// LMSW sets the low four bits of CR0 and cannot clear PE.
fn lmsw<S: Operand>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    cpu.require_cpl0()?;
    let value = S::read::<u16>(cpu, op, bus)? & 0xf;
    let kept = cpu.cr0 & !0xe;
    cpu.write_cr0(kept | value)
}

fn smsw<D: Target, W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    cpu.check_umip()?;
    let value = cpu.cr0;
    D::write::<W>(cpu, op, bus, value)
}

/// SGDT (`IDT` false) and SIDT: limit, then base of 8 bytes in 64-bit code, else 4.
fn store_table<const IDT: bool>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    cpu.check_umip()?;
    let table = if IDT { cpu.idtr } else { cpu.gdtr };
    let size = if cpu.is_64bit() { 10 } else { 6 };
    let mut image = [0; 10];
    image[..2].copy_from_slice(&table.limit.to_le_bytes());
    image[2..].copy_from_slice(&table.base.to_le_bytes());
    let at = op.linear(cpu, size, true)?;
    cpu.write_bytes(bus, at, &image[..size as usize])
}

fn load_table<const IDT: bool>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    cpu.require_cpl0()?;
    let size = if cpu.is_64bit() { 10 } else { 6 };
    let at = op.linear(cpu, size, false)?;
    let limit = cpu.read::<u16>(bus, at)? as u16;
    let mut base = if size == 10 {
        cpu.read::<u64>(bus, at.plus(2))?
    } else {
        cpu.read::<u32>(bus, at.plus(2))?
    };
    if size == 10 {
        cpu.require(is_canonical(base))?;
    }
    // With a 16-bit operand size the base has 24 bits.
    if matches!(
        op.instruction().code(),
        iced_x86::Code::Lgdt_m1632_16 | iced_x86::Code::Lidt_m1632_16
    ) {
        base &= 0xff_ffff;
    }
    let table = TableRegister { base, limit };
    if IDT {
        cpu.idtr = table;
    } else {
        cpu.gdtr = table;
    }
    Ok(())
}

/// INVLPG ignores the segment's limit and never faults on the address.
fn invlpg(cpu: &mut Cpu, op: &Op, _bus: Bus<'_>) -> Step {
    cpu.require_cpl0()?;
    let offset = op.offset(cpu);
    let base = if op.segment == crate::op::FLAT {
        0
    } else {
        cpu.segment[usize::from(op.segment) % 6].base
    };
    cpu.tlb.flush_page(base.wrapping_add(offset));
    cpu.leave_block = true;
    Ok(())
}

/// INVPCID (SDM vol. 2A): type in the register, PCID and address in memory.
fn invpcid(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    cpu.require_cpl0()?;
    let kind = get_native(cpu, op.reg);
    let at = op.linear(cpu, 16, false)?;
    let mut descriptor = [0; 16];
    cpu.read_bytes(bus, at, &mut descriptor)?;
    let descriptor = u128::from_le_bytes(descriptor);
    let (first, linear) = (descriptor as u64, (descriptor >> 64) as u64);
    let pcid = (first & PCID_MASK) as u16;
    cpu.require(kind < 4 && first >> 12 == 0)?;
    if kind < 2 {
        cpu.require(cpu.cr4 & cr4::PCIDE != 0 || pcid == 0)?;
    }
    match kind {
        0 => {
            cpu.require(is_canonical(linear))?;
            cpu.tlb.flush_page_of_pcid(linear, pcid);
        }
        1 => cpu.tlb.flush_pcid(pcid),
        2 => cpu.tlb.flush_all(),
        _ => cpu.tlb.flush_non_global(),
    }
    cpu.leave_block = true;
    Ok(())
}

fn xgetbv(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return cpu.fault(Exception::UD);
    }
    let value = match cpu.reg(gpr::RCX as u8) as u32 {
        0 => cpu.xcr0,
        1 if cpu.profile.has(feature::XGETBV1) => cpu.xcr0 & cpu.fpu.xinuse(),
        _ => return cpu.fault(Exception::GP0),
    };
    cpu.set_reg(RAX, value & 0xffff_ffff);
    cpu.set_reg(RDX, value >> 32);
    Ok(())
}

fn xsetbv(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return cpu.fault(Exception::UD);
    }
    cpu.require_cpl0()?;
    let value = cpu.reg(RDX) << 32 | cpu.reg(RAX) & 0xffff_ffff;
    let supported = u64::from(cpu.profile.cpuid(0xd, 0).eax);
    let avx_alone = value & (xcr0::SSE | xcr0::AVX) == xcr0::AVX;
    let index = cpu.reg(gpr::RCX as u8) as u32;
    cpu.require(index == 0 && value & !supported == 0 && value & xcr0::X87 != 0 && !avx_alone)?;
    cpu.xcr0 = value;
    Ok(())
}

/// CLAC and STAC.
fn set_ac<const ON: bool>(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    if cpu.cpl != 0 {
        return cpu.fault(Exception::UD);
    }
    let ac = x86::cr::rflags::AC;
    cpu.system_flags = if ON { cpu.system_flags | ac } else { cpu.system_flags & !ac };
    cpu.refresh_access();
    Ok(())
}

/// INVD, WBINVD, WBNOINVD: no cache to write back.
fn cache_control(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    cpu.require_cpl0()
}

fn lower_mov(instruction: &Instruction) -> Option<Exec> {
    let register = |i: u32| {
        if is_register(instruction, i) { Some(instruction.op_register(i)) } else { None }
    };
    let (to, from) = (register(0)?, register(1)?);
    Some(match () {
        () if to.is_cr() => mov_to_cr,
        () if from.is_cr() => mov_from_cr,
        () if to.is_dr() => mov_to_dr,
        () if from.is_dr() => mov_from_dr,
        () => return None,
    })
}

pub(crate) fn lower(instruction: &Instruction) -> Option<Exec> {
    use Mnemonic as M;
    let memory = is_memory(instruction, 0);
    Some(match instruction.mnemonic() {
        M::Mov => return lower_mov(instruction),
        M::Clts => clts,
        M::Lmsw if memory => lmsw::<Mem>,
        M::Lmsw => lmsw::<Reg>,
        M::Smsw if memory => smsw::<Mem, u16>,
        M::Smsw => return by_size(operand_size(instruction, 0), widths!(smsw, Reg)),
        M::Sgdt => store_table::<false>,
        M::Sidt => store_table::<true>,
        M::Lgdt => load_table::<false>,
        M::Lidt => load_table::<true>,
        M::Invlpg => invlpg,
        M::Invpcid => invpcid,
        M::Xgetbv => xgetbv,
        M::Xsetbv => xsetbv,
        M::Clac => set_ac::<false>,
        M::Stac => set_ac::<true>,
        M::Invd | M::Wbinvd | M::Wbnoinvd => cache_control,
        _ => return None,
    })
}
