//! The keyboard controller's saved form.

use serde::{Deserialize, Serialize};
use state::{Persist, Saved, Section, StateError};

use super::{I8042, OUTPUT_DEPTH, Output, State, reset_control};
use crate::sync::lock;

#[derive(Serialize, Deserialize)]
struct SavedI8042 {
    memory: [u8; 32],
    awaiting: Option<u8>,
    output: Vec<SavedOutput>,
    self_tested: bool,
    last_was_command: bool,
    a20: bool,
    reset_control: u8,
}

#[derive(Serialize, Deserialize)]
struct SavedOutput {
    byte: u8,
    auxiliary: bool,
    timed_out: bool,
}

impl Saved for SavedI8042 {
    const KIND: &'static str = "i8042";
    const VERSION: u32 = 1;
}

impl From<Output> for SavedOutput {
    fn from(Output { byte, auxiliary, timed_out }: Output) -> Self {
        Self { byte, auxiliary, timed_out }
    }
}

impl From<SavedOutput> for Output {
    fn from(SavedOutput { byte, auxiliary, timed_out }: SavedOutput) -> Self {
        Self { byte, auxiliary, timed_out }
    }
}

impl From<State> for SavedI8042 {
    fn from(state: State) -> Self {
        let State { memory, awaiting, output, self_tested, last_was_command, a20, reset_control } =
            state;
        let output = output.into_iter().map(SavedOutput::from).collect();
        Self { memory, awaiting, output, self_tested, last_was_command, a20, reset_control }
    }
}

impl From<SavedI8042> for State {
    fn from(saved: SavedI8042) -> Self {
        Self {
            memory: saved.memory,
            awaiting: saved.awaiting,
            output: saved.output.into_iter().map(Output::from).collect(),
            self_tested: saved.self_tested,
            last_was_command: saved.last_was_command,
            a20: saved.a20,
            reset_control: saved.reset_control,
        }
    }
}

/// Why `state` is none that a controller can be in.
fn impossible(state: &State) -> Option<&'static str> {
    if state.output.len() > OUTPUT_DEPTH {
        return Some("more bytes are waiting than fit");
    }
    if !matches!(state.awaiting, None | Some(0x60..=0x7f | 0xd1..=0xd4)) {
        return Some("a command awaits data that takes none");
    }
    (state.reset_control & !reset_control::STORED != 0)
        .then_some("port 0xcf9 has reserved bits set")
}

impl Persist for I8042 {
    fn kind(&self) -> &'static str {
        SavedI8042::KIND
    }

    fn save(&self, instance: &str) -> Result<Section, StateError> {
        let state = lock(&self.state).clone();
        Section::encode(instance, &SavedI8042::from(state))
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let restored = State::from(section.decode::<SavedI8042>()?);
        if let Some(cause) = impossible(&restored) {
            return Err(section.invalid(cause));
        }
        *lock(&self.state) = restored;
        self.publish();
        Ok(())
    }
}
