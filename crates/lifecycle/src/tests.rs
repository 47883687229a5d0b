//! A whole VM on the stand-in engine: what its driver does with what guests and users do.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use device::Width;
use engine::{DebugStop, Debugging, StopReason};
use memory::Gpa;

use crate::testing::{ENTRY, Step, config, write_for};
use crate::{
    DebugNotice, Outcome, Policy, Progress, SnapshotDir, TripleFaultPolicy, Vm, VmConfig, VmError,
};

const COUNTER: u64 = 0x8000;
const POWER_OFF: StopReason = StopReason::PowerOff;

fn start(script: &[Step]) -> Vm {
    Vm::start(config(script, Policy::default()).0).expect("start")
}

fn outcome(script: &[Step], policy: Policy) -> Outcome {
    Vm::start(config(script, policy).0).expect("start").wait()
}

fn print(text: &str) -> Vec<Step> {
    text.bytes().map(|b| Step::Out(0x3f8, Width::Byte, b.into())).collect()
}

fn counter(vm: &Vm) -> u64 {
    let mut value = [0; 8];
    vm.machine().ram().read(Gpa(COUNTER), &mut value).unwrap();
    u64::from_le_bytes(value)
}

#[test]
fn guests_end_their_vms() {
    let policy = Policy::default();
    assert_eq!(outcome(&[write_for(POWER_OFF)], policy), Outcome::PoweredOff);
    let exit = write_for(StopReason::DebugExit { value: 0x2a });
    assert_eq!(outcome(&[exit], policy), Outcome::DebugExit(0x2a));
    assert!(
        matches!(outcome(&[Step::Fail], policy), Outcome::Failed(text) if text.contains("vCPU 0"))
    );
}

#[test]
fn a_triple_fault_says_where() {
    let fault = outcome(&[Step::Count(COUNTER), Step::Fault], Policy::default());
    let text = fault.to_string();
    assert!(matches!(fault, Outcome::TripleFault(f) if f.rip == ENTRY + 1 && f.cr3 == 0x1000));
    assert!(text.contains("vCPU 0") && text.contains("0x100001") && text.contains("0x1000"));
}

/// What a debugger was told, in order.
fn debugged(vm: &Vm) -> std::sync::mpsc::Receiver<DebugNotice> {
    let (told, notices) = std::sync::mpsc::channel();
    vm.set_debugger(Some(Box::new(move |notice| told.send(notice).unwrap()))).unwrap();
    notices
}

#[test]
fn a_debugger_is_told_where_the_guest_stops() {
    let script = [Step::Count(COUNTER), Step::Count(COUNTER), Step::Jump(1)];
    let vm = Vm::create(config(&script, Policy::default()).0).unwrap();
    let notices = debugged(&vm);
    let told = |stop| DebugNotice::Stopped { vcpu: 0, stop };
    let ask = |debugging| vm.with_vcpu(0, move |vcpu, _| vcpu.set_debugging(debugging)).unwrap();
    ask(Debugging { breakpoints: vec![ENTRY + 1], ..Debugging::default() });
    vm.resume().unwrap();
    assert_eq!(notices.recv().unwrap(), told(DebugStop::Breakpoint));
    assert_eq!(counter(&vm), 1);
    ask(Debugging { step: true, ..Debugging::default() });
    vm.resume().unwrap();
    assert_eq!(notices.recv().unwrap(), told(DebugStop::Stepped));
    assert_eq!(counter(&vm), 2);
    // A vCPU that is held stays where it is.
    vm.resume_without(vec![true]).unwrap();
    assert!(matches!(vm.with_vcpu(0, |_, _| ()), Err(VmError::Running)));
    vm.pause().unwrap();
    assert_eq!(counter(&vm), 2);
    assert!(matches!(vm.with_vcpu(1, |_, _| ()), Err(VmError::Vcpu { vcpu: 1, .. })));
    vm.kill();
    assert_eq!(notices.recv().unwrap(), DebugNotice::Ended(Outcome::Killed));
}

#[test]
fn a_debugger_sees_a_triple_fault_before_it_counts() {
    let vm = Vm::create(config(&[Step::Fault, Step::Fault], Policy::default()).0).unwrap();
    let notices = debugged(&vm);
    vm.resume().unwrap();
    assert!(matches!(notices.recv().unwrap(), DebugNotice::TripleFault(f) if f.rip == ENTRY));
    assert_eq!(vm.outcome(), None);
    vm.resume().unwrap();
    assert!(matches!(vm.wait(), Outcome::TripleFault(_)));
}

#[test]
fn resets_reboot_or_end() {
    let policy = Policy { no_reboot: true, ..Policy::default() };
    assert_eq!(outcome(&[write_for(StopReason::Reset)], policy), Outcome::Reset);
    // Counts its boots in memory, which a reset keeps, and powers off at the end of the script.
    let vm = start(&[Step::Count(COUNTER), Step::Count(COUNTER), write_for(StopReason::Reset)]);
    while vm.stats().unwrap().resets < 3 {
        assert!(vm.outcome().is_none());
    }
    vm.pause().unwrap();
    assert!(counter(&vm) >= 6);
}

#[test]
fn triple_faults_reboot_if_wanted() {
    let reset = Policy { triple_fault: TripleFaultPolicy::Reset, ..Policy::default() };
    let vm = Vm::start(config(&[Step::Count(COUNTER), Step::Fault], reset).0).unwrap();
    while vm.stats().unwrap().resets < 2 {
        assert!(vm.outcome().is_none());
    }
    let policy = Policy { no_reboot: true, ..reset };
    assert_eq!(outcome(&[Step::Fault], policy), Outcome::Reset);
}

#[test]
fn output_goes_to_the_console_and_a_reset_resets_devices() {
    // Sets the UART's scratch register, then resets: on the second way through it reads 0.
    let mut script = vec![Step::In(0x3ff, Width::Byte), Step::Out(0x3ff, Width::Byte, 0x5a)];
    script.extend(print("hello\n"));
    let (config, console) = config(&script, Policy::default());
    let vm = Vm::create(config).unwrap();
    vm.run_for(10).unwrap();
    assert_eq!(console.text(), "hello\n");
    vm.reset().unwrap();
    vm.run_for(1).unwrap();
    let stats = vm.stats().unwrap();
    let uart = stats.machine.ports.iter().find(|p| p.device == "uart").unwrap();
    assert_eq!((uart.reads, uart.writes), (2, 7));
    assert_eq!((stats.resets, stats.engine.as_str()), (1, "fake"));
}

#[test]
fn pausing_stops_the_guest_and_its_time() {
    let vm = start(&[Step::Count(COUNTER), Step::Jump(0)]);
    std::thread::sleep(Duration::from_millis(5));
    vm.pause().unwrap();
    vm.pause().unwrap();
    let (count, time) = (counter(&vm), vm.machine().guest_time());
    assert!(count > 0 && time > 0);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!((counter(&vm), vm.machine().guest_time()), (count, time));
    let resumed = Instant::now();
    vm.resume().unwrap();
    vm.resume().unwrap();
    std::thread::sleep(Duration::from_millis(5));
    vm.pause().unwrap();
    assert!(counter(&vm) > count);
    let ran = resumed.elapsed().as_nanos() as u64;
    assert!(vm.machine().guest_time() <= time + ran, "the pause counted");
}

#[test]
fn a_sleeping_guest_can_be_paused_and_killed() {
    let vm = start(&[Step::Halt, Step::Jump(0)]);
    let begin = Instant::now();
    vm.pause().unwrap();
    vm.resume().unwrap();
    vm.kill();
    assert_eq!(vm.wait(), Outcome::Killed);
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert!(matches!(vm.pause(), Err(VmError::Ended(Outcome::Killed))));
    assert!(vm.stats().unwrap().vcpus[0].instructions.is_some());
}

#[test]
fn budgets_are_exact() {
    let vm =
        Vm::create(config(&[Step::Count(COUNTER), Step::Jump(0)], Policy::default()).0).unwrap();
    for round in 1..=5 {
        assert_eq!(vm.run_for(20).unwrap(), Progress::Paused);
        assert_eq!(counter(&vm), round * 10);
    }
    vm.resume().unwrap();
    assert!(matches!(vm.run_for(1), Err(VmError::Running)));
    let vm = Vm::create(config(&[write_for(POWER_OFF)], Policy::default()).0).unwrap();
    assert_eq!(vm.run_for(20).unwrap(), Progress::Ended(Outcome::PoweredOff));
}

#[test]
fn the_power_button_reaches_the_guest() {
    // Enables the power button's event; its status bit is what the guest then polls.
    let enable = Step::Out(0x602, Width::Word, 0x100);
    let vm =
        Vm::create(config(&[enable, Step::In(0x600, Width::Word)], Policy::default()).0).unwrap();
    vm.run_for(1).unwrap();
    vm.press_power_button();
    let saved = save(&vm);
    vm.run_for(1).unwrap();
    drop(saved);
    let dir = tempfile::tempdir().unwrap();
    vm.save(SnapshotDir::create(dir.path()).unwrap()).unwrap();
    let rax = vcpu_of(dir.path()).general.gpr[0];
    assert_eq!(rax & 0x100, 0x100);
}

fn save(vm: &Vm) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    vm.save(SnapshotDir::create(dir.path()).unwrap()).unwrap();
    dir
}

fn archive_of(dir: &Path) -> state::Archive {
    state::Archive::read_from(fs::File::open(dir.join("state")).unwrap()).unwrap()
}

fn vcpu_of(dir: &Path) -> engine::VcpuState {
    archive_of(dir).take_decoded("0").unwrap()
}

fn restore(dir: &Path, script: &[Step]) -> Result<Vm, VmError> {
    let (with, _) = config(script, Policy::default());
    Vm::restore(&SnapshotDir::open(dir).unwrap(), VmConfig { boot: None, ..with })
}

fn script() -> Vec<Step> {
    // Programs the PIT and the I/O APIC, so that there is something to save.
    let mut script = vec![
        Step::Out(0x43, Width::Byte, 0x34),
        Step::Out(0x40, Width::Word, 0x1234),
        Step::Out(0x20, Width::Byte, 0x11),
        Step::Out(0x3ff, Width::Byte, 0x77),
    ];
    script.extend([Step::Count(COUNTER), Step::Count(COUNTER + (9 << 20)), Step::Jump(4)]);
    script
}

#[test]
fn a_restored_vm_goes_on_where_it_was_saved() {
    let vm = Vm::create(config(&script(), Policy::default()).0).unwrap();
    vm.run_for(100).unwrap();
    let dir = save(&vm);
    let restored = restore(dir.path(), &script()).unwrap();
    assert_eq!(restored.machine().guest_time(), vm.machine().guest_time());
    let again = save(&restored);
    assert!(
        fs::read(dir.path().join("memory")).unwrap()
            == fs::read(again.path().join("memory")).unwrap()
    );
    let (first, second) = (archive_of(dir.path()), archive_of(again.path()));
    // The real-time clock is the host's: it went on meanwhile.
    let same = |s: &&state::Section| s.kind != "rtc";
    let pairs = first.sections().iter().filter(same).zip(second.sections().iter().filter(same));
    for (one, other) in pairs {
        assert_eq!(one, other);
    }
    for vm in [&vm, &restored] {
        vm.run_for(100).unwrap();
    }
    assert_eq!(counter(&vm), counter(&restored));
    let (a, b) = (save(&vm), save(&restored));
    assert_eq!(vcpu_of(a.path()).general, vcpu_of(b.path()).general);
    let error = restored.reset().unwrap_err().to_string();
    assert!(error.contains("without a kernel"), "{error}");
}

#[test]
fn saving_a_running_vm_leaves_it_running() {
    let vm = start(&script());
    let dir = save(&vm);
    let before = SnapshotDir::open(dir.path()).unwrap().manifest().unwrap();
    assert_eq!(before.engine, "fake");
    assert!(before.sections.iter().any(|s| s.kind == "vcpu"));
    assert!(vm.run_for(1).is_err(), "it was not running");
    let error = SnapshotDir::create(dir.path()).unwrap_err().to_string();
    assert!(error.contains("already holds a snapshot"), "{error}");
}

#[test]
fn damaged_snapshots_are_refused_by_name() {
    let vm = Vm::create(config(&script(), Policy::default()).0).unwrap();
    vm.run_for(50).unwrap();
    let refused = |file: &str, named: &str, damage: &dyn Fn(&mut Vec<u8>)| {
        let dir = save(&vm);
        let path = dir.path().join(file);
        let mut content = fs::read(&path).unwrap();
        damage(&mut content);
        fs::write(&path, content).unwrap();
        let error = restore(dir.path(), &script()).err().expect("it was accepted").to_string();
        assert!(error.contains(named), "{error}");
    };
    for file in ["manifest.json", "state", "memory"] {
        refused(file, file, &|c| c.truncate(c.len() / 2));
        refused(file, file, &|c| c.clear());
        refused(file, file, &|c| c.push(b'x'));
    }
    for file in ["manifest.json", "state"] {
        for part in 1..9 {
            refused(file, file, &|c| {
                let at = c.len() * part / 10;
                c[at] ^= 0x11;
            });
        }
    }
    refused("memory", "memory", &|c| c[COUNTER as usize] ^= 1);
    refused("manifest.json", "newer", &|c| {
        let text = String::from_utf8(std::mem::take(c)).unwrap();
        *c = text.replace("\"format\": 2", "\"format\": 9").into_bytes();
    });
    let dir = save(&vm);
    fs::remove_file(dir.path().join("manifest.json")).unwrap();
    let error = restore(dir.path(), &script()).err().unwrap().to_string();
    assert!(error.contains("no finished snapshot"), "{error}");
    fs::remove_file(dir.path().join("state")).unwrap();
    assert!(SnapshotDir::create(dir.path()).is_ok(), "an unfinished one cannot be retaken");
}

#[test]
fn a_bug_in_an_engine_ends_the_vm_with_a_message() {
    let end = outcome(&[Step::Panic], Policy::default());
    assert!(matches!(&end, Outcome::Failed(text) if text.contains("a bug in the engine")), "{end}");
}

#[test]
fn what_cannot_be_started_says_why() {
    let with = |change: &dyn Fn(&mut VmConfig)| {
        let (mut config, _) = config(&[], Policy::default());
        change(&mut config);
        Vm::start(config).err().expect("it started").to_string()
    };
    assert!(with(&|c| c.spec.memory = 1 << 20).contains("--memory"));
    assert!(with(&|c| c.spec.cpus = 0).contains("--cpus"));
    assert!(with(&|c| c.boot = None).contains("kernel"));
    assert!(with(&|c| c.spec.cmdline = "x".repeat(1 << 20)).contains("command line"));
}

#[test]
fn a_dropped_vm_ends() {
    let vm = Arc::new(start(&[Step::Jump(0)]));
    let ending = Arc::downgrade(&vm);
    drop(vm);
    assert!(ending.upgrade().is_none());
}
