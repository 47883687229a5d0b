//! What can go wrong before the first guest instruction.

use std::borrow::Cow;
use std::io;

use memory::MemoryError;
use thiserror::Error;

/// Why a guest cannot be started. Each message names the file or setting, the cause and the way
/// out, in one line.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BootError {
    /// The kernel file is not one that can be booted.
    #[error("kernel {name}: {cause}; {way_out}")]
    BadKernel {
        /// The file.
        name: String,
        /// What is wrong with it.
        cause: Cow<'static, str>,
        /// What to do.
        way_out: Cow<'static, str>,
    },
    /// The initial RAM disk is not one.
    #[error("initrd {name}: {cause}; {way_out}")]
    BadInitrd {
        /// The file.
        name: String,
        /// What is wrong with it.
        cause: Cow<'static, str>,
        /// What to do.
        way_out: Cow<'static, str>,
    },
    /// A module is not one.
    #[error("module {name}: {cause}; {way_out}")]
    BadModule {
        /// The file.
        name: String,
        /// What is wrong with it.
        cause: Cow<'static, str>,
        /// What to do.
        way_out: Cow<'static, str>,
    },
    /// Only multiboot kernels have modules.
    #[error(
        "module {module}: kernel {kernel} is no multiboot kernel and takes none; leave out --module"
    )]
    NoModules {
        /// The first module.
        module: String,
        /// The kernel.
        kernel: String,
    },
    /// The host failed to read a file.
    #[error("cannot read {name}: {cause}; check the file and its disk")]
    Read {
        /// The file.
        name: String,
        /// What the host said.
        cause: io::Error,
    },
    /// Something does not fit into guest RAM.
    #[error(
        "{what} does not fit into {memory_mib} MiB of guest memory; use --memory {needed_mib}M or more"
    )]
    TooBig {
        /// Kernel or initrd, with its name.
        what: String,
        /// RAM of the guest, MiB.
        memory_mib: u64,
        /// RAM with which it fits, MiB.
        needed_mib: u64,
    },
    /// Something does not fit, however much RAM the guest has.
    #[error(
        "initrd {name}: {size} bytes, but kernel {kernel} takes at most {limit} bytes here; use a smaller initrd"
    )]
    InitrdTooBig {
        /// The initrd.
        name: String,
        /// Its bytes.
        size: u64,
        /// The kernel.
        kernel: String,
        /// Bytes that fit.
        limit: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error(
        "kernel command line has {len} bytes, but kernel {kernel} takes at most {limit}; shorten --cmdline"
    )]
    CmdlineTooLong {
        /// Its bytes.
        len: usize,
        /// The kernel.
        kernel: String,
        /// Bytes it takes.
        limit: usize,
    },
    /// Command lines and module list of a multiboot kernel are too long together.
    #[error(
        "multiboot information with command lines and module list has {len} bytes, but at most {limit} fit; shorten --cmdline or --module"
    )]
    MultibootTooLong {
        /// Its bytes.
        len: u64,
        /// Bytes that fit.
        limit: u64,
    },
    /// The command line contains a zero byte, which would end it.
    #[error("kernel command line has a zero byte at position {0}; remove it from --cmdline")]
    CmdlineZero(usize),
    /// The amount of guest memory cannot be had.
    #[error("guest memory of {size} bytes {cause}")]
    BadMemorySize {
        /// Bytes asked for.
        size: u64,
        /// What is wrong with it, and which sizes can be had.
        cause: Cow<'static, str>,
    },
    /// The ACPI tables cannot describe the machine.
    #[error("acpi tables: {0}")]
    Acpi(String),
    /// Guest RAM is not where the memory map says.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}
