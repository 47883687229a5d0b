//! Why saved state could not be written or read.

use thiserror::Error;

/// Why saved state could not be written or read. Each variant names the section that it is about.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StateError {
    /// The payload of a section could not be encoded.
    #[error("section {section}: cannot encode: {cause}")]
    Encode {
        /// `kind/instance` of the section.
        section: String,
        /// What the encoder said.
        cause: String,
    },
    /// The payload of a section is not what its kind and version promise.
    #[error("section {section}: damaged or truncated: {cause}")]
    Decode {
        /// `kind/instance` of the section.
        section: String,
        /// What the decoder said.
        cause: String,
    },
    /// The section was written by a newer Ringfence.
    #[error(
        "section {section}: version {found} is newer than {known}, the newest this Ringfence \
         reads; restore it with the Ringfence that saved it or a later one"
    )]
    NewerVersion {
        /// `kind/instance` of the section.
        section: String,
        /// Version in the file.
        found: u32,
        /// Newest version that is understood.
        known: u32,
    },
    /// A section of another kind stands where this one was expected.
    #[error("section {section}: expected kind {expected}")]
    WrongKind {
        /// `kind/instance` of the section found.
        section: String,
        /// Kind that was asked for.
        expected: &'static str,
    },
    /// No such section in the archive.
    #[error("section {section} is missing: the saved machine has no such part")]
    Missing {
        /// `kind/instance` of the section.
        section: String,
    },
    /// Sections that nothing restored: the machine lacks a part that was saved.
    #[error("section {section} is left over: this machine has no such part")]
    Leftover {
        /// `kind/instance` of the first such section.
        section: String,
    },
    /// Two sections of the same kind and instance.
    #[error("section {section} appears twice")]
    Duplicate {
        /// `kind/instance` of the section.
        section: String,
    },
    /// The bytes are no archive, or a damaged one.
    #[error("saved state is damaged: {cause}")]
    Archive {
        /// What is wrong.
        cause: String,
    },
    /// A value in the section contradicts the machine or the architecture.
    #[error("section {section}: {cause}")]
    Invalid {
        /// `kind/instance` of the section.
        section: String,
        /// Which value, and why it cannot be.
        cause: String,
    },
    /// Reading or writing failed.
    #[error("cannot read or write saved state: {0}")]
    Io(#[from] std::io::Error),
}
