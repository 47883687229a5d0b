//! From what the user says of a disk to a disk.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backend::{Disk, RateLimit};
use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, StorageOpenOptions};

use crate::check::{self, MAGIC};
use crate::configured::{Configured, WhenFull};
use crate::file::{self, Access};
use crate::qcow2::OpenImage;
use crate::{Pool, Qcow2Disk, RawDisk, StorageError, create_qcow2};

/// The most backing files of an image.
pub(crate) const MAX_CHAIN: usize = 32;

/// How the bytes of an image are arranged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The disk's bytes.
    Raw,
    /// QEMU copy on write, version 2 or 3.
    Qcow2,
}

impl Format {
    /// The name that qcow2 images and `qemu-img` call it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    /// The format of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Raw, Self::Qcow2].into_iter().find(|format| format.name() == name)
    }
}

/// Where what the guest writes goes instead of to the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Overlay {
    /// To a file without a name, which is gone with the VM.
    Temporary,
    /// To this qcow2 image, which is made if it is missing.
    File(PathBuf),
}

/// What the user says of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// The image: a file or a block device.
    pub path: PathBuf,
    /// Its format; without, it is found out.
    pub format: Option<Format>,
    /// Nothing is to be written.
    pub read_only: bool,
    /// Past the page cache of the host.
    pub direct: bool,
    /// The image is not to be written, but this.
    pub overlay: Option<Overlay>,
    /// The serial number that the guest is told.
    pub serial: Option<String>,
    /// How much may be asked of it.
    pub limit: RateLimit,
}

/// An open disk.
pub struct Opened {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// Something that the user may want to know.
    pub note: Option<String>,
}

/// Opens a disk. `when_full` is called with the name of the image whenever the host has no space
/// for what the guest writes; what was to be written then waits until the device is paused and
/// resumed. It is called by threads of the disk, and must not wait for the device.
///
/// # Errors
/// [`StorageError`], which names the image.
pub fn open(options: &ImageOptions, when_full: WhenFull) -> Result<Opened, StorageError> {
    let (disk, note) = match &options.overlay {
        None => open_image(options)?,
        Some(overlay) => (open_overlay(options, overlay)?, None),
    };
    let name = options.path.display().to_string().into();
    let (serial, limit) = (options.serial.clone(), options.limit);
    let disk = Arc::new(Configured { disk, name, serial, limit, when_full });
    Ok(Opened { disk, note })
}

type OpenedImage = (Arc<dyn Disk>, Option<String>);

fn open_image(options: &ImageOptions) -> Result<OpenedImage, StorageError> {
    let access = Access { read_only: options.read_only, direct: options.direct };
    let name = options.path.display().to_string();
    let file = file::open(&options.path, access)?;
    match format_of(&options.path, options.format, &file) {
        Format::Raw => open_raw(file, &name, options.read_only),
        Format::Qcow2 => {
            let mut chain = Chain::new(options);
            let image = chain.open(&options.path, file, access)?;
            Ok((pooled(Qcow2Disk::new(image, &name, options.read_only)?, &name)?, None))
        }
    }
}

fn open_raw(file: File, name: &str, read_only: bool) -> Result<OpenedImage, StorageError> {
    let mut disk = RawDisk::open(file, name, read_only)?;
    match disk.use_io_uring() {
        Ok(()) => Ok((Arc::new(disk), None)),
        Err(error) => {
            let note = format!(
                "disk image {name} is read and written by threads: this host lets us have no \
                 io_uring ({error})"
            );
            Ok((pooled(disk, name)?, Some(note)))
        }
    }
}

fn pooled(disk: impl Disk + 'static, name: &str) -> Result<Arc<dyn Disk>, StorageError> {
    let pool = Pool::new(Arc::new(disk));
    Ok(Arc::new(pool.map_err(|e| StorageError::host("start threads for", name, e))?))
}

/// The format that was said, or that the content has.
fn format_of(path: &Path, said: Option<Format>, file: &File) -> Format {
    said.unwrap_or_else(|| if has_magic(path, file) { Format::Qcow2 } else { Format::Raw })
}

fn has_magic(path: &Path, file: &File) -> bool {
    let mut magic = [0; MAGIC.len()];
    // Direct I/O has to be aligned, so the file is opened another time for this.
    let plain = File::open(path).ok();
    let file = plain.as_ref().unwrap_or(file);
    file.read_exact_at(&mut magic, 0).is_ok() && magic == MAGIC
}

/// The image and its overlay, which is made first if it is missing.
fn open_overlay(options: &ImageOptions, overlay: &Overlay) -> Result<Arc<dyn Disk>, StorageError> {
    let host = |action, name: &str, cause| StorageError::host(action, name, cause);
    let name = options.path.display().to_string();
    let base_path = std::path::absolute(&options.path).map_err(|e| host("find", &name, e))?;
    let read = Access { read_only: true, direct: options.direct };
    let base_file = file::open(&base_path, read)?;
    let format = format_of(&base_path, options.format, &base_file);
    let mut chain = Chain::new(options);
    let base = chain.open_as(format, &base_path, base_file, read)?;
    let size = base.size();
    let backing = Some((&*base_path, format));
    let (file, path, write) = match overlay {
        Overlay::Temporary => {
            let folder = std::env::temp_dir();
            let file = tempfile::tempfile_in(&folder)
                .map_err(|e| host("make a temporary overlay for", &name, e))?;
            create_qcow2(&file, &name, size, backing)?;
            (file, folder.join(format!("overlay of {}", name)), read)
        }
        Overlay::File(path) => {
            let write = Access { read_only: false, ..read };
            if let Err(error) = make_overlay(path, size, backing)
                && error.kind() != ErrorKind::AlreadyExists
            {
                return Err(host("create overlay", &path.display().to_string(), error));
            }
            (file::open(path, write)?, path.clone(), write)
        }
    };
    let write = Access { read_only: false, direct: write.direct && *overlay != Overlay::Temporary };
    let image = chain.open_on(&path, file, write, base, &base_path)?;
    let name = path.display().to_string();
    pooled(Qcow2Disk::new(image, &name, false)?, &name)
}

/// Makes an overlay, which is there as a whole or not at all.
fn make_overlay(path: &Path, size: u64, backing: Option<(&Path, Format)>) -> std::io::Result<()> {
    if path.try_exists()? {
        return Err(ErrorKind::AlreadyExists.into());
    }
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
    create_qcow2(file.as_file(), &path.display().to_string(), size, backing)
        .map_err(std::io::Error::other)?;
    file.persist_noclobber(path).map_err(|error| error.error)?;
    Ok(())
}

/// The images that are opened for one disk.
struct Chain<'a> {
    options: &'a ImageOptions,
    /// Device and inode of those that are open.
    seen: Vec<(u64, u64)>,
}

impl<'a> Chain<'a> {
    fn new(options: &'a ImageOptions) -> Self {
        Self { options, seen: Vec::new() }
    }

    /// Checks and locks the file of an image, and gives it to `imago`.
    fn take(&mut self, path: &Path, file: File, access: Access) -> Result<ImageFile, StorageError> {
        let name = path.display().to_string();
        let host = |action, cause| StorageError::host(action, &name, cause);
        let metadata = file.metadata().map_err(|e| host("look at", e))?;
        let identity = (metadata.dev(), metadata.ino());
        if self.seen.contains(&identity) {
            return Err(StorageError::Cycle { name });
        }
        if self.seen.len() > MAX_CHAIN {
            let name = self.options.path.display().to_string();
            return Err(StorageError::TooDeep { name, most: MAX_CHAIN });
        }
        self.seen.push(identity);
        file::lock(&file, &name, access.read_only)?;
        let options =
            StorageOpenOptions::new().write(!access.read_only).direct(access.direct).filename(path);
        ImageFile::from_open_file(file, options).map_err(|e| host("open", e))
    }

    fn open_as(
        &mut self,
        format: Format,
        path: &Path,
        file: File,
        access: Access,
    ) -> Result<FormatAccess<ImageFile>, StorageError> {
        match format {
            Format::Raw => {
                let storage = self.take(path, file, access)?;
                let raw = Raw::builder(storage).open(DenyImplicitOpenGate::default());
                let name = path.display().to_string();
                let raw = raw.map_err(|e| StorageError::host("open", &name, e))?;
                Ok(FormatAccess::new(raw))
            }
            Format::Qcow2 => Ok(self.open(path, file, access)?.image),
        }
    }

    /// A qcow2 image with its backing files.
    fn open(&mut self, path: &Path, file: File, access: Access) -> Result<OpenImage, StorageError> {
        let (mut image, file, cluster) = self.open_alone(path, file, access)?;
        if let Some((backing, format)) = self.backing_of(&image, path)? {
            let access = Access { read_only: true, ..access };
            let below = self.open_as(format, &backing, file::open(&backing, access)?, access)?;
            image.set_backing(Some(below));
        }
        Ok(OpenImage { image: FormatAccess::new(image), file, cluster })
    }

    /// An overlay, on top of the image that was opened already.
    fn open_on(
        &mut self,
        path: &Path,
        file: File,
        access: Access,
        base: FormatAccess<ImageFile>,
        base_path: &Path,
    ) -> Result<OpenImage, StorageError> {
        let (mut image, file, cluster) = self.open_alone(path, file, access)?;
        let found = image.implicit_backing_file().map(|name| beside(path, name));
        if !found.as_deref().is_some_and(|found| is_same(found, base_path)) {
            return Err(StorageError::OtherBase {
                name: path.display().to_string(),
                found: found.map_or("nothing".to_owned(), |found| found.display().to_string()),
                wanted: base_path.display().to_string(),
            });
        }
        image.set_backing(Some(base));
        Ok(OpenImage { image: FormatAccess::new(image), file, cluster })
    }

    /// A qcow2 image without what is below it, its file, and the bytes of a cluster.
    fn open_alone(
        &mut self,
        path: &Path,
        file: File,
        access: Access,
    ) -> Result<(Qcow2<ImageFile>, File, u64), StorageError> {
        let name = path.display().to_string();
        // The tables are read without direct I/O, whose reads have to be aligned. A temporary
        // overlay has no name to be opened by, and no direct I/O either.
        let plain = match access.direct {
            true => Some(file::open(path, Access { read_only: true, direct: false })?),
            false => None,
        };
        file::lock(&file, &name, access.read_only)?;
        let cluster = check::check_qcow2(plain.as_ref().unwrap_or(&file), &name)?;
        let own = file.try_clone().map_err(|e| StorageError::host("open", &name, e))?;
        let storage = self.take(path, file, access)?;
        let image = Qcow2::builder(storage)
            .backing(None)
            .write(!access.read_only)
            .open(DenyImplicitOpenGate::default())
            .map_err(|cause| StorageError::damaged(&name, cause.to_string()))?;
        Ok((image, own, cluster))
    }

    /// What the image in `path` says it is on top of.
    fn backing_of(
        &self,
        image: &Qcow2<ImageFile>,
        path: &Path,
    ) -> Result<Option<(PathBuf, Format)>, StorageError> {
        let Some(backing) = image.implicit_backing_file() else { return Ok(None) };
        let name = path.display().to_string();
        // The user means a qcow2 image: by an option, by its name, or as a part of another one.
        let meant = self.seen.len() > 1
            || self.options.format == Some(Format::Qcow2)
            || path.extension().is_some_and(|extension| extension == "qcow2");
        if !meant {
            return Err(StorageError::Doubtful { name, backing: backing.clone() });
        }
        let Some(format) = image.implicit_backing_format() else {
            return Err(StorageError::NoBackingFormat { name, backing: backing.clone() });
        };
        let Some(format) = Format::from_name(format) else {
            let what = format!("has a backing file in the format {format}");
            return Err(StorageError::unsupported(&name, what));
        };
        Ok(Some((beside(path, backing), format)))
    }
}

/// The path that the image in `path` calls `name`.
pub(crate) fn beside(path: &Path, name: &str) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).join(name)
}

fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    identity(one).is_some_and(|one| Some(one) == identity(other))
}

#[cfg(test)]
mod tests;
