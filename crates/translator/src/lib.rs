//! The translator engine: binary translation of guest code, 64-bit and 32-bit ([`mod@mode`]), with a
//! translation cache.
//!
//! Guest code is translated block by block ([`translate`]) into host code that keeps most guest
//! registers in host registers ([`registers`]) and the status flags in the host's, checks every
//! memory access against a software TLB in line ([`emit`], [`context`], [`tables`]), and copies
//! instructions otherwise unchanged ([`allow`]). Everything that is not on the allow-list, and
//! every other mode, is executed by the interpreter, which owns the guest's state
//! ([`vcpu`]).
//!
//! Blocks are found by their place in guest RAM ([`blocks`]) and do not depend on the address that
//! they are mapped at: processes share them.
//!
//! User code that runs for long is executed by the host CPU itself ([`mod@direct`]).
//!
//! Needs BMI2 and AVX2 on the host.
//! Neighbours: implements `engine`; uses `interpreter`, `memory`, `hostexec` (operand facts).

#![expect(clippy::useless_conversion, reason = "dynasm! converts register numbers, which are u8")]

mod allow;
mod blocks;
mod branches;
mod cache;
mod context;
mod copied;
#[cfg(test)]
mod differential;
mod direct;
mod dump;
mod elements;
mod emit;
mod enter;
mod exits;
mod glue;
#[cfg(test)]
mod hostile;
mod mode;
mod plan;
mod records;
mod registers;
mod special;
mod statistics;
mod strings;
mod tables;
mod translate;
mod vcpu;
mod verify;

use engine::{Engine, EngineError, Vcpu, VcpuConfig};

pub use ::direct::DirectError;
pub use direct::DirectPolicy;
pub use dump::{DumpOptions, dump_block};
pub use vcpu::TranslatorVcpu;

/// Name of the engine on the command line.
pub(crate) const NAME: &str = "translator";

/// What can be chosen about the engine.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Size of the code cache of each vCPU, in bytes; at least two blocks' worth. It is committed
    /// as it fills; when it is full it starts empty.
    pub cache_bytes: usize,
    /// Longest block, in instructions, at least 1.
    pub longest_block: u32,
    /// When user code is executed by the host CPU itself.
    pub direct: DirectPolicy,
}

impl Default for Options {
    /// 256 MiB; 256 instructions.
    fn default() -> Self {
        Self {
            cache_bytes: 256 << 20,
            longest_block: translate::MAX_INSTRUCTIONS,
            direct: DirectPolicy::default(),
        }
    }
}

/// The translator.
#[derive(Clone, Copy, Debug)]
pub struct Translator {
    options: Options,
}

impl Translator {
    /// The engine with the default options.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] naming what the host lacks.
    pub fn new() -> Result<Self, EngineError> {
        Self::with_options(Options::default())
    }

    /// The engine.
    ///
    /// # Errors
    /// As [`Translator::new`].
    pub fn with_options(options: Options) -> Result<Self, EngineError> {
        let missing = |feature: &str| EngineError::Unsupported {
            engine: NAME,
            missing: format!("this host's CPU lacks {feature}"),
        };
        if !std::arch::is_x86_feature_detected!("bmi2") {
            return Err(missing("BMI2"));
        }
        if !std::arch::is_x86_feature_detected!("avx2") {
            return Err(missing("AVX2"));
        }
        Ok(Self { options })
    }
}

/// Whether this host allows user code to be executed directly, whatever [`Options`] say: tries it,
/// in about a millisecond.
///
/// # Errors
/// [`DirectError`] naming what the host refuses.
pub fn direct_execution() -> Result<(), DirectError> {
    ::direct::probe()
}

impl Engine for Translator {
    fn name(&self) -> &'static str {
        NAME
    }

    fn create_vcpu(&self, config: VcpuConfig) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(TranslatorVcpu::new(config, &self.options)?))
    }
}
