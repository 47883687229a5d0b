//! The two functions that make a PCI bus a q35.

mod host_bridge;
mod lpc;

pub use host_bridge::{HostBridge, ShadowRam};
pub use lpc::{LpcBridge, PIRQS, pirq};
