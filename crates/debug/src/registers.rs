//! A vCPU's state as gdb's registers (GDB manual, "Standard Target Features", "i386 Features").
//!
//! The general, segment, x87 and SSE registers have the layout of `gdbstub_arch`; behind them come
//! the upper halves of the YMM registers, the bases of FS and GS, and system registers that gdb
//! shows by name. What a debugger changes is checked by the engine, as a saved state is.

use std::fmt::Write;
use std::sync::OnceLock;

use engine::{CpuProfile, VcpuState};
use gdbstub::arch::{Arch, Registers};
use gdbstub_arch::x86::reg::{X86_64CoreRegs, X86SegmentRegs, X87FpuInternalRegs};
use memory::GuestRam;
use x86::cr::{cr0, rflags};
use x86::gpr::{RAX, RBP, RBX, RCX, RDI, RDX, RSI, RSP};
use x86::msr;
use x86::segment::{Segment, seg};
use x86::xsave;

use crate::memory_access::{self, NotThere};

/// The architecture that the debugger is told.
pub(crate) enum X86 {}

impl Arch for X86 {
    type Usize = u64;
    type Registers = GuestRegisters;
    type BreakpointKind = usize;
    /// Registers travel all at once.
    type RegId = ();

    fn target_description_xml() -> Option<&'static str> {
        static DESCRIPTION: OnceLock<String> = OnceLock::new();
        Some(DESCRIPTION.get_or_init(description))
    }
}

/// Names of [`GuestRegisters::system`], in order.
const SYSTEM: [&str; 7] = ["k_gs_base", "cr0", "cr2", "cr3", "cr4", "efer", "xcr0"];

/// gdb's order of the general registers.
const GENERAL: [usize; 16] = [RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, 8, 9, 10, 11, 12, 13, 14, 15];

/// gdb's order of the segment registers.
const SEGMENTS: [usize; 6] = [seg::CS, seg::SS, seg::DS, seg::ES, seg::FS, seg::GS];

/// What the debugger reads and writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GuestRegisters {
    core: X86_64CoreRegs,
    /// Upper halves of YMM0 to YMM15.
    ymm_high: [u128; 16],
    /// Bases of FS and GS.
    bases: [u64; 2],
    system: [u64; SYSTEM.len()],
}

/// Bytes of the general, segment, x87 and SSE registers.
const CORE_BYTES: usize = 0x218;
/// Bytes of all registers.
const BYTES: usize = CORE_BYTES + 16 * 16 + 2 * 8 + SYSTEM.len() * 8;

impl Registers for GuestRegisters {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.core.rip
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        self.core.gdb_serialize(&mut write_byte);
        let vectors = self.ymm_high.iter().flat_map(|value| value.to_le_bytes());
        let words = self.bases.iter().chain(&self.system).flat_map(|value| value.to_le_bytes());
        vectors.chain(words).for_each(|byte| write_byte(Some(byte)));
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        if bytes.len() < BYTES {
            return Err(());
        }
        let (core, rest) = bytes.split_at(CORE_BYTES);
        self.core.gdb_deserialize(core)?;
        let (vectors, words) = rest.split_at(16 * 16);
        for (value, bytes) in self.ymm_high.iter_mut().zip(vectors.as_chunks().0) {
            *value = u128::from_le_bytes(*bytes);
        }
        let values = self.bases.iter_mut().chain(&mut self.system);
        for (value, bytes) in values.zip(words.as_chunks().0) {
            *value = u64::from_le_bytes(*bytes);
        }
        Ok(())
    }
}

/// The target description, in the order in which [`GuestRegisters`] are sent.
fn description() -> String {
    let mut xml = String::from(concat!(
        r#"<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd">"#,
        r#"<target version="1.0"><architecture>i386:x86-64</architecture>"#,
    ));
    let reg = |name: &str, bits: u32, kind: &str| {
        format!(r#"<reg name="{name}" bitsize="{bits}" type="{kind}"/>"#)
    };
    xml.push_str(r#"<feature name="org.gnu.gdb.i386.core">"#);
    xml.push_str(FLAGS);
    for name in ["rax", "rbx", "rcx", "rdx", "rsi", "rdi"] {
        xml.push_str(&reg(name, 64, "int64"));
    }
    xml.push_str(&reg("rbp", 64, "data_ptr"));
    xml.push_str(&reg("rsp", 64, "data_ptr"));
    (8..16).for_each(|n| xml.push_str(&reg(&format!("r{n}"), 64, "int64")));
    xml.push_str(&reg("rip", 64, "code_ptr"));
    xml.push_str(&reg("eflags", 32, "i386_eflags"));
    for name in ["cs", "ss", "ds", "es", "fs", "gs"] {
        xml.push_str(&reg(name, 32, "int32"));
    }
    (0..8).for_each(|n| xml.push_str(&reg(&format!("st{n}"), 80, "i387_ext")));
    for name in ["fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop"] {
        // Writing to a string cannot fail.
        let _ = write!(xml, r#"<reg name="{name}" bitsize="32" type="int" group="float"/>"#);
    }
    xml.push_str(r#"</feature><feature name="org.gnu.gdb.i386.sse">"#);
    xml.push_str(VECTORS);
    (0..16).for_each(|n| xml.push_str(&reg(&format!("xmm{n}"), 128, "vec128")));
    xml.push_str(&reg("mxcsr", 32, "int"));
    xml.push_str(r#"</feature><feature name="org.gnu.gdb.i386.avx">"#);
    (0..16).for_each(|n| xml.push_str(&reg(&format!("ymm{n}h"), 128, "uint128")));
    xml.push_str(r#"</feature><feature name="org.gnu.gdb.i386.segments">"#);
    xml.push_str(&reg("fs_base", 64, "int"));
    xml.push_str(&reg("gs_base", 64, "int"));
    xml.push_str(r#"</feature><feature name="org.ringfence.system">"#);
    SYSTEM.iter().for_each(|name| xml.push_str(&reg(name, 64, "int64")));
    xml.push_str("</feature></target>");
    xml
}

/// Names of the bits of RFLAGS.
const FLAGS: &str = concat!(
    r#"<flags id="i386_eflags" size="4">"#,
    r#"<field name="CF" start="0" end="0"/><field name="" start="1" end="1"/>"#,
    r#"<field name="PF" start="2" end="2"/><field name="AF" start="4" end="4"/>"#,
    r#"<field name="ZF" start="6" end="6"/><field name="SF" start="7" end="7"/>"#,
    r#"<field name="TF" start="8" end="8"/><field name="IF" start="9" end="9"/>"#,
    r#"<field name="DF" start="10" end="10"/><field name="OF" start="11" end="11"/>"#,
    r#"<field name="NT" start="14" end="14"/><field name="RF" start="16" end="16"/>"#,
    r#"<field name="VM" start="17" end="17"/><field name="AC" start="18" end="18"/>"#,
    r#"<field name="VIF" start="19" end="19"/><field name="VIP" start="20" end="20"/>"#,
    r#"<field name="ID" start="21" end="21"/></flags>"#,
);

/// An XMM register by its element types.
const VECTORS: &str = concat!(
    r#"<vector id="v4f" type="ieee_single" count="4"/><vector id="v2d" type="ieee_double" count="2"/>"#,
    r#"<vector id="v16i8" type="int8" count="16"/><vector id="v8i16" type="int16" count="8"/>"#,
    r#"<vector id="v4i32" type="int32" count="4"/><vector id="v2i64" type="int64" count="2"/>"#,
    r#"<union id="vec128"><field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/>"#,
    r#"<field name="v16_int8" type="v16i8"/><field name="v8_int16" type="v8i16"/>"#,
    r#"<field name="v4_int32" type="v4i32"/><field name="v2_int64" type="v2i64"/>"#,
    r#"<field name="uint128" type="uint128"/></union>"#,
);

/// The registers of a vCPU.
pub(crate) fn of(state: &VcpuState) -> GuestRegisters {
    let control = &state.control;
    let segment = |index: usize| u32::from(state.segments.segment[index].selector);
    let vectors = Vectors::of(state);
    GuestRegisters {
        core: X86_64CoreRegs {
            regs: GENERAL.map(|index| state.general.gpr[index]),
            eflags: state.general.rflags as u32,
            rip: state.general.rip,
            segments: X86SegmentRegs {
                cs: segment(seg::CS),
                ss: segment(seg::SS),
                ds: segment(seg::DS),
                es: segment(seg::ES),
                fs: segment(seg::FS),
                gs: segment(seg::GS),
            },
            st: vectors.st(),
            fpu: vectors.fpu(),
            xmm: std::array::from_fn(|n| vectors.get(xsave::XMM + 16 * n)),
            mxcsr: u32::from_le_bytes(vectors.bytes(xsave::MXCSR)),
        },
        ymm_high: std::array::from_fn(|n| vectors.get(xsave::AVX_OFFSET + 16 * n)),
        bases: [seg::FS, seg::GS].map(|index| state.segments.segment[index].base),
        system: [
            msr_of(state, msr::KERNEL_GS_BASE),
            control.cr0,
            control.cr2,
            control.cr3,
            control.cr4,
            control.efer,
            control.xcr0,
        ],
    }
}

fn msr_of(state: &VcpuState, number: u32) -> u64 {
    state.msrs.iter().find(|(n, _)| *n == number).map_or(0, |(_, value)| *value)
}

/// Changes what differs in a vCPU's state.
pub(crate) fn apply(
    new: &GuestRegisters,
    state: &mut VcpuState,
    ram: &GuestRam,
    profile: &CpuProfile,
) -> Result<(), NotThere> {
    let old = of(state);
    for (place, value) in GENERAL.into_iter().zip(new.core.regs) {
        state.general.gpr[place] = value;
    }
    state.general.rip = new.core.rip;
    state.general.rflags = u64::from(new.core.eflags) & rflags::ALL | rflags::FIXED;
    if (&old.core.st, &old.core.fpu, &old.core.xmm, old.core.mxcsr, &old.ymm_high)
        != (&new.core.st, &new.core.fpu, &new.core.xmm, new.core.mxcsr, &new.ymm_high)
    {
        Vectors::from_registers(new).store(state);
    }
    let selectors = |r: &X86SegmentRegs| [r.cs, r.ss, r.ds, r.es, r.fs, r.gs];
    let (before, after) = (selectors(&old.core.segments), selectors(&new.core.segments));
    for (index, (before, after)) in SEGMENTS.into_iter().zip(before.into_iter().zip(after)) {
        if before != after {
            state.segments.segment[index] = segment(after as u16, state, ram, profile)?;
        }
    }
    for ((index, before), after) in [seg::FS, seg::GS].into_iter().zip(old.bases).zip(new.bases) {
        if before != after {
            state.segments.segment[index].base = after;
        }
    }
    let [kernel_gs, cr0, cr2, cr3, cr4, efer, xcr0] = new.system;
    if let Some((_, value)) = state.msrs.iter_mut().find(|(n, _)| *n == msr::KERNEL_GS_BASE) {
        *value = kernel_gs;
    }
    let control = &mut state.control;
    (control.cr0, control.cr2, control.cr3) = (cr0, cr2, cr3);
    (control.cr4, control.efer, control.xcr0) = (cr4, efer, xcr0);
    Ok(())
}

/// The segment that `selector` stands for, without the checks that loading it would make.
fn segment(
    selector: u16,
    state: &VcpuState,
    ram: &GuestRam,
    profile: &CpuProfile,
) -> Result<Segment, NotThere> {
    if state.control.cr0 & cr0::PE == 0 {
        let base = u64::from(selector) << 4;
        return Ok(Segment { selector, base, limit: 0xffff, attributes: 0x93 });
    }
    if state.general.rflags & rflags::VM != 0 {
        return Ok(Segment::virtual_8086(selector));
    }
    if selector & !3 == 0 {
        return Ok(Segment { selector, ..Segment::default() });
    }
    let (base, limit) = match selector & 4 {
        0 => (state.segments.gdtr.base, u32::from(state.segments.gdtr.limit)),
        _ => (state.segments.ldtr.base, state.segments.ldtr.limit),
    };
    let offset = u32::from(selector & !7);
    if offset + 7 > limit {
        return Err(NotThere);
    }
    let mut raw = [0; 8];
    memory_access::read_exact(ram, profile, state, base.wrapping_add(u64::from(offset)), &mut raw)?;
    Ok(Segment::from_descriptor(selector, u64::from_le_bytes(raw)))
}

/// Offsets in the legacy region of the XSAVE area (SDM vol. 1 table 10-2).
mod offset {
    pub(super) const FCW: usize = 0;
    pub(super) const FSW: usize = 2;
    pub(super) const FTW: usize = 4;
    pub(super) const FOP: usize = 6;
    pub(super) const FIP: usize = 8;
    pub(super) const FDP: usize = 16;
    pub(super) const ST: usize = 32;
}

/// x87, SSE and AVX registers: an XSAVE area in which every component is written out.
struct Vectors([u8; xsave::AREA_SIZE]);

const X87: u8 = 1 << 0;
const SSE: u8 = 1 << 1;
const AVX: u8 = 1 << 2;

impl Vectors {
    fn of(state: &VcpuState) -> Self {
        let mut area = [0; xsave::AREA_SIZE];
        let len = area.len().min(state.xsave.len());
        area[..len].copy_from_slice(&state.xsave[..len]);
        let present = area[xsave::XSTATE_BV];
        if present & X87 == 0 {
            area[..xsave::MXCSR].fill(0);
            area[offset::ST..xsave::XMM].fill(0);
            area[offset::FCW..offset::FSW].copy_from_slice(&xsave::FCW_INIT.to_le_bytes());
        }
        if present & SSE == 0 {
            area[xsave::XMM..xsave::XMM + 256].fill(0);
        }
        if present & AVX == 0 {
            area[xsave::AVX_OFFSET..].fill(0);
        }
        Self(area)
    }

    fn from_registers(registers: &GuestRegisters) -> Self {
        let core = &registers.core;
        let mut vectors = Self([0; xsave::AREA_SIZE]);
        let fpu = &core.fpu;
        vectors.set(offset::FCW, &(fpu.fctrl as u16).to_le_bytes());
        vectors.set(offset::FSW, &(fpu.fstat as u16).to_le_bytes());
        let in_use = |n: u32| u8::from(fpu.ftag >> (2 * n) & 3 != 3) << n;
        vectors.set(offset::FTW, &[(0..8).fold(0, |bits, n| bits | in_use(n))]);
        vectors.set(offset::FOP, &(fpu.fop as u16).to_le_bytes());
        let pointer = |offset: u32, segment: u32| u64::from(offset) | u64::from(segment) << 32;
        vectors.set(offset::FIP, &pointer(fpu.fioff, fpu.fiseg).to_le_bytes());
        vectors.set(offset::FDP, &pointer(fpu.fooff, fpu.foseg).to_le_bytes());
        vectors.set(xsave::MXCSR, &core.mxcsr.to_le_bytes());
        for n in 0..8 {
            vectors.set(offset::ST + 16 * n, &core.st[n]);
        }
        for n in 0..16 {
            vectors.set(xsave::XMM + 16 * n, &core.xmm[n].to_le_bytes());
            vectors.set(xsave::AVX_OFFSET + 16 * n, &registers.ymm_high[n].to_le_bytes());
        }
        vectors
    }

    fn store(mut self, state: &mut VcpuState) {
        self.0[xsave::XSTATE_BV] = X87 | SSE | AVX;
        state.xsave = self.0.to_vec();
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|n| self.0[at + n])
    }

    fn get(&self, at: usize) -> u128 {
        u128::from_le_bytes(self.bytes(at))
    }

    fn word(&self, at: usize) -> u32 {
        u32::from(u16::from_le_bytes(self.bytes(at)))
    }

    fn st(&self) -> [[u8; 10]; 8] {
        std::array::from_fn(|n| self.bytes(offset::ST + 16 * n))
    }

    fn fpu(&self) -> X87FpuInternalRegs {
        let (fip, fdp) = (self.bytes(offset::FIP), self.bytes(offset::FDP));
        let (fip, fdp) = (u64::from_le_bytes(fip), u64::from_le_bytes(fdp));
        X87FpuInternalRegs {
            fctrl: self.word(offset::FCW),
            fstat: self.word(offset::FSW),
            ftag: self.full_tags(),
            fiseg: (fip >> 32) as u32 & 0xffff,
            fioff: fip as u32,
            foseg: (fdp >> 32) as u32 & 0xffff,
            fooff: fdp as u32,
            fop: self.word(offset::FOP) & 0x7ff,
        }
    }

    /// The tag word as FNSTENV stores it, from the one bit for each register that FXSAVE keeps
    /// (SDM vol. 1 10.5.1.1).
    fn full_tags(&self) -> u32 {
        let top = self.word(offset::FSW) as usize >> 11 & 7;
        let tag = |physical: usize| -> u32 {
            if self.0[offset::FTW] >> physical & 1 == 0 {
                return 3;
            }
            let value: [u8; 10] = self.bytes(offset::ST + 16 * (physical.wrapping_sub(top) & 7));
            let exponent = u16::from_le_bytes([value[8], value[9]]) & 0x7fff;
            match (exponent, value[7] >> 7) {
                (0x7fff, _) => 2,
                (0, 0) if value[..8].iter().all(|byte| *byte == 0) => 1,
                (0, _) | (_, 0) => 2,
                (_, _) => 0,
            }
        };
        (0..8).fold(0, |tags, physical| tags | tag(physical) << (2 * physical))
    }
}

#[cfg(test)]
mod tests;
