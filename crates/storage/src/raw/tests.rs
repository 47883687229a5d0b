use std::path::Path;

use tempfile::TempDir;

use super::*;

fn image(bytes: usize) -> (TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    std::fs::write(&path, vec![0; bytes]).unwrap();
    (folder, path)
}

fn open(path: &Path, read_only: bool) -> Result<RawDisk, StorageError> {
    let file = File::options().read(true).write(!read_only).open(path).unwrap();
    RawDisk::open(file, &path.display().to_string(), read_only)
}

#[test]
fn bytes_come_back_and_stay() {
    let (_folder, path) = image(4096);
    let disk = open(&path, false).unwrap();
    assert_eq!((disk.len(), disk.is_read_only()), (4096, false));
    disk.write(1000, b"hello").unwrap();
    disk.flush().unwrap();
    let mut read = [0; 7];
    disk.read(999, &mut read).unwrap();
    assert_eq!(&read, b"\0hello\0");
    drop(disk);
    assert_eq!(&std::fs::read(&path).unwrap()[1000..1005], b"hello");
}

#[test]
fn a_second_opening_is_refused_by_name() {
    let (_folder, path) = image(512);
    let first = open(&path, false).unwrap();
    for read_only in [false, true] {
        let error = open(&path, read_only).unwrap_err().to_string();
        assert!(error.contains("disk.img is in use"), "{error}");
    }
    drop(first);
    let readers = [open(&path, true).unwrap(), open(&path, true).unwrap()];
    assert!(matches!(open(&path, false), Err(StorageError::InUse { .. })));
    drop(readers);
    open(&path, false).unwrap();
}

#[test]
fn what_is_no_disk_is_refused() {
    for bytes in [0, 1, 511, 513] {
        let (_folder, path) = image(bytes);
        let error = open(&path, true).unwrap_err().to_string();
        assert!(error.contains(&format!("{bytes} bytes")), "{error}");
    }
    let (folder, _) = image(512);
    let error = open(folder.path(), true).unwrap_err();
    assert!(matches!(error, StorageError::NoFile { .. }), "{error}");
    assert!(matches!(open(Path::new("/dev/null"), true), Err(StorageError::NoFile { .. })));
}

#[test]
fn nothing_is_written_where_nothing_may_be() {
    let (_folder, path) = image(512);
    let disk = open(&path, true).unwrap();
    assert!(disk.write(0, &[1]).is_err());
    drop(disk);
    let disk = open(&path, false).unwrap();
    assert!(disk.write(511, &[1, 2]).is_err());
    assert!(disk.write(u64::MAX, &[1]).is_err());
    assert!(disk.read(512, &mut [0]).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), [0; 512]);
}
