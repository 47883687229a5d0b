//! Kernel and initrd files, recognised and checked.

use std::fs::File;

use crate::bzimage::BzImage;
use crate::elf::ElfKernel;
use crate::recognise::{self, Format};
use crate::source::{NotAFile, Source};
use crate::{BootError, vmlinux};

/// How a kernel is started. Multiboot comes later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KernelKind {
    /// A Linux bzImage, entered in long mode, or in 32-bit protected mode if it is a 32-bit kernel.
    BzImage,
    /// An ELF with a PVH entry point, entered in 32-bit protected mode.
    Pvh,
}

#[derive(Debug)]
pub(crate) enum Parsed {
    BzImage(BzImage),
    Pvh(ElfKernel),
}

/// A kernel that can be loaded, any number of times.
#[derive(Debug)]
pub struct KernelImage {
    pub(crate) source: Source,
    pub(crate) parsed: Parsed,
}

impl KernelImage {
    /// Recognises and checks a kernel file; `name` is for messages. The file's position does not
    /// matter and does not move.
    ///
    /// # Errors
    /// [`BootError::BadKernel`] for what cannot be booted, [`BootError::Read`].
    pub fn open(file: File, name: &str) -> Result<Self, BootError> {
        let source = Source::from_file(file, name).map_err(|e| match e {
            NotAFile::Unreadable(error) => error,
            NotAFile::Other(what) => bad_kernel(name, what, "give the kernel's own file"),
        })?;
        Self::recognise(source)
    }

    /// The same for a kernel in memory.
    ///
    /// # Errors
    /// As [`KernelImage::open`].
    pub fn from_bytes(bytes: Vec<u8>, name: &str) -> Result<Self, BootError> {
        Self::recognise(Source::from_bytes(bytes, name))
    }

    fn recognise(source: Source) -> Result<Self, BootError> {
        let head = source.head(recognise::HEAD_LEN)?;
        let parsed = match recognise::kernel(source.name(), &head)? {
            Format::BzImage => Parsed::BzImage(BzImage::parse(&source, &head)?),
            Format::Elf64 => Parsed::Pvh(ElfKernel::parse(&source, &head)?),
        };
        Ok(Self { source, parsed })
    }

    /// How it is started.
    pub fn kind(&self) -> KernelKind {
        match self.parsed {
            Parsed::BzImage(_) => KernelKind::BzImage,
            Parsed::Pvh(_) => KernelKind::Pvh,
        }
    }

    /// The name it was opened with.
    pub fn name(&self) -> &str {
        self.source.name()
    }

    /// The kernel's ELF file: unpacked from a bzImage ([`vmlinux::extract`]), or the file itself.
    ///
    /// # Errors
    /// [`BootError::BadKernel`], [`BootError::Read`].
    pub fn vmlinux(&self) -> Result<Vec<u8>, BootError> {
        match &self.parsed {
            Parsed::BzImage(image) => vmlinux::unpack(&self.source, image),
            Parsed::Pvh(_) => vmlinux::whole(&self.source),
        }
    }
}

/// An initial RAM disk that can be loaded, any number of times. Its content is the kernel's
/// business, but what is plainly something else (an empty file, a kernel) is refused.
#[derive(Debug)]
pub struct Initrd {
    pub(crate) source: Source,
}

impl Initrd {
    /// Checks an initrd file; `name` is for messages.
    ///
    /// # Errors
    /// [`BootError::BadInitrd`], [`BootError::Read`].
    pub fn open(file: File, name: &str) -> Result<Self, BootError> {
        let source = Source::from_file(file, name).map_err(|e| match e {
            NotAFile::Unreadable(error) => error,
            NotAFile::Other(what) => bad_initrd(name, what, "give the initramfs's own file"),
        })?;
        Self::check(source)
    }

    /// The same for one in memory.
    ///
    /// # Errors
    /// [`BootError::BadInitrd`].
    pub fn from_bytes(bytes: Vec<u8>, name: &str) -> Result<Self, BootError> {
        Self::check(Source::from_bytes(bytes, name))
    }

    fn check(source: Source) -> Result<Self, BootError> {
        if source.len() == 0 {
            return Err(bad_initrd(source.name(), "is empty", "build it again"));
        }
        Ok(Self { source })
    }
}

pub(crate) fn bad_kernel(
    name: &str,
    cause: impl Into<std::borrow::Cow<'static, str>>,
    way_out: impl Into<std::borrow::Cow<'static, str>>,
) -> BootError {
    BootError::BadKernel { name: name.to_owned(), cause: cause.into(), way_out: way_out.into() }
}

pub(crate) fn bad_initrd(
    name: &str,
    cause: impl Into<std::borrow::Cow<'static, str>>,
    way_out: impl Into<std::borrow::Cow<'static, str>>,
) -> BootError {
    BootError::BadInitrd { name: name.to_owned(), cause: cause.into(), way_out: way_out.into() }
}
