//! Bugs that the comparison with the host CPU has found, each as the smallest case that showed it:
//! the case still ends in the exception named here on the host, and in every respect alike on the
//! interpreter.

use interpreter::Interpreter;
use oracle::compare::compare;
use oracle::image::CpuImage;
use oracle::layout::{HIGH, PAGE, page};
use oracle::{Case, NativeOutcome, NativeRunner, Subject, SubjectOutcome, VcpuSubject};
use x86::cr::rflags::{AC, TF};
use x86::exception::vector;
use x86::gpr::{RAX, RBX, RCX, RDI, RDX, RSI, RSP};

const R9: usize = 9;
const R15: usize = 15;

/// Where the instructions are.
const CODE: u64 = HIGH + page::CODE * PAGE + 0x300;
/// Two writable pages.
const DATA: u64 = HIGH + page::DATA * PAGE;
/// A page that can only be read, behind them.
const CONSTANT: u64 = HIGH + page::CONSTANT * PAGE;
/// A writable page with nothing behind.
const ISLAND: u64 = HIGH + page::ISLAND * PAGE;
/// Nothing.
const UNMAPPED: u64 = ISLAND + PAGE;
/// The last address below the canonical hole.
const LAST_CANONICAL: u64 = 0x7fff_ffff_ffff;
/// An address in the canonical hole.
const NOWHERE: u64 = 0x7ff0_0000_0000_0001;

/// A case, and the vector of the exception that ends it: [`vector::BP`] when it runs to its end.
struct Regression {
    name: &'static str,
    code: &'static [u8],
    ends: u8,
    flags: u64,
    registers: &'static [(usize, u64)],
    extended: fn(&mut CpuImage),
}

const PLAIN: Regression = Regression {
    name: "",
    code: &[],
    ends: vector::BP,
    flags: 0,
    registers: &[],
    extended: |_| {},
};

/// x87 status: TOP is 3, registers are valid.
fn deep_stack(image: &mut CpuImage) {
    image.put(2, &0x1800_u16.to_le_bytes());
    image.put(4, &[0xff]);
}

/// An unmasked x87 exception is pending.
fn pending(image: &mut CpuImage) {
    image.put(0, &0x037e_u16.to_le_bytes());
    image.put(2, &0x8081_u16.to_le_bytes());
}

/// ST(0) is an SNaN, and invalid operations are unmasked.
fn unmasked_invalid(image: &mut CpuImage) {
    image.put(0, &0x037e_u16.to_le_bytes());
    image.put(4, &[1]);
    image.set_st(0, &[1, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x7f]);
}

/// All elements of YMM1 are selected, and 0, 4, 8, ... in YMM2.
fn all_selected(image: &mut CpuImage) {
    image.set_ymm(1, [u128::MAX; 2]);
    image.set_ymm(2, [0x0000000c_00000008_00000004_00000000; 2]);
}

/// All exceptions of SSE are unmasked; YMM0 holds SNaNs.
fn unmasked_sse(image: &mut CpuImage) {
    image.set_mxcsr(0);
    image.set_ymm(0, [0x7f800001_7f800001_7f800001_7f800001; 2]);
}

#[rustfmt::skip]
const REGRESSIONS: &[Regression] = &[
    Regression { name: "a fault cancels the single-step trap: add [r8], ax",
        code: &[0x66, 0x41, 0x01, 0x00], ends: vector::PF, flags: TF, ..PLAIN },
    Regression { name: "movnti [rax], ecx",
        code: &[0x0f, 0xc3, 0x08], registers: &[(RAX, DATA), (RCX, 0x1234_5678)], ..PLAIN },
    Regression { name: "an MMX store enters MMX mode: movq [rdi], mm0",
        code: &[0x0f, 0x7f, 0x07], registers: &[(RDI, DATA)], extended: deep_stack, ..PLAIN },
    Regression { name: "index of a masked move: vmaskmovps xmm9, xmm1, [rax+rdx*4]",
        code: &[0xc4, 0x62, 0x71, 0x2c, 0x0c, 0x90],
        registers: &[(RAX, DATA), (RDX, 0x20)], extended: all_selected, ..PLAIN },
    Regression { name: "flags of a fault in a late iteration: repne scasd",
        code: &[0xf2, 0xaf], ends: vector::PF,
        registers: &[(RAX, 0x30af_f4b6_15a5_ff4d), (RCX, 0xfff), (RDI, DATA + 0x15)], ..PLAIN },
    Regression { name: "flags and RF of a trap between iterations: repne cmpsb",
        code: &[0xf2, 0xa6], ends: vector::DB, flags: TF,
        registers: &[(RCX, 0x43), (RSI, DATA), (RDI, DATA + 0x101)], ..PLAIN },
    Regression { name: "RF of a trap between iterations: rep lodsq",
        code: &[0xf3, 0x48, 0xad], ends: vector::DB, flags: TF,
        registers: &[(RCX, 0x63), (RSI, DATA)], ..PLAIN },
    Regression { name: "upper halves without iterations: rep stosw [edi]; rep lodsb [esi]",
        code: &[0x66, 0x67, 0xf3, 0xab, 0x67, 0xf3, 0xac],
        registers: &[(RCX, 1 << 32), (RSI, DATA), (RDI, DATA)], ..PLAIN },
    Regression { name: "sixteen bytes by repeated prefixes: add eax, imm32",
        code: &[0x2e, 0x2e, 0x2e, 0x2e, 0x2e, 0x2e, 0x2e, 0x2e, 0x2e, 0x2e, 0x2e, 0x05, 1, 2, 3, 4],
        ends: vector::GP, ..PLAIN },
    Regression { name: "sixteen bytes by an ignored REX: lock sbb fs:[address32], imm32",
        code: &[0x40, 0x67, 0x64, 0xf0, 0x48, 0x81, 0x1c, 0x25, 0x80, 0x83, 0, 0x30, 1, 2, 3, 4],
        ends: vector::GP, ..PLAIN },
    Regression { name: "sixteen bytes, illegal by one of them: sha1msg1 with prefixes",
        code: &[0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x65, 0x0f, 0x38, 0xc9, 0x65, 0],
        ends: vector::GP, ..PLAIN },
    Regression { name: "a comparison that fails leaves the register: cmpxchg ebx, r9d",
        code: &[0x44, 0x0f, 0xb1, 0xcb], registers: &[(RBX, u64::MAX), (RAX, 5), (R9, 7)], ..PLAIN },
    Regression { name: "an operand into the canonical hole: mov rax, [rdi]",
        code: &[0x48, 0x8b, 0x07], ends: vector::GP,
        registers: &[(RDI, LAST_CANONICAL - 3)], ..PLAIN },
    Regression { name: "the right to a port counts without iterations: rep insb",
        code: &[0xf3, 0x6c], ends: vector::GP, registers: &[(RDI, DATA), (RDX, 0x80)], ..PLAIN },
    Regression { name: "an unmasked exception suppresses store and page fault: fstp qword [rax]",
        code: &[0xdd, 0x18], registers: &[(RAX, UNMAPPED)], extended: unmasked_invalid, ..PLAIN },
    Regression { name: "and the alignment check: fisttp word [rax]",
        code: &[0xdf, 0x08], flags: AC, registers: &[(RAX, DATA + 1)],
        extended: unmasked_invalid, ..PLAIN },
    Regression { name: "alignment comes before translation: fld tbyte [rax]",
        code: &[0xdb, 0x28], ends: vector::AC, flags: AC,
        registers: &[(RAX, UNMAPPED + 1)], ..PLAIN },
    Regression { name: "alignment of an x87 environment: fldenv [rax]",
        code: &[0xd9, 0x20], ends: vector::AC, flags: AC, registers: &[(RAX, DATA + 2)], ..PLAIN },
    Regression { name: "alignment comes before translation: xadd [rax], ecx",
        code: &[0x0f, 0xc1, 0x08], ends: vector::AC, flags: AC,
        registers: &[(RAX, UNMAPPED + 3)], ..PLAIN },
    Regression { name: "alignment comes before the second page: lock and [rdx], ebp",
        code: &[0xf0, 0x21, 0x2a], ends: vector::AC, flags: AC,
        registers: &[(RDX, CONSTANT - 3)], ..PLAIN },
    Regression { name: "alignment comes before the canonical hole: xor qword [rsi], -1",
        code: &[0x48, 0x83, 0x36, 0xff], ends: vector::AC, flags: AC,
        registers: &[(RSI, LAST_CANONICAL - 3)], ..PLAIN },
    Regression { name: "alignment of the new top of stack: enter 0x53, 0",
        code: &[0xc8, 0x53, 0, 0], ends: vector::AC, flags: AC,
        registers: &[(RSP, DATA + 0x800)], ..PLAIN },
    Regression { name: "no alignment check of half-precision: vcvtph2ps xmm1, [rax]",
        code: &[0xc4, 0xe2, 0x79, 0x13, 0x08], flags: AC, registers: &[(RAX, DATA + 1)], ..PLAIN },
    Regression { name: "numeric exceptions come before those of a store: vcvtps2ph [rax], ymm0, 0",
        code: &[0xc4, 0xe3, 0x7d, 0x1d, 0, 0], ends: vector::XM,
        registers: &[(RAX, UNMAPPED)], extended: unmasked_sse, ..PLAIN },
    Regression { name: "address of a masked store's fault: vmaskmovps [rax], ymm1, ymm2",
        code: &[0xc4, 0xe2, 0x75, 0x2e, 0x10], ends: vector::PF,
        registers: &[(RAX, CONSTANT - 0x16)], extended: all_selected, ..PLAIN },
    Regression { name: "a masked load does not wrap at 4 GiB: vmaskmovps ymm10, ymm1, [r9d]",
        code: &[0x67, 0xc4, 0x42, 0x75, 0x2c, 0x11], ends: vector::PF,
        registers: &[(R9, 0xffff_fffc)],
        extended: |image| image.set_ymm(1, [1 << 63, 0]), ..PLAIN },
    Regression { name: "a trap between the elements of a gather: vpgatherdd ymm0, [r15+ymm2], ymm1",
        code: &[0xc4, 0xc2, 0x75, 0x90, 0x04, 0x17], ends: vector::DB, flags: TF,
        registers: &[(R15, UNMAPPED - 8)], extended: all_selected },
    Regression { name: "no MMX operand, nothing to wait for: cvtpi2ps xmm1, [rax]",
        code: &[0x0f, 0x2a, 0x08], registers: &[(RAX, DATA)], extended: pending, ..PLAIN },
    Regression { name: "masked MMX stores wait for x87: maskmovq mm3, mm6",
        code: &[0x0f, 0xf7, 0xde], ends: vector::MF,
        registers: &[(RDI, DATA)], extended: pending, ..PLAIN },
    Regression { name: "masked MMX stores are checked for alignment: maskmovq mm0, mm2",
        code: &[0x0f, 0xf7, 0xc2], ends: vector::AC, flags: AC, registers: &[(RDI, DATA + 5)],
        extended: |image| image.set_st(2, &[0xff; 10]) },
    Regression { name: "a push faults before its branch: call [rax] to nowhere",
        code: &[0xff, 0x10], ends: vector::PF,
        registers: &[(RAX, DATA), (RSP, ISLAND)], ..PLAIN },
];

fn case_of(regression: &Regression) -> Case {
    let mut image = CpuImage::default();
    image.rip = CODE;
    image.rflags |= regression.flags;
    image.gpr[RSP] = DATA + 0x800;
    for &(register, value) in regression.registers {
        image.gpr[register] = value;
    }
    (regression.extended)(&mut image);
    // Where the call finds its target.
    let pokes = vec![(DATA, NOWHERE)];
    let instructions = vec![regression.code.to_vec()];
    Case { instructions, image, contents: [7; oracle::layout::PAGES], pokes }
}

#[test]
fn what_was_wrong_stays_right() {
    let mut native = NativeRunner::new().unwrap();
    let engine = Interpreter::new();
    let mut subject = VcpuSubject::new(&engine).unwrap();
    let mut wrong = Vec::new();
    for regression in REGRESSIONS {
        let name = regression.name;
        let case = case_of(regression);
        let outcomes = native.run(std::slice::from_ref(&case)).unwrap();
        let [NativeOutcome::Observed(theirs)] = &outcomes[..] else {
            panic!("{name}: no result from the host: {outcomes:?}");
        };
        let SubjectOutcome::Observed(ours) = subject.run(&case, 10_000).unwrap() else {
            panic!("{name}: does not end on the interpreter");
        };
        if theirs.fault.vector != regression.ends {
            wrong.push(format!("{name}: ends in vector {} on the host", theirs.fault.vector));
        }
        for difference in compare(&case, theirs, &ours) {
            wrong.push(format!("{name}: {difference}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
