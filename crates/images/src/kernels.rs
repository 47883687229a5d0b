//! Stock kernels, the Xen hypervisor and a static busybox for tests and benchmarks.
//!
//! They come from the host's package sources and are kept in the store, below
//! `.files`, until that is removed: a test run needs the network once.

use std::fs;
use std::path::{Path, PathBuf};

use crate::control::Control;
use crate::packages::{Architecture, Package, Packages};
use crate::staging::{Lock, Staging};
use crate::{Error, Progress, Result, Store, archive};

/// Where the files are kept in a store, one folder for each package.
const FOLDER: &str = ".files";

/// The package with the static busybox.
pub(crate) const BUSYBOX: &str = "busybox-static";

/// What the names of packages with a kernel begin with.
pub(crate) const KERNEL_PREFIX: &str = "linux-image-";

/// The package that depends on the newest Xen hypervisor.
const XEN: &str = "xen-system-amd64";

/// What the names of packages with a hypervisor begin with.
const XEN_PREFIX: &str = "xen-hypervisor-";

/// The kernels that Debian builds for PCs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// For virtual machines: the smallest.
    Cloud,
    /// For everything.
    Amd64,
    /// With full preemption.
    Rt,
    /// For 32-bit PCs with PAE.
    Pae686,
}

impl Flavour {
    /// Every flavour.
    pub const ALL: [Self; 4] = [Self::Cloud, Self::Amd64, Self::Rt, Self::Pae686];

    /// The package that depends on the newest kernel of this flavour.
    pub fn package(self) -> &'static str {
        match self {
            Self::Cloud => "linux-image-cloud-amd64",
            Self::Amd64 => "linux-image-amd64",
            Self::Rt => "linux-image-rt-amd64",
            Self::Pae686 => "linux-image-686-pae",
        }
    }

    /// Whether it runs 32-bit programs only.
    pub fn is_32bit(self) -> bool {
        self == Self::Pae686
    }

    fn architecture(self) -> Architecture {
        if self.is_32bit() { Architecture::I386 } else { Architecture::Host }
    }
}

/// The path of the stock kernel (a bzImage) of a flavour, downloaded the first
/// time.
///
/// # Errors
/// As [`Store::build`].
pub fn fetch(flavour: Flavour, store: &Store, progress: &dyn Progress) -> Result<PathBuf> {
    let package = flavour.package();
    let resolve = |packages: &Packages<'_>| packages.dependency(package, KERNEL_PREFIX);
    let architecture = flavour.architecture();
    cached(store, architecture, package, "vmlinuz", progress, resolve, is_kernel)
}

/// The path of the Xen hypervisor, gzip-compressed as it is shipped, downloaded the first time.
///
/// # Errors
/// As [`Store::build`].
pub fn xen(store: &Store, progress: &dyn Progress) -> Result<PathBuf> {
    let resolve = |packages: &Packages<'_>| packages.dependency(XEN, XEN_PREFIX);
    cached(store, Architecture::Host, XEN, "xen.gz", progress, resolve, is_xen)
}

/// The path of a statically linked busybox, downloaded the first time.
///
/// # Errors
/// As [`Store::build`].
pub fn busybox(store: &Store, progress: &dyn Progress) -> Result<PathBuf> {
    let resolve = |packages: &Packages<'_>| packages.show(BUSYBOX);
    cached(store, Architecture::Host, BUSYBOX, "busybox", progress, resolve, is_busybox)
}

/// The same of 32-bit code.
///
/// # Errors
/// As [`Store::build`].
pub fn busybox_32bit(store: &Store, progress: &dyn Progress) -> Result<PathBuf> {
    let resolve = |packages: &Packages<'_>| packages.show(BUSYBOX);
    let key = "busybox-static-i386";
    cached(store, Architecture::I386, key, "busybox", progress, resolve, is_busybox)
}

/// Whether a package's file is the kernel.
pub(crate) fn is_kernel(path: &str) -> bool {
    kernel_release(path).is_some()
}

/// The release of the kernel at `boot/vmlinuz-RELEASE`.
pub(crate) fn kernel_release(path: &str) -> Option<&str> {
    path.strip_prefix("boot/vmlinuz-").filter(|release| !release.contains('/'))
}

/// Whether a package's file is the hypervisor as a multiboot kernel.
fn is_xen(path: &str) -> bool {
    path.strip_prefix("boot/xen-").is_some_and(|rest| rest.ends_with(".gz") && !rest.contains('/'))
}

/// Whether a package's file is the busybox program.
pub(crate) fn is_busybox(path: &str) -> bool {
    matches!(path, "bin/busybox" | "usr/bin/busybox")
}

/// `file` of the folder `key`, made if missing from the one file of a package
/// for which `wanted` holds.
fn cached(
    store: &Store,
    architecture: Architecture,
    key: &str,
    file: &str,
    progress: &dyn Progress,
    resolve: impl FnOnce(&Packages<'_>) -> Result<Control>,
    wanted: fn(&str) -> bool,
) -> Result<PathBuf> {
    let folder = store.path().join(FOLDER).join(key);
    let place = folder.join(file);
    if place.is_file() {
        return Ok(place);
    }
    let doing = format!("fetching {key}");
    let lock = Lock::acquire(store.path(), key, &doing, progress)?;
    if place.is_file() {
        return Ok(place);
    }
    let staging = Staging::new(store.path(), key, lock)?;
    let control = {
        let packages = Packages::open_for(architecture, store.path(), progress)?;
        let control = resolve(&packages)?;
        let package = download_one(&packages, &control, staging.path())?;
        progress.step("Unpacking");
        keep_one(&package, &staging.path().join(file), progress, wanted)?;
        control
    };
    let version = staging.path().join("package");
    let text = format!("{} {}\n", control.package, control.version);
    fs::write(&version, text).map_err(Error::io("write", &version))?;
    staging.publish(&folder)?;
    Ok(place)
}

fn download_one(packages: &Packages<'_>, control: &Control, folder: &Path) -> Result<Package> {
    let downloaded = packages.download(std::slice::from_ref(control), folder)?;
    downloaded.into_iter().next().ok_or_else(|| Error::NoPackage {
        package: control.package.clone(),
        detail: "it was not downloaded".to_owned(),
    })
}

/// Writes the wanted file of a package to `place` and removes the package.
fn keep_one(
    package: &Package,
    place: &Path,
    progress: &dyn Progress,
    wanted: fn(&str) -> bool,
) -> Result<()> {
    archive::for_each_file(&package.path, progress, wanted, |_, content| {
        fs::write(place, content).map_err(Error::io("write", place))
    })?;
    if !place.is_file() {
        let reason = "the file that is needed is not in it".to_owned();
        return Err(Error::Package { path: package.path.clone(), reason });
    }
    package.remove()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Silent;

    #[test]
    fn files_are_known_by_their_paths() {
        assert_eq!(kernel_release("boot/vmlinuz-6.1.0-9-cloud"), Some("6.1.0-9-cloud"));
        assert!(!is_kernel("boot/config-6.1") && !is_kernel("boot/vmlinuz-x/y"));
        assert!(is_xen("boot/xen-4.17-amd64.gz"));
        assert!(!is_xen("boot/xen-4.17-amd64.efi") && !is_xen("usr/share/doc/xen-4.17/x.gz"));
        assert!(is_busybox("bin/busybox") && !is_busybox("usr/share/doc/busybox"));
    }

    #[test]
    fn a_kept_kernel_needs_no_network() {
        let folder = tempfile::tempdir().expect("tempdir");
        let store = Store::at(folder.path()).expect("store");
        let kept = folder.path().join(FOLDER).join("linux-image-rt-amd64");
        fs::create_dir_all(&kept).expect("folder");
        fs::write(kept.join("vmlinuz"), "kernel").expect("write");
        let path = fetch(Flavour::Rt, &store, &Silent).expect("kept");
        assert_eq!(path, kept.join("vmlinuz"));
    }
}
