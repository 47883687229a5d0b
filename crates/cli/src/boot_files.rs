//! What `run` boots: from names and paths to open files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use anyhow::{Context, anyhow, bail};
use images::{Image, Recipe, Store};
use lifecycle::{BootFiles, Disk, NamedFile, bootdisk};
use rustix::fs::{Mode, OFlags};

use crate::args::RunArgs;
use crate::progress::Bar;
use crate::report;

/// The image of `run` without image and kernel.
const DEFAULT_IMAGE: &str = "tiny";
/// What a bzImage is told when the user says nothing: without, its messages go nowhere.
const DEFAULT_CMDLINE: &str = "console=ttyS0";

/// What the guest boots, with its command line.
pub struct Boot {
    /// Kernel, initramfs and modules.
    pub files: BootFiles,
    /// Command line.
    pub cmdline: String,
}

/// An image as the user named it.
pub enum Named {
    /// An image of a store.
    Image(Box<Image>),
    /// A disk image that is in no store.
    Disk(PathBuf),
}

/// Finds and opens what `args` say; builds an image that there is a recipe for. `disks` are the VM's.
///
/// # Errors
/// One line that names the file or image.
pub fn open(args: &RunArgs, disks: &[Arc<dyn Disk>]) -> anyhow::Result<Boot> {
    if args.boots_first_disk {
        let disk = disks.first().context("the VM has no disk to boot from")?;
        return from_disk(args, disk);
    }
    let (kernel, image_initrd, cmdline) = match &args.kernel {
        Some(kernel) => (kernel.clone(), None, None),
        None => {
            let Named::Image(image) = find_image(args.image.as_deref())? else {
                bail!("the image is a disk, and the VM was not given it");
            };
            let files = image.files().kernel_and_initrd().context("the image has no kernel")?;
            (files.0.to_owned(), Some(files.1.to_owned()), Some(image.cmdline().to_owned()))
        }
    };
    let initrd = args.initrd.clone().or(image_initrd);
    let initrd = initrd.map(|path| named_file("initrd", &path)).transpose()?;
    let mut files = BootFiles::open(named_file("kernel", &kernel)?, initrd)?;
    for module in &args.modules {
        // The design of the option: a path has no blank.
        let (path, args) = module.split_once(' ').unwrap_or((module, ""));
        files = files.with_module(named_file("module", Path::new(path))?, args)?;
    }
    let cmdline = match args.cmdline.clone().or(cmdline) {
        Some(cmdline) => cmdline,
        None if files.is_bzimage() => DEFAULT_CMDLINE.to_owned(),
        None => String::new(),
    };
    Ok(Boot { files, cmdline })
}

/// What the disk says, unless the user says something else. The console is made the serial port:
/// there is no other.
fn from_disk(args: &RunArgs, disk: &Arc<dyn Disk>) -> anyhow::Result<Boot> {
    let name = args.disks.first().map(|disk| disk.path().display().to_string());
    let name = name.unwrap_or_default();
    let found = bootdisk::find(disk).with_context(|| format!("cannot boot from {name}"))?;
    let initrd = match &args.initrd {
        Some(path) => Some(fs::read(path).with_context(|| format!("initrd {}", path.display()))?),
        None => found.initrd,
    };
    let files = BootFiles::from_bytes(found.kernel, initrd);
    let files = files.with_context(|| format!("{}, {}", found.origin, found.kernel_path))?;
    let cmdline = match args.cmdline.clone() {
        Some(cmdline) => cmdline,
        None if found.cmdline.split_whitespace().any(|word| word.starts_with("console=")) => {
            found.cmdline
        }
        None => format!("{} {DEFAULT_CMDLINE}", found.cmdline),
    };
    Ok(Boot { files, cmdline })
}

/// Opens a file without waiting for anybody, whatever it turns out to be.
fn named_file(what: &str, path: &Path) -> anyhow::Result<NamedFile> {
    let name = path.display().to_string();
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, Mode::empty())
        .map_err(io::Error::from)
        .map_err(|e| anyhow!("cannot open {what} {name}: {e}; check --{what}"))?;
    Ok(NamedFile { file: file.into(), name })
}

/// An image by name or path, or the default one. A name of a recipe is built when it is missing.
///
/// # Errors
/// One line that names the image.
pub fn find_image(name: Option<&str>) -> anyhow::Result<Named> {
    let name = name.unwrap_or(DEFAULT_IMAGE);
    if name.contains('/') {
        return image_at(Path::new(name));
    }
    let store = Store::open_default()?;
    let Ok(recipe) = Recipe::from_name(name) else {
        return match store.find(name) {
            // Also with a suffix, it is a name.
            Err(images::Error::NotFound { .. }) if Path::new(name).is_file() => {
                bail!("there is no image {name}; the disk image of this name is ./{name}")
            }
            found => Ok(Named::Image(Box::new(found?))),
        };
    };
    if let Err(images::Error::NotFound { .. }) = store.find(name) {
        report::note(&format!("image {name} is built first, from Debian packages; this is once"));
    }
    let progress = Bar::new();
    Ok(Named::Image(Box::new(store.find_or_build(&recipe, &progress)?)))
}

fn image_at(path: &Path) -> anyhow::Result<Named> {
    let found: PathBuf =
        path.canonicalize().with_context(|| format!("cannot open image {}", path.display()))?;
    if !found.is_dir() {
        return Ok(Named::Disk(path.to_owned()));
    }
    match (found.parent(), found.file_name().and_then(|n| n.to_str())) {
        (Some(parent), Some(name)) => Ok(Named::Image(Box::new(Store::at(parent)?.find(name)?))),
        _ => bail!("{} is not the folder of an image", path.display()),
    }
}
