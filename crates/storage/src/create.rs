//! New qcow2 images.

use std::fs::File;
use std::io;
use std::path::Path;

use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::{FormatCreateBuilder, StorageOpenOptions};

use crate::{Format, StorageError};

/// Makes an empty qcow2 image of `size` bytes in the empty file `file`, which messages call `name`;
/// what is not written to it is read from `backing`, if there is one: a path, absolute or relative
/// to the image.
///
/// # Errors
/// [`StorageError::Host`].
pub fn create_qcow2(
    file: &File,
    name: &str,
    size: u64,
    backing: Option<(&Path, Format)>,
) -> Result<(), StorageError> {
    let create = || -> io::Result<()> {
        let options = StorageOpenOptions::new().write(true);
        let storage = ImageFile::from_open_file(file.try_clone()?, options)?;
        let mut builder = Qcow2::<ImageFile>::create_builder(storage).size(size);
        if let Some((path, format)) = backing {
            let path = path.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
            builder = builder.backing(path.to_owned(), format.name().to_owned());
        }
        builder.create()?;
        file.sync_all()
    };
    create().map_err(|cause| StorageError::host("create", name, cause))
}
