//! Signals that concern a running VM.

use std::io;
use std::thread;

use signal_hook::consts::signal::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use crate::console::terminal;

/// Starts a thread that calls `tell` with each signal that is to end the VM: SIGTERM, SIGINT,
/// SIGHUP, SIGQUIT, and with SIGCONT. Before the process is stopped, and when it goes on, the
/// terminal is switched.
///
/// # Errors
/// When the host refuses.
pub fn watch(tell: impl Fn(i32) + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGTSTP, SIGCONT])?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in &mut signals {
            match signal {
                SIGTSTP => {
                    terminal::restore();
                    // Stops this process until SIGCONT; where that fails it just runs on.
                    let _ = emulate_default_handler(SIGTSTP);
                    let _ = terminal::enter_raw();
                }
                // Whoever continued the process, a shell, has set the terminal as it likes.
                SIGCONT => {
                    let _ = terminal::enter_raw();
                    tell(signal);
                }
                _ => tell(signal),
            }
        }
    })?;
    Ok(())
}
