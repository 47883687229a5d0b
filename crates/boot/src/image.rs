//! Kernel and initrd files, recognised and checked.

use std::fs::File;

use crate::bzimage::BzImage;
use crate::multiboot::MultibootKernel;
use crate::pvh::PvhKernel;
use crate::recognise::{self, Format};
use crate::source::{NotAFile, Source};
use crate::{BootError, vmlinux};

/// How a kernel is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KernelKind {
    /// A Linux bzImage, entered in long mode, or in 32-bit protected mode if it is a 32-bit kernel.
    BzImage,
    /// An ELF with a PVH entry point, entered in 32-bit protected mode.
    Pvh,
    /// A kernel with a multiboot header, entered in 32-bit protected mode.
    Multiboot,
}

#[derive(Debug)]
pub(crate) enum Parsed {
    BzImage(BzImage),
    Pvh(PvhKernel),
    Multiboot(MultibootKernel),
}

/// A kernel that can be loaded, any number of times.
#[derive(Debug)]
pub struct KernelImage {
    pub(crate) source: Source,
    pub(crate) parsed: Parsed,
}

impl KernelImage {
    /// Recognises and checks a kernel file, which may be gzip-compressed as a whole; `name` is for
    /// messages, and a multiboot kernel is told its last part. The file's position does not
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
        if head.starts_with(recognise::GZIP) {
            // Once: what is in there is a kernel or a mistake.
            let name = source.name().to_owned();
            return Self::parse(Source::from_bytes(vmlinux::gunzip(&source)?, &name));
        }
        Self::parse(source)
    }

    fn parse(source: Source) -> Result<Self, BootError> {
        let head = source.head(recognise::HEAD_LEN)?;
        let parsed = match recognise::kernel(source.name(), &head)? {
            Format::BzImage => Parsed::BzImage(BzImage::parse(&source, &head)?),
            Format::Elf64 => Parsed::Pvh(PvhKernel::parse(&source, &head)?),
            Format::Multiboot(header) => {
                Parsed::Multiboot(MultibootKernel::parse(&source, &head, header)?)
            }
        };
        Ok(Self { source, parsed })
    }

    /// How it is started.
    pub fn kind(&self) -> KernelKind {
        match self.parsed {
            Parsed::BzImage(_) => KernelKind::BzImage,
            Parsed::Pvh(_) => KernelKind::Pvh,
            Parsed::Multiboot(_) => KernelKind::Multiboot,
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
            Parsed::Multiboot(MultibootKernel { is_elf: false, .. }) => {
                let way_out = "give the ELF file that it was made from";
                Err(bad_kernel(self.name(), "is no ELF file", way_out))
            }
            Parsed::Pvh(_) | Parsed::Multiboot(_) => vmlinux::whole(&self.source),
        }
    }

    /// Whether the kernel takes these modules.
    ///
    /// # Errors
    /// [`BootError::NoModules`].
    pub fn check_modules(&self, modules: &[Module]) -> Result<(), BootError> {
        match (modules.first(), self.kind()) {
            (None, _) | (_, KernelKind::Multiboot) => Ok(()),
            (Some(module), _) => Err(BootError::NoModules {
                module: module.source.name().to_owned(),
                kernel: self.name().to_owned(),
            }),
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

/// A module of a multiboot kernel, with its arguments. Its content is the kernel's business.
#[derive(Debug)]
pub struct Module {
    pub(crate) source: Source,
    pub(crate) args: String,
}

impl Module {
    /// Checks a module file; `name` is for messages, and its last part is what the kernel finds in
    /// front of `args`.
    ///
    /// # Errors
    /// [`BootError::BadModule`], [`BootError::Read`].
    pub fn open(file: File, name: &str, args: &str) -> Result<Self, BootError> {
        let source = Source::from_file(file, name).map_err(|e| match e {
            NotAFile::Unreadable(error) => error,
            NotAFile::Other(what) => bad_module(name, what, "give the module's own file"),
        })?;
        Self::check(source, args)
    }

    /// The same for one in memory.
    ///
    /// # Errors
    /// [`BootError::BadModule`].
    pub fn from_bytes(bytes: Vec<u8>, name: &str, args: &str) -> Result<Self, BootError> {
        Self::check(Source::from_bytes(bytes, name), args)
    }

    fn check(source: Source, args: &str) -> Result<Self, BootError> {
        if source.len() == 0 {
            return Err(bad_module(source.name(), "is empty", "build it again"));
        }
        if args.contains('\0') {
            let cause = "has a zero byte in its arguments";
            return Err(bad_module(source.name(), cause, "remove it from --module"));
        }
        Ok(Self { source, args: args.to_owned() })
    }
}

fn bad_module(name: &str, cause: &'static str, way_out: &'static str) -> BootError {
    BootError::BadModule { name: name.to_owned(), cause: cause.into(), way_out: way_out.into() }
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
