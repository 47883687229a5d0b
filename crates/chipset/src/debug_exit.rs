//! The debug-exit device: a write to port 0xf4 ends the VM (as QEMU's `isa-debug-exit`, which
//! test kernels and test suites use to report their result).
//!
//! Neighbours: `cli` attaches it with `--debug-exit` and makes the exit status `(value << 1) | 1`.

use device::{Answer, Device, PortIo, StopCause, Width};
use serde::{Deserialize, Serialize};
use state::{Persist, Saved, Section, StateError};

/// The device behind [`DebugExit::PORT`]. It has no state.
#[derive(Clone, Copy, Debug, Default)]
pub struct DebugExit;

impl DebugExit {
    /// First port.
    pub const PORT: u16 = 0xf4;
    /// Ports that it takes, so that accesses of every width reach it.
    pub const PORTS: u16 = 4;
}

impl PortIo for DebugExit {
    fn port_read(&self, _port: u16, width: Width) -> Answer<u32> {
        Answer::Done(width.mask())
    }

    fn port_write(&self, port: u16, _width: Width, value: u32) -> Answer<()> {
        if port != Self::PORT {
            return Answer::Done(());
        }
        Answer::StopAfterInstruction((), StopCause::DebugExit { value: value as u8 })
    }
}

#[derive(Serialize, Deserialize)]
struct SavedDebugExit {}

impl Saved for SavedDebugExit {
    const KIND: &'static str = "debug-exit";
    const VERSION: u32 = 1;
}

impl Persist for DebugExit {
    fn kind(&self) -> &'static str {
        SavedDebugExit::KIND
    }

    fn save(&self, instance: &str) -> Result<Section, StateError> {
        let Self = self;
        Section::encode(instance, &SavedDebugExit {})
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let SavedDebugExit {} = section.decode()?;
        Ok(())
    }
}

impl Device for DebugExit {
    fn reset(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hammer::{Random, Subject, access, hammer};

    #[test]
    fn a_write_of_any_width_ends_the_vm() {
        for width in [Width::Byte, Width::Word, Width::Dword] {
            let answer = DebugExit.port_write(0xf4, width, 0xaabb_cc21);
            let cause = StopCause::DebugExit { value: 0x21 };
            assert_eq!(answer, Answer::StopAfterInstruction((), cause));
            assert_eq!(DebugExit.port_read(0xf4, width), Answer::Done(width.mask()));
        }
        assert_eq!(DebugExit.port_write(0xf5, Width::Byte, 1), Answer::Done(()));
    }

    state::conformance!(saves_and_restores, DebugExit, |_: &DebugExit| ());

    impl Subject for DebugExit {
        fn step(&self, random: &mut Random) -> u64 {
            access(self, &[0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8], random)
        }

        fn device(&self) -> &dyn Device {
            self
        }
    }

    #[test]
    fn survives_a_hostile_guest() {
        hammer(0xf4, |_| DebugExit);
    }
}
