//! `console`: this terminal, or these pipes, at the console of a VM.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use anyhow::Context;
use control::Client;
use lifecycle::ConsoleInput;
use signal_hook::consts::signal::SIGCONT;
use vms::Store;

use super::args::ConsoleArgs;
use super::power;
use crate::console::escape::Key;
use crate::console::{input, terminal};
use crate::{is_closed, report, signals};

/// What of the past is shown in a terminal.
const SCROLL_BACK: u64 = 4096;

const HELP: &str = "\
Ctrl-A D       detach; the VM goes on
Ctrl-A Ctrl-A  send Ctrl-A to the guest
Ctrl-A H       this help";

/// What ends the session, or wants something of it.
enum Event {
    Key(Key),
    Signal,
    OutputEnded,
}

/// Attaches until the VM ends, the user detaches, or nobody reads the output.
///
/// # Errors
/// What keeps it from attaching.
pub fn run(store: &Store, args: &ConsoleArgs) -> anyhow::Result<()> {
    let vm = store.vm(&args.vm.name)?;
    power::expect_process(&vm)?;
    let is_terminal = terminal::is_terminal();
    let scroll_back = args.scroll_back.unwrap_or(if is_terminal { SCROLL_BACK } else { 0 });
    let console = Client::connect(&vm)?.console(scroll_back, args.view)?;
    if !console.is_writer && !args.view {
        report::note("somebody else writes to this console: keys go nowhere");
    }
    let (events, queue) = channel();
    let told = events.clone();
    let tell = move |signal| {
        if signal != SIGCONT {
            drop(told.send(Event::Signal));
        }
    };
    signals::watch(tell).context("cannot watch for signals")?;
    terminal::enter_raw().context("cannot make the terminal raw")?;
    write_out(&console.first)?;
    start_output(&console.stream, events.clone())?;
    start_input(&console.stream, is_terminal, events)?;
    while let Ok(event) = queue.recv() {
        match event {
            Event::Key(Key::Help) => terminal::message(HELP),
            Event::Key(Key::Guest(_)) => {}
            Event::Key(Key::Detach | Key::End) | Event::Signal | Event::OutputEnded => break,
        }
    }
    terminal::restore();
    // What ends here ends there too; a VM that has ended has closed it already.
    let _ = console.stream.shutdown(Shutdown::Both);
    Ok(())
}

fn start_output(stream: &UnixStream, events: Sender<Event>) -> anyhow::Result<()> {
    let mut stream = stream.try_clone().context("cannot use the console")?;
    let pass_on = move || {
        let mut buffer = [0; 16 << 10];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            if !matches!(write_out(&buffer[..count]), Ok(true)) {
                break;
            }
        }
        // The main thread may have gone.
        let _ = events.send(Event::OutputEnded);
    };
    thread::Builder::new().name("console out".to_owned()).spawn(pass_on)?;
    Ok(())
}

/// Writes to standard output; whether somebody reads it.
fn write_out(bytes: &[u8]) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if is_closed(&error) => Ok(false),
        result => result.map(|()| true),
    }
}

fn start_input(
    stream: &UnixStream,
    is_terminal: bool,
    events: Sender<Event>,
) -> anyhow::Result<()> {
    let source = match is_terminal {
        true => input::Source::Terminal(Box::new(move |key| drop(events.send(Event::Key(key))))),
        false => input::Source::Stream,
    };
    let stdin = io::stdin().as_fd().try_clone_to_owned().context("cannot read standard input")?;
    let guest = Arc::new(Peer(stream.try_clone().context("cannot use the console")?));
    input::start(std::fs::File::from(stdin), source, guest).context("cannot read standard input")
}

/// The VM's process, as the taker of input.
struct Peer(UnixStream);

impl ConsoleInput for Peer {
    fn push(&self, bytes: &[u8]) -> usize {
        // What a VM that has ended does not take is lost.
        let _ = (&self.0).write_all(bytes);
        bytes.len()
    }

    fn room(&self) -> usize {
        usize::MAX
    }
}
