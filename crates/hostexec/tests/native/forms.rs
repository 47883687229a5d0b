//! Every instruction form of the allow-lists: coverage, equality with the host,
//! properties of the memory operand, independence of the host's own state.

use std::arch::asm;
use std::collections::BTreeSet;

use hostexec::{Executor, FpuState, Outcome, Scratch, Unit, X87Pointers};
use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, EncodingKind, Instruction, Mnemonic, OpKind,
};
use nix::libc;

use crate::generate::{self, Random};
use crate::harness::{Native, Registers};
use crate::{Case, compare, is_at_rcx};

/// A form, decoded for 64-bit mode, and its handle.
struct Form {
    bytes: Vec<u8>,
    instruction: Instruction,
    op: hostexec::HostOp,
}

/// All forms that compile.
fn all_forms(executor: &mut Executor) -> Vec<Form> {
    let mut forms = Vec::new();
    generate::every_form(|bytes| {
        let instruction = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
        if instruction.op_kinds().any(|kind| kind == OpKind::Memory) && !is_at_rcx(&instruction) {
            return; // the bytes are another instruction than meant
        }
        if let Some(op) = executor.compile(&instruction).expect("the buffer is large enough") {
            forms.push(Form { bytes: bytes[..instruction.len()].to_vec(), instruction, op });
        }
    });
    forms
}

fn has_memory(form: &Form) -> bool {
    form.op.memory().size != 0
}

#[test]
fn every_form_equals_the_host() {
    let mut native = Native::lock();
    let mut executor = Executor::new().unwrap();
    let mut random = Random::new(2);
    let mut failed = BTreeSet::new();
    for form in all_forms(&mut executor) {
        for _ in 0..4 {
            let before = Registers {
                state: generate::state(&mut random),
                gprs: generate::gprs(&mut random, native.memory_address()),
                rflags: generate::rflags(&mut random),
            };
            let case = Case {
                bytes: form.bytes.clone(),
                instruction: form.instruction,
                before,
                memory: generate::memory(&mut random),
            };
            if let Some(difference) = compare(&mut native, &executor, &form.op, &case) {
                eprintln!("{:x?}: {difference}", form.bytes);
                failed.insert(format!("{:?}", form.instruction.code()));
            }
        }
    }
    assert!(failed.is_empty(), "differ from the host: {failed:?}");
}

/// Features that this crate covers.
fn is_covered(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::FPU
            | F::FPU287
            | F::FPU387
            | F::MMX
            | F::FXSR
            | F::SSE
            | F::SSE2
            | F::SSE3
            | F::SSSE3
            | F::SSE4_1
            | F::SSE4_2
            | F::AES
            | F::PCLMULQDQ
            | F::SHA
            | F::AVX
            | F::AVX2
            | F::FMA
            | F::F16C
    )
}

/// Instructions of those features that are not this crate's.
fn is_elsewhere(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        // General registers and memory only.
        M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 | M::Sfence | M::Lfence
            | M::Mfence | M::Movnti | M::Crc32
            // In hostexec::elements.
            | M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu | M::Vmaskmovps | M::Vmaskmovpd
            | M::Vpmaskmovd | M::Vpmaskmovq | M::Vgatherdps | M::Vgatherdpd | M::Vgatherqps
            | M::Vgatherqpd | M::Vpgatherdd | M::Vpgatherdq | M::Vpgatherqd | M::Vpgatherqq
            // WAIT and the form without wait, which the decoder tells apart.
            | M::Fstcw | M::Fstenv | M::Fstsw | M::Fsave | M::Finit | M::Fclex | M::Feni
            | M::Fdisi | M::Fsetpm
    )
}

#[test]
fn no_form_is_forgotten() {
    let mut executor = Executor::new().unwrap();
    let compiled: BTreeSet<Code> =
        all_forms(&mut executor).iter().map(|form| form.instruction.code()).collect();
    let missing: Vec<Code> = Code::values()
        .filter(|code| matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::VEX))
        .filter(|code| code.cpuid_features().iter().all(|&feature| is_covered(feature)))
        .filter(|code| !is_elsewhere(code.mnemonic()) && !compiled.contains(code))
        .collect();
    assert!(missing.is_empty(), "not taken, or not generated: {missing:?}");
    assert!(compiled.len() > 900, "only {} forms", compiled.len());
}

/// Two pages, of which an operand may use the first one only.
struct Fence {
    start: usize,
}

impl Fence {
    const PAGE: usize = 4096;

    fn new() -> Self {
        // SAFETY: a fresh anonymous mapping; one page of it becomes
        // inaccessible.
        let start = unsafe {
            let start = libc::mmap(
                std::ptr::null_mut(),
                2 * Self::PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(start, libc::MAP_FAILED);
            let second = start.cast::<u8>().add(Self::PAGE).cast();
            assert_eq!(libc::mprotect(second, Self::PAGE, libc::PROT_NONE), 0);
            start
        };
        Self { start: start as usize }
    }

    fn end(&self) -> u64 {
        (self.start + Self::PAGE) as u64
    }

    fn protect(&self, protection: i32) {
        // SAFETY: the first page of our own mapping.
        let result = unsafe { libc::mprotect(self.start as *mut _, Self::PAGE, protection) };
        assert_eq!(result, 0);
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        // SAFETY: our own mapping, to which no reference exists.
        unsafe {
            libc::munmap(self.start as *mut _, 2 * Self::PAGE);
        }
    }
}

/// Whether the form faults natively with its operand at `address`.
fn faults(native: &mut Native, form: &Form, address: u64) -> bool {
    let mut registers = Registers { state: FpuState::new(), gprs: [0; 16], rflags: 2 };
    registers.gprs[1] = address;
    native.run(&form.bytes, &mut registers).is_some()
}

#[test]
fn alignment_is_that_of_the_host() {
    let mut native = Native::lock();
    let mut executor = Executor::new().unwrap();
    let fence = Fence::new();
    for form in all_forms(&mut executor).iter().filter(|form| has_memory(form)) {
        let aligned = fence.end() - 1024;
        for offset in [1, 2, 4, 8, 16] {
            let expected = offset % form.op.alignment() != 0;
            let host = faults(&mut native, form, aligned + offset);
            assert_eq!(expected, host, "{:?} at offset {offset}", form.instruction.code());
        }
    }
}

#[test]
fn operand_sizes_are_those_of_the_host() {
    let mut native = Native::lock();
    let mut executor = Executor::new().unwrap();
    let fence = Fence::new();
    for form in all_forms(&mut executor).iter().filter(|form| has_memory(form)) {
        let size = form.op.memory().size as u64;
        let code = form.instruction.code();
        assert!(!faults(&mut native, form, fence.end() - size), "{code:?} is larger than {size}");
        let beyond = fence.end() - size + form.op.alignment();
        // FXSAVE leaves the end of its area alone.
        if form.op.unit() != Unit::Fxsave {
            assert!(faults(&mut native, form, beyond), "{code:?} is smaller than {size}");
        }
    }
}

#[test]
fn operands_are_written_as_on_the_host() {
    let mut native = Native::lock();
    let mut executor = Executor::new().unwrap();
    let fence = Fence::new();
    fence.protect(libc::PROT_READ);
    for form in all_forms(&mut executor).iter().filter(|form| has_memory(form)) {
        let host = faults(&mut native, form, fence.end() - 1024);
        assert_eq!(form.op.memory().write, host, "{:?}", form.instruction.code());
    }
}

/// Sets MXCSR and the x87 control word of the host; returns the former values.
fn exchange_host_state(mxcsr: u32, fcw: u16) -> (u32, u16) {
    let (mut old_mxcsr, mut old_fcw) = (0_u32, 0_u16);
    // SAFETY: all values here mask all exceptions. Rust code computes nothing
    // with floats until the former values are back.
    unsafe {
        asm!(
            "stmxcsr [{old_mxcsr}]", "ldmxcsr [{mxcsr}]", "fnstcw [{old_fcw}]", "fldcw [{fcw}]",
            old_mxcsr = in(reg) &mut old_mxcsr, mxcsr = in(reg) &mxcsr,
            old_fcw = in(reg) &mut old_fcw, fcw = in(reg) &fcw,
        );
    }
    (old_mxcsr, old_fcw)
}

#[test]
fn host_state_has_no_influence_and_is_kept() {
    // Round up, flush, with sticky flags; x87 single precision, round down.
    const HOST: (u32, u16) = (0xdfff, 0x047f);
    let mut executor = Executor::new().unwrap();
    let mut random = Random::new(3);
    for form in all_forms(&mut executor) {
        let before = Registers {
            state: generate::state(&mut random),
            gprs: generate::gprs(&mut random, 0),
            rflags: generate::rflags(&mut random),
        };
        let memory = generate::memory(&mut random);
        let run = || {
            let Registers { mut state, mut gprs, mut rflags } = before.clone();
            let mut scratch = Scratch::new();
            scratch.bytes = memory;
            let x87 = X87Pointers::default();
            let outcome =
                executor.run(&form.op, &mut state, &mut gprs, &mut rflags, &mut scratch, &x87);
            (outcome, Registers { state, gprs, rflags }, scratch.bytes)
        };
        let expected = run();
        let saved = exchange_host_state(HOST.0, HOST.1);
        let result = run();
        let host_after = exchange_host_state(saved.0, saved.1);
        assert_eq!(expected, result, "{:?}", form.instruction.code());
        // Exception flags of MXCSR are no state that anybody may rely on.
        let control = (host_after.0 & !0x3f, host_after.1);
        assert_eq!(control, (HOST.0 & !0x3f, HOST.1), "{:?}", form.instruction.code());
    }
}

#[test]
fn other_modes_give_the_same_results() {
    let mut executor = Executor::new().unwrap();
    let mut random = Random::new(4);
    let mut compared = 0;
    for form in all_forms(&mut executor) {
        for bits in [16, 32] {
            let instruction = Decoder::new(bits, &form.bytes, DecoderOptions::NONE).decode();
            let Some(op) = executor.compile(&instruction).unwrap() else { continue };
            let state = generate::state(&mut random);
            let memory = generate::memory(&mut random);
            let run = |op| {
                let (mut state, mut rflags) = (state.clone(), 2);
                let (mut gprs, mut scratch) = ([7; 16], Scratch::new());
                scratch.bytes = memory;
                let x87 = X87Pointers::default();
                let outcome =
                    executor.run(op, &mut state, &mut gprs, &mut rflags, &mut scratch, &x87);
                (outcome, state, gprs, rflags, scratch.bytes)
            };
            let result = run(&op);
            // These have fewer registers outside 64-bit mode.
            let fewer = matches!(
                instruction.mnemonic(),
                Mnemonic::Vzeroall | Mnemonic::Vzeroupper | Mnemonic::Fxsave | Mnemonic::Fxrstor
            );
            if instruction.code() == form.instruction.code() && !fewer {
                assert_eq!(result, run(&form.op), "{:?} in {bits} bits", instruction.code());
                compared += 1;
            }
        }
    }
    assert!(compared > 1000, "only {compared} forms compared");
    let vzeroall = Decoder::new(32, &[0xc5, 0xfc, 0x77], DecoderOptions::NONE).decode();
    let op = executor.compile(&vzeroall).unwrap().expect("AVX");
    let mut state = generate::state(&mut random);
    let before = state.clone();
    let outcome = executor.run(
        &op,
        &mut state,
        &mut [0; 16],
        &mut 2,
        &mut Scratch::new(),
        &X87Pointers::default(),
    );
    assert_eq!((outcome, state.ymm(7), state.ymm(8)), (Outcome::Done, [0; 32], before.ymm(8)));
}
