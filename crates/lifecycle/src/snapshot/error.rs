//! Why a snapshot could not be written or read.

use std::io;

use state::StateError;
use thiserror::Error;

/// Why a snapshot could not be written or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The directory holds a finished snapshot.
    #[error("{dir} already holds a snapshot; choose another directory or remove it first")]
    Exists {
        /// The directory.
        dir: String,
    },
    /// The directory holds none, or one that was interrupted.
    #[error("{dir} holds no finished snapshot: manifest.json is missing; take the snapshot again")]
    NotFinished {
        /// The directory.
        dir: String,
    },
    /// A file is damaged or truncated.
    #[error("snapshot file {file} is damaged: {cause}; restore another snapshot")]
    Damaged {
        /// The file.
        file: &'static str,
        /// What is wrong with it.
        cause: String,
    },
    /// Written by a newer Ringfence.
    #[error(
        "snapshot format {found} is newer than {known}, the newest this ringfence reads; restore \
         it with the ringfence that saved it or a later one"
    )]
    Newer {
        /// Format of the snapshot.
        found: u64,
        /// Newest format that is understood.
        known: u32,
    },
    /// A snapshot is a difference to one that is not there.
    #[error(
        "snapshot {name} is a difference to snapshot {base}, which is not there; restore another \
         snapshot"
    )]
    NoBase {
        /// The snapshot.
        name: String,
        /// The one that is missing.
        base: String,
    },
    /// No such snapshot in the tree.
    #[error("there is no snapshot {name}; `ringfence snapshot ls` lists what there is")]
    NotFound {
        /// The name.
        name: String,
    },
    /// The name is taken, or cannot be one.
    #[error("a snapshot cannot be called {name:?}: {cause}")]
    BadName {
        /// The name.
        name: String,
        /// What is wrong with it.
        cause: &'static str,
    },
    /// A section of the file `state`.
    #[error("snapshot file state: {0}")]
    State(#[from] StateError),
    /// The host failed.
    #[error("cannot {action} {file}: {cause}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory.
        file: String,
        /// What the host said.
        cause: io::Error,
    },
}

impl SnapshotError {
    pub(super) fn damaged(file: &'static str, cause: impl Into<String>) -> Self {
        Self::Damaged { file, cause: cause.into() }
    }

    pub(super) fn io(action: &'static str, file: &str, cause: impl Into<io::Error>) -> Self {
        Self::Io { action, file: file.to_owned(), cause: cause.into() }
    }
}
