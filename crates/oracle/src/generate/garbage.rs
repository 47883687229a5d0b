//! Cases of random bytes: illegal encodings, odd prefixes, truncated instructions.

use crate::policy;
use crate::random::Random;

/// A few instructions' worth of random bytes, cut where the decoder sees instructions end.
pub(super) fn instructions(random: &mut Random) -> Vec<Vec<u8>> {
    let mut bytes = Vec::new();
    for _ in 0..=random.below(3) {
        instruction(random, &mut bytes);
    }
    let mut instructions = Vec::new();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let length = policy::decode(rest, 0).len().clamp(1, rest.len());
        let (first, others) = rest.split_at(length);
        instructions.push(first.to_vec());
        rest = others;
    }
    instructions
}

fn instruction(random: &mut Random, bytes: &mut Vec<u8>) {
    const PREFIXES: [u8; 11] = [0x66, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0x67, 0xf0];
    while random.one_in(4) {
        bytes.push(random.pick(&PREFIXES));
    }
    if random.one_in(3) {
        bytes.push(0x40 | random.next() as u8 & 0xf);
    }
    match random.below(12) {
        0..=3 => bytes.push(0x0f),
        4 => bytes.extend([0x0f, 0x38]),
        5 => bytes.extend([0x0f, 0x3a]),
        6 => bytes.extend([0xc5, random.next() as u8]),
        7 => {
            let map = random.pick(&[1, 2, 3]) | random.next() as u8 & 0xe0;
            bytes.extend([0xc4, map, random.next() as u8]);
        }
        _ => {}
    }
    for _ in 0..2 + random.below(4) {
        bytes.push(random.next() as u8);
    }
}
