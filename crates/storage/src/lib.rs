//! Disk images: raw files and block devices, qcow2 with backing files, copy-on-write overlays.
//!
//! [`open`] makes a disk of an image: it finds out the format, locks the image and all that it
//! needs, checks what can be checked, and picks how requests are executed. A [`RawDisk`] is a file
//! or block device whose bytes are the disk's; its requests go to the kernel by io_uring, many at
//! once. A [`Qcow2Disk`] is read and written by the crate `imago`, its requests by a [`Pool`] of
//! threads; the same pool stands in where the kernel has no io_uring for us.
//!
//! An image is the work of somebody else, and so is its content, the guest's: what a qcow2 image
//! says of itself is checked as a whole before it is used (`check`), and a file is taken for qcow2
//! with files of its own only when the user said so, since a guest can write such a header into its
//! raw disk.
//!
//! Neighbours: `backend` has the contract ([`Disk`](backend::Disk)); `virtio` is the front end; the
//! command line says which images.
//!
//! Invariants:
//! - An image that is open for writing is open nowhere else; one that is read, also as a backing
//!   file, is open nowhere for writing. The locks are `flock`s, which end with the process.
//! - A backing file is never written.

mod backing;
mod check;
mod configured;
mod create;
mod error;
mod file;
mod nocloud;
mod open;
mod pool;
mod qcow2;
mod raw;
mod uring;

pub use backing::backing_files;
pub use check::check_qcow2;
pub use create::create_qcow2;
pub use error::StorageError;
pub use nocloud::NoCloud;
pub use open::{Format, ImageOptions, Opened, Overlay, open};
pub use pool::Pool;
pub use qcow2::Qcow2Disk;
pub use raw::RawDisk;
