//! What `run` boots: from names and paths to open files.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use images::{Image, Recipe, Store};
use lifecycle::{BootFiles, NamedFile};
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

/// Finds and opens what `args` say; builds an image that there is a recipe for.
///
/// # Errors
/// One line that names the file or image.
pub fn open(args: &RunArgs) -> anyhow::Result<Boot> {
    let (kernel, image) = match (&args.kernel, &args.image) {
        (Some(kernel), _) => (kernel.clone(), None),
        (None, image) => {
            let image = find_image(image.as_deref().unwrap_or(DEFAULT_IMAGE))?;
            (image.kernel().to_owned(), Some(image))
        }
    };
    let initrd = match &args.initrd {
        Some(path) => Some(path.clone()),
        None => image.as_ref().map(|i| i.initrd().to_owned()),
    };
    let initrd = initrd.map(|path| named_file("initrd", &path)).transpose()?;
    let mut files = BootFiles::open(named_file("kernel", &kernel)?, initrd)?;
    for module in &args.modules {
        // The design of the option: a path has no blank.
        let (path, args) = module.split_once(' ').unwrap_or((module, ""));
        files = files.with_module(named_file("module", Path::new(path))?, args)?;
    }
    let cmdline = match (&args.cmdline, &image) {
        (Some(cmdline), _) => cmdline.clone(),
        (None, Some(image)) => image.cmdline().to_owned(),
        (None, None) if files.is_bzimage() => DEFAULT_CMDLINE.to_owned(),
        (None, None) => String::new(),
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

/// An image by name or path. A name of a recipe is built when it is missing.
fn find_image(name: &str) -> anyhow::Result<Image> {
    if name.contains('/') {
        return image_at(Path::new(name));
    }
    let store = Store::open_default()?;
    let Ok(recipe) = Recipe::from_name(name) else {
        return Ok(store.find(name)?);
    };
    if let Err(images::Error::NotFound { .. }) = store.find(name) {
        report::note(&format!("image {name} is built first, from Debian packages; this is once"));
    }
    let progress = Bar::new();
    Ok(store.find_or_build(recipe, &progress)?)
}

fn image_at(path: &Path) -> anyhow::Result<Image> {
    let folder: PathBuf =
        path.canonicalize().with_context(|| format!("cannot open image {}", path.display()))?;
    match (folder.is_dir(), folder.parent(), folder.file_name().and_then(|n| n.to_str())) {
        (true, Some(parent), Some(name)) => Ok(Store::at(parent)?.find(name)?),
        _ => bail!(
            "image {} is not the folder of an image; a kernel is given with --kernel",
            path.display()
        ),
    }
}
