//! The smallest operating system: what the cases run under on a vCPU.
//!
//! Page tables map both windows of [`crate::layout`] for user mode, with the same rights as the
//! worker process gives them, and a few supervisor pages: GDT, IDT, TSS, a stack, and for each
//! exception vector `n` a handler `OUT n, AL`. The port write stops the vCPU with the exception
//! frame on the stack. A vCPU that goes on from there enters user mode again, with the registers
//! that [`prepare_launch`] has left: so a case runs with what earlier ones left in TLBs and caches.

use device::StopCause;
use engine::VcpuState;
use memory::{Gpa, GuestRam};
use x86::cr::{cr0, cr4, efer, xcr0};
use x86::segment::{Segment, TableRegister, seg, system};
use x86::xsave;

use crate::case::{Case, Fault, Memory, Observation};
use crate::image::CpuImage;
use crate::layout::{MAP, MEMORY, PAGE, Rights, WINDOWS};

/// RAM that the supervisor needs.
pub(crate) const RAM_SIZE: u64 = 1 << 20;

/// Physical addresses.
const ROOT_TABLE: u64 = 0x1000;
const TABLES_END: u64 = 0x1_0000;
const SUPERVISOR: u64 = 0x2_0000;
const WINDOW: u64 = 0x4_0000;

/// Linear address of the supervisor pages, and what is where in them.
const BASE: u64 = 0xffff_8000_0000_0000;
const GDT: u64 = 0;
const IDT: u64 = 0x1000;
const TSS: u64 = 0x2000;
const HANDLERS: u64 = 0x3000;
const LAUNCHER: u64 = HANDLERS + VECTORS * HANDLER_STRIDE;
const STACK_TOP: u64 = 0x5000;
const LAUNCH: u64 = 0x5000;
const SUPERVISOR_PAGES: u64 = 6;

/// What is where in the page of registers for the launcher: general registers in the order of
/// encoding without RSP, the frame of IRETQ, bases of FS and GS, XSAVE area.
const LAUNCH_FRAME: u64 = 15 * 8;
const LAUNCH_BASES: [u64; 2] = [0xa0, 0xa8];
const LAUNCH_XSAVE: u64 = 0x100;
/// Instructions of a handler's end and of the launcher.
pub(crate) const LAUNCH_INSTRUCTIONS: u64 = 25;

/// Selectors, as Linux has them: some instructions show them.
mod selector {
    pub const KERNEL_CODE: u16 = 0x10;
    pub const USER_DATA: u16 = 0x2b;
    pub const USER_CODE: u16 = 0x33;
    pub const TSS: u16 = 0x40;
}

/// Bytes between two handlers.
const HANDLER_STRIDE: u64 = 16;
/// Exception vectors.
const VECTORS: u64 = 32;
/// Vectors that user mode may raise by INT3, INTO.
const USER_VECTORS: [u64; 2] = [3, 4];

/// Bits of page-table entries.
const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const NO_EXECUTE: u64 = 1 << 63;

/// Builds tables and handlers in `ram`, and the state that cases start from, based on a vCPU's
/// power-on state.
pub(crate) fn install(
    ram: &GuestRam,
    power_on: VcpuState,
) -> Result<VcpuState, memory::MemoryError> {
    let mut tables = Tables { ram, next: ROOT_TABLE + PAGE };
    for base in WINDOWS {
        for (index, page) in MAP.iter().enumerate() {
            let rights = PRESENT
                | USER
                | match page.rights {
                    Rights::ReadExecute => 0,
                    Rights::ReadWriteExecute => WRITABLE,
                    Rights::ReadWrite => WRITABLE | NO_EXECUTE,
                    Rights::Read => NO_EXECUTE,
                };
            tables.map(base + page.number * PAGE, WINDOW + index as u64 * PAGE, rights)?;
        }
    }
    for page in 0..SUPERVISOR_PAGES {
        tables.map(BASE + page * PAGE, SUPERVISOR + page * PAGE, PRESENT | WRITABLE)?;
    }
    write_descriptors(ram)?;
    write_handlers(ram)?;
    Ok(user_state(power_on))
}

/// Page tables under construction.
struct Tables<'a> {
    ram: &'a GuestRam,
    next: u64,
}

impl Tables<'_> {
    fn map(&mut self, linear: u64, physical: u64, rights: u64) -> Result<(), memory::MemoryError> {
        let mut table = ROOT_TABLE;
        for level in [39, 30, 21] {
            let entry = table + (linear >> level & 0x1ff) * 8;
            let mut value = self.load(entry)?;
            if value & PRESENT == 0 {
                assert!(self.next < TABLES_END, "more page tables than planned");
                value = self.next | PRESENT | WRITABLE | USER;
                self.next += PAGE;
                self.ram.write(Gpa(entry), &value.to_le_bytes())?;
            }
            table = value & !0xfff;
        }
        let entry = table + (linear >> 12 & 0x1ff) * 8;
        self.ram.write(Gpa(entry), &(physical | rights).to_le_bytes())
    }

    fn load(&self, at: u64) -> Result<u64, memory::MemoryError> {
        let mut bytes = [0; 8];
        self.ram.read(Gpa(at), &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

fn write_descriptors(ram: &GuestRam) -> Result<(), memory::MemoryError> {
    let tss = BASE + TSS;
    let tss_low = 0x67
        | (tss & 0xff_ffff) << 16
        | u64::from(0x80 | system::TSS_BUSY) << 40
        | (tss >> 24 & 0xff) << 56;
    let gdt: [(u16, u64); 5] = [
        (selector::KERNEL_CODE, 0x00af_9b00_0000_ffff),
        (selector::USER_DATA & !7, 0x00cf_f300_0000_ffff),
        (selector::USER_CODE & !7, 0x00af_fb00_0000_ffff),
        (selector::TSS, tss_low),
        (selector::TSS + 8, tss >> 32),
    ];
    for (selector, descriptor) in gdt {
        let at = SUPERVISOR + GDT + u64::from(selector);
        ram.write(Gpa(at), &descriptor.to_le_bytes())?;
    }
    // RSP0, and no I/O permission bitmap.
    ram.write(Gpa(SUPERVISOR + TSS + 4), &(BASE + STACK_TOP).to_le_bytes())?;
    ram.write(Gpa(SUPERVISOR + TSS + 102), &0x68_u16.to_le_bytes())
}

fn write_handlers(ram: &GuestRam) -> Result<(), memory::MemoryError> {
    for vector in 0..VECTORS {
        let handler = HANDLERS + vector * HANDLER_STRIDE;
        // out vector, al; jmp launcher
        let distance = (LAUNCHER - handler - 7) as u32;
        let mut code = vec![0xe6, vector as u8, 0xe9];
        code.extend(distance.to_le_bytes());
        ram.write(Gpa(SUPERVISOR + handler), &code)?;
        let dpl = if USER_VECTORS.contains(&vector) { 3 } else { 0 };
        let target = BASE + handler;
        let low = target & 0xffff
            | u64::from(selector::KERNEL_CODE) << 16
            | u64::from(0x80 | dpl << 5 | system::INTERRUPT_GATE) << 40
            | (target >> 16 & 0xffff) << 48;
        let gate = u128::from(low) | u128::from(target >> 32) << 64;
        ram.write(Gpa(SUPERVISOR + IDT + vector * 16), &gate.to_le_bytes())?;
    }
    ram.write(Gpa(SUPERVISOR + LAUNCHER), &launcher())
}

/// Code that loads all registers of user mode and enters it.
fn launcher() -> Vec<u8> {
    // mov rsp, registers; mov eax, 7; xor edx, edx; xrstor64 [rsp + xsave]
    let mut code = vec![0x48, 0xbc];
    code.extend((BASE + LAUNCH).to_le_bytes());
    code.extend([0xb8, 7, 0, 0, 0, 0x31, 0xd2, 0x48, 0x0f, 0xae, 0xac, 0x24]);
    code.extend((LAUNCH_XSAVE as u32).to_le_bytes());
    for (at, modrm) in LAUNCH_BASES.into_iter().zip([0xd0, 0xd8]) {
        // mov rax, [rsp + at]; wrfsbase rax or wrgsbase rax
        code.extend([0x48, 0x8b, 0x84, 0x24]);
        code.extend((at as u32).to_le_bytes());
        code.extend([0xf3, 0x48, 0x0f, 0xae, modrm]);
    }
    // pop rax, rcx, rdx, rbx, rbp, rsi, rdi
    code.extend([0x58, 0x59, 0x5a, 0x5b, 0x5d, 0x5e, 0x5f]);
    for number in 0..8 {
        // pop r8 to r15
        code.extend([0x41, 0x58 + number]);
    }
    // iretq
    code.extend([0x48, 0xcf]);
    code
}

/// Leaves the registers of a case for a vCPU that goes on from a handler.
pub(crate) fn prepare_launch(ram: &GuestRam, image: &CpuImage) -> Result<(), memory::MemoryError> {
    let mut words: Vec<u64> = image.gpr.to_vec();
    let rsp = words.remove(x86::gpr::RSP);
    debug_assert_eq!(words.len() as u64 * 8, LAUNCH_FRAME, "the registers end at the frame");
    let (cs, ss) = (u64::from(selector::USER_CODE), u64::from(selector::USER_DATA));
    words.extend([image.rip, cs, image.rflags, rsp, ss]);
    words.extend(image.bases);
    let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
    ram.write(Gpa(SUPERVISOR + LAUNCH), &bytes)?;
    ram.write(Gpa(SUPERVISOR + LAUNCH + LAUNCH_XSAVE), &image.xsave)
}

/// User mode of a 64-bit operating system with everything enabled that profile v3 has.
fn user_state(mut state: VcpuState) -> VcpuState {
    use cr0::{AM, ET, MP, NE, PE, PG, WP};
    use cr4::{FSGSBASE, OSFXSR, OSXMMEXCPT, OSXSAVE, PAE, PGE, UMIP};
    state.control.cr0 = PE | MP | ET | NE | WP | AM | PG;
    state.control.cr3 = ROOT_TABLE;
    state.control.cr4 = PAE | PGE | OSFXSR | OSXMMEXCPT | OSXSAVE | FSGSBASE | UMIP;
    state.control.efer = efer::SCE | efer::LME | efer::LMA | efer::NXE;
    state.control.xcr0 = xcr0::X87 | xcr0::SSE | xcr0::AVX;
    let segments = &mut state.segments;
    segments.segment = [Segment::default(); 6];
    segments.segment[seg::CS] = Segment::flat(selector::USER_CODE, 0xafb);
    segments.segment[seg::SS] = Segment::flat(selector::USER_DATA, 0xcf3);
    segments.ldtr = Segment::default();
    segments.tr = Segment {
        selector: selector::TSS,
        base: BASE + TSS,
        limit: 0x67,
        attributes: 0x80 | u16::from(system::TSS_BUSY),
    };
    segments.gdtr = TableRegister { base: BASE + GDT, limit: selector::TSS + 15 };
    segments.idtr = TableRegister { base: BASE + IDT, limit: (VECTORS * 16 - 1) as u16 };
    state
}

/// Puts the memory of a case into `ram`, by way of `scratch`.
pub(crate) fn load_memory(
    ram: &GuestRam,
    case: &Case,
    scratch: &mut Memory,
) -> Result<(), memory::MemoryError> {
    case.fill(scratch);
    ram.write(Gpa(WINDOW), &scratch[..])
}

/// The same for RAM that a case has left: pages that have their content are not written, so that
/// what an engine knows of the code in them stays.
pub(crate) fn reload_memory(
    ram: &GuestRam,
    case: &Case,
    scratch: &mut Memory,
) -> Result<(), memory::MemoryError> {
    case.fill(scratch);
    let mut present = [0; PAGE as usize];
    for (at, page) in (WINDOW..).step_by(PAGE as usize).zip(scratch.chunks(PAGE as usize)) {
        ram.read(Gpa(at), &mut present)?;
        if present != *page {
            ram.write(Gpa(at), page)?;
        }
    }
    Ok(())
}

/// Whether the segment registers are such that a launch makes them what a case begins with.
pub(crate) fn can_launch(state: &VcpuState, initial: &VcpuState) -> bool {
    let flat = |state: &VcpuState| {
        let mut segments = state.segments.segment;
        for index in [seg::FS, seg::GS] {
            segments[index].base = 0;
        }
        // Code and stack are the handler's.
        [segments[seg::ES], segments[seg::DS], segments[seg::FS], segments[seg::GS]]
    };
    flat(state) == flat(initial)
}

/// Puts the registers of a case into `state`, which [`install`] made.
pub(crate) fn load_registers(state: &mut VcpuState, image: &CpuImage) {
    state.general.gpr = image.gpr;
    state.general.rip = image.rip;
    state.general.rflags = image.rflags;
    state.segments.segment[seg::FS].base = image.bases[0];
    state.segments.segment[seg::GS].base = image.bases[1];
    state.xsave.clear();
    state.xsave.extend_from_slice(&image.xsave[..xsave::AREA_SIZE]);
}

/// The exception vector of the handler that stopped the vCPU.
pub(crate) fn vector_of(cause: StopCause) -> Option<u8> {
    match cause {
        StopCause::DebugExit { value } => Some(value),
        _ => None,
    }
}

/// Vectors that push an error code (SDM vol. 3A 6.13).
fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21)
}

/// What the handler of `vector` finds: the frame on its stack, the registers, the memory.
pub(crate) fn observe(
    ram: &GuestRam,
    state: &VcpuState,
    vector: u8,
) -> Result<Observation, memory::MemoryError> {
    let words = if has_error_code(vector) { 6 } else { 5 };
    let mut frame = [0_u64; 6];
    for (index, word) in frame.iter_mut().rev().take(words).enumerate() {
        let mut bytes = [0; 8];
        ram.read(Gpa(SUPERVISOR + STACK_TOP - 8 * (index as u64 + 1)), &mut bytes)?;
        *word = u64::from_le_bytes(bytes);
    }
    let [error_code, rip, _cs, rflags, rsp, _ss] = frame;
    let mut image = CpuImage::default();
    image.gpr = state.general.gpr;
    image.gpr[x86::gpr::RSP] = rsp;
    image.rip = rip;
    image.rflags = rflags;
    image.bases = [seg::FS, seg::GS].map(|index| state.segments.segment[index].base);
    image.set_extended(&state.xsave);
    let address = if vector == x86::exception::vector::PF { state.control.cr2 } else { 0 };
    let fault = Fault { vector, error_code: error_code as u32, address };
    let mut memory: Box<Memory> =
        vec![0; MEMORY].into_boxed_slice().try_into().expect("the size is the array's");
    ram.read(Gpa(WINDOW), &mut memory[..])?;
    Ok(Observation { image, fault, memory })
}
