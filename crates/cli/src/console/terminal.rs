//! Raw mode of the terminal at standard input, and the way back.
//!
//! [`restore`] may be called at any time from any thread, also from the panic hook: the way back
//! is taken once for each way in.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// The settings to go back to, while the terminal is raw.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Whether standard input is a terminal.
pub fn is_terminal() -> bool {
    io::stdin().is_terminal()
}

/// Makes the terminal at standard input raw: every key goes to the guest. Does nothing when
/// standard input is no terminal.
///
/// # Errors
/// When the terminal refuses.
pub fn enter_raw() -> io::Result<()> {
    if !is_terminal() {
        return Ok(());
    }
    let stdin = io::stdin();
    let mut saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner);
    let now = tcgetattr(&stdin)?;
    let mut raw = now.clone();
    raw.make_raw();
    tcsetattr(&stdin, OptionalActions::Now, &raw)?;
    saved.get_or_insert(now);
    Ok(())
}

/// Gives the terminal its settings back, if it is raw.
pub fn restore() {
    let saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(saved) = saved {
        // A terminal that has gone needs no settings.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &saved);
    }
}

/// Prints a message on standard error; in raw mode with the line ends that it needs.
pub fn message(text: &str) {
    let raw = SAVED.lock().unwrap_or_else(PoisonError::into_inner).is_some();
    let text = if raw { text.replace('\n', "\r\n") + "\r\n" } else { format!("{text}\n") };
    // Where nobody listens nothing is to be said.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}
