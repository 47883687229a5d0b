//! Exit statuses. They are fixed: scripts rely on them.

use lifecycle::Outcome;

/// Success, and what a guest that powers off ends with.
pub const SUCCESS: u8 = 0;
/// Ringfence failed.
pub const FAILURE: u8 = 1;
/// Wrong usage.
pub const USAGE: u8 = 2;
/// The guest triple-faulted.
pub const TRIPLE_FAULT: u8 = 3;

/// The status for how the VM ended; none where whoever killed it decides.
pub fn of_outcome(outcome: &Outcome) -> Option<u8> {
    match outcome {
        Outcome::PoweredOff | Outcome::Reset => Some(SUCCESS),
        Outcome::TripleFault(_) => Some(TRIPLE_FAULT),
        // As the conventional device: 8 bits of it reach the parent process.
        Outcome::DebugExit(value) => Some(value << 1 | 1),
        Outcome::Killed => None,
        _ => Some(FAILURE),
    }
}

/// The status of a process that `signal` ended, as shells show it.
pub fn of_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(FAILURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_fixed() {
        assert_eq!(of_outcome(&Outcome::PoweredOff), Some(0));
        assert_eq!(of_outcome(&Outcome::Reset), Some(0));
        assert_eq!(of_outcome(&Outcome::Failed("x".into())), Some(1));
        assert_eq!(of_outcome(&Outcome::Killed), None);
        for (value, status) in [(0, 1), (1, 3), (0x10, 0x21), (0x7f, 0xff), (0x80, 1), (0xff, 0xff)]
        {
            assert_eq!(of_outcome(&Outcome::DebugExit(value)), Some(status));
        }
        assert_eq!([of_signal(15), of_signal(2), of_signal(1)], [143, 130, 129]);
    }
}
