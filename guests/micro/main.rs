//! Measures what single operations of a Linux kernel cost: `micro [OPTION]...`.
//!
//! | option | |
//! | --- | --- |
//! | `--several-cpus` | what needs two CPUs, instead of all else |
//! | `--devices` | reads of a port and of a device register too; needs root, so that it is for guests |
//! | `--only NAME` | nothing else |
//! | `--batch MILLISECONDS` | least time of one batch, 20 if not given |
//! | `--folder F` | where a file can be made, preferably a tmpfs |
//! | `--shell F` | a busybox |
//!
//! Prints `MICRO name nanoseconds clock` for each measurement: the time of one operation, and this
//! machine's clock in nanoseconds, by which the reader compares it with a clock of their own. Where
//! something cannot be measured it prints `MICRO-WITHOUT name reason`. `MICRO-BEGIN clock` and
//! `MICRO-DONE clock` are around it all.
//!
//! A measurement is a function that does an operation `count` times and says how long that took
//! ([`Operation`]). The number is chosen so that a batch takes long enough; the result is the
//! fastest batch of [`BATCHES`]: whatever else the host does only ever makes a batch slower.
//! Everything runs on one CPU, so that two processes that talk have to be switched.

mod calls;
mod faults;
mod hardware;
mod processes;
mod several;
mod sys;

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Batches of a measurement.
const BATCHES: usize = 7;

/// Does something so often, and says how long it took.
type Operation = Box<dyn FnMut(u64) -> Duration>;
/// Makes an operation, or says why that is not possible here.
type Prepare = fn(&Place) -> Result<Operation, String>;

/// What the measurements use of the machine.
pub struct Place {
    /// A file of [`Place::FILE_LEN`] bytes.
    pub file: CString,
    /// This program; with the argument `--exit` it does nothing.
    pub program: CString,
    /// A busybox.
    pub shell: Option<CString>,
    /// Whether devices can be accessed.
    pub devices: bool,
    /// The CPUs that this program may run on.
    pub cpus: Vec<usize>,
}

impl Place {
    /// Length of the file, bytes.
    pub const FILE_LEN: usize = 1 << 20;
}

/// What one CPU is enough for, in the order of the output.
const ONE_CPU: [(&str, Prepare); 25] = [
    ("null-call", calls::null),
    ("read", calls::read),
    ("write", calls::write),
    ("stat", calls::stat),
    ("open-close", calls::open_close),
    ("signal-install", calls::signal_install),
    ("signal-handle", calls::signal_handle),
    ("mmap", faults::mmap),
    ("protection-fault", faults::protection),
    ("page-fault", faults::anonymous),
    ("page-fault-file", faults::file),
    ("pipe", processes::pipe),
    ("unix-socket", processes::unix_socket),
    ("switch-2-0k", |_| processes::switch(2, 0)),
    ("switch-2-16k", |_| processes::switch(2, 16)),
    ("switch-8-0k", |_| processes::switch(8, 0)),
    ("switch-8-16k", |_| processes::switch(8, 16)),
    ("switch-16-0k", |_| processes::switch(16, 0)),
    ("switch-16-16k", |_| processes::switch(16, 16)),
    ("fork-exit", processes::fork_exit),
    ("fork-exec", processes::fork_exec),
    ("shell", processes::shell),
    ("timer-sleep", hardware::sleep),
    ("port-read", hardware::port),
    ("mmio-read", hardware::mmio),
];

/// Not an operation that can be repeated at will: it happens.
const TICK: &str = "timer-interrupt";

/// What needs two CPUs.
const SEVERAL_CPUS: [(&str, Prepare); 2] =
    [("ipi", several::interrupt), ("pipe-two-cpus", several::pipe)];

struct Options {
    several_cpus: bool,
    devices: bool,
    only: Option<String>,
    batch: Duration,
    folder: PathBuf,
    shell: Option<CString>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--exit") {
        return;
    }
    if let Err(message) = parse(&arguments).and_then(|options| measure_all(&options)) {
        eprintln!("micro: {message}");
        std::process::exit(2);
    }
}

fn parse(arguments: &[String]) -> Result<Options, String> {
    let mut options = Options {
        several_cpus: false,
        devices: false,
        only: None,
        batch: Duration::from_millis(20),
        folder: std::env::temp_dir(),
        shell: None,
    };
    let mut rest = arguments.iter();
    while let Some(flag) = rest.next() {
        let mut value = || rest.next().cloned().ok_or_else(|| format!("{flag} needs a value"));
        match flag.as_str() {
            "--several-cpus" => options.several_cpus = true,
            "--devices" => options.devices = true,
            "--only" => options.only = Some(value()?),
            "--batch" => {
                let number = value()?;
                let number = number.parse().map_err(|error| format!("{flag} {number}: {error}"))?;
                options.batch = Duration::from_millis(number);
            }
            "--folder" => options.folder = value()?.into(),
            "--shell" => options.shell = CString::new(value()?).ok(),
            _ => return Err(format!("{flag} is no option")),
        }
    }
    Ok(options)
}

fn measure_all(options: &Options) -> Result<(), String> {
    let file = options.folder.join(format!("micro-{}", std::process::id()));
    let failed = |error: std::io::Error| format!("{}: {error}", file.display());
    fs::write(&file, vec![0; Place::FILE_LEN]).map_err(failed)?;
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let text = |path: PathBuf| CString::new(path.into_os_string().into_vec());
    let place = Place {
        file: text(file.clone()).map_err(|error| error.to_string())?,
        program: text(program).map_err(|error| error.to_string())?,
        shell: options.shell.clone(),
        devices: options.devices,
        cpus: sys::cpus(),
    };
    let clock = Instant::now();
    say(&format!("MICRO-BEGIN {}", clock.elapsed().as_nanos()));
    let wanted = |name: &str| options.only.as_deref().is_none_or(|only| only == name);
    let list: &[(&str, Prepare)] = if options.several_cpus { &SEVERAL_CPUS } else { &ONE_CPU };
    if !options.several_cpus {
        sys::pin(place.cpus[0]);
    }
    for (name, prepare) in list.iter().filter(|(name, _)| wanted(name)) {
        let result = prepare(&place).map(|mut operation| measure(&mut operation, options.batch));
        report(name, result, clock);
    }
    if !options.several_cpus && wanted(TICK) {
        report(TICK, hardware::tick(), clock);
    }
    say(&format!("MICRO-DONE {}", clock.elapsed().as_nanos()));
    fs::remove_file(&file).map_err(failed)
}

fn report(name: &str, result: Result<f64, String>, clock: Instant) {
    match result {
        Ok(nanoseconds) => {
            say(&format!("MICRO {name} {nanoseconds:.1} {}", clock.elapsed().as_nanos()));
        }
        Err(reason) => say(&format!("MICRO-WITHOUT {name} {reason}")),
    }
}

/// Nanoseconds of one operation.
fn measure(operation: &mut Operation, batch: Duration) -> f64 {
    let mut count = 1;
    loop {
        let took = operation(count);
        if took >= batch {
            break;
        }
        // At most tenfold: the first operations are slower than those that follow.
        let factor = batch.as_secs_f64() * 1.2 / took.as_secs_f64().max(1e-9);
        count = (count as f64 * factor.clamp(1.5, 10.0)).ceil() as u64;
    }
    let batches = (0..BATCHES).map(|_| operation(count).as_secs_f64());
    batches.fold(f64::INFINITY, f64::min) * 1e9 / count as f64
}

/// An operation that is timed as a whole.
fn timed(mut operation: impl FnMut() + 'static) -> Operation {
    Box::new(move |count| {
        let begin = Instant::now();
        for _ in 0..count {
            operation();
        }
        begin.elapsed()
    })
}

/// Prints a line at once; without a reader there is nothing left to do.
fn say(line: &str) {
    let mut output = std::io::stdout().lock();
    if writeln!(output, "{line}").and_then(|()| output.flush()).is_err() {
        std::process::exit(2);
    }
}
