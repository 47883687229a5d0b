//! What a difference between the two sides looks like to a reader.

use std::fmt;
use std::fmt::Debug;

use engine::VcpuState;
use iced_x86::{Decoder, DecoderOptions, Instruction};
use memory::{Gpa, GuestRam};
use x86::cr::{cr0, cr4, efer};
use x86::xsave;

/// Longest instruction in bytes.
const MAX_LENGTH: usize = 15;

const GENERAL: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];
const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

/// Where the two sides were found to differ.
#[derive(Debug)]
pub struct Divergence {
    /// Number of the step.
    pub(super) step: u64,
    /// The last step after which memory was compared and equal; `None` at the start.
    pub(super) memory_equal_at: Option<u64>,
    /// What differs, one line each.
    pub(super) differences: Vec<String>,
    /// Instructions executed since both were equal, where that is known closely.
    pub(super) executed: Vec<Executed>,
}

/// An instruction that the reference has executed.
#[derive(Clone, Debug)]
pub(super) struct Executed {
    pub(super) rip: u64,
    pub(super) bytes: Vec<u8>,
    pub(super) bits: u32,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "step {}:", self.step)?;
        for difference in &self.differences {
            writeln!(f, "  {difference}")?;
        }
        if !self.executed.is_empty() {
            writeln!(f, "executed last since both were equal:")?;
        }
        for instruction in &self.executed {
            writeln!(f, "  {instruction}")?;
        }
        Ok(())
    }
}

impl Executed {
    fn decoded(&self) -> Instruction {
        Decoder::with_ip(self.bits, &self.bytes, self.rip, DecoderOptions::NONE).decode()
    }

    /// Whether it is a string instruction with a repeat prefix.
    pub(super) fn is_repeated_string(&self) -> bool {
        let instruction = self.decoded();
        instruction.is_string_instruction()
            && (instruction.has_rep_prefix() || instruction.has_repne_prefix())
    }
}

impl fmt::Display for Executed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instruction = self.decoded();
        write!(f, "{:016x} ", self.rip)?;
        for byte in self.bytes.iter().take(instruction.len().max(1)) {
            write!(f, " {byte:02x}")?;
        }
        write!(f, "  {:?}", instruction.code())
    }
}

/// The fields in which two states differ, one line each.
pub(super) fn differences(reference: &VcpuState, subject: &VcpuState) -> Vec<String> {
    let mut lines = Lines(Vec::new());
    let (a, b) = (reference, subject);
    for (index, name) in GENERAL.iter().enumerate() {
        lines.number(name, a.general.gpr[index], b.general.gpr[index]);
    }
    lines.number("rip", a.general.rip, b.general.rip);
    lines.number("rflags", a.general.rflags, b.general.rflags);
    for (index, name) in SEGMENTS.iter().enumerate() {
        lines.any(name, &a.segments.segment[index], &b.segments.segment[index]);
    }
    lines.any("ldtr", &a.segments.ldtr, &b.segments.ldtr);
    lines.any("tr", &a.segments.tr, &b.segments.tr);
    lines.any("gdtr", &a.segments.gdtr, &b.segments.gdtr);
    lines.any("idtr", &a.segments.idtr, &b.segments.idtr);
    let control = |s: &VcpuState| {
        let c = &s.control;
        [c.cr0, c.cr2, c.cr3, c.cr4, c.efer, c.xcr0]
    };
    for (name, (a, b)) in ["cr0", "cr2", "cr3", "cr4", "efer", "xcr0"]
        .iter()
        .zip(control(a).into_iter().zip(control(b)))
    {
        lines.number(name, a, b);
    }
    lines.any("pdptr", &a.control.pdptr, &b.control.pdptr);
    lines.any("debug registers", &a.debug, &b.debug);
    lines.extended(&a.xsave, &b.xsave);
    for (a, b) in a.msrs.iter().zip(&b.msrs) {
        lines.number(&format!("msr {:#x}", a.0), a.1, b.1);
    }
    lines.any("apic", &a.apic, &b.apic);
    lines.any("events", &a.events, &b.events);
    lines.number("tsc", a.tsc, b.tsc);
    lines.any("run state", &a.run_state, &b.run_state);
    if lines.0.is_empty() && a != b {
        lines.0.push("states differ in a field that the report does not know".to_owned());
    }
    lines.0
}

struct Lines(Vec<String>);

impl Lines {
    fn number(&mut self, name: &str, a: u64, b: u64) {
        if a != b {
            self.0.push(format!("{name}: {a:#x} in the reference, {b:#x} in the subject"));
        }
    }

    fn any<T: PartialEq + Debug>(&mut self, name: &str, a: &T, b: &T) {
        if a != b {
            self.0.push(format!("{name}: {a:x?} in the reference, {b:x?} in the subject"));
        }
    }

    /// XSAVE areas, by register.
    fn extended(&mut self, a: &[u8], b: &[u8]) {
        let name = |offset: usize| match offset {
            0..32 => "x87 control".to_owned(),
            32..xsave::XMM => format!("st{}", (offset - 32) / 16),
            xsave::XMM..416 => format!("xmm{}", (offset - xsave::XMM) / 16),
            xsave::AVX_OFFSET.. => format!("ymm{} upper", (offset - xsave::AVX_OFFSET) / 16),
            _ => format!("xsave+{offset}"),
        };
        for (index, (a, b)) in a.chunks(16).zip(b.chunks(16)).enumerate() {
            self.any(&name(16 * index), &a, &b);
        }
        self.any("length of the xsave area", &a.len(), &b.len());
    }
}

/// The instruction at the vCPU's RIP.
pub(super) fn next_instruction(ram: &GuestRam, state: &VcpuState) -> Executed {
    let cs = &state.segments.segment[x86::segment::seg::CS];
    let long = state.control.efer & efer::LMA != 0 && cs.long();
    let (linear, bits) = match (long, cs.big()) {
        (true, _) => (state.general.rip, 64),
        (false, big) => {
            let linear = cs.base.wrapping_add(state.general.rip) & 0xffff_ffff;
            (linear, if big { 32 } else { 16 })
        }
    };
    let byte = |offset: usize| {
        let mut byte = [0];
        let gpa = physical(ram, state, linear.wrapping_add(offset as u64))?;
        ram.read(Gpa(gpa), &mut byte).ok().map(|()| byte[0])
    };
    let bytes = (0..MAX_LENGTH).map_while(byte).collect();
    Executed { rip: state.general.rip, bytes, bits }
}

/// The guest-physical address behind `linear`, without rights checks and without a trace; `None`
/// where nothing is mapped, or by the tables of 32-bit paging, which are not looked at.
pub(super) fn physical(ram: &GuestRam, state: &VcpuState, linear: u64) -> Option<u64> {
    const PRESENT: u64 = 1;
    const LARGE: u64 = 1 << 7;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    let control = &state.control;
    if control.cr0 & cr0::PG == 0 {
        return Some(linear);
    }
    if control.cr4 & cr4::PAE == 0 || control.efer & efer::LMA == 0 {
        return None;
    }
    let mut table = control.cr3 & ADDRESS;
    for shift in [39, 30, 21, 12] {
        let mut entry = [0; 8];
        ram.read(Gpa(table + (linear >> shift & 0x1ff) * 8), &mut entry).ok()?;
        let entry = u64::from_le_bytes(entry);
        if entry & PRESENT == 0 {
            return None;
        }
        let inside = (1 << shift) - 1;
        if shift == 12 || shift < 39 && entry & LARGE != 0 {
            return Some(entry & ADDRESS & !inside | linear & inside);
        }
        table = entry & ADDRESS;
    }
    None
}
