//! Guest RAM.
//!
//! All RAM of a guest lies in one host window, mapped once and private: anonymous, or of the memory
//! file of a snapshot. The window is indexed by [`RamOffset`]; the
//! guest's physical address space maps onto it by [`Region`]s. Nobody outside this crate holds a
//! host pointer: access is by copy, by [`Scalar`] load and store, or by page-granular [`Slice`]s.
//!
//! Writing has two hooks (design: "intent before, dirty mark after"): every page has a state byte,
//! zero when nobody watches it. [`GuestRam::prepare_write`] runs *before* a write to a watched page
//! (it drops translations of code on the page and offers the old content to a snapshot), and
//! [`GuestRam::mark_dirty`] *after* it. Engines skip both while [`GuestRam::is_quiet`].
//!
//! Key types: [`GuestRam`], [`Gpa`], [`RamOffset`], [`Slice`], [`DirtyConsumer`].
//! Neighbours: `paging` walks tables in it; engines load and store by [`RamOffset`]; loaders use
//! [`GuestRam::loader_view`]; snapshots use [`GuestRam::dirty_pages`].
//!
//! This crate is one of the few with unsafe code: it is all in `window.rs`.

mod pages;
mod ram;
mod scalar;
mod shadow;
mod window;

pub use pages::{DirtyConsumer, WriteHook};
pub use ram::{Access, GuestRam, LoaderView, MemoryError, Region, Slice};
pub use scalar::Scalar;

/// Bytes of a page.
pub const PAGE_SIZE: u64 = 4096;

/// A guest-physical address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

/// A byte offset into guest RAM: the host window, without the holes of the physical address space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RamOffset(pub u64);

impl RamOffset {
    /// Index of the page that the offset lies in.
    #[inline]
    pub const fn page(self) -> usize {
        (self.0 / PAGE_SIZE) as usize
    }
}

impl std::fmt::LowerHex for Gpa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
