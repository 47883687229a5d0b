//! The registers of user mode.

use x86::xsave;

/// General registers, flags, segment bases and extended state, as the worker process loads and
/// stores them. The assembly in `native/entry.rs` knows the offsets.
#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct CpuImage {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// FS and GS base.
    pub bases: [u64; 2],
    reserved: [u64; 4],
    /// XSAVE area in standard form (SDM vol. 1 13.4) with x87, SSE and AVX.
    pub xsave: [u8; xsave::AREA_SIZE],
}

/// Components that a case has: x87, SSE, AVX.
const COMPONENTS: u64 = 7;
/// Where the legacy region ends in bytes that no instruction of a case can change.
const LEGACY_USED: usize = 416;
const FTW: usize = 4;
const ST: usize = 32;

impl Default for CpuImage {
    fn default() -> Self {
        let mut image = Self {
            gpr: [0; 16],
            rip: 0,
            rflags: 0x202,
            bases: [crate::layout::FS_BASE, crate::layout::GS_BASE],
            reserved: [0; 4],
            xsave: [0; xsave::AREA_SIZE],
        };
        image.put(0, &xsave::FCW_INIT.to_le_bytes());
        image.put(xsave::MXCSR, &xsave::MXCSR_INIT.to_le_bytes());
        image.put(xsave::XSTATE_BV, &COMPONENTS.to_le_bytes());
        image
    }
}

impl CpuImage {
    /// Sets bytes of the XSAVE area.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.xsave[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// `N` bytes of the XSAVE area.
    pub fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.xsave[at..at + N]);
        bytes
    }

    /// x87 control word.
    pub fn fcw(&self) -> u16 {
        u16::from_le_bytes(self.get(0))
    }

    /// x87 status word.
    pub fn fsw(&self) -> u16 {
        u16::from_le_bytes(self.get(2))
    }

    /// Abridged x87 tag word: one bit for each physical register that is not empty.
    pub fn ftw(&self) -> u8 {
        self.xsave[FTW]
    }

    /// Opcode of the last x87 instruction.
    pub fn fop(&self) -> u16 {
        u16::from_le_bytes(self.get(6))
    }

    /// Instruction pointer of the last x87 instruction.
    pub fn fip(&self) -> u64 {
        u64::from_le_bytes(self.get(8))
    }

    /// Data pointer of the last x87 instruction.
    pub fn fdp(&self) -> u64 {
        u64::from_le_bytes(self.get(16))
    }

    /// MXCSR.
    pub fn mxcsr(&self) -> u32 {
        u32::from_le_bytes(self.get(xsave::MXCSR))
    }

    /// Sets MXCSR.
    pub fn set_mxcsr(&mut self, value: u32) {
        self.put(xsave::MXCSR, &value.to_le_bytes());
    }

    /// ST(`index`): 80 bits.
    pub fn st(&self, index: usize) -> [u8; 10] {
        self.get(ST + 16 * index)
    }

    /// Sets ST(`index`).
    pub fn set_st(&mut self, index: usize, value: &[u8; 10]) {
        self.put(ST + 16 * index, value);
    }

    /// YMM register `index`, as low and high 128 bits.
    pub fn ymm(&self, index: usize) -> [u128; 2] {
        [xsave::XMM, xsave::AVX_OFFSET].map(|at| u128::from_le_bytes(self.get(at + 16 * index)))
    }

    /// Sets YMM register `index` from low and high 128 bits.
    pub fn set_ymm(&mut self, index: usize, value: [u128; 2]) {
        self.put(xsave::XMM + 16 * index, &value[0].to_le_bytes());
        self.put(xsave::AVX_OFFSET + 16 * index, &value[1].to_le_bytes());
    }

    /// Takes over an XSAVE area that a CPU or an engine wrote: components that its XSTATE_BV does
    /// not name get their initial values, and fields that are not registers become zero.
    pub fn set_extended(&mut self, area: &[u8]) {
        let used = area.len().min(xsave::AREA_SIZE);
        self.xsave = [0; xsave::AREA_SIZE];
        self.put(0, &area[..used]);
        let present = u64::from_le_bytes(self.get(xsave::XSTATE_BV));
        if present & 1 == 0 {
            self.put(0, &[0; xsave::MXCSR]);
            self.put(0, &xsave::FCW_INIT.to_le_bytes());
            self.put(ST, &[0; 128]);
        }
        if present & 2 == 0 {
            self.put(xsave::XMM, &[0; 256]);
        }
        if present & 4 == 0 {
            self.put(xsave::AVX_OFFSET, &[0; 256]);
        }
        for index in 0..8 {
            self.put(ST + 16 * index + 10, &[0; 6]);
        }
        self.put(FTW + 1, &[0]);
        self.put(xsave::MXCSR + 4, &[0; 4]);
        self.put(LEGACY_USED, &[0; xsave::AVX_OFFSET - LEGACY_USED]);
        self.put(xsave::XSTATE_BV, &COMPONENTS.to_le_bytes());
    }
}

impl std::fmt::Debug for CpuImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuImage")
            .field("gpr", &format_args!("{:x?}", self.gpr))
            .field("rip", &format_args!("{:#x}", self.rip))
            .field("rflags", &format_args!("{:#x}", self.rflags))
            .finish_non_exhaustive()
    }
}
