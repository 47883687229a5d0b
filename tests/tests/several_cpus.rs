//! Guests with several vCPUs: the stress program of `guests/stress` under a stock kernel, compared
//! with the host round by round, and a triple fault of a vCPU that another has started.
//!
//! `STRESS_ROUNDS` says how many rounds (1), `STRESS_SEED` which. `cargo xtask stress` does the same
//! for as long as one likes.

use std::sync::Arc;
use std::time::Duration;

use engine::Engine;
use images::initramfs::Builder;
use images::kernels::Flavour;
use interpreter::Interpreter;
use lifecycle::Outcome;
use ringfence_tests::bare;
use ringfence_tests::settings::number;
use ringfence_tests::stock::{Form, boot_files_with};
use ringfence_tests::vm::Setup;
use translator::Translator;
use workload::stress::{Comparison, Extent, GUEST_PATH, Plan, program};

/// Some ten times what a run takes alone: the tests of a run share the host.
const LIMIT: Duration = Duration::from_secs(600);

fn stress(engine: Arc<dyn Engine>, cpus: u32) {
    let extent = Extent::Rounds(number("STRESS_ROUNDS").unwrap_or(1));
    let seed = number("STRESS_SEED").unwrap_or(0x0073_6d70);
    let plan = Plan { seed, threads: cpus, extent };
    let program = std::fs::read(program()).expect("its build script has built it");
    let files = Builder::new().file(GUEST_PATH, 0o755, program);
    let script = plan.script();
    let Some(files) = boot_files_with(Flavour::Cloud, Form::Pvh, files, &script) else { return };
    let guest = Setup::new(engine, 512, files).cpus(cpus).cmdline("console=ttyS0 quiet").start();
    let outcome = guest.end(LIMIT);
    assert_eq!(outcome, Outcome::PoweredOff, "{}", guest.last_lines());
    let mut comparison = Comparison::start(&plan).expect("the host runs it too");
    let judged = guest.text().lines().try_for_each(|line| comparison.line(line));
    if let Err(finding) = judged.and_then(|()| comparison.finish()) {
        panic!("seed {seed}: {finding}\n{}", guest.last_lines());
    }
}

fn translator() -> Arc<dyn Engine> {
    Arc::new(Translator::new().expect("a host with BMI2 and AVX2"))
}

#[test]
fn two_vcpus_of_the_interpreter_compute_as_the_host() {
    stress(Arc::new(Interpreter::new()), 2);
}

#[test]
fn four_vcpus_of_the_interpreter_compute_as_the_host() {
    stress(Arc::new(Interpreter::new()), 4);
}

#[test]
fn two_vcpus_of_the_translator_compute_as_the_host() {
    stress(translator(), 2);
}

#[test]
fn four_vcpus_of_the_translator_compute_as_the_host() {
    stress(translator(), 4);
}

/// Code for the first of two vCPUs: starts the other at `start`, 16-bit code of at most 8 bytes.
fn start_other(start: &[u8]) -> Vec<u8> {
    let mut bytes = [0x90; 8];
    bytes[..start.len()].copy_from_slice(start);
    // mov rax, bytes; mov [0x8000], rax
    let mut code = [&[0x48, 0xb8][..], &bytes, &[0x48, 0x89, 0x04, 0x25, 0, 0x80, 0, 0]].concat();
    // mov ecx, IA32_APIC_BASE; rdmsr; or ah, x2APIC and enable; wrmsr
    code.extend([0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32, 0x80, 0xcc, 0x0c, 0x0f, 0x30]);
    // mov ecx, ICR; mov edx, 1; then INIT, and SIPI with vector 8: mov eax, command; wrmsr
    code.extend([0xb9, 0x30, 8, 0, 0, 0xba, 1, 0, 0, 0]);
    for command in [0x4500_u32, 0x4608] {
        code.push(0xb8);
        code.extend(command.to_le_bytes());
        code.extend([0x0f, 0x30]);
    }
    // The first one sleeps for ever: hlt; jmp back
    code.extend([0xf4, 0xeb, 0xfd]);
    code
}

/// What shuts one processor down shuts the machine down (SDM vol. 3A 6.15, interrupt 8): a PC
/// resets then, and this VM ends by default.
#[test]
fn a_triple_fault_of_any_vcpu_ends_the_vm() {
    for engine in [Arc::new(Interpreter::new()) as Arc<dyn Engine>, translator()] {
        // lidt [0x9000], which is a limit of 0; ud2
        let code = start_other(&[0x0f, 0x01, 0x1e, 0x00, 0x90, 0x0f, 0x0b]);
        let guest = Setup::new(engine, 64, bare::guest64(&code)).cpus(2).start();
        let outcome = guest.end(LIMIT);
        let of_second = matches!(&outcome, Outcome::TripleFault(fault) if fault.vcpu == 1);
        assert!(of_second, "{outcome}");
    }
}
