//! The native side alone: known answers, faults, what stops a case, speed of recovery.

use oracle::case::{Case, Observation};
use oracle::image::CpuImage;
use oracle::layout::{HIGH, LOW, PAGE, PAGES, offset_of, page};
use oracle::native::{NativeOutcome, NativeRunner};

const CODE: u64 = HIGH + page::CODE * PAGE;
const DATA: u64 = HIGH + page::DATA * PAGE;

fn case(code: &[u8], set: impl FnOnce(&mut CpuImage)) -> Case {
    let mut image = CpuImage::default();
    image.rip = CODE + 0x100;
    image.gpr[4] = DATA + 0x800;
    set(&mut image);
    Case { instructions: vec![code.to_vec()], image, contents: [0; PAGES], pokes: Vec::new() }
}

fn run(case: Case) -> NativeOutcome {
    NativeRunner::new().unwrap().run(&[case]).unwrap().remove(0)
}

fn observe(case: Case) -> Observation {
    match run(case) {
        NativeOutcome::Observed(observation) => *observation,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_addition_sets_register_and_flags() {
    // add rax, rbx
    let seen = observe(case(&[0x48, 0x01, 0xd8], |i| {
        (i.gpr[0], i.gpr[3]) = (u64::MAX, 1);
        i.rflags = 0x202;
    }));
    assert_eq!((seen.fault.vector, seen.image.gpr[0], seen.image.gpr[3]), (3, 0, 1));
    assert_eq!(seen.image.rip, CODE + 0x104);
    assert_eq!(seen.image.rflags & 0x8d5, 0x55, "CF, PF, AF, ZF");
}

#[test]
fn every_register_goes_in_and_comes_out() {
    let mut want = CpuImage::default();
    let seen = observe(case(&[0x90], |image| {
        for (index, register) in image.gpr.iter_mut().enumerate() {
            *register = 0x1111_1111_1111_1111 * index as u64;
        }
        for index in 0..16 {
            image.set_ymm(index, [index as u128 + 1, index as u128 + 100]);
        }
        for index in 0..8 {
            image.set_st(index, &[index as u8 + 1; 10]);
        }
        image.put(0, &[0x7f, 2, 0, 0x18, 0xa5]);
        image.put(8, &[1, 2, 3, 4, 5, 6, 0, 0]);
        image.set_mxcsr(0x5fa1);
        image.rflags = 0x0020_0ed7;
        want = image.clone();
    }));
    want.rip += 2;
    assert_eq!(seen.image.gpr, want.gpr);
    assert_eq!(seen.image.rflags, want.rflags);
    assert_eq!(seen.image.bases, want.bases);
    assert_eq!(seen.image.xsave[..], want.xsave[..]);
}

#[test]
fn page_faults_tell_address_and_access() {
    // mov [rdi], rax
    let store = [0x48, 0x89, 0x07];
    let read_only = HIGH + page::CONSTANT * PAGE;
    for (target, address, error) in [
        (read_only + 8, read_only + 8, 7),
        (read_only - 4, read_only, 7),
        (HIGH, HIGH, 6),
        (DATA - 1, DATA - 1, 6),
    ] {
        let seen = observe(case(&store, |i| i.gpr[7] = target));
        assert_eq!(
            (seen.fault.vector, seen.fault.error_code, seen.fault.address),
            (14, error, address),
            "store at {target:#x}"
        );
        assert_eq!(seen.image.rip, CODE + 0x100);
    }
    // jmp rax, to data
    let seen = observe(case(&[0xff, 0xe0], |i| i.gpr[0] = DATA));
    assert_eq!((seen.fault.vector, seen.fault.error_code, seen.fault.address), (14, 0x15, DATA));
}

#[test]
fn other_exceptions_have_their_vectors() {
    let vector = |code: &[u8]| observe(case(code, |_| ())).fault.vector;
    assert_eq!(vector(&[0xf7, 0xf1]), 0, "div by zero");
    assert_eq!(vector(&[0xf1]), 1, "int1");
    assert_eq!(vector(&[0xcc]), 3, "int3");
    assert_eq!(vector(&[0x0f, 0x0b]), 6, "ud2");
    assert_eq!(vector(&[0xf4]), 13, "hlt");
    let unaligned = |i: &mut CpuImage| (i.gpr[0], i.rflags) = (DATA + 1, 0x4_0202);
    assert_eq!(observe(case(&[0x8b, 0x00], unaligned)).fault.vector, 17, "alignment");
    let stepped = observe(case(&[0x90, 0x90], |i| i.rflags = 0x302));
    assert_eq!((stepped.fault.vector, stepped.image.rip), (1, CODE + 0x101), "single step");
    let non_canonical = |i: &mut CpuImage| i.gpr[4] = 0x8000_0000_0000_0000;
    assert_eq!(observe(case(&[0x50], non_canonical)).fault.vector, 12, "push");
    let unmasked = |i: &mut CpuImage| i.set_mxcsr(0);
    // divps xmm0, xmm1 with zeros; then the same on the x87 stack, with its exception waited for
    assert_eq!(observe(case(&[0x0f, 0x5e, 0xc1], unmasked)).fault.vector, 19, "simd");
    let x87 = [0xd9, 0xee, 0xd9, 0xe8, 0xde, 0xf1, 0x9b];
    assert_eq!(observe(case(&x87, |i| i.put(0, &[0x40, 3]))).fault.vector, 16, "x87");
}

#[test]
fn memory_comes_back_and_windows_are_aliases() {
    // mov [rdi], rax
    let seen = observe(case(&[0x48, 0x89, 0x07], |i| {
        i.gpr[0] = 0x0102_0304_0506_0708;
        i.gpr[7] = LOW + page::ISLAND * PAGE + 3;
    }));
    let at = offset_of(HIGH + page::ISLAND * PAGE + 3).unwrap();
    assert_eq!(seen.memory[at..at + 8], [8, 7, 6, 5, 4, 3, 2, 1]);
}

#[test]
fn segment_bases_are_the_cases() {
    // rdgsbase rax; wrfsbase rcx
    let code = [0xf3, 0x48, 0x0f, 0xae, 0xc8, 0xf3, 0x48, 0x0f, 0xae, 0xd1];
    let seen = observe(case(&code, |i| i.gpr[1] = 0x1234));
    assert_eq!(seen.image.gpr[0], oracle::layout::GS_BASE);
    assert_eq!(seen.image.bases, [0x1234, oracle::layout::GS_BASE]);
}

#[test]
fn hostile_cases_do_not_stop_the_runner() {
    let mut runner = NativeRunner::new().unwrap();
    // the worker's own memory is behind FS only before the case, and no call gets through:
    let endless = case(&[0xeb, 0xfe], |_| ());
    let exit = case(&[0x0f, 0x05], |i| i.gpr[0] = 231);
    let old_exit = case(&[0xcd, 0x80], |i| i.gpr[0] = 1);
    let nested = case(&[0x9d], |i| i.gpr[4] = DATA + 0x10);
    let fine = case(&[0x90], |_| ());
    let cases = [endless, exit, old_exit, nested, fine.clone(), fine];
    let outcomes = runner.run(&cases).unwrap();
    assert!(matches!(outcomes[0], NativeOutcome::Timeout), "{:?}", outcomes[0]);
    assert!(matches!(outcomes[1], NativeOutcome::SystemCall), "{:?}", outcomes[1]);
    assert!(matches!(outcomes[2], NativeOutcome::SystemCall), "{:?}", outcomes[2]);
    for outcome in &outcomes[3..] {
        assert!(matches!(outcome, NativeOutcome::Observed(_)), "{outcome:?}");
    }
    assert_eq!(runner.deaths(), 0);
}
