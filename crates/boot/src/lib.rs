//! Kernel loaders (bzImage, PVH ELF, multiboot) and the ACPI tables.
//!
//! What firmware does on a real PC before the kernel runs: [`MemoryMap`] decides where RAM lies,
//! [`acpi::build`] describes the hardware, [`load`] places a [`KernelImage`] and its
//! [`Payload`] (initrd, modules, command line) in guest RAM, and the [`EntryState`] it returns puts the boot processor into
//! the state that the kernel's boot protocol asks for.
//!
//! ```no_run
//! use boot::{Initrd, KernelImage, MemoryMap, Payload, acpi};
//! # fn start(state: &mut engine::VcpuState) -> Result<(), Box<dyn std::error::Error>> {
//! let map = MemoryMap::new(512 << 20)?;
//! let ram = memory::GuestRam::new(&map.ram_layout())?;
//! let kernel = KernelImage::open(std::fs::File::open("vmlinuz")?, "vmlinuz")?;
//! let initrd = Initrd::open(std::fs::File::open("initrd.img")?, "initrd.img")?;
//! let rsdp = acpi::build(&acpi::AcpiSpec::pc(&[0]), &ram)?;
//! let payload = Payload { initrd: Some(&initrd), cmdline: "console=ttyS0", ..Payload::default() };
//! let entry = boot::load(&ram, &kernel, &payload, &map, rsdp)?;
//! entry.apply(state); // the boot processor's reset state
//! # Ok(()) }
//! ```
//!
//! Files are hostile: every field of a kernel is checked before it is used, and what does not fit
//! is a [`BootError`] with name, cause and way out. Loaders take open files, never paths; the name
//! is only for messages.
//!
//! Neighbours: `machine` calls it when a VM is made and at every reset; `engine` defines the vCPU
//! state; `memory` the guest RAM. Specifications: Linux `Documentation/arch/x86/boot.rst` (boot
//! protocol 2.12 and later), Xen `docs/misc/pvh.pandoc`, Multiboot 0.6.96, ACPI 6.4, System V ABI
//! (ELF).

#![forbid(unsafe_code)]

pub mod acpi;
mod bios;
mod bzimage;
mod elf;
mod entry;
mod error;
mod image;
mod load;
mod low;
mod map;
mod multiboot;
mod pvh;
mod recognise;
mod source;
pub mod vmlinux;

pub use entry::EntryState;
pub use error::BootError;
pub use image::{Initrd, KernelImage, KernelKind, Module};
pub use load::{Payload, load};
pub use map::{E820Entry, E820Kind, MemoryMap};
