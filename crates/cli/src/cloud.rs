//! `--user-data`, `--meta-data`, `--network-config`, `--ssh-key`, `--hostname`: what cloud-init in the
//! guest is told.
//!
//! Without `--meta-data`, the meta data are written here: the host name, the keys, and an identity of
//! the instance that changes with all of it, so that cloud-init does its work again.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use images::debian;
use lifecycle::Disk;
use lifecycle::storage::NoCloud;

use crate::args::RunArgs;
use crate::image;

/// What cloud-init does besides what the meta data say: root may log in with the keys, too.
const USER_DATA: &str = "#cloud-config\ndisable_root: false\n";

/// The disk for cloud-init, if anything is to be told.
///
/// # Errors
/// One line that names the option or the file.
pub fn disk(args: &RunArgs) -> anyhow::Result<Option<Arc<dyn Disk>>> {
    Ok(told(args)?.map(|told| told.disk()).transpose()?)
}

fn told(args: &RunArgs) -> anyhow::Result<Option<NoCloud>> {
    let read = |option: &str, path: &Option<PathBuf>| match path {
        Some(path) => fs::read(path)
            .map(Some)
            .with_context(|| format!("cannot read {}; check --{option}", path.display())),
        None => Ok(None),
    };
    let user_data = read("user-data", &args.user_data)?;
    let meta_data = read("meta-data", &args.meta_data)?;
    let network_config = read("network-config", &args.network_config)?;
    let nothing = user_data.is_none() && meta_data.is_none() && network_config.is_none();
    if nothing && args.ssh_keys.is_empty() && args.hostname.is_none() {
        return Ok(None);
    }
    let user_data = user_data.unwrap_or_else(|| USER_DATA.into());
    let meta_data = match meta_data {
        Some(meta_data) => meta_data,
        None => written(args, &user_data, network_config.as_deref())?.into_bytes(),
    };
    Ok(Some(NoCloud { user_data, meta_data, network_config }))
}

/// The meta data of `--ssh-key` and `--hostname`, in YAML.
fn written(args: &RunArgs, user: &[u8], network: Option<&[u8]>) -> anyhow::Result<String> {
    let mut text = String::new();
    if let Some(name) = &args.hostname {
        if !debian::is_hostname(name) {
            bail!("--hostname {name:?} is not letters, digits, '-' and '.'");
        }
        text += &format!("local-hostname: {name}\n");
    }
    if !args.ssh_keys.is_empty() {
        text += "public-keys:\n";
        for path in &args.ssh_keys {
            // A key has neither quotes nor line breaks in front of its comment; that is left out.
            let key = image::public_key(path)?;
            let words: Vec<&str> = key.split_ascii_whitespace().take(2).collect();
            text += &format!("  - {}\n", words.join(" "));
        }
    }
    let mut hasher = DefaultHasher::new();
    (&text, user, network).hash(&mut hasher);
    let name = args.name.as_deref().or(args.image.as_deref().filter(|name| !name.contains('/')));
    Ok(format!("instance-id: {}-{:016x}\n{text}", name.unwrap_or("vm"), hasher.finish()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn told_by(options: &[&str]) -> anyhow::Result<Option<NoCloud>> {
        let line = ["ringfence", "run", "--name", "web"].iter().chain(options);
        match Cli::try_parse_from(line)?.command {
            Command::Run(args) => told(&args),
            other => panic!("{other:?}"),
        }
    }

    fn meta(options: &[&str]) -> String {
        let told = told_by(options).unwrap().unwrap();
        String::from_utf8(told.meta_data).unwrap()
    }

    #[test]
    fn keys_and_names_become_meta_data() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key.pub");
        let content = format!("ssh-ed25519 {} a comment: x", "A".repeat(68));
        fs::write(&key, &content).unwrap();
        let key = key.to_str().unwrap();
        let text = meta(&["--ssh-key", key, "--hostname", "a.b"]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("instance-id: web-"), "{text}");
        assert_eq!(lines[1..3], ["local-hostname: a.b", "public-keys:"]);
        assert_eq!(lines[3], format!("  - ssh-ed25519 {}", "A".repeat(68)));
        // Another instance when anything is another.
        assert_ne!(
            meta(&["--hostname", "a"]).lines().next(),
            meta(&["--hostname", "b"]).lines().next()
        );
        assert_eq!(meta(&["--hostname", "a"]), meta(&["--hostname", "a"]));
    }

    #[test]
    fn files_are_taken_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "#cloud-config\nx: 1\n").unwrap();
        let file = file.to_str().unwrap();
        let told = told_by(&["--user-data", file, "--network-config", file]).unwrap().unwrap();
        assert_eq!(told.user_data, b"#cloud-config\nx: 1\n");
        assert_eq!(told.network_config, Some(told.user_data));
        assert_eq!(meta(&["--meta-data", file]), "#cloud-config\nx: 1\n");
        assert_eq!(told_by(&[]).unwrap(), None);
        for bad in [
            &["--user-data", "/nonexistent"][..],
            &["--hostname", "a b"],
            &["--ssh-key", file],
            &["--meta-data", file, "--hostname", "a"],
        ] {
            assert!(told_by(bad).is_err(), "{bad:?}");
        }
    }
}
