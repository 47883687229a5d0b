//! The saved form of fw_cfg. The items are the machine's, and made again with it.

use serde::{Deserialize, Serialize};
use state::{Persist, Saved, Section, StateError};

use super::{FwCfg, State};
use crate::sync::lock;

#[derive(Serialize, Deserialize)]
struct SavedFwCfg {
    selector: u16,
    offset: u32,
    dma_high: u32,
}

impl Saved for SavedFwCfg {
    const KIND: &'static str = "fw-cfg";
    const VERSION: u32 = 1;
}

impl Persist for FwCfg {
    fn kind(&self) -> &'static str {
        SavedFwCfg::KIND
    }

    fn save(&self, instance: &str) -> Result<Section, StateError> {
        let State { selector, offset, dma_high } = *lock(&self.state);
        Section::encode(instance, &SavedFwCfg { selector, offset, dma_high })
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let SavedFwCfg { selector, offset, dma_high } = section.decode()?;
        *lock(&self.state) = State { selector, offset, dma_high };
        Ok(())
    }
}
