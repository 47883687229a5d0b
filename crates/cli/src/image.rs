//! `ringfence image`.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, bail};
use images::{DiskFormat, Listing, Progress, Recipe, Store, debian};
use lifecycle::storage::{self, ImageOptions};
use lifecycle::{bootdisk, import};

use crate::args::{BuildArgs, FormatArg, ImageCommand};
use crate::progress::Bar;
use crate::table::{Table, bytes};
use crate::{age, report};

/// Does what `command` says.
///
/// # Errors
/// One line that names the image.
pub fn run(command: ImageCommand) -> anyhow::Result<()> {
    let store = Store::open_default()?;
    match command {
        ImageCommand::Ls { json } => {
            let listing = store.list()?;
            for damaged in &listing.damaged {
                report::error(&damaged.to_string());
            }
            let text = if json { json_of(&listing)? } else { table(&listing, SystemTime::now()) };
            report::print(&text)?;
        }
        ImageCommand::Build(args) => {
            let image = store.build(&recipe(&args)?, &Bar::new())?;
            let info = image.info();
            report::note(&format!("built {} in {}", info.name, info.path.display()));
        }
        ImageCommand::Import { file, name } => import_disk(&store, &file, name)?,
        ImageCommand::Rm { images } => {
            for name in images {
                store.remove(&name)?;
            }
        }
    }
    Ok(())
}

/// Copies a disk image into the store.
fn import_disk(store: &Store, file: &Path, name: Option<String>) -> anyhow::Result<()> {
    let name = name.map_or_else(|| name_of(file), Ok)?;
    let bar = Bar::new();
    bar.step("Comparing the digest");
    let disk = match import::open(file, &mut |done, total| bar.bytes(done, Some(total)))? {
        Some(disk) => disk,
        None => {
            let options =
                ImageOptions { path: file.to_owned(), read_only: true, ..ImageOptions::default() };
            storage::open(&options, Arc::new(|_: &str| ()))?.disk
        }
    };
    bar.step("Copying the disk");
    let image = store.add_disk(&name, &bar, |to| -> anyhow::Result<()> {
        let mut tick = |done, total| bar.bytes(done, Some(total));
        Ok(import::copy(&*disk, &file.display().to_string(), to, &mut tick)?)
    })?;
    drop(bar);
    match bootdisk::find(&disk) {
        Ok(found) => report::note(&format!(
            "imported {name}: it boots {} of {}",
            found.kernel_path, found.origin
        )),
        Err(error) => report::note(&format!("imported {name}, which does not boot alone: {error}")),
    }
    report::note(&format!("the image is in {}", image.info().path.display()));
    Ok(())
}

/// The name of the image of a file: what is before the last dot, as names of images are written.
fn name_of(file: &Path) -> anyhow::Result<String> {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().to_lowercase());
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = stem.unwrap_or_default().chars().map(allowed).collect();
    let name = name.trim_start_matches(['.', '_', '-']);
    if name.is_empty() || Recipe::from_name(name).is_ok() {
        bail!("an image cannot be called after {}; give another name with --name", file.display());
    }
    Ok(name.to_owned())
}

/// What is to be built.
fn recipe(args: &BuildArgs) -> anyhow::Result<Recipe> {
    let mut recipe = Recipe::from_name(&args.image)?;
    let BuildArgs { image: _, suite, size, packages, ssh_keys, hostname, format } = args;
    let Recipe::Debian(debian) = &mut recipe else {
        let none = suite.is_none() && size.is_none() && hostname.is_none() && format.is_none();
        if none && packages.is_empty() && ssh_keys.is_empty() {
            return Ok(recipe);
        }
        bail!("the options of `image build` are for the image debian; leave them out");
    };
    debian.suite.clone_from(suite);
    debian.packages.clone_from(packages);
    if let Some(size) = size {
        debian.size = *size;
    }
    if let Some(hostname) = hostname {
        debian.hostname.clone_from(hostname);
    }
    debian.format = match format {
        None | Some(FormatArg::Raw) => DiskFormat::Raw,
        Some(FormatArg::Qcow2) => DiskFormat::Qcow2,
    };
    for path in ssh_keys {
        debian.ssh_keys.push(public_key(path)?);
    }
    debian.check()?;
    Ok(recipe)
}

/// The public key in a file.
///
/// # Errors
/// A file that cannot be read, or has something else.
pub fn public_key(path: &Path) -> anyhow::Result<String> {
    let name = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
    let key = text.trim();
    if !debian::is_public_key(key) {
        bail!("{name} is not one public key, such as ~/.ssh/id_ed25519.pub");
    }
    Ok(key.to_owned())
}

fn json_of(listing: &Listing) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(&listing.images)? + "\n")
}

fn table(listing: &Listing, now: SystemTime) -> String {
    let mut table = Table::new(["NAME", "KIND", "KERNEL", "SIZE", "BUILT"]);
    for image in &listing.images {
        table.row([
            image.name.to_string(),
            image.kind.clone(),
            image.kernel_version.clone(),
            bytes(image.size),
            age(image.created_at(), now),
        ]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use images::ImageInfo;

    use super::*;

    #[test]
    fn a_table_has_aligned_columns() {
        let image = ImageInfo {
            name: "a-long-name".parse().unwrap(),
            kind: "tiny".to_owned(),
            kernel_version: "6.1".to_owned(),
            size: 3 << 19,
            created: 1_000,
            path: "/x".into(),
        };
        let listing = Listing { images: vec![image], damaged: Vec::new() };
        let text = table(&listing, SystemTime::UNIX_EPOCH + Duration::from_secs(1_000 + 7_300));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "a-long-name  tiny  6.1     1.5 MiB  2 hours ago");
        assert_eq!(lines[0].find("KERNEL"), lines[1].find("6.1"));
        assert_eq!(table(&Listing::default(), SystemTime::now()).lines().count(), 1);
    }
}
