//! Disk images.
//!
//! A [`RawDisk`] is a file or block device whose bytes are the disk's. It is handed over open, never
//! by path, and locked for as long as it lives: by one VM for writing, or by any number for reading.
//!
//! Neighbours: `backend` has the contract ([`Disk`](backend::Disk)); `virtio` is the front end; the
//! command line opens the files.

#![forbid(unsafe_code)]

mod raw;

pub use raw::{RawDisk, StorageError};
