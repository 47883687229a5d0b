//! Stock kernels, and initramfs with a script as `/init`.
//!
//! Kernels and busybox come from the host's package sources and are kept in the image store: the
//! first test run needs the network. Without it, tests that need them say so on standard error and
//! do nothing else.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use images::initramfs::{Builder, Compression};
use images::kernels::{self, Flavour};
use images::{Recipe, Silent, Store};
use lifecycle::BootFiles;

/// One download at a time: the tests of a process wait for each other instead of for the lock.
static FETCHING: Mutex<()> = Mutex::new(());

/// How a kernel is handed to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As it is shipped: enters in 64-bit mode and unpacks itself.
    BzImage,
    /// The ELF file inside, entered through its PVH note in 32-bit mode.
    Pvh,
}

/// A stock kernel in this form and an initramfs that runs the shell commands `script` after
/// printing `GUEST-UP`; then it powers off. `None` where they are not to be had, after saying so.
pub fn boot_files(flavour: Flavour, form: Form, script: &str) -> Option<BootFiles> {
    boot_files_with(flavour, form, Builder::new(), script)
}

/// The same with the content of `files` besides.
pub fn boot_files_with(
    flavour: Flavour,
    form: Form,
    files: Builder,
    script: &str,
) -> Option<BootFiles> {
    let kernel = kernel(flavour, form)?;
    let initrd = initramfs(flavour.is_32bit(), files, script)?;
    Some(BootFiles::from_bytes(kernel, Some(initrd)).expect("a stock kernel is one"))
}

/// The kernel and the drivers of the image `tiny`, with an `/init` that loads the modules `modules`
/// and runs the shell commands `script` after printing `GUEST-UP`; then it powers off. `None` where
/// the image is not to be had, after saying so.
pub fn tiny_boot_files(modules: &[&str], script: &str) -> Option<BootFiles> {
    let image = obtained("image tiny", |store| store.find_or_build(&Recipe::Tiny, &Silent))?;
    let (kernel, initrd) = image.files().kernel_and_initrd().expect("tiny has no disk");
    let kernel = boot::vmlinux::extract(read(kernel), "tiny").expect("a bzImage");
    let load: String = modules.iter().map(|module| format!("modprobe {module}\n")).collect();
    let init = workload::init(&format!("{load}{script}"));
    let archive = Builder::new().file("/init", 0o755, init).finish(Compression::None);
    // The kernel unpacks one archive after the other; the last file of a name stays.
    let mut initrd = read(initrd);
    initrd.resize(initrd.len().next_multiple_of(4), 0);
    initrd.extend(archive.expect("fixed paths"));
    Some(BootFiles::from_bytes(kernel, Some(initrd)).expect("a stock kernel is one"))
}

/// The Xen hypervisor with a stock kernel in this form as its first domain, which has the command
/// line `cmdline` and the initramfs of [`boot_files`]. `None` where they are not to be had, after
/// saying so.
pub fn xen_boot_files(
    flavour: Flavour,
    form: Form,
    cmdline: &str,
    script: &str,
) -> Option<BootFiles> {
    let xen = fetched("the Xen hypervisor", |store| kernels::xen(store, &Silent))?;
    let kernel = kernel(flavour, form)?;
    let initrd = initramfs(flavour.is_32bit(), Builder::new(), script)?;
    let files = BootFiles::from_bytes(xen, None)
        .and_then(|files| files.with_module_bytes(kernel, "vmlinuz", cmdline))
        .and_then(|files| files.with_module_bytes(initrd, "initrd", ""));
    Some(files.expect("a multiboot kernel"))
}

fn kernel(flavour: Flavour, form: Form) -> Option<Vec<u8>> {
    let packed = fetched(flavour.package(), |store| kernels::fetch(flavour, store, &Silent))?;
    Some(match form {
        Form::BzImage => packed,
        Form::Pvh => boot::vmlinux::extract(packed, flavour.package()).expect("a bzImage"),
    })
}

fn initramfs(is_32bit: bool, files: Builder, script: &str) -> Option<Vec<u8>> {
    let busybox = match is_32bit {
        true => busybox_32bit()?,
        false => fetched("busybox", |store| kernels::busybox(store, &Silent))?,
    };
    let archive = files.busybox(&busybox).file("/init", 0o755, workload::init(script));
    // Uncompressed: unpacking is not what is tested.
    Some(archive.finish(Compression::None).expect("fixed paths"))
}

/// A busybox of 32-bit code. `None` where it is not to be had, after saying so.
pub fn busybox_32bit() -> Option<Vec<u8>> {
    fetched("busybox of 32-bit code", |store| kernels::busybox_32bit(store, &Silent))
}

/// The content of a file of the store, downloaded when it is missing.
fn fetched(
    what: &str,
    fetch: impl FnOnce(&Store) -> images::Result<std::path::PathBuf>,
) -> Option<Vec<u8>> {
    obtained(what, fetch).map(|path| read(&path))
}

/// Something out of the store, which is fetched or built when it is missing.
fn obtained<T>(what: &str, obtain: impl FnOnce(&Store) -> images::Result<T>) -> Option<T> {
    let _one = FETCHING.lock().unwrap_or_else(PoisonError::into_inner);
    match Store::open_default().and_then(|store| obtain(&store)) {
        Ok(obtained) => Some(obtained),
        Err(error) => {
            skipped(&format!("{what} is not to be had: {error}"));
            None
        }
    }
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Says on standard error, past the test harness, that the running test does nothing, and why.
pub fn skipped(reason: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // Nobody to tell when standard error is closed.
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {reason}");
}
