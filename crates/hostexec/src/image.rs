//! Images of the state in guest memory: FXSAVE, XSAVE, FNSTENV and FNSAVE
//! (Intel SDM vol. 1, 8.1.10, 10.5 and 13.4).
//!
//! [`crate::Executor`] runs FXSAVE, FXRSTOR, FNSTENV, FLDENV, FNSAVE and FRSTOR
//! with these functions. The XSAVE family, whose operands have gaps and
//! optional parts, is for the caller: [`FpuState::xsave`] and
//! [`FpuState::xrstor`].
//!
//! All formats store zero for the segment selectors of the x87 pointers, as
//! CPUs with CPUID.(7,0):EBX bit 13 do.

use crate::state::{FCW_INITIAL, MXCSR_INITIAL, STATE_SIZE, bytes_at, component};
use crate::state::{offset, xmm_offset};
use crate::{FpuState, HostExecError};

/// Which form of an FXSAVE or XSAVE image an instruction uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageForm {
    /// The instruction runs in 64-bit mode: 16 vector registers, else 8.
    pub mode64: bool,
    /// REX.W: x87 pointers have 64 bits, else 32 and a (zero) selector.
    pub long: bool,
}

impl ImageForm {
    /// That of FXSAVE64 and XSAVE64.
    pub const LONG: Self = Self { mode64: true, long: true };

    fn registers(self) -> usize {
        if self.mode64 { 16 } else { 8 }
    }
}

/// Format of the x87 environment of FNSTENV and FNSAVE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnvironmentFormat {
    /// 32-bit operand size: 28 bytes, else 14.
    pub wide: bool,
    /// Real or virtual-8086 mode: the pointers have another layout.
    pub real_mode: bool,
}

impl EnvironmentFormat {
    /// Size of the environment in bytes.
    #[must_use]
    pub fn size(self) -> usize {
        if self.wide { 28 } else { 14 }
    }
}

/// FXSAVE and FXRSTOR.
impl FpuState {
    /// FXSAVE: writes the x87 and SSE state into `area`, at least 512 bytes;
    /// bytes beyond the last XMM register of the mode stay as they are.
    ///
    /// # Panics
    /// If `area` is shorter than 512 bytes.
    pub fn fxsave(&self, area: &mut [u8], form: ImageForm) {
        self.write_x87(area, form.long);
        area[offset::MXCSR..offset::ST].copy_from_slice(&self.bytes[offset::MXCSR..offset::ST]);
        let end = xmm_offset(0) + 16 * form.registers();
        area[offset::XMM..end].copy_from_slice(&self.bytes[offset::XMM..end]);
    }

    /// FXRSTOR: the reverse.
    ///
    /// # Errors
    /// [`HostExecError::ReservedMxcsr`]; nothing is changed then.
    ///
    /// # Panics
    /// If `area` is shorter than 512 bytes.
    pub fn fxrstor(&mut self, area: &[u8], form: ImageForm) -> Result<(), HostExecError> {
        self.set_mxcsr(u32::from_le_bytes(bytes_at(area, offset::MXCSR)))?;
        self.read_x87(area, form.long);
        let end = xmm_offset(0) + 16 * form.registers();
        self.bytes[offset::XMM..end].copy_from_slice(&area[offset::XMM..end]);
        Ok(())
    }

    fn write_x87(&self, area: &mut [u8], long: bool) {
        area[..offset::MXCSR].copy_from_slice(&self.bytes[..offset::MXCSR]);
        if !long {
            // Selectors, which are zero, and reserved bytes.
            area[offset::FIP + 4..offset::FDP].fill(0);
            area[offset::FDP + 4..offset::MXCSR].fill(0);
        }
        area[offset::ST..offset::XMM].copy_from_slice(&self.bytes[offset::ST..offset::XMM]);
    }

    fn read_x87(&mut self, area: &[u8], long: bool) {
        let u16_at = |at| u16::from_le_bytes(bytes_at(area, at));
        let pointer_at = |at| {
            let value = u64::from_le_bytes(bytes_at(area, at));
            if long { value } else { value & 0xffff_ffff }
        };
        self.set_fcw(u16_at(offset::FCW));
        self.set_fsw(u16_at(offset::FSW));
        self.set_ftw(area[offset::FTW]);
        self.set_x87_pointers(
            u16_at(offset::FOP),
            pointer_at(offset::FIP),
            pointer_at(offset::FDP),
        );
        for index in 0..8 {
            self.set_st(index, &bytes_at(area, offset::ST + 16 * index));
        }
    }

    fn init_x87(&mut self) {
        self.set_fcw(FCW_INITIAL);
        self.bytes[offset::FSW..offset::MXCSR].fill(0);
        self.bytes[offset::ST..offset::XMM].fill(0);
    }
}

/// Member of the XSAVE family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XsaveKind {
    /// XSAVE: all requested components, in the standard form.
    Standard,
    /// XSAVEOPT: requested components that are in use, in the standard form.
    Optimized,
    /// XSAVEC, and XSAVES while IA32_XSS is 0: requested components that are
    /// in use, in the compacted form.
    Compacted,
}

/// What an instruction of the XSAVE family writes: pieces of an area.
#[derive(Clone, Debug)]
pub struct XsaveImage {
    bytes: [u8; STATE_SIZE],
    pieces: [(usize, usize); 6],
    count: usize,
}

impl XsaveImage {
    /// The pieces to write, by rising offset from the start of the area.
    pub fn pieces(&self) -> impl Iterator<Item = (usize, &[u8])> {
        self.pieces[..self.count].iter().map(|&(start, end)| (start, &self.bytes[start..end]))
    }

    fn add(&mut self, start: usize, end: usize) {
        self.pieces[self.count] = (start, end);
        self.count += 1;
    }
}

/// Bytes that XSAVE or XRSTOR of components `rfbm` may access: 576, or
/// [`STATE_SIZE`] with AVX. The same in standard and compacted form.
#[must_use]
pub fn xsave_area_size(rfbm: u64) -> usize {
    if rfbm & component::AVX != 0 { STATE_SIZE } else { offset::YMM_HIGH }
}

/// Bit of XCOMP_BV that says that an area is compacted.
const COMPACTED: u64 = 1 << 63;

/// XSAVE and XRSTOR (Intel SDM vol. 1, 13.7 to 13.12).
impl FpuState {
    /// What XSAVE, XSAVEOPT or XSAVEC writes. `rfbm` is EDX:EAX and XCR0;
    /// `old_xstate_bv` the first quadword of the header that is in memory,
    /// which the standard form keeps for components not requested.
    #[must_use]
    pub fn xsave(
        &self,
        rfbm: u64,
        kind: XsaveKind,
        form: ImageForm,
        old_xstate_bv: u64,
    ) -> XsaveImage {
        let compacted = kind == XsaveKind::Compacted;
        let mut in_use = self.xinuse();
        if compacted && self.mxcsr() != MXCSR_INITIAL {
            in_use |= component::SSE;
        }
        let rfbm = rfbm & component::ALL;
        let saved = if kind == XsaveKind::Standard { rfbm } else { rfbm & in_use };
        let mut image = XsaveImage { bytes: [0; STATE_SIZE], pieces: [(0, 0); 6], count: 0 };
        self.fxsave(&mut image.bytes, form);
        self.add_pieces(&mut image, saved, rfbm, compacted, form);
        let header = if compacted {
            [rfbm & in_use, rfbm | COMPACTED]
        } else {
            [(old_xstate_bv & !rfbm) | (rfbm & in_use), 0]
        };
        for (index, value) in header.into_iter().enumerate() {
            let at = offset::HEADER + 8 * index;
            image.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        image
    }

    /// Lists the pieces that an XSAVE of the components `saved` writes.
    fn add_pieces(
        &self,
        image: &mut XsaveImage,
        saved: u64,
        rfbm: u64,
        compacted: bool,
        form: ImageForm,
    ) {
        // The standard form has MXCSR even if neither SSE nor AVX is in use,
        // the compacted form takes it for a part of SSE.
        let mxcsr = if compacted {
            saved & component::SSE != 0
        } else {
            rfbm & (component::SSE | component::AVX) != 0
        };
        if saved & component::X87 != 0 {
            image.add(0, offset::MXCSR);
        }
        if mxcsr {
            image.add(offset::MXCSR, offset::ST);
        }
        if saved & component::X87 != 0 {
            image.add(offset::ST, offset::XMM);
        }
        if saved & component::SSE != 0 {
            image.add(offset::XMM, offset::XMM + 16 * form.registers());
        }
        image.add(offset::HEADER, offset::HEADER + if compacted { 16 } else { 8 });
        if saved & component::AVX != 0 {
            let end = offset::YMM_HIGH + 16 * form.registers();
            image.bytes[offset::YMM_HIGH..end].copy_from_slice(&self.bytes[offset::YMM_HIGH..end]);
            image.add(offset::YMM_HIGH, end);
        }
    }

    /// Loads components from an XSAVE area, as XRSTOR does: those of `rfbm`
    /// whose XSTATE_BV bit is set come from the area, those whose bit is
    /// clear become initial. `xcr0` limits what the header may name.
    ///
    /// `area` has [`STATE_SIZE`] bytes; what lies beyond
    /// [`xsave_area_size`]`(rfbm & XSTATE_BV)` does not matter. On an error
    /// nothing is changed.
    ///
    /// # Errors
    /// What XRSTOR answers with #GP(0): [`HostExecError::ReservedMxcsr`],
    /// [`HostExecError::XsaveHeader`].
    ///
    /// # Panics
    /// If `area` is shorter than [`STATE_SIZE`].
    pub fn xrstor(
        &mut self,
        area: &[u8],
        rfbm: u64,
        xcr0: u64,
        form: ImageForm,
    ) -> Result<(), HostExecError> {
        let header: [u64; 8] = std::array::from_fn(|index| {
            u64::from_le_bytes(bytes_at(area, offset::HEADER + 8 * index))
        });
        let compacted = check_header(&header, xcr0 & component::ALL)?;
        let present = header[0];
        self.xrstor_mxcsr(area, rfbm, present, compacted)?;
        if rfbm & component::X87 != 0 {
            if present & component::X87 != 0 {
                self.read_x87(area, form.long);
            } else {
                self.init_x87();
            }
        }
        let mut load = |requested: u64, start: usize| {
            let end = start + 16 * form.registers();
            if rfbm & requested == 0 {
                return;
            }
            if present & requested != 0 {
                self.bytes[start..end].copy_from_slice(&area[start..end]);
            } else {
                self.bytes[start..end].fill(0);
            }
        };
        load(component::SSE, offset::XMM);
        load(component::AVX, offset::YMM_HIGH);
        Ok(())
    }

    fn xrstor_mxcsr(
        &mut self,
        area: &[u8],
        rfbm: u64,
        present: u64,
        compacted: bool,
    ) -> Result<(), HostExecError> {
        let requested =
            if compacted { component::SSE } else { component::SSE | component::AVX } & rfbm != 0;
        if !requested {
            return Ok(());
        }
        if compacted && present & component::SSE == 0 {
            return self.set_mxcsr(MXCSR_INITIAL);
        }
        self.set_mxcsr(u32::from_le_bytes(bytes_at(area, offset::MXCSR)))
    }
}

/// Checks an XSAVE header as XRSTOR does; true if the area is compacted.
fn check_header(header: &[u64; 8], xcr0: u64) -> Result<bool, HostExecError> {
    let [xstate_bv, xcomp_bv, ..] = *header;
    let compacted = xcomp_bv & COMPACTED != 0;
    let good = if compacted {
        let format = xcomp_bv & !COMPACTED;
        format & !xcr0 == 0 && xstate_bv & !format == 0 && header[2..].iter().all(|&word| word == 0)
    } else {
        xstate_bv & !xcr0 == 0 && xcomp_bv == 0 && header[2] == 0
    };
    if good { Ok(compacted) } else { Err(HostExecError::XsaveHeader { xstate_bv, xcomp_bv }) }
}

/// FNSTENV, FLDENV, FNSAVE and FRSTOR.
impl FpuState {
    /// FNSTENV: writes the environment to `area`, then masks all exceptions.
    ///
    /// # Panics
    /// If `area` is shorter than the environment, 14 or 28 bytes.
    pub fn fnstenv(&mut self, area: &mut [u8], format: EnvironmentFormat) {
        self.write_environment(area, format);
        self.set_fcw(self.fcw() | 0x3f);
    }

    /// FLDENV: loads the environment; the physical registers stay where they
    /// are. Exceptions may become pending.
    ///
    /// # Panics
    /// If `area` is shorter than the environment, 14 or 28 bytes.
    pub fn fldenv(&mut self, area: &[u8], format: EnvironmentFormat) {
        let word = |index: usize| -> u32 {
            if format.wide {
                u32::from_le_bytes(bytes_at(area, 4 * index))
            } else {
                u32::from(u16::from_le_bytes(bytes_at(area, 2 * index)))
            }
        };
        let fsw = word(1) as u16;
        self.set_top_in_place(usize::from(fsw >> 11) & 7);
        self.set_fcw(word(0) as u16);
        self.set_fsw(fsw);
        self.set_ftw(abridge_tags(word(2) as u16));
        let (fop, fip, fdp) = if format.real_mode {
            let high = |value: u32| value >> 12 << 16;
            let low = |value: u32| value & 0xffff;
            ((word(4) & 0x7ff) as u16, low(word(3)) | high(word(4)), low(word(5)) | high(word(6)))
        } else if format.wide {
            ((word(4) >> 16) as u16, word(3), word(5))
        } else {
            (0, word(3), word(5))
        };
        self.set_x87_pointers(fop, u64::from(fip), u64::from(fdp));
    }

    /// FNSAVE: writes environment and registers to `area`, then does FNINIT.
    ///
    /// # Panics
    /// If `area` is shorter than the image, 94 or 108 bytes.
    pub fn fnsave(&mut self, area: &mut [u8], format: EnvironmentFormat) {
        self.write_environment(area, format);
        let start = format.size();
        for (index, slot) in area[start..start + 80].chunks_exact_mut(10).enumerate() {
            slot.copy_from_slice(&self.st(index));
        }
        self.fninit();
    }

    /// FRSTOR: loads environment and registers.
    ///
    /// # Panics
    /// If `area` is shorter than the image, 94 or 108 bytes.
    pub fn frstor(&mut self, area: &[u8], format: EnvironmentFormat) {
        self.fldenv(area, format);
        for index in 0..8 {
            self.set_st(index, &bytes_at(area, format.size() + 10 * index));
        }
    }

    /// The seven words of an environment, each of 16 or 32 bits. Unused upper
    /// halves of control, status, tag word and last selector are ones.
    fn write_environment(&self, area: &mut [u8], format: EnvironmentFormat) {
        let (fop, fip, fdp) = (u32::from(self.fop()), self.fip() as u32, self.fdp() as u32);
        let ones = 0xffff_0000;
        let pointers = match (format.real_mode, format.wide) {
            (true, true) => {
                [fip & 0xffff | ones, fip >> 16 << 12 | fop, fdp & 0xffff | ones, fdp >> 16 << 12]
            }
            (true, false) => [fip, fip >> 16 << 12 | fop, fdp, fdp >> 16 << 12],
            (false, true) => [fip, fop << 16, fdp, ones],
            (false, false) => [fip, 0, fdp, 0],
        };
        let words = [
            u32::from(self.fcw()) | ones,
            u32::from(self.fsw()) | ones,
            u32::from(self.full_tags()) | ones,
            pointers[0],
            pointers[1],
            pointers[2],
            pointers[3],
        ];
        for (index, word) in words.into_iter().enumerate() {
            if format.wide {
                area[4 * index..4 * index + 4].copy_from_slice(&word.to_le_bytes());
            } else {
                area[2 * index..2 * index + 2].copy_from_slice(&(word as u16).to_le_bytes());
            }
        }
    }

    /// The full tag word: two bits for each physical register, 0 valid, 1 zero,
    /// 2 special, 3 empty.
    #[must_use]
    pub fn full_tags(&self) -> u16 {
        (0..8).fold(0, |tags, physical| {
            let tag = if self.ftw() & (1 << physical) == 0 {
                3
            } else {
                content_tag(&self.st((physical + 8 - self.top()) & 7))
            };
            tags | tag << (2 * physical)
        })
    }
}

/// Tag of a register that is not empty.
fn content_tag(value: &[u8; 10]) -> u16 {
    let exponent = u16::from_le_bytes([value[8], value[9]]) & 0x7fff;
    let fraction = u64::from_le_bytes(bytes_at(value, 0));
    match (exponent, fraction) {
        (0, 0) => 1,
        (0 | 0x7fff, _) => 2,
        _ if fraction >> 63 == 1 => 0,
        _ => 2,
    }
}

/// Abridged tag word from the full one.
fn abridge_tags(full: u16) -> u8 {
    (0..8).fold(0, |tags, i| if full >> (2 * i) & 3 == 3 { tags } else { tags | 1 << i })
}

#[cfg(test)]
mod tests;
