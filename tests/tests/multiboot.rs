//! Multiboot kernels: one of our own that checks what it is handed, and the Xen hypervisor with a
//! stock kernel as its first domain.
//!
//! Xen is Debian's package as it is shipped. Its first domain's kernel runs paravirtualized, at
//! privilege level 3, so that this also shows what engines make of a kernel there.

use std::sync::Arc;
use std::time::Duration;

use engine::Engine;
use images::kernels::Flavour;
use lifecycle::{BootFiles, Outcome};
use ringfence_tests::guests::{self, Oracle, judge, known_deviations};
use ringfence_tests::stock::{Form, xen_boot_files};
use ringfence_tests::vm::Setup;

/// Far above what a program takes alone: the tests of a run share the host.
const LIMIT: Duration = Duration::from_secs(120);
/// The same for a boot of Xen.
const XEN: Duration = Duration::from_secs(900);

fn interpreter() -> Arc<dyn Engine> {
    Arc::new(interpreter::Interpreter::new())
}

fn translator() -> Arc<dyn Engine> {
    Arc::new(translator::Translator::new().expect("a host with BMI2 and AVX2"))
}

/// A module and the string that describes it.
fn module(len: u32, step: u8) -> (Vec<u8>, String) {
    let bytes: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(step)).collect();
    let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
    (bytes, format!("x len={len} sum={sum} len=0"))
}

fn program(engine: Arc<dyn Engine>) {
    let (_, path) = guests::all().iter().find(|(name, _)| *name == "multiboot").expect("a program");
    let elf = std::fs::read(path).expect("the build script has built it");
    let mut boot = BootFiles::from_bytes(elf, None).expect("a multiboot kernel");
    for (index, (len, step)) in [(5000, 7), (1, 1), (3 << 20, 13)].into_iter().enumerate() {
        let (bytes, args) = module(len, step);
        boot = boot.with_module_bytes(bytes, &format!("dir/m{index}"), &args).expect("a module");
    }
    let setup = Setup::new(engine, 128, boot).debug_exit().cmdline("quiet modules=3");
    let guest = setup.start();
    let outcome = guest.end(LIMIT);
    let verdict = judge(&guest.text(), &known_deviations(Oracle::Exact, "multiboot"));
    let all_modules = verdict.passed >= 12 + 9;
    assert!(
        verdict.is_success() && all_modules && outcome == Outcome::DebugExit(0),
        "{outcome}:\n{}",
        guest.last_lines()
    );
}

#[test]
fn a_kernel_gets_its_modules_on_the_interpreter() {
    program(interpreter());
}

#[test]
fn a_kernel_gets_its_modules_on_the_translator() {
    program(translator());
}

/// What the first domain does: it must see that it runs on Xen.
const DOM0: &str = "echo GUEST-TYPE $(cat /sys/hypervisor/type) $(cat /sys/hypervisor/guest_type)
echo CPUS $(grep -c ^processor /proc/cpuinfo)
echo SUM $(seq 1 20000 | md5sum)";

fn xen(engine: Arc<dyn Engine>, form: Form, cpus: u32) {
    let Some(boot) = xen_boot_files(Flavour::Amd64, form, "console=hvc0", DOM0) else { return };
    let cmdline = "console=com1 com1=115200,8n1 loglvl=all dom0_mem=512M";
    let mut setup = Setup::new(engine, 1024, boot).cmdline(cmdline);
    setup.spec.cpus = cpus;
    let guest = setup.start();
    guest.expect("GUEST-UP", XEN);
    let outcome = guest.end(XEN);
    let text = guest.text();
    assert_eq!(outcome, Outcome::PoweredOff, "{}", guest.last_lines());
    let processors = format!("CPUS {cpus}");
    for line in [
        &processors,
        "Bootloader: Ringfence",
        "*** Building a PV Dom0 ***",
        "GUEST-TYPE xen PV",
        "SUM e071f707df7bbeee2a6a1eb48011ddd0",
        "GUEST-DOWN",
    ] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
    for complaint in ["Panic on CPU", "Call Trace", "BUG:", "Oops", "Unhandled", "WARNING: CPU"] {
        assert!(!text.contains(complaint), "{complaint:?} in\n{text}");
    }
}

/// With an unpacked kernel as its first domain, which spares Xen the unpacking.
#[test]
fn xen_boots_a_stock_kernel_as_its_first_domain() {
    xen(translator(), Form::Pvh, 1);
}

/// Xen starts the second processor through its real-mode trampoline.
#[test]
fn xen_boots_on_two_processors() {
    xen(translator(), Form::Pvh, 2);
}

#[test]
#[ignore = "takes the interpreter minutes: run in release builds"]
fn xen_boots_a_bzimage_on_the_interpreter() {
    xen(interpreter(), Form::BzImage, 1);
}
