//! The escape keys: Ctrl-A and what follows it.

/// Ctrl-A.
const ESCAPE: u8 = 0x01;

/// What the user typed.
#[derive(Debug, PartialEq, Eq)]
pub enum Key {
    /// Something for the guest.
    Guest(u8),
    /// Ctrl-A X: end the VM.
    End,
    /// Ctrl-A D: leave the VM alone.
    Detach,
    /// Ctrl-A H or Ctrl-A ?: show help.
    Help,
}

/// Finds escape keys in the input, also when it comes in pieces.
#[derive(Debug, Default)]
pub struct Escapes {
    /// The last byte was Ctrl-A.
    escaped: bool,
}

impl Escapes {
    /// The meaning of the next byte; none for the Ctrl-A itself. After Ctrl-A, keys without
    /// meaning are dropped.
    pub fn feed(&mut self, byte: u8) -> Option<Key> {
        if !std::mem::take(&mut self.escaped) {
            self.escaped = byte == ESCAPE;
            return (!self.escaped).then_some(Key::Guest(byte));
        }
        match byte {
            b'x' | b'X' => Some(Key::End),
            b'd' | b'D' => Some(Key::Detach),
            b'h' | b'H' | b'?' => Some(Key::Help),
            ESCAPE => Some(Key::Guest(ESCAPE)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut escapes = Escapes::default();
        bytes.iter().filter_map(|b| escapes.feed(*b)).collect()
    }

    #[test]
    fn only_ctrl_a_is_special() {
        let ordinary: Vec<u8> = (0..=255).filter(|b| *b != ESCAPE).collect();
        let expected: Vec<Key> = ordinary.iter().map(|b| Key::Guest(*b)).collect();
        assert_eq!(keys(&ordinary), expected);
    }

    #[test]
    fn sequences() {
        assert_eq!(keys(b"\x01x"), [Key::End]);
        assert_eq!(keys(b"\x01X\x01d"), [Key::End, Key::Detach]);
        assert_eq!(keys(b"\x01\x01x"), [Key::Guest(1), Key::Guest(b'x')]);
        assert_eq!(keys(b"\x01?\x01h\x01H"), [Key::Help, Key::Help, Key::Help]);
        assert_eq!(keys(b"a\x01qb"), [Key::Guest(b'a'), Key::Guest(b'b')]);
        assert_eq!(keys(b"\x01"), []);
    }
}
