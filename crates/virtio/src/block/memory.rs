//! The memory of requests that are under way.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use backend::Buffer;

/// Bytes that requests may have at once, but for one that is larger on its own.
const MOST: u64 = 32 << 20;
/// Bytes of buffers that are kept for the next requests.
const KEPT: u64 = 8 << 20;

/// Hands out buffers, and makes whoever wants one wait while too many are out.
#[derive(Default)]
pub(super) struct Memory {
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Default)]
struct State {
    out: u64,
    kept: Vec<Buffer>,
    kept_bytes: u64,
}

impl State {
    fn has_room(&self, bytes: u64) -> bool {
        self.out == 0 || self.out + bytes <= MOST
    }
}

impl Memory {
    /// Whether [`take`](Self::take) would not wait.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.lock().has_room(bytes)
    }

    /// A buffer of this size, with any content; waits until it may be had.
    pub(super) fn take(&self, bytes: u64) -> Buffer {
        if bytes == 0 {
            return Buffer::default();
        }
        let mut state = self.lock();
        while !state.has_room(bytes) {
            state = self.returned.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.out += bytes;
        let fitting = state.kept.iter().rposition(|kept| kept.capacity() as u64 >= bytes);
        let kept = fitting.map(|index| state.kept.swap_remove(index));
        if let Some(kept) = &kept {
            state.kept_bytes -= kept.capacity() as u64;
        }
        drop(state);
        match kept {
            Some(mut buffer) => {
                buffer.set_len(bytes as usize);
                buffer
            }
            None => Buffer::new(bytes as usize),
        }
    }

    /// A buffer is not used any more.
    pub(super) fn give_back(&self, buffer: Buffer) {
        if buffer.is_empty() {
            return;
        }
        let capacity = buffer.capacity() as u64;
        let mut state = self.lock();
        state.out = state.out.saturating_sub(buffer.len() as u64);
        if state.kept_bytes + capacity <= KEPT {
            state.kept_bytes += capacity;
            state.kept.push(buffer);
        }
        drop(state);
        self.returned.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_is_bounded_and_what_comes_back_is_used_again() {
        let memory = Memory::default();
        let first = memory.take(MOST + 1);
        assert!(!memory.has_room(1), "one may be larger, but alone");
        memory.give_back(first);
        let buffers: Vec<_> = (0..4).map(|_| memory.take(MOST / 4)).collect();
        assert!(!memory.has_room(1) && buffers.iter().all(|b| b.len() as u64 == MOST / 4));
        buffers.into_iter().for_each(|buffer| memory.give_back(buffer));
        let state = memory.lock();
        assert_eq!((state.out, state.kept.len()), (0, 1));
        drop(state);
        assert_eq!(memory.take(100).capacity() as u64, MOST / 4);
    }
}
