//! A set of interrupt vectors, laid out as the APIC's 256-bit registers.

/// 256 bits, one for each vector: the form of IRR, ISR and TMR, eight 32-bit registers each
/// (Intel SDM vol. 3A 11.8.4, figure 11-20).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct VectorSet([u32; 8]);

impl VectorSet {
    /// The set whose registers have these values, vectors 0 to 31 first.
    pub(crate) const fn from_words(words: [u32; 8]) -> Self {
        Self(words)
    }

    /// The values of the eight registers, vectors 0 to 31 first.
    pub(crate) const fn words(self) -> [u32; 8] {
        self.0
    }

    /// Register `index` modulo 8.
    pub(crate) const fn word(self, index: u32) -> u32 {
        self.0[(index & 7) as usize]
    }

    /// Adds or removes `vector`.
    pub(crate) fn set(&mut self, vector: u8, member: bool) {
        let bit = 1 << (vector & 31);
        let word = &mut self.0[usize::from(vector >> 5)];
        *word = if member { *word | bit } else { *word & !bit };
    }

    /// Whether `vector` is a member.
    pub(crate) const fn contains(self, vector: u8) -> bool {
        self.0[(vector >> 5) as usize] & 1 << (vector & 31) != 0
    }

    /// The highest member, which has the highest priority.
    pub(crate) fn highest(self) -> Option<u8> {
        let index = self.0.iter().rposition(|word| *word != 0)?;
        Some(index as u8 * 32 + self.0[index].ilog2() as u8)
    }

    /// Whether one of the vectors 0 to 15, which are never delivered, is a member.
    pub(crate) const fn has_illegal(self) -> bool {
        self.0[0] & 0xffff != 0
    }
}

#[cfg(test)]
mod tests {
    use super::VectorSet;

    #[test]
    fn highest_follows_every_insertion_and_removal() {
        let mut set = VectorSet::default();
        assert_eq!(set.highest(), None);
        for vector in 0..=255 {
            set.set(vector, true);
            assert_eq!(set.highest(), Some(vector));
            assert!(set.contains(vector));
            assert_eq!(set.word(u32::from(vector) / 32) >> (vector % 32), 1);
        }
        for vector in (1..=255).rev() {
            set.set(vector, false);
            assert!(!set.contains(vector));
            assert_eq!(set.highest(), Some(vector - 1));
        }
        assert!(set.has_illegal());
        set.set(0, false);
        assert_eq!(set, VectorSet::from_words([0; 8]));
    }
}
