//! The state in which the boot processor enters a kernel.

use engine::{RunState, VcpuState};
use memory::{Gpa, GuestRam};
use x86::cr::{cr0, cr4, efer, rflags};
use x86::gpr::{RAX, RBX, RSI, RSP};
use x86::segment::{Segment, TableRegister, seg};

use crate::{BootError, low};

/// Present, DPL 0, type and S bit of an accessed, readable code segment.
const CODE: u16 = 0x9b;
/// The same of an accessed, writable data segment.
const DATA: u16 = 0x93;
/// Present busy 32-bit TSS.
const BUSY_TSS: u16 = 0x8b;
/// L: 64-bit code.
const LONG: u16 = 1 << 9;
/// D/B: 32-bit.
const BIG: u16 = 1 << 10;
/// G: the limit counts pages.
const PAGES: u16 = 1 << 11;

/// __BOOT_CS of the Linux boot protocol.
const CODE_SELECTOR: u16 = 0x10;
/// __BOOT_DS of the Linux boot protocol.
const DATA_SELECTOR: u16 = 0x18;
/// Selector of the TSS.
const TSS_SELECTOR: u16 = 0x20;
/// Limit of a 32-bit TSS (SDM vol. 3A 8.2.1); the PVH ABI asks for it.
const TSS_LIMIT: u32 = 0x67;

/// What EAX says to a multiboot kernel (Multiboot 0.6.96, 3.2).
const MULTIBOOT_MAGIC: u64 = 0x2bad_b002;

/// How the boot processor enters the kernel that [`crate::load`] has loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryState {
    /// Linux 64-bit boot protocol: long mode, the first 4 GiB mapped one to one.
    Linux64 {
        /// RIP.
        entry: u64,
        /// Guest-physical address of the boot parameters, in RSI.
        boot_params: u64,
    },
    /// Linux 32-bit boot protocol: protected mode with flat segments, no paging.
    Linux32 {
        /// EIP.
        entry: u32,
        /// Guest-physical address of the boot parameters, in ESI.
        boot_params: u32,
    },
    /// PVH: 32-bit protected mode with flat segments, no paging.
    Pvh {
        /// EIP.
        entry: u32,
        /// Guest-physical address of the start information, in EBX.
        start_info: u32,
    },
    /// Multiboot: 32-bit protected mode with flat segments, no paging.
    Multiboot {
        /// EIP.
        entry: u32,
        /// Guest-physical address of the multiboot information, in EBX.
        info: u32,
    },
}

impl EntryState {
    /// RIP of the first instruction.
    pub fn rip(&self) -> u64 {
        match *self {
            Self::Linux64 { entry, .. } => entry,
            Self::Linux32 { entry, .. }
            | Self::Pvh { entry, .. }
            | Self::Multiboot { entry, .. } => u64::from(entry),
        }
    }

    /// Turns the reset state of the boot processor into the entry state. What the boot protocols
    /// leave open keeps its reset value, except what all firmware sets: all memory is cacheable by
    /// the MTRRs (in a state that has them), and the local APIC lets the interrupts of the 8259A and NMIs through ("virtual wire", SDM vol. 3A
    /// 11.12.7 and the MultiProcessor Specification 3.6.2.2), so that kernels find what they find
    /// on a PC.
    pub fn apply(&self, state: &mut VcpuState) {
        state.general.rip = self.rip();
        state.general.rflags = rflags::FIXED;
        state.run_state = RunState::Running;
        enable_caches(state);
        enable_virtual_wire(state);
        match *self {
            Self::Linux64 { boot_params, .. } => {
                state.general.gpr[RSI] = boot_params;
                state.general.gpr[RSP] = low::STACK_TOP;
                state.control.cr0 = cr0::PE | cr0::ET | cr0::NE | cr0::PG;
                state.control.cr3 = low::PAGE_TABLES;
                state.control.cr4 = cr4::PAE;
                state.control.efer = efer::LME | efer::LMA;
                set_segments(state, LONG);
            }
            Self::Linux32 { boot_params, .. } => {
                // EBX, EDI and EBP must be zero, which they are after a reset.
                state.general.gpr[RSI] = u64::from(boot_params);
                state.general.gpr[RSP] = low::STACK_TOP;
                enter_flat(state);
            }
            Self::Pvh { start_info, .. } => {
                state.general.gpr[RBX] = u64::from(start_info);
                enter_flat(state);
            }
            Self::Multiboot { info, .. } => {
                state.general.gpr[RAX] = MULTIBOOT_MAGIC;
                state.general.gpr[RBX] = u64::from(info);
                enter_flat(state);
            }
        }
    }
}

/// 32-bit protected mode without paging.
fn enter_flat(state: &mut VcpuState) {
    state.control.cr0 = cr0::PE | cr0::ET;
    (state.control.cr3, state.control.cr4, state.control.efer) = (0, 0, 0);
    set_segments(state, BIG);
}

/// The global descriptor table that the segments of an entry state come from. `code_size` is
/// [`LONG`] or [`BIG`].
fn descriptors(code_size: u16) -> [u64; 5] {
    let flat = |attributes: u16| {
        let attributes = u64::from(attributes | PAGES);
        0x000f_0000_0000_ffff | (attributes & 0xff) << 40 | (attributes >> 8) << 52
    };
    let tss = u64::from(TSS_LIMIT) | low::TSS << 16 | u64::from(BUSY_TSS) << 40;
    [0, 0, flat(CODE | code_size), flat(DATA | BIG), tss]
}

/// Puts the descriptor table of `entry` and the TSS into guest RAM. The boot processor has the
/// segments loaded; the table is there for a kernel that reloads them before it has its own.
pub(crate) fn write_descriptors(entry: &EntryState, ram: &GuestRam) -> Result<(), BootError> {
    let code_size = match entry {
        EntryState::Linux64 { .. } => LONG,
        EntryState::Linux32 { .. } | EntryState::Pvh { .. } | EntryState::Multiboot { .. } => BIG,
    };
    let table: Vec<u8> = descriptors(code_size).iter().flat_map(|d| d.to_le_bytes()).collect();
    ram.write(Gpa(low::GDT), &table)?;
    ram.write(Gpa(low::TSS), &[0; TSS_LIMIT as usize + 1])?;
    Ok(())
}

fn set_segments(state: &mut VcpuState, code_size: u16) {
    let table = descriptors(code_size);
    let segments = &mut state.segments;
    let data = Segment::flat(DATA_SELECTOR, DATA | BIG | PAGES);
    segments.segment = [data; 6];
    segments.segment[seg::CS] = Segment::flat(CODE_SELECTOR, CODE | code_size | PAGES);
    segments.tr =
        Segment { selector: TSS_SELECTOR, base: low::TSS, limit: TSS_LIMIT, attributes: BUSY_TSS };
    segments.gdtr = TableRegister { base: low::GDT, limit: (size_of_val(&table) - 1) as u16 };
    segments.idtr = TableRegister { base: 0, limit: 0 };
}

/// IA32_MTRR_DEF_TYPE: MTRRs enabled, default type write-back (SDM vol. 3A 12.11.2.1).
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

fn enable_caches(state: &mut VcpuState) {
    for (msr, value) in &mut state.msrs {
        if *msr == x86::msr::MTRR_DEF_TYPE {
            *value = MTRR_WRITE_BACK;
        }
    }
}

/// LVT LINT0 with delivery mode ExtINT, not masked.
const LINT0_EXTINT: u32 = 7 << 8;
/// LVT LINT1 with delivery mode NMI, not masked.
const LINT1_NMI: u32 = 4 << 8;
/// Software enable, in the spurious-interrupt vector register.
const SVR_ENABLE: u32 = 1 << 8;

fn enable_virtual_wire(state: &mut VcpuState) {
    state.apic.svr |= SVR_ENABLE;
    state.apic.lvt_lint0 = LINT0_EXTINT;
    state.apic.lvt_lint1 = LINT1_NMI;
}
