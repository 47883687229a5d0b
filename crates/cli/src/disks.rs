//! `--disk`: from its text to open, locked images.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{anyhow, bail};
use lifecycle::{Disk, RawDisk};
use rustix::fs::{Mode, OFlags};

/// How a qcow2 image begins.
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// The value of one `--disk`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskArg {
    text: String,
    path: PathBuf,
    read_only: bool,
    overlay: bool,
    format: Option<Format>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Raw,
    Qcow2,
}

impl DiskArg {
    /// Splits the options off the end of `text`; what is before them is the file, which may have
    /// commas in its name.
    ///
    /// # Errors
    /// A text without a file, or with an unknown format.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut disk = Self { text: text.to_owned(), ..Self::default() };
        let mut path = text;
        while let Some((before, option)) = path.rsplit_once(',') {
            match option.split_once('=') {
                None if option == "readonly" => disk.read_only = true,
                None if option == "overlay" => disk.overlay = true,
                Some(("format", "raw")) => disk.format = Some(Format::Raw),
                Some(("format", "qcow2")) => disk.format = Some(Format::Qcow2),
                Some(("format", other)) => {
                    return Err(format!("there is no format {other:?}; use raw or qcow2"));
                }
                _ => break,
            }
            path = before;
        }
        if path.is_empty() {
            return Err("the file is missing; it comes first".to_owned());
        }
        disk.path = path.into();
        Ok(disk)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the guest can only read it.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The same disk in another file.
    pub fn with_path(&self, path: PathBuf) -> Self {
        Self { path, ..self.clone() }
    }

    /// The option, when this version cannot do what it says.
    pub fn unsupported(&self) -> Option<String> {
        let unsupported = self.overlay || self.format == Some(Format::Qcow2);
        unsupported.then(|| format!("--disk {}", self.text))
    }

    fn open(&self) -> anyhow::Result<Arc<dyn Disk>> {
        let name = self.path.display().to_string();
        let file = open_file(&self.path, self.read_only)
            .map_err(|e| anyhow!("cannot open disk {name}: {e}; {}", self.way_out(&e)))?;
        if self.format.is_none() && is_qcow2(&file) {
            bail!(
                "disk image {name} is in the format qcow2, which this version of ringfence does \
                 not support; convert it to raw, or say format=raw if its content is really meant"
            );
        }
        Ok(Arc::new(RawDisk::open(file, &name, self.read_only)?))
    }

    fn way_out(&self, error: &io::Error) -> &'static str {
        use io::ErrorKind::{NotFound, PermissionDenied, ReadOnlyFilesystem};
        match error.kind() {
            PermissionDenied | ReadOnlyFilesystem if !self.read_only => {
                "append `,readonly` if it is only to be read"
            }
            NotFound if self.text.contains(',') => {
                "check --disk; options are readonly, overlay and format=raw|qcow2"
            }
            _ => "check --disk",
        }
    }
}

/// Opens the disks, in order.
///
/// # Errors
/// One line that names the file.
pub fn open(disks: &[DiskArg]) -> anyhow::Result<Vec<Arc<dyn Disk>>> {
    disks.iter().map(DiskArg::open).collect()
}

/// Opens a file without waiting for anybody, whatever it turns out to be.
fn open_file(path: &Path, read_only: bool) -> io::Result<File> {
    let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

fn is_qcow2(file: &File) -> bool {
    let mut magic = [0; QCOW2_MAGIC.len()];
    file.read_exact_at(&mut magic, 0).is_ok() && magic == QCOW2_MAGIC
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (String, bool, bool, Option<Format>) {
        let disk = DiskArg::parse(text).expect("valid");
        (disk.path.display().to_string(), disk.read_only, disk.overlay, disk.format)
    }

    #[test]
    fn options_follow_the_file() {
        assert_eq!(parsed("a.img"), ("a.img".into(), false, false, None));
        assert_eq!(parsed("a,readonly"), ("a".into(), true, false, None));
        let all = parsed("a,format=qcow2,readonly,overlay");
        assert_eq!(all, ("a".into(), true, true, Some(Format::Qcow2)));
        assert_eq!(parsed("a,b.img,format=raw").0, "a,b.img");
        assert_eq!(parsed("readonly").0, "readonly");
        assert_eq!(parsed("x=1,overlay"), ("x=1".into(), false, true, None));
        for bad in ["", ",readonly", "a,format=vmdk", "format=raw,format=x"] {
            assert!(DiskArg::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn images_are_opened_or_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img").display().to_string();
        let refused = |text: &str| match DiskArg::parse(text).unwrap().open() {
            Ok(_) => panic!("{text} was opened"),
            Err(error) => error.to_string(),
        };
        assert!(refused(&path).contains("disk.img"));
        assert!(refused(&format!("{path},readnoly")).contains("options are"));
        assert!(refused(&folder.path().display().to_string()).contains("directory"));
        std::fs::write(&path, [&QCOW2_MAGIC[..], &[0; 508]].concat()).unwrap();
        assert!(refused(&path).contains("qcow2"));
        let disk = DiskArg::parse(&format!("{path},format=raw")).unwrap().open().unwrap();
        assert_eq!((disk.len(), disk.is_read_only()), (512, false));
        assert!(refused(&format!("{path},format=raw")).contains("in use"));
    }
}
