//! Kernels and RAM to test with, and a random number generator.

use memory::{Gpa, GuestRam};

use boot::{BootError, EntryState, Initrd, KernelImage, MemoryMap, Module, Payload, acpi};

pub const MIB: u64 = 1 << 20;
/// Offset of the protected-mode part of [`bzimage`].
pub const KERNEL_OFFSET: usize = 5 * 512;
/// Bytes of it.
pub const KERNEL_LEN: usize = 0x3000;
/// Preferred address of [`bzimage`].
pub const KERNEL_ADDRESS: u64 = 16 * MIB;
/// Memory it needs there.
pub const INIT_SIZE: u64 = 8 * MIB;
/// Where the payload lies in the protected-mode part.
pub const PAYLOAD_OFFSET: usize = 0x400;

/// Offsets in a bzImage of the setup header's fields.
pub mod field {
    pub const SETUP_SECTORS: usize = 0x1f1;
    pub const SYS_SIZE: usize = 0x1f4;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const LOAD_FLAGS: usize = 0x211;
    pub const INITRD_ADDR_MAX: usize = 0x22c;
    pub const ALIGNMENT: usize = 0x230;
    pub const RELOCATABLE: usize = 0x234;
    pub const XLOAD_FLAGS: usize = 0x236;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const PAYLOAD_OFFSET: usize = 0x248;
    pub const PAYLOAD_LENGTH: usize = 0x24c;
    pub const PREFERRED: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
}

pub fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// A bzImage whose header has the values of a distribution's kernel, with `payload`.
pub fn bzimage_with(payload: &[u8]) -> Vec<u8> {
    let kernel_len = KERNEL_LEN.max((PAYLOAD_OFFSET + payload.len()).next_multiple_of(16));
    let mut file: Vec<u8> = (0..KERNEL_OFFSET + kernel_len).map(|i| (i % 251) as u8).collect();
    put(&mut file, 0, b"MZ");
    file[0x1ef..0x290].fill(0);
    put(&mut file, field::SETUP_SECTORS, &[(KERNEL_OFFSET / 512 - 1) as u8]);
    put(&mut file, field::SYS_SIZE, &(kernel_len as u32 / 16).to_le_bytes());
    put(&mut file, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut file, field::MAGIC, b"HdrS");
    put(&mut file, field::VERSION, &0x020f_u16.to_le_bytes());
    put(&mut file, field::LOAD_FLAGS, &[1]);
    put(&mut file, field::INITRD_ADDR_MAX, &0x7fff_ffff_u32.to_le_bytes());
    put(&mut file, field::ALIGNMENT, &0x20_0000_u32.to_le_bytes());
    put(&mut file, field::RELOCATABLE, &[1, 21]);
    put(&mut file, field::XLOAD_FLAGS, &0x7f_u16.to_le_bytes());
    put(&mut file, field::CMDLINE_SIZE, &2047_u32.to_le_bytes());
    put(&mut file, field::PAYLOAD_OFFSET, &(PAYLOAD_OFFSET as u32).to_le_bytes());
    put(&mut file, field::PAYLOAD_LENGTH, &(payload.len() as u32).to_le_bytes());
    put(&mut file, field::PREFERRED, &KERNEL_ADDRESS.to_le_bytes());
    put(&mut file, field::INIT_SIZE, &(INIT_SIZE as u32).to_le_bytes());
    put(&mut file, KERNEL_OFFSET + PAYLOAD_OFFSET, payload);
    file
}

pub fn bzimage() -> Vec<u8> {
    bzimage_with(b"\x1f\x8bno payload")
}

/// A bzImage with one field changed.
pub fn bzimage_but(at: usize, value: &[u8]) -> Vec<u8> {
    let mut file = bzimage();
    put(&mut file, at, value);
    file
}

/// One program header.
#[derive(Clone, Copy)]
pub struct Program {
    pub kind: u32,
    pub offset: u64,
    pub address: u64,
    pub file_len: u64,
    pub memory_len: u64,
    pub align: u64,
}

/// First bytes of the code segment in [`elf_parts`].
pub const ELF_TEXT: Program = Program {
    kind: 1,
    offset: 0x1000,
    address: MIB,
    file_len: 0x800,
    memory_len: 0x800,
    align: 0x1000,
};
pub const ELF_DATA: Program = Program {
    kind: 1,
    offset: 0x1800,
    address: 2 * MIB + 0x123,
    file_len: 0x200,
    memory_len: 0x4567,
    align: 0x1000,
};
pub const ELF_NOTE: Program =
    Program { kind: 4, offset: 0x200, address: 0, file_len: 0x100, memory_len: 0x100, align: 4 };
pub const ELF_ENTRY: u64 = MIB + 0x40;

/// A note: name with its zero, type, description.
pub fn note(name: &[u8], kind: u32, description: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [name.len() as u32, description.len() as u32, kind] {
        note.extend(word.to_le_bytes());
    }
    note.extend(name);
    note.resize(note.len().next_multiple_of(4), 0);
    note.extend(description);
    note.resize(note.len().next_multiple_of(4), 0);
    note
}

/// An ELF file of 8 KiB with these program headers and notes.
pub fn elf_parts(programs: &[Program], notes: &[u8]) -> Vec<u8> {
    let mut file: Vec<u8> = (0..0x2000).map(|i| (i % 241) as u8).collect();
    file[..0x1000].fill(0);
    put(&mut file, 0, b"\x7fELF\x02\x01\x01");
    put(&mut file, 0x10, &2_u16.to_le_bytes());
    put(&mut file, 0x12, &62_u16.to_le_bytes());
    put(&mut file, 0x20, &64_u64.to_le_bytes());
    put(&mut file, 0x36, &56_u16.to_le_bytes());
    put(&mut file, 0x38, &(programs.len() as u16).to_le_bytes());
    for (index, p) in programs.iter().enumerate() {
        let at = 64 + index * 56;
        put(&mut file, at, &p.kind.to_le_bytes());
        for (slot, value) in
            [p.offset, 0, p.address, p.file_len, p.memory_len, p.align].into_iter().enumerate()
        {
            put(&mut file, at + 8 + slot * 8, &value.to_le_bytes());
        }
    }
    put(&mut file, ELF_NOTE.offset as usize, notes);
    file
}

/// The notes of a PVH kernel, with another one in front.
pub fn pvh_notes() -> Vec<u8> {
    [note(b"GNU\0", 3, &[7; 20]), note(b"Xen\0", 18, &ELF_ENTRY.to_le_bytes())].concat()
}

pub fn elf() -> Vec<u8> {
    elf_parts(&[ELF_TEXT, ELF_DATA, ELF_NOTE], &pvh_notes())
}

/// An initramfs: the beginning of a cpio archive, then `len` bytes in all.
pub fn initrd(len: usize) -> Vec<u8> {
    let mut bytes = b"070701".to_vec();
    bytes.resize(len, 0x5a);
    bytes
}

/// A guest's RAM with ACPI tables in it.
pub struct Guest {
    pub map: MemoryMap,
    pub ram: GuestRam,
    pub rsdp: u64,
}

impl Guest {
    pub fn new(size: u64) -> Self {
        let map = MemoryMap::new(size).unwrap();
        let ram = GuestRam::new(&map.ram_layout()).unwrap();
        let rsdp = acpi::build(&acpi::AcpiSpec::pc(&[0, 1]), &ram).unwrap();
        Self { map, ram, rsdp }
    }

    pub fn load(
        &self,
        kernel: Vec<u8>,
        initrd: Option<Vec<u8>>,
        cmdline: &str,
    ) -> Result<EntryState, BootError> {
        let kernel = KernelImage::from_bytes(kernel, "vmlinuz")?;
        let initrd = initrd.map(|bytes| Initrd::from_bytes(bytes, "initrd.img")).transpose()?;
        let payload = Payload { initrd: initrd.as_ref(), cmdline, ..Payload::default() };
        boot::load(&self.ram, &kernel, &payload, &self.map, self.rsdp)
    }

    pub fn load_with_modules(
        &self,
        kernel: Vec<u8>,
        modules: &[Module],
        cmdline: &str,
    ) -> Result<EntryState, BootError> {
        let kernel = KernelImage::from_bytes(kernel, "boot/my kernel")?;
        let payload = Payload { modules, cmdline, ..Payload::default() };
        boot::load(&self.ram, &kernel, &payload, &self.map, self.rsdp)
    }

    /// The string at `gpa`, which a zero ends.
    pub fn string(&self, gpa: u32) -> String {
        let bytes: Vec<u8> = (u64::from(gpa)..)
            .map(|at| self.bytes(at, 1)[0])
            .take_while(|byte| *byte != 0)
            .collect();
        String::from_utf8(bytes).unwrap()
    }

    pub fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read(Gpa(gpa), &mut bytes).unwrap();
        bytes
    }

    pub fn u32(&self, gpa: u64) -> u32 {
        self.ram.load(self.ram.translate(Gpa(gpa), 4).unwrap())
    }

    pub fn u64(&self, gpa: u64) -> u64 {
        self.ram.load(self.ram.translate(Gpa(gpa), 8).unwrap())
    }
}

/// xorshift64*: enough to vary tests from a seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
