//! Reads choices off an input.

/// The bytes of an input that are not used yet. At the end there are zeros without end, so that
/// every input means something.
///
/// ```
/// let mut input = fuzz_bodies::Input::new(&[1, 2]);
/// assert_eq!(input.byte(), 1);
/// assert_eq!(input.word(), 2);
/// assert_eq!(input.word(), 0);
/// ```
#[derive(Clone, Debug)]
pub struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    /// All of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    /// The next two bytes, little-endian.
    pub fn short(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// The next eight bytes, little-endian.
    pub fn word(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// One of `choices`, by the next byte.
    ///
    /// # Panics
    /// When there is nothing to choose from.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.byte()) % choices.len()]
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let (now, later) = self.rest.split_at(self.rest.len().min(N));
        self.rest = later;
        let mut array = [0; N];
        array[..now.len()].copy_from_slice(now);
        array
    }
}
