//! Numbers from a seed, and digests of what was computed.

/// A sequence of numbers from a seed (SplitMix64; Steele, Lea, Flood, OOPSLA 2014).
pub struct Random(u64);

impl Random {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        scramble(self.0)
    }

    /// The next number, below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// The next number as an index below `bound`, which is not 0.
    pub fn index(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// So many random bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

/// A number of which every bit depends on every bit of both.
pub fn mix(a: u64, b: u64) -> u64 {
    scramble(a.rotate_left(23) ^ scramble(b.wrapping_add(0x9e37_79b9_7f4a_7c15)))
}

fn scramble(mut mixed: u64) -> u64 {
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// Sums up a computation: another order or another value gives another digest.
#[derive(Default)]
pub struct Digest(u64);

impl Digest {
    /// Adds a number.
    pub fn add(&mut self, value: u64) {
        self.0 = mix(self.0, value);
    }

    /// Adds bytes.
    pub fn add_bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word));
        }
        self.add(bytes.len() as u64);
    }

    /// The digest so far.
    pub fn value(&self) -> u64 {
        self.0
    }
}
