//! `ringfence image`.

use std::time::SystemTime;

use images::{Listing, Recipe, Store};

use crate::args::ImageCommand;
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
        ImageCommand::Build { image } => {
            let image = store.build(Recipe::from_name(&image)?, &Bar::new())?;
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
