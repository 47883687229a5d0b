//! Kernel, initramfs and modules, kept open for as long as the machine may be reset.

use std::fs::File;

use boot::{Initrd, KernelImage, KernelKind, Module, Payload};

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
    modules: Vec<Module>,
}

impl BootFiles {
    /// Looks at the files, as far as can be without a machine.
    ///
    /// # Errors
    /// [`MachineError::Boot`] for what is no kernel or initramfs.
    pub fn open(kernel: NamedFile, initrd: Option<NamedFile>) -> Result<Self, MachineError> {
        let kernel = KernelImage::open(kernel.file, &kernel.name)?;
        let initrd = initrd.map(|i| Initrd::open(i.file, &i.name)).transpose()?;
        Ok(Self { kernel, initrd, modules: Vec::new() })
    }

    /// The same for files in memory.
    ///
    /// # Errors
    /// As [`BootFiles::open`].
    pub fn from_bytes(kernel: Vec<u8>, initrd: Option<Vec<u8>>) -> Result<Self, MachineError> {
        let kernel = KernelImage::from_bytes(kernel, "kernel")?;
        let initrd = initrd.map(|bytes| Initrd::from_bytes(bytes, "initrd")).transpose()?;
        Ok(Self { kernel, initrd, modules: Vec::new() })
    }

    /// Adds a module of a multiboot kernel, with its arguments, after those that are there.
    ///
    /// # Errors
    /// [`MachineError::Boot`] for what is no file, and for a kernel that takes no modules.
    pub fn with_module(self, module: NamedFile, args: &str) -> Result<Self, MachineError> {
        self.add(Module::open(module.file, &module.name, args)?)
    }

    /// The same for a module in memory that has the name `name`.
    ///
    /// # Errors
    /// As [`BootFiles::with_module`].
    pub fn with_module_bytes(
        self,
        module: Vec<u8>,
        name: &str,
        args: &str,
    ) -> Result<Self, MachineError> {
        self.add(Module::from_bytes(module, name, args)?)
    }

    fn add(mut self, module: Module) -> Result<Self, MachineError> {
        self.modules.push(module);
        self.kernel.check_modules(&self.modules)?;
        Ok(self)
    }

    /// What the kernel is given.
    pub(crate) fn payload<'a>(&'a self, cmdline: &'a str) -> Payload<'a> {
        Payload { initrd: self.initrd.as_ref(), modules: &self.modules, cmdline }
    }

    /// Whether the kernel is a Linux bzImage.
    pub fn is_bzimage(&self) -> bool {
        self.kernel.kind() == KernelKind::BzImage
    }
}
