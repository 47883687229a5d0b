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
    /// [`MachineError::NotYet`].
    pub fn select(self) -> Result<Selected, MachineError> {
        let not_yet = |what: &str| MachineError::NotYet {
            what: format!("--engine {what}"),
            way_out: "use --engine auto or interpreter",
        };
        let reason = match self {
            Self::Auto => "it is the only engine of this version",
            Self::Interpreter => "it was asked for",
            Self::Kvm => return Err(not_yet("kvm")),
            Self::Translator => return Err(not_yet("translator")),
        };
        Ok(Selected { engine: Arc::new(interpreter::Interpreter::new()), reason })
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
        for (choice, name) in [(EngineChoice::Kvm, "kvm"), (EngineChoice::Translator, "translator")]
        {
            let error = choice.select().err().unwrap().to_string();
            assert!(error.contains(name) && error.contains("use --engine"), "{error}");
        }
    }
}
