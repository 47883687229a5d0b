//! What gdb's `monitor` does here.

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Help,
    Reset,
    Kill,
    PowerButton,
}

pub(crate) const HELP: &str = "\
monitor reset   reset the guest, which boots anew when it goes on
monitor power   press the power button
monitor kill    end the VM at once
monitor help    this";

/// The command that a debugger's user typed.
pub(crate) fn parse(text: &[u8]) -> Option<Command> {
    match text.trim_ascii() {
        b"help" | b"" => Some(Command::Help),
        b"reset" => Some(Command::Reset),
        b"kill" | b"quit" => Some(Command::Kill),
        b"power" => Some(Command::PowerButton),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands() {
        assert_eq!(parse(b" reset "), Some(Command::Reset));
        assert_eq!(parse(b""), Some(Command::Help));
        assert_eq!(parse(b"\xff\xfe"), None);
    }
}
