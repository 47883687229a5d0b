//! Sets of pages of guest RAM.

use std::ops::Range;

/// A set of pages, by index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PageSet {
    bits: Vec<u64>,
    len: usize,
}

impl PageSet {
    /// None of `len` pages.
    pub(crate) fn empty(len: usize) -> Self {
        Self { bits: vec![0; len.div_ceil(64)], len }
    }

    /// All of `len` pages.
    pub(crate) fn full(len: usize) -> Self {
        let mut set = Self::empty(len);
        set.insert_run(0, len);
        set
    }

    /// The pages of `indexes`, which are below `len`.
    pub(crate) fn of(len: usize, indexes: &[usize]) -> Self {
        let mut set = Self::empty(len);
        indexes.iter().for_each(|page| set.insert_run(*page, 1));
        set
    }

    /// How many pages there could be.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether all pages are in the set.
    pub(crate) fn is_full(&self) -> bool {
        self.runs().next() == Some((0, self.len))
    }

    /// Whether `page` is in the set.
    pub(crate) fn contains(&self, page: usize) -> bool {
        page < self.len && self.bits[page / 64] >> (page % 64) & 1 != 0
    }

    /// Adds `count` pages, which are below the length.
    pub(crate) fn insert_run(&mut self, first: usize, count: usize) {
        debug_assert!(first + count <= self.len);
        for page in first..first + count {
            self.bits[page / 64] |= 1 << (page % 64);
        }
    }

    /// Adds the pages of `other`.
    pub(crate) fn insert_all(&mut self, other: &Self) {
        self.bits.iter_mut().zip(&other.bits).for_each(|(bits, more)| *bits |= more);
    }

    /// The pages that are not in `other`.
    pub(crate) fn without(&self, other: &Self) -> Self {
        let bits = self.bits.iter().zip(&other.bits).map(|(bits, less)| bits & !less).collect();
        Self { bits, len: self.len }
    }

    /// First page and length of each run of pages.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.runs_in(0..self.len)
    }

    /// The runs within a range of pages.
    pub(crate) fn runs_in(&self, range: Range<usize>) -> impl Iterator<Item = (usize, usize)> + '_ {
        let mut next = range.start;
        let end = range.end.min(self.len);
        std::iter::from_fn(move || {
            let first = self.find(next, end, true)?;
            next = self.find(first, end, false).unwrap_or(end);
            Some((first, next - first))
        })
    }

    /// The runs, cut so that none is longer than `most`.
    pub(crate) fn runs_within(&self, most: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.runs().flat_map(move |(first, count)| {
            let end = first + count;
            (first..end).step_by(most).map(move |at| (at, most.min(end - at)))
        })
    }

    /// The first page in `from..end` that is in the set, or that is not.
    fn find(&self, from: usize, end: usize, present: bool) -> Option<usize> {
        let mut page = from;
        while page < end {
            let word = self.bits[page / 64];
            let word = if present { word } else { !word } >> (page % 64);
            match word {
                0 => page = (page / 64 + 1) * 64,
                _ => page += word.trailing_zeros() as usize,
            }
            if word != 0 {
                return (page < end).then_some(page);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs() {
        let set = PageSet::of(200, &[0, 1, 63, 64, 65, 199]);
        let all: Vec<_> = set.runs().collect();
        assert_eq!(all, [(0, 2), (63, 3), (199, 1)]);
        assert_eq!(set.runs_in(64..199).collect::<Vec<_>>(), [(64, 2)]);
        let cut: Vec<_> = PageSet::full(130).runs_within(64).collect();
        assert_eq!(cut, [(0, 64), (64, 64), (128, 2)]);
        assert_eq!(PageSet::empty(65).runs().count(), 0);
        assert!(PageSet::full(65).is_full() && !set.is_full());
        assert!(set.contains(63) && !set.contains(62) && !set.contains(200));
    }

    #[test]
    fn unions_and_differences() {
        let mut set = PageSet::of(70, &[1, 69]);
        set.insert_all(&PageSet::of(70, &[2]));
        assert_eq!(set.runs().collect::<Vec<_>>(), [(1, 2), (69, 1)]);
        assert_eq!(set.without(&PageSet::of(70, &[2, 69])), PageSet::of(70, &[1]));
    }
}
