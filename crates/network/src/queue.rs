//! Frames on their way to one guest.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use backend::{Frame, Wake};

/// Bytes beyond which the sources that can wait are asked to, and which may be exceeded by a frame
/// of each.
const FULL: usize = 4 << 20;
/// Bytes below which they go on.
const LOW: usize = 1 << 20;
/// Frames beyond which there is no room, whatever their size.
const MAX_FRAMES: usize = 4096;

/// Frames on their way to one guest, in order and bounded.
#[derive(Default)]
pub(crate) struct FrameQueue {
    frames: Mutex<Frames>,
    wake: OnceLock<Wake>,
    /// Called when there is room again after somebody found none.
    room: OnceLock<Wake>,
}

#[derive(Default)]
struct Frames {
    queue: VecDeque<Frame>,
    bytes: usize,
    /// The guest's card found nothing, and is to be told of the next.
    idle: bool,
    /// Somebody waits for room.
    awaited: bool,
}

impl Frames {
    fn is_full(&self) -> bool {
        self.bytes >= FULL || self.queue.len() >= MAX_FRAMES
    }

    fn is_low(&self) -> bool {
        self.bytes <= LOW && self.queue.len() <= MAX_FRAMES / 2
    }
}

impl FrameQueue {
    /// Sets what is called when there is a frame.
    pub(crate) fn connect(&self, wake: Wake) {
        // There is one guest.
        let _ = self.wake.set(wake);
        self.lock().idle = true;
    }

    /// Sets what is called when there is room again.
    pub(crate) fn on_room(&self, room: Wake) {
        let _ = self.room.set(room);
    }

    /// Adds a frame; `false` when there is no room and it is lost.
    pub(crate) fn push(&self, frame: Frame) -> bool {
        let mut frames = self.lock();
        if frames.is_full() {
            return false;
        }
        frames.bytes += frame.len();
        frames.queue.push_back(frame);
        let wake = std::mem::take(&mut frames.idle);
        drop(frames);
        if wake && let Some(wake) = self.wake.get() {
            wake();
        }
        true
    }

    /// Whether there is room. When there is none, what was set by [`FrameQueue::on_room`] is called
    /// when there is again.
    pub(crate) fn has_room(&self) -> bool {
        let mut frames = self.lock();
        frames.awaited |= frames.is_full();
        !frames.is_full()
    }

    /// Whether the guest has taken everything.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().queue.is_empty()
    }

    /// The next frame.
    pub(crate) fn pop(&self) -> Option<Frame> {
        let mut frames = self.lock();
        let Some(frame) = frames.queue.pop_front() else {
            frames.idle = true;
            return None;
        };
        frames.bytes -= frame.len();
        let room = frames.awaited && frames.is_low();
        if room {
            frames.awaited = false;
        }
        drop(frames);
        if room && let Some(room) = self.room.get() {
            room();
        }
        Some(frame)
    }

    /// Drops everything.
    pub(crate) fn clear(&self) {
        let mut frames = self.lock();
        frames.queue.clear();
        frames.bytes = 0;
        let room = std::mem::take(&mut frames.awaited);
        drop(frames);
        if room && let Some(room) = self.room.get() {
            room();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Frames> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
