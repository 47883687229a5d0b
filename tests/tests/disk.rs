//! Disks: stock kernels mount file systems on virtio disks, write and unmount them, and the host
//! finds them in order.
//!
//! The file systems are made and checked by the host's e2fsprogs, the kernel and its drivers are
//! those of the image `tiny`. What is not to be had is said on standard error.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use lifecycle::{BootFiles, Disk, Outcome, RawDisk, SnapshotDir};
use ringfence_tests::stock::{skipped, tiny_boot_files};
use ringfence_tests::vm::{Guest, Setup, engine};
use tempfile::TempDir;

/// Some ten times what it takes alone: the tests of a run share the host.
const LONG: Duration = Duration::from_secs(400);

const MODULES: [&str; 4] = ["crc32c_generic", "virtio_pci", "virtio_blk", "virtio_rng"];

const IMAGE_SIZE: u64 = 32 << 20;

/// Finds what the host left, writes much and little, reads it back past the page cache.
const WORK: &str = "mkdir -p /mnt
mount -t ext4 /dev/vda /mnt && echo MOUNTED
echo HOST $(cat /mnt/from-host)
seq 1 50000 > /mnt/numbers
mkdir /mnt/folder
for n in $(seq 1 40); do echo $n > /mnt/folder/$n; done
ln -s folder/1 /mnt/link
dd if=/dev/urandom of=/mnt/random bs=64k count=64 2>/dev/null
BEFORE=$(md5sum < /mnt/random)
sync
echo 3 > /proc/sys/vm/drop_caches
[ \"$BEFORE\" = \"$(md5sum < /mnt/random)\" ] && echo SAME
umount /mnt && echo UNMOUNTED
grep virtio /proc/interrupts";

/// An ext4 file system with the file `from-host` in a raw image. `None` without mkfs.ext4, after
/// saying so.
fn image() -> Option<(TempDir, PathBuf)> {
    let folder = tempfile::tempdir().expect("tempdir");
    let content = folder.path().join("content");
    fs::create_dir(&content).expect("folder");
    fs::write(content.join("from-host"), "greetings").expect("file");
    let path = folder.path().join("disk.img");
    File::create(&path).and_then(|f| f.set_len(IMAGE_SIZE)).expect("an image");
    run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), "-d".as_ref(), &content, &path])?;
    Some((folder, path))
}

/// Runs a program of e2fsprogs, which has to succeed; its output. `None` where it is not installed.
fn run(program: &str, args: &[&Path]) -> Option<Vec<u8>> {
    // Where e2fsprogs are, which is not on every user's path.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = match Command::new(program).args(args).env("PATH", path).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            skipped(&format!("{program} is not installed (package e2fsprogs)"));
            return None;
        }
        output => output.expect("a program"),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {text}{errors}");
    Some(output.stdout)
}

fn open(path: &Path, read_only: bool) -> Arc<dyn Disk> {
    let file = File::options().read(true).write(!read_only).open(path).expect("the image");
    Arc::new(RawDisk::open(file, "disk.img", read_only).expect("a disk"))
}

fn start(boot: BootFiles, cmdline: &str, disk: Arc<dyn Disk>) -> Guest {
    let cmdline = format!("console=ttyS0 quiet {cmdline}");
    Setup::new(engine(), 256, boot).cmdline(&cmdline).disk(disk).start()
}

/// The whole file system is in order, and has what [`WORK`] wrote.
fn check(image: &Path) {
    run("e2fsck", &["-f".as_ref(), "-n".as_ref(), image]);
    let content = |file: &str| {
        let request = format!("cat {file}");
        run("debugfs", &["-R".as_ref(), request.as_ref(), image]).expect("part of e2fsprogs")
    };
    let numbers: String = (1..=50_000).map(|n| format!("{n}\n")).collect();
    assert!(content("/numbers") == numbers.as_bytes(), "/numbers has other content");
    assert_eq!(content("/folder/37"), b"37\n");
    assert_eq!(content("/random").len(), 4 << 20);
}

/// Boots with `cmdline` and does [`WORK`]; the interrupts of the disk have to come by `interrupt`.
fn works(cmdline: &str, interrupt: &str) {
    let Some((_folder, image)) = image() else { return };
    let Some(boot) = tiny_boot_files(&MODULES, WORK) else { return };
    let guest = start(boot, cmdline, open(&image, false));
    assert_eq!(guest.end(LONG), Outcome::PoweredOff, "{}", guest.last_lines());
    let text = guest.text();
    for line in ["MOUNTED", "HOST greetings", "SAME", "UNMOUNTED"] {
        assert!(text.contains(line), "no {line:?}:\n{}", guest.last_lines());
    }
    let found = text.lines().find(|l| l.contains("virtio1") && !l.contains("config"));
    assert!(found.is_some_and(|l| l.contains(interrupt)), "{}", guest.last_lines());
    drop(guest);
    check(&image);
}

#[test]
fn a_file_system_is_written_and_in_order() {
    works("", "PCI-MSI");
}

#[test]
fn a_file_system_is_written_with_interrupts_by_line() {
    works("pci=nomsi", "IO-APIC  22-fasteoi");
}

#[test]
fn a_file_system_is_written_with_interrupts_through_the_pic() {
    works("pci=nomsi noapic", "XT-PIC");
}

#[test]
fn the_guest_finds_the_functions_and_the_entropy_device() {
    let Some((_folder, image)) = image() else { return };
    let script = "for d in /sys/bus/pci/devices/*; do
echo FOUND ${d##*/} $(cat $d/vendor) $(cat $d/device) $(cat $d/class)
done
echo CONFIG $(wc -c < /sys/bus/pci/devices/0000:00:02.0/config)
echo SERIAL $(cat /sys/block/vda/serial)
echo SIZE $(cat /sys/block/vda/size)
echo RNG $(cat /sys/class/misc/hw_random/rng_current)
echo BYTES $(dd if=/dev/hwrng bs=64 count=4 2>/dev/null | wc -c)
dmesg | grep -E 'BAR .*(no space|failed)|can.t claim|probe of .* failed'";
    let Some(boot) = tiny_boot_files(&MODULES, script) else { return };
    let guest = start(boot, "", open(&image, false));
    assert_eq!(guest.end(LONG), Outcome::PoweredOff, "{}", guest.last_lines());
    let text = guest.text();
    for line in [
        "FOUND 0000:00:00.0 0x8086 0x29c0 0x060000",
        "FOUND 0000:00:01.0 0x1af4 0x1044 0x00ff00",
        "FOUND 0000:00:02.0 0x1af4 0x1042 0x010000",
        "FOUND 0000:00:1f.0 0x8086 0x2918 0x060100",
        "CONFIG 4096",
        "SERIAL disk0",
        "SIZE 65536",
        "RNG virtio_rng.0",
        "BYTES 256",
    ] {
        assert!(text.contains(line), "no {line:?}:\n{}", guest.last_lines());
    }
    assert_eq!(text.matches("FOUND").count(), 4, "{}", guest.last_lines());
    for complaint in ["no space", "failed", "claim"] {
        assert!(!text.contains(complaint), "{}", guest.last_lines());
    }
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let Some((_folder, image)) = image() else { return };
    let script = "mkdir -p /mnt
mount -t ext4 -o ro /dev/vda /mnt && echo HOST $(cat /mnt/from-host)
umount /mnt
echo RO $(cat /sys/block/vda/ro)
dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync 2>/dev/null || echo REFUSED";
    let Some(boot) = tiny_boot_files(&MODULES, script) else { return };
    let before = fs::read(&image).expect("the image");
    let guest = start(boot, "", open(&image, true));
    assert_eq!(guest.end(LONG), Outcome::PoweredOff, "{}", guest.last_lines());
    for line in ["HOST greetings", "RO 1", "REFUSED"] {
        assert!(guest.text().contains(line), "no {line:?}:\n{}", guest.last_lines());
    }
    assert!(fs::read(&image).expect("the image") == before, "the image has changed");
}

#[test]
fn a_guest_is_saved_and_restored_while_it_writes() {
    let Some((folder, image)) = image() else { return };
    let script = format!("echo BEGIN\n{WORK}");
    let Some(boot) = tiny_boot_files(&MODULES, &script) else { return };
    let mut guest = start(boot, "", open(&image, false));
    guest.expect("MOUNTED", LONG);
    for round in 0..5 {
        std::thread::sleep(Duration::from_millis(150));
        // Paused for good: what it would do after the snapshot, nobody would undo on the disk.
        if guest.vm.pause().is_err() {
            // The guest was faster.
            break;
        }
        let path = folder.path().join(format!("snapshot-{round}"));
        let dir = SnapshotDir::create(&path).expect("a fresh folder");
        guest.vm.save(dir).expect("a paused VM is saved");
        let console = Arc::clone(&guest.console);
        // Only then the image is free.
        drop(guest);
        let dir = SnapshotDir::open(&path).expect("it was made");
        let disks = vec![open(&image, false)];
        guest = Guest::restore_with_disks(&dir, engine(), console, disks).expect("a snapshot");
        guest.vm.resume().expect("a restored VM can run");
    }
    assert_eq!(guest.end(LONG), Outcome::PoweredOff, "{}", guest.last_lines());
    for line in ["SAME", "UNMOUNTED"] {
        assert!(guest.text().contains(line), "no {line:?}:\n{}", guest.last_lines());
    }
    drop(guest);
    check(&image);
}
