//! The recipe for the image `debian`: a Debian with systemd on a disk.
//!
//! [`mmdebstrap`](crate::mmdebstrap) makes the root file system from the host's package sources; it
//! goes straight onto the disk, without a partition table, as ext4. Kernel and initramfs are on it,
//! where `ringfence run` finds them. The files of ours are in `debian/`, beside this one.
//!
//! What the host tells apt about proxies and about the age of package lists, the guest's apt is told
//! too, since both fetch from the same sources.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use crate::manifest::{Content, DiskFormat, Manifest, Part};
use crate::mmdebstrap::{self, RootFs};
use crate::packages::{Packages, Source};
use crate::{Error, ImageName, Progress, Result, control, qcow2, store};

/// The smallest disk: what is installed takes 600 MiB.
pub const MIN_SIZE: u64 = 1 << 30;

/// The largest disk: what ext4 can have with blocks of 4 KiB and no 64-bit block groups to spare.
pub const MAX_SIZE: u64 = 16 << 40;

/// The size of a disk unless the user says another; it takes what is in use only.
const DEFAULT_SIZE: u64 = 8 << 30;

/// The console is the first serial port. The disk is the root file system as a whole.
const CMDLINE: &str = "root=/dev/vda rw console=ttyS0 quiet";

/// What goes in besides what Debian calls essential: a kernel, systemd, the network, ssh.
const PACKAGES: [&str; 17] = [
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "zstd",
    "e2fsprogs",
    "systemd-sysv",
    "systemd-resolved",
    "libpam-systemd",
    "dbus",
    "udev",
    "kmod",
    "openssh-server",
    "iproute2",
    "iputils-ping",
    "netbase",
    "ca-certificates",
    "less",
    "procps",
];

/// systemd-resolved is part of systemd before this release.
const WITHOUT_RESOLVED: [&str; 2] = ["bullseye", "buster"];

/// What apt is told in the guest as on the host, by the beginnings of the names.
const APT_OPTIONS: [&str; 4] = [
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
];

/// The host's loopback as a guest on `--net user` reaches it.
const GATEWAY: &str = "10.0.2.2";

/// What the user says of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Debian {
    /// The release, such as `bookworm`; without, the host's.
    pub suite: Option<String>,
    /// Bytes of the disk, [`MIN_SIZE`] to [`MAX_SIZE`], rounded down to whole MiB.
    pub size: u64,
    /// Packages to be installed besides.
    pub packages: Vec<String>,
    /// Public keys that root can log in with by ssh, each a line as in `authorized_keys`.
    pub ssh_keys: Vec<String>,
    /// The guest's host name (RFC 1123: letters, digits and `-`, with dots between labels).
    pub hostname: String,
    /// The format of the disk image.
    pub format: DiskFormat,
}

impl Default for Debian {
    fn default() -> Self {
        Self {
            suite: None,
            size: DEFAULT_SIZE,
            packages: Vec::new(),
            ssh_keys: Vec::new(),
            hostname: "debian".to_owned(),
            format: DiskFormat::Raw,
        }
    }
}

impl Debian {
    /// Refuses what no image can be made of.
    ///
    /// # Errors
    /// [`Error::Option`] naming the value.
    pub fn check(&self) -> Result<()> {
        let refuse = |option, value: &str, expected| {
            Err(Error::Option { option, value: value.to_owned(), expected })
        };
        if let Some(suite) = self.suite.as_deref().filter(|suite| !is_suite(suite)) {
            return refuse("--suite", suite, "the name of a Debian release, such as bookworm");
        }
        if !(MIN_SIZE..=MAX_SIZE).contains(&self.size) {
            return refuse("--size", &self.size.to_string(), "1G to 16T");
        }
        if let Some(package) = self.packages.iter().find(|package| !is_package(package)) {
            return refuse("--package", package, "the name of a Debian package");
        }
        if !is_hostname(&self.hostname) {
            return refuse("--hostname", &self.hostname, "letters, digits, '-' and '.'");
        }
        match self.ssh_keys.iter().find(|key| !is_public_key(key)) {
            Some(_) => refuse("--ssh-key", "the file", "one public key in a line (id_*.pub)"),
            None => Ok(()),
        }
    }
}

/// A public key as `authorized_keys` has it, without options: type, base64, comment.
pub fn is_public_key(line: &str) -> bool {
    let mut words = line.split_ascii_whitespace();
    let kind = words.next().unwrap_or_default();
    let known = ["ssh-", "ecdsa-", "sk-"].iter().any(|prefix| kind.starts_with(prefix));
    let base64 = |b: u8| b.is_ascii_alphanumeric() || b"+/=".contains(&b);
    known
        && words.next().is_some_and(|key| key.len() > 40 && key.bytes().all(base64))
        && !line.chars().any(char::is_control)
}

/// A host name (RFC 1123, 2.1).
pub fn is_hostname(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // Linux has room for 64 bytes.
    name.len() <= 64 && name.split('.').all(is_label)
}

fn is_suite(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

/// Debian Policy, 5.6.1.
fn is_package(name: &str) -> bool {
    name.len() >= 2
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b))
}

/// Builds the image `name` in `folder`; package lists are kept in `store`.
pub(crate) fn build(
    store: &Path,
    folder: &Path,
    name: ImageName,
    options: &Debian,
    progress: &dyn Progress,
) -> Result<()> {
    options.check()?;
    let mode = mmdebstrap::mode()?;
    let (sources, apt) = host_sources(store, progress)?;
    let (suite, sources) = sources_of(&sources, options.suite.as_deref())?;
    let work = &folder.join("work");
    // Others have no business with files whose permissions are only those in an archive.
    DirBuilder::new().mode(0o700).create(work).map_err(Error::io("create", work))?;
    let ours = work.join("ours.tar");
    write_files(&ours, &files(options, &apt)).map_err(Error::io("write", &ours))?;
    let root = RootFs {
        mode,
        suite: &suite,
        sources: &sources,
        packages: &packages_of(&suite, options),
        apt: &apt,
        files: &ours,
    };
    let archive = work.join("root.tar");
    mmdebstrap::make(&root, &archive, work, progress)?;
    let found = look_into(&archive)?;
    let raw = work.join("disk.raw");
    let size = options.size >> 20 << 20;
    mmdebstrap::write_ext4(mode, &archive, &raw, size, work, progress)?;
    let file = finish_disk(folder, &raw, options.format, progress)?;
    fs::remove_dir_all(work).map_err(Error::io("remove", work))?;
    progress.step("Computing the checksum");
    let disk = Part::of(folder, file)?;
    let content = Content::Disk { disk, disk_format: options.format };
    let mut manifest = Manifest::new(name, "debian", content);
    manifest.kernel_version = found.kernel;
    manifest.cmdline = CMDLINE.to_owned();
    manifest.created = store::now();
    manifest.packages = found.packages;
    manifest.write(folder)
}

/// The host's Debian package sources, and what its apt is told (lines of apt.conf).
fn host_sources(store: &Path, progress: &dyn Progress) -> Result<(Vec<Source>, Vec<String>)> {
    let packages = Packages::open(store, progress)?;
    let mut apt = packages.options(&APT_OPTIONS)?;
    for scheme in ["http", "https"] {
        let name = format!("Acquire::{scheme}::Proxy");
        let variable = std::env::var(format!("{scheme}_proxy")).unwrap_or_default();
        let said = apt.iter().any(|line| line.starts_with(&format!("{name} ")));
        if !said && !variable.is_empty() && !variable.contains(['"', '\n']) {
            apt.push(format!("{name} \"{variable}\";"));
        }
    }
    Ok((packages.debian_sources()?, apt))
}

/// The suite, and for it the lines of a `sources.list` like the host's.
fn sources_of(host: &[Source], wanted: Option<&str>) -> Result<(String, Vec<String>)> {
    let own = host.iter().map(|source| source.release.as_str()).find(|r| !r.contains(['-', '/']));
    let Some(own) = own else { return Err(Error::NoPackageSources) };
    let suite = wanted.unwrap_or(own);
    let mut lines = Vec::new();
    for source in host {
        let rest = source.release.strip_prefix(own);
        let Some(rest) = rest.filter(|rest| rest.is_empty() || rest.starts_with(['-', '/'])) else {
            continue;
        };
        let line = format!("deb {} {suite}{rest} {}", source.uri, source.component);
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    Ok((suite.to_owned(), lines))
}

fn packages_of(suite: &str, options: &Debian) -> Vec<String> {
    let has_resolved = !WITHOUT_RESOLVED.contains(&suite);
    let ours = PACKAGES.iter().filter(|name| has_resolved || **name != "systemd-resolved");
    ours.map(|name| (*name).to_owned()).chain(options.packages.iter().cloned()).collect()
}

/// A file of ours: path in the guest, permission bits, content.
type OwnFile = (&'static str, u32, String);

fn files(options: &Debian, apt: &[String]) -> Vec<OwnFile> {
    let name = &options.hostname;
    let mut files: Vec<OwnFile> = vec![
        ("etc/hostname", 0o644, format!("{name}\n")),
        (
            "etc/hosts",
            0o644,
            format!("127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost ip6-localhost\n"),
        ),
        ("etc/fstab", 0o644, "LABEL=root / ext4 discard,errors=remount-ro 0 1\n".to_owned()),
        ("etc/default/locale", 0o644, "LANG=C.UTF-8\n".to_owned()),
        (
            "etc/systemd/network/80-ethernet-dhcp.network",
            0o644,
            include_str!("debian/dhcp.network").to_owned(),
        ),
        (
            "etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf",
            0o644,
            include_str!("debian/autologin.conf").to_owned(),
        ),
        ("usr/local/sbin/take-meta-data", 0o755, include_str!("debian/take-meta-data").to_owned()),
        (
            "etc/systemd/system/take-meta-data.service",
            0o644,
            include_str!("debian/take-meta-data.service").to_owned(),
        ),
        (
            "etc/initramfs-tools/conf.d/virtual-machine",
            0o644,
            include_str!("debian/initramfs.conf").to_owned(),
        ),
        ("etc/initramfs-tools/modules", 0o644, include_str!("debian/modules").to_owned()),
    ];
    if !apt.is_empty() {
        let lines: Vec<String> = apt.iter().map(|line| as_seen_by_the_guest(line)).collect();
        files.push(("etc/apt/apt.conf.d/90host", 0o644, lines.join("\n") + "\n"));
    }
    if !options.ssh_keys.is_empty() {
        files.push(("root/.ssh/authorized_keys", 0o600, options.ssh_keys.join("\n") + "\n"));
    }
    files
}

/// A proxy on the host's loopback is at the gateway for the guest.
fn as_seen_by_the_guest(line: &str) -> String {
    ["//127.0.0.1:", "//localhost:", "//[::1]:"]
        .iter()
        .fold(line.to_owned(), |line, host| line.replace(host, &format!("//{GATEWAY}:")))
}

/// Writes a tar archive of root's files, and of the folder that no package has.
fn write_files(path: &Path, files: &[OwnFile]) -> std::io::Result<()> {
    let mut archive = tar::Builder::new(File::create(path)?);
    let mut add = |path: &str, mode, kind, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(content.len() as u64);
        header.set_mtime(store::now());
        archive.append_data(&mut header, path, content)
    };
    add("root/.ssh", 0o700, tar::EntryType::Directory, &[])?;
    for (path, mode, content) in files {
        add(path, *mode, tar::EntryType::Regular, content.as_bytes())?;
    }
    archive.into_inner()?.sync_all()
}

/// What is known of a root file system.
#[derive(Default)]
struct Found {
    /// The kernel's release.
    kernel: String,
    /// The packages with their versions.
    packages: BTreeMap<String, String>,
}

fn look_into(archive: &Path) -> Result<Found> {
    let read = |found: &mut Found| -> std::io::Result<()> {
        let mut tar = tar::Archive::new(File::open(archive)?);
        for entry in tar.entries_with_seek()? {
            let mut entry = entry?;
            let path = entry.path()?.to_string_lossy().into_owned();
            let path = path.trim_start_matches("./");
            if let Some(release) = path.strip_prefix("boot/vmlinuz-") {
                release.clone_into(&mut found.kernel);
            } else if path == "var/lib/dpkg/status" {
                let mut text = String::new();
                entry.read_to_string(&mut text)?;
                let installed = control::parse(&text).into_iter();
                found.packages = installed.map(|c| (c.package, c.version)).collect();
            }
        }
        Ok(())
    };
    let mut found = Found::default();
    read(&mut found).map_err(Error::io("read", archive))?;
    if found.kernel.is_empty() {
        return Err(Error::Package {
            path: archive.to_owned(),
            reason: "no kernel was installed".to_owned(),
        });
    }
    Ok(found)
}

/// Gives the disk its format and its name in the image.
fn finish_disk(
    folder: &Path,
    raw: &Path,
    format: DiskFormat,
    progress: &dyn Progress,
) -> Result<&'static str> {
    match format {
        DiskFormat::Raw => {
            let place = folder.join("disk.img");
            fs::rename(raw, &place).map_err(Error::io("rename", raw))?;
            Ok("disk.img")
        }
        DiskFormat::Qcow2 => {
            progress.step("Converting to qcow2");
            qcow2::convert(raw, &folder.join("disk.qcow2"), progress)?;
            Ok("disk.qcow2")
        }
    }
}

#[cfg(test)]
mod tests;
