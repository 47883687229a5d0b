//! The PIC's saved form.

use serde::{Deserialize, Serialize};
use state::{Persist, Saved, Section, StateError};

use super::chip::{Chip, Expected};
use super::{CASCADE, LEVEL_CAPABLE, Pic, State};

#[derive(Serialize, Deserialize)]
struct SavedPic {
    master: SavedChip,
    slave: SavedChip,
}

#[derive(Serialize, Deserialize)]
struct SavedChip {
    inputs: u8,
    latched: u8,
    in_service: u8,
    mask: u8,
    level_triggered: u8,
    vector_base: u8,
    cascade: u8,
    first: u8,
    all_level: bool,
    auto_eoi: bool,
    fully_nested: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    poll: bool,
    read_in_service: bool,
    expected: SavedExpected,
    wants_icw4: bool,
    single: bool,
}

#[derive(Serialize, Deserialize)]
enum SavedExpected {
    Mask,
    Icw2,
    Icw3,
    Icw4,
}

impl Saved for SavedPic {
    const KIND: &'static str = "pic";
    const VERSION: u32 = 1;
}

impl From<&Chip> for SavedChip {
    fn from(chip: &Chip) -> Self {
        let &Chip {
            inputs,
            latched,
            in_service,
            mask,
            level_triggered,
            vector_base,
            cascade,
            first,
            all_level,
            auto_eoi,
            fully_nested,
            rotate_on_auto_eoi,
            special_mask,
            poll,
            read_in_service,
            expected,
            wants_icw4,
            single,
        } = chip;
        let expected = match expected {
            Expected::Mask => SavedExpected::Mask,
            Expected::Icw2 => SavedExpected::Icw2,
            Expected::Icw3 => SavedExpected::Icw3,
            Expected::Icw4 => SavedExpected::Icw4,
        };
        Self {
            inputs,
            latched,
            in_service,
            mask,
            level_triggered,
            vector_base,
            cascade,
            first,
            all_level,
            auto_eoi,
            fully_nested,
            rotate_on_auto_eoi,
            special_mask,
            poll,
            read_in_service,
            expected,
            wants_icw4,
            single,
        }
    }
}

impl From<SavedChip> for Chip {
    fn from(saved: SavedChip) -> Self {
        Self {
            inputs: saved.inputs,
            latched: saved.latched,
            in_service: saved.in_service,
            mask: saved.mask,
            level_triggered: saved.level_triggered,
            vector_base: saved.vector_base,
            cascade: saved.cascade,
            first: saved.first,
            all_level: saved.all_level,
            auto_eoi: saved.auto_eoi,
            fully_nested: saved.fully_nested,
            rotate_on_auto_eoi: saved.rotate_on_auto_eoi,
            special_mask: saved.special_mask,
            poll: saved.poll,
            read_in_service: saved.read_in_service,
            expected: match saved.expected {
                SavedExpected::Mask => Expected::Mask,
                SavedExpected::Icw2 => Expected::Icw2,
                SavedExpected::Icw3 => Expected::Icw3,
                SavedExpected::Icw4 => Expected::Icw4,
            },
            wants_icw4: saved.wants_icw4,
            single: saved.single,
        }
    }
}

/// Why `state` is none that a pair of controllers can be in.
fn impossible(state: &State) -> Option<&'static str> {
    let State { master, slave } = state;
    for (chip, capable) in [master, slave].into_iter().zip(LEVEL_CAPABLE) {
        if chip.level_triggered & !capable != 0 {
            return Some("an input is level-triggered that cannot be");
        }
        if chip.vector_base & 7 != 0 || chip.first > 7 {
            return Some("a vector or a priority is out of range");
        }
    }
    let wired = master.inputs & 1 << CASCADE != 0;
    (wired != slave.output()).then_some("the cascade input is not at the slave's output")
}

impl Persist for Pic {
    fn kind(&self) -> &'static str {
        SavedPic::KIND
    }

    fn save(&self, instance: &str) -> Result<Section, StateError> {
        let saved = self.shared.read(|State { master, slave }| SavedPic {
            master: master.into(),
            slave: slave.into(),
        });
        Section::encode(instance, &saved)
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let SavedPic { master, slave } = section.decode()?;
        let restored = State { master: master.into(), slave: slave.into() };
        if let Some(cause) = impossible(&restored) {
            return Err(section.invalid(cause));
        }
        self.shared.update(|state| *state = restored);
        self.shared.publish();
        Ok(())
    }
}
