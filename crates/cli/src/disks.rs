//! `--disk`: from its text to an open, locked disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lifecycle::Disk;
use lifecycle::storage::{self, Format, ImageOptions, Overlay};

use crate::{report, size};

/// The burst of a limited disk, unless the user says another.
const BURST: Duration = Duration::from_secs(1);
/// The longest burst in seconds.
const LONGEST_BURST: u64 = 3600;
/// The longest serial number (virtio 1.2, 5.2.6: VIRTIO_BLK_ID_BYTES).
const SERIAL: usize = 20;

/// The value of one `--disk`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskArg(pub ImageOptions);

impl DiskArg {
    /// Splits the options off the end of `text`; what is before them is the file, which may have
    /// commas in its name.
    ///
    /// # Errors
    /// A text without a file, or with an option that has no such value.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Self(mut options) = Self::at(PathBuf::new());
        let mut path = text;
        while let Some((before, option)) = path.rsplit_once(',') {
            if !take(&mut options, option)? {
                break;
            }
            path = before;
        }
        if path.is_empty() {
            return Err("the file is missing; it comes first".to_owned());
        }
        options.path = path.into();
        if options.read_only {
            // There is nothing to keep apart.
            options.overlay = None;
        }
        Ok(Self(options))
    }

    /// The disk in a file, without options.
    pub fn at(path: PathBuf) -> Self {
        let mut options = ImageOptions { path, ..ImageOptions::default() };
        options.limit.burst = BURST;
        Self(options)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Whether the guest can only read it.
    pub fn is_read_only(&self) -> bool {
        self.0.read_only
    }

    /// The same disk in another file.
    pub fn with_path(&self, path: PathBuf) -> Self {
        Self(ImageOptions { path, ..self.0.clone() })
    }

    /// Whether the guest's writes go to an overlay.
    pub fn has_overlay(&self) -> bool {
        self.0.overlay.is_some()
    }
}

/// Takes one option; returns whether it is one.
fn take(options: &mut ImageOptions, option: &str) -> Result<bool, String> {
    match option.split_once('=') {
        None if option == "readonly" => options.read_only = true,
        None if option == "overlay" => options.overlay = Some(Overlay::Temporary),
        None if option == "direct" => options.direct = true,
        Some(("overlay", "")) => return Err("overlay= is followed by a file".to_owned()),
        Some(("overlay", file)) => options.overlay = Some(Overlay::File(PathBuf::from(file))),
        Some(("format", name)) => {
            let format = Format::from_name(name);
            let unknown = || format!("there is no format {name:?}; use raw or qcow2");
            options.format = Some(format.ok_or_else(unknown)?);
        }
        Some(("serial", serial)) => options.serial = Some(serial_number(serial)?),
        Some(("iops", number)) => options.limit.operations = Some(count(number)?),
        Some(("bps", number)) => options.limit.bytes = Some(bytes(number)?),
        Some(("burst", seconds)) => {
            let seconds = count(seconds)?;
            if seconds > LONGEST_BURST {
                return Err(format!("a burst has at most {LONGEST_BURST} seconds"));
            }
            options.limit.burst = Duration::from_secs(seconds);
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn serial_number(text: &str) -> Result<String, String> {
    let fits = (1..=SERIAL).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    let expected = || format!("a serial number has 1 to {SERIAL} visible ASCII characters");
    fits.then(|| text.to_owned()).ok_or_else(expected)
}

fn count(text: &str) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| *number != 0);
    number.ok_or_else(|| format!("{text:?} is not a number from 1 on"))
}

/// Bytes per second: a bare number is bytes, unlike the size of a memory.
fn bytes(text: &str) -> Result<u64, String> {
    if text.bytes().all(|b| b.is_ascii_digit()) { count(text) } else { size::parse(text) }
}

/// Called with the name of an image for whose content the host has no space.
pub type WhenFull = Arc<dyn Fn(&str) + Send + Sync>;

/// Opens the disks, in order; with `ephemeral` nothing of what the guest writes is kept.
///
/// # Errors
/// One line that names the file.
pub fn open(
    disks: &[DiskArg],
    ephemeral: bool,
    when_full: &WhenFull,
) -> anyhow::Result<Vec<Arc<dyn Disk>>> {
    let open = |DiskArg(options): &DiskArg| {
        let mut options = options.clone();
        if ephemeral && !options.read_only {
            options.overlay = Some(Overlay::Temporary);
        }
        let opened = storage::open(&options, Arc::clone(when_full))?;
        if let Some(note) = opened.note {
            report::note(&note);
        }
        Ok(opened.disk)
    };
    disks.iter().map(open).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> ImageOptions {
        DiskArg::parse(text).expect("valid").0
    }

    #[test]
    fn options_follow_the_file() {
        assert_eq!(parsed("a.img").path, PathBuf::from("a.img"));
        let all = parsed("a,format=qcow2,direct,overlay=o.qcow2,serial=S-1,iops=10,bps=1M,burst=2");
        assert_eq!((all.path, all.format), ("a".into(), Some(Format::Qcow2)));
        assert_eq!((all.direct, all.overlay), (true, Some(Overlay::File("o.qcow2".into()))));
        assert_eq!(all.serial.as_deref(), Some("S-1"));
        assert_eq!((all.limit.operations, all.limit.bytes), (Some(10), Some(1 << 20)));
        assert_eq!(all.limit.burst, Duration::from_secs(2));
        assert_eq!(parsed("a,bps=1000").limit.bytes, Some(1000));
        assert_eq!(parsed("a,b.img,format=raw").path, PathBuf::from("a,b.img"));
        assert_eq!(parsed("readonly").path, PathBuf::from("readonly"));
        assert_eq!(parsed("x=1,overlay").path, PathBuf::from("x=1"));
        let both = parsed("a,overlay,readonly");
        assert_eq!((both.read_only, both.overlay), (true, None));
        let long = format!("a,serial={}", "x".repeat(21));
        for bad in ["", ",readonly", "a,format=vmdk", "format=raw,format=x", "a,iops=0", &long] {
            assert!(DiskArg::parse(bad).is_err(), "{bad}");
        }
        for bad in ["a,bps=-1", "a,burst=3601", "a,overlay=", "a,serial=a b"] {
            assert!(DiskArg::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nothing_is_kept_of_an_ephemeral_vm() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        std::fs::write(&path, [0; 512]).unwrap();
        let when_full: WhenFull = Arc::new(|_| ());
        let arg = DiskArg::parse(&path.display().to_string()).unwrap();
        let disks = open(std::slice::from_ref(&arg), true, &when_full).unwrap();
        disks[0].write(0, &[1; 512]).unwrap();
        drop(disks);
        assert_eq!(std::fs::read(&path).unwrap(), [0; 512]);
        let disks = open(&[arg], false, &when_full).unwrap();
        disks[0].write(0, &[1; 512]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [1; 512]);
    }
}
