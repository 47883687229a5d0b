//! What is left of a BIOS: where memory is, for kernels that ask in real mode.
//!
//! Kernels are entered as their boot protocols say, with everything that they need. Some go back to
//! real mode all the same and ask again, as the Xen hypervisor does; so there is an interrupt vector
//! table, whose INT 12h and INT 15h (functions e820h, e801h and 88h; ACPI 6.4, 15.1) say what the
//! boot protocols say. INT 13h has no disks, other functions of INT 15h are not supported, and all
//! other interrupts return at once. A jump to the reset vector resets the machine.
//!
//! Neighbours: `low` has the rest of what lies below 1 MiB; the ACPI tables end where this begins.

use memory::{Gpa, GuestRam};

use crate::map::BASE_MEMORY_KIB;
use crate::{BootError, MemoryMap};

/// First address of the ROM area that belongs to it.
pub(crate) const START: u64 = 0xf_f800;
/// Real-mode segment of all of it.
const SEGMENT: u16 = 0xf000;
/// What the code reads: base memory, the answers of INT 15h, and the memory map.
const MEMORY: u64 = START;
const CODE_AT: u64 = 0xf_fa00;
/// An IRET, where a BIOS has always had one.
const IRET_AT: u64 = 0xf_ff53;
/// Where the processor begins after a reset, with the date and the model behind it.
const RESET_VECTOR: u64 = 0xf_fff0;
/// Model of a PC AT.
const MODEL_AT: (u64, u8) = (0xf_fffe, 0xfc);

/// Offsets of the services in [`CODE`].
const INT_12: u64 = 0x00;
const INT_13: u64 = 0x05;
const INT_15: u64 = 0x09;
const RESET: u64 = 0x83;

/// The services, in 16-bit code. Interrupted flags lie 6 bytes above a pushed BP.
#[rustfmt::skip]
const CODE: [u8; 138] = [
    // int12: KiB of base memory.
    0x2e, 0xa1, 0x00, 0xf8, // mov ax, cs:[MEMORY]
    0xcf, // iret
    // int13: disks. There are none.
    0xb4, 0x01, // mov ah, 1
    0xeb, 0x14, // jmp carry
    // int15: memory. Everything else is an unsupported function.
    0x66, 0x3d, 0x20, 0xe8, 0x00, 0x00, // cmp eax, 0xe820
    0x74, 0x2a, // je e820
    0x3d, 0x01, 0xe8, // cmp ax, 0xe801
    0x74, 0x16, // je e801
    0x80, 0xfc, 0x88, // cmp ah, 0x88
    0x74, 0x0b, // je extended
    // fail: sets the carry flag of the caller.
    0xb4, 0x86, // mov ah, 0x86
    // carry:
    0x55, // push bp
    0x89, 0xe5, // mov bp, sp
    0x80, 0x4e, 0x06, 0x01, // or byte [bp + 6], 1
    0x5d, // pop bp
    0xcf, // iret
    // extended: KiB above 1 MiB.
    0x2e, 0xa1, 0x02, 0xf8, // mov ax, cs:[MEMORY + 2]
    0xeb, 0x4e, // jmp done
    // e801: KiB from 1 to 16 MiB, 64 KiB blocks from there on, each twice.
    0x2e, 0xa1, 0x04, 0xf8, // mov ax, cs:[MEMORY + 4]
    0x2e, 0x8b, 0x1e, 0x06, 0xf8, // mov bx, cs:[MEMORY + 6]
    0x89, 0xc1, // mov cx, ax
    0x89, 0xda, // mov dx, bx
    0xeb, 0x3f, // jmp done
    // e820: entry EBX of the memory map to ES:DI.
    0x66, 0x81, 0xfa, 0x50, 0x41, 0x4d, 0x53, // cmp edx, "SMAP"
    0x75, 0xd7, // jne fail
    0x66, 0x83, 0xf9, 0x14, // cmp ecx, 20
    0x72, 0xd1, // jb fail
    0x2e, 0x66, 0x3b, 0x1e, 0x08, 0xf8, // cmp ebx, cs:[MEMORY + 8]
    0x73, 0xc9, // jae fail
    0x56, // push si
    0x57, // push di
    0x6b, 0xf3, 0x14, // imul si, bx, 20
    0x81, 0xc6, 0x0c, 0xf8, // add si, MEMORY + 12
    0xb9, 0x0a, 0x00, // mov cx, 10
    0xfc, // cld
    0x2e, 0xf3, 0xa5, // rep movsw es:[di], cs:[si]
    0x5f, // pop di
    0x5e, // pop si
    0x66, 0xb9, 0x14, 0x00, 0x00, 0x00, // mov ecx, 20
    0x66, 0x89, 0xd0, // mov eax, edx
    0x66, 0x43, // inc ebx
    0x2e, 0x66, 0x3b, 0x1e, 0x08, 0xf8, // cmp ebx, cs:[MEMORY + 8]
    0x72, 0x03, // jb done
    0x66, 0x31, 0xdb, // xor ebx, ebx
    // done: clears the carry flag of the caller.
    0x55, // push bp
    0x89, 0xe5, // mov bp, sp
    0x80, 0x66, 0x06, 0xfe, // and byte [bp + 6], ~1
    0x5d, // pop bp
    0xcf, // iret
    // reset: by the keyboard controller.
    0xb0, 0xfe, // mov al, 0xfe
    0xe6, 0x64, // out 0x64, al
    0xf4, // hlt
    0xeb, 0xfd, // jmp to the hlt
];

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Where function e801h has its second part.
const SECOND_PART: u64 = 16 * MIB;
/// Most KiB that function 88h tells of: 63 MiB, as BIOSes do.
const MAX_EXTENDED: u64 = 63 << 10;

/// Puts table and services into guest RAM.
pub(crate) fn install(ram: &GuestRam, map: &MemoryMap) -> Result<(), BootError> {
    ram.write(Gpa(0), &vectors())?;
    let memory = memory(map);
    debug_assert!(MEMORY + memory.len() as u64 <= CODE_AT);
    ram.write(Gpa(MEMORY), &memory)?;
    ram.write(Gpa(CODE_AT), &CODE)?;
    ram.write(Gpa(IRET_AT), &[0xcf])?;
    let [low, high] = offset(CODE_AT + RESET).to_le_bytes();
    let [segment_low, segment_high] = SEGMENT.to_le_bytes();
    ram.write(Gpa(RESET_VECTOR), &[0xea, low, high, segment_low, segment_high])?; // jmp far
    ram.write(Gpa(MODEL_AT.0), &[MODEL_AT.1])?;
    Ok(())
}

/// The offset of an address in [`SEGMENT`].
fn offset(address: u64) -> u16 {
    (address - u64::from(SEGMENT) * 16) as u16
}

/// The interrupt vector table.
fn vectors() -> Vec<u8> {
    let services = [(0x12, INT_12), (0x13, INT_13), (0x15, INT_15)];
    let handler = |vector: u16| {
        let service = services.iter().find(|(number, _)| *number == vector);
        service.map_or(IRET_AT, |(_, entry)| CODE_AT + entry)
    };
    let entry = |vector| [offset(handler(vector)).to_le_bytes(), SEGMENT.to_le_bytes()].concat();
    (0..256).flat_map(entry).collect()
}

/// What [`CODE`] reads at [`MEMORY`].
fn memory(map: &MemoryMap) -> Vec<u8> {
    let above = |address: u64, end: u64| map.low_end().min(end).saturating_sub(address);
    let extended = (above(MIB, u64::MAX) / KIB).min(MAX_EXTENDED);
    let first = above(MIB, SECOND_PART) / KIB;
    let second = above(SECOND_PART, u64::MAX) / (64 * KIB);
    let mut memory = Vec::new();
    for word in [BASE_MEMORY_KIB, extended as u16, first as u16, second as u16] {
        memory.extend(word.to_le_bytes());
    }
    let entries = map.e820();
    memory.extend((entries.len() as u32).to_le_bytes());
    for entry in entries {
        memory.extend(entry.addr.to_le_bytes());
        memory.extend(entry.len.to_le_bytes());
        memory.extend((entry.kind as u32).to_le_bytes());
    }
    memory
}
