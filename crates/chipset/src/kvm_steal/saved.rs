//! The saved form of steal time. The structures themselves are in guest memory.

use device::Nanos;
use serde::{Deserialize, Serialize};
use state::{Persist, Saved, Section, StateError};

use super::{Account, RESERVED, StealTime};
use crate::sync::lock;

#[derive(Serialize, Deserialize)]
struct SavedStealTime {
    vcpus: Vec<SavedAccount>,
}

#[derive(Serialize, Deserialize)]
struct SavedAccount {
    msr: u64,
    version: u32,
    steal: Nanos,
}

impl Saved for SavedStealTime {
    const KIND: &'static str = "kvm-steal-time";
    const VERSION: u32 = 1;
}

impl Persist for StealTime {
    fn kind(&self) -> &'static str {
        SavedStealTime::KIND
    }

    fn save(&self, instance: &str) -> Result<Section, StateError> {
        let Self { memory: _, stolen: _, vcpus } = self;
        let saved = |account: &std::sync::Mutex<Account>| {
            let Account { msr, version, steal } = *lock(account);
            SavedAccount { msr, version, steal }
        };
        Section::encode(instance, &SavedStealTime { vcpus: vcpus.iter().map(saved).collect() })
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let SavedStealTime { vcpus } = section.decode()?;
        let (saved, here) = (vcpus.len(), self.vcpus.len());
        if saved != here {
            let cause = format!("it is for {saved} vCPUs and the machine has {here}");
            return Err(section.invalid(cause));
        }
        if vcpus.iter().any(|account| account.msr & RESERVED != 0) {
            return Err(section.invalid("an address is not aligned"));
        }
        for (account, SavedAccount { msr, version, steal }) in self.vcpus.iter().zip(vcpus) {
            *lock(account) = Account { msr, version, steal };
        }
        Ok(())
    }
}
