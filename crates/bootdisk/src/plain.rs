//! Kernels in the usual places, where no boot loader is configured: an image whose kernel always came
//! from outside.

use crate::entries::Version;
use crate::volume::Volume;

/// The links that Debian's kernels keep, to the newest one.
const LINKS: [(&str, &str); 3] =
    [("/vmlinuz", "/initrd.img"), ("/boot/vmlinuz", "/boot/initrd.img"), ("/vmlinuz", "/initrd")];

/// Folders with kernels, the second one of a partition that is mounted at `/boot`.
const FOLDERS: [&str; 2] = ["/boot", "/"];

/// What the names of kernels begin with.
const KERNEL: &str = "vmlinuz-";

/// The newest kernel of a volume, and its initramfs if there is one: their paths.
pub(crate) fn find(volume: &Volume) -> Option<(String, Option<String>)> {
    for (kernel, initrd) in LINKS {
        if volume.exists(kernel) {
            let initrd = volume.exists(initrd).then(|| initrd.to_owned());
            return Some((kernel.to_owned(), initrd));
        }
    }
    FOLDERS.iter().find_map(|folder| {
        let names = volume.names(folder);
        let releases = names.iter().filter_map(|name| name.strip_prefix(KERNEL));
        let release = releases.max_by_key(|release| Version((*release).to_owned()))?;
        let folder = folder.trim_end_matches('/');
        let initrds = [
            format!("{folder}/initrd.img-{release}"),
            format!("{folder}/initramfs-{release}.img"),
            format!("{folder}/initrd-{release}"),
        ];
        let initrd = initrds.into_iter().find(|path| volume.exists(path));
        Some((format!("{folder}/{KERNEL}{release}"), initrd))
    })
}
