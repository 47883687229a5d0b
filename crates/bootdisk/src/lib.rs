//! What a boot loader would start from a disk.
//!
//! A disk of a whole system has a kernel, an initramfs and a command line somewhere in its file
//! systems. [`find`] reads them from there without help of the guest, as Xen's pygrub does: it takes
//! the default entry of systemd-boot (entries of the Boot Loader Specification) or of GRUB, or, where
//! neither is configured, the newest kernel in the usual places.
//!
//! Key types: [`BootEntry`], the result; [`Error`]. Inside: `source` reads a disk, `partitions` the
//! table on it (MBR, GPT), `volume` the file systems (ext2 to ext4, FAT), `grub` and `entries` the
//! two boot configurations, `plain` what there is without one.
//!
//! Neighbours: `backend` has the disk; the command line hands what is found to the loaders.
//!
//! Everything on a disk may be the work of a hostile guest: sizes are bounded, scripts end after a
//! number of steps, and all of it together may read only so much ([`Error::TooMuch`]).

#![forbid(unsafe_code)]

mod entries;
mod error;
mod find;
pub mod grub;
mod partitions;
mod plain;
mod source;
mod volume;

pub use entries::parse_entry;
pub use error::Error;
pub use find::{BootEntry, find};

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;
