//! Disk images that are booted by what is on them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::guests;
use crate::support::{read_until, ringfence, send, stderr};

/// An ext4 image with `kernel` as its only kernel; `None` where there is no mke2fs, after saying so.
fn disk_with(folder: &Path, kernel: &[u8]) -> Option<PathBuf> {
    let tree = folder.join("tree/boot");
    std::fs::create_dir_all(&tree).expect("folder");
    std::fs::write(tree.join("vmlinuz-1"), kernel).expect("kernel");
    let image = folder.join("disk.img");
    let mut command = Command::new("mke2fs");
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    command.env("PATH", path).args(["-q", "-F", "-t", "ext4", "-d"]);
    match command.arg(folder.join("tree")).arg(&image).arg("8M").status() {
        Ok(status) => assert!(status.success(), "mke2fs: {status}"),
        Err(error) => {
            eprintln!("skipped: mke2fs is not to be had: {error}");
            return None;
        }
    }
    Some(image)
}

#[test]
fn a_disk_is_booted_by_its_path() {
    let folder = tempfile::tempdir().expect("folder");
    let Some(image) = disk_with(folder.path(), &guests::print("from the disk")) else { return };
    let run = |args: &[&str]| {
        let mut command = ringfence(&["run", "--memory", "32M", "--net", "none"]);
        command.arg(&image).args(args).output().expect("run")
    };
    let output = run(&["--ephemeral"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "from the disk", "{}", stderr(&output));
    let empty = folder.path().join("empty.img");
    std::fs::File::create(&empty).expect("disk").set_len(1 << 20).expect("size");
    let mut command = ringfence(&["run", "--memory", "32M"]);
    let output = command.arg(&empty).output().expect("run");
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("empty.img") && text.contains("GRUB"), "{text}");
}

#[test]
fn options_of_debian_are_refused_for_tiny() {
    let output = ringfence(&["image", "build", "tiny", "--size", "2G"]).output().expect("run");
    let text = stderr(&output);
    assert!(!output.status.success() && text.contains("debian"), "{text}");
    let output = ringfence(&["image", "build", "debian", "--hostname", "a_b"]).output();
    let text = stderr(&output.expect("run"));
    assert!(text.contains("--hostname"), "{text}");
}

/// Longer than a boot to the login takes anywhere.
const BOOT: Duration = Duration::from_secs(180);

/// Builds the image `debian` and works with it, as a user does the first time.
#[test]
#[ignore = "downloads 80 MB of packages and builds a Debian of them: some three minutes"]
fn debian_from_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let key = folder.path().join("key");
    let mut keygen = Command::new("ssh-keygen");
    let made = keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
    let has_ssh = made.is_ok_and(|status| status.success());
    let command = |args: &[&str]| {
        let mut command = ringfence(args);
        command.env("RINGFENCE_IMAGES", folder.path().join("images"));
        command.env("XDG_DATA_HOME", folder.path());
        command
    };
    let mut build = command(&["image", "build", "debian", "--hostname", "fromnothing"]);
    if has_ssh {
        build.arg("--ssh-key").arg(key.with_extension("pub"));
    }
    let output = build.output().expect("run");
    assert!(output.status.success(), "{}", stderr(&output));
    let port = free_port();
    let net = format!("user,forward=tcp:{port}:22");
    let mut child = command(&["run", "debian", "--net", &net])
        .stdin(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("run");
    let mut input = child.stdin.take().expect("piped");
    let mut console = child.stdout.take().expect("piped");
    let start = Instant::now();
    read_until(&mut console, "root@fromnothing:~#");
    eprintln!("login after {:?}", start.elapsed());
    assert!(start.elapsed() < BOOT);
    send(
        &mut input,
        b"apt-get update && apt-get install -y hello && hello > /kept && echo IS-$?\n",
    );
    read_until(&mut console, "IS-0");
    if has_ssh {
        let output = Command::new("ssh")
            .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-i"])
            .arg(&key)
            .args(["-p", &port.to_string(), "root@localhost", "cat", "/kept"])
            .output()
            .expect("ssh");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "Hello, world!\n", "{output:?}");
    } else {
        eprintln!("skipped: ssh, which is not installed here");
    }
    send(&mut input, b"poweroff\n");
    drop(input);
    assert!(child.wait().expect("wait").success());
    check_file_system(folder.path());
}

/// A port that nobody listens on at this moment.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").port()
}

/// The VM's disk as the host's e2fsck sees it, where the host has what that needs.
fn check_file_system(folder: &Path) {
    let kept = folder.join("ringfence/disks/debian/debian");
    let raw = folder.join("raw");
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-O", "raw"]).arg(kept.join("overlay.qcow2")).arg(&raw);
    match convert.status() {
        Ok(status) => assert!(status.success(), "qemu-img: {status}"),
        Err(error) => return eprintln!("skipped: the check of the file system: qemu-img: {error}"),
    }
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let mut check = Command::new("e2fsck");
    let output = check.env("PATH", path).arg("-fn").arg(&raw).output().expect("e2fsck");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
