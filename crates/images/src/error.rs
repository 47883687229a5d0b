//! What can go wrong with images, each with its way out.

use std::io;
use std::path::{Path, PathBuf};

/// An error of the image store, a recipe or a download.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that no image can bear.
    #[error(
        "{name:?} is not an image name: use 1 to 63 of a-z, 0-9, '.', '_', '-', and begin with a \
         letter or digit"
    )]
    InvalidName {
        /// The text that was given.
        name: String,
    },

    /// No folder for images can be derived from the environment.
    #[error(
        "no place to keep images: HOME is not set to an absolute path; set HOME, or set \
         RINGFENCE_IMAGES to a folder"
    )]
    NoHome,

    /// The store's folder cannot be created or written.
    #[error(
        "cannot write to the image store {}: {source}; make it writable, or set RINGFENCE_IMAGES \
         to another folder",
        path.display()
    )]
    StoreNotWritable {
        /// The store's folder, or the part of it that failed.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },

    /// An image of this name is not in the store.
    #[error(
        "there is no image {name:?} in {}; `ringfence image ls` lists what there is",
        store.display()
    )]
    NotFound {
        /// The name that was looked for.
        name: String,
        /// The store's folder.
        store: PathBuf,
    },

    /// No recipe of this name exists.
    #[error("there is no recipe {name:?}; known recipes: tiny, debian")]
    UnknownRecipe {
        /// The name that was looked for.
        name: String,
    },

    /// Another process builds the image at this moment.
    #[error("image {name:?} is being built by another process; try again when it is done")]
    Busy {
        /// The image's name.
        name: String,
    },

    /// An image whose manifest or files are damaged or not understood.
    #[error(
        "{} is not usable: {reason}; remove the image with `ringfence image rm` and build it again",
        path.display()
    )]
    Damaged {
        /// The file that is damaged.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },

    /// A program that the host should have is missing.
    #[error(
        "cannot run {program}: {source}; images are built from Debian packages, so this needs a \
         Debian-like host with apt and dpkg (or give a kernel with --kernel and --initrd)"
    )]
    Program {
        /// The program's name.
        program: String,
        /// Why it could not be started.
        source: io::Error,
    },

    /// A program that not every Debian-like host has is missing.
    #[error("{what} is not installed; as root: `apt-get install {package}`")]
    Missing {
        /// What is missing.
        what: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },

    /// An option of a recipe with a value that it cannot have.
    #[error("{option} {value:?} is not {expected}")]
    Option {
        /// The option.
        option: &'static str,
        /// What was given.
        value: String,
        /// What it can be.
        expected: &'static str,
    },

    /// A program of the host ran and failed.
    #[error("`{command}` failed ({status}): {detail}; {way_out}")]
    Command {
        /// The command line.
        command: String,
        /// The exit status or signal.
        status: String,
        /// The last lines that it wrote to standard error.
        detail: String,
        /// What the user can do about it.
        way_out: &'static str,
    },

    /// The host has no package sources at all.
    #[error(
        "apt has no package sources: put a Debian source into /etc/apt/sources.list or \
         /etc/apt/sources.list.d"
    )]
    NoPackageSources,

    /// The host's package sources do not offer a package.
    #[error("no package {package:?} in the host's package sources ({detail})")]
    NoPackage {
        /// The package's name.
        package: String,
        /// What apt said, and the way out.
        detail: String,
    },

    /// A package does not hold what it should.
    #[error("package file {}: {reason}", path.display())]
    Package {
        /// The `.deb` file.
        path: PathBuf,
        /// What is missing or wrong.
        reason: String,
    },

    /// A kernel module cannot be used.
    #[error("kernel module {module}: {reason}")]
    Module {
        /// The module's name or path in its package.
        module: String,
        /// What is wrong with it.
        reason: String,
    },

    /// An initramfs entry that cannot be written.
    #[error("initramfs entry {path:?}: {reason}")]
    Initramfs {
        /// The entry's path in the initramfs.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    /// For `map_err`: a file operation on `path` that failed.
    pub(crate) fn io<'a>(
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    /// A damaged file of an image.
    pub(crate) fn damaged(path: &Path, reason: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), reason: reason.into() }
    }
}
