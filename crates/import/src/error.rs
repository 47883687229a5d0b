//! What can be wrong with an image.

use std::io;

/// An error of reading an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {name}: {cause}")]
    Read {
        /// The file.
        name: String,
        /// What the host said.
        cause: io::Error,
    },

    /// The new image cannot be written.
    #[error("cannot write the image: {0}")]
    Write(io::Error),

    /// What the file says of itself cannot be.
    #[error("{name} is damaged: {reason}")]
    Damaged {
        /// The file.
        name: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A kind of image that is not read.
    #[error(
        "{name} {what}, which is not read; make it a qcow2 image with `qemu-img convert -O qcow2`"
    )]
    Unsupported {
        /// The file.
        name: String,
        /// What it is or has.
        what: String,
    },
}
