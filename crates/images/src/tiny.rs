//! The recipe for the image `tiny`: a stock Debian cloud kernel and a busybox
//! shell.
//!
//! The files that make up the guest's user space are in `tiny/`, beside this
//! one, as they are in the guest.

use std::fs;
use std::path::Path;

use crate::initramfs::{Builder, Compression};
use crate::kernels::{self, Flavour};
use crate::manifest::{Content, Manifest, Part};
use crate::modules::{ModuleSet, Selection, is_module};
use crate::packages::{Package, Packages};
use crate::{Error, ImageName, Progress, Result, archive, store};

/// The kernel's file name in the image.
const KERNEL: &str = "vmlinuz";

/// The initramfs's file name in the image.
const INITRD: &str = "initrd.img";

/// The console is the first serial port, and the kernel says only what matters.
const CMDLINE: &str = "console=ttyS0 quiet";

/// What the kernel must have, as modules or built in.
const NEEDED: [&str; 5] = ["virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "ext4"];

/// What goes in besides, where the kernel has it. `crc32c_generic` is asked for
/// by name at run time, so no module depends on it; `button` and `evdev` carry
/// the power button to acpid.
const WELCOME: [&str; 10] = [
    "virtio_balloon",
    "virtio_rng",
    "vmw_vsock_virtio_transport",
    "9p",
    "9pnet_virtio",
    "virtiofs",
    "crc32c_generic",
    "af_packet",
    "button",
    "evdev",
];

/// Files of ours: (path in the guest, permission bits, content).
const FILES: [(&str, u32, &str); 9] = [
    ("init", 0o755, include_str!("tiny/init")),
    ("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n"),
    ("etc/group", 0o644, "root:x:0:\ntty:x:5:\n"),
    ("etc/hostname", 0o644, "tiny\n"),
    ("etc/hosts", 0o644, "127.0.0.1 localhost\n127.0.1.1 tiny\n::1 localhost\n"),
    ("etc/profile", 0o644, include_str!("tiny/profile")),
    ("etc/udhcpc/default.script", 0o755, include_str!("tiny/udhcpc.script")),
    // acpid's default action for the power button.
    ("etc/acpi/PWRF/00000080", 0o755, "#!/bin/sh\nsync\npoweroff -f\n"),
    ("etc/resolv.conf", 0o644, ""),
];

/// Folders that have nothing in them before `/init` runs.
const FOLDERS: [(&str, u32); 9] = [
    ("mnt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr/bin", 0o755),
    ("usr/sbin", 0o755),
];

/// What is taken out of the packages.
#[derive(Default)]
struct Parts {
    release: String,
    kernel: Vec<u8>,
    busybox: Vec<u8>,
    modules: ModuleSet,
}

/// Builds the image `name` in `folder`, with packages fetched through `store`.
pub(crate) fn build(
    store: &Path,
    folder: &Path,
    name: ImageName,
    progress: &dyn Progress,
) -> Result<()> {
    let packages = fetch(store, folder, progress)?;
    progress.step("Unpacking");
    let mut parts = Parts::default();
    for package in &packages {
        parts.take_from(package, progress)?;
        package.remove()?;
    }
    parts.check(folder)?;
    progress.step("Packing the initramfs");
    let initramfs = parts.initramfs(progress)?;
    let kernel = Part::write(folder, KERNEL, &parts.kernel)?;
    let initrd = Part::write(folder, INITRD, &initramfs)?;
    let mut manifest = Manifest::new(name, "tiny", Content::Kernel { kernel, initrd });
    manifest.kernel_version = parts.release;
    manifest.cmdline = CMDLINE.to_owned();
    manifest.created = store::now();
    manifest.packages =
        packages.into_iter().map(|package| (package.name, package.version)).collect();
    manifest.write(folder)
}

/// Downloads the newest cloud kernel and busybox. The package sources are free
/// for others when this returns.
fn fetch(store: &Path, folder: &Path, progress: &dyn Progress) -> Result<Vec<Package>> {
    let packages = Packages::open(store, progress)?;
    let kernel = packages.dependency(Flavour::Cloud.package(), kernels::KERNEL_PREFIX)?;
    // Newer Debian releases keep the modules in a package of their own.
    let modules = kernel.depends.iter().find(|name| name.starts_with("linux-modules-"));
    let mut wanted = vec![packages.show(kernels::BUSYBOX)?];
    if let Some(modules) = modules {
        wanted.push(packages.show(modules)?);
    }
    wanted.push(kernel);
    packages.download(&wanted, folder)
}

impl Parts {
    fn take_from(&mut self, package: &Package, progress: &dyn Progress) -> Result<()> {
        let wanted = |path: &str| {
            kernels::is_kernel(path)
                || (kernels::is_busybox(path) && package.name == kernels::BUSYBOX)
                || below_release(path).is_some()
        };
        archive::for_each_file(&package.path, progress, wanted, |path, content| {
            if let Some(release) = kernels::kernel_release(path) {
                release.clone_into(&mut self.release);
                self.kernel = content;
            } else if kernels::is_busybox(path) {
                self.busybox = content;
            } else if let Some(path) = below_release(path) {
                if is_module(path) {
                    self.modules.add(path, content)?;
                } else if path == "modules.builtin" {
                    self.modules.add_builtin(&String::from_utf8_lossy(&content));
                }
            }
            Ok(())
        })
    }

    /// Everything that the image cannot do without is there.
    fn check(&self, folder: &Path) -> Result<()> {
        for (content, what) in [(&self.kernel, "kernel"), (&self.busybox, "busybox program")] {
            if content.is_empty() {
                let reason = format!("there is no {what} in the downloaded packages");
                return Err(Error::Package { path: folder.to_owned(), reason });
            }
        }
        match NEEDED.iter().find(|name| !self.modules.has(name)) {
            None => Ok(()),
            Some(name) => Err(Error::Module {
                module: (*name).to_owned(),
                reason: format!("the kernel {} does not have it", self.release),
            }),
        }
    }

    fn initramfs(&self, progress: &dyn Progress) -> Result<Vec<u8>> {
        let wanted: Vec<&str> = NEEDED.into_iter().chain(WELCOME).collect();
        let absent: Vec<&str> =
            WELCOME.into_iter().filter(|name| !self.modules.has(name)).collect();
        if !absent.is_empty() {
            progress.message(&format!("this kernel does not have {}", absent.join(", ")));
        }
        let selection = self.modules.select(&wanted)?;
        let mut builder = Builder::new().busybox(&self.busybox);
        for (path, mode) in FOLDERS {
            builder = builder.folder(path, mode);
        }
        for (path, mode, content) in FILES {
            builder = builder.file(path, mode, content);
        }
        add_modules(builder, &self.release, &selection)?.finish(Compression::None)
    }
}

/// Adds the modules and the tables by which busybox's modprobe finds them.
fn add_modules(mut builder: Builder, release: &str, selection: &Selection<'_>) -> Result<Builder> {
    let folder = format!("lib/modules/{release}");
    for (path, content) in selection.files() {
        builder = builder.file(&format!("{folder}/{path}"), 0o644, content);
    }
    Ok(builder.file(&format!("{folder}/modules.dep"), 0o644, selection.modules_dep()?).file(
        &format!("{folder}/modules.alias"),
        0o644,
        selection.modules_alias(),
    ))
}

/// The rest of a path below `lib/modules/RELEASE/`, with or without `usr/`.
fn below_release(path: &str) -> Option<&str> {
    let path = path.strip_prefix("usr/").unwrap_or(path).strip_prefix("lib/modules/")?;
    path.split_once('/').map(|(_, rest)| rest)
}

impl Package {
    /// Removes the downloaded file and what was written beside it.
    pub(crate) fn remove(&self) -> Result<()> {
        let _ = fs::remove_file(self.path.with_extension("log"));
        fs::remove_file(&self.path).map_err(Error::io("remove", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Silent;
    use crate::modinfo::sample_module;

    fn parts(builtin: &str) -> Parts {
        let mut parts = Parts {
            release: "6.1.0-9".to_owned(),
            kernel: b"kernel".to_vec(),
            busybox: b"busybox".to_vec(),
            modules: ModuleSet::default(),
        };
        parts.modules.add_builtin(builtin);
        for name in ["virtio_pci", "virtio_blk", "virtio_net", "virtio_console"] {
            let path = format!("kernel/{name}.ko");
            parts.modules.add(&path, sample_module("depends=\0alias=x*\0")).expect("module");
        }
        parts
    }

    #[test]
    fn the_initramfs_has_what_the_guest_needs() {
        let parts = parts("kernel/fs/ext4.ko\n");
        parts.check(Path::new("x")).expect("complete");
        let archive = parts.initramfs(&Silent).expect("initramfs");
        let text = String::from_utf8_lossy(&archive);
        for path in [
            "bin/busybox",
            "etc/udhcpc/default.script",
            "lib/modules/6.1.0-9/kernel/virtio_pci.ko",
            "lib/modules/6.1.0-9/modules.dep",
            "lib/modules/6.1.0-9/modules.alias",
        ] {
            assert!(text.contains(path), "{path}");
        }
        assert_eq!(archive, parts.initramfs(&Silent).expect("initramfs"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let text = parts("").check(Path::new("x")).expect_err("no ext4").to_string();
        assert!(text.contains("ext4") && text.contains("6.1.0-9"), "{text}");
        let mut incomplete = parts("kernel/fs/ext4.ko\n");
        incomplete.busybox.clear();
        let text = incomplete.check(Path::new("x")).expect_err("no busybox").to_string();
        assert!(text.contains("no busybox"), "{text}");
    }

    #[test]
    fn modules_are_found_in_both_layouts() {
        assert_eq!(below_release("lib/modules/6.1/kernel/a.ko"), Some("kernel/a.ko"));
        assert_eq!(below_release("usr/lib/modules/6.1/kernel/a.ko"), Some("kernel/a.ko"));
        assert_eq!(below_release("lib/modules/6.1"), None);
        assert_eq!(below_release("boot/vmlinuz"), None);
    }
}
