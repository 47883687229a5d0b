//! What keeps a network from being made.

use std::io;

use thiserror::Error;

/// What keeps a network from being made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// A port of the host cannot be listened on.
    #[error(
        "cannot forward {forward}: {cause}; choose another port of the host, or end what uses it"
    )]
    Forward {
        /// The forward as text.
        forward: String,
        /// What the host said.
        cause: io::Error,
    },
    /// The switch can neither be made nor reached.
    #[error("cannot connect to switch {name}: {cause}")]
    Switch {
        /// Its name.
        name: String,
        /// What the host said.
        cause: io::Error,
    },
    /// The host failed.
    #[error("cannot {action}: {cause}")]
    Host {
        /// What was tried, as a verb.
        action: &'static str,
        /// What the host said.
        cause: io::Error,
    },
}
