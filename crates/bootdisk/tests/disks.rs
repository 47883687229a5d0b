//! Whole disks: what is booted from them.
//!
//! File systems are made by the host's mke2fs, and by the crate that reads FAT. Where mke2fs is
//! missing, the tests that need it say so on standard error.

use std::fs;
use std::io::{self, Cursor, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use backend::{Disk, MemoryDisk};
use bootdisk::{BootEntry, Error, find};

const MIB: usize = 1 << 20;

/// Identity of the ext4 file systems.
const UUID: &str = "12345678-9abc-4def-8123-456789abcdef";

/// An ext4 file system with these files: (path, content). `None` without mke2fs.
fn ext4(files: &[(&str, &str)]) -> Option<Vec<u8>> {
    let folder = tempfile::tempdir().expect("folder");
    let tree = folder.path().join("tree");
    for (path, content) in files {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().expect("below the tree")).expect("folder");
        match content.strip_prefix("link to ") {
            Some(target) => std::os::unix::fs::symlink(target, path).expect("link"),
            None => fs::write(path, content).expect("file"),
        }
    }
    let image = folder.path().join("image");
    let mke2fs = ["mke2fs", "/usr/sbin/mke2fs", "/sbin/mke2fs"].into_iter().find_map(|program| {
        let mut command = Command::new(program);
        command.args(["-q", "-F", "-t", "ext4", "-L", "system", "-U", UUID, "-d"]);
        command.arg(&tree).arg(&image).arg("4096k").status().ok()
    });
    let Some(status) = mke2fs else {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        writeln!(io::stderr(), "skipped: {test}: mke2fs is not installed").expect("stderr");
        return None;
    };
    assert!(status.success(), "mke2fs: {status}");
    Some(fs::read(image).expect("image"))
}

/// A FAT file system with these files.
fn fat(files: &[(&str, &str)]) -> Vec<u8> {
    let mut image = Cursor::new(vec![0; 2 * MIB]);
    fatfs::format_volume(&mut image, fatfs::FormatVolumeOptions::new()).expect("room");
    let system = fatfs::FileSystem::new(&mut image, fatfs::FsOptions::new()).expect("FAT");
    for (path, content) in files {
        let folders = Path::new(path).parent().expect("a file").ancestors();
        let mut folders: Vec<_> = folders.filter_map(Path::to_str).collect();
        folders.reverse();
        for folder in folders.into_iter().filter(|folder| !folder.is_empty()) {
            system.root_dir().create_dir(folder).expect("folder");
        }
        let mut file = system.root_dir().create_file(path).expect("file");
        file.write_all(content.as_bytes()).expect("room");
    }
    drop(system);
    image.into_inner()
}

/// A disk with the parts one after the other from 1 MiB on, each with its type in the MBR.
fn mbr_disk(parts: &[(u8, &[u8])]) -> Arc<dyn Disk> {
    let disk = MemoryDisk::new(16 * MIB / 512);
    let mut table = [0; 512];
    let mut at = MIB;
    for ((kind, content), place) in parts.iter().zip(table[446..510].chunks_mut(16)) {
        place[4] = *kind;
        place[8..12].copy_from_slice(&(at as u32 / 512).to_le_bytes());
        place[12..].copy_from_slice(&(content.len() as u32 / 512).to_le_bytes());
        disk.write(at as u64, content).expect("room");
        at += content.len();
    }
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    disk.write(0, &table).expect("room");
    Arc::new(disk)
}

fn whole_disk(content: &[u8]) -> Arc<dyn Disk> {
    let disk = MemoryDisk::new(content.len() / 512);
    disk.write(0, content).expect("room");
    Arc::new(disk)
}

fn found(disk: &Arc<dyn Disk>) -> BootEntry {
    find(disk).expect("something to boot")
}

#[test]
fn the_newest_kernel_of_a_disk_without_a_boot_loader() {
    let Some(image) = ext4(&[
        ("boot/vmlinuz-6.1.0-9-cloud", "old"),
        ("boot/initrd.img-6.1.0-9-cloud", "old initrd"),
        ("boot/vmlinuz-6.1.0-10-cloud", "new"),
        ("boot/initrd.img-6.1.0-10-cloud", "new initrd"),
    ]) else {
        return;
    };
    let entry = found(&whole_disk(&image));
    assert_eq!(
        (entry.kernel.as_slice(), entry.cmdline.as_str()),
        (&b"new"[..], "root=/dev/vda ro")
    );
    assert_eq!(entry.initrd.as_deref(), Some(&b"new initrd"[..]));
    assert_eq!(entry.kernel_path, "/boot/vmlinuz-6.1.0-10-cloud");
}

#[test]
fn links_to_the_kernel_are_followed() {
    let Some(image) = ext4(&[("vmlinuz", "link to boot/vmlinuz-1"), ("boot/vmlinuz-1", "kernel")])
    else {
        return;
    };
    let entry = found(&mbr_disk(&[(0x82, &[0; 512]), (0x83, &image)]));
    assert_eq!((entry.kernel.as_slice(), entry.initrd), (&b"kernel"[..], None));
    assert_eq!(entry.cmdline, "root=/dev/vda2 ro");
}

#[test]
fn grub_on_a_partition_of_its_own() {
    let config = format!(
        "set default=\"0\"\nmenuentry 'Linux' {{\n search --no-floppy --fs-uuid --set=root {UUID}\n \
         linux /boot/vmlinuz root=UUID={UUID} ro quiet\n initrd /boot/a /boot/b\n}}\n"
    );
    let Some(root) = ext4(&[("boot/vmlinuz", "kernel"), ("boot/a", "12345"), ("boot/b", "6")])
    else {
        return;
    };
    let boot = fat(&[("grub/grub.cfg", &config)]);
    // The configuration is on the first partition, what it names on the second.
    let entry = found(&mbr_disk(&[(0x83, &boot), (0x83, &root)]));
    assert_eq!(entry.origin, "/grub/grub.cfg on partition 1 (FAT): Linux");
    assert_eq!(entry.cmdline, format!("root=UUID={UUID} ro quiet"));
    assert_eq!(entry.initrd.as_deref(), Some(&b"12345\0\0\x006"[..]));
}

#[test]
fn systemd_boot_on_a_fat_partition() {
    let esp = fat(&[
        ("loader/loader.conf", "timeout 3\ndefault second*\n"),
        ("loader/entries/first.conf", "title One\nversion 2\nlinux /one\noptions x\n"),
        ("loader/entries/second.conf", "title Two\nlinux /dir/two\ninitrd /i\noptions y z\n"),
        ("one", "kernel one"),
        ("dir/two", "kernel two"),
        ("i", "initrd"),
    ]);
    let entry = found(&mbr_disk(&[(0xef, &esp)]));
    assert_eq!((entry.kernel.as_slice(), entry.cmdline.as_str()), (&b"kernel two"[..], "y z"));
    assert_eq!(entry.initrd.as_deref(), Some(&b"initrd"[..]));
}

#[test]
fn what_cannot_be_booted_says_why() {
    let mut xfs = vec![0; MIB];
    xfs[..4].copy_from_slice(b"XFSB");
    let error = find(&mbr_disk(&[(0x83, &xfs)])).expect_err("nothing");
    assert!(error.to_string().contains("partition 1 (xfs)"), "{error}");
    let esp = fat(&[("loader/entries/a.conf", "linux /gone\n")]);
    let error = find(&whole_disk(&esp)).expect_err("no kernel");
    assert!(matches!(&error, Error::File { path, .. } if path == "/gone"), "{error}");
    let Some(grub) = ext4(&[("boot/grub/grub.cfg", "menuentry 'a {")]) else { return };
    let error = find(&whole_disk(&grub)).expect_err("no end");
    assert!(error.to_string().contains("line 1"), "{error}");
}
