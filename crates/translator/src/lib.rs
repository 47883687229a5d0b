//! The translator engine: binary translation of 64-bit guest code with a translation cache.
//!
//! Guest code is translated block by block ([`translate`]) into host code that keeps most guest
//! registers in host registers ([`registers`]) and the status flags in the host's, checks every
//! memory access against a software TLB in line ([`emit`], [`context`], [`tables`]), and copies
//! instructions otherwise unchanged ([`allow`]). Everything that is not on the allow-list, and
//! every mode but 64-bit code, is executed by the interpreter, which owns the guest's state
//! ([`vcpu`]).
//!
//! Blocks are found by their place in guest RAM ([`blocks`]) and do not depend on the address that
//! they are mapped at: processes share them.
//!
//! Needs BMI2, AVX2 and FSGSBASE on the host.
//! Neighbours: implements `engine`; uses `interpreter`, `memory`, `hostexec` (operand facts).

#![expect(clippy::useless_conversion, reason = "dynasm! converts register numbers, which are u8")]

mod alarm;
mod allow;
mod blocks;
mod cache;
mod context;
mod emit;
mod enter;
mod glue;
mod registers;
mod tables;
mod translate;
mod vcpu;

use engine::{Engine, EngineError, Vcpu, VcpuConfig};

pub use vcpu::TranslatorVcpu;

/// Name of the engine on the command line.
pub(crate) const NAME: &str = "translator";

/// The translator.
#[derive(Clone, Copy, Debug)]
pub struct Translator {
    cache_size: usize,
}

impl Translator {
    /// The engine, with the default code cache of 256 MiB for each vCPU (committed as it fills).
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] naming what the host lacks.
    pub fn new() -> Result<Self, EngineError> {
        Self::with_cache(vcpu::DEFAULT_CACHE)
    }

    /// The engine with a code cache of `bytes` for each vCPU; at least two blocks' worth.
    ///
    /// # Errors
    /// As [`Translator::new`].
    pub fn with_cache(bytes: usize) -> Result<Self, EngineError> {
        let missing = |feature: &str| EngineError::Unsupported {
            engine: NAME,
            missing: format!("this host's CPU or kernel lacks {feature}"),
        };
        if !std::arch::is_x86_feature_detected!("bmi2") {
            return Err(missing("BMI2"));
        }
        if !std::arch::is_x86_feature_detected!("avx2") {
            return Err(missing("AVX2"));
        }
        if !kernel_allows_fsgsbase() {
            return Err(missing("FSGSBASE"));
        }
        Ok(Self { cache_size: bytes })
    }
}

/// The kernel tells by bit 1 of AT_HWCAP2 that user space may use FSGSBASE.
fn kernel_allows_fsgsbase() -> bool {
    const HWCAP2_FSGSBASE: usize = 1 << 1;
    rustix::param::linux_hwcap().1 & HWCAP2_FSGSBASE != 0
}

impl Engine for Translator {
    fn name(&self) -> &'static str {
        NAME
    }

    fn create_vcpu(&self, config: VcpuConfig) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(TranslatorVcpu::new(config, self.cache_size)?))
    }
}
