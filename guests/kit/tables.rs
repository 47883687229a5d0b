//! The descriptor tables that a program starts with (Intel SDM vol. 3A 3.5,
//! 6.14, 8.2; AMD APM vol. 2 4.8).
//!
//! The order of the GDT serves SYSRET (code32, data, code64 after one base)
//! and SYSEXIT at once. Vectors 0 to 31 and the snippet end vector run on IST
//! stack 1, except #DF, NMI, #DB and #MC, which have their own; interrupt
//! vectors from 32 use no IST, so that they nest. All gates are interrupt
//! gates with DPL 0; only [`END_VECTOR`] has DPL 3.

use crate::{Frame4K, Global, ZERO_FRAME, trap};
use core::arch::asm;

/// 64-bit code, DPL 0.
pub const KERNEL_CODE: u16 = 0x08;
/// Writable data, DPL 0.
pub const KERNEL_DATA: u16 = 0x10;
/// 32-bit code, DPL 3 (with RPL 3).
pub const USER_CODE32: u16 = 0x1b;
/// Writable data, DPL 3 (with RPL 3).
pub const USER_DATA: u16 = 0x23;
/// 64-bit code, DPL 3 (with RPL 3).
pub const USER_CODE: u16 = 0x2b;
/// 32-bit code, DPL 0.
pub const KERNEL_CODE32: u16 = 0x38;
/// The task state segment.
pub const TSS_SELECTOR: u16 = 0x48;
/// Selectors from here to [`GDT_LIMIT`] are free for tests.
pub const FREE_SELECTOR: u16 = 0x58;
/// The limit of the GDT: 64 entries.
pub const GDT_LIMIT: u16 = 0x1ff;

/// The vector that ends a snippet; its gate has DPL 3.
pub const END_VECTOR: u8 = 0xf0;

/// IST index (1 to 7) of ordinary exceptions.
pub const IST_FAULT: u8 = 1;
/// IST index of the double fault.
pub const IST_DOUBLE_FAULT: u8 = 2;
/// IST index of the non-maskable interrupt.
pub const IST_NMI: u8 = 3;
/// IST index of the debug exception.
pub const IST_DEBUG: u8 = 4;
/// IST index of the machine check.
pub const IST_MACHINE_CHECK: u8 = 5;

/// Flat 64-bit code descriptor, DPL 0, present, accessed.
pub const CODE64: u64 = 0x00af_9b00_0000_ffff;
/// Flat 32-bit code descriptor, DPL 0, present, accessed.
pub const CODE32: u64 = 0x00cf_9b00_0000_ffff;
/// Flat writable data descriptor, DPL 0, present, accessed.
pub const DATA: u64 = 0x00cf_9300_0000_ffff;

/// Where the fields of a descriptor's access byte are.
pub mod field {
    /// Segment present.
    pub const PRESENT: u64 = 1 << 47;
    /// Descriptor privilege level 3.
    pub const DPL3: u64 = 3 << 45;
    /// 64-bit code.
    pub const LONG: u64 = 1 << 53;
    /// Default operand size 32 bits.
    pub const BIG: u64 = 1 << 54;
}

/// The 64-bit task state segment, with a full I/O permission bitmap behind it.
#[repr(C, packed(4))]
pub struct Tss {
    reserved0: u32,
    /// Stack pointers for entry to privilege levels 0 to 2.
    pub rsp: [u64; 3],
    reserved1: u64,
    /// Interrupt stack table, entries 1 to 7.
    pub ist: [u64; 7],
    reserved2: u64,
    reserved3: u16,
    /// Offset of the I/O permission bitmap.
    pub io_map: u16,
    /// One bit for each port (1 = denied), and the closing byte.
    pub bitmap: [u8; 8193],
}

impl Tss {
    /// All zeros; [`load`] and who else uses one says where the bitmap is.
    pub const ZERO: Self = Self {
        reserved0: 0,
        rsp: [0; 3],
        reserved1: 0,
        ist: [0; 7],
        reserved2: 0,
        reserved3: 0,
        io_map: 0,
        bitmap: [0; 8193],
    };
}

/// The limit of the TSS without I/O bitmap.
pub const TSS_LIMIT: u32 = 103;

static GDT: Global<[u64; 64]> = Global::new([0; 64]);
static IDT: Global<[[u64; 2]; 256]> = Global::new([[0; 2]; 256]);
static TSS: Global<Tss> = Global::new(Tss::ZERO);
static IST_STACKS: Global<[[Frame4K; 4]; 7]> = Global::new([[ZERO_FRAME; 4]; 7]);
static RSP0_STACK: Global<[Frame4K; 4]> = Global::new([ZERO_FRAME; 4]);

/// Length of the IST and RSP0 stacks in bytes.
pub const STACK_LEN: u64 = 0x4000;

/// The initial top of IST stack `index` (1 to 7).
pub fn ist_top(index: u8) -> u64 {
    IST_STACKS.addr() + u64::from(index) * STACK_LEN
}

/// The initial RSP0: top of the stack for entry from ring 3.
pub fn rsp0_top() -> u64 {
    RSP0_STACK.addr() + STACK_LEN
}

/// The live task state segment.
pub fn tss() -> &'static mut Tss {
    // SAFETY: callers change single fields while the processor does not use
    // them; the reference is not kept.
    unsafe { &mut *TSS.ptr() }
}

/// Linear address of the task state segment.
pub fn tss_addr() -> u64 {
    TSS.addr()
}

/// Linear address of the GDT.
pub fn gdt_addr() -> u64 {
    GDT.addr()
}

/// Linear address of the IDT.
pub fn idt_addr() -> u64 {
    IDT.addr()
}

/// Writes the GDT entry of `selector` (RPL and TI ignored).
pub fn set_descriptor(selector: u16, value: u64) {
    let index = usize::from(selector >> 3) & 63;
    // SAFETY: the index is in range; the processor reads it on loads only.
    unsafe { (*GDT.ptr())[index] = value };
}

/// Reads the GDT entry of `selector`.
pub fn descriptor(selector: u16) -> u64 {
    let index = usize::from(selector >> 3) & 63;
    // SAFETY: the index is in range; the processor may have set the accessed
    // bit, hence the volatile read.
    unsafe { (&raw const (*GDT.ptr())[index]).read_volatile() }
}

/// Writes a 16-byte system descriptor (TSS, LDT) at `selector`.
///
/// `kind` is the type field: 2 LDT, 9 available TSS, 11 busy TSS.
pub fn set_system_descriptor(selector: u16, base: u64, limit: u32, kind: u64) {
    set_descriptor(selector, system_descriptor(base, limit, kind));
    set_descriptor(selector + 8, base >> 32);
}

/// The low half of a system descriptor, present, DPL 0, byte-granular.
pub const fn system_descriptor(base: u64, limit: u32, kind: u64) -> u64 {
    (limit as u64 & 0xffff)
        | ((base & 0xff_ffff) << 16)
        | (kind << 40)
        | field::PRESENT
        | ((limit as u64 >> 16 & 15) << 48)
        | ((base >> 24 & 0xff) << 56)
}

/// A gate of the 64-bit IDT.
#[derive(Clone, Copy)]
pub struct Gate {
    /// Target address.
    pub offset: u64,
    /// Target code segment.
    pub selector: u16,
    /// Interrupt stack table index, 0 for none.
    pub ist: u8,
    /// 14 interrupt gate, 15 trap gate.
    pub kind: u8,
    /// Privilege level from which INT n may use the gate.
    pub dpl: u8,
    /// Whether the gate is present.
    pub present: bool,
}

impl Gate {
    /// The gate that the kit installs for `vector`.
    pub fn standard(vector: u8) -> Self {
        let ist = match vector {
            1 => IST_DEBUG,
            2 => IST_NMI,
            8 => IST_DOUBLE_FAULT,
            18 => IST_MACHINE_CHECK,
            0..32 | END_VECTOR => IST_FAULT,
            _ => 0,
        };
        Self {
            offset: trap::stub(vector),
            selector: KERNEL_CODE,
            ist,
            kind: 14,
            dpl: if vector == END_VECTOR { 3 } else { 0 },
            present: true,
        }
    }

    fn encode(self) -> [u64; 2] {
        let low = (self.offset & 0xffff)
            | u64::from(self.selector) << 16
            | u64::from(self.ist) << 32
            | u64::from(self.kind) << 40
            | u64::from(self.dpl) << 45
            | u64::from(self.present) << 47
            | (self.offset >> 16 & 0xffff) << 48;
        [low, self.offset >> 32]
    }
}

/// Installs a gate.
pub fn set_gate(vector: u8, gate: Gate) {
    set_raw_gate(vector, gate.encode());
}

/// Installs a gate given as its two raw halves.
pub fn set_raw_gate(vector: u8, halves: [u64; 2]) {
    // SAFETY: the index is in range; interrupts are off while gates change.
    unsafe { (*IDT.ptr())[usize::from(vector)] = halves };
}

/// Puts the kit's gate for `vector` back.
pub fn restore_gate(vector: u8) {
    set_gate(vector, Gate::standard(vector));
}

/// The operand of LGDT and LIDT.
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// Last valid byte offset.
    pub limit: u16,
    /// Linear address.
    pub base: u64,
}

/// Loads the IDT register.
pub fn load_idt(pointer: Pointer) {
    // SAFETY: the program owns the machine; a useless IDT only leads to the
    // triple fault that the caller asked for.
    unsafe { asm!("lidt [{}]", in(reg) &pointer, options(nostack, preserves_flags)) };
}

/// Loads the GDT register without reloading any segment.
pub fn load_gdt(pointer: Pointer) {
    // SAFETY: as for `load_idt`; loaded segments keep their cached values.
    unsafe { asm!("lgdt [{}]", in(reg) &pointer, options(nostack, preserves_flags)) };
}

/// The kit's GDT register value.
pub fn gdt_pointer() -> Pointer {
    Pointer { limit: GDT_LIMIT, base: gdt_addr() }
}

/// The kit's IDT register value.
pub fn idt_pointer() -> Pointer {
    Pointer { limit: 0xfff, base: idt_addr() }
}

/// Makes the TSS descriptor available again and loads the task register.
pub fn load_tr(limit: u32) {
    set_system_descriptor(TSS_SELECTOR, tss_addr(), limit, 9);
    // SAFETY: the descriptor just written is valid.
    unsafe { asm!("ltr {:x}", in(reg) TSS_SELECTOR, options(nostack, preserves_flags)) };
}

/// Fills and loads all tables and the segment registers.
pub fn load() {
    for (selector, value) in [
        (KERNEL_CODE, CODE64),
        (KERNEL_DATA, DATA),
        (USER_CODE32, CODE32 | field::DPL3),
        (USER_DATA, DATA | field::DPL3),
        (USER_CODE, CODE64 | field::DPL3),
        (0x30, DATA | field::DPL3),
        (KERNEL_CODE32, CODE32),
        (0x40, DATA),
    ] {
        set_descriptor(selector, value);
    }
    for index in 1..=7 {
        tss().ist[usize::from(index) - 1] = ist_top(index);
    }
    tss().rsp[0] = rsp0_top();
    tss().io_map = TSS_LIMIT as u16 + 1;
    for vector in 0..=255 {
        restore_gate(vector);
    }
    load_gdt(gdt_pointer());
    load_idt(idt_pointer());
    load_tr(TSS_LIMIT);
    load_segments();
}

/// Loads the segment registers from the kit's GDT, or from a copy of it.
pub fn load_segments() {
    // SAFETY: both selectors name flat descriptors of the table just loaded.
    unsafe {
        // After a reset the LDT register is not null but usable.
        asm!("lldt {:x}", in(reg) 0u16, options(nostack, preserves_flags));
        asm!("push {code}", "lea {tmp}, [rip + 2f]", "push {tmp}", "retfq", "2:",
             "mov ds, {data:e}", "mov es, {data:e}", "mov ss, {data:e}",
             code = const KERNEL_CODE, data = in(reg) u32::from(KERNEL_DATA), tmp = out(reg) _);
    }
}
