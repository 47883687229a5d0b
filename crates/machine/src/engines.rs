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
    /// One clause for `doctor` and for the message when it is not the engine to hope for.
    pub reason: String,
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
        let asked = "it was asked for".to_owned();
        Ok(match self {
            Self::Auto => auto(),
            Self::Interpreter => Selected { engine: interpreter(), reason: asked },
            Self::Translator => {
                Selected { engine: Arc::new(translator::Translator::new()?), reason: asked }
            }
            Self::Kvm => return Err(not_yet("kvm")),
        })
    }
}

fn interpreter() -> Arc<dyn Engine> {
    Arc::new(interpreter::Interpreter::new())
}

/// The translator, or the interpreter where the host cannot run translated code.
fn auto() -> Selected {
    match translator::Translator::new() {
        Ok(engine) => Selected {
            engine: Arc::new(engine),
            reason: "it is the fastest that works here".to_owned(),
        },
        Err(error) => Selected { engine: interpreter(), reason: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_the_translator_where_it_works() {
        let expected = match translator::Translator::new() {
            Ok(_) => "translator",
            Err(_) => "interpreter",
        };
        let auto = EngineChoice::Auto.select().unwrap();
        assert_eq!(auto.engine.name(), expected);
        assert!(!auto.reason.is_empty());
        assert_eq!(EngineChoice::Interpreter.select().unwrap().engine.name(), "interpreter");
    }

    #[test]
    fn engines_to_come_are_named() {
        let error = EngineChoice::Kvm.select().err().unwrap().to_string();
        assert!(error.contains("kvm") && error.contains("use --engine"), "{error}");
    }
}
