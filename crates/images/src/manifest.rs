//! `image.json`: what an image is made of.
//!
//! The file is read before anything is believed about an image. It may come
//! from a full disk, a crash or another version, so it is bounded in size, its
//! format is checked first, and its file names cannot leave the folder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, ImageName, Result};

/// The name of the manifest in an image's folder.
const FILE: &str = "image.json";

/// The format that this version writes, and the newest that it reads.
const FORMAT: u32 = 1;

/// A manifest is below 2 KiB; more than this is not one.
const MAX_SIZE: u64 = 1 << 20;

/// The content of `image.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// The format of this file.
    pub format: u32,
    /// The image's name; equal to the folder's.
    pub name: ImageName,
    /// What kind of image it is: the recipe's name.
    pub kind: String,
    /// The kernel's release, as `uname -r` gives it.
    pub kernel_version: String,
    /// The kernel, a bzImage.
    pub kernel: Part,
    /// The initramfs.
    pub initrd: Part,
    /// The command line to boot with when the user gives none.
    pub cmdline: String,
    /// When the image was built, in seconds since 1970 (UTC).
    pub created: u64,
    /// The packages that went in, with their versions.
    pub packages: BTreeMap<String, String>,
}

/// A file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    /// Its name in the image's folder.
    pub file: String,
    /// Its size in bytes.
    pub size: u64,
    /// The CRC-32 (IEEE) of its content, against decay rather than malice.
    pub crc32: u32,
}

/// The part of every format that says which one it is.
#[derive(Deserialize)]
struct Header {
    format: u32,
}

impl Manifest {
    /// A manifest in the current format.
    pub(crate) fn new(name: ImageName, kind: &str, kernel: Part, initrd: Part) -> Self {
        Self {
            format: FORMAT,
            name,
            kind: kind.to_owned(),
            kernel_version: String::new(),
            kernel,
            initrd,
            cmdline: String::new(),
            created: 0,
            packages: BTreeMap::new(),
        }
    }

    /// Reads and checks the manifest of the image in `folder`.
    ///
    /// # Errors
    /// [`Error::Damaged`] naming `image.json` and what is wrong with it.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let mut text = String::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_SIZE + 1).read_to_string(&mut text))
            .map_err(|error| Error::damaged(&path, format!("it cannot be read: {error}")))?;
        if text.len() as u64 > MAX_SIZE {
            return Err(Error::damaged(&path, "it is too long for a manifest"));
        }
        let invalid = |error: serde_json::Error| Error::damaged(&path, error.to_string());
        let header: Header = serde_json::from_str(&text).map_err(invalid)?;
        if header.format != FORMAT {
            let reason =
                format!("it has format {}, and this version reads {FORMAT}", header.format);
            return Err(Error::damaged(&path, reason));
        }
        let manifest: Self = serde_json::from_str(&text).map_err(invalid)?;
        for part in [&manifest.kernel, &manifest.initrd] {
            part.check_name(&path)?;
        }
        if folder.file_name().is_none_or(|name| name != manifest.name.as_str()) {
            return Err(Error::damaged(&path, format!("it names the image {}", manifest.name)));
        }
        Ok(manifest)
    }

    /// Writes the manifest into `folder`.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        let write = |file: File| -> io::Result<()> {
            serde_json::to_writer_pretty(&file, self)?;
            io::Write::write_all(&mut &file, b"\n")
        };
        File::create(&path).and_then(write).map_err(Error::io("write", &path))
    }
}

impl Part {
    /// Writes `content` to `file` in `folder` and describes it.
    pub(crate) fn write(folder: &Path, file: &str, content: &[u8]) -> Result<Self> {
        let path = folder.join(file);
        fs::write(&path, content).map_err(Error::io("write", &path))?;
        Ok(Self {
            file: file.to_owned(),
            size: content.len() as u64,
            crc32: crc32fast::hash(content),
        })
    }

    /// The part's path, when a file of the recorded size is there.
    pub(crate) fn locate(&self, folder: &Path) -> Result<PathBuf> {
        let path = folder.join(&self.file);
        let metadata = fs::metadata(&path)
            .map_err(|error| Error::damaged(&path, format!("it cannot be read: {error}")))?;
        if !metadata.is_file() || metadata.len() != self.size {
            let reason = format!("it has {} bytes instead of {}", metadata.len(), self.size);
            return Err(Error::damaged(&path, reason));
        }
        Ok(path)
    }

    /// Reads the whole part and compares its checksum.
    pub(crate) fn verify(&self, folder: &Path) -> Result<()> {
        let path = self.locate(folder)?;
        let content = fs::read(&path).map_err(Error::io("read", &path))?;
        let crc32 = crc32fast::hash(&content);
        if crc32 != self.crc32 {
            let reason = format!("its CRC-32 is {crc32:08x} instead of {:08x}", self.crc32);
            return Err(Error::damaged(&path, reason));
        }
        Ok(())
    }

    fn check_name(&self, manifest: &Path) -> Result<()> {
        let mut components = Path::new(&self.file).components();
        match (components.next(), components.next()) {
            (Some(Component::Normal(name)), None) if name == self.file.as_str() => Ok(()),
            _ => Err(Error::damaged(manifest, format!("{:?} is not a file name", self.file))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(store: &Path) -> (PathBuf, Manifest) {
        let folder = store.join("tiny");
        fs::create_dir(&folder).expect("folder");
        let kernel = Part::write(&folder, "vmlinuz", b"kernel").expect("kernel");
        let initrd = Part::write(&folder, "initrd.img", b"initrd").expect("initrd");
        let name = "tiny".parse().expect("name");
        let manifest = Manifest::new(name, "tiny", kernel, initrd);
        manifest.write(&folder).expect("manifest");
        (folder, manifest)
    }

    /// What reading says after `change` to the manifest's text.
    fn error_after(change: impl FnOnce(String) -> String) -> String {
        let store = tempfile::tempdir().expect("tempdir");
        let (folder, _) = image(store.path());
        let path = folder.join(FILE);
        let text = fs::read_to_string(&path).expect("manifest");
        fs::write(&path, change(text)).expect("changed manifest");
        let text = Manifest::read(&folder).expect_err("damaged").to_string();
        assert!(text.contains("tiny/image.json"), "{text}");
        assert!(text.contains("image rm"), "{text}");
        text
    }

    #[test]
    fn round_trip() {
        let store = tempfile::tempdir().expect("tempdir");
        let (folder, manifest) = image(store.path());
        assert_eq!(Manifest::read(&folder).expect("manifest"), manifest);
        manifest.kernel.verify(&folder).expect("checksum");
    }

    #[test]
    fn truncated_empty_and_huge_manifests_are_refused() {
        assert!(error_after(|text| text[..text.len() / 2].to_owned()).contains("EOF"));
        assert!(error_after(|_| String::new()).contains("EOF"));
        assert!(error_after(|text| text + &" ".repeat(1 << 20)).contains("too long"));
        assert!(error_after(|_| "[]".to_owned()).contains("invalid"));
    }

    #[test]
    fn a_newer_format_is_named() {
        let text = error_after(|text| text.replace("\"format\": 1", "\"format\": 9"));
        assert!(text.contains("format 9"), "{text}");
    }

    #[test]
    fn parts_cannot_leave_the_folder() {
        for file in ["../vmlinuz", "/etc/passwd", "..", "", "a/b", "vmlinuz/"] {
            let text = error_after(|text| text.replace("vmlinuz", file));
            assert!(text.contains("not a file name"), "{file}: {text}");
        }
    }

    #[test]
    fn another_images_manifest_is_refused() {
        let text = error_after(|text| text.replace("\"name\": \"tiny\"", "\"name\": \"other\""));
        assert!(text.contains("names the image other"), "{text}");
    }

    #[test]
    fn decayed_parts_are_named() {
        let store = tempfile::tempdir().expect("tempdir");
        let (folder, manifest) = image(store.path());
        fs::write(folder.join("vmlinuz"), b"kernfl").expect("flip");
        let text = manifest.kernel.verify(&folder).expect_err("decayed").to_string();
        assert!(text.contains("vmlinuz") && text.contains("CRC-32"), "{text}");
        fs::write(folder.join("vmlinuz"), b"kern").expect("truncate");
        let text = manifest.kernel.locate(&folder).expect_err("short").to_string();
        assert!(text.contains("4 bytes instead of 6"), "{text}");
    }
}
