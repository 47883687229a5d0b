//! Disk images of other programs, to be read once: VMDK (VMware), VHD (Virtual PC, Azure), and OVA
//! archives with a VMDK in them.
//!
//! [`open`] finds out what a file is and gives a read-only [`Disk`]; [`copy`] writes its content to a
//! raw image, with holes where it is zero. Raw and qcow2 images are not known here: `storage` opens
//! those.
//!
//! A file may be hostile or damaged: every place and size in it is compared with what there is before
//! memory is taken or anything is read, and what is wrong is named ([`Error`]). Names of files in an
//! archive are never used as paths.
//!
//! Neighbours: `backend` has the contract; the command line puts what is copied into an image of the
//! store.

#![forbid(unsafe_code)]

mod copy;
mod error;
mod file;
mod ova;
mod vhd;
mod vmdk;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use backend::Disk;

pub use copy::copy;
pub use error::Error;
pub use vhd::VhdDisk;
pub use vmdk::VmdkDisk;

use file::Part;

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// The largest disk, in bytes; larger ones are taken for damaged.
pub(crate) const MAX_DISK: u64 = 64 << 40;

/// Opens the image in the file `path`; `None` when it is none of a format that is known here. `tick`
/// is told how many bytes of how many were read for the checksum of an archive.
///
/// # Errors
/// [`Error`] with the name of the file.
pub fn open(path: &Path, tick: &mut dyn FnMut(u64, u64)) -> Result<Option<Arc<dyn Disk>>> {
    let name = path.display().to_string();
    let file = File::open(path).map_err(|cause| Error::Read { name: name.clone(), cause })?;
    open_file(file, &name, tick)
}

/// The same for an open file, which messages call `name`.
///
/// # Errors
/// As [`open`].
pub fn open_file(
    file: File,
    name: &str,
    tick: &mut dyn FnMut(u64, u64),
) -> Result<Option<Arc<dyn Disk>>> {
    let part = Part::whole(file, name)?;
    let begins = |at: u64, magic: &[u8]| {
        let mut found = vec![0; magic.len()];
        part.read(at, &mut found).is_ok() && found == magic
    };
    if begins(0, b"KDMV") {
        return Ok(Some(Arc::new(VmdkDisk::open(part)?)));
    }
    if begins(0, b"# Disk DescriptorFile") {
        return Err(part.unsupported("is the description of a VMDK in several files"));
    }
    if begins(0, b"vhdxfile") {
        return Err(part.unsupported("is a VHDX"));
    }
    if begins(257, b"ustar") {
        let disk = ova::disk_of(&part, tick)?;
        return Ok(Some(Arc::new(VmdkDisk::open(disk)?)));
    }
    if part.len() >= 512 && begins(part.len() - 512, b"conectix") {
        return Ok(Some(Arc::new(VhdDisk::open(part)?)));
    }
    Ok(None)
}
