//! Memory for disk requests.

use std::fmt;
use std::ops::{Deref, DerefMut};

/// Where the bytes of a [`Buffer`] begin: a multiple of this, as direct I/O wants it.
const ALIGN: usize = 4096;

/// Bytes whose first one is at a multiple of 4096, so that the host can move them to and from a
/// disk without its page cache (`O_DIRECT`, open(2)).
///
/// ```
/// let mut buffer = backend::Buffer::new(1000);
/// buffer[999] = 7;
/// assert_eq!(buffer.len(), 1000);
/// assert!(buffer.as_ptr().addr().is_multiple_of(4096));
/// ```
#[derive(Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// `len` zero bytes. For 0 of them no memory is allocated.
    pub fn new(len: usize) -> Self {
        if len == 0 {
            return Self::default();
        }
        let bytes = vec![0; len + ALIGN];
        let start = bytes.as_ptr().addr().wrapping_neg() % ALIGN;
        Self { bytes, start, len }
    }

    /// Bytes that it can be set to without being allocated anew.
    pub fn capacity(&self) -> usize {
        self.bytes.len().saturating_sub(ALIGN)
    }

    /// Makes it `len` bytes long. What they are is not said: it is to be filled.
    pub fn set_len(&mut self, len: usize) {
        if len > self.capacity() {
            *self = Self::new(len);
        }
        self.len = len;
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_at_every_length() {
        let mut buffer = Buffer::default();
        assert!(buffer.is_empty());
        for len in [1, 4096, 5000, 100, 0] {
            buffer.set_len(len);
            assert_eq!(buffer.len(), len);
            assert!(buffer.as_ptr().addr().is_multiple_of(ALIGN), "{len}");
        }
        assert_eq!(buffer.capacity(), 5000, "the memory is kept");
    }
}
