//! `ringfence image`.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, bail};
use images::{DiskFormat, Listing, Recipe, Store, debian};

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
        ImageCommand::Rm { images } => {
            for name in images {
                store.remove(&name)?;
            }
        }
    }
    Ok(())
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
