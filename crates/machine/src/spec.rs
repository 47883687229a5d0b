//! What a machine is to be: the specification that a snapshot records.

use std::sync::Arc;

use backend::{Disk, MacAddress, NetBackend};
use engine::{CpuProfile, Level};
use serde::{Deserialize, Serialize};

use crate::pci_bus::{MAX_DISKS, MAX_NETS};
use crate::{MachineError, host};

/// The most vCPUs of a machine.
pub const MAX_CPUS: u32 = 64;

/// Kind of machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Platform {
    /// A PC in the shape of q35.
    #[default]
    Pc,
}

/// What CPU the guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum CpuLevel {
    /// The highest level that this host offers.
    #[default]
    Portable,
    /// x86-64-v2.
    V2,
    /// x86-64-v3.
    V3,
}

impl CpuLevel {
    /// The profile of this level on this host.
    ///
    /// # Errors
    /// [`MachineError::Profile`] when the host lacks a feature of it.
    pub fn profile(self) -> Result<CpuProfile, MachineError> {
        let (vendor, khz) = (host::vendor(), host::tsc_khz());
        let profile = match self {
            Self::Portable => CpuProfile::portable(vendor, khz, &host::has),
            Self::V2 => CpuProfile::new(Level::V2, vendor, khz, &host::has),
            Self::V3 => CpuProfile::new(Level::V3, vendor, khz, &host::has),
        };
        Ok(profile?)
    }
}

/// What a machine is to be. Which engine executes it is not part of it: a machine may change
/// engines while it is saved.
///
/// ```
/// let spec = machine::MachineSpec::new(512 << 20);
/// assert_eq!((spec.cpus, spec.platform), (1, machine::Platform::Pc));
/// spec.check()?;
/// # Ok::<(), machine::MachineError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineSpec {
    /// Kind of machine.
    pub platform: Platform,
    /// Guest RAM in bytes.
    pub memory: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// What CPU the guest sees.
    pub cpu: CpuLevel,
    /// Command line of the kernel.
    pub cmdline: String,
    /// Whether there is a debug-exit device at port 0xf4.
    pub debug_exit: bool,
    /// Disks, in the order in which the guest finds them.
    #[serde(default)]
    pub disks: Vec<DiskSpec>,
    /// Network cards, in the order in which the guest finds them.
    #[serde(default)]
    pub nets: Vec<NetSpec>,
}

/// A network card, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetSpec {
    /// Its address.
    pub mac: MacAddress,
    /// The largest IP packet in bytes, if it says so.
    pub mtu: Option<u16>,
}

impl NetSpec {
    /// What the guest sees of `port`.
    pub fn of(port: &NetPort) -> Self {
        Self { mac: port.mac, mtu: port.backend.mtu() }
    }
}

/// A network that a machine is connected to.
#[derive(Clone)]
pub struct NetPort {
    /// Address of the guest's card.
    pub mac: MacAddress,
    /// The network.
    pub backend: Arc<dyn NetBackend>,
}

/// A disk, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// Bytes.
    pub size: u64,
    /// Whether it can only be read.
    pub read_only: bool,
}

impl DiskSpec {
    /// What the guest sees of `disk`.
    pub fn of(disk: &dyn Disk) -> Self {
        Self { size: disk.len(), read_only: disk.is_read_only() }
    }
}

impl MachineSpec {
    /// A `pc` with one CPU, `memory` bytes of RAM and nothing optional.
    pub fn new(memory: u64) -> Self {
        Self {
            platform: Platform::Pc,
            memory,
            cpus: 1,
            cpu: CpuLevel::Portable,
            cmdline: String::new(),
            debug_exit: false,
            disks: Vec::new(),
            nets: Vec::new(),
        }
    }

    /// Whether this version and this host can make such a machine.
    ///
    /// # Errors
    /// [`MachineError::NoCpus`], [`MachineError::TooManyCpus`], [`MachineError::TooManyDisks`],
    /// [`MachineError::TooManyNets`], [`MachineError::MoreThanHost`]; sizes that no host could have are `boot`'s to refuse.
    pub fn check(&self) -> Result<(), MachineError> {
        match self.cpus {
            0 => return Err(MachineError::NoCpus),
            1..=MAX_CPUS => {}
            count => return Err(MachineError::TooManyCpus { count, most: MAX_CPUS }),
        }
        if self.disks.len() > MAX_DISKS {
            let count = self.disks.len();
            return Err(MachineError::TooManyDisks { count, most: MAX_DISKS });
        }
        if self.nets.len() > MAX_NETS {
            let count = self.nets.len();
            return Err(MachineError::TooManyNets { count, most: MAX_NETS });
        }
        boot::MemoryMap::new(self.memory)?;
        let host = host::memory()
            .map_err(|cause| MachineError::Host { action: "read /proc/meminfo", cause })?;
        fits(self.memory, host)
    }
}

fn fits(asked: u64, host: u64) -> Result<(), MachineError> {
    if asked <= host {
        return Ok(());
    }
    Err(MachineError::MoreThanHost { asked_mib: asked.div_ceil(1 << 20), host_mib: host >> 20 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(spec: &MachineSpec) -> String {
        spec.check().unwrap_err().to_string()
    }

    #[test]
    fn memory_is_bounded_by_the_platform_and_by_the_host() {
        assert!(message(&MachineSpec::new(0)).contains("too little"));
        assert!(message(&MachineSpec::new(u64::MAX)).contains("too much"));
        assert!(message(&MachineSpec::new(8 << 40)).contains("more than this host has"));
        assert!(fits(1 << 30, 1 << 30).is_ok());
        let error = fits((1 << 30) + 1, 1 << 30).unwrap_err().to_string();
        assert!(error.contains("1025 MiB") && error.contains("1024 MiB"), "{error}");
    }

    #[test]
    fn the_number_of_cpus_is_bounded() {
        let with = |cpus| MachineSpec { cpus, ..MachineSpec::new(64 << 20) };
        assert!(message(&with(0)).contains("at least 1"));
        assert!(message(&with(MAX_CPUS + 1)).contains("65 CPUs"));
        assert!(with(1).check().is_ok() && with(MAX_CPUS).check().is_ok());
    }

    #[test]
    fn disks_are_bounded_by_the_slots() {
        let disk = DiskSpec { size: 512, read_only: false };
        let with = |count| MachineSpec { disks: vec![disk; count], ..MachineSpec::new(64 << 20) };
        assert!(with(MAX_DISKS).check().is_ok());
        assert!(message(&with(MAX_DISKS + 1)).contains("--disk"));
    }

    #[test]
    fn a_spec_is_readable_and_strict() {
        let json = serde_json::to_string(&MachineSpec::new(64 << 20)).unwrap();
        assert!(json.contains(r#""platform":"pc""#) && json.contains(r#""cpu":"portable""#));
        assert_eq!(serde_json::from_str::<MachineSpec>(&json).unwrap(), MachineSpec::new(64 << 20));
        let unknown = json.replace("cmdline", "command");
        assert!(serde_json::from_str::<MachineSpec>(&unknown).is_err());
    }

    #[test]
    fn every_host_has_a_portable_profile() {
        let profile = CpuLevel::Portable.profile().unwrap();
        assert_eq!(profile.tsc_khz(), host::tsc_khz());
        assert_eq!(CpuLevel::V2.profile().unwrap().name(), "v2");
    }
}
