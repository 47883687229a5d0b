//! The saved form of the paravirtual clock. The structures themselves are in guest memory.

use device::Nanos;
use serde::{Deserialize, Serialize};
use state::{Persist, Saved, Section, StateError};

use super::{KvmClock, State, VcpuClock};
use crate::sync::lock;

#[derive(Serialize, Deserialize)]
struct SavedKvmClock {
    wall_clock: u64,
    wall_version: u32,
    moment: Option<Nanos>,
    vcpus: Vec<SavedVcpuClock>,
}

#[derive(Serialize, Deserialize)]
struct SavedVcpuClock {
    system_time: u64,
    version: u32,
}

impl Saved for SavedKvmClock {
    const KIND: &'static str = "kvm-clock";
    const VERSION: u32 = 1;
}

impl Persist for KvmClock {
    fn kind(&self) -> &'static str {
        SavedKvmClock::KIND
    }

    fn save(&self, instance: &str) -> Result<Section, StateError> {
        let State { wall_clock, wall_version, moment, vcpus } = lock(&self.state).clone();
        let vcpus = vcpus
            .into_iter()
            .map(|VcpuClock { system_time, version }| SavedVcpuClock { system_time, version })
            .collect();
        Section::encode(instance, &SavedKvmClock { wall_clock, wall_version, moment, vcpus })
    }

    /// The machine calls [`KvmClock::refresh`] afterwards.
    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let SavedKvmClock { wall_clock, wall_version, moment, vcpus } = section.decode()?;
        let vcpus: Vec<_> = vcpus
            .into_iter()
            .map(|SavedVcpuClock { system_time, version }| VcpuClock { system_time, version })
            .collect();
        let mut state = lock(&self.state);
        let (saved, here) = (vcpus.len(), state.vcpus.len());
        if saved != here {
            let cause = format!("it is for {saved} vCPUs and the machine has {here}");
            return Err(section.invalid(cause));
        }
        *state = State { wall_clock, wall_version, moment, vcpus };
        Ok(())
    }
}
