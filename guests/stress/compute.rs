//! Jobs of one thread that compute: integers, floating point, vectors, sorting, maps, text.
//!
//! Only operations whose results are defined to the bit take part; the transcendental functions of
//! the C library are not, since their last digit depends on the instructions that it finds.

use std::arch::asm;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::fmt::Write as _;
use std::hash::{BuildHasherDefault, DefaultHasher};

use crate::random::{Digest, Random, mix};

/// Arithmetic of every width, and what depends on flags.
pub fn integers(seed: u64) -> u64 {
    let mut random = Random::new(seed);
    let mut digest = Digest::default();
    for _ in 0..3000 {
        let (a, b) = (random.next(), random.next());
        let wide = u128::from(a) * u128::from(b | 1) + u128::from(a ^ b);
        let divisor = u128::from(b >> random.below(60)) + 1;
        digest.add((wide / divisor) as u64);
        digest.add((wide % divisor) as u64);
        digest.add((a as i64).wrapping_rem((b as i64 >> 7) | 1) as u64);
        digest.add(u64::from(a as u32 / (b as u32 | 1)) ^ u64::from(a as u16 % (b as u16 | 1)));
        digest.add(u64::from((a as u8).wrapping_mul(b as u8)) + u64::from(a.count_ones()));
        digest.add(u64::from(a.leading_zeros() << 8 | b.trailing_zeros()) ^ a.swap_bytes());
        digest.add(carries(a, b));
    }
    digest.value()
}

/// Chains of carries, and shifts through the carry flag.
fn carries(a: u64, b: u64) -> u64 {
    let (mut low, mut high, mut flags) = (a, b, 0_u64);
    // SAFETY: only the named registers and the flags change.
    unsafe {
        asm!(
            "add {low}, {b}",
            "adc {high}, {a}",
            "sbb {low}, {high}",
            "rcl {high}, 1",
            "shld {low}, {high}, 13",
            "bt {low}, {b}",
            "adc {flags}, {flags}",
            "rcr {low:e}, 1",
            "adc {flags:l}, {low:l}",
            low = inout(reg) low,
            high = inout(reg) high,
            flags = inout(reg) flags,
            a = in(reg) a,
            b = in(reg) b,
            options(pure, nomem, nostack),
        );
    }
    mix(mix(low, high), flags)
}

/// Matrices, roots, conversions, decimal numbers.
pub fn floats(seed: u64) -> u64 {
    const SIDE: usize = 24;
    let mut random = Random::new(seed);
    let mut digest = Digest::default();
    let mut number = || random.next() as i32 as f64 / 65536.0;
    let a: Vec<f64> = (0..SIDE * SIDE).map(|_| number()).collect();
    let b: Vec<f64> = (0..SIDE * SIDE).map(|_| number()).collect();
    for row in 0..SIDE {
        for column in 0..SIDE {
            let cells = (0..SIDE).map(|i| a[row * SIDE + i] * b[i * SIDE + column]);
            let sum: f64 = cells.sum();
            let single = (sum as f32).abs().sqrt() / 3.7;
            digest.add(sum.to_bits() ^ u64::from(single.to_bits()));
            digest.add((sum * 0.001) as i64 as u64);
        }
    }
    for value in a.iter().take(100) {
        let text = format!("{value:.7e} {}", value * 1e-200);
        let back: f64 = text.split(' ').next_back().and_then(|t| t.parse().ok()).expect("a number");
        assert!(back == value * 1e-200, "a number survives its decimal form");
        digest.add_bytes(text.as_bytes());
    }
    digest.value()
}

/// 80-bit arithmetic in every rounding mode.
pub fn extended_floats(seed: u64) -> u64 {
    let mut random = Random::new(seed);
    let mut digest = Digest::default();
    for round in 0..400_u16 {
        let (a, b) = (random.next() as i64, random.next() as i64 | 1);
        let control: u16 = 0x037f | (round & 3) << 10;
        let mut out = [0_u8; 16];
        // SAFETY: the pointers are to locals; the control word and the empty stack are restored.
        unsafe {
            asm!(
                "fninit",
                "fldcw word ptr [{control}]",
                "fild qword ptr [{a}]",
                "fild qword ptr [{b}]",
                "fld st(1)",
                "fdiv st(0), st(1)",
                "fmul st(0), st(2)",
                "fabs",
                "fsqrt",
                "faddp st(2), st(0)",
                "fsubp st(1), st(0)",
                "fstp tbyte ptr [{out}]",
                "fninit",
                control = in(reg) &raw const control,
                a = in(reg) &raw const a,
                b = in(reg) &raw const b,
                out = in(reg) out.as_mut_ptr(),
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                options(nostack),
            );
        }
        digest.add_bytes(&out);
    }
    digest.value()
}

/// Vectors, 256 bits wide where the CPU has them; what is computed does not depend on it.
pub fn vectors(seed: u64) -> u64 {
    let mut random = Random::new(seed);
    let mut words: Vec<u32> = (0..4096).map(|_| random.next() as u32).collect();
    let mut numbers: Vec<f64> = words.iter().map(|&word| f64::from(word) + 0.5).collect();
    let wide = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    for _ in 0..8 {
        if wide {
            // SAFETY: the CPU has the features.
            unsafe { wide_kernel(&mut words, &mut numbers) };
        } else {
            kernel(&mut words, &mut numbers);
        }
    }
    let mut digest = Digest::default();
    words.iter().for_each(|&word| digest.add(u64::from(word)));
    numbers.iter().for_each(|number| digest.add(number.to_bits()));
    digest.value()
}

#[target_feature(enable = "avx2,fma")]
fn wide_kernel(words: &mut [u32], numbers: &mut [f64]) {
    kernel(words, numbers);
}

#[inline(always)]
fn kernel(words: &mut [u32], numbers: &mut [f64]) {
    for word in words.iter_mut() {
        let shifted = (*word >> 7) ^ word.wrapping_mul(0x9e37_79b1);
        *word = shifted.max(shifted.rotate_left(16)).wrapping_add(*word & 0xff);
    }
    for number in numbers.iter_mut() {
        // One rounding by definition, with or without the instruction.
        *number = number.mul_add(0.999_9, 1.0 / (number.abs() + 1.0));
    }
}

/// Sorting of numbers and of text, and a heap.
pub fn sorting(seed: u64) -> u64 {
    let mut random = Random::new(seed);
    let mut numbers: Vec<u64> = (0..6000).map(|_| random.next() >> random.below(40)).collect();
    let mut texts: Vec<String> = numbers.iter().take(800).map(|n| format!("{n:x}")).collect();
    let mut heap: BinaryHeap<u64> = numbers.iter().map(|n| n % 1000).collect();
    numbers.sort_unstable();
    texts.sort_by(|a, b| a.len().cmp(&b.len()).then_with(|| b.cmp(a)));
    assert!(numbers.is_sorted(), "what was sorted is sorted");
    let mut digest = Digest::default();
    numbers.iter().for_each(|&number| digest.add(number));
    texts.iter().for_each(|text| digest.add_bytes(text.as_bytes()));
    while let Some(top) = heap.pop() {
        digest.add(top);
    }
    digest.value()
}

/// Hash maps and trees under insertions and removals.
pub fn maps(seed: u64) -> u64 {
    let mut random = Random::new(seed);
    let mut hashed: HashMap<u64, String, BuildHasherDefault<DefaultHasher>> = HashMap::default();
    let mut ordered: BTreeMap<u64, String> = BTreeMap::new();
    for _ in 0..5000 {
        let key = random.below(1500);
        if random.below(3) == 0 {
            assert!(hashed.remove(&key) == ordered.remove(&key), "both maps have the same");
        } else {
            let value = format!("{key}-{}", random.below(1 << 20));
            hashed.insert(key, value.clone());
            ordered.insert(key, value);
        }
    }
    assert!(hashed.len() == ordered.len(), "both maps have as many");
    let mut digest = Digest::default();
    for (key, value) in &ordered {
        assert!(hashed.get(key) == Some(value), "both maps have the same");
        digest.add_bytes(value.as_bytes());
    }
    digest.value()
}

/// String instructions in both directions and with overlaps, against loops; text.
pub fn strings(seed: u64) -> u64 {
    let mut random = Random::new(seed);
    let mut bytes = random.bytes(12_000);
    let mut digest = Digest::default();
    for _ in 0..40 {
        let count = random.index(4000);
        let (from, to) = (random.index(8000), random.index(8000));
        let mut expected = bytes.clone();
        let backward = random.below(2) == 1;
        for index in 0..count {
            let index = if backward { count - 1 - index } else { index };
            expected[to + index] = expected[from + index];
        }
        move_bytes(&mut bytes, from, to, count, backward);
        assert!(bytes == expected, "MOVSB moves as a loop does");
    }
    digest.add_bytes(&bytes);
    let mut text = String::new();
    for word in bytes.chunks(3).take(1000) {
        write!(text, "{word:?} ").expect("a string grows");
    }
    digest.add_bytes(text.replace(", 1", "§").to_uppercase().as_bytes());
    digest.add(text.split_whitespace().filter(|word| word.ends_with("7]")).count() as u64);
    digest.value()
}

fn move_bytes(bytes: &mut [u8], from: usize, to: usize, count: usize, backward: bool) {
    if count == 0 {
        return;
    }
    let last = if backward { count - 1 } else { 0 };
    assert!(from + count <= bytes.len() && to + count <= bytes.len(), "in range");
    let base = bytes.as_mut_ptr();
    // SAFETY: both ranges lie in the slice, as just asserted; DF is clear again behind.
    unsafe {
        let (source, target) = (base.add(from + last), base.add(to + last));
        if backward {
            asm!("std", "rep movsb", "cld", inout("rcx") count => _, inout("rsi") source => _,
                inout("rdi") target => _);
        } else {
            asm!("rep movsb", inout("rcx") count => _, inout("rsi") source => _,
                inout("rdi") target => _);
        }
    }
}
