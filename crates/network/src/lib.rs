//! Networks behind virtual network cards.
//!
//! A [`backend::NetBackend`] is what a guest's card is connected to. [`UserNet`] needs nothing of
//! the host: it ends the guest's connections and goes on with the host's sockets. A
//! [`SwitchNet`] connects the VMs of one user. A [`Filter`] and a [`Capture`] stand before any network.
//!
//! Neighbours: `virtio` has the card; `machine` connects the two; the command line makes networks.
//!
//! Invariants:
//! - Frames of guests and of peers are hostile: what makes no sense is dropped and counted.
//! - No method that a card calls waits for anybody for longer than a fraction of a second.

#![forbid(unsafe_code)]

mod capture;
mod counters;
mod error;
mod filter;
mod frames;
mod headers;
mod queue;
mod switch;
mod user;

pub use capture::{Capture, CaptureFile};
pub use error::NetworkError;
pub use filter::{Filter, Rules, RulesError};
pub use switch::{SwitchConfig, SwitchNet};
pub use user::{Forward, SaveLeases, Transport, UserConfig, UserNet};
