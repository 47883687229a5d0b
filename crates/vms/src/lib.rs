//! The folder that keeps the managed VMs.
//!
//! Each VM is a folder named after it, with everything that belongs to it: how it was made
//! (`vm.json`), what it does (`state.json`), its console log, suspended state, snapshots, and the
//! control socket of its process. There is no daemon and no database: what is true of a VM follows
//! from two locks in its folder, which the kernel releases when their holder ends, however it ends.
//!
//! - `run.lock` is held by the VM's process for as long as it lives.
//! - `operation.lock` is held by a command while it changes what the VM is: one at a time.
//!
//! Whatever is made or removed bears a name that begins with a dot meanwhile, which no VM can, so
//! that a crash leaves nothing half-made under a VM's name; [`Store::sweep`] removes such remains.
//!
//! Key types: [`Store`], [`VmDir`], [`Operation`], [`VmRecord`], [`StateRecord`].
//!
//! Neighbours: `control` is what runs in a VM's process; the command line does everything else.
//! This crate knows files only, no VM. docs/managed-vms.md says why files and locks.

#![forbid(unsafe_code)]

mod error;
mod files;
mod lock;
mod name;
mod record;
mod store;
mod vm_dir;

pub use error::Error;
pub use files::{fresh_name, sync_dir, write_atomically};
pub use lock::Lock;
pub use name::{NAME_RULE, check_name};
pub use record::{DiskFile, ImageDisk, StateRecord, VmRecord};
pub use store::Store;
pub use vm_dir::{Operation, VmDir, member};

/// What everything here returns.
pub type Result<T> = std::result::Result<T, Error>;
