//! Why an image cannot be a disk.

use std::io;

use thiserror::Error;

/// Why an image cannot be a disk.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StorageError {
    /// Somebody else has it.
    #[error(
        "disk image {name} is in use by another VM or program; end that first, or let both open \
         it with readonly or overlay"
    )]
    InUse {
        /// The image.
        name: String,
    },
    /// It is neither a file nor a block device.
    #[error("disk image {name} is neither a file nor a block device; give one of these")]
    NoFile {
        /// The image.
        name: String,
    },
    /// Its size is no disk's.
    #[error(
        "disk image {name} has {bytes} bytes, and a disk has a multiple of {unit}, and not none; \
         set its size with `truncate --size`"
    )]
    BadSize {
        /// The image.
        name: String,
        /// Its size.
        bytes: u64,
        /// What it has to be a multiple of.
        unit: u64,
    },
    /// The host failed.
    #[error("cannot {action} disk image {name}: {cause}{way_out}")]
    Host {
        /// What was tried, as a verb.
        action: &'static str,
        /// The image.
        name: String,
        /// What the host said.
        cause: io::Error,
        /// What the user can do about it, after a semicolon, or nothing.
        way_out: &'static str,
    },
    /// A qcow2 image is damaged or forged.
    #[error("disk image {name} is not a usable qcow2 image: {reason}; `qemu-img check` says more")]
    Damaged {
        /// The image.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A qcow2 image needs something that there is not.
    #[error("disk image {name} {what}, which is not supported; convert it with `qemu-img convert`")]
    Unsupported {
        /// The image.
        name: String,
        /// What it needs.
        what: String,
    },
    /// A file that could have been written by a guest wants other files to be read.
    #[error(
        "disk image {name} is a qcow2 image on top of {backing}, which a guest with a raw disk can \
         make its disk look like; say format=qcow2 if it is meant"
    )]
    Doubtful {
        /// The image.
        name: String,
        /// The backing file that it names.
        backing: String,
    },
    /// A backing file without a format.
    #[error(
        "disk image {name} does not say what format its backing file {backing} has; say it with \
         `qemu-img rebase -u -F raw -b {backing} {name}`, or qcow2 for raw"
    )]
    NoBackingFormat {
        /// The image.
        name: String,
        /// The backing file that it names.
        backing: String,
    },
    /// A chain of backing files that does not end.
    #[error("disk image {name} is its own backing file, by way of others; the chain has to end")]
    Cycle {
        /// The image that comes twice.
        name: String,
    },
    /// A chain of backing files that is too long.
    #[error(
        "disk image {name} has more than {most} backing files, one on top of the other; merge \
         some with `qemu-img commit`"
    )]
    TooDeep {
        /// The image on top.
        name: String,
        /// The most.
        most: usize,
    },
    /// An overlay of something else.
    #[error(
        "overlay {name} is on top of {found}, not of {wanted}; give another file for the overlay, \
         or remove it"
    )]
    OtherBase {
        /// The overlay.
        name: String,
        /// What it is on top of.
        found: String,
        /// What it should be on top of.
        wanted: String,
    },
}

impl StorageError {
    /// The host failed at `action` on the image `name`.
    pub(crate) fn host(action: &'static str, name: &str, cause: io::Error) -> Self {
        Self::Host { action, name: name.to_owned(), cause, way_out: "" }
    }

    pub(crate) fn damaged(name: &str, reason: impl Into<String>) -> Self {
        Self::Damaged { name: name.to_owned(), reason: reason.into() }
    }

    pub(crate) fn unsupported(name: &str, what: impl Into<String>) -> Self {
        Self::Unsupported { name: name.to_owned(), what: what.into() }
    }
}
