//! Which engine executes the guest.

use std::fmt;
use std::sync::{Arc, OnceLock};

use engine::Engine;
use kvm::{Kvm, KvmError, Speed};

use crate::MachineError;

/// An engine, as on the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// The fastest that works here.
    #[default]
    Auto,
    /// Hardware assistance through /dev/kvm.
    Kvm,
    /// Translation to host code.
    Translator,
    /// Interpretation.
    Interpreter,
}

/// An engine with the reason why it was taken.
#[derive(Clone)]
pub struct Selected {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// One clause for `doctor` and for the message when it is not the engine to hope for.
    pub reason: String,
}

impl EngineChoice {
    /// The engine that this choice means on this host, for a VM with `cpus` vCPUs.
    ///
    /// # Errors
    /// [`MachineError::Engine`] when the host lacks what it needs.
    pub fn select(self, cpus: u32) -> Result<Selected, MachineError> {
        let asked = "it was asked for".to_owned();
        Ok(match self {
            Self::Auto => auto(KvmOffer::of_this_host(), cpus),
            Self::Interpreter => Selected { engine: interpreter(), reason: asked },
            Self::Translator => {
                Selected { engine: Arc::new(translator::Translator::new()?), reason: asked }
            }
            Self::Kvm => {
                let kvm = Kvm::open().map_err(engine::EngineError::from)?;
                Selected { engine: Arc::new(kvm), reason: asked }
            }
        })
    }
}

fn interpreter() -> Arc<dyn Engine> {
    Arc::new(interpreter::Interpreter::new())
}

/// What /dev/kvm offers on this host.
pub enum KvmOffer {
    /// It has what the engine needs and runs guest kernels on the CPU, at so many instructions a
    /// second.
    Hardware(Kvm, u64),
    /// It works, but emulates guest kernels, at so many instructions a second.
    Emulated(u64),
    /// It cannot be used.
    Unusable(KvmError),
}

impl KvmOffer {
    /// Opens /dev/kvm and measures it, in some twenty milliseconds at most; the first time only.
    pub fn of_this_host() -> &'static Self {
        static OFFER: OnceLock<KvmOffer> = OnceLock::new();
        OFFER.get_or_init(|| match Kvm::open().and_then(|kvm| Ok((kvm.speed()?, kvm))) {
            Ok((Speed::Hardware(speed), kvm)) => Self::Hardware(kvm, speed),
            Ok((Speed::Emulated(speed), _)) => Self::Emulated(speed),
            Err(error) => Self::Unusable(error),
        })
    }
}

impl fmt::Display for KvmOffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millions = |speed: &u64| *speed as f64 / 1e6;
        match self {
            Self::Hardware(_, speed) => write!(
                f,
                "/dev/kvm runs guest kernels on the CPU, a short loop at {:.0} million \
                 instructions per second",
                millions(speed)
            ),
            Self::Emulated(speed) => write!(
                f,
                "/dev/kvm works, but emulates guest kernels, at {:.1} million instructions per \
                 second; `--engine kvm` gives it user code only",
                millions(speed)
            ),
            Self::Unusable(error) => error.fmt(f),
        }
    }
}

/// KVM where it runs guest kernels on the CPU and the VM has no more vCPUs than its engine can; else
/// the translator; the interpreter where the host cannot run translated code.
fn auto(kvm: &KvmOffer, cpus: u32) -> Selected {
    let without_kvm = match kvm {
        KvmOffer::Hardware(kvm, _) if cpus == 1 => {
            let reason = "/dev/kvm runs guest kernels on the CPU".to_owned();
            return Selected { engine: Arc::new(kvm.clone()), reason };
        }
        KvmOffer::Hardware(..) => "the kvm engine has only one vCPU yet",
        KvmOffer::Emulated(_) => "/dev/kvm emulates guest kernels",
        KvmOffer::Unusable(_) => "/dev/kvm cannot be used",
    };
    match translator::Translator::new() {
        Ok(engine) => Selected { engine: Arc::new(engine), reason: without_kvm.to_owned() },
        Err(error) => {
            Selected { engine: interpreter(), reason: format!("{without_kvm}, and {error}") }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_kvm_only_where_it_runs_kernels_on_the_cpu() {
        let software = match translator::Translator::new() {
            Ok(_) => "translator",
            Err(_) => "interpreter",
        };
        for offer in [KvmOffer::Emulated(3_000_000), KvmOffer::Unusable(KvmError::Missing)] {
            let auto = auto(&offer, 1);
            assert_eq!(auto.engine.name(), software);
            assert!(auto.reason.contains("/dev/kvm"), "{}", auto.reason);
        }
        let Ok(kvm) = Kvm::open() else {
            eprintln!("SKIPPED the part with KVM: it cannot be opened here");
            return;
        };
        let offer = KvmOffer::Hardware(kvm, 500_000_000);
        assert_eq!(auto(&offer, 1).engine.name(), "kvm");
        assert_eq!(auto(&offer, 2).engine.name(), software);
    }

    #[test]
    fn the_interpreter_is_there_everywhere() {
        let selected = EngineChoice::Interpreter.select(4).unwrap();
        assert_eq!(selected.engine.name(), "interpreter");
    }

    #[test]
    fn kvm_works_or_says_what_is_missing() {
        match EngineChoice::Kvm.select(1) {
            Ok(selected) => assert_eq!(selected.engine.name(), "kvm"),
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("/dev/kvm") && text.contains("--engine auto"), "{text}");
            }
        }
    }

    #[test]
    fn the_offer_says_why() {
        let emulated = KvmOffer::Emulated(1_600_000).to_string();
        assert!(emulated.contains("emulates") && emulated.contains("1.6 million"), "{emulated}");
        let denied = KvmOffer::Unusable(KvmError::NoPermission).to_string();
        assert!(denied.contains("/dev/kvm") && denied.contains("group"), "{denied}");
    }
}
