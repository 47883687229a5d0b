//! The user's side of the guest's console: standard input and output.
//!
//! [`Output`] takes what the guest writes and passes it on from a thread of its own, so that a
//! slow or stopped reader holds up the guest but never Ringfence. [`input::start`] reads standard
//! input, finds the escape keys where it is a terminal ([`escape`]), and offers the rest to the
//! guest. [`terminal`] switches to raw mode and back.

pub mod escape;
pub mod input;
mod output;
pub mod terminal;

pub use output::Output;
