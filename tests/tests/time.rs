//! Time in a guest: its clock keeps to the host's, sleeps last as long as they say, and idling
//! costs next to nothing.
//!
//! One guest and one test, alone in its process: the process's CPU time is the guest's.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use images::kernels::Flavour;
use ringfence_tests::stock::{Form, boot_files};
use ringfence_tests::vm::{Guest, Setup, engine};
use rustix::time::{ClockId, clock_gettime};

/// Far above what a boot takes.
const BOOT: Duration = Duration::from_secs(400);
/// Far above what a command takes.
const COMMAND: Duration = Duration::from_secs(30);
/// How long the guest idles.
const IDLE: Duration = Duration::from_secs(40);
/// The most that the guest's clock may gain or lose in a minute.
const DRIFT_PER_MINUTE: Duration = Duration::from_millis(10);
/// Share of one core that an idle guest may take.
const IDLE_SHARE: f64 = 0.02;
/// Interrupts of the timer in a second of idling; one that ticks has 250.
const TICKLESS: f64 = 25.0;

/// A guest that executes lines of shell.
struct Shell {
    guest: Guest,
    commands: u32,
}

impl Shell {
    fn start() -> Option<Self> {
        let script = "stty -echo\necho READY\nwhile read -r line; do eval \"$line\"; done";
        let files = boot_files(Flavour::Cloud, Form::Pvh, script)?;
        let guest = Setup::new(engine(), 256, files).cmdline("console=ttyS0").start();
        guest.expect("READY", BOOT);
        Some(Self { guest, commands: 0 })
    }

    /// What `command` prints.
    fn run(&mut self, command: &str) -> String {
        self.commands += 1;
        let end = format!("END-{}\r\n", self.commands);
        let before = self.guest.text().len();
        self.guest.type_in(&format!("{command}; echo END-{}\n", self.commands));
        self.guest.expect_after(&end, before, COMMAND);
        let text = self.guest.text();
        text[before..].split(&end).next().unwrap_or_default().replace('\r', "")
    }

    /// The host's clock minus the guest's, in seconds, at the moment when the guest reads its own:
    /// the smallest of several, since whatever comes between makes it larger.
    fn clock_difference(&mut self, start: Instant) -> f64 {
        let sample = |shell: &mut Self| {
            let before = shell.guest.text().len();
            let text = shell.run("adjtimex");
            let printed = shell.guest.console.time_of("time.tv_usec:", before);
            let printed = printed.expect("adjtimex prints the time");
            let field = |name: &str| -> f64 {
                let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
                line.and_then(|value| value.trim().parse().ok())
                    .unwrap_or_else(|| panic!("no {name} in {text}"))
            };
            let guest = field("time.tv_sec:") + field("time.tv_usec:") / 1e6;
            (printed - start).as_secs_f64() - guest
        };
        (0..30).map(|_| sample(self)).fold(f64::INFINITY, f64::min)
    }

    fn timer_interrupts(&mut self) -> f64 {
        let text = self.run("grep LOC: /proc/interrupts");
        let count = text.split_whitespace().nth(1).and_then(|count| count.parse().ok());
        count.unwrap_or_else(|| panic!("no count in {text}"))
    }
}

/// CPU time of this process in seconds.
fn cpu_time() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[test]
fn clocks_sleep_and_idling() {
    let Some(mut shell) = Shell::start() else { return };
    the_clock_is_the_hosts(&mut shell);
    a_sleep_lasts_as_long_as_it_says(&mut shell);
    the_clock_source_is_trusted(&mut shell);
    idling_is_cheap_and_the_clock_keeps_time(&mut shell);
}

fn the_clock_is_the_hosts(shell: &mut Shell) {
    let guest: u64 = shell.run("date +%s").trim().parse().expect("seconds");
    let host = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    // The RTC from which the kernel sets its clock has whole seconds.
    assert!(guest.abs_diff(host) <= 2, "guest {guest}, host {host}");
}

fn a_sleep_lasts_as_long_as_it_says(shell: &mut Shell) {
    let mut shortest = Duration::MAX;
    for round in 0..3 {
        shell.run(&format!("echo FROM-{round}; sleep 1; echo TO-{round}"));
        let time = |word: &str| {
            let line = format!("{word}-{round}");
            shell.guest.console.time_of(&line, 0).expect("it was printed")
        };
        shortest = shortest.min(time("TO") - time("FROM"));
    }
    // Starting the program takes some time too.
    assert!((0.99..1.1).contains(&shortest.as_secs_f64()), "sleep 1 takes {shortest:?}");
}

fn the_clock_source_is_trusted(shell: &mut Shell) {
    let source = shell.run("cat /sys/devices/system/clocksource/clocksource0/current_clocksource");
    assert!(["tsc", "kvm-clock"].contains(&source.trim()), "{source}");
    let doubts = shell.run("dmesg | grep -i -E 'unstable|watchdog: mark|clocksource: timekeeping'");
    assert!(doubts.trim().is_empty(), "{doubts}");
}

fn idling_is_cheap_and_the_clock_keeps_time(shell: &mut Shell) {
    let start = Instant::now();
    let before = shell.clock_difference(start);
    let interrupts = shell.timer_interrupts();
    let (cpu, idle) = (cpu_time(), Instant::now());
    thread::sleep(IDLE);
    let idle = idle.elapsed().as_secs_f64();
    let share = (cpu_time() - cpu) / idle;
    let rate = (shell.timer_interrupts() - interrupts) / idle;
    let drift = (shell.clock_difference(start) - before).abs();
    eprintln!("idle: {:.2}% of a core, {rate:.1} timer interrupts a second", share * 100.0);
    eprintln!("drift: {:.3} ms in {:.0} s", drift * 1e3, start.elapsed().as_secs_f64());
    assert!(share <= IDLE_SHARE, "idling takes {:.2}% of a core", share * 100.0);
    assert!(rate <= TICKLESS, "{rate} timer interrupts a second");
    let allowed = DRIFT_PER_MINUTE.as_secs_f64() * start.elapsed().as_secs_f64() / 60.0;
    assert!(drift <= allowed, "the clock drifts by {:.3} ms", drift * 1e3);
}
