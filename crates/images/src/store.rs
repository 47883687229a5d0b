//! The folder that holds images.
//!
//! Every image is a folder named after it; whatever else the store keeps
//! (locks, unfinished builds, package lists, the kernels of [`crate::kernels`])
//! bears a name that begins with a dot, which no image can.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::manifest::{Content, Manifest, Part};
use crate::staging::{Lock, Staging};
use crate::{Debian, DiskFormat, Error, ImageName, Progress, Result, debian, tiny};

/// The disk of an image that was put into a store.
const DISK: &str = "disk.img";

/// How an image is made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Recipe {
    /// The host's newest stock Debian cloud kernel and an initramfs with a
    /// static busybox, the virtio modules, and a shell on the console.
    Tiny,
    /// A Debian with systemd and ssh on a disk.
    Debian(Debian),
}

impl Recipe {
    /// The recipe's name, which is also that of the image it makes.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Debian(_) => "debian",
        }
    }

    /// The recipe of this name, with what it does when the user says nothing.
    ///
    /// # Errors
    /// [`Error::UnknownRecipe`].
    pub fn from_name(name: &str) -> Result<Self> {
        [Self::Tiny, Self::Debian(Debian::default())]
            .into_iter()
            .find(|recipe| recipe.name() == name)
            .ok_or_else(|| Error::UnknownRecipe { name: name.to_owned() })
    }
}

/// What `ringfence image ls` shows of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageInfo {
    /// The image's name.
    pub name: ImageName,
    /// What kind of image it is: the name of its recipe.
    pub kind: String,
    /// The kernel's release, as `uname -r` gives it.
    pub kernel_version: String,
    /// The bytes that its files take on the host.
    pub size: u64,
    /// When the image was built, in seconds since 1970 (UTC).
    pub created: u64,
    /// The image's folder.
    pub path: PathBuf,
}

impl ImageInfo {
    /// When the image was built.
    pub fn created_at(&self) -> SystemTime {
        // A time too far ahead to be represented says nothing anyway.
        SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(self.created))
            .unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

/// An image that can be booted.
#[derive(Debug, Clone)]
pub struct Image {
    info: ImageInfo,
    manifest: Manifest,
    files: ImageFiles,
}

/// What of an image is booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageFiles {
    /// A kernel with an initramfs.
    Kernel {
        /// The kernel, a bzImage.
        kernel: PathBuf,
        /// The initramfs.
        initrd: PathBuf,
    },
    /// A disk that has all that is needed. It is the base of what VMs write, and is never written.
    Disk {
        /// The disk image.
        path: PathBuf,
        /// Its format.
        format: DiskFormat,
    },
}

impl Image {
    /// Name, size and the like.
    pub fn info(&self) -> &ImageInfo {
        &self.info
    }

    /// What is booted.
    pub fn files(&self) -> &ImageFiles {
        &self.files
    }

    /// The command line to boot with when the user gives none; empty for what the boot configuration
    /// on a disk says.
    pub fn cmdline(&self) -> &str {
        &self.manifest.cmdline
    }

    /// The packages that the image was made from: (name, version).
    pub fn packages(&self) -> impl Iterator<Item = (&str, &str)> {
        self.manifest.packages.iter().map(|(name, version)| (name.as_str(), version.as_str()))
    }

    /// Reads the files and compares their checksums.
    ///
    /// # Errors
    /// [`Error::Damaged`] naming the file.
    pub fn verify(&self) -> Result<()> {
        let mut parts = self.manifest.content.parts().into_iter();
        parts.try_for_each(|part| part.verify(&self.info.path))
    }

    fn open(folder: &Path) -> Result<Self> {
        let manifest = Manifest::read(folder)?;
        let files = match &manifest.content {
            Content::Kernel { kernel, initrd } => ImageFiles::Kernel {
                kernel: kernel.locate(folder)?,
                initrd: initrd.locate(folder)?,
            },
            Content::Disk { disk, disk_format } => {
                ImageFiles::Disk { path: disk.locate(folder)?, format: *disk_format }
            }
        };
        let info = ImageInfo {
            name: manifest.name.clone(),
            kind: manifest.kind.clone(),
            kernel_version: manifest.kernel_version.clone(),
            size: size_of(&files)?,
            created: manifest.created,
            path: folder.to_owned(),
        };
        Ok(Self { info, manifest, files })
    }
}

impl ImageFiles {
    /// Kernel and initramfs of an image that has no disk.
    pub fn kernel_and_initrd(&self) -> Option<(&Path, &Path)> {
        match self {
            Self::Kernel { kernel, initrd } => Some((kernel, initrd)),
            Self::Disk { .. } => None,
        }
    }
}

/// What is in a store.
#[derive(Debug, Default)]
pub struct Listing {
    /// The usable images, sorted by name.
    pub images: Vec<ImageInfo>,
    /// For each image that is not usable, why; sorted by name.
    pub damaged: Vec<Error>,
}

/// A folder of images.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The user's store: `$RINGFENCE_IMAGES`, or `ringfence/images` below
    /// `$XDG_CACHE_HOME`, or below `$HOME/.cache`. It is created if missing.
    ///
    /// # Errors
    /// [`Error::NoHome`], [`Error::StoreNotWritable`].
    pub fn open_default() -> Result<Self> {
        Self::at(default_root(|name| env::var_os(name))?)
    }

    /// The store in the folder `root`, which is created if missing.
    ///
    /// # Errors
    /// [`Error::StoreNotWritable`].
    pub fn at(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        // Programs of the host are run in other folders.
        let root = std::path::absolute(&root).map_err(Error::io("find", &root))?;
        fs::create_dir_all(&root)
            .map_err(|source| Error::StoreNotWritable { path: root.clone(), source })?;
        Ok(Self { root })
    }

    /// The store's folder.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Every image.
    ///
    /// # Errors
    /// [`Error::Io`] when the store cannot be read. A damaged image is no
    /// error, but is listed as such.
    pub fn list(&self) -> Result<Listing> {
        let read = Error::io("read", &self.root);
        let entries: Vec<_> =
            fs::read_dir(&self.root).and_then(|entries| entries.collect()).map_err(read)?;
        let mut names: Vec<ImageName> = entries
            .into_iter()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        names.sort();
        let mut listing = Listing::default();
        for name in names {
            match Image::open(&self.folder(&name)) {
                Ok(image) => listing.images.push(image.info),
                Err(error) => listing.damaged.push(error),
            }
        }
        Ok(listing)
    }

    /// The image `name`. Its files are there with the recorded sizes;
    /// [`Image::verify`] checks their content too.
    ///
    /// # Errors
    /// [`Error::InvalidName`], [`Error::NotFound`], [`Error::Damaged`].
    pub fn find(&self, name: &str) -> Result<Image> {
        let folder = self.folder(&name.parse()?);
        if !exists(&folder)? {
            return Err(self.not_found(name));
        }
        Image::open(&folder)
    }

    /// Removes the image `name`, damaged or not. A VM that runs from it keeps
    /// its open files.
    ///
    /// # Errors
    /// [`Error::InvalidName`], [`Error::NotFound`], [`Error::Busy`] while it is
    /// being built, [`Error::Io`].
    pub fn remove(&self, name: &str) -> Result<()> {
        let name: ImageName = name.parse()?;
        let folder = self.folder(&name);
        if !exists(&folder)? {
            return Err(self.not_found(name.as_str()));
        }
        let key = image_key(name.as_str());
        let Some(lock) = Lock::try_acquire(&self.root, &key)? else {
            return Err(Error::Busy { name: name.into() });
        };
        Staging::new(&self.root, &key, lock)?.retire(&folder)
    }

    /// Builds the image of `recipe` anew, replacing an older one when it is
    /// done. When another process is just building it, waits for that and takes
    /// its result.
    ///
    /// # Errors
    /// [`Error::Program`], [`Error::Command`], [`Error::NoPackage`] and the
    /// like, when the packages cannot be had; [`Error::Io`]. The older image
    /// stays as it is then.
    pub fn build(&self, recipe: &Recipe, progress: &dyn Progress) -> Result<Image> {
        self.build_unless(recipe, progress, |lock| lock.waited)
    }

    /// Puts a disk into the store as the image `name`, in the place of one of that name; `fill` writes
    /// its content to the empty file that it is given.
    ///
    /// # Errors
    /// [`Error::InvalidName`], [`Error::Io`] and the like, and what `fill` returns; an older image
    /// stays as it is then.
    pub fn add_disk<E: From<Error>>(
        &self,
        name: &str,
        progress: &dyn Progress,
        fill: impl FnOnce(&fs::File) -> std::result::Result<(), E>,
    ) -> std::result::Result<Image, E> {
        let name: ImageName = name.parse()?;
        let key = image_key(name.as_str());
        let lock = Lock::acquire(&self.root, &key, &format!("making the image {name}"), progress)?;
        let staging = Staging::new(&self.root, &key, lock)?;
        let path = staging.path().join(DISK);
        let file = fs::File::create_new(&path).map_err(Error::io("create", &path))?;
        fill(&file)?;
        progress.step("Computing the checksum");
        let disk = Part::of(staging.path(), DISK)?;
        let content = Content::Disk { disk, disk_format: DiskFormat::Raw };
        let mut manifest = Manifest::new(name.clone(), "imported", content);
        manifest.created = now();
        manifest.write(staging.path())?;
        let folder = self.folder(&name);
        staging.publish(&folder)?;
        Ok(Image::open(&folder)?)
    }

    /// The image of `recipe`, built first if it is missing.
    ///
    /// # Errors
    /// As [`find`](Self::find) and [`build`](Self::build).
    pub fn find_or_build(&self, recipe: &Recipe, progress: &dyn Progress) -> Result<Image> {
        match self.find(recipe.name()) {
            Err(Error::NotFound { .. }) => self.build_unless(recipe, progress, |_| true),
            found => found,
        }
    }

    /// Builds under the image's lock, unless there is an image by then that
    /// `may_reuse` allows to take.
    fn build_unless(
        &self,
        recipe: &Recipe,
        progress: &dyn Progress,
        may_reuse: impl FnOnce(&Lock) -> bool,
    ) -> Result<Image> {
        let name: ImageName = recipe.name().parse()?;
        let key = image_key(name.as_str());
        let doing = format!("building the image {name}");
        let lock = Lock::acquire(&self.root, &key, &doing, progress)?;
        if may_reuse(&lock)
            && let Ok(image) = self.find(name.as_str())
        {
            return Ok(image);
        }
        let staging = Staging::new(&self.root, &key, lock)?;
        match recipe {
            Recipe::Tiny => tiny::build(&self.root, staging.path(), name.clone(), progress)?,
            Recipe::Debian(options) => {
                debian::build(&self.root, staging.path(), name.clone(), options, progress)?;
            }
        }
        let folder = self.folder(&name);
        staging.publish(&folder)?;
        Image::open(&folder)
    }

    fn folder(&self, name: &ImageName) -> PathBuf {
        self.root.join(name.as_str())
    }

    fn not_found(&self, name: &str) -> Error {
        Error::NotFound { name: name.to_owned(), store: self.root.clone() }
    }
}

/// The bytes that files take on the host: a disk has holes.
fn size_of(files: &ImageFiles) -> Result<u64> {
    let metadata = |path: &Path| fs::metadata(path).map_err(Error::io("read", path));
    Ok(match files {
        ImageFiles::Kernel { kernel, initrd } => {
            metadata(kernel)?.len().saturating_add(metadata(initrd)?.len())
        }
        ImageFiles::Disk { path, .. } => metadata(path)?.blocks().saturating_mul(512),
    })
}

/// The key of an image's lock and of its unfinished folder.
fn image_key(name: &str) -> String {
    format!("image-{name}")
}

/// Whether something is at `path`; a path that cannot be looked at is an error.
fn exists(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// Where the user's images are, given the environment. As the XDG Base
/// Directory Specification says, a relative `XDG_CACHE_HOME` is ignored.
fn default_root(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    let folder = |name: &str| variable(name).filter(|text| !text.is_empty()).map(PathBuf::from);
    let absolute = |name: &str| folder(name).filter(|path| path.is_absolute());
    if let Some(root) = folder("RINGFENCE_IMAGES") {
        return Ok(root);
    }
    let cache = absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .ok_or(Error::NoHome)?;
    Ok(cache.join("ringfence").join("images"))
}

/// Seconds since 1970; 0 for a clock before that.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Silent;

    fn kernel_of(image: &Image) -> &Path {
        image.files().kernel_and_initrd().expect("no disk").0
    }

    /// A store with an image `name` of a few bytes.
    fn store_with(names: &[&str]) -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().expect("tempdir");
        let store = Store::at(folder.path().join("images")).expect("store");
        for name in names {
            let place = store.root.join(name);
            fs::create_dir(&place).expect("folder");
            let kernel = Part::write(&place, "vmlinuz", b"kernel").expect("kernel");
            let initrd = Part::write(&place, "initrd.img", b"initrd").expect("initrd");
            let mut manifest = Manifest::new(
                name.parse().expect("name"),
                "tiny",
                Content::Kernel { kernel, initrd },
            );
            manifest.cmdline = "console=ttyS0".to_owned();
            manifest.created = 1_000_000_000;
            manifest.write(&place).expect("manifest");
        }
        (folder, store)
    }

    fn root(variables: &[(&str, &str)]) -> Result<PathBuf> {
        default_root(|name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into())
        })
    }

    #[test]
    fn the_environment_chooses_the_folder() {
        let path = |variables: &[(&str, &str)]| root(variables).expect("a folder");
        let home = ("HOME", "/home/u");
        assert_eq!(path(&[home]), Path::new("/home/u/.cache/ringfence/images"));
        assert_eq!(path(&[home, ("XDG_CACHE_HOME", "/c")]), Path::new("/c/ringfence/images"));
        assert_eq!(
            path(&[home, ("XDG_CACHE_HOME", "relative")]),
            Path::new("/home/u/.cache/ringfence/images")
        );
        assert_eq!(path(&[home, ("RINGFENCE_IMAGES", "/i")]), Path::new("/i"));
        assert_eq!(path(&[("RINGFENCE_IMAGES", ""), home]), path(&[home]));
    }

    #[test]
    fn without_a_home_the_way_out_is_named() {
        for variables in [&[][..], &[("HOME", "")], &[("HOME", "relative")]] {
            let text = root(variables).expect_err("no home").to_string();
            assert!(text.contains("HOME") && text.contains("RINGFENCE_IMAGES"), "{text}");
        }
    }

    #[test]
    fn a_store_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().expect("tempdir");
        let file = folder.path().join("file");
        fs::write(&file, "").expect("write");
        let text = Store::at(file.join("images")).expect_err("below a file").to_string();
        assert!(text.contains("file/images") && text.contains("RINGFENCE_IMAGES"), "{text}");
    }

    #[test]
    fn images_are_found_listed_and_removed() {
        let (_folder, store) = store_with(&["tiny", "other"]);
        let names: Vec<String> =
            store.list().expect("list").images.into_iter().map(|info| info.name.into()).collect();
        assert_eq!(names, ["other", "tiny"]);
        let image = store.find("tiny").expect("image");
        assert_eq!(image.cmdline(), "console=ttyS0");
        assert_eq!(image.info().size, 12);
        assert_eq!(fs::read(kernel_of(&image)).expect("kernel"), b"kernel");
        image.verify().expect("checksums");
        store.remove("tiny").expect("remove");
        assert!(matches!(store.find("tiny"), Err(Error::NotFound { .. })));
        assert!(matches!(store.remove("tiny"), Err(Error::NotFound { .. })));
        assert_eq!(store.list().expect("list").images.len(), 1);
    }

    #[test]
    fn an_unfinished_build_is_no_image() {
        let (_folder, store) = store_with(&["tiny"]);
        // What a build that was killed just before the end leaves behind.
        let left = store.root.join(".build").join(image_key("next"));
        fs::create_dir_all(&left).expect("leftover");
        for file in ["image.json", "initrd.img", "vmlinuz"] {
            fs::copy(store.root.join("tiny").join(file), left.join(file)).expect("copy");
        }
        assert_eq!(store.list().expect("list").images.len(), 1);
        assert!(matches!(store.find("next"), Err(Error::NotFound { .. })));
        assert!(matches!(store.find(".build"), Err(Error::InvalidName { .. })));
    }

    #[test]
    fn a_damaged_image_is_listed_apart_and_can_be_removed() {
        let (_folder, store) = store_with(&["bad", "good"]);
        fs::write(store.root.join("bad/image.json"), "{").expect("damage");
        let listing = store.list().expect("list");
        assert_eq!(listing.images.len(), 1);
        assert_eq!(listing.damaged.len(), 1);
        let text = store.find("bad").expect_err("damaged").to_string();
        assert!(text.contains("bad/image.json"), "{text}");
        store.remove("bad").expect("remove");
        assert!(store.list().expect("list").damaged.is_empty());
    }

    #[test]
    fn an_existing_image_is_not_built_again() {
        let (_folder, store) = store_with(&["tiny"]);
        let image = store.find_or_build(&Recipe::Tiny, &Silent).expect("image");
        assert_eq!(image.info().created, 1_000_000_000);
    }

    #[test]
    fn what_another_process_builds_is_used() {
        let (_folder, store) = store_with(&[]);
        let (_other_folder, other) = store_with(&["tiny"]);
        let lock = Lock::acquire(&store.root, &image_key("tiny"), "", &Silent).expect("lock");
        assert!(matches!(store.remove("tiny"), Err(Error::NotFound { .. })));
        struct Waiting(std::sync::mpsc::Sender<()>);
        impl Progress for Waiting {
            fn step(&self, name: &str) {
                panic!("it builds: {name}");
            }
            fn bytes(&self, _done: u64, _total: Option<u64>) {}
            fn message(&self, _text: &str) {
                self.0.send(()).expect("receiver lives");
            }
        }
        let (sender, waiting) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| store.build(&Recipe::Tiny, &Waiting(sender)));
            waiting.recv().expect("the second waits");
            fs::rename(other.root.join("tiny"), store.root.join("tiny")).expect("finish");
            assert!(matches!(store.remove("tiny"), Err(Error::Busy { .. })));
            drop(lock);
            let image = second.join().expect("no panic").expect("image");
            assert_eq!(image.info().created, 1_000_000_000);
        });
    }

    #[test]
    fn an_image_can_be_a_disk() {
        let (_folder, store) = store_with(&["tiny"]);
        let place = store.root.join("system");
        fs::create_dir(&place).expect("folder");
        let file = fs::File::create(place.join("disk.img")).expect("disk");
        file.set_len(1 << 30).expect("size");
        let disk = Part::of(&place, "disk.img").expect("disk");
        let content = Content::Disk { disk, disk_format: DiskFormat::Raw };
        let name = "system".parse().expect("name");
        Manifest::new(name, "debian", content).write(&place).expect("manifest");
        let image = store.find("system").expect("image");
        image.verify().expect("checksum");
        // Holes take no space.
        assert!(image.info().size < 1 << 20, "{}", image.info().size);
        let path = place.join("disk.img");
        assert_eq!(image.files(), &ImageFiles::Disk { path, format: DiskFormat::Raw });
    }

    #[test]
    fn a_disk_is_put_into_the_store() {
        let (_folder, store) = store_with(&["tiny"]);
        let fill = |file: &fs::File| {
            io::Write::write_all(&mut &*file, b"disk").map_err(Error::io("write", "x".as_ref()))
        };
        let image = store.add_disk("mine", &Silent, fill).expect("added");
        assert_eq!((image.info().kind.as_str(), image.cmdline()), ("imported", ""));
        image.verify().expect("checksum");
        let failed = store.add_disk("mine", &Silent, |_| Err(Error::NoHome));
        assert!(matches!(failed, Err(Error::NoHome)));
        store.find("mine").expect("the old one stays").verify().expect("checksum");
        assert!(store.add_disk("..", &Silent, |_| Ok::<_, Error>(())).is_err());
    }

    #[test]
    fn what_a_vm_writes_outlives_the_image() {
        let (folder, store) = store_with(&["tiny"]);
        let build = |content: &str| {
            let place = store.root.join("system");
            let _ = fs::remove_dir_all(&place);
            fs::create_dir(&place).expect("folder");
            fs::write(place.join("disk.img"), content).expect("disk");
            let disk = Part::of(&place, "disk.img").expect("disk");
            let content = Content::Disk { disk, disk_format: DiskFormat::Raw };
            let name = "system".parse().expect("name");
            Manifest::new(name, "debian", content).write(&place).expect("manifest");
            store.find("system").expect("image")
        };
        let root = folder.path().join("disks");
        let kept = |image: &Image| {
            crate::KeptDisk::of(&root, "vm", image).expect("folder").expect("it has a disk")
        };
        let first = kept(&build("one"));
        assert!(!first.is_older);
        let second = kept(&build("another"));
        assert!(second.is_older);
        assert_eq!(fs::read(&second.base).expect("base"), b"one");
        assert_eq!(second.overlay, first.overlay);
        let tiny = store.find("tiny").expect("image");
        assert_eq!(crate::KeptDisk::of(&root, "vm", &tiny).expect("fine"), None);
    }

    #[test]
    fn recipes_are_found_by_name() {
        assert_eq!(Recipe::from_name("tiny").expect("recipe"), Recipe::Tiny);
        let text = Recipe::from_name("huge").expect_err("unknown").to_string();
        assert!(text.contains("huge") && text.contains("tiny"), "{text}");
    }
}
