//! `ringfence run`: one VM in this terminal, until it ends.
//!
//! The main thread waits for events: the VM has ended, a signal, an escape key, all output is
//! written. Everything else happens in the VM's own threads and in those of [`crate::console`].

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use lifecycle::{Observation, Outcome, Profiler, Traced, Vm, VmStats};
use signal_hook::consts::signal::{SIGCONT, SIGTERM};

use crate::args::RunArgs;
use crate::console::escape::Key;
use crate::console::{Output, input, terminal};
use crate::stats::Stats;
use crate::trace::Trace;
use crate::vm_config::{self, Use};
use crate::{image_disk, profile, report, signals, status};

/// How long a guest has after the power button.
const GRACE: Duration = Duration::from_secs(10);
/// How long a debugger has to be told of the VM's end.
const LAST_WORDS: Duration = Duration::from_millis(300);
/// How long a killed VM is waited for before its output is given up.
const STUCK: Duration = Duration::from_millis(300);
/// How long a VM is paused before it is tried whether a full disk of the host has space again.
const FULL: Duration = Duration::from_secs(5);

const HELP: &str = "\
Ctrl-A X       end the VM
Ctrl-A Ctrl-A  send Ctrl-A to the guest
Ctrl-A H       this help";

/// What the main thread waits for.
enum Event {
    Ended(Outcome),
    Signal(i32),
    Key(Key),
    OutputDone,
    /// The host has no space for what the guest writes to this image.
    DiskFull(String),
}

/// Runs a VM; returns the exit status.
///
/// # Errors
/// What kept the VM from starting.
pub fn run(args: &RunArgs) -> anyhow::Result<u8> {
    args.check_supported()?;
    let stats = args.stats.as_deref().map(Stats::new).transpose()?;
    let result = start_and_wait(args);
    let (status, outcome, vm) = match &result {
        Ok(end) => (end.status, end.outcome.to_string(), end.stats.clone()),
        Err(error) => (status::FAILURE, format!("{error:#}"), VmStats::default()),
    };
    if let Some(stats) = stats {
        let written = stats.write(args.name.as_deref(), status, &outcome, &vm);
        // The first error is the one to show.
        if result.is_ok() {
            written?;
        }
    }
    result.map(|end| end.status)
}

/// How a run ended.
struct End {
    status: u8,
    outcome: Outcome,
    stats: VmStats,
}

fn start_and_wait(args: &RunArgs) -> anyhow::Result<End> {
    let args = &image_disk::resolve(args)?;
    let debugger = args.gdb.as_ref().map(debug::Server::bind).transpose()?;
    let watching = Watching::new(args)?;
    let (events, queue) = channel();
    let output = start_output(&events)?;
    let files = vm_config::open_files(args, Use::Boot)?;
    let config = vm_config::config(args, files, Arc::clone(&output) as _, &when_full(&events))?;
    let vm = Arc::new(Vm::create(config)?);
    let profiler = watching.begin(&vm)?;
    watch_signals(&events)?;
    watch_end(&vm, &events)?;
    terminal::enter_raw().context("cannot make the terminal raw")?;
    start_input(&vm, &events).context("cannot read standard input")?;
    let debugger = match debugger {
        Some(server) => Some(start_debugger(server, &vm)?),
        None => {
            vm.resume()?;
            None
        }
    };
    let end =
        Session { vm: &vm, output: &output, queue: &queue, output_done: Cell::new(false) }.run();
    if let Some(debugger) = debugger {
        debugger.finish(LAST_WORDS);
    }
    terminal::restore();
    report_end(&end);
    watching.finish(profiler)?;
    Ok(end)
}

/// The profile and the trace that are wanted.
struct Watching {
    profile: Option<profile::Output>,
    trace: Option<(Traced, Trace)>,
}

impl Watching {
    fn new(args: &RunArgs) -> anyhow::Result<Self> {
        let symbols = args.profile_symbols.as_deref();
        let profile = args.profile.as_deref().map(|path| profile::Output::new(path, symbols));
        let profile = profile.transpose()?;
        let trace = args.trace.map(|_| Trace::new(args.trace_file.as_deref())).transpose()?;
        Ok(Self { profile, trace: args.trace.zip(trace) })
    }

    fn begin(&self, vm: &Vm) -> anyhow::Result<Option<Profiler>> {
        if self.profile.is_none() && self.trace.is_none() {
            return Ok(None);
        }
        let observation = Observation {
            samples_per_second: self.profile.as_ref().map(|_| profile::SAMPLES_PER_SECOND),
            trace: self.trace.as_ref().map(|(kinds, trace)| (*kinds, trace.sink())),
        };
        Ok(vm.observe(&observation)?)
    }

    fn finish(self, profiler: Option<Profiler>) -> anyhow::Result<()> {
        if let (Some(output), Some(profiler)) = (self.profile, profiler) {
            output.write(profiler)?;
        }
        self.trace.map_or(Ok(()), |(_, trace)| trace.finish())
    }
}

/// Leaves it to a debugger to let the VM run.
fn start_debugger(server: debug::Server, vm: &Arc<Vm>) -> anyhow::Result<debug::Serving> {
    let address = server.address().clone();
    let serving = server.serve(Arc::clone(vm)).context("cannot start a thread")?;
    report::note(&format!("the guest waits for gdb: target remote {address}"));
    Ok(serving)
}

fn start_output(events: &Sender<Event>) -> anyhow::Result<Arc<Output>> {
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    let stdout = File::from(stdout.context("cannot use standard output")?);
    let events = events.clone();
    let done = move || drop(events.send(Event::OutputDone));
    Output::start(stdout, done).context("cannot start a thread")
}

fn when_full(events: &Sender<Event>) -> Arc<dyn Fn(&str) + Send + Sync> {
    let events = events.clone();
    Arc::new(move |name| drop(events.send(Event::DiskFull(name.to_owned()))))
}

fn start_input(vm: &Vm, events: &Sender<Event>) -> io::Result<()> {
    let events = events.clone();
    let source = match terminal::is_terminal() {
        true => input::Source::Terminal(Box::new(move |key| drop(events.send(Event::Key(key))))),
        false => input::Source::Stream,
    };
    let stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    input::start(stdin, source, vm.console_input())
}

fn watch_signals(events: &Sender<Event>) -> anyhow::Result<()> {
    let events = events.clone();
    signals::watch(move |signal| drop(events.send(Event::Signal(signal))))
        .context("cannot watch for signals")
}

fn watch_end(vm: &Arc<Vm>, events: &Sender<Event>) -> anyhow::Result<()> {
    let (vm, events) = (Arc::clone(vm), events.clone());
    thread::Builder::new()
        .name("vm end".to_owned())
        .spawn(move || drop(events.send(Event::Ended(vm.wait()))))
        .context("cannot start a thread")?;
    Ok(())
}

/// A VM that runs.
struct Session<'a> {
    vm: &'a Vm,
    output: &'a Output,
    queue: &'a Receiver<Event>,
    /// The output ended before the VM: nobody reads it any more.
    output_done: Cell<bool>,
}

impl Session<'_> {
    fn run(&self) -> End {
        let (outcome, killed_with) = self.wait_for_end();
        let stats = self.vm.stats().unwrap_or_default();
        let status = status::of_outcome(&outcome).unwrap_or(killed_with);
        let interrupted = self.flush(outcome == Outcome::Killed);
        End { status: interrupted.unwrap_or(status), outcome, stats }
    }

    /// Waits for the VM's end; the number is the status for a VM that was killed.
    fn wait_for_end(&self) -> (Outcome, u8) {
        let mut next: Option<(Instant, Next)> = None;
        let mut killed_with = status::SUCCESS;
        let mut full = FullDisk::default();
        loop {
            let deadline = next.as_ref().map(|(deadline, _)| *deadline);
            match self.event_before(deadline.into_iter().chain(full.retry_at).min()) {
                Ok(Event::Ended(outcome)) => return (outcome, killed_with),
                Ok(Event::DiskFull(name)) => full.pause(self.vm, &name),
                Ok(Event::Signal(SIGCONT)) => full.retry(self.vm),
                Ok(Event::Signal(SIGTERM)) if next.is_none() => {
                    killed_with = status::of_signal(SIGTERM);
                    next = Some((Instant::now() + GRACE, Next::Kill));
                    self.vm.press_power_button();
                }
                Ok(Event::Signal(signal)) => {
                    killed_with = status::of_signal(signal);
                    next = Some(self.kill());
                }
                Ok(Event::Key(Key::End)) => {
                    killed_with = status::SUCCESS;
                    next = Some(self.kill());
                }
                Ok(Event::Key(Key::Help)) => terminal::message(HELP),
                Ok(Event::OutputDone) => self.output_done.set(true),
                Ok(Event::Key(Key::Guest(_) | Key::Detach)) => {}
                Err(RecvTimeoutError::Timeout)
                    if full.retry_at.is_some_and(|at| at <= Instant::now()) =>
                {
                    full.retry(self.vm);
                }
                Err(RecvTimeoutError::Timeout) => match next.take() {
                    Some((_, Next::Kill)) => next = Some(self.kill()),
                    Some((_, Next::Abandon)) => self.output.abandon(),
                    None => {}
                },
                // Every sender is gone, and with them the VM.
                Err(RecvTimeoutError::Disconnected) => return (self.vm.wait(), killed_with),
            }
        }
    }

    fn event_before(&self, deadline: Option<Instant>) -> Result<Event, RecvTimeoutError> {
        match deadline {
            None => self.queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => self.queue.recv_timeout(at.saturating_duration_since(Instant::now())),
        }
    }

    /// Ends the VM. A guest that waits for a reader of its output that does not read is freed a
    /// little later.
    fn kill(&self) -> (Instant, Next) {
        self.vm.kill();
        (Instant::now() + STUCK, Next::Abandon)
    }

    /// Waits until the guest's last output is written; where it was killed, only for a moment. A
    /// signal or Ctrl-A X ends the wait; a signal gives the status.
    fn flush(&self, killed: bool) -> Option<u8> {
        self.output.finish();
        if self.output_done.get() {
            return None;
        }
        let deadline = killed.then(|| Instant::now() + STUCK);
        loop {
            match self.event_before(deadline) {
                Ok(Event::OutputDone | Event::Key(Key::End)) | Err(_) => return None,
                Ok(Event::Signal(SIGCONT)) => {}
                Ok(Event::Signal(signal)) => return Some(status::of_signal(signal)),
                Ok(Event::Ended(_) | Event::Key(_) | Event::DiskFull(_)) => {}
            }
        }
    }
}

/// A disk of the host that is full: the VM is paused, and goes on when it is tried again.
#[derive(Default)]
struct FullDisk {
    retry_at: Option<Instant>,
    /// The image that the user was told of, until a try succeeded for a while.
    told: Option<(String, Instant)>,
}

impl FullDisk {
    fn pause(&mut self, vm: &Vm, name: &str) {
        // A VM that has ended meanwhile cannot be paused, and need not be.
        if self.retry_at.is_some() || vm.pause().is_err() {
            return;
        }
        let now = Instant::now();
        self.retry_at = Some(now + FULL);
        let news = self.told.as_ref().is_none_or(|(told, since)| {
            told != name || now.saturating_duration_since(*since) > 4 * FULL
        });
        if news {
            report::note(&format!(
                "the host has no space for disk image {name}: the VM is paused; free some, and it \
                 goes on within {} s",
                FULL.as_secs()
            ));
        }
        self.told = Some((name.to_owned(), now));
    }

    fn retry(&mut self, vm: &Vm) {
        if self.retry_at.take().is_some() {
            // As above.
            let _ = vm.resume();
        }
    }
}

/// What happens when the main thread has waited long enough.
enum Next {
    /// The guest did not power off: end the VM.
    Kill,
    /// The VM did not end: its guest is held up by its output.
    Abandon,
}

/// Says what the status alone does not.
fn report_end(end: &End) {
    match &end.outcome {
        Outcome::TripleFault(_) | Outcome::Failed(_) => report::error(&end.outcome.to_string()),
        _ => {}
    }
}
