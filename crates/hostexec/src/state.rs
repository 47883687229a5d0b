//! The guest's x87, SSE and AVX registers.
//!
//! [`FpuState`] holds them in the standard form of the XSAVE area (Intel SDM
//! vol. 1, 13.4): the 512 bytes of the FXSAVE64 image, the XSAVE header, and
//! the upper halves of the YMM registers. Native stubs ([`crate::Executor`])
//! read and write it in place, therefore it holds canonical values only: a
//! value that a host register would refuse never gets in.
//!
//! The memory images of FXSAVE, XSAVE and FNSTENV are in [`crate::image`]; the
//! instructions on control and status words are in [`crate::control`].

use crate::HostExecError;
use crate::image::ImageForm;

/// Bytes of [`FpuState`]: legacy area, XSAVE header and upper halves of YMM.
pub const STATE_SIZE: usize = 832;

/// MXCSR bits that exist, as FXSAVE reports them in `MXCSR_MASK`.
///
/// All of the low sixteen: with denormals-are-zeros, without AMD's misaligned
/// exception mask.
pub const MXCSR_MASK: u32 = 0xffff;

/// MXCSR after power-on and in the XSAVE initial configuration: all exceptions
/// masked, round to nearest.
pub const MXCSR_INITIAL: u32 = 0x1f80;

/// x87 control word after FNINIT and in the XSAVE initial configuration.
pub const FCW_INITIAL: u16 = 0x037f;

/// x87 control word after power-on (Intel SDM vol. 3A, table 10-1).
pub const FCW_POWER_ON: u16 = 0x0040;

/// XSAVE state components, as bits of XCR0 and XSTATE_BV.
pub mod component {
    /// x87 registers, control, status and pointers.
    pub const X87: u64 = 1 << 0;
    /// XMM registers; MXCSR is saved with this one or AVX.
    pub const SSE: u64 = 1 << 1;
    /// Upper halves of the YMM registers.
    pub const AVX: u64 = 1 << 2;
    /// All that this crate knows.
    pub const ALL: u64 = X87 | SSE | AVX;
}

/// Offsets into the standard form of the XSAVE area.
pub(crate) mod offset {
    pub const FCW: usize = 0;
    pub const FSW: usize = 2;
    pub const FTW: usize = 4;
    pub const FOP: usize = 6;
    pub const FIP: usize = 8;
    pub const FDP: usize = 16;
    pub const MXCSR: usize = 24;
    pub const MXCSR_MASK: usize = 28;
    pub const ST: usize = 32;
    pub const XMM: usize = 160;
    pub const XMM_END: usize = 416;
    pub const HEADER: usize = 512;
    pub const YMM_HIGH: usize = 576;
}

/// Writable bits of the x87 control word; bit 6 besides reads as one.
const FCW_WRITABLE: u16 = 0x1f3f;
const FCW_ALWAYS_ONE: u16 = 0x0040;
/// Exception flags, and the exception masks at the same place of FCW.
const X87_EXCEPTIONS: u16 = 0x003f;
/// Error summary, and the busy flag that mirrors it.
const FSW_ERROR_SUMMARY: u16 = 0x0080;
const FSW_BUSY: u16 = 0x8000;
/// The opcode register has eleven bits.
const FOP_MASK: u16 = 0x07ff;

/// A guest's x87, MMX, SSE and AVX state.
///
/// In memory it is the standard form of an XSAVE area with the header zero;
/// see [`FpuState::xinuse`] for what the header of a saved area should hold.
/// Unlike a real CPU it has no code and data segment selectors of the x87
/// pointers: it models a CPU with CPUID.(7,0):EBX bits 6 (the data pointer
/// changes with an unmasked exception only) and 13 (FCS and FDS are zero) set,
/// and the CPUID shown to the guest should say so.
///
/// ```
/// let mut state = hostexec::FpuState::new();
/// assert_eq!(state.mxcsr(), 0x1f80);
/// state.set_xmm(3, 7);
/// assert_eq!(state.ymm_u64(3), [7, 0, 0, 0]);
/// assert!(state.set_mxcsr(0x1_0000).is_err());
/// ```
#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct FpuState {
    pub(crate) bytes: [u8; STATE_SIZE],
}

impl Default for FpuState {
    fn default() -> Self {
        Self::new()
    }
}

impl FpuState {
    /// The XSAVE initial configuration: FCW 0x37f, MXCSR 0x1f80, all registers
    /// zero and the x87 stack empty.
    #[must_use]
    pub fn new() -> Self {
        let mut state = Self { bytes: [0; STATE_SIZE] };
        state.put_u16(offset::FCW, FCW_INITIAL);
        state.put_u32(offset::MXCSR, MXCSR_INITIAL);
        state.put_u32(offset::MXCSR_MASK, MXCSR_MASK);
        state
    }

    /// Sets the values after power-on or RESET (Intel SDM vol. 3A, table 10-1):
    /// FCW 0x40 and an x87 stack full of zeros. An INIT does not change
    /// this state at all.
    pub fn reset(&mut self) {
        *self = Self::new();
        self.put_u16(offset::FCW, FCW_POWER_ON);
        self.bytes[offset::FTW] = 0xff;
    }

    pub(crate) fn get_u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    pub(crate) fn get_u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    pub(crate) fn get_u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }

    pub(crate) fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut out = [0; N];
        out.copy_from_slice(&self.bytes[at..at + N]);
        out
    }

    pub(crate) fn put(&mut self, at: usize, value: &[u8]) {
        self.bytes[at..at + value.len()].copy_from_slice(value);
    }

    pub(crate) fn put_u16(&mut self, at: usize, value: u16) {
        self.put(at, &value.to_le_bytes());
    }

    pub(crate) fn put_u32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    pub(crate) fn put_u64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_le_bytes());
    }
}

/// Vector registers. `index` is 0 to 15; a larger one is a caller's error and
/// panics.
impl FpuState {
    /// XMM register, little-endian: byte 0 is the least significant.
    #[must_use]
    pub fn xmm(&self, index: usize) -> u128 {
        u128::from_le_bytes(self.array(xmm_offset(index)))
    }

    /// Sets an XMM register and leaves the upper half of the YMM register, as
    /// legacy SSE instructions do.
    pub fn set_xmm(&mut self, index: usize, value: u128) {
        self.put(xmm_offset(index), &value.to_le_bytes());
    }

    /// Sets an XMM register and zeroes the upper half of the YMM register, as
    /// VEX.128 instructions do.
    pub fn set_xmm_zero_upper(&mut self, index: usize, value: u128) {
        self.set_xmm(index, value);
        self.put(ymm_high_offset(index), &[0; 16]);
    }

    /// YMM register as bytes, least significant first.
    #[must_use]
    pub fn ymm(&self, index: usize) -> [u8; 32] {
        let mut out = [0; 32];
        out[..16].copy_from_slice(&self.array::<16>(xmm_offset(index)));
        out[16..].copy_from_slice(&self.array::<16>(ymm_high_offset(index)));
        out
    }

    /// Sets a whole YMM register.
    pub fn set_ymm(&mut self, index: usize, value: &[u8; 32]) {
        self.put(xmm_offset(index), &value[..16]);
        self.put(ymm_high_offset(index), &value[16..]);
    }

    /// YMM register as eight doublewords, least significant first.
    #[must_use]
    pub fn ymm_u32(&self, index: usize) -> [u32; 8] {
        let bytes = self.ymm(index);
        std::array::from_fn(|i| u32::from_le_bytes(bytes_at(&bytes, i * 4)))
    }

    /// Sets a YMM register from eight doublewords.
    pub fn set_ymm_u32(&mut self, index: usize, value: [u32; 8]) {
        let mut bytes = [0; 32];
        for (chunk, lane) in bytes.chunks_exact_mut(4).zip(value) {
            chunk.copy_from_slice(&lane.to_le_bytes());
        }
        self.set_ymm(index, &bytes);
    }

    /// YMM register as four quadwords, least significant first.
    #[must_use]
    pub fn ymm_u64(&self, index: usize) -> [u64; 4] {
        let bytes = self.ymm(index);
        std::array::from_fn(|i| u64::from_le_bytes(bytes_at(&bytes, i * 8)))
    }

    /// Sets a YMM register from four quadwords.
    pub fn set_ymm_u64(&mut self, index: usize, value: [u64; 4]) {
        let mut bytes = [0; 32];
        for (chunk, lane) in bytes.chunks_exact_mut(8).zip(value) {
            chunk.copy_from_slice(&lane.to_le_bytes());
        }
        self.set_ymm(index, &bytes);
    }

    /// VZEROUPPER; `registers` is 16 in 64-bit mode and 8 otherwise.
    pub fn vzeroupper(&mut self, registers: usize) {
        for index in 0..registers.min(16) {
            self.put(ymm_high_offset(index), &[0; 16]);
        }
    }

    /// VZEROALL; `registers` is 16 in 64-bit mode and 8 otherwise.
    pub fn vzeroall(&mut self, registers: usize) {
        for index in 0..registers.min(16) {
            self.set_xmm_zero_upper(index, 0);
        }
    }

    /// MXCSR, the SSE control and status register.
    #[must_use]
    pub fn mxcsr(&self) -> u32 {
        self.get_u32(offset::MXCSR)
    }

    /// Sets MXCSR, as LDMXCSR does.
    ///
    /// # Errors
    /// [`HostExecError::ReservedMxcsr`] when a reserved bit is set; the guest
    /// gets #GP(0) and MXCSR stays as it was.
    pub fn set_mxcsr(&mut self, value: u32) -> Result<(), HostExecError> {
        if value & !MXCSR_MASK != 0 {
            return Err(HostExecError::ReservedMxcsr { value });
        }
        self.put_u32(offset::MXCSR, value);
        Ok(())
    }
}

/// x87 and MMX registers. Register numbers are 0 to 7; a larger one is a
/// caller's error and panics.
impl FpuState {
    /// x87 control word.
    #[must_use]
    pub fn fcw(&self) -> u16 {
        self.get_u16(offset::FCW)
    }

    /// Sets the x87 control word, as FLDCW does: reserved bits get their fixed
    /// values, and the error summary of the status word follows the new masks.
    pub fn set_fcw(&mut self, value: u16) {
        self.put_u16(offset::FCW, (value & FCW_WRITABLE) | FCW_ALWAYS_ONE);
        self.set_fsw(self.fsw());
    }

    /// x87 status word.
    #[must_use]
    pub fn fsw(&self) -> u16 {
        self.get_u16(offset::FSW)
    }

    /// Sets the x87 status word. The error summary and busy bits are not taken
    /// from `value`: as in hardware, they say whether an exception flag is set
    /// that the control word does not mask.
    pub fn set_fsw(&mut self, value: u16) {
        let rest = value & !(FSW_ERROR_SUMMARY | FSW_BUSY);
        let pending = value & !self.fcw() & X87_EXCEPTIONS != 0;
        let summary = if pending { FSW_ERROR_SUMMARY | FSW_BUSY } else { 0 };
        self.put_u16(offset::FSW, rest | summary);
    }

    /// Whether an unmasked x87 exception is pending, so that the next waiting
    /// x87 or MMX instruction raises #MF.
    #[inline]
    #[must_use]
    pub fn x87_pending(&self) -> bool {
        self.fsw() & FSW_ERROR_SUMMARY != 0
    }

    /// Physical number of the register that is ST(0).
    #[must_use]
    pub fn top(&self) -> usize {
        usize::from(self.fsw() >> 11) & 7
    }

    /// Abridged tag word, as in an FXSAVE image: bit i is set when physical
    /// register i is not empty.
    #[must_use]
    pub fn ftw(&self) -> u8 {
        self.bytes[offset::FTW]
    }

    /// Sets the abridged tag word.
    pub fn set_ftw(&mut self, value: u8) {
        self.bytes[offset::FTW] = value;
    }

    /// The 80 bits of ST(`index`), least significant byte first.
    #[must_use]
    pub fn st(&self, index: usize) -> [u8; 10] {
        assert!(index < 8, "x87 register ST({index}) does not exist");
        self.array(offset::ST + 16 * index)
    }

    /// Sets the 80 bits of ST(`index`) and nothing else (no tag).
    pub fn set_st(&mut self, index: usize, value: &[u8; 10]) {
        assert!(index < 8, "x87 register ST({index}) does not exist");
        self.put(offset::ST + 16 * index, value);
        self.put(offset::ST + 16 * index + 10, &[0; 6]);
    }

    /// MMX register `index`: the low 64 bits of that *physical* x87 register,
    /// wherever the top of the stack is.
    #[must_use]
    pub fn mm(&self, index: usize) -> u64 {
        assert!(index < 8, "register MM{index} does not exist");
        self.get_u64(offset::ST + 16 * (index.wrapping_sub(self.top()) & 7))
    }

    /// Sets MMX register `index` as an MMX instruction does: exponent and sign
    /// all ones, the top of the stack 0 and no register empty.
    pub fn set_mm(&mut self, index: usize, value: u64) {
        assert!(index < 8, "register MM{index} does not exist");
        self.begin_mmx();
        let mut bytes = [0xff; 10];
        bytes[..8].copy_from_slice(&value.to_le_bytes());
        self.set_st(index, &bytes);
    }

    /// What every MMX instruction except EMMS does beside its own work: TOP
    /// becomes 0 and all tags valid (Intel SDM vol. 1, 9.5.1).
    pub fn begin_mmx(&mut self) {
        self.set_top_in_place(0);
        self.set_ftw(0xff);
    }

    /// Changes TOP and leaves the physical registers alone; the area holds
    /// them in stack order.
    pub(crate) fn set_top_in_place(&mut self, top: usize) {
        let turn = (top + 8 - self.top()) & 7;
        self.bytes[offset::ST..offset::XMM].rotate_left(16 * turn);
        let fsw = (self.fsw() & !0x3800) | ((top as u16 & 7) << 11);
        self.put_u16(offset::FSW, fsw);
    }

    /// Opcode of the last x87 instruction with an unmasked exception: the low
    /// three bits of its first byte, then the ModRM byte.
    #[must_use]
    pub fn fop(&self) -> u16 {
        self.get_u16(offset::FOP)
    }

    /// Address of the last x87 instruction that is not a control instruction.
    #[must_use]
    pub fn fip(&self) -> u64 {
        self.get_u64(offset::FIP)
    }

    /// Address of the memory operand of the last x87 instruction with an
    /// unmasked exception.
    #[must_use]
    pub fn fdp(&self) -> u64 {
        self.get_u64(offset::FDP)
    }

    /// Sets opcode, instruction and operand address of the last x87
    /// instruction. The instruction address is made canonical for 57-bit
    /// linear addresses, as the hardware's register cannot hold another one.
    pub fn set_x87_pointers(&mut self, fop: u16, fip: u64, fdp: u64) {
        self.put_u16(offset::FOP, fop & FOP_MASK);
        self.put_u64(offset::FIP, ((fip << 7) as i64 >> 7) as u64);
        self.put_u64(offset::FDP, fdp);
    }
}

/// The whole state as bytes.
impl FpuState {
    /// The area itself, for code that keeps vector registers in the host's: XMM registers at 160,
    /// upper halves at 576, MXCSR at 24. The header (from 512) must stay zero, MXCSR valid.
    pub fn area_mut(&mut self) -> &mut [u8; STATE_SIZE] {
        &mut self.bytes
    }

    /// The state as it lies in memory: the standard form of an XSAVE area,
    /// with XSTATE_BV in its header saying which components are not initial.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; STATE_SIZE] {
        let mut bytes = self.bytes;
        bytes[offset::HEADER..offset::HEADER + 8].copy_from_slice(&self.xinuse().to_le_bytes());
        bytes
    }

    /// Takes a state from the standard form of an XSAVE area. Components whose
    /// XSTATE_BV bit is clear become initial.
    ///
    /// # Errors
    /// [`HostExecError::StateSize`] unless there are [`STATE_SIZE`] bytes;
    /// [`HostExecError::ReservedMxcsr`] and [`HostExecError::XsaveHeader`] for
    /// values that XRSTOR answers with #GP.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, HostExecError> {
        if bytes.len() != STATE_SIZE {
            return Err(HostExecError::StateSize { given: bytes.len() });
        }
        let mut state = Self::new();
        state.xrstor(bytes, component::ALL, component::ALL, ImageForm::LONG)?;
        Ok(state)
    }

    /// Components that are not in their initial configuration, as XINUSE of
    /// the XSAVE instructions (Intel SDM vol. 1, 13.6). MXCSR does not count.
    #[must_use]
    pub fn xinuse(&self) -> u64 {
        let zero = |range: std::ops::Range<usize>| self.bytes[range].iter().all(|&byte| byte == 0);
        let mut used = 0;
        if self.fcw() != FCW_INITIAL
            || !zero(offset::FSW..offset::MXCSR)
            || !zero(offset::ST..offset::XMM)
        {
            used |= component::X87;
        }
        if !zero(offset::XMM..offset::XMM_END) {
            used |= component::SSE;
        }
        if !zero(offset::YMM_HIGH..STATE_SIZE) {
            used |= component::AVX;
        }
        used
    }
}

impl std::fmt::Debug for FpuState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("FpuState");
        out.field("fcw", &format_args!("{:#06x}", self.fcw()))
            .field("fsw", &format_args!("{:#06x}", self.fsw()))
            .field("ftw", &format_args!("{:#04x}", self.ftw()))
            .field("fop", &format_args!("{:#05x}", self.fop()))
            .field("fip", &format_args!("{:#x}", self.fip()))
            .field("fdp", &format_args!("{:#x}", self.fdp()))
            .field("mxcsr", &format_args!("{:#06x}", self.mxcsr()));
        for index in 0..8 {
            let mut wide = [0; 16];
            wide[..10].copy_from_slice(&self.st(index));
            out.field(&format!("st{index}"), &format_args!("{:020x}", u128::from_le_bytes(wide)));
        }
        for index in 0..16 {
            let high = u128::from_le_bytes(self.array(ymm_high_offset(index)));
            let low = self.xmm(index);
            out.field(&format!("ymm{index}"), &format_args!("{high:032x}:{low:032x}"));
        }
        out.finish()
    }
}

/// Offset of the low half of YMM register `index`.
pub(crate) fn xmm_offset(index: usize) -> usize {
    assert!(index < 16, "vector register {index} does not exist");
    offset::XMM + 16 * index
}

/// Offset of the upper half of YMM register `index`.
pub(crate) fn ymm_high_offset(index: usize) -> usize {
    assert!(index < 16, "vector register {index} does not exist");
    offset::YMM_HIGH + 16 * index
}

/// `N` bytes of `bytes` from `at`.
pub(crate) fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
