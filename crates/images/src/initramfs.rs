//! Packs an initramfs.
//!
//! The archive is a cpio in the "newc" format that the kernel unpacks into its
//! first root file system (Documentation/driver-api/early-userspace/
//! buffer-format.rst in the Linux sources). Equal content gives equal bytes:
//! entries are sorted, belong to root, and are dated 1970.

use std::collections::BTreeMap;
use std::io::{self, Write};

use cpio::newc;
use flate2::GzBuilder;

use crate::{Error, Result};

/// File type bits of a cpio entry's mode, as in stat(2).
const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

/// How the archive is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As it is: the quickest for the guest, whose processor may be an
    /// interpreter that spends some ten instructions on each unpacked byte.
    None,
    /// gzip, which every kernel can unpack.
    Gzip,
}

#[derive(Debug, Clone)]
enum Kind {
    Folder,
    File(Vec<u8>),
    Symlink(String),
    CharDevice { major: u32, minor: u32 },
}

#[derive(Debug, Clone)]
struct Entry {
    mode: u32,
    kind: Kind,
}

/// Collects the entries of an initramfs.
///
/// Paths may begin with a slash; the folders above an entry are made with mode
/// 0755 where they are not given. A later entry replaces an earlier one of the
/// same path. Paths are checked by [`finish`](Builder::finish).
///
/// ```
/// use images::initramfs::{Builder, Compression};
///
/// let init = "#!/bin/sh\necho hello\n";
/// let archive = Builder::new()
///     .busybox(b"the static program")
///     .file("/init", 0o755, init)
///     .finish(Compression::None)?;
/// assert!(archive.starts_with(b"070701"));
/// # Ok::<(), images::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Builder {
    entries: BTreeMap<String, Entry>,
}

impl Builder {
    /// An archive with nothing but `/dev/console`, which the kernel opens as
    /// the standard streams of `/init`.
    pub fn new() -> Self {
        Self::default().char_device("/dev/console", 0o600, 5, 1)
    }

    /// A folder with the permission bits `mode`.
    #[must_use]
    pub fn folder(self, path: &str, mode: u32) -> Self {
        self.insert(path, mode, Kind::Folder)
    }

    /// A file with the permission bits `mode`.
    #[must_use]
    pub fn file(self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        self.insert(path, mode, Kind::File(content.into()))
    }

    /// A symbolic link at `path` that points to `target`.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.insert(path, 0o777, Kind::Symlink(target.to_owned()))
    }

    /// A character device with the permission bits `mode`.
    #[must_use]
    pub fn char_device(self, path: &str, mode: u32, major: u32, minor: u32) -> Self {
        self.insert(path, mode, Kind::CharDevice { major, minor })
    }

    /// A busybox at `/bin/busybox`, with `/bin/sh` pointing to it, so that an
    /// `/init` can begin with `#!/bin/sh`.
    #[must_use]
    pub fn busybox(self, program: &[u8]) -> Self {
        self.file("/bin/busybox", 0o755, program).symlink("/bin/sh", "busybox")
    }

    /// The archive.
    ///
    /// # Errors
    /// [`Error::Initramfs`] for a path that is empty, absolute after its first
    /// slash, has `.` or `..` in it, or passes through something other than a
    /// folder, and for a file of 4 GiB and more, which the format cannot hold.
    pub fn finish(&self, compression: Compression) -> Result<Vec<u8>> {
        let entries = self.with_parents()?;
        match compression {
            Compression::None => write_archive(&entries, Vec::new()),
            Compression::Gzip => {
                // No name and no time in the header: equal input, equal bytes.
                let gzip =
                    GzBuilder::new().mtime(0).write(Vec::new(), flate2::Compression::default());
                write_archive(&entries, gzip)?.finish().map_err(|error| packing("", &error))
            }
        }
    }

    fn insert(mut self, path: &str, mode: u32, kind: Kind) -> Self {
        let path = path.strip_prefix('/').unwrap_or(path).to_owned();
        self.entries.insert(path, Entry { mode: mode & 0o7777, kind });
        self
    }

    /// The checked entries and the folders above them. A folder sorts before
    /// what is in it, since its path is a prefix.
    fn with_parents(&self) -> Result<BTreeMap<&str, Entry>> {
        let mut all: BTreeMap<&str, Entry> = BTreeMap::new();
        for (path, entry) in &self.entries {
            check_path(path)?;
            for (end, _) in path.match_indices('/') {
                let parent = &path[..end];
                let given = self.entries.get(parent);
                if given.is_some_and(|entry| !matches!(entry.kind, Kind::Folder)) {
                    let reason = format!("{parent:?} above it is not a folder");
                    return Err(Error::Initramfs { path: path.clone(), reason });
                }
                all.entry(parent).or_insert_with(|| Entry { mode: 0o755, kind: Kind::Folder });
            }
            all.insert(path, entry.clone());
        }
        Ok(all)
    }
}

fn check_path(path: &str) -> Result<()> {
    let bad_part = |part: &str| part.is_empty() || part == "." || part == "..";
    if path.contains('\0') || path.split('/').any(bad_part) {
        let reason = "not a path below the root".to_owned();
        return Err(Error::Initramfs { path: path.to_owned(), reason });
    }
    Ok(())
}

fn packing(path: &str, error: &io::Error) -> Error {
    Error::Initramfs { path: path.to_owned(), reason: error.to_string() }
}

fn write_archive<W: Write>(entries: &BTreeMap<&str, Entry>, mut output: W) -> Result<W> {
    for (index, (path, entry)) in (1..).zip(entries) {
        output = write_entry(path, entry, index, output)?;
    }
    newc::trailer(output).map_err(|error| packing("TRAILER!!!", &error))
}

fn write_entry<W: Write>(path: &str, entry: &Entry, inode: u32, output: W) -> Result<W> {
    let builder = newc::Builder::new(path).ino(inode);
    let (builder, kind, content): (_, _, &[u8]) = match &entry.kind {
        Kind::Folder => (builder.nlink(2), S_IFDIR, &[]),
        Kind::File(content) => (builder.nlink(1), S_IFREG, content),
        Kind::Symlink(target) => (builder.nlink(1), S_IFLNK, target.as_bytes()),
        Kind::CharDevice { major, minor } => {
            (builder.nlink(1).rdev_major(*major).rdev_minor(*minor), S_IFCHR, &[])
        }
    };
    let size = u32::try_from(content.len()).map_err(|_| Error::Initramfs {
        path: path.to_owned(),
        reason: "larger than the 4 GiB that a cpio entry can hold".to_owned(),
    })?;
    let mut writer = builder.mode(kind | entry.mode).write(output, size);
    writer.write_all(content).and_then(|()| writer.finish()).map_err(|error| packing(path, &error))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Command, Stdio};

    use super::*;

    fn sample() -> Builder {
        Builder::new()
            .busybox(b"program")
            .file("/init", 0o755, "#!/bin/sh\n")
            .file("usr/share/deep/file", 0o640, "content")
            .file("/empty", 0o644, "")
            .folder("/root", 0o700)
    }

    /// Reads an archive back: (path, mode, content) in archive order.
    fn list(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let mut rest = archive;
        loop {
            let mut reader = newc::Reader::new(rest).expect("entry");
            if reader.entry().is_trailer() {
                return entries;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut content = Vec::new();
            reader.read_to_end(&mut content).expect("content");
            entries.push((name, mode, content));
            rest = reader.finish().expect("end of entry");
        }
    }

    #[test]
    fn every_entry_comes_back_after_its_folder() {
        let archive = sample().finish(Compression::None).expect("archive");
        let entries = list(&archive);
        let names: Vec<&str> = entries.iter().map(|(name, ..)| name.as_str()).collect();
        let expected = [
            "bin",
            "bin/busybox",
            "bin/sh",
            "dev",
            "dev/console",
            "empty",
            "init",
            "root",
            "usr",
            "usr/share",
            "usr/share/deep",
            "usr/share/deep/file",
        ];
        assert_eq!(names, expected);
        let find = |name: &str| entries.iter().find(|(n, ..)| n == name).expect(name);
        assert_eq!(find("bin/sh").1, 0o120_777);
        assert_eq!(find("bin/sh").2, b"busybox");
        assert_eq!(find("dev/console").1, 0o020_600);
        assert_eq!(find("root").1, 0o040_700);
        assert_eq!(find("usr/share").1, 0o040_755);
        assert_eq!(
            find("usr/share/deep/file"),
            &("usr/share/deep/file".to_owned(), 0o100_640, b"content".to_vec())
        );
    }

    #[test]
    fn the_cpio_program_agrees() {
        let archive = sample().finish(Compression::None).expect("archive");
        let spawned = Command::new("cpio")
            .args(["--list", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = spawned else {
            // The reader above has checked the same archive.
            return;
        };
        child.stdin.take().expect("pipe").write_all(&archive).expect("cpio reads");
        let output = child.wait_with_output().expect("cpio ends");
        assert!(output.status.success());
        let listed = String::from_utf8(output.stdout).expect("text");
        let names: Vec<String> = list(&archive).into_iter().map(|(name, ..)| name).collect();
        assert_eq!(listed.lines().collect::<Vec<_>>(), names);
    }

    #[test]
    fn equal_content_gives_equal_bytes() {
        for compression in [Compression::None, Compression::Gzip] {
            let forward = Builder::new().file("a", 0o644, "1").file("b", 0o644, "2");
            let backward = Builder::new().file("b", 0o644, "2").file("a", 0o644, "1");
            assert_eq!(
                forward.finish(compression).expect("archive"),
                backward.finish(compression).expect("archive")
            );
        }
    }

    #[test]
    fn gzip_holds_the_same_archive() {
        let packed = sample().finish(Compression::Gzip).expect("archive");
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut plain).expect("gzip");
        assert_eq!(plain, sample().finish(Compression::None).expect("archive"));
    }

    #[test]
    fn bad_paths_are_named() {
        for path in ["", "/", "//x", "../x", "a/../b", "a//b", "a/", "./a", "a\0b"] {
            let error = Builder::new().file(path, 0o644, "").finish(Compression::None);
            assert!(matches!(error, Err(Error::Initramfs { .. })), "{path:?}");
        }
    }

    #[test]
    fn a_file_cannot_hold_files() {
        let error = Builder::new()
            .file("init", 0o755, "")
            .file("init/x", 0o644, "")
            .finish(Compression::None)
            .expect_err("init is a file");
        assert!(error.to_string().contains("\"init\" above it"), "{error}");
    }
}
