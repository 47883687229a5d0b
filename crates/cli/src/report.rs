//! What is printed: results on standard output, messages on standard error.

use std::io::{self, Write};
use std::panic;
use std::process;

use clap::CommandFactory;
use clap::error::ErrorKind;

use crate::args::Cli;
use crate::console::terminal;
use crate::{is_closed, status};

/// Prints an error: one line.
pub fn error(text: &str) {
    terminal::message(&format!("ringfence: error: {}", one_line(text)));
}

/// Prints something worth knowing: one line.
pub fn note(text: &str) {
    terminal::message(&format!("ringfence: {}", one_line(text)));
}

/// Prints a result on standard output; that nobody reads it is no error.
///
/// # Errors
/// When it cannot be written.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if is_closed(&error) => Ok(()),
        result => result,
    }
}

/// Prints what is wrong with a command line, or the help or version that it asks for; returns the
/// exit status.
pub fn usage(error: &clap::Error) -> u8 {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // As `print`: nobody who reads is no error.
            let _ = error.print();
            status::SUCCESS
        }
        _ => {
            let verb = std::env::args().nth(1).unwrap_or_default();
            self::error(&usage_line(&error.render().to_string(), &verb));
            status::USAGE
        }
    }
}

/// One line of clap's several: what is wrong, its tips, and where there is help. `verb` is the
/// first argument.
fn usage_line(rendered: &str, verb: &str) -> String {
    let said = rendered.split("\n\nUsage:").next().unwrap_or(rendered);
    let said = said.split("\n\nFor more information").next().unwrap_or(said);
    let said = said.strip_prefix("error: ").unwrap_or(said);
    let parts: Vec<&str> = said.split("\n\n").collect();
    let help = match Cli::command().find_subcommand(verb) {
        Some(_) => format!("ringfence {verb} --help"),
        None => "ringfence --help".to_owned(),
    };
    format!("{}; see '{help}'", one_line(&parts.join("; ")))
}

/// Line breaks and runs of white space become single spaces.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A panic gives the terminal back, says so in one line and ends the process: what is left of a
/// VM in which a thread is missing cannot be trusted.
pub fn install_panic_hook() {
    panic::set_hook(Box::new(|info| {
        terminal::restore();
        error(&format!("internal error: {info}; this is a bug, please report it"));
        process::exit(status::FAILURE.into());
    }));
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn usage_errors_are_one_line_with_a_way_out() {
        for (args, named, help) in [
            (&["run", "--memry", "1"][..], "--memry", "ringfence run --help"),
            (&["run", "--memory", "-1"], "-1", "ringfence run --help"),
            (&["run", "--engine", "fast"], "interpreter", "ringfence run --help"),
            (&["run", "--kernel", "k", "image"], "--kernel", "ringfence run --help"),
            (&["image", "rm"], "<IMAGE>", "ringfence image --help"),
            (&["frobnicate"], "frobnicate", "ringfence --help"),
            (&[], "subcommand", "ringfence --help"),
        ] {
            let error = Cli::try_parse_from(["ringfence"].iter().chain(args)).unwrap_err();
            let verb = args.first().copied().unwrap_or_default();
            let line = usage_line(&error.render().to_string(), verb);
            assert!(!line.contains('\n') && line.contains(named), "{line}");
            assert!(line.ends_with(&format!("see '{help}'")), "{line}");
        }
    }
}
