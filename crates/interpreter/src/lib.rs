//! The interpreter engine: the readable reference for every behaviour of the CPU.
//!
//! Guest code is decoded once into blocks of small ops ([`blocks`]), each with a handler that was
//! picked for its operand kinds and widths; the loop in [`vcpu`] calls one handler after the
//! other. Arithmetic flags are kept unevaluated ([`flags`]), memory goes through a software TLB
//! ([`tlb`], [`access`]), and vector and x87 arithmetic is executed by the host CPU on operands
//! copied in (crate `hostexec`).
//!
//! - [`cpu`]: registers and the primitives of every instruction;
//! - [`events`], [`interrupts`], [`debug`]: what happens between instructions; [`task`]: hardware
//!   task switches;
//! - [`ops`]: the instructions by family; [`fpu`]: vectors and x87;
//! - [`decode`], [`features`], [`op`]: from bytes to ops;
//! - [`saved`]: to and from `engine::VcpuState`.
//!
//! Rules: an instruction either completes or leaves no trace but accessed bits and what the
//! manual allows (`Err(Raised)`); registers are written last. An instruction that is not
//! implemented raises #UD and is counted, it is never guessed.
//!
//! Specification: Intel SDM; where vendors differ, the profile's vendor decides.
//! Neighbours: implements `engine`; uses `memory`, `paging`, `lapic`, `hostexec`.

#![forbid(unsafe_code)]

mod access;
mod alarm;
mod blocks;
mod carry;
mod cpu;
mod debug;
mod decode;
mod direct;
mod events;
mod fallback;
mod features;
mod flags;
mod fpu;
mod interrupts;
mod msrs;
mod op;
mod ops;
mod saved;
mod sharing;
mod task;
mod tlb;
mod vcpu;

use engine::{Engine, EngineError, Vcpu, VcpuConfig};

pub use alarm::Alarm;
pub use direct::UserPage;
pub use fallback::{AccessMode, CARRIED_FLAGS, FoundPage, Kept, Registers, SystemState};
pub use ops::flow::condition_number;
pub use tlb::TlbChange;
pub use vcpu::InterpreterVcpu;

/// Name of the engine on the command line.
pub(crate) const NAME: &str = "interpreter";

/// The interpreter.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interpreter;

impl Interpreter {
    /// The engine; it holds nothing of its own.
    pub const fn new() -> Self {
        Self
    }
}

impl Engine for Interpreter {
    fn name(&self) -> &'static str {
        NAME
    }

    fn create_vcpu(&self, config: VcpuConfig) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(InterpreterVcpu::new(config)?))
    }
}
