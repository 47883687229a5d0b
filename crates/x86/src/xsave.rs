//! Layout of the XSAVE area in standard form (SDM vol. 1 13.4).

/// Bytes of the legacy region (FXSAVE image).
pub const LEGACY_SIZE: usize = 512;
/// Offset of XSTATE_BV in the header.
pub const XSTATE_BV: usize = 512;
/// Offset of XCOMP_BV in the header.
pub const XCOMP_BV: usize = 520;
/// Offset of the AVX component: 16 bytes for each YMM register.
pub const AVX_OFFSET: usize = 576;
/// Bytes of the AVX component.
pub const AVX_SIZE: usize = 256;
/// Bytes of the area with x87, SSE and AVX.
pub const AREA_SIZE: usize = AVX_OFFSET + AVX_SIZE;
/// Offset of MXCSR in the legacy region.
pub const MXCSR: usize = 24;
/// Offset of XMM0 in the legacy region.
pub const XMM: usize = 160;
/// MXCSR after reset.
pub const MXCSR_INIT: u32 = 0x1f80;
/// Bits of MXCSR that exist.
pub const MXCSR_MASK: u32 = 0xffff;
/// x87 control word after FNINIT.
pub const FCW_INIT: u16 = 0x37f;
