//! Raw disk images as qcow2 ones.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder,
    StorageOpenOptions,
};

use crate::{Error, Progress, Result};

/// Bytes that are copied at a time: what is zero takes no space, in such units.
const CHUNK: usize = 64 << 10;

/// Bytes between two reports of progress.
const REPORT: u64 = 16 << 20;

/// Writes the content of the raw image `from` to the new qcow2 image `to`.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn convert(from: &Path, to: &Path, progress: &dyn Progress) -> Result<()> {
    let mut raw = File::open(from).map_err(Error::io("open", from))?;
    let size = raw.metadata().map_err(Error::io("read", from))?.len();
    let image = create(to, size).map_err(Error::io("create", to))?;
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    while at < size {
        let len = (size - at).min(CHUNK as u64) as usize;
        let part = &mut chunk[..len];
        raw.read_exact(part).map_err(Error::io("read", from))?;
        if part.iter().any(|byte| *byte != 0) {
            image.write(&*part, at).map_err(Error::io("write", to))?;
        }
        at += len as u64;
        if at.is_multiple_of(REPORT) {
            progress.bytes(at, Some(size));
        }
    }
    image.flush().and_then(|()| image.sync()).map_err(Error::io("write", to))
}

fn create(path: &Path, size: u64) -> io::Result<FormatAccess<ImageFile>> {
    let file = File::options().read(true).write(true).create_new(true).open(path)?;
    let storage =
        |file: File| ImageFile::from_open_file(file, StorageOpenOptions::new().write(true));
    Qcow2::<ImageFile>::create_builder(storage(file.try_clone()?)?).size(size).create()?;
    let builder = Qcow2::<ImageFile>::builder(storage(file)?).write(true);
    Ok(FormatAccess::new(builder.open(DenyImplicitOpenGate::default())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Silent;

    #[test]
    fn the_content_stays_and_zeros_take_no_space() {
        let folder = tempfile::tempdir().expect("tempdir");
        let (raw, image) = (folder.path().join("raw"), folder.path().join("image"));
        let mut content = vec![0; 3 << 20];
        content[1_000_000] = 1;
        content.truncate((3 << 20) - 512);
        std::fs::write(&raw, &content).expect("raw");
        convert(&raw, &image, &Silent).expect("converted");
        assert!(std::fs::metadata(&image).expect("image").len() < 1 << 20);
        let storage = ImageFile::from_open_file(
            File::open(&image).expect("image"),
            StorageOpenOptions::new(),
        );
        let opened = Qcow2::<ImageFile>::builder(storage.expect("file"))
            .open(DenyImplicitOpenGate::default())
            .expect("qcow2");
        let mut read = vec![1; content.len()];
        FormatAccess::new(opened).read(&mut read[..], 0).expect("read");
        assert!(read == content);
    }
}
