//! Which engine executes the guest.

use std::sync::Arc;

use engine::Engine;

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
    /// One clause for `doctor`.
    pub reason: &'static str,
}

impl EngineChoice {
    /// The engine that this choice means on this host.
    ///
    /// # Errors
    /// [`MachineError::NotYet`]; [`MachineError::Engine`] when the host lacks what it needs.
    pub fn select(self) -> Result<Selected, MachineError> {
        let not_yet = |what: &str| MachineError::NotYet {
            what: format!("--engine {what}"),
            way_out: "use --engine auto or interpreter",
        };
        let interpreter = || Arc::new(interpreter::Interpreter::new());
        Ok(match self {
            Self::Auto => {
                Selected { engine: interpreter(), reason: "the translator is still experimental" }
            }
            Self::Interpreter => Selected { engine: interpreter(), reason: "it was asked for" },
            Self::Translator => Selected {
                engine: Arc::new(translator::Translator::new()?),
                reason: "it was asked for",
            },
            Self::Kvm => return Err(not_yet("kvm")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_the_interpreter() {
        for choice in [EngineChoice::Auto, EngineChoice::Interpreter] {
            assert_eq!(choice.select().unwrap().engine.name(), "interpreter");
        }
    }

    #[test]
    fn engines_to_come_are_named() {
        let error = EngineChoice::Kvm.select().err().unwrap().to_string();
        assert!(error.contains("kvm") && error.contains("use --engine"), "{error}");
    }
}
