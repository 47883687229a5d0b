//! Formats that 64-bit mode does not have, and whole states. Those it has are
//! compared with the host in `tests/native`.

use super::*;

/// TOP 5, ST(0) = 1.0 in physical register 5, ST(1) = 0 in 6, others empty.
fn sample() -> FpuState {
    let mut state = FpuState::new();
    state.set_fsw(5 << 11);
    state.set_ftw(0x60);
    state.set_st(0, &[0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
    state.set_x87_pointers(0x4d8, 0x000a_bcde, 0x0001_2345);
    state
}

const PROTECTED_32: EnvironmentFormat = EnvironmentFormat { wide: true, real_mode: false };
const PROTECTED_16: EnvironmentFormat = EnvironmentFormat { wide: false, real_mode: false };
const REAL_32: EnvironmentFormat = EnvironmentFormat { wide: true, real_mode: true };
const REAL_16: EnvironmentFormat = EnvironmentFormat { wide: false, real_mode: true };

/// Intel SDM vol. 1, figures 8-9 to 8-12.
#[test]
fn environments() {
    let words = |format: EnvironmentFormat| -> Vec<u32> {
        let mut area = [0; 28];
        sample().fnstenv(&mut area[..format.size()], format);
        let size = format.size() / 7;
        area[..format.size()]
            .chunks_exact(size)
            .map(|word| word.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte)))
            .collect()
    };
    // Tags: 3 empty, 0 valid in 5, 1 zero in 6.
    let tags = 0b11_01_00_11_11_11_11_11;
    assert_eq!(
        words(PROTECTED_32),
        [0xffff_037f, 0xffff_2800, 0xffff_0000 | tags, 0xabcde, 0x04d8_0000, 0x12345, 0xffff_0000]
    );
    assert_eq!(words(PROTECTED_16), [0x37f, 0x2800, tags, 0xbcde, 0, 0x2345, 0]);
    assert_eq!(
        words(REAL_32),
        [
            0xffff_037f,
            0xffff_2800,
            0xffff_0000 | tags,
            0xffff_bcde,
            0x0000_a4d8,
            0xffff_2345,
            0x0000_1000
        ]
    );
    assert_eq!(words(REAL_16), [0x37f, 0x2800, tags, 0xbcde, 0xa4d8, 0x2345, 0x1000]);
}

#[test]
fn save_and_restore_in_every_format() {
    for format in [PROTECTED_32, PROTECTED_16, REAL_32, REAL_16] {
        let mut state = sample();
        let mut area = [0; 108];
        state.fnsave(&mut area[..format.size() + 80], format);
        assert_eq!((state.fcw(), state.fsw(), state.ftw()), (FCW_INITIAL, 0, 0));
        state.frstor(&area, format);
        let mut expected = sample();
        let (fip, fdp) = match (format.wide, format.real_mode) {
            (false, false) => (0xbcde, 0x2345),
            _ => (0xabcde, 0x12345),
        };
        let fop = if format == PROTECTED_16 { 0 } else { 0x4d8 };
        expected.set_x87_pointers(fop, fip, fdp);
        assert_eq!(state, expected, "{format:?}");
    }
}

#[test]
fn fnstenv_masks_and_fldenv_makes_pending() {
    let mut state = sample();
    state.set_fcw(0x0340);
    state.set_fsw(5 << 11 | 0x04);
    assert!(state.x87_pending());
    let mut area = [0; 28];
    state.fnstenv(&mut area, PROTECTED_32);
    assert!(!state.x87_pending());
    state.fldenv(&area, PROTECTED_32);
    assert_eq!((state.fcw(), state.fsw()), (0x0340, 0x8080 | 5 << 11 | 0x04));
}

#[test]
fn changing_top_keeps_physical_registers() {
    let mut state = sample();
    let one = state.st(0);
    let mut area = [0; 28];
    state.clone().fnstenv(&mut area, PROTECTED_32);
    area[5] = 3 << 3; // TOP 3
    state.fldenv(&area, PROTECTED_32);
    assert_eq!((state.top(), state.st(2)), (3, one));
    state.fninit();
    assert_eq!((state.top(), state.st(5)), (0, one));
}

#[test]
fn mmx_registers_are_physical() {
    let mut state = sample();
    assert_eq!(state.mm(5), 1 << 63);
    state.set_mm(1, 0x1234);
    assert_eq!((state.mm(5), state.mm(1), state.top(), state.ftw()), (1 << 63, 0x1234, 0, 0xff));
    assert_eq!(state.st(1)[8..], [0xff, 0xff]);
    state.emms();
    assert_eq!((state.mm(1), state.ftw()), (0x1234, 0));
}

#[test]
fn fxsave_outside_64_bit_mode_has_eight_registers() {
    let mut state = sample();
    for index in 0..16 {
        state.set_xmm(index, index as u128 + 1);
    }
    let form = ImageForm { mode64: false, long: false };
    let mut area = [0xee; 512];
    state.fxsave(&mut area, form);
    assert_eq!(area[offset::XMM + 128..], [0xee; 512 - offset::XMM - 128]);
    let mut restored = FpuState::new();
    restored.set_xmm(8, 77);
    restored.fxrstor(&area, form).expect("valid");
    assert_eq!((restored.xmm(7), restored.xmm(8), restored.xmm(9)), (8, 77, 0));
}

#[test]
fn bytes_round_trip() {
    let mut state = sample();
    state.set_ymm_u64(15, [1, 2, 3, 4]);
    state.set_mxcsr(0x9fc0).expect("valid");
    let bytes = state.to_bytes();
    assert_eq!(bytes[offset::HEADER..offset::HEADER + 8], component::ALL.to_le_bytes());
    assert_eq!(FpuState::from_bytes(&bytes).expect("valid"), state);
    let initial = FpuState::new().to_bytes();
    assert_eq!(initial[offset::HEADER], 0);
    assert_eq!(FpuState::from_bytes(&initial).expect("valid"), FpuState::new());
    let mut power_on = FpuState::new();
    power_on.reset();
    assert_eq!((power_on.fcw(), power_on.full_tags()), (0x40, 0x5555));
}

#[test]
fn bad_bytes_are_refused() {
    let good = sample().to_bytes();
    assert!(matches!(
        FpuState::from_bytes(&good[1..]),
        Err(HostExecError::StateSize { given: 831 })
    ));
    let mut bad = good;
    bad[offset::MXCSR + 2] = 1;
    assert!(matches!(
        FpuState::from_bytes(&bad),
        Err(HostExecError::ReservedMxcsr { value: 0x11f80 })
    ));
    let mut bad = good;
    bad[offset::HEADER] = 8;
    assert!(matches!(FpuState::from_bytes(&bad), Err(HostExecError::XsaveHeader { .. })));
}
