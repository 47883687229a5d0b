//! The saved form of the ACPI fixed hardware.

use serde::{Deserialize, Serialize};
use state::{Persist, Saved, Section, StateError};

use super::{AcpiPm, GPE_BYTES, State, control, event};

#[derive(Serialize, Deserialize)]
struct SavedAcpiPm {
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: [u8; GPE_BYTES],
    gpe_enable: [u8; GPE_BYTES],
    next_overflow: u64,
}

impl Saved for SavedAcpiPm {
    const KIND: &'static str = "acpi-pm";
    const VERSION: u32 = 1;
}

impl Persist for AcpiPm {
    fn kind(&self) -> &'static str {
        SavedAcpiPm::KIND
    }

    fn save(&self, instance: &str) -> Result<Section, StateError> {
        let State { status, enable, control, gpe_status, gpe_enable, next_overflow } =
            self.shared.state.read(State::clone);
        let saved = SavedAcpiPm { status, enable, control, gpe_status, gpe_enable, next_overflow };
        Section::encode(instance, &saved)
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let SavedAcpiPm { status, enable, control, gpe_status, gpe_enable, next_overflow } =
            section.decode()?;
        let reserved =
            status & !event::STATUS | enable & !event::ENABLE | control & !control::STORED;
        if reserved != 0 {
            return Err(section.invalid("a PM1 register has reserved bits set"));
        }
        let restored = State { status, enable, control, gpe_status, gpe_enable, next_overflow };
        self.shared.state.update(|state| *state = restored);
        self.shared.state.publish();
        self.shared.arm();
        Ok(())
    }
}
