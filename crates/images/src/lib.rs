//! Images that Ringfence builds and keeps.
//!
//! An *image* is a folder with a kernel and an initramfs, or with a disk, and a manifest
//! (`image.json`) that says what they are. A [`Store`] is the folder that holds
//! images, by default below the user's cache folder. A [`Recipe`] says how an
//! image is made from the packages that the host's own package sources offer;
//! [`Recipe::Tiny`] is the image that `ringfence run` starts when it is given
//! nothing else; [`Recipe::Debian`] is a whole distribution. Nothing here needs root.
//!
//! Key types: [`Store`], [`Image`], [`Recipe`], [`Progress`]. For tests and
//! benchmarks, [`kernels`] hands out stock kernels and a static busybox, and
//! [`initramfs::Builder`] packs them with a given `/init`.
//!
//! Neighbours: the command line renders [`Progress`] and hands an image's files
//! to the loaders; this crate knows no VM and prints nothing.
//!
//! Invariants:
//! - What bears a valid name in the store is a whole image: building happens in
//!   a folder apart, which is synced and renamed at the end.
//! - Package sources, keys and proxies are the host's; package lists, downloads
//!   and locks are the store's own.
//! - Equal packages give byte-equal files.

#![forbid(unsafe_code)]

mod archive;
mod control;
pub mod debian;
mod error;
mod host;
pub mod initramfs;
mod kept;
pub mod kernels;
mod manifest;
mod mmdebstrap;
mod modinfo;
mod modules;
mod name;
mod packages;
mod progress;
mod qcow2;
mod staging;
mod store;
mod tiny;

pub use debian::Debian;
pub use error::Error;
pub use kept::{KeptDisk, default_folder};
pub use manifest::DiskFormat;
pub use name::ImageName;
pub use progress::{Progress, Silent};
pub use store::{Image, ImageFiles, ImageInfo, Listing, Recipe, Store};

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;
