//! Per-page state: who watches a page.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// Who wants to know which pages were written since it last asked. Each has a bitmap of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum DirtyConsumer {
    /// Incremental snapshots.
    Snapshot = 0,
    /// Live migration's pre-copy rounds.
    Migration = 1,
}

const CONSUMERS: usize = 2;

/// Called before a watched page is written, with the page's index in guest RAM, by whichever
/// thread writes. A live snapshot copies the page's old content here.
pub trait WriteHook: Send + Sync {
    /// The page `page` still has its old content when this is called for the first time, and until
    /// it returns. Several threads that are about to write may call it at once, and all of them
    /// wait until it returns.
    fn before_write(&self, page: usize);
}

/// The page holds code that an engine has decoded or translated.
pub(crate) const CODE: u8 = 1 << 0;
/// Some dirty consumer has the page as clean.
pub(crate) const CLEAN: u8 = 1 << 1;
/// The write hook wants the page's old content.
pub(crate) const HOOKED: u8 = 1 << 2;

/// State of all pages.
pub(crate) struct Pages {
    state: Vec<AtomicU8>,
    writers: Vec<AtomicU8>,
    code_version: Vec<AtomicU32>,
    code_epoch: AtomicU64,
    watch_epoch: AtomicU64,
    tracking: [AtomicU8; CONSUMERS],
    dirty: [Vec<AtomicU64>; CONSUMERS],
}

/// The bit that stands for all vCPUs without one of their own: it is never cleared.
const SHARED_WRITER: u8 = 1 << 7;

const fn writer_bit(vcpu: u32) -> u8 {
    if vcpu < 7 { 1 << vcpu } else { SHARED_WRITER }
}

impl Pages {
    pub(crate) fn new(count: usize) -> Self {
        let bitmap = || (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self {
            state: (0..count).map(|_| AtomicU8::new(0)).collect(),
            writers: (0..count).map(|_| AtomicU8::new(0)).collect(),
            code_version: (0..count).map(|_| AtomicU32::new(0)).collect(),
            code_epoch: AtomicU64::new(0),
            watch_epoch: AtomicU64::new(0),
            tracking: Default::default(),
            dirty: [bitmap(), bitmap()],
        }
    }

    #[inline]
    pub(crate) fn is_quiet(&self, page: usize) -> bool {
        self.state[page].load(Ordering::Relaxed) == 0
    }

    pub(crate) fn note_writer(&self, page: usize, vcpu: u32) {
        let bit = writer_bit(vcpu);
        if self.writers[page].load(Ordering::Relaxed) & bit == 0 {
            self.writers[page].fetch_or(bit, Ordering::SeqCst);
        }
    }

    pub(crate) fn forget_writer(&self, page: usize, vcpu: u32) {
        self.writers[page].fetch_and(!writer_bit(vcpu) | SHARED_WRITER, Ordering::SeqCst);
    }

    pub(crate) fn may_write(&self, page: usize, vcpu: u32) -> bool {
        self.writers[page].load(Ordering::SeqCst) & writer_bit(vcpu) != 0
    }

    pub(crate) fn set(&self, page: usize, flag: u8) {
        // Before any look at who may write: see `note_writer`.
        self.state[page].fetch_or(flag, Ordering::SeqCst);
    }

    pub(crate) fn set_all(&self, flag: u8) {
        for state in &self.state {
            state.fetch_or(flag, Ordering::AcqRel);
        }
        self.watch_epoch.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn has(&self, page: usize, flag: u8) -> bool {
        self.state[page].load(Ordering::Acquire) & flag != 0
    }

    /// Clears `flag`; whether it was set.
    pub(crate) fn clear(&self, page: usize, flag: u8) -> bool {
        self.state[page].fetch_and(!flag, Ordering::AcqRel) & flag != 0
    }

    #[inline]
    pub(crate) fn code_version(&self, page: usize) -> u32 {
        self.code_version[page].load(Ordering::Acquire)
    }

    pub(crate) fn bump_code_version(&self, page: usize) {
        self.code_version[page].fetch_add(1, Ordering::AcqRel);
        self.code_epoch.fetch_add(1, Ordering::AcqRel);
    }

    #[inline]
    pub(crate) fn code_epoch(&self) -> u64 {
        self.code_epoch.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn watch_epoch(&self) -> u64 {
        self.watch_epoch.load(Ordering::Acquire)
    }

    pub(crate) fn mark_dirty(&self, page: usize) {
        for (tracking, dirty) in self.tracking.iter().zip(&self.dirty) {
            if tracking.load(Ordering::Acquire) != 0 {
                dirty[page / 64].fetch_or(1 << (page % 64), Ordering::AcqRel);
            }
        }
        self.clear(page, CLEAN);
    }

    pub(crate) fn track(&self, consumer: DirtyConsumer, on: bool) {
        let index = consumer as usize;
        for word in &self.dirty[index] {
            word.store(0, Ordering::Release);
        }
        self.tracking[index].store(u8::from(on), Ordering::Release);
        if on {
            self.set_all(CLEAN);
        }
    }

    /// The pages written since the last call, clean again for this consumer.
    pub(crate) fn take_dirty(&self, consumer: DirtyConsumer) -> Vec<usize> {
        let mut pages = Vec::new();
        for (index, word) in self.dirty[consumer as usize].iter().enumerate() {
            let mut bits = word.swap(0, Ordering::AcqRel);
            while bits != 0 {
                let page = index * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                self.set(page, CLEAN);
                pages.push(page);
            }
        }
        self.watch_epoch.fetch_add(1, Ordering::AcqRel);
        pages
    }
}
