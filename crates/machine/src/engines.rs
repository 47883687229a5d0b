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
    /// The engine that this choice means on this host.
    ///
    /// # Errors
    /// [`MachineError::Engine`] when the host lacks what it needs.
    pub fn select(self) -> Result<Selected, MachineError> {
        let asked = "it was asked for".to_owned();
        Ok(match self {
            Self::Auto => auto(KvmOffer::of_this_host()),
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
                 second, slower than the translator; `--engine kvm` gives it user code only",
                millions(speed)
            ),
            Self::Unusable(error) => error.fmt(f),
        }
    }
}

/// What of KVM's features this host has, and what is used: a clause for `doctor`.
///
/// # Errors
/// Why KVM cannot be used.
pub fn kvm_features() -> Result<String, String> {
    Kvm::open().map(|kvm| kvm.features()).map_err(|e| e.to_string())
}

/// What of direct execution, by which the translator runs user code at the CPU's own speed, this
/// host allows: a clause for `doctor`.
///
/// # Errors
/// What the host refuses.
pub fn direct_execution() -> Result<String, String> {
    let allowed = |()| "user code that runs for long executes on the CPU itself".to_owned();
    translator::direct_execution().map(allowed).map_err(|e| e.to_string())
}

/// KVM where it runs guest kernels on the CPU, else the translator, else the interpreter: there the
/// host cannot run translated code.
fn auto(offer: &KvmOffer) -> Selected {
    let without = match offer {
        KvmOffer::Hardware(kvm, _) => {
            return Selected { engine: Arc::new(kvm.clone()), reason: offer.to_string() };
        }
        KvmOffer::Emulated(_) => "/dev/kvm emulates guest kernels",
        KvmOffer::Unusable(KvmError::Missing) => "there is no /dev/kvm",
        KvmOffer::Unusable(KvmError::NoPermission) => "/dev/kvm may not be opened",
        KvmOffer::Unusable(_) => "/dev/kvm cannot be used",
    };
    match translator::Translator::new() {
        Ok(engine) => Selected {
            engine: Arc::new(engine),
            reason: format!("{without}, and the host's CPU runs translated code"),
        },
        Err(error) => Selected { engine: interpreter(), reason: format!("{without}, and {error}") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_hardware_assistance_auto_takes_the_translator_where_it_works() {
        let expected = match translator::Translator::new() {
            Ok(_) => "translator",
            Err(_) => "interpreter",
        };
        for (offer, why) in [
            (KvmOffer::Emulated(1_600_000), "emulates"),
            (KvmOffer::Unusable(KvmError::Missing), "no /dev/kvm"),
            (KvmOffer::Unusable(KvmError::NoPermission), "may not be opened"),
            (KvmOffer::Unusable(KvmError::ApiVersion(11)), "cannot be used"),
        ] {
            let auto = auto(&offer);
            assert_eq!(auto.engine.name(), expected);
            assert!(auto.reason.contains(why), "{}", auto.reason);
        }
        assert_eq!(EngineChoice::Interpreter.select().unwrap().engine.name(), "interpreter");
    }

    #[test]
    fn auto_takes_kvm_where_it_runs_kernels_on_the_cpu() {
        // The offer is made up; the engine that it has must be real.
        match Kvm::open() {
            Ok(kvm) => {
                let auto = auto(&KvmOffer::Hardware(kvm, 500_000_000));
                assert_eq!(auto.engine.name(), "kvm");
                assert!(auto.reason.contains("on the CPU"), "{}", auto.reason);
            }
            Err(error) => eprintln!("skipped: {error}"),
        }
    }

    #[test]
    fn auto_follows_what_was_measured() {
        let expected = match KvmOffer::of_this_host() {
            KvmOffer::Hardware(..) => "kvm",
            KvmOffer::Emulated(_) | KvmOffer::Unusable(_) => match translator::Translator::new() {
                Ok(_) => "translator",
                Err(_) => "interpreter",
            },
        };
        assert_eq!(EngineChoice::Auto.select().unwrap().engine.name(), expected);
    }

    #[test]
    fn kvm_works_or_says_what_is_missing() {
        match EngineChoice::Kvm.select() {
            Ok(selected) => assert_eq!(selected.engine.name(), "kvm"),
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("/dev/kvm") && text.contains("--engine auto"), "{text}");
            }
        }
    }

    #[test]
    fn what_kvm_has_is_told_by_what_is_done_with_it() {
        match kvm_features() {
            Ok(text) => assert!(text.starts_with("used: the dirty log"), "{text}"),
            Err(text) => assert!(text.contains("--engine auto"), "{text}"),
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
