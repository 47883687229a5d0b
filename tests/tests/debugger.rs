//! Debugging a guest, on every engine: by a client that checks each answer, and by gdb itself.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use debug::{Address, Server, Serving};
use engine::Engine;
use images::kernels::Flavour;
use interpreter::Interpreter;
use kvm::Kvm;
use lifecycle::{BootFiles, Outcome, Vm};
use ringfence_tests::rsp::{Debugger, register};
use ringfence_tests::stock::{Form, boot_files, skipped};
use ringfence_tests::vm::{Setup, Transcript};
use ringfence_tests::{bare, guests};
use tempfile::TempDir;
use translator::Translator;

/// Some ten times what a boot takes alone: the tests of a run share the host.
const BOOT: Duration = Duration::from_secs(400);

/// A VM that waits for a debugger.
struct Waiting {
    vm: Arc<Vm>,
    console: Arc<Transcript>,
    folder: TempDir,
    _server: Serving,
}

impl Waiting {
    fn new(setup: Setup) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let server = Server::bind(&Address::Unix(folder.path().join("gdb"))).expect("a socket");
        let guest = setup.create();
        let vm = Arc::new(guest.vm);
        let server = server.serve(Arc::clone(&vm)).expect("threads");
        Self { vm, console: guest.console, folder, _server: server }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("gdb")
    }

    fn connect(&self) -> Debugger {
        Debugger::connect(&self.socket())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Its server keeps the VM.
        self.vm.kill();
    }
}

fn translator() -> Arc<dyn Engine> {
    Arc::new(Translator::new().expect("a host with BMI2 and AVX2"))
}

fn engines() -> Vec<Arc<dyn Engine>> {
    let mut engines: Vec<Arc<dyn Engine>> = vec![Arc::new(Interpreter::new()), translator()];
    match Kvm::open() {
        Ok(kvm) => engines.push(Arc::new(kvm)),
        Err(error) => skipped(&format!("without kvm: {error}")),
    }
    engines
}

/// Where the loop of [`counting`] begins, and its instructions.
const LOOP: u64 = bare::ENTRY64 + 3;
const STORE: u64 = LOOP + 3;
const LOAD: u64 = STORE + 8;
/// Where it counts.
const COUNTER: u64 = 0x9000;

/// Counts in RBX and in memory, for ever.
fn counting() -> BootFiles {
    let mut code = vec![0x48, 0x31, 0xdb];
    // again: inc rbx; mov [COUNTER], rbx; mov rax, [COUNTER]; jmp again
    code.extend([0x48, 0xff, 0xc3, 0x48, 0x89, 0x1c, 0x25, 0, 0x90, 0, 0]);
    code.extend([0x48, 0x8b, 0x04, 0x25, 0, 0x90, 0, 0, 0xeb, 0xeb]);
    bare::guest64(&code)
}

#[test]
fn breakpoints_and_steps() {
    for engine in engines() {
        let guest = Waiting::new(Setup::new(engine, 16, counting()));
        let mut debugger = guest.connect();
        assert_eq!(debugger.register(register::RIP), u64::from(bare::ENTRY), "before anything");
        let before = debugger.memory(STORE, 8);
        for (kind, reason) in [(0, "swbreak:;"), (1, "hwbreak:;")] {
            assert_eq!(debugger.ask(&format!("Z{kind},{STORE:x},1")), "OK");
            let stop = debugger.ask("vCont;c");
            assert!(stop.starts_with("T05") && stop.ends_with(reason), "{stop}");
            assert_eq!(debugger.register(register::RIP), STORE);
            assert_eq!(debugger.memory(STORE, 8), before, "nothing to be seen in memory");
            assert_eq!(debugger.ask(&format!("z{kind},{STORE:x},1")), "OK");
        }
        // The second breakpoint was met where the first had stopped the guest.
        assert_eq!(debugger.register(register::RBX), 1);
        for rip in [LOAD, LOAD + 8, LOOP, STORE] {
            assert!(debugger.ask("vCont;s:p1.1").starts_with("T05"));
            assert_eq!(debugger.register(register::RIP), rip);
        }
        assert_eq!(debugger.register(register::RBX), 2);
        debugger.set_register(register::RBX, 1000);
        assert!(debugger.ask("vCont;s:p1.1").starts_with("T05"));
        assert_eq!(debugger.memory(COUNTER, 8), 1000_u64.to_le_bytes());
        debugger.send("k");
        assert_eq!(guest.vm.wait(), Outcome::Killed);
    }
}

#[test]
fn watchpoints() {
    for engine in engines() {
        let guest = Waiting::new(Setup::new(engine, 16, counting()));
        let mut debugger = guest.connect();
        // Write, read and access, and where the guest is then.
        for (kind, name, stops) in [
            (2, "watch", [LOAD, LOAD]),
            (3, "rwatch", [LOAD + 8, LOAD + 8]),
            (4, "awatch", [LOAD, LOAD + 8]),
        ] {
            let at = COUNTER + 4;
            assert_eq!(debugger.ask(&format!("Z{kind},{at:x},4")), "OK");
            for rip in stops {
                let stop = debugger.ask("vCont;c");
                assert!(stop.contains(&format!("{name}:{at:x};")), "{stop}");
                assert_eq!(debugger.register(register::RIP), rip, "{name}");
            }
            assert_eq!(debugger.ask(&format!("z{kind},{at:x},4")), "OK");
        }
        debugger.send("D");
    }
}

#[test]
fn interrupting_writing_code_resetting_and_coming_back() {
    for engine in engines() {
        let guest = Waiting::new(Setup::new(engine, 16, counting()));
        let mut debugger = guest.connect();
        let run = |debugger: &mut Debugger| {
            debugger.send("vCont;c");
            thread::sleep(Duration::from_millis(30));
            debugger.interrupt();
            let stop = debugger.answer();
            assert!(stop.starts_with("T02"), "{stop}");
            debugger.register(register::RBX)
        };
        let (first, second) = (run(&mut debugger), run(&mut debugger));
        assert!(second > first, "{first}, {second}");
        // dec rbx
        assert_eq!(debugger.ask(&format!("M{LOOP:x},3:48ffcb")), "OK");
        let third = run(&mut debugger);
        assert!(third.cast_signed() < second.cast_signed(), "{second}, {third}");
        assert_eq!(debugger.ask("m7fffffff0000,4"), "E79", "there is nothing");
        assert!(debugger.monitor("reset").contains("reset"));
        assert!(debugger.monitor("nonsense").contains("help"));
        assert_eq!(debugger.register(register::RIP), u64::from(bare::ENTRY));
        assert_eq!(debugger.ask(&format!("Z0,{STORE:x},1")), "OK");
        assert_eq!(debugger.ask("D"), "OK");
        drop(debugger);
        // The breakpoint has gone with the debugger: the guest runs, until the next one comes.
        thread::sleep(Duration::from_millis(30));
        let mut debugger = guest.connect();
        let counted = debugger.register(register::RBX);
        assert!(counted > 1, "{counted}");
        debugger.monitor("kill");
        assert_eq!(guest.vm.wait(), Outcome::Killed);
    }
}

#[test]
fn one_of_two_vcpus() {
    // The second counts at 0x9000 with 16-bit code: inc dword [0x9000]; jmp back
    let second = [0x66, 0xff, 0x06, 0x00, 0x90, 0xeb, 0xf9];
    let code = bare::two_vcpus(&bare::for_ever(&[0x90]), &second);
    for engine in [Arc::new(Interpreter::new()) as Arc<dyn Engine>, translator()] {
        let guest = Waiting::new(Setup::new(engine, 16, bare::guest64(&code)).cpus(2));
        let mut debugger = guest.connect();
        assert_eq!(debugger.ask("qfThreadInfo"), "mp01.01,p01.02");
        assert_eq!(debugger.ask(&format!("Z0,{:x},1", bare::SECOND)), "OK");
        let stop = debugger.ask("vCont;c");
        assert!(stop.contains("thread:p01.02"), "{stop}");
        assert_eq!(debugger.ask(&format!("z0,{:x},1", bare::SECOND)), "OK");
        assert_eq!(debugger.ask("Hgp1.1"), "OK");
        let first = debugger.registers();
        // Only the second goes on.
        for _ in 0..4 {
            let stop = debugger.ask("vCont;s:p1.2");
            assert!(stop.contains("thread:p01.02"), "{stop}");
        }
        assert_eq!(debugger.memory(COUNTER, 4), [2, 0, 0, 0]);
        assert_eq!(debugger.ask("Hgp1.1"), "OK");
        assert_eq!(debugger.registers(), first);
        debugger.send("D");
    }
}

#[test]
fn a_triple_fault_is_shown_before_it_ends_the_vm() {
    for engine in engines() {
        // ud2, without an interrupt table
        let guest = Waiting::new(Setup::new(engine, 16, bare::guest64(&[0x0f, 0x0b])));
        let mut debugger = guest.connect();
        assert!(debugger.ask("vCont;c").starts_with("T0b"));
        assert_eq!(debugger.register(register::RIP), bare::ENTRY64);
        assert_eq!(debugger.ask("vCont;c"), "W03");
        assert!(matches!(guest.vm.wait(), Outcome::TripleFault(_)));
    }
}

/// The guest program that tests the debug registers finds them its own while a debugger has a
/// breakpoint and a watchpoint.
#[test]
fn the_guests_debug_registers_are_its_own() {
    let path = guests::all().iter().find(|(name, _)| *name == "debug").expect("it is there").1;
    for engine in engines() {
        let file = std::fs::read(path).expect("its build script has built it");
        let boot = BootFiles::from_bytes(file, None).expect("an ELF file");
        let guest = Waiting::new(Setup::new(engine, 64, boot).debug_exit());
        let mut debugger = guest.connect();
        assert_eq!(debugger.ask("Z0,ffffffffffff0123,1"), "OK");
        assert_eq!(debugger.ask("Z4,ffffffffffff0000,8"), "OK");
        let end = debugger.ask("vCont;c");
        let verdict = guests::judge(&guest.console.text(), &[]);
        assert!(verdict.is_success(), "{end}: {:?}", verdict.failures);
        assert_eq!(end, "W01");
    }
}

#[test]
fn clients_without_manners() {
    let guest = Waiting::new(Setup::new(translator(), 16, counting()));
    let nonsense: [&[u8]; 6] = [
        b"",
        b"\x03\x03\x03",
        b"$#00$$$$####+++---",
        b"$G00#d7$m,#99$Z9,,#00",
        b"$vCont;s:pffffffff.ffffffffffffffff;c:p0.0#00",
        &[b'$'; 100_000],
    ];
    for bytes in nonsense {
        let mut stream = UnixStream::connect(guest.socket()).expect("it listens");
        // The server may hang up on it at any time, and does when there is no more to come.
        let _ = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    }
    let mut debugger = guest.connect();
    assert_eq!(debugger.ask("Hgp1.7fffffff"), "OK");
    assert!(debugger.ask("g").starts_with('E'));
    assert_eq!(debugger.ask("Hgp1.1"), "OK");
    assert!(debugger.memory(STORE, 0).is_empty());
    assert!(debugger.ask("mffffffffffffffff,2").starts_with('E'));
    assert!(debugger.ask("M7fffffff0000,1:00").starts_with('E'));
    debugger.monitor("kill");
}

/// Runs gdb with these commands against `guest`; what it printed, if there is a gdb.
fn gdb(guest: &Waiting, commands: &[String]) -> Option<String> {
    let socket = guest.socket();
    let mut all = Command::new("gdb");
    all.args(["-nx", "-batch", "-ex", "set pagination off", "-ex", "set confirm off"]);
    all.args(["-ex", &format!("target remote {}", Path::display(&socket))]);
    for command in commands {
        all.args(["-ex", command]);
    }
    match all.output() {
        Ok(output) => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
        Err(error) => {
            skipped(&format!("gdb: {error}"));
            None
        }
    }
}

/// Where a stock kernel begins, from the kernel itself.
fn start_kernel() -> Option<u64> {
    let script = "grep ' start_kernel$' /proc/kallsyms";
    let files = boot_files(Flavour::Cloud, Form::Pvh, script)?;
    let setup = Setup::new(translator(), 256, files).cmdline("console=ttyS0 quiet nokaslr");
    let guest = setup.start();
    assert_eq!(guest.end(BOOT), Outcome::PoweredOff, "{}", guest.last_lines());
    let text = guest.text();
    let line = text.lines().find(|line| line.contains(" start_kernel")).expect("a symbol");
    Some(u64::from_str_radix(line.split(' ').next()?.trim(), 16).expect("an address"))
}

#[test]
fn gdb_stops_a_stock_kernel_where_it_begins() {
    let Some(start) = start_kernel() else { return };
    for engine in [translator(), Arc::new(Interpreter::new())] {
        let Some(files) = boot_files(Flavour::Cloud, Form::Pvh, "echo WORKED") else { return };
        let setup = Setup::new(engine, 256, files).cpus(2);
        let guest = Waiting::new(setup.cmdline("console=ttyS0 quiet nokaslr"));
        let commands = [
            format!("break *{start:#x}"),
            "continue".to_owned(),
            "print/x $pc".to_owned(),
            "stepi".to_owned(),
            "print $pc".to_owned(),
            "info threads".to_owned(),
            "print $cr0 & 1".to_owned(),
            "print $xmm0.uint128".to_owned(),
            "print $st0".to_owned(),
            "set $rax = 4321".to_owned(),
            "print $rax".to_owned(),
            "x/2i $pc".to_owned(),
            "watch -location *(long *) $rsp".to_owned(),
            "continue".to_owned(),
            "delete".to_owned(),
            "continue".to_owned(),
        ];
        let Some(text) = gdb(&guest, &commands) else { return };
        for line in [
            &format!("$1 = {start:#x}"),
            "Breakpoint 1, ",
            "vCPU 1 waits for a start-up IPI",
            "= 1\n",
            "= 4321",
            "Hardware watchpoint 2",
            "exited normally",
        ] {
            assert!(text.contains(line), "no {line:?}:\n{text}");
        }
        assert_eq!(guest.vm.wait(), Outcome::PoweredOff);
        assert!(guest.console.text().contains("WORKED"));
    }
}
