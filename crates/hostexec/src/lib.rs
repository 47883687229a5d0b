//! Runs single vector and x87 instructions of a guest on the host CPU, on
//! operands copied in.
//!
//! An interpreter decodes an instruction, does its memory accesses and fault
//! checks itself, and leaves the arithmetic to this crate: the host has the
//! same instruction, so there is nothing to get wrong. Results depend on guest
//! state only (MXCSR and the x87 control word are the guest's), never on the
//! host's; the host's MXCSR control bits and x87 control word are as before
//! afterwards. Two families have results that are the CPU maker's choice and
//! differ between hosts: approximations (RCPPS, RSQRTPS) and x87
//! transcendentals (FSIN, F2XM1, ...).
//!
//! # Use
//! 1. When an instruction is decoded, call [`Executor::compile`] once. `None`
//!    means that the instruction is not one of this crate's (it may be in
//!    [`elements`]), or the host lacks it. Keep the [`HostOp`].
//! 2. At each execution: raise the faults of [`HostOp::unit`] (CR0.EM and TS,
//!    CR4.OSFXSR and OSXSAVE, XCR0); raise #MF if
//!    [`HostOp::waits_for_x87`] and [`FpuState::x87_pending`]; check the
//!    alignment of [`HostOp::alignment`]; copy the memory operand of
//!    [`HostOp::memory`], if read, into [`Scratch::bytes`], or check that it is
//!    writable.
//! 3. Call [`Executor::run`] and act on the [`Outcome`]. On [`Outcome::Done`],
//!    copy a written memory operand from [`Scratch::bytes`] to the guest.
//!
//! Whether the guest's CPUID offers the instruction is the caller's to check
//! (iced's `Instruction::cpuid_features`). EVEX instructions are never taken,
//! nor are those of these features that have general registers only (MOVNTI,
//! CRC32, fences, prefetches).
//!
//! ```
//! use hostexec::{Executor, FpuState, Outcome, Scratch, X87Pointers};
//! use iced_x86::{Decoder, DecoderOptions};
//!
//! let mut executor = Executor::new()?;
//! // paddd xmm1, [rax]
//! let instruction = Decoder::new(64, &[0x66, 0x0f, 0xfe, 0x08], DecoderOptions::NONE).decode();
//! let op = executor.compile(&instruction)?.expect("the host has SSE2");
//!
//! let (mut state, mut scratch) = (FpuState::new(), Scratch::new());
//! state.set_xmm(1, 40);
//! scratch.bytes[..16].copy_from_slice(&2_u128.to_le_bytes());
//! let outcome =
//!     executor.run(&op, &mut state, &mut [0; 16], &mut 0x2, &mut scratch, &X87Pointers::default());
//! assert_eq!((outcome, state.xmm(1)), (Outcome::Done, 42));
//! # Ok::<(), hostexec::HostExecError>(())
//! ```
//!
//! # Parts
//! - [`FpuState`]: the registers; [`image`]: their images in guest memory
//!   (FXSAVE, XSAVE, FNSTENV, FNSAVE);
//! - [`Executor`], [`HostOp`]: native stubs, kept in a buffer that is mapped
//!   once writable and once executable. All unsafe code is in `code_buffer`;
//! - [`memory_operand`], [`alignment_required`], [`Unit`]: what the caller has
//!   to check and to copy;
//! - [`elements`]: gathers and masked moves, which the caller does element by
//!   element because each may fault on its own.

pub mod control;
pub mod elements;
pub mod image;

mod catalogue;
mod code_buffer;
mod error;
mod executor;
mod state;
mod stub;

pub use catalogue::{MemoryOperand, Unit, alignment_required, memory_operand};
pub use error::HostExecError;
pub use executor::{Executor, HostOp, Outcome, Scratch, X87Pointers};
pub use state::{
    FCW_INITIAL, FCW_POWER_ON, FpuState, MXCSR_INITIAL, MXCSR_MASK, STATE_SIZE, component,
};
