//! `ringfence image`.

use std::fmt::Write;
use std::time::SystemTime;

use images::{ImageInfo, Listing, Recipe, Store};

use crate::args::ImageCommand;
use crate::progress::Bar;
use crate::report;

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
    let mut rows = vec![["NAME", "KIND", "KERNEL", "SIZE", "BUILT"].map(str::to_owned)];
    rows.extend(listing.images.iter().map(|image| row(image, now)));
    let width = |column: usize| rows.iter().map(|r| r[column].len()).max().unwrap_or(0);
    let widths: [usize; 5] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn row(image: &ImageInfo, now: SystemTime) -> [String; 5] {
    let age = now.duration_since(image.created_at()).unwrap_or_default().as_secs();
    let age = match age {
        0..120 => "now".to_owned(),
        120..7200 => format!("{} minutes ago", age / 60),
        7200..172_800 => format!("{} hours ago", age / 3600),
        _ => format!("{} days ago", age / 86_400),
    };
    [
        image.name.to_string(),
        image.kind.clone(),
        image.kernel_version.clone(),
        format!("{:.1} MiB", image.size as f64 / f64::from(1 << 20)),
        age,
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
