//! Builds the image `tiny` from the host's real package sources.
//!
//! Where those cannot be reached the test says so on standard error and checks
//! that the error is one that a user can act upon.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Mutex;

use images::{Error, Image, Progress, Recipe, Store};

/// Keeps the steps and messages.
#[derive(Default)]
struct Log(Mutex<Vec<String>>);

impl Progress for Log {
    fn step(&self, name: &str) {
        self.0.lock().expect("mutex").push(name.to_owned());
    }

    fn bytes(&self, done: u64, total: Option<u64>) {
        assert!(total.is_none_or(|total| done <= total));
    }

    fn message(&self, text: &str) {
        self.0.lock().expect("mutex").push(text.to_owned());
    }
}

/// Whether this host cannot offer packages, as opposed to a defect of ours.
fn host_lacks_packages(error: &Error) -> bool {
    match error {
        Error::Program { .. } | Error::NoPackageSources => true,
        // What apt says of a source that it cannot reach.
        Error::Command { detail, .. } | Error::NoPackage { detail, .. } => {
            detail.contains("Failed to fetch") || detail.contains("Could not resolve")
        }
        _ => false,
    }
}

fn files(image: &Image) -> (&Path, &Path) {
    image.files().kernel_and_initrd().expect("tiny has no disk")
}

fn check(image: &Image) {
    image.verify().expect("checksums");
    let kernel = std::fs::read(files(image).0).expect("kernel");
    // Linux boot protocol, "The Real-Mode Kernel Header": "HdrS" at 0x202.
    assert_eq!(&kernel[0x202..0x206], b"HdrS");
    let initrd = std::fs::read(files(image).1).expect("initrd");
    assert!(initrd.starts_with(b"070701"), "newc cpio");
    assert!(image.cmdline().contains("console=ttyS0"));
    assert!(image.info().kernel_version.contains("cloud"));
    assert!(image.packages().any(|(name, _)| name == "busybox-static"));
    let entries = std::fs::read_dir(&image.info().path).expect("folder");
    let mut names: Vec<_> = entries.map(|entry| entry.expect("entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["image.json", "initrd.img", "vmlinuz"]);
}

#[test]
fn tiny_is_built_from_the_hosts_packages() {
    let folder = tempfile::tempdir().expect("tempdir");
    let store = Store::at(folder.path()).expect("store");
    let log = Log::default();
    let image = match store.build(&Recipe::Tiny, &log) {
        Ok(image) => image,
        Err(error) if host_lacks_packages(&error) => {
            // Past the capture of the test harness, so that it is seen.
            writeln!(io::stderr(), "SKIPPED: this host offers no Debian packages: {error}")
                .expect("stderr");
            assert!(store.list().expect("list").images.is_empty());
            return;
        }
        Err(error) => panic!("{error}"),
    };
    check(&image);
    let steps = log.0.lock().expect("mutex").join("\n");
    for step in ["Fetching package lists", "Downloading packages", "Packing the initramfs"] {
        assert!(steps.contains(step), "{steps}");
    }

    // Again, over the first one: equal packages give equal bytes.
    let first = std::fs::read(files(&image).1).expect("initrd");
    let again = store.build(&Recipe::Tiny, &log).expect("second build");
    check(&again);
    assert_eq!(std::fs::read(files(&again).1).expect("initrd"), first);
    assert_eq!(store.list().expect("list").images, [again.info().clone()]);
}
