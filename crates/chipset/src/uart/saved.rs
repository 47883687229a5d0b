//! The UART's saved form.

use serde::{Deserialize, Serialize};
use state::{Persist, Saved, Section, StateError};

use super::registers::{Fcr, Ier, Lsr, Mcr};
use super::{BACKLOG, State, Uart};

#[derive(Serialize, Deserialize)]
struct SavedUart {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    lsr_errors: u8,
    msr_deltas: u8,
    scratch: u8,
    divisor: u16,
    thre_pending: bool,
    fifo: Vec<u8>,
    backlog: Vec<u8>,
}

impl Saved for SavedUart {
    const KIND: &'static str = "uart";
    const VERSION: u32 = 1;
}

impl From<&State> for SavedUart {
    fn from(state: &State) -> Self {
        let State {
            ier,
            fcr,
            lcr,
            mcr,
            lsr_errors,
            msr_deltas,
            scratch,
            divisor,
            thre_pending,
            fifo,
            backlog,
        } = state.clone();
        let (fifo, backlog) = (fifo.into(), backlog.into());
        Self {
            ier,
            fcr,
            lcr,
            mcr,
            lsr_errors,
            msr_deltas,
            scratch,
            divisor,
            thre_pending,
            fifo,
            backlog,
        }
    }
}

impl From<SavedUart> for State {
    fn from(saved: SavedUart) -> Self {
        Self {
            ier: saved.ier,
            fcr: saved.fcr,
            lcr: saved.lcr,
            mcr: saved.mcr,
            lsr_errors: saved.lsr_errors,
            msr_deltas: saved.msr_deltas,
            scratch: saved.scratch,
            divisor: saved.divisor,
            thre_pending: saved.thre_pending,
            fifo: saved.fifo.into(),
            backlog: saved.backlog.into(),
        }
    }
}

/// Why `state` is none that a UART can be in.
fn impossible(state: &State) -> Option<&'static str> {
    let State { ier, fcr, lcr: _, mcr, lsr_errors, msr_deltas, .. } = state;
    if ier & !Ier::ALL != 0 || fcr & !Fcr::STORED != 0 || mcr & !Mcr::ALL != 0 {
        return Some("a control register has reserved bits set");
    }
    if lsr_errors & !Lsr::OVERRUN != 0 || msr_deltas & 0xf0 != 0 {
        return Some("a status register has bits set that are derived");
    }
    if state.fifo.len() > state.fifo_depth() || state.backlog.len() > BACKLOG {
        return Some("more bytes are waiting than fit");
    }
    None
}

impl Persist for Uart {
    fn kind(&self) -> &'static str {
        SavedUart::KIND
    }

    fn save(&self, instance: &str) -> Result<Section, StateError> {
        Section::encode(instance, &self.state.read(|state| SavedUart::from(state)))
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let restored = State::from(section.decode::<SavedUart>()?);
        if let Some(cause) = impossible(&restored) {
            return Err(section.invalid(cause));
        }
        self.state.update(|state| *state = restored);
        self.state.publish();
        Ok(())
    }
}
