//! Takes files out of Debian packages.
//!
//! `dpkg-deb --fsys-tarfile` knows every compression that packages use and is
//! part of every Debian; its tar stream is read here without touching the disk.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Error, Progress, Result, host};

/// No file that is taken out of a package is larger than this.
const MAX_FILE: u64 = 1 << 30;

/// Calls `take` with the path (without leading `./` or `/`) and the content of
/// each regular file of the package `deb` for which `wanted` holds.
///
/// # Errors
/// [`Error::Program`] without dpkg-deb, [`Error::Package`] for a damaged
/// package, and whatever `take` returns.
pub(crate) fn for_each_file(
    deb: &Path,
    progress: &dyn Progress,
    wanted: impl Fn(&str) -> bool,
    mut take: impl FnMut(&str, Vec<u8>) -> Result<()>,
) -> Result<()> {
    let errors_path = deb.with_extension("log");
    let errors = File::create(&errors_path).map_err(Error::io("create", &errors_path))?;
    let mut command = Command::new("dpkg-deb");
    command.arg("--fsys-tarfile").arg(deb);
    host::prepare(&mut command).stdout(Stdio::piped()).stderr(errors);
    let failed = |source| Error::Program { program: "dpkg-deb".to_owned(), source };
    let mut child = command.spawn().map_err(failed)?;
    let result = match child.stdout.take() {
        Some(pipe) => walk(deb, Counted { pipe, done: 0, progress }, wanted, &mut take),
        None => Ok(()),
    };
    // The pipe is closed by now, so that dpkg-deb ends also when `take` failed.
    let status = child.wait().map_err(failed)?;
    result?;
    if !status.success() {
        let text = std::fs::read_to_string(&errors_path).unwrap_or_default();
        let reason = format!("dpkg-deb cannot read it: {}", host::last_lines(&text));
        return Err(Error::Package { path: deb.to_owned(), reason });
    }
    Ok(())
}

fn walk(
    deb: &Path,
    mut stream: Counted<'_, impl Read>,
    wanted: impl Fn(&str) -> bool,
    take: &mut impl FnMut(&str, Vec<u8>) -> Result<()>,
) -> Result<()> {
    let invalid = |error: io::Error| Error::Package {
        path: deb.to_owned(),
        reason: format!("its content cannot be read: {error}"),
    };
    let mut archive = tar::Archive::new(&mut stream);
    for entry in archive.entries().map_err(invalid)? {
        let mut entry = entry.map_err(invalid)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let path = path.trim_start_matches("./").trim_start_matches('/');
        if !wanted(path) {
            continue;
        }
        if entry.size() > MAX_FILE {
            return Err(invalid(io::Error::other(format!("{path} is too large"))));
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content).map_err(invalid)?;
        take(path, content)?;
    }
    // Padding after the archive's end must be drained, or dpkg-deb would fail.
    io::copy(&mut stream, &mut io::sink()).map_err(invalid)?;
    Ok(())
}

/// Reports how much has been read.
struct Counted<'a, R> {
    pipe: R,
    done: u64,
    progress: &'a dyn Progress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        /// Often enough for a bar, seldom enough to cost nothing.
        const REPORT_EVERY: u64 = 1 << 20;
        let count = self.pipe.read(buffer)?;
        let before = self.done / REPORT_EVERY;
        self.done += count as u64;
        if self.done / REPORT_EVERY != before {
            self.progress.bytes(self.done, None);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Silent;

    #[test]
    fn a_truncated_package_is_named() {
        let folder = tempfile::tempdir().expect("tempdir");
        let deb = folder.path().join("broken_1_amd64.deb");
        std::fs::write(&deb, b"!<arch>\ndebian-binary   ").expect("write");
        let result = for_each_file(&deb, &Silent, |_| true, |_, _| Ok(()));
        match result {
            Err(Error::Program { program, .. }) => assert_eq!(program, "dpkg-deb"),
            Err(error) => assert!(error.to_string().contains("broken_1_amd64.deb"), "{error}"),
            Ok(()) => panic!("a truncated package was accepted"),
        }
    }

    #[test]
    fn a_tar_stream_is_walked_and_filtered() {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in [("./boot/vmlinuz-1", "kernel"), ("./usr/doc", "text")] {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, path, content.as_bytes()).expect("append");
        }
        let stream = builder.into_inner().expect("archive");
        let mut seen = Vec::new();
        let pipe = Counted { pipe: stream.as_slice(), done: 0, progress: &Silent };
        let mut take = |path: &str, content: Vec<u8>| {
            seen.push((path.to_owned(), content));
            Ok(())
        };
        walk(Path::new("x.deb"), pipe, |path| path.starts_with("boot/"), &mut take).expect("walk");
        assert_eq!(seen, [("boot/vmlinuz-1".to_owned(), b"kernel".to_vec())]);
    }

    #[test]
    fn a_cut_tar_stream_is_an_error() {
        let pipe = Counted { pipe: &[b'x'; 700][..], done: 0, progress: &Silent };
        let result = walk(Path::new("x.deb"), pipe, |_| true, &mut |_, _| Ok(()));
        assert!(matches!(result, Err(Error::Package { .. })));
    }
}
