//! The I/O APIC's saved form.

use serde::{Deserialize, Serialize};
use state::{Persist, Saved, Section, StateError};

use super::entry::Entry;
use super::{ID_MASK, INPUTS, IoApic, State};
use crate::sync::lock;

#[derive(Serialize, Deserialize)]
struct SavedIoApic {
    select: u8,
    id: u32,
    asserted: u32,
    entries: [u64; INPUTS],
}

impl Saved for SavedIoApic {
    const KIND: &'static str = "ioapic";
    const VERSION: u32 = 1;
}

impl Persist for IoApic {
    fn kind(&self) -> &'static str {
        SavedIoApic::KIND
    }

    fn save(&self, instance: &str) -> Result<Section, StateError> {
        let State { select, id, asserted, entries } = lock(&self.shared.state).clone();
        let entries = entries.map(Entry::bits);
        Section::encode(instance, &SavedIoApic { select, id, asserted, entries })
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let SavedIoApic { select, id, asserted, entries } = section.decode()?;
        if asserted >> INPUTS != 0 || id & !ID_MASK != 0 {
            return Err(section.invalid("an input or identifier is out of range"));
        }
        let mut restored = State { select, id, asserted, ..State::new() };
        for (entry, bits) in restored.entries.iter_mut().zip(entries) {
            *entry = Entry::from_bits(bits)
                .ok_or_else(|| section.invalid("a redirection entry has reserved bits set"))?;
        }
        *lock(&self.shared.state) = restored;
        Ok(())
    }
}
