//! Saved state: what a device, a vCPU or a machine writes when it is suspended.
//!
//! A component saves itself as one [`Section`]: a kind, an instance, a version and a payload in
//! self-describing named-map encoding (MessagePack). Sections travel in an [`Archive`], which is
//! what the file `state` of a snapshot and a migration stream hold. Saved types are not runtime
//! types: each component has a `Saved` struct of its own, filled by exhaustive destructuring, so
//! that a new field does not compile until it is saved.
//!
//! Key types: [`Saved`] (a payload type), [`Section`], [`Archive`], [`Persist`] (a component that
//! saves and restores), [`StateError`]. The macro [`conformance!`] tests any [`Persist`].
//!
//! Neighbours: `lapic`, `device`, `engine` define saved types; `machine` collects them;
//! `lifecycle` writes the archive to disk.
//!
//! Everything read here may come from a hostile peer: sizes are bounded, checksums are compared,
//! a newer version, an unknown or a leftover section is an error that names the section.

#![forbid(unsafe_code)]

mod archive;
mod conformance;
mod error;
mod section;

pub use archive::Archive;
pub use conformance::check_conformance;
pub use error::StateError;
pub use section::{Persist, Saved, Section};
