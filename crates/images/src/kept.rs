//! The disks of VMs that run from an image: what each has written, kept under its name.
//!
//! The image's disk is never written. A VM has a folder with a link to it, so that the image can be
//! built anew or removed, and the overlay that the VM's process makes beside it.

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::{DiskFormat, Error, Image, ImageFiles, Result};

/// The disk that the image had when the VM was started first.
const BASE: &str = "base";

/// What the VM has written since.
const OVERLAY: &str = "overlay.qcow2";

/// The disk of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptDisk {
    /// The disk that is not written.
    pub base: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// The qcow2 image on top of it; it is yet to be made when the VM starts for the first time.
    pub overlay: PathBuf,
    /// Whether the image has been built anew since: the VM goes on with what it had.
    pub is_older: bool,
}

/// Where the disks of VMs are kept: `ringfence/disks` below `$XDG_DATA_HOME` or `~/.local/share`.
///
/// # Errors
/// [`Error::NoHome`].
pub fn default_folder() -> Result<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let data = absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .ok_or(Error::NoHome)?;
    Ok(data.join("ringfence").join("disks"))
}

impl KeptDisk {
    /// The disk of the VM `vm` that runs from `image`, kept in the folder `root`; `None` for an
    /// image without a disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn of(root: &Path, vm: &str, image: &Image) -> Result<Option<Self>> {
        let ImageFiles::Disk { path, format } = image.files() else { return Ok(None) };
        let folder = root.join(vm).join(image.info().name.as_str());
        // What a VM writes is nobody else's business.
        let create = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        create.map_err(Error::io("create", &folder))?;
        let (base, overlay) =
            (folder.join(format!("{BASE}.{}", format.name())), folder.join(OVERLAY));
        let before = other_format(&folder, *format);
        if let Some((base, format)) = before {
            return Ok(Some(Self { base, format, overlay, is_older: true }));
        }
        link(path, &base)?;
        let identity = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino(), m.len()));
        let both = identity(path).and_then(|new| Ok((new, identity(&base)?)));
        let (new, old) = both.map_err(Error::io("read", &base))?;
        // A copy, on another file system, has nothing to be compared by but its size.
        let is_older = if new.0 == old.0 { new != old } else { new.2 != old.2 };
        Ok(Some(Self { base, format: *format, overlay, is_older }))
    }
}

/// The base of a VM whose image had another format then.
fn other_format(folder: &Path, format: DiskFormat) -> Option<(PathBuf, DiskFormat)> {
    let others = [DiskFormat::Raw, DiskFormat::Qcow2].into_iter().filter(|other| *other != format);
    others
        .map(|other| (folder.join(format!("{BASE}.{}", other.name())), other))
        .find(|(path, _)| path.exists())
}

/// Makes `link` another name of `file`, or, on another file system, a copy of it, unless it is there.
fn link(file: &Path, link: &Path) -> Result<()> {
    match fs::hard_link(file, link) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {
            let unfinished = link.with_extension("new");
            fs::copy(file, &unfinished).map_err(Error::io("create", &unfinished))?;
            fs::rename(&unfinished, link).map_err(Error::io("create", link))
        }
        result => result.map_err(Error::io("create", link)),
    }
}
