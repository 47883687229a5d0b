//! The small machine that the code runs on.
//!
//! | page | |
//! | --- | --- |
//! | 0 | IDT, or the vector table of real mode |
//! | 1 to 4 | page tables, four levels |
//! | 5 | GDT, LDT and TSSs |
//! | 6 | exception handlers: they step over one byte and return |
//! | 7 | stacks |
//! | 8 to 15 | the input: code and data |
//!
//! With paging, linear addresses are physical in these pages. Behind them are the local APIC, a
//! page without RAM, and aliases of page 8 with fewer rights.

use engine::VcpuState;
use memory::{Gpa, GuestRam, RamOffset};
use x86::cr::{cr0, cr4, efer, rflags, xcr0};
use x86::segment::{Segment, TableRegister, TssLayout, seg, system};

use crate::Input;

/// RAM of the machine.
pub(super) const RAM: u64 = 16 << 12;

const PML4: u64 = 1 << 12;
const GDT: u64 = 5 << 12;
const TSS: u64 = GDT + 0x800;
const HANDLERS: u64 = 6 << 12;
const STACK_TOP: u64 = 8 << 12;
const CODE: u64 = 8 << 12;

/// Flat descriptors: null, then code and data of ring 0 and 3 in the order that SYSCALL and SYSRET
/// expect (SDM vol. 3A 5.8.8).
const DESCRIPTORS: [u64; 7] = [
    0,
    0x00af_9b00_0000_ffff, // 08: code, 64-bit, ring 0
    0x00cf_9300_0000_ffff, // 10: data, ring 0
    0x00cf_fb00_0000_ffff, // 18: code, 32-bit, ring 3
    0x00cf_f300_0000_ffff, // 20: data, ring 3
    0x00af_fb00_0000_ffff, // 28: code, 64-bit, ring 3
    0x00cf_9b00_0000_ffff, // 30: code, 32-bit, ring 0
];
const TSS_SELECTOR: u16 = 0x38;
/// Outside long mode: two other tasks, task gates to them, an LDT, and call gates of both sizes,
/// from this selector on.
const LEGACY_SELECTORS: u16 = 0x48;
const TASK32: u64 = GDT + 0x900;
const TASK16: u64 = GDT + 0x980;
const LDT: u64 = GDT + 0x9c0;

/// add rsp, 8 (esp, 4); inc qword [rsp] (dword [esp]); iretq (iret). The second entry is for
/// exceptions without an error code.
const HANDLER_64: [u8; 10] = [0x48, 0x83, 0xc4, 8, 0x48, 0xff, 0x04, 0x24, 0x48, 0xcf];
const HANDLER_32: [u8; 7] = [0x83, 0xc4, 4, 0xff, 0x04, 0x24, 0xcf];

/// push bp; mov bp, sp; inc word [bp + 2]; pop bp; iret.
const HANDLER_REAL: [u8; 8] = [0x55, 0x89, 0xe5, 0xff, 0x46, 2, 0x5d, 0xcf];

/// Exceptions with an error code (SDM vol. 3A table 6-1).
const WITH_CODE: [u64; 8] = [8, 10, 11, 12, 13, 14, 17, 21];

const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const USER: u64 = 4;
const NX: u64 = 1 << 63;

/// How the code is executed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Kernel64,
    User64,
    User32,
    Kernel32,
    Flat32,
    Virtual8086,
    Real,
}

impl Mode {
    fn is_paged(self) -> bool {
        !matches!(self, Self::Flat32 | Self::Virtual8086 | Self::Real)
    }

    fn selectors(self) -> (u16, u16) {
        match self {
            Self::Kernel64 => (0x08, 0x10),
            Self::User64 => (0x2b, 0x23),
            Self::User32 => (0x1b, 0x23),
            Self::Kernel32 | Self::Flat32 => (0x30, 0x10),
            Self::Virtual8086 | Self::Real => (0, 0),
        }
    }
}

/// Fills RAM and turns the power-on state into one that runs the input.
pub(super) fn build(input: &mut Input<'_>, ram: &GuestRam, mut state: VcpuState) -> VcpuState {
    let modes = [
        Mode::Kernel64,
        Mode::User64,
        Mode::User32,
        Mode::Kernel32,
        Mode::Flat32,
        Mode::Virtual8086,
        Mode::Real,
    ];
    let mode = input.pick(&modes);
    let forged = input.byte().is_multiple_of(4);
    write_tables(ram, mode);
    match mode {
        Mode::Real => write_vector_table(ram),
        _ if !mode.is_paged() => write_tasks(input, ram),
        _ => {}
    }
    set_control(input, &mut state, mode);
    set_segments(&mut state, mode);
    set_general(input, &mut state);
    if forged {
        forge(input, &mut state);
    }
    let code = input.rest();
    let room = (RAM - CODE) as usize;
    ram.write(Gpa(CODE), &code[..code.len().min(room)]).expect("it fits");
    state
}

fn write_tables(ram: &GuestRam, mode: Mode) {
    let put = |at: u64, value: u64| ram.store::<u64>(RamOffset(at), value);
    for level in 0..3 {
        let next = PML4 + ((level + 1) << 12);
        put(PML4 + (level << 12), next | PRESENT | WRITE | USER);
    }
    let pages = (0..16).map(|page| page << 12 | PRESENT | WRITE | USER);
    let beside = [
        0xfee0_0000 | PRESENT | WRITE | USER,
        0x0010_0000 | PRESENT | WRITE | USER,
        CODE | PRESENT | USER,
        CODE | PRESENT | WRITE,
        CODE | PRESENT | WRITE | USER | NX,
    ];
    for (index, entry) in pages.chain(beside).enumerate() {
        put(PML4 + (3 << 12) + 8 * index as u64, entry);
    }
    for (index, descriptor) in DESCRIPTORS.iter().enumerate() {
        put(GDT + 8 * index as u64, *descriptor);
    }
    let attributes = u64::from(0x80 | system::TSS_BUSY);
    put(GDT + u64::from(TSS_SELECTOR), 0x67 | TSS << 16 | attributes << 40);
    write_interrupt_table(ram, mode);
}

/// Whether the page tables are as they were laid out, but for accessed and dirty bits.
pub(super) fn has_its_tables(state: &VcpuState, ram: &GuestRam) -> bool {
    const ACCESSED_DIRTY: u64 = 0x60;
    let original = GuestRam::new(&[(0, RAM)]).expect("64 KiB");
    write_tables(&original, Mode::Kernel64);
    let entries = (PML4..GDT).step_by(8).map(RamOffset);
    let mut pairs = entries.map(|at| (ram.load::<u64>(at), original.load::<u64>(at)));
    state.control.cr3 & !0xfff == PML4
        && pairs.all(|(now, then)| (now ^ then) & !ACCESSED_DIRTY == 0)
}

fn write_interrupt_table(ram: &GuestRam, mode: Mode) {
    let put = |at: u64, value: u64| ram.store::<u64>(RamOffset(at), value);
    let long = mode.is_paged();
    let handler: &[u8] = if long { &HANDLER_64 } else { &HANDLER_32 };
    ram.write(Gpa(HANDLERS), handler).expect("RAM");
    let skip = if long { 4 } else { 3 };
    let (size, selector) = if long { (16, 0x08) } else { (8, 0x30) };
    // The stacks of rings below 3 and of the interrupt stack table.
    let stack = STACK_TOP - 0x400;
    if long {
        for at in [4, 36, 44] {
            put(TSS + at, stack);
        }
    } else {
        put(TSS + 4, stack | 0x10 << 32);
    }
    let count = 4096 / size;
    for vector in 0..count {
        let entry = if WITH_CODE.contains(&vector) { HANDLERS } else { HANDLERS + skip };
        // Present, ring 3 may call it by INT n.
        let attributes = u64::from(0xe0 | system::INTERRUPT_GATE);
        put(vector * size, entry & 0xffff | selector << 16 | attributes << 40 | entry >> 16 << 48);
    }
}

/// Real mode: every vector leads to one handler.
fn write_vector_table(ram: &GuestRam) {
    ram.write(Gpa(HANDLERS), &HANDLER_REAL).expect("RAM");
    for vector in 0..256 {
        ram.store::<u32>(RamOffset(vector * 4), HANDLERS as u32);
    }
}

/// What 32-bit code can switch tasks and levels with; some events go through task gates.
fn write_tasks(input: &mut Input<'_>, ram: &GuestRam) {
    let put = |at: u64, value: u64| ram.store::<u64>(RamOffset(at), value);
    let system = |base: u64, limit: u64, kind: u8| {
        limit | (base & 0xff_ffff) << 16 | u64::from(0xe0 | kind) << 40
    };
    let gate = |selector: u64, offset: u64, kind: u8| {
        offset & 0xffff | selector << 16 | 2 << 32 | u64::from(0xe0 | kind) << 40
    };
    let selectors = u64::from(LEGACY_SELECTORS);
    let entries = [
        system(TASK32, 0x67, system::TSS_AVAILABLE),
        system(TASK16, 0x2b, system::TSS16_AVAILABLE),
        gate(selectors, 0, system::TASK_GATE),
        gate(selectors + 8, 0, system::TASK_GATE),
        system(LDT, 31, system::LDT),
        gate(0x30, CODE, system::CALL_GATE),
        gate(0x30, CODE, system::CALL_GATE16),
    ];
    for (index, entry) in entries.into_iter().enumerate() {
        put(GDT + selectors + 8 * index as u64, entry);
    }
    put(LDT + 8, DESCRIPTORS[6]);
    put(LDT + 16, DESCRIPTORS[2]);
    for (tss, layout) in [(TASK32, TssLayout::BITS32), (TASK16, TssLayout::BITS16)] {
        let word = |at: u64, value: u16| ram.store::<u16>(RamOffset(tss + at), value);
        word(layout.ip, (CODE + u64::from(input.byte())) as u16);
        word(layout.flags, input.short() & 0x7fff);
        word(layout.registers + 4 * layout.slot, STACK_TOP as u16 - 0x200);
        for (index, selector) in [0x10, 0x30, 0x10, 0x10].into_iter().enumerate() {
            word(layout.segments + index as u64 * layout.slot, selector);
        }
    }
    for _ in 0..input.byte() % 4 {
        let vector = u64::from(input.byte() % 32);
        let task = selectors + u64::from(input.byte() & 8);
        put(vector * 8, gate(task, 0, system::TASK_GATE));
    }
}

fn set_control(input: &mut Input<'_>, state: &mut VcpuState, mode: Mode) {
    let bits = input.short();
    let flag = |bit: u32, value: u64| if bits & 1 << bit != 0 { value } else { 0 };
    let control = &mut state.control;
    control.cr0 = cr0::PE | cr0::ET | cr0::NE | flag(0, cr0::WP) | flag(1, cr0::AM);
    control.cr0 |= flag(2, cr0::TS) | flag(3, cr0::MP);
    control.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | cr4::PGE;
    control.cr4 |= flag(4, cr4::SMEP) | flag(5, cr4::SMAP) | flag(6, cr4::UMIP);
    control.cr4 |= flag(7, cr4::TSD) | flag(8, cr4::DE) | flag(9, cr4::FSGSBASE);
    control.xcr0 = xcr0::X87 | xcr0::SSE | xcr0::AVX;
    control.efer = efer::SCE;
    if mode.is_paged() {
        control.cr0 |= cr0::PG;
        control.cr3 = PML4;
        control.cr4 |= flag(10, cr4::PCIDE);
        control.efer |= efer::LME | efer::LMA | efer::NXE;
    }
    if mode == Mode::Real {
        control.cr0 &= !cr0::PE;
    }
    let general = &mut state.general;
    general.rflags = rflags::FIXED | flag(11, rflags::IF) | flag(12, rflags::TF);
    general.rflags |= flag(13, rflags::AC) | flag(14, rflags::DF) | flag(15, rflags::IOPL);
    if mode == Mode::Virtual8086 {
        general.rflags |= rflags::VM;
    }
}

fn set_segments(state: &mut VcpuState, mode: Mode) {
    let (code, data) = mode.selectors();
    let load =
        |selector: u16| Segment::from_descriptor(selector, DESCRIPTORS[usize::from(selector >> 3)]);
    let segments = &mut state.segments;
    segments.segment = [load(data); 6];
    segments.segment[seg::CS] = load(code);
    match mode {
        Mode::Virtual8086 => segments.segment = [Segment::virtual_8086(0); 6],
        Mode::Real => {
            segments.segment = [Segment { attributes: 0x93, ..Segment::virtual_8086(0) }; 6];
        }
        _ => {}
    }
    segments.gdtr = TableRegister { base: GDT, limit: LEGACY_SELECTORS + 7 * 8 - 1 };
    segments.idtr = TableRegister { base: 0, limit: 4095 };
    let attributes = u16::from(0x80 | system::TSS_BUSY);
    segments.tr = Segment { selector: TSS_SELECTOR, base: TSS, limit: 0x67, attributes };
}

fn set_general(input: &mut Input<'_>, state: &mut VcpuState) {
    for register in &mut state.general.gpr {
        *register = value(input);
    }
    state.general.gpr[x86::gpr::RSP] = STACK_TOP - 0x100 + u64::from(input.byte());
    // Somewhere in the first two pages of the input; often near the end of the first.
    let near_the_end = 0xff0 + u64::from(input.byte() & 0xf);
    state.general.rip = CODE + input.pick(&[0, 0, 0, near_the_end]);
}

/// A value of a register: mostly something that an address can be made of.
fn value(input: &mut Input<'_>) -> u64 {
    match input.byte() % 8 {
        0..3 => CODE + u64::from(input.short() & 0x7fff),
        // What lies behind RAM: the local APIC, nothing, pages with fewer rights.
        3 => RAM + u64::from(input.short() & 0x5fff),
        4 => u64::from(input.byte()),
        5 => 0_u64.wrapping_sub(u64::from(input.byte())),
        6 => u64::from(input.short()),
        _ => input.word(),
    }
}

/// Changes a few fields to anything: what a forged snapshot could hold.
fn forge(input: &mut Input<'_>, state: &mut VcpuState) {
    for _ in 0..=input.byte() % 4 {
        let segment = usize::from(input.byte()) % 6;
        let field = input.byte() % 14;
        let word = input.word();
        match field {
            0 => state.control.cr0 = word & cr0::ALL,
            1 => state.control.cr4 ^= word & 0x0077_ffff,
            2 => state.control.efer ^= word & (efer::LME | efer::LMA | efer::NXE | efer::SCE),
            3 => state.control.cr3 = word & 0xffff,
            4 => state.general.rip = word,
            5 => state.general.rflags = word & rflags::ALL | rflags::FIXED,
            6 => state.segments.segment[segment].attributes = word as u16,
            7 => state.segments.segment[segment].base = word,
            8 => state.segments.segment[segment].limit = word as u32,
            9 => state.segments.idtr = TableRegister { base: word >> 16, limit: word as u16 },
            10 => state.segments.tr.attributes = word as u16,
            11 => state.debug.dr7 = word,
            12 => state.debug.address[segment % 4] = word & 0xffff,
            _ => {
                let at = word as usize % state.xsave.len();
                state.xsave[at] = (word >> 32) as u8;
            }
        }
    }
}
