//! Why a disk cannot be booted from.

use std::io;

/// An error of [`find`](crate::find).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The disk cannot be read.
    #[error("the disk cannot be read: {0}")]
    Read(#[from] io::Error),

    /// Nothing on the disk says what to boot.
    #[error(
        "there is no boot configuration or kernel on the disk (looked for systemd-boot, GRUB and \
         /boot/vmlinuz on {volumes}); give a kernel with --kernel"
    )]
    Nothing {
        /// The partitions and their file systems.
        volumes: String,
    },

    /// The boot configuration names a file that cannot be had.
    #[error("{config} names {path}, which cannot be read: {cause}; give a kernel with --kernel")]
    File {
        /// The file with the configuration.
        config: String,
        /// The file that it names.
        path: String,
        /// Why.
        cause: String,
    },

    /// A boot configuration that is not understood.
    #[error("{config} is not understood: {reason}; give a kernel with --kernel")]
    Config {
        /// The file.
        config: String,
        /// What is wrong with it, with the line where known.
        reason: String,
    },

    /// More had to be read than any boot configuration needs: a file system that goes in circles.
    #[error("the file systems on the disk are damaged: they do not come to an end")]
    TooMuch,
}
