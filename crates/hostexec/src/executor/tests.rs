//! Known answers, and behaviour that a comparison with the host cannot show.
//! The comparison itself is in `tests/native`.

use iced_x86::{Decoder, DecoderOptions, Instruction};

use super::*;

fn decode(bytes: &[u8]) -> Instruction {
    let instruction = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    assert_eq!(instruction.len(), bytes.len(), "{bytes:x?} is {instruction:?}");
    instruction
}

/// A guest CPU with its executor.
struct Guest {
    executor: Executor,
    state: FpuState,
    gprs: [u64; 16],
    rflags: u64,
    scratch: Scratch,
    x87: X87Pointers,
}

impl Guest {
    fn new() -> Self {
        Self {
            executor: Executor::new().expect("executable memory"),
            state: FpuState::new(),
            gprs: [0; 16],
            rflags: 2,
            scratch: Scratch::new(),
            x87: X87Pointers { rip: 0x4000, data: 0x5000, opcode: 0x123, real_mode: false },
        }
    }

    fn run(&mut self, bytes: &[u8]) -> Outcome {
        let compiled = self.executor.compile(&decode(bytes)).expect("room for the stub");
        let op = compiled.expect("an instruction of this crate and of this host");
        let Self { executor, state, gprs, rflags, scratch, x87 } = self;
        executor.run(&op, state, gprs, rflags, scratch, x87)
    }
}

/// Initial value: all exceptions masked, no flag set.
const MXCSR: u32 = crate::MXCSR_INITIAL;
/// divss xmm0, xmm1
const DIVSS: [u8; 4] = [0xf3, 0x0f, 0x5e, 0xc1];
/// mulss xmm0, xmm1
const MULSS: [u8; 4] = [0xf3, 0x0f, 0x59, 0xc1];

fn bits(value: f32) -> u128 {
    u128::from(value.to_bits())
}

#[test]
fn rounding_is_the_guests() {
    let mut guest = Guest::new();
    // Nearest, down, up, towards zero.
    let expected = [0x3eaa_aaab, 0x3eaa_aaaa, 0x3eaa_aaab, 0x3eaa_aaaa];
    let negative = [0xbeaa_aaab, 0xbeaa_aaab, 0xbeaa_aaaa, 0xbeaa_aaaa];
    for mode in 0..4 {
        for (dividend, results) in [(1.0, expected), (-1.0, negative)] {
            guest.state.set_mxcsr(MXCSR | (mode as u32) << 13).expect("valid");
            guest.state.set_xmm(0, bits(dividend));
            guest.state.set_xmm(1, bits(3.0));
            assert_eq!(guest.run(&DIVSS), Outcome::Done);
            assert_eq!(guest.state.xmm(0), results[mode], "mode {mode}");
            assert_eq!(guest.state.mxcsr() & 0x3f, 0x20, "inexact");
        }
    }
}

#[test]
fn denormals_follow_mxcsr() {
    let mut guest = Guest::new();
    let denormal = 0x0040_0000;
    for (mxcsr, expected, flags) in [
        (MXCSR, 0x0020_0000, 0x02),              // denormal operand
        (MXCSR | 0x0040, 0, 0x00),               // denormals are zeros
        (MXCSR | FLUSH_TO_ZERO, 0, 0x02 | 0x30), // flush to zero
    ] {
        guest.state.set_mxcsr(mxcsr).expect("valid");
        guest.state.set_xmm(0, denormal);
        guest.state.set_xmm(1, bits(0.5));
        assert_eq!(guest.run(&MULSS), Outcome::Done);
        assert_eq!((guest.state.xmm(0), guest.state.mxcsr()), (expected, mxcsr | flags));
    }
}

#[test]
fn unmasked_exception_leaves_registers() {
    let mut guest = Guest::new();
    guest.state.set_mxcsr(MXCSR & !0x200).expect("valid"); // division by zero
    guest.state.set_xmm(0, bits(1.0));
    assert_eq!(guest.run(&DIVSS), Outcome::SimdException);
    assert_eq!(guest.state.xmm(0), bits(1.0));
    assert_eq!(guest.state.mxcsr(), MXCSR & !0x200 | 0x04);
    // Other exceptions stay masked.
    guest.state.set_mxcsr(MXCSR & !0x200).expect("valid");
    guest.state.set_xmm(1, bits(3.0));
    assert_eq!(guest.run(&DIVSS), Outcome::Done);
    assert_eq!(guest.state.mxcsr(), MXCSR & !0x200 | 0x20);
}

#[test]
fn unmasked_exception_leaves_status_flags() {
    let mut guest = Guest::new();
    guest.state.set_mxcsr(MXCSR & !0x80).expect("valid"); // invalid
    guest.state.set_xmm(0, bits(f32::NAN));
    guest.rflags = 0x8d7;
    assert_eq!(guest.run(&[0x0f, 0x2f, 0xc1]), Outcome::SimdException); // comiss
    assert_eq!((guest.rflags, guest.state.mxcsr()), (0x8d7, MXCSR & !0x80 | 1));
}

#[test]
fn exact_tiny_result_is_an_unmasked_underflow() {
    let mut guest = Guest::new();
    let tiny = 0x0080_0000; // the smallest normal number
    for (mxcsr, outcome, flags) in [
        (MXCSR, Outcome::Done, 0),
        (MXCSR & !0x800, Outcome::SimdException, 0x10),
        (MXCSR & !0x800 | FLUSH_TO_ZERO, Outcome::SimdException, 0x10),
    ] {
        guest.state.set_mxcsr(mxcsr).expect("valid");
        guest.state.set_xmm(0, tiny);
        guest.state.set_xmm(1, bits(0.5));
        assert_eq!(guest.run(&MULSS), outcome);
        assert_eq!(guest.state.mxcsr(), mxcsr | flags);
    }
}

#[test]
fn sticky_flags_accumulate() {
    let mut guest = Guest::new();
    guest.state.set_mxcsr(MXCSR | 0x04).expect("valid");
    guest.state.set_xmm(0, bits(1.0));
    guest.state.set_xmm(1, bits(3.0));
    assert_eq!(guest.run(&DIVSS), Outcome::Done);
    assert_eq!(guest.state.mxcsr(), MXCSR | 0x24);
}

#[test]
fn vex_zeroes_the_upper_half_and_legacy_keeps_it() {
    let mut guest = Guest::new();
    guest.state.set_ymm_u64(9, [1, 2, 3, 4]);
    guest.state.set_ymm_u64(10, [10, 20, 30, 40]);
    // paddq xmm9, xmm10
    assert_eq!(guest.run(&[0x66, 0x45, 0x0f, 0xd4, 0xca]), Outcome::Done);
    assert_eq!(guest.state.ymm_u64(9), [11, 22, 3, 4]);
    // vpaddq xmm9, xmm9, xmm10
    assert_eq!(guest.run(&[0xc4, 0x41, 0x31, 0xd4, 0xca]), Outcome::Done);
    assert_eq!(guest.state.ymm_u64(9), [21, 42, 0, 0]);
    // vpaddq ymm9, ymm9, ymm10
    assert_eq!(guest.run(&[0xc4, 0x41, 0x35, 0xd4, 0xca]), Outcome::Done);
    assert_eq!(guest.state.ymm_u64(9), [31, 62, 30, 40]);
}

#[test]
fn general_registers() {
    let mut guest = Guest::new();
    guest.state.set_ymm_u64(3, [0x1111_2222_3333_4444, 0x5555_6666_7777_8888, 0, 0]);
    guest.gprs = [u64::MAX; 16];
    // movd r12d, xmm3: the upper half becomes zero
    assert_eq!(guest.run(&[0x66, 0x41, 0x0f, 0x7e, 0xdc]), Outcome::Done);
    // pextrq r15, xmm3, 1
    assert_eq!(guest.run(&[0x66, 0x49, 0x0f, 0x3a, 0x16, 0xdf, 0x01]), Outcome::Done);
    let mut expected = [u64::MAX; 16];
    expected[12] = 0x3333_4444;
    expected[15] = 0x5555_6666_7777_8888;
    assert_eq!(guest.gprs, expected);
    // cvtsi2sd xmm3, rsp
    guest.gprs[4] = 7;
    assert_eq!(guest.run(&[0xf2, 0x48, 0x0f, 0x2a, 0xdc]), Outcome::Done);
    assert_eq!(guest.state.ymm_u64(3)[..2], [7.0_f64.to_bits(), 0x5555_6666_7777_8888]);
}

#[test]
fn string_comparison_uses_implicit_registers() {
    let mut guest = Guest::new();
    guest.state.set_xmm(1, u128::from_le_bytes(*b"aeiou\0.........."));
    guest.scratch.bytes[..16].copy_from_slice(b"rhythm, or else!");
    // pcmpistri xmm1, [rax], 0: index of the first vowel
    assert_eq!(guest.run(&[0x66, 0x0f, 0x3a, 0x63, 0x08, 0x00]), Outcome::Done);
    assert_eq!(guest.gprs[1], 8);
    assert_eq!(guest.rflags & 0x8d5, 0x081); // SF: the set ended, CF: found
    // pcmpestri xmm1, [rax], 0: at most 8 bytes of text are looked at
    guest.gprs = [7; 16];
    (guest.gprs[0], guest.gprs[2]) = (5, 8);
    assert_eq!(guest.run(&[0x66, 0x0f, 0x3a, 0x61, 0x08, 0x00]), Outcome::Done);
    assert_eq!(guest.gprs[..4], [5, 16, 8, 7]);
    assert_eq!(guest.rflags & 0x8d5, 0x0c0); // ZF and SF: both ended
}

/// The example of Intel's AES-NI white paper.
#[test]
fn aes_round() {
    let mut guest = Guest::new();
    guest.state.set_xmm(1, 0x7b5b5465_73745665_63746f72_5d53475d);
    guest.state.set_xmm(2, 0x48692853_68617929_5b477565_726f6e5d);
    assert_eq!(guest.run(&[0x66, 0x0f, 0x38, 0xdc, 0xca]), Outcome::Done);
    assert_eq!(guest.state.xmm(1), 0xa8311c2f_9fdba3c5_8b104b58_ded7e595);
}

#[test]
fn half_precision() {
    let mut guest = Guest::new();
    guest.state.set_xmm(1, 0x3c00_c000_7c00_0001);
    assert_eq!(guest.run(&[0xc4, 0xe2, 0x79, 0x13, 0xc1]), Outcome::Done); // vcvtph2ps
    let expected = [2.0_f32.powi(-24), f32::INFINITY, -2.0, 1.0].map(f32::to_bits);
    assert_eq!(guest.state.ymm_u32(0)[..4], expected);
}

#[test]
fn x87_stack_faults() {
    let mut guest = Guest::new();
    assert_eq!(guest.run(&[0xd8, 0xc1]), Outcome::Done); // fadd st, st(1): both empty
    assert_eq!(guest.state.fsw() & 0x027f, 0x0041); // underflow: C1 clear
    guest.state.fninit();
    for _ in 0..9 {
        assert_eq!(guest.run(&[0xd9, 0xe8]), Outcome::Done); // fld1
    }
    assert_eq!(guest.state.fsw() & 0x027f, 0x0241); // overflow: C1 set
    assert_eq!(guest.state.st(0), [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff]);
    assert_eq!((guest.state.ftw(), guest.state.top()), (0xff, 7));
}

#[test]
fn x87_precision_and_pointers_are_the_guests() {
    let mut guest = Guest::new();
    guest.state.set_x87_pointers(0x7ff, 1, 2);
    guest.state.set_fcw(0x007f); // single precision
    assert_eq!(guest.run(&[0xd9, 0xe8]), Outcome::Done); // fld1
    guest.scratch.bytes[..8].copy_from_slice(&3.0_f64.to_le_bytes());
    assert_eq!(guest.run(&[0xdc, 0x30]), Outcome::Done); // fdiv m64
    assert_eq!(guest.state.st(0), [0, 0, 0, 0, 0, 0xab, 0xaa, 0xaa, 0xfd, 0x3f]);
    let state = &guest.state;
    assert_eq!((state.fop(), state.fip(), state.fdp()), (0x7ff, 0x4000, 2));
}

#[test]
fn unmasked_x87_exception_is_deferred() {
    let mut guest = Guest::new();
    guest.state.set_fcw(0x037e); // invalid
    guest.state.set_ftw(0x80);
    guest.state.set_fsw(7 << 11);
    guest.state.set_st(0, &[0, 0, 0, 0, 0, 0, 0, 0x80, 0x10, 0x40]); // 2 to the 17
    guest.scratch.bytes[..2].fill(0x77);
    let before = guest.state.clone();
    assert_eq!(guest.run(&[0xdf, 0x18]), Outcome::DoneWithoutStore); // fistp m16
    assert_eq!(guest.state.st(0), before.st(0), "not popped");
    assert!(guest.state.x87_pending());
    let state = &guest.state;
    assert_eq!((state.fop(), state.fip(), state.fdp()), (0x123, 0x4000, 0x5000));
    let before = guest.state.clone();
    for waiting in [&[0xd9, 0xe8][..], &[0x9b], &[0x0f, 0x77], &[0x0f, 0xfc, 0xc1], &[0xd9, 0x28]] {
        assert_eq!(guest.run(waiting), Outcome::X87Pending, "{waiting:x?}");
        assert_eq!(guest.state, before);
    }
    assert_eq!(guest.run(&[0xdf, 0xe0]), Outcome::Done); // fnstsw ax
    assert_eq!(guest.gprs[0], u64::from(before.fsw()));
    assert_eq!(guest.run(&[0xdb, 0xe2]), Outcome::Done); // fnclex
    assert!(!guest.state.x87_pending());
}

#[test]
fn x87_uses_and_sets_guest_flags() {
    let mut guest = Guest::new();
    assert_eq!(guest.run(&[0xd9, 0xe8]), Outcome::Done); // fld1
    assert_eq!(guest.run(&[0xd9, 0xee]), Outcome::Done); // fldz
    guest.rflags = 0x0000_0000_0024_0a97; // ID, AC, OF, IF and others
    assert_eq!(guest.run(&[0xdb, 0xf1]), Outcome::Done); // fcomi st, st(1): 0 < 1
    assert_eq!(guest.rflags, 0x0024_0203);
    assert_eq!(guest.run(&[0xda, 0xc1]), Outcome::Done); // fcmovb st, st(1): below
    assert_eq!(guest.state.st(0), guest.state.st(1));
    assert_eq!(guest.run(&[0xd9, 0xee]), Outcome::Done); // fldz
    guest.rflags = 2;
    assert_eq!(guest.run(&[0xda, 0xc1]), Outcome::Done); // not below
    assert_eq!(guest.state.st(0), [0; 10]);
}

#[test]
fn mxcsr_and_images_with_reserved_bits_are_refused() {
    let mut guest = Guest::new();
    let before = guest.state.clone();
    guest.scratch.bytes.fill(0xff);
    assert_eq!(guest.run(&[0x0f, 0xae, 0x10]), Outcome::GeneralProtection); // ldmxcsr
    assert_eq!(guest.run(&[0xc5, 0xf8, 0xae, 0x10]), Outcome::GeneralProtection); // vldmxcsr
    assert_eq!(guest.run(&[0x0f, 0xae, 0x08]), Outcome::GeneralProtection); // fxrstor
    assert_eq!(guest.state, before);
}

#[test]
fn others_are_not_taken() {
    let mut executor = Executor::new().expect("executable memory");
    for bytes in [
        &[0x01, 0xc8][..],                     // add eax, ecx
        &[0xa5],                               // movsd (string)
        &[0x0f, 0xae, 0xf0],                   // mfence
        &[0x0f, 0xc3, 0x08],                   // movnti
        &[0x66, 0x0f, 0xf7, 0xc1],             // maskmovdqu
        &[0x0f, 0x01, 0xd0],                   // xgetbv
        &[0x62, 0xf1, 0x7d, 0x48, 0xfe, 0xc1], // vpaddd zmm
        &[0x62, 0xf1, 0x7d, 0x08, 0xfe, 0xc1], // vpaddd xmm, by EVEX
        &[0xc4, 0xe2, 0x7d, 0xdc, 0xc1],       // vaesenc ymm
    ] {
        let op = executor.compile(&decode(bytes)).expect("room");
        assert_eq!(op, None, "{bytes:x?}");
    }
}

#[test]
fn equal_instructions_share_a_stub() {
    let mut executor = Executor::new().expect("executable memory");
    let mut compile = |bytes: &[u8]| executor.compile(&decode(bytes)).expect("room");
    // paddd xmm1, [rax] and paddd xmm1, fs:[rbx+rcx*4+0x1000]
    let one = compile(&[0x66, 0x0f, 0xfe, 0x08]);
    let other = compile(&[0x64, 0x66, 0x0f, 0xfe, 0x8c, 0x8b, 0, 0x10, 0, 0]);
    assert!(one.is_some() && one == other);
    // movd eax, xmm1 and movd ecx, xmm1
    assert_ne!(compile(&[0x66, 0x0f, 0x7e, 0xc8]), compile(&[0x66, 0x0f, 0x7e, 0xc9]));
}

/// Fills a buffer of one page with padd* of all registers.
fn fill(executor: &mut Executor) -> (usize, HostExecError) {
    for count in 0..192_u8 {
        let bytes = [0x66, 0x0f, 0xfc | (count >> 6), 0xc0 | count & 0x3f];
        if let Err(error) = executor.compile(&decode(&bytes)) {
            return (usize::from(count), error);
        }
    }
    panic!("a page is enough for all");
}

#[test]
fn full_buffer_is_an_error_and_reset_empties_it() {
    let mut executor = Executor::with_code_size(4096).expect("executable memory");
    let (first, error) = fill(&mut executor);
    assert!(matches!(error, HostExecError::Full { size: 4096 }));
    assert!(first > 20, "{first} stubs in a page");
    executor.reset();
    assert_eq!(fill(&mut executor).0, first);
}

#[test]
#[should_panic(expected = "stale handle")]
fn stale_handle_panics() {
    let mut guest = Guest::new();
    let op = guest.executor.compile(&decode(&DIVSS)).expect("room").expect("SSE");
    guest.executor.reset();
    let Guest { executor, state, gprs, rflags, scratch, x87 } = &mut guest;
    let _ = executor.run(&op, state, gprs, rflags, scratch, x87);
}

#[test]
#[should_panic(expected = "stale handle")]
fn foreign_handle_panics() {
    let mut guest = Guest::new();
    let mut other = Executor::new().expect("executable memory");
    let op = other.compile(&decode(&DIVSS)).expect("room").expect("SSE");
    let Guest { executor, state, gprs, rflags, scratch, x87 } = &mut guest;
    let _ = executor.run(&op, state, gprs, rflags, scratch, x87);
}

#[test]
fn executor_moves_between_threads() {
    let mut guest = Guest::new();
    guest.state.set_xmm(0, bits(1.0));
    guest.state.set_xmm(1, bits(2.0));
    let quotient = std::thread::spawn(move || {
        assert_eq!(guest.run(&DIVSS), Outcome::Done);
        guest.state.xmm(0)
    });
    assert_eq!(quotient.join().expect("no panic"), bits(0.5));
}
