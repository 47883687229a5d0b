//! XSAVE and XRSTOR images against the host; FXSAVE and the x87 images are
//! compared like any other instruction.

use hostexec::image::{ImageForm, XsaveKind};
use hostexec::{FpuState, STATE_SIZE, component};

use crate::generate::{self, Random};
use crate::harness::{Native, Registers};

/// Instruction at [rcx], kind, and form.
const SAVES: [(&[u8], XsaveKind, bool); 6] = [
    (&[0x48, 0x0f, 0xae, 0x21], XsaveKind::Standard, true),
    (&[0x0f, 0xae, 0x21], XsaveKind::Standard, false),
    (&[0x48, 0x0f, 0xae, 0x31], XsaveKind::Optimized, true),
    (&[0x0f, 0xae, 0x31], XsaveKind::Optimized, false),
    (&[0x48, 0x0f, 0xc7, 0x21], XsaveKind::Compacted, true),
    (&[0x0f, 0xc7, 0x21], XsaveKind::Compacted, false),
];

fn registers(state: FpuState, native: &Native, rfbm: u64) -> Registers {
    let mut gprs = [0; 16];
    gprs[0] = rfbm;
    gprs[1] = native.memory_address();
    Registers { state, gprs, rflags: 2 }
}

/// A random state with some components zero, which XRSTOR makes initial.
fn state(random: &mut Random) -> FpuState {
    let mut state = generate::state(random);
    if random.one_in(3) {
        state.vzeroupper(16);
    }
    if random.one_in(3) {
        state.set_mxcsr(0x1f80).expect("valid");
    }
    state
}

#[test]
fn xsave_writes_what_the_host_writes() {
    let mut native = Native::lock();
    let mut random = Random::new(6);
    for round in 0..3000 {
        let (bytes, kind, long) = SAVES[round % SAVES.len()];
        let rfbm = random.next() & component::ALL;
        let state = state(&mut random);
        let old_xstate_bv = random.next() & component::ALL;
        let mut memory = [0xee; 1024];
        memory[512..576].fill(0);
        memory[512] = old_xstate_bv as u8;
        *native.memory() = memory;
        let mut theirs = registers(state.clone(), &native, rfbm);
        if native.run(bytes, &mut theirs).is_some() {
            continue; // the host lacks this one
        }
        let form = ImageForm { mode64: true, long };
        let image = state.xsave(rfbm, kind, form, old_xstate_bv);
        let host = *native.memory();
        // What is in use is the CPU's choice where a component is initial.
        let in_use = host[512] as u64 & rfbm;
        assert_eq!(in_use & state.xinuse(), rfbm & state.xinuse(), "{bytes:x?}");
        if in_use != u64::from(image_byte(&image, 512)) & rfbm {
            continue;
        }
        for (at, piece) in image.pieces() {
            memory[at..at + piece.len()].copy_from_slice(piece);
        }
        assert_eq!(memory, host, "{bytes:x?} of {rfbm:#x} with {state:x?}");
    }
}

fn image_byte(image: &hostexec::image::XsaveImage, at: usize) -> u8 {
    let piece = image.pieces().find(|(start, bytes)| (*start..start + bytes.len()).contains(&at));
    let (start, bytes) = piece.expect("always written");
    bytes[at - start]
}

#[test]
fn xrstor_loads_what_the_host_loads() {
    let mut native = Native::lock();
    let mut random = Random::new(7);
    let mut refused = 0;
    for _ in 0..5000 {
        let long = random.one_in(2);
        let bytes: &[u8] = if long { &[0x48, 0x0f, 0xae, 0x29] } else { &[0x0f, 0xae, 0x29] };
        let rfbm = random.next() & component::ALL;
        let mut area = state(&mut random).to_bytes();
        area[512..576].fill(0);
        area[512] = random.byte() & if random.one_in(8) { 0x0f } else { 7 };
        if random.one_in(2) {
            area[520] = random.byte() & 7;
            area[527] = if random.one_in(8) { 0 } else { 0x80 };
        }
        if random.one_in(16) {
            area[512 + random.below(64)] = 1;
        }
        if random.one_in(8) {
            area[26] = random.byte() & 3; // reserved bits of MXCSR
        }
        let before = state(&mut random);
        native.memory()[..STATE_SIZE].copy_from_slice(&area);
        let mut theirs = registers(before.clone(), &native, rfbm);
        let signal = native.run(bytes, &mut theirs);
        let mut ours = before;
        let form = ImageForm { mode64: true, long };
        let result = ours.xrstor(&area, rfbm, component::ALL, form);
        assert_eq!(result.is_err(), signal.is_some(), "{:x?} {result:?}", &area[512..576]);
        if result.is_err() {
            // The host may have loaded some of the area before it found out.
            refused += 1;
            continue;
        }
        assert_eq!(ours, theirs.state, "rfbm {rfbm:#x} header {:x?}", &area[512..528]);
    }
    assert!((100..3000).contains(&refused), "{refused} areas refused");
}
