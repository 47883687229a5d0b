//! `--trace EVENTS`: a line for each event, to standard error or a file.
//!
//! `SECONDS VCPU EVENT FIELD=VALUE..`: seconds since the VM was made, by the host's clock.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, LineWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use lifecycle::{TraceEvent, TraceSink, Traced};

/// Reads `--trace`: names of kinds of events, separated by commas.
///
/// # Errors
/// What kinds there are.
pub fn parse(text: &str) -> Result<Traced, String> {
    let kind = |name: &str| {
        let known = Traced::NAMES.iter().find(|(known, _)| *known == name);
        known.map(|(_, kind)| *kind).ok_or_else(|| {
            let names = Traced::NAMES.map(|(name, _)| name).join(", ");
            format!("there is no event {name:?}; there are {names}")
        })
    };
    text.split(',').try_fold(Traced::default(), |set, name| Ok(set.with(kind(name.trim())?)))
}

/// A trace under way.
pub struct Trace(Arc<Mutex<Writer>>);

struct Writer {
    output: Box<dyn Write + Send>,
    /// The first failure; nothing is written after it.
    failed: Option<io::Error>,
}

impl Trace {
    /// A trace to `path`, or to standard error.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn new(path: Option<&Path>) -> anyhow::Result<Self> {
        let output: Box<dyn Write + Send> = match path {
            None => Box::new(LineWriter::new(io::stderr())),
            Some(path) => {
                let file = File::create(path);
                let file = file.with_context(|| format!("cannot trace to {}", path.display()))?;
                Box::new(BufWriter::new(file))
            }
        };
        Ok(Self(Arc::new(Mutex::new(Writer { output, failed: None }))))
    }

    /// Who takes the events.
    pub fn sink(&self) -> TraceSink {
        let (writer, begin) = (Arc::clone(&self.0), Instant::now());
        Arc::new(move |vcpu, event| {
            let line = line(begin.elapsed(), vcpu, event);
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            if writer.failed.is_none() {
                writer.failed = writer.output.write_all(line.as_bytes()).err();
            }
        })
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// When some of the trace could not be written.
    pub fn finish(self) -> anyhow::Result<()> {
        let mut writer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = writer.failed.take().or(writer.output.flush().err());
        failed.map_or(Ok(()), |error| Err(error).context("the trace is not complete"))
    }
}

fn line(at: Duration, vcpu: u32, event: TraceEvent) -> String {
    let mut line = format!("{:.9} {vcpu} ", at.as_secs_f64());
    let access = |write: bool| if write { "write" } else { "read" };
    // Writing to a string does not fail.
    let _ = match event {
        TraceEvent::Exit { reason, rip } => {
            writeln!(line, "exit reason={}{}", reason.replace(' ', "-"), at_rip(rip))
        }
        TraceEvent::Interrupt { vector, rip } => {
            writeln!(line, "interrupt vector={vector:#x}{}", at_rip(rip))
        }
        TraceEvent::Port { port, write, size, value } => {
            let access = access(write);
            writeln!(line, "port-{access} port={port:#x} size={size} value={value:#x}")
        }
        TraceEvent::Mmio { gpa, write, size, value } => {
            let access = access(write);
            writeln!(line, "mmio-{access} gpa={gpa:#x} size={size} value={value:#x}")
        }
        TraceEvent::Msr { number, write, value, fault } => {
            let name = if write { "wrmsr" } else { "rdmsr" };
            let value = value.map_or_else(String::new, |value| format!(" value={value:#x}"));
            let fault = if fault { " fault" } else { "" };
            writeln!(line, "{name} msr={number:#x}{value}{fault}")
        }
    };
    line
}

fn at_rip(rip: Option<u64>) -> String {
    rip.map_or_else(String::new, |rip| format!(" rip={rip:#x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_a_list() {
        let set = parse("io,msr").unwrap();
        assert!(set.has(Traced::IO) && set.has(Traced::MSR) && !set.has(Traced::EXITS));
        assert!(parse("io,everything").unwrap_err().contains("exits, interrupts, io, msr"));
    }

    #[test]
    fn an_event_is_a_line() {
        let text = |event| line(Duration::from_millis(1500), 2, event);
        let port = TraceEvent::Port { port: 0x3f8, write: true, size: 1, value: 0x41 };
        assert_eq!(text(port), "1.500000000 2 port-write port=0x3f8 size=1 value=0x41\n");
        let exit = TraceEvent::Exit { reason: "tlb miss", rip: Some(0x1000) };
        assert_eq!(text(exit), "1.500000000 2 exit reason=tlb-miss rip=0x1000\n");
        let msr = TraceEvent::Msr { number: 0x10, write: false, value: None, fault: true };
        assert_eq!(text(msr), "1.500000000 2 rdmsr msr=0x10 fault\n");
    }
}
