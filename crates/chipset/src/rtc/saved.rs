//! The saved form of the real-time clock.

use serde::{Deserialize, Serialize};
use state::{Persist, Saved, Section, StateError};

use super::cells::{Cells, REGISTER_A, REGISTER_C, REGISTER_D};
use super::{LARGEST_OFFSET, Rtc, SECOND, State, a, flag};
use crate::sync::arm;

#[derive(Serialize, Deserialize)]
struct SavedRtc {
    index: u8,
    nmi_masked: bool,
    cells: Vec<u8>,
    offset_seconds: i64,
    offset_nanos: u32,
    seen_second: i64,
    seen_tick: u64,
}

impl Saved for SavedRtc {
    const KIND: &'static str = "rtc";
    const VERSION: u32 = 1;
}

impl From<State> for SavedRtc {
    fn from(state: State) -> Self {
        // The deadline follows from the clocks after the restore.
        let State { index, nmi_masked, cells, offset, seen_second, seen_tick, deadline: _ } = state;
        Self {
            index,
            nmi_masked,
            cells: cells.bytes().to_vec(),
            offset_seconds: offset.div_euclid(SECOND) as i64,
            offset_nanos: offset.rem_euclid(SECOND) as u32,
            seen_second,
            seen_tick,
        }
    }
}

impl SavedRtc {
    fn restore(self) -> Result<State, &'static str> {
        let Self { index, nmi_masked, cells, offset_seconds, offset_nanos, seen_second, seen_tick } =
            self;
        let cells = cells.try_into().map_err(|_| "CMOS memory has another size")?;
        let cells = Cells::from_bytes(cells);
        if index & 0x80 != 0
            || cells[REGISTER_A] & a::UIP != 0
            || cells[REGISTER_C] & !flag::SOURCES != 0
            || cells[REGISTER_D] != 0x80
        {
            return Err("a register has bits set that it cannot have");
        }
        let range = -LARGEST_OFFSET..=LARGEST_OFFSET;
        let seen = -2 * LARGEST_OFFSET..=2 * LARGEST_OFFSET;
        if !range.contains(&offset_seconds)
            || !seen.contains(&seen_second)
            || i128::from(offset_nanos) >= SECOND
        {
            return Err("the time is out of range");
        }
        let offset = i128::from(offset_seconds) * SECOND + i128::from(offset_nanos);
        Ok(State { index, nmi_masked, cells, offset, seen_second, seen_tick, deadline: None })
    }
}

impl Persist for Rtc {
    fn kind(&self) -> &'static str {
        SavedRtc::KIND
    }

    fn save(&self, instance: &str) -> Result<Section, StateError> {
        Section::encode(instance, &SavedRtc::from(self.shared.state.read(State::clone)))
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let restored = section.decode::<SavedRtc>()?.restore();
        let restored = restored.map_err(|cause| section.invalid(cause))?;
        // What became due meanwhile, such as an alarm while the VM was suspended, is noticed when
        // time goes on, not before: until then the same is saved again.
        let now = self.shared.clock.now();
        self.shared.state.update(|state| *state = State { deadline: Some(now), ..restored });
        arm(&*self.shared.timer, || Some(now));
        self.shared.state.publish();
        Ok(())
    }
}
