//! Writing files so that nobody ever sees half of one.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

/// Replaces `path` as a whole; readers see the old content or the new one. With `durable`, the new
/// content also survives a failure of the host.
///
/// # Errors
/// What the host says.
pub fn write_atomically(path: &Path, content: &[u8], durable: bool) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let new = folder.join(format!(".{name}.{}", fresh_name()?));
    let written = File::create_new(&new).and_then(|mut file| {
        file.write_all(content)?;
        if durable { file.sync_all() } else { Ok(()) }
    });
    written.and_then(|()| fs::rename(&new, path)).inspect_err(|_| {
        // The first failure is what counts.
        let _ = fs::remove_file(&new);
    })?;
    if durable { sync_dir(folder) } else { Ok(()) }
}

/// Makes the names in a folder durable.
///
/// # Errors
/// What the host says.
pub fn sync_dir(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// 16 random hexadecimal digits: part of a name that nobody else takes.
///
/// # Errors
/// When the host has no random numbers.
pub fn fresh_name() -> io::Result<String> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_content_is_replaced_and_nothing_is_left_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for content in [&b"one"[..], b"two"] {
            write_atomically(&path, content, true).unwrap();
            assert_eq!(fs::read(&path).unwrap(), content);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(write_atomically(&folder.path().join("no/file"), b"", false).is_err());
        assert_ne!(fresh_name().unwrap(), fresh_name().unwrap());
    }
}
