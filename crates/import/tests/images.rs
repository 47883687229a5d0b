//! Images as other programs make them: qemu-img's, where it is installed, and damaged ones.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use backend::Disk;
use import::{Error, copy, open};

/// A raw disk with data at its beginning, in its middle and at its end.
fn content() -> Vec<u8> {
    let mut content = vec![0; (5 << 20) + 512];
    for (index, byte) in content[..100_000].iter_mut().enumerate() {
        *byte = (index % 251) as u8;
    }
    content[3_000_000] = 7;
    let last = content.len() - 1;
    content[last] = 9;
    content
}

/// The disk of [`content`] as `qemu-img` converts it with these options; `None` without the program.
fn converted(folder: &Path, name: &str, options: &[&str]) -> Option<PathBuf> {
    let (raw, image) = (folder.join("raw"), folder.join(name));
    fs::write(&raw, content()).expect("raw image");
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", "raw"]).args(options).arg(&raw).arg(&image);
    match command.status() {
        Ok(status) => assert!(status.success(), "qemu-img: {status}"),
        Err(error) => {
            let test = std::thread::current().name().unwrap_or("a test").to_owned();
            writeln!(io::stderr(), "skipped: {test}: qemu-img: {error}").expect("stderr");
            return None;
        }
    }
    Some(image)
}

fn copied(image: &Path) -> Result<Vec<u8>, Error> {
    let disk = open(image, &mut |_, _| ())?.expect("a known format");
    let copy_of = image.with_extension("copy");
    let file = File::create(&copy_of).expect("copy");
    copy(&*disk, "it", &file, &mut |_, _| ())?;
    Ok(fs::read(copy_of).expect("copy"))
}

const STREAM: [&str; 4] = ["-O", "vmdk", "-o", "subformat=streamOptimized"];

#[test]
fn every_format_reads_as_it_was_written() {
    let folder = tempfile::tempdir().expect("folder");
    let formats: [(&str, &[&str]); 4] = [
        ("sparse.vmdk", &["-O", "vmdk"]),
        ("stream.vmdk", &STREAM),
        ("dynamic.vhd", &["-O", "vpc", "-o", "force_size=on"]),
        ("fixed.vhd", &["-O", "vpc", "-o", "subformat=fixed,force_size=on"]),
    ];
    for (name, options) in formats {
        let Some(image) = converted(folder.path(), name, options) else { return };
        let copied = copied(&image).expect(name);
        assert!(copied == content(), "{name}");
    }
}

/// An archive with these files.
fn archive(folder: &Path, files: &[(&str, &[u8])]) -> PathBuf {
    let path = folder.join("machine.ova");
    let mut builder = tar::Builder::new(File::create(&path).expect("archive"));
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).expect("entry");
    }
    builder.into_inner().expect("archive");
    path
}

#[test]
fn the_disk_of_an_archive_is_checked_by_its_digest() {
    let folder = tempfile::tempdir().expect("folder");
    let Some(image) = converted(folder.path(), "disk.vmdk", &STREAM) else { return };
    let disk = fs::read(&image).expect("image");
    let sum = Command::new("sha256sum").arg(&image).output().expect("sha256sum");
    let sum = String::from_utf8_lossy(&sum.stdout)[..64].to_owned();
    let manifest = format!("SHA256(machine.ovf)= 00\nSHA256(disk.vmdk)= {sum}\n");
    let ovf: (&str, &[u8]) = ("machine.ovf", b"<Envelope/>");
    let files = [ovf, ("machine.mf", manifest.as_bytes()), ("disk.vmdk", &disk)];
    let good = archive(folder.path(), &files);
    assert!(copied(&good).expect("readable") == content());
    let manifest = manifest.replace(&sum[..4], "0000");
    let files = [ovf, ("disk.vmdk", &disk), ("machine.mf", manifest.as_bytes())];
    let error = copied(&archive(folder.path(), &files)).expect_err("another digest").to_string();
    assert!(error.contains("disk.vmdk in") && error.contains("SHA-256"), "{error}");
    let error = copied(&archive(folder.path(), &[ovf])).expect_err("no disk").to_string();
    assert!(error.contains("no VMDK"), "{error}");
    let files = [("a.vmdk", &disk[..]), ("b.vmdk", &disk)];
    let error = copied(&archive(folder.path(), &files)).expect_err("two disks").to_string();
    assert!(error.contains("several disks"), "{error}");
}

#[test]
fn damage_is_named() {
    let folder = tempfile::tempdir().expect("folder");
    for (name, options) in [("a.vmdk", &["-O", "vmdk"][..]), ("b.vmdk", &STREAM)] {
        let Some(image) = converted(folder.path(), name, options) else { return };
        let whole = fs::read(&image).expect("image");
        for (at, bytes) in [(12, &[0xff; 8]), (20, &[0xff; 8]), (44, &[0xff; 8]), (56, &[0xfe; 8])]
        {
            let mut damaged = whole.clone();
            damaged[at..at + 8].copy_from_slice(bytes);
            if name == "b.vmdk" {
                // The header that counts.
                let end = damaged.len() - 1024;
                damaged[end + at..end + at + 8].copy_from_slice(bytes);
            }
            fs::write(&image, damaged).expect("image");
            let error = copied(&image).expect_err("damaged").to_string();
            assert!(error.contains(name) && error.contains("damaged"), "{at}: {error}");
        }
        fs::write(&image, &whole[..whole.len() / 2]).expect("image");
        assert!(copied(&image).is_err(), "{name} cut in half");
    }
    let Some(image) = converted(folder.path(), "c.vhd", &["-O", "vpc"]) else { return };
    let mut damaged = fs::read(&image).expect("image");
    let size = damaged.len() - 512 + 55;
    damaged[size] ^= 1;
    fs::write(&image, damaged).expect("image");
    let error = copied(&image).expect_err("damaged").to_string();
    assert!(error.contains("checksum"), "{error}");
    let Some(image) = converted(folder.path(), "d.vhdx", &["-O", "vhdx"]) else { return };
    let error = copied(&image).expect_err("not read").to_string();
    assert!(error.contains("VHDX") && error.contains("qemu-img convert"), "{error}");
}

#[test]
fn other_files_are_left_to_others() {
    let folder = tempfile::tempdir().expect("folder");
    for content in [&b""[..], b"QFI\xfb", &[0; 4096]] {
        let path = folder.path().join("file");
        fs::write(&path, content).expect("file");
        assert!(open(&path, &mut |_, _| ()).expect("readable").is_none());
    }
    assert!(open(folder.path(), &mut |_, _| ()).is_err());
}

#[test]
fn nothing_beyond_the_disk_is_read() {
    let folder = tempfile::tempdir().expect("folder");
    let Some(image) = converted(folder.path(), "x.vmdk", &["-O", "vmdk"]) else { return };
    let disk = open(&image, &mut |_, _| ()).expect("readable").expect("a VMDK");
    let len = Disk::len(&*disk);
    assert!(disk.read(len - 511, &mut [0; 512]).is_err());
    assert!(disk.read(u64::MAX, &mut [0; 512]).is_err());
    assert!(disk.write(0, &[0; 512]).is_err());
}
