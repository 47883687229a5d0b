//! Kernel and initramfs, kept open for as long as the machine may be reset.

use std::fs::File;

use boot::{Initrd, KernelImage, KernelKind};

use crate::MachineError;

/// An open file and the name that messages give it.
#[derive(Debug)]
pub struct NamedFile {
    /// The file.
    pub file: File,
    /// Its name.
    pub name: String,
}

/// What the guest boots, at every reset anew.
#[derive(Debug)]
pub struct BootFiles {
    pub(crate) kernel: KernelImage,
    pub(crate) initrd: Option<Initrd>,
}

impl BootFiles {
    /// Looks at the files, as far as can be without a machine.
    ///
    /// # Errors
    /// [`MachineError::Boot`] for what is no kernel or initramfs.
    pub fn open(kernel: NamedFile, initrd: Option<NamedFile>) -> Result<Self, MachineError> {
        let kernel = KernelImage::open(kernel.file, &kernel.name)?;
        let initrd = initrd.map(|i| Initrd::open(i.file, &i.name)).transpose()?;
        Ok(Self { kernel, initrd })
    }

    /// The same for files in memory.
    ///
    /// # Errors
    /// As [`BootFiles::open`].
    pub fn from_bytes(kernel: Vec<u8>, initrd: Option<Vec<u8>>) -> Result<Self, MachineError> {
        let kernel = KernelImage::from_bytes(kernel, "kernel")?;
        let initrd = initrd.map(|bytes| Initrd::from_bytes(bytes, "initrd")).transpose()?;
        Ok(Self { kernel, initrd })
    }

    /// Whether the kernel is a Linux bzImage.
    pub fn is_bzimage(&self) -> bool {
        self.kernel.kind() == KernelKind::BzImage
    }
}
