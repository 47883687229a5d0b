//! Profiles and traces of guests, on the software engines.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use engine::Engine;
use interpreter::Interpreter;
use lifecycle::{Activity, BootFiles, Observation, Outcome, Profile, TraceEvent, Traced};
use ringfence_tests::vm::Setup;
use ringfence_tests::{bare, guests};
use translator::Translator;

/// Some ten times what a run takes alone: the tests of a run share the host.
const LIMIT: Duration = Duration::from_secs(60);
/// TSC_AUX, which every profile has.
const MSR: u32 = 0xc000_0103;

fn engines() -> [Arc<dyn Engine>; 2] {
    let translator = Translator::new().expect("a host with BMI2 and AVX2");
    [Arc::new(Interpreter::new()), Arc::new(translator)]
}

/// All events of a guest that ends by itself.
fn trace(engine: Arc<dyn Engine>, boot: BootFiles, kinds: Traced) -> (Vec<TraceEvent>, Outcome) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&events);
    let taken = move |vcpu: u32, event| {
        assert_eq!(vcpu, 0);
        sink.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    };
    let guest = Setup::new(engine, 128, boot).debug_exit().create();
    let trace = Some((kinds, Arc::new(taken) as lifecycle::TraceSink));
    let observation = Observation { samples_per_second: None, trace };
    assert!(guest.vm.observe(&observation).expect("a VM").is_none(), "no profile was asked for");
    guest.vm.resume().expect("a VM");
    let outcome = guest.end(LIMIT);
    let events = std::mem::take(&mut *events.lock().unwrap_or_else(PoisonError::into_inner));
    (events, outcome)
}

/// Writes 7 to [`MSR`], 0x5a to port 0x80, reads port 0x61, ends.
fn accesses() -> Vec<u8> {
    let mut code = vec![0xb9];
    code.extend(MSR.to_le_bytes());
    // xor edx, edx; mov eax, 7; wrmsr; rdmsr
    code.extend([0x31, 0xd2, 0xb8, 7, 0, 0, 0, 0x0f, 0x30, 0x0f, 0x32]);
    // mov al, 0x5a; out 0x80, al; in al, 0x61
    code.extend([0xb0, 0x5a, 0xe6, 0x80, 0xe4, 0x61]);
    code.extend(bare::debug_exit(0));
    code
}

#[test]
fn a_trace_has_what_was_asked_for() {
    for engine in engines() {
        let name = engine.name();
        let boot = || bare::guest64(&accesses());
        let kinds = Traced::IO.with(Traced::MSR);
        let (events, outcome) = trace(Arc::clone(&engine), boot(), kinds);
        assert_eq!(outcome, Outcome::DebugExit(0), "{name}");
        let port = TraceEvent::Port { port: 0x80, write: true, size: 1, value: 0x5a };
        let written = |write| TraceEvent::Msr { number: MSR, write, value: Some(7), fault: false };
        let position = |wanted| events.iter().position(|event| *event == wanted);
        let [write, read, port] = [written(true), written(false), port].map(position);
        assert!(write.is_some() && write < read && read < port, "{name}: {events:?}");
        let is_read =
            |e: &TraceEvent| matches!(e, TraceEvent::Port { port: 0x61, write: false, .. });
        assert!(events.iter().any(is_read), "{name}: {events:?}");
        let (exits, _) = trace(engine, boot(), Traced::EXITS);
        assert!(exits.iter().all(|e| matches!(e, TraceEvent::Exit { .. })), "{name}: {exits:?}");
        // The end is one on every engine.
        assert!(
            exits.contains(&TraceEvent::Exit { reason: "stop", rip: None }),
            "{name}: {exits:?}"
        );
        if name == "translator" {
            let wrmsr = Some(bare::ENTRY64 + 12);
            let left = TraceEvent::Exit { reason: "interpret", rip: wrmsr };
            assert!(exits.contains(&left), "{exits:?}");
        }
    }
}

#[test]
fn interrupts_are_traced() {
    let (_, program) = guests::all().iter().find(|(name, _)| *name == "interrupts").expect("one");
    for engine in engines() {
        let name = engine.name();
        let file = std::fs::read(program).expect("a program");
        let boot = BootFiles::from_bytes(file, None).expect("an ELF file");
        let (events, outcome) = trace(engine, boot, Traced::INTERRUPTS);
        assert_eq!(outcome, Outcome::DebugExit(0), "{name}");
        let vector = |event: &TraceEvent| match event {
            TraceEvent::Interrupt { vector, rip: Some(_) } => *vector,
            other => panic!("{name}: {other:?}"),
        };
        assert!(events.iter().map(vector).any(|vector| vector >= 0x20), "{name}: {events:?}");
    }
}

/// A profile of a guest that does not end, while it is also paused again and again.
fn profile(engine: Arc<dyn Engine>, code: &[u8]) -> Profile {
    let guest = Setup::new(engine, 16, bare::guest64(code)).create();
    let observation = Observation { samples_per_second: Some(997), trace: None };
    let profiler = guest.vm.observe(&observation).expect("a VM").expect("a profiler");
    guest.vm.resume().expect("a VM");
    let begin = Instant::now();
    while profiler.taken() < 60 {
        assert!(begin.elapsed() < LIMIT, "{} samples", profiler.taken());
        thread::sleep(Duration::from_millis(3));
        guest.vm.pause().expect("a VM");
        assert!(!guest.vm.is_running().expect("a VM"));
        guest.vm.resume().expect("a VM");
    }
    guest.vm.kill();
    profiler.finish()
}

fn share(profile: &Profile, activity: Activity, place: &Range<u64>) -> f64 {
    let count = |all: bool| -> u64 {
        let samples = profile.samples.iter();
        let wanted = |sample: &lifecycle::Sample| {
            sample.activity == activity && !sample.user && place.contains(&sample.rip)
        };
        samples.filter(|(sample, _)| all || wanted(sample)).map(|(_, count)| count).sum()
    };
    count(false) as f64 / count(true) as f64
}

#[test]
fn a_profile_says_where_and_how_the_guest_executes() {
    // jmp $
    let spin = [0xeb, 0xfe];
    let place = bare::ENTRY64..bare::ENTRY64 + 2;
    let [interpreter, translator] = engines();
    let found = profile(interpreter, &spin);
    assert!(share(&found, Activity::Interpreter, &place) > 0.8, "{found:?}");
    let found = profile(translator, &spin);
    assert!(share(&found, Activity::Translated, &place) > 0.6, "{found:?}");
}

#[test]
fn a_guest_that_sleeps_is_idle() {
    for engine in engines() {
        // hlt; jmp $-1
        let found = profile(engine, &[0xf4, 0xeb, 0xfd]);
        assert!(share(&found, Activity::Idle, &(0..1)) > 0.8, "{found:?}");
    }
}
