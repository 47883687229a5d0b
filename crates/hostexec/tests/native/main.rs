//! Compares this crate with the host: random instructions of the allow-lists,
//! run natively as they are and through [`Executor`], must leave the same
//! registers, flags, memory and faults.

mod elements;
mod forms;
mod generate;
mod harness;
mod images;

use std::collections::BTreeMap;

use generate::Random;
use harness::{Native, Registers};
use hostexec::{Executor, HostOp, Outcome, Scratch, X87Pointers};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use nix::libc;

/// Decodes and compiles a random instruction of this crate.
fn random_op(random: &mut Random, executor: &mut Executor) -> (Vec<u8>, Instruction, HostOp) {
    loop {
        let mut bytes = generate::instruction(random);
        let instruction = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
        let memory = instruction.op_kinds().any(|kind| kind == OpKind::Memory);
        if instruction.is_invalid() || (memory && !is_at_rcx(&instruction)) {
            continue;
        }
        bytes.truncate(instruction.len());
        let op = match executor.compile(&instruction) {
            Ok(op) => op,
            Err(_) => {
                executor.reset();
                continue;
            }
        };
        if let Some(op) = op {
            return (bytes, instruction, op);
        }
    }
}

fn is_at_rcx(instruction: &Instruction) -> bool {
    instruction.memory_base() == Register::RCX
        && instruction.memory_index() == Register::None
        && instruction.memory_displacement64() == 0
}

fn pointers(native: &Native, bytes: &[u8]) -> X87Pointers {
    X87Pointers {
        rip: native.instruction_address(),
        data: native.memory_address(),
        opcode: X87Pointers::opcode_of(bytes),
        real_mode: false,
    }
}

/// What the host's answer should be.
fn expected_signal(outcome: Outcome) -> Option<i32> {
    match outcome {
        Outcome::Done | Outcome::DoneWithoutStore => None,
        Outcome::SimdException | Outcome::X87Pending => Some(libc::SIGFPE),
        Outcome::GeneralProtection => Some(libc::SIGSEGV),
    }
}

/// Takes over flags of MXCSR that [`Executor::run`] documents as deviating.
fn ignore_known_deviations(
    instruction: &Instruction,
    outcome: Outcome,
    ours: &Registers,
    theirs: &mut Registers,
) {
    const INEXACT: u32 = 0x20;
    const OVERFLOW_OR_UNDERFLOW: u32 = 0x18;
    let mxcsr = theirs.state.mxcsr();
    let unmasked = mxcsr & !(mxcsr >> 7);
    if outcome != Outcome::SimdException {
        return;
    }
    let ignored = match instruction.mnemonic() {
        Mnemonic::Dpps | Mnemonic::Dppd | Mnemonic::Vdpps | Mnemonic::Vdppd => 0x3f,
        _ if unmasked & OVERFLOW_OR_UNDERFLOW != 0 => INEXACT,
        _ => 0,
    };
    let value = mxcsr & !ignored | ours.state.mxcsr() & ignored;
    theirs.state.set_mxcsr(value).expect("existing bits");
}

/// The lines in which two register states differ.
fn changed_lines(ours: &Registers, theirs: &Registers) -> String {
    let (ours, theirs) = (format!("{ours:#x?}"), format!("{theirs:#x?}"));
    let pairs = ours.lines().zip(theirs.lines()).filter(|(a, b)| a != b);
    pairs.map(|(a, b)| format!("{}, host {}\n", a.trim(), b.trim())).collect()
}

struct Case {
    bytes: Vec<u8>,
    instruction: Instruction,
    before: Registers,
    memory: [u8; 512],
}

/// Runs one case both ways; the differences as text.
fn compare(native: &mut Native, executor: &Executor, op: &HostOp, case: &Case) -> Option<String> {
    let mut ours = case.before.clone();
    let mut scratch = Scratch::new();
    scratch.bytes = case.memory;
    if !op.memory().read {
        scratch.bytes.fill(0xee); // must not matter
    }
    let x87 = pointers(native, &case.bytes);
    let Registers { state, gprs, rflags } = &mut ours;
    let outcome = executor.run(op, state, gprs, rflags, &mut scratch, &x87);
    let mut our_memory = case.memory;
    if op.memory().write && outcome == Outcome::Done {
        let size = op.memory().size;
        our_memory[..size].copy_from_slice(&scratch.bytes[..size]);
    }

    let mut theirs = case.before.clone();
    native.memory()[..512].copy_from_slice(&case.memory);
    let signal = native.run(&case.bytes, &mut theirs);
    let mut difference = String::new();
    ignore_known_deviations(&case.instruction, outcome, &ours, &mut theirs);
    if signal != expected_signal(outcome) {
        difference += &format!("outcome {outcome:?}, host signal {signal:?}\n");
    }
    if native.memory()[..512] != our_memory {
        difference += &format!("memory {our_memory:x?}\nhost {:x?}\n", &native.memory()[..512]);
    }
    if ours != theirs {
        difference += &changed_lines(&ours, &theirs);
    }
    (!difference.is_empty()).then_some(difference)
}

#[test]
fn random_instructions_equal_the_host() {
    let cases: usize = std::env::var("HOSTEXEC_CASES").map_or(200_000, |n| n.parse().unwrap());
    let seed = std::env::var("HOSTEXEC_SEED").map_or(1, |n| n.parse().unwrap());
    let mut native = Native::lock();
    let mut executor = Executor::new().unwrap();
    let mut random = Random::new(seed);
    let mut failures: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for _ in 0..cases {
        let (bytes, instruction, op) = random_op(&mut random, &mut executor);
        let before = Registers {
            state: generate::state(&mut random),
            gprs: generate::gprs(&mut random, native.memory_address()),
            rflags: generate::rflags(&mut random),
        };
        let memory = generate::memory(&mut random);
        let case = Case { bytes, instruction, before, memory };
        if let Some(difference) = compare(&mut native, &executor, &op, &case) {
            let text = format!("{:x?} {:x?}\n{difference}", case.bytes, case.before);
            failures.entry(format!("{:?}", case.instruction.code())).or_insert((0, text)).0 += 1;
        }
    }
    for (code, (count, text)) in &failures {
        if std::env::var_os("HOSTEXEC_BRIEF").is_none() {
            eprintln!("{text}");
        }
        eprintln!("{code}: {count} differences");
    }
    assert!(failures.is_empty(), "{} instructions differ from the host", failures.len());
}
