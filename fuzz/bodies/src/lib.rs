//! What the fuzz targets do with an input.
//!
//! One function for each target ([`TARGETS`]): it takes any bytes, does with them what a hostile
//! guest or file could do, and panics only when Ringfence breaks a promise. `fuzz/fuzz_targets`
//! hands the inputs of libFuzzer to them; the tests of this package hand them seeded random ones,
//! so that a stable compiler checks the same on every run.
//!
//! Neighbours: `cargo xtask fuzz` runs the targets; docs/testing.md says how.

#![forbid(unsafe_code)]

mod disk_images;
mod fw_cfg;
mod input;
mod interpreter_step;
mod interrupts;
mod kernel_loader;
mod networks;
mod page_walk;
mod pci_config;
mod saved_state;
mod snapshots;
mod virtqueue;

pub use disk_images::{boot_disk, disk_import};
pub use fw_cfg::fw_cfg;
pub use input::Input;
pub use interpreter_step::interpreter_step;
pub use interrupts::interrupts;
pub use kernel_loader::kernel_loader;
pub use networks::{packet_filter, user_network};
pub use page_walk::page_walk;
pub use pci_config::pci_config;
pub use saved_state::saved_state;
pub use snapshots::snapshots;
pub use virtqueue::virtqueue;

/// A fuzz target: its name and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 13] = [
    ("boot_disk", boot_disk),
    ("disk_import", disk_import),
    ("fw_cfg", fw_cfg),
    ("interpreter_step", interpreter_step),
    ("interrupts", interrupts),
    ("kernel_loader", kernel_loader),
    ("packet_filter", packet_filter),
    ("page_walk", page_walk),
    ("pci_config", pci_config),
    ("saved_state", saved_state),
    ("snapshots", snapshots),
    ("user_network", user_network),
    ("virtqueue", virtqueue),
];
