//! What a VM is started with.

use std::sync::Arc;

use backend::{ConsoleOutput, Disk};
use engine::Engine;
use machine::{BootFiles, MachineSpec, NetPort};

/// What happens on a triple fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TripleFaultPolicy {
    /// The VM ends.
    #[default]
    Stop,
    /// The guest is reset, as on hardware.
    Reset,
}

/// How the VM answers to what the guest does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// A reset ends the VM.
    pub no_reboot: bool,
    /// What happens on a triple fault.
    pub triple_fault: TripleFaultPolicy,
    /// Time in which the VM is paused, or saved and not yet restored, passes for the guest: its
    /// clocks go forward by as much when it goes on, so that its wall clock is right.
    pub catch_up: bool,
}

/// How a VM is restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreOptions {
    /// Memory is mapped instead of read: the VM is there at once and reads what it touches. The
    /// checksums of memory are then not compared; [`crate::SnapshotDir::verify`] does that.
    pub map: bool,
    /// The VM is a copy, and this is its new identity (the VM generation ID).
    pub generation: Option<[u8; 16]>,
}

/// What a VM is started with. All files are open.
pub struct VmConfig {
    /// The machine.
    pub spec: MachineSpec,
    /// What executes the guest.
    pub engine: Arc<dyn Engine>,
    /// Kernel and initramfs. A restored VM needs them only to be reset.
    pub boot: Option<BootFiles>,
    /// Where the guest's console goes.
    pub console: Arc<dyn ConsoleOutput>,
    /// Disks, in the order in which the guest finds them. What the specification says of them is
    /// made from these; those of a restored VM must be like the ones that it had.
    pub disks: Vec<Arc<dyn Disk>>,
    /// Networks, in the order in which the guest finds its cards; as with disks.
    pub nets: Vec<NetPort>,
    /// How the VM answers to what the guest does.
    pub policy: Policy,
}
