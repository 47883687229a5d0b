//! Images that are disks: which disk a VM gets of one.
//!
//! An image of the store is never written. A VM in the terminal has an overlay on top of it, kept
//! under the VM's name (`images::KeptDisk`), or until the VM ends with `--ephemeral`; a managed VM has
//! a copy in its own folder, so that its snapshots have all of it. A disk image that is named by its
//! path is the user's own: it is written, as `--disk` is.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use images::{Image, ImageFiles, KeptDisk};
use lifecycle::bootdisk;
use lifecycle::storage::{self, Format, ImageOptions, Overlay};
use vms::{DiskFile, ImageDisk, VmDir, member};

use crate::args::RunArgs;
use crate::boot_files::{self, Named};
use crate::disks::DiskArg;
use crate::report;

/// The name of the copy of an image's disk in the folder of a VM.
const OWN_DISK: &str = "image-disk";

/// `args` of a VM in the terminal, with the disk of its image before the others if it has one.
///
/// # Errors
/// One line that names the image.
pub fn resolve(args: &RunArgs) -> anyhow::Result<RunArgs> {
    match named(args)? {
        Some(Named::Disk(path)) => Ok(with_disk(args, DiskArg::at(path), "")),
        Some(Named::Image(image)) => match image.files() {
            ImageFiles::Kernel { .. } => Ok(args.clone()),
            ImageFiles::Disk { .. } => Ok(with_disk(args, disk_of(args, &image)?, image.cmdline())),
        },
        None => Ok(args.clone()),
    }
}

/// The same for a managed VM: `own` is what its record says of the image.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_managed(args: &RunArgs, own: Option<&ImageDisk>) -> anyhow::Result<RunArgs> {
    let Some(own) = own else {
        // The image is looked for only if it may be somebody's disk: it may have gone.
        return match args.image.as_deref() {
            Some(name) if name.contains('/') => resolve(args),
            _ => Ok(args.clone()),
        };
    };
    let mut disk = DiskArg::at(OWN_DISK.into());
    disk.0.format = Format::from_name(&own.format);
    Ok(with_disk(args, disk, &own.cmdline))
}

/// What the image of a VM that is to be kept has on a disk: what the record says of it, and how to
/// fill the VM's folder.
///
/// # Errors
/// As [`resolve`]; a disk that cannot be booted from.
pub fn to_copy(args: &RunArgs) -> anyhow::Result<Option<(ImageDisk, Image)>> {
    let Some(Named::Image(image)) = named(args)? else { return Ok(None) };
    let ImageFiles::Disk { path, format } = image.files() else { return Ok(None) };
    check(path, format.name())?;
    let own = ImageDisk { cmdline: image.cmdline().to_owned(), format: format.name().to_owned() };
    Ok(Some((own, *image)))
}

/// Copies the disk of `image` into the folder of a VM.
///
/// # Errors
/// What the host says.
pub fn copy(image: &Image, vm: &VmDir) -> anyhow::Result<DiskFile> {
    let ImageFiles::Disk { path, .. } = image.files() else { bail!("the image has no disk") };
    let folder = vm.path(member::DISKS);
    fs::create_dir_all(&folder).context("cannot make the folder for disks")?;
    control::copy_file(path, &folder.join(OWN_DISK)).context("cannot copy the image's disk")?;
    Ok(DiskFile { index: 0, file: OWN_DISK.to_owned() })
}

fn named(args: &RunArgs) -> anyhow::Result<Option<Named>> {
    match args.kernel {
        Some(_) => Ok(None),
        None => boot_files::find_image(args.image.as_deref()).map(Some),
    }
}

fn with_disk(args: &RunArgs, disk: DiskArg, cmdline: &str) -> RunArgs {
    let mut args = args.clone();
    args.disks.insert(0, disk);
    args.boots_first_disk = true;
    if args.cmdline.is_none() && !cmdline.is_empty() {
        args.cmdline = Some(cmdline.to_owned());
    }
    args
}

/// The disk of a VM in the terminal.
fn disk_of(args: &RunArgs, image: &Image) -> anyhow::Result<DiskArg> {
    let ImageFiles::Disk { path, format } = image.files() else { bail!("the image has no disk") };
    if args.ephemeral {
        let mut disk = DiskArg::at(path.clone());
        disk.0.format = Format::from_name(format.name());
        return Ok(disk);
    }
    let name = args.name.as_deref().unwrap_or(image.info().name.as_str());
    let kept = KeptDisk::of(&images::default_folder()?, name, image)?;
    let kept = kept.context("the image has no disk")?;
    let folder = kept.overlay.parent().unwrap_or(&kept.overlay).display();
    if kept.is_older {
        report::note(&format!(
            "VM {name} goes on with its own disk, of an earlier build of the image; to begin anew, \
             remove {folder}"
        ));
    }
    let mut disk = DiskArg::at(kept.base);
    disk.0.format = Format::from_name(kept.format.name());
    disk.0.overlay = Some(Overlay::File(kept.overlay));
    Ok(disk)
}

/// Finds out whether a disk can be booted from.
fn check(path: &Path, format: &str) -> anyhow::Result<()> {
    let options = ImageOptions {
        path: path.to_owned(),
        format: Format::from_name(format),
        read_only: true,
        ..ImageOptions::default()
    };
    let disk = storage::open(&options, Arc::new(|_: &str| ()))?.disk;
    bootdisk::find(&disk).with_context(|| format!("cannot boot from {}", path.display()))?;
    Ok(())
}
