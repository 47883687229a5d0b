//! Gathers and masked moves, done element by element, against the host.

use hostexec::elements::ElementPlan;
use iced_x86::{Decoder, DecoderOptions};

use crate::generate::{self, Random};
use crate::harness::{Native, Registers};

/// Gathers have their base in RCX here, in the middle of the memory.
const MIDDLE: usize = 512;

/// Random bytes of one of the instructions; memory operand at [rcx] or [rdi].
fn instruction(random: &mut Random) -> Vec<u8> {
    let rest = random.byte() & 0x84 | random.byte() & 0x78 | 0x01;
    let extension = random.byte() & 0xc0 | 0x20;
    let register = random.byte() & 0x38;
    match random.below(5) {
        0 => {
            // vgather*: ModRM with SIB, any index, base rcx.
            let opcode = 0x90 + random.below(4) as u8;
            let sib = random.byte() & 0xf8 | 0x01;
            vec![0xc4, extension | 2, rest, opcode, register | 0x04, sib]
        }
        1 => vec![0xc4, extension | 2, rest & 0x7d, 0x2c + random.below(4) as u8, register | 1],
        2 => {
            let opcode = if random.one_in(2) { 0x8c } else { 0x8e };
            vec![0xc4, extension | 2, rest, opcode, register | 1]
        }
        3 => vec![0x66, 0x40 | random.byte() & 5, 0x0f, 0xf7, 0xc0 | random.byte()],
        _ => vec![0x0f, 0xf7, 0xc0 | random.byte()],
    }
}

fn random_registers(random: &mut Random, base: u64) -> Registers {
    let mut state = generate::state(random);
    for index in 0..16 {
        // Small indices, whether read as doublewords or as quadwords.
        if random.one_in(2) {
            let wide = random.one_in(2);
            let mut lanes = [0; 8];
            for lane in 0..8 {
                let value = random.below(48) as i32 - 24;
                lanes[lane] = if wide && lane % 2 == 1 { lanes[lane - 1] >> 31 } else { value };
            }
            state.set_ymm_u32(index, lanes.map(|lane| lane as u32));
        }
    }
    let mut gprs = generate::gprs(random, base);
    gprs[7] = base;
    Registers { state, gprs, rflags: 2 }
}

/// Executes with the accesses in `memory`, whose first byte has `address`.
/// False if an element lies outside.
fn execute(
    plan: &mut ElementPlan,
    ours: &mut Registers,
    base: u64,
    address: u64,
    memory: &mut [u8],
) -> bool {
    for i in (0..plan.len()).filter(|&i| plan.is_active(i)).collect::<Vec<_>>() {
        let at = base.wrapping_add_signed(plan.offset(i)).wrapping_sub(address) as usize;
        let size = plan.element_size();
        let Some(bytes) = at.checked_add(size).and_then(|end| memory.get_mut(at..end)) else {
            return false;
        };
        if plan.is_store() {
            bytes.copy_from_slice(&plan.store_value(i).to_le_bytes()[..size]);
        } else {
            let mut value = [0; 8];
            value[..size].copy_from_slice(bytes);
            plan.load(&mut ours.state, i, u64::from_le_bytes(value));
        }
    }
    true
}

#[test]
fn gathers_and_masked_moves_equal_the_host() {
    let mut native = Native::lock();
    let mut random = Random::new(5);
    let mut kinds = std::collections::BTreeSet::new();
    let mut compared = 0;
    while compared < 30_000 {
        let bytes = instruction(&mut random);
        let decoded = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
        if decoded.is_invalid() || decoded.len() != bytes.len() {
            continue;
        }
        assert!(ElementPlan::handles(&decoded), "{bytes:x?} {:?}", decoded.code());
        let address = native.memory_address();
        let base = address + MIDDLE as u64;
        let before = random_registers(&mut random, base);
        let mut memory: [u8; 1024] = std::array::from_fn(|_| random.byte());
        *native.memory() = memory;
        let mut ours = before.clone();
        let mut plan = ElementPlan::new(&decoded, &ours.state).expect("handled");
        // Elements elsewhere are not to be touched natively.
        if !execute(&mut plan, &mut ours, base, address, &mut memory) {
            continue;
        }
        plan.finish(&mut ours.state);
        let mut theirs = before.clone();
        assert_eq!(native.run(&bytes, &mut theirs), None, "{bytes:x?}");
        assert_eq!(*native.memory(), memory, "{bytes:x?} {:?}", decoded.code());
        assert_eq!(ours, theirs, "{bytes:x?} {:?}", decoded.code());
        kinds.insert(decoded.code());
        compared += 1;
    }
    // 16 gathers, 16 masked moves, MASKMOVQ, MASKMOVDQU.
    assert!(kinds.len() >= 34, "{} kinds", kinds.len());
}
