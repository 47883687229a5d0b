//! `image.json`: what an image is made of.
//!
//! The file is read before anything is believed about an image. It may come
//! from a full disk, a crash or another version, so it is bounded in size, its
//! format is checked first, and its file names cannot leave the folder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use crc32fast::Hasher;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::{Error, ImageName, Result};

/// The name of the manifest in an image's folder.
const FILE: &str = "image.json";

/// The format of images with a kernel and an initramfs.
const FORMAT_KERNEL: u32 = 1;

/// The format of images with a disk, the newest that this version reads.
const FORMAT_DISK: u32 = 2;

/// A manifest is below 20 KiB; more than this is not one.
const MAX_SIZE: u64 = 1 << 20;

/// Bytes that are read at a time for a checksum: a disk is larger than memory.
const CHUNK: usize = 1 << 20;

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
    /// What is booted.
    #[serde(flatten)]
    pub content: Content,
    /// The command line to boot with when the user gives none; with a disk, empty for the one that
    /// the disk's own boot configuration says.
    pub cmdline: String,
    /// When the image was built, in seconds since 1970 (UTC).
    pub created: u64,
    /// The packages that went in, with their versions.
    pub packages: BTreeMap<String, String>,
}

/// The files of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Content {
    /// A kernel that is booted with an initramfs.
    Kernel {
        /// The kernel, a bzImage.
        kernel: Part,
        /// The initramfs.
        initrd: Part,
    },
    /// A disk with everything that is needed on it.
    Disk {
        /// The disk image.
        disk: Part,
        /// Its format.
        disk_format: DiskFormat,
    },
}

/// How the bytes of an image's disk are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The disk's bytes.
    #[default]
    Raw,
    /// QEMU copy on write.
    Qcow2,
}

impl DiskFormat {
    /// The name that `qemu-img` calls it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

impl Content {
    /// The files.
    pub(crate) fn parts(&self) -> Vec<&Part> {
        match self {
            Self::Kernel { kernel, initrd } => vec![kernel, initrd],
            Self::Disk { disk, .. } => vec![disk],
        }
    }
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
    /// A manifest in the oldest format that has such content.
    pub(crate) fn new(name: ImageName, kind: &str, content: Content) -> Self {
        Self {
            format: match content {
                Content::Kernel { .. } => FORMAT_KERNEL,
                Content::Disk { .. } => FORMAT_DISK,
            },
            name,
            kind: kind.to_owned(),
            kernel_version: String::new(),
            content,
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
        if !(FORMAT_KERNEL..=FORMAT_DISK).contains(&header.format) {
            let reason = format!(
                "it has format {}, and this version reads {FORMAT_KERNEL} to {FORMAT_DISK}",
                header.format
            );
            return Err(Error::damaged(&path, reason));
        }
        let manifest: Self = serde_json::from_str(&text).map_err(invalid)?;
        for part in manifest.content.parts() {
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

    /// Describes `file`, which is in `folder` already.
    pub(crate) fn of(folder: &Path, file: &str) -> Result<Self> {
        let path = folder.join(file);
        let (size, crc32) = measure(&path).map_err(Error::io("read", &path))?;
        Ok(Self { file: file.to_owned(), size, crc32 })
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
        let (_, crc32) = measure(&path).map_err(Error::io("read", &path))?;
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

/// Size and CRC-32 of a file, whose holes are not read.
fn measure(path: &Path) -> io::Result<(u64, u32)> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut hasher = Hasher::new();
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    while at < size {
        // No data up to the end.
        let data = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(data) => data.min(size),
            Err(Errno::NXIO) => size,
            Err(error) => return Err(error.into()),
        };
        hasher.combine(&zeros(data - at));
        let hole = if data < size { rustix::fs::seek(&file, SeekFrom::Hole(data))? } else { size };
        at = hole.min(size);
        rustix::fs::seek(&file, SeekFrom::Start(data))?;
        let mut rest = at - data;
        while rest > 0 {
            let part = &mut chunk[..rest.min(CHUNK as u64) as usize];
            file.read_exact(part)?;
            hasher.update(part);
            rest -= part.len() as u64;
        }
    }
    Ok((size, hasher.finalize()))
}

/// The checksum of `len` zeros, which is put together from those of powers of two.
fn zeros(len: u64) -> Hasher {
    let mut all = Hasher::new();
    let mut power = Hasher::new();
    power.update(&[0]);
    let mut rest = len;
    while rest > 0 {
        if rest & 1 == 1 {
            all.combine(&power);
        }
        let half = power.clone();
        power.combine(&half);
        rest >>= 1;
    }
    all
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
        let manifest = Manifest::new(name, "tiny", Content::Kernel { kernel, initrd });
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
    fn holes_count_as_zeros() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("disk");
        for data in [&[][..], &[0], &[5_000_000], &[0, 9_999_999]] {
            let file = File::create(&path).expect("file");
            file.set_len(10_000_000).expect("size");
            let mut content = vec![0; 10_000_000];
            for at in data {
                std::os::unix::fs::FileExt::write_all_at(&file, b"x", *at as u64).expect("data");
                content[*at] = b'x';
            }
            assert_eq!(measure(&path).expect("readable"), (10_000_000, crc32fast::hash(&content)));
        }
    }

    #[test]
    fn round_trip() {
        let store = tempfile::tempdir().expect("tempdir");
        let (folder, manifest) = image(store.path());
        assert_eq!(Manifest::read(&folder).expect("manifest"), manifest);
        manifest.content.parts()[0].verify(&folder).expect("checksum");
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
        let text = manifest.content.parts()[0].verify(&folder).expect_err("decayed").to_string();
        assert!(text.contains("vmlinuz") && text.contains("CRC-32"), "{text}");
        fs::write(folder.join("vmlinuz"), b"kern").expect("truncate");
        let text = manifest.content.parts()[0].locate(&folder).expect_err("short").to_string();
        assert!(text.contains("4 bytes instead of 6"), "{text}");
    }
}
