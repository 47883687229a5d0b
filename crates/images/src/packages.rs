//! Debian packages from the host's package sources, without root.
//!
//! apt is run with the host's sources, keys, preferences and proxies, but with
//! a state of its own below the store: package lists, caches, locks and the
//! (empty) list of installed packages. So an ordinary user can fetch packages,
//! also where the system has never run `apt-get update`, and nothing of the
//! system's changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::control::{self, Control};
use crate::host::{self, Finished, last_lines};
use crate::staging::Lock;
use crate::{Error, Progress, Result};

/// apt's private state in a store.
const FOLDER: &str = ".packages";

/// The same for packages of 32-bit PCs.
const FOLDER_I386: &str = ".packages-i386";

/// Lists younger than this are not fetched again, so that a test run that
/// wants several kernels fetches them once.
const FRESH: Duration = Duration::from_secs(60 * 60);

const OFFLINE: &str = "check the network and the sources in /etc/apt, and try again";

/// Which architecture packages are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Architecture {
    /// The host's.
    Host,
    /// 32-bit PCs; the host need not know of it.
    I386,
}

/// A package that was downloaded.
#[derive(Debug)]
pub(crate) struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The `.deb` file.
    pub path: PathBuf,
}

/// A Debian package source of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// Where the archive is.
    pub uri: String,
    /// A release in it, such as `bookworm-updates`.
    pub release: String,
    /// A part of that, such as `main`.
    pub component: String,
}

/// Access to the package sources, for one process at a time.
pub(crate) struct Packages<'a> {
    folder: PathBuf,
    config: PathBuf,
    progress: &'a dyn Progress,
    /// What the last fetch of the lists complained about.
    complaints: String,
    _lock: Lock,
}

impl<'a> Packages<'a> {
    /// Opens the package sources with up-to-date lists, kept in `store`.
    ///
    /// # Errors
    /// [`Error::Program`] without apt, [`Error::Command`] when the lists cannot
    /// be fetched, [`Error::StoreNotWritable`].
    pub(crate) fn open(store: &Path, progress: &'a dyn Progress) -> Result<Self> {
        Self::open_for(Architecture::Host, store, progress)
    }

    /// The same for packages of another architecture.
    ///
    /// # Errors
    /// As [`Packages::open`].
    pub(crate) fn open_for(
        architecture: Architecture,
        store: &Path,
        progress: &'a dyn Progress,
    ) -> Result<Self> {
        let lock = Lock::acquire(store, "packages", "downloading packages", progress)?;
        let folder = store.join(match architecture {
            Architecture::Host => FOLDER,
            Architecture::I386 => FOLDER_I386,
        });
        for part in ["lists/partial", "cache/archives/partial", "log"] {
            let path = folder.join(part);
            fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
        }
        let config = folder.join("apt.conf");
        let write =
            |path: &Path, text: &str| fs::write(path, text).map_err(Error::io("write", path));
        write(&folder.join("status"), "")?;
        write(&config, &configuration(&folder, architecture)?)?;
        let mut packages =
            Self { folder, config, progress, complaints: String::new(), _lock: lock };
        if !packages.is_fresh() {
            packages.update()?;
        }
        Ok(packages)
    }

    /// What the sources say about the newest version of `package`.
    ///
    /// # Errors
    /// [`Error::NoPackageSources`], or [`Error::NoPackage`] when there is none.
    pub(crate) fn show(&self, package: &str) -> Result<Control> {
        let mut command = self.command("apt-cache");
        command.args(["show", "--no-all-versions", package]);
        let finished = self.run(&mut command, &mut || {})?;
        let found = control::parse(&finished.stdout);
        if let Some(control) = found.into_iter().find(|control| control.package == package) {
            return Ok(control);
        }
        // An update that could not reach a source has said why.
        if self.complaints.is_empty() && !self.has_sources()? {
            return Err(Error::NoPackageSources);
        }
        let said = if self.complaints.is_empty() { &finished.stderr } else { &self.complaints };
        let detail = format!("{}; {OFFLINE}", last_lines(said));
        Err(Error::NoPackage { package: package.to_owned(), detail })
    }

    /// The first dependency of `package` whose name begins with `prefix`.
    ///
    /// # Errors
    /// As [`show`](Self::show); [`Error::NoPackage`] without such a dependency.
    pub(crate) fn dependency(&self, package: &str, prefix: &str) -> Result<Control> {
        let depends = self.show(package)?.depends;
        match depends.iter().find(|name| name.starts_with(prefix)) {
            Some(name) => self.show(name),
            None => Err(Error::NoPackage {
                package: format!("{prefix}*"),
                detail: format!("{package} depends on no such package; use Debian's sources"),
            }),
        }
    }

    /// Downloads packages into `folder`. apt checks their signatures.
    ///
    /// # Errors
    /// [`Error::Command`] with apt's reason.
    pub(crate) fn download(&self, wanted: &[Control], folder: &Path) -> Result<Vec<Package>> {
        self.progress.step("Downloading packages");
        let total = wanted.iter().map(|control| control.size).sum();
        let mut command = self.command("apt-get");
        command.args(["--quiet", "download"]).current_dir(folder);
        for control in wanted {
            command.arg(format!("{}={}", control.package, control.version));
        }
        let progress = self.progress;
        let mut tick = || progress.bytes(size_of_files(folder).min(total), Some(total));
        let finished = self.run(&mut command, &mut tick)?;
        if !finished.success {
            // The lists may name what the sources no longer hold: fetch them
            // again the next time.
            let _ = fs::remove_file(self.stamp());
            return Err(finished.error(OFFLINE));
        }
        wanted.iter().map(|control| locate(control, folder)).collect()
    }

    /// The host's package sources that are Debian's, by what their release files say.
    ///
    /// # Errors
    /// [`Error::NoPackageSources`], [`Error::Command`].
    pub(crate) fn debian_sources(&self) -> Result<Vec<Source>> {
        let mut command = self.command("apt-get");
        let format = "$(ORIGIN)\t$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)";
        command.args(["indextargets", "--format", format, "Created-By: Packages"]);
        let finished = self.run(&mut command, &mut || {})?.ok_or(OFFLINE)?;
        let sources: Vec<Source> = finished.stdout.lines().filter_map(debian_source).collect();
        if sources.is_empty() { Err(Error::NoPackageSources) } else { Ok(sources) }
    }

    /// The lines of the host's apt configuration whose names begin with one of `prefixes`.
    ///
    /// # Errors
    /// [`Error::Program`], [`Error::Command`].
    pub(crate) fn options(&self, prefixes: &[&str]) -> Result<Vec<String>> {
        let mut command = self.command("apt-config");
        command.arg("dump");
        let finished = self.run(&mut command, &mut || {})?.ok_or(OFFLINE)?;
        let is_wanted = |line: &&str| prefixes.iter().any(|prefix| line.starts_with(prefix));
        Ok(finished.stdout.lines().filter(is_wanted).map(str::to_owned).collect())
    }

    fn update(&mut self) -> Result<()> {
        self.progress.step("Fetching package lists");
        let mut command = self.command("apt-get");
        command.args(["--quiet", "update"]);
        let lists = self.folder.join("lists");
        let progress = self.progress;
        let mut most = 0;
        let mut tick = || {
            // Files shrink when apt packs what it has fetched.
            most = most.max(size_of_files(&lists) + size_of_files(&lists.join("partial")));
            progress.bytes(most, None);
        };
        let finished = self.run(&mut command, &mut tick)?.ok_or(OFFLINE)?;
        // A source that cannot be reached is only a warning to apt: the others
        // may have what is needed, and the lists are not taken for fresh.
        if finished.stderr.contains("Failed to fetch") {
            self.complaints = finished.stderr;
        } else {
            let stamp = self.stamp();
            fs::write(&stamp, "").map_err(Error::io("write", &stamp))?;
        }
        Ok(())
    }

    fn stamp(&self) -> PathBuf {
        self.folder.join("updated")
    }

    fn is_fresh(&self) -> bool {
        let age = |time: SystemTime| SystemTime::now().duration_since(time).ok();
        let modified = fs::metadata(self.stamp()).and_then(|metadata| metadata.modified());
        modified.ok().and_then(age).is_some_and(|age| age < FRESH)
    }

    /// Whether the host has any package source.
    fn has_sources(&self) -> Result<bool> {
        let mut command = self.command("apt-get");
        command.args(["indextargets", "--format", "$(SITE)"]);
        let finished = self.run(&mut command, &mut || {})?.ok_or(OFFLINE)?;
        Ok(!finished.stdout.trim().is_empty())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("--config-file").arg(&self.config);
        command
    }

    fn run(&self, command: &mut Command, tick: &mut dyn FnMut()) -> Result<Finished> {
        host::run(command, &self.folder, tick)
    }
}

fn debian_source(line: &str) -> Option<Source> {
    let mut fields = line.split('\t');
    let (origin, mut field) = (fields.next()?, || fields.next().map(str::to_owned));
    let source = Source { uri: field()?, release: field()?, component: field()? };
    // Words of a line of sources.list.
    let is_word = |text: &String| !text.is_empty() && !text.contains(char::is_whitespace);
    let words = [&source.uri, &source.release, &source.component];
    (origin == "Debian" && words.into_iter().all(is_word)).then_some(source)
}

/// The configuration that comes after the host's own and overrides it.
fn configuration(folder: &Path, architecture: Architecture) -> Result<String> {
    let unusable = |reason: &str| Error::StoreNotWritable {
        path: folder.to_owned(),
        source: std::io::Error::new(std::io::ErrorKind::InvalidInput, reason),
    };
    let folder = std::path::absolute(folder).map_err(Error::io("find", folder))?;
    let path = folder.to_str().ok_or_else(|| unusable("its path is not UTF-8"))?;
    // apt's configuration language cannot quote these.
    if path.contains(['"', '\n', '\\']) {
        return Err(unusable("apt cannot use a path with quotes, backslashes or line breaks"));
    }
    let architecture = match architecture {
        Architecture::Host => "",
        Architecture::I386 => {
            "APT::Architecture \"i386\";\n#clear APT::Architectures;\n\
             APT::Architectures { \"i386\"; };\n"
        }
    };
    Ok(format!(
        r#"// Written anew for each run.
{architecture}Dir::State "{path}";
Dir::State::lists "{path}/lists";
Dir::State::status "{path}/status";
Dir::Cache "{path}/cache";
Dir::Log "{path}/log";
// As root, apt would drop to a user who may not write here.
APT::Sandbox::User "root";
// Hooks of the host's programs are for the host's packages.
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
// Names and versions suffice.
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::GzipIndexes "true";
Acquire::PDiffs "false";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
"#
    ))
}

/// apt-get names a file `PACKAGE_VERSION_ARCHITECTURE.deb`, with the version's
/// colon escaped.
fn locate(control: &Control, folder: &Path) -> Result<Package> {
    let prefix = format!("{}_", control.package);
    let entries = fs::read_dir(folder).map_err(Error::io("read", folder))?;
    let found = entries.filter_map(|entry| Some(entry.ok()?.path())).find(|path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(&prefix) && name.ends_with(".deb")
    });
    match found {
        Some(path) => {
            Ok(Package { name: control.package.clone(), version: control.version.clone(), path })
        }
        None => Err(Error::Package {
            path: folder.join(format!("{prefix}*.deb")),
            reason: "apt-get download reported success but left no such file".to_owned(),
        }),
    }
}

/// The bytes in a folder's own files. Files may come and go meanwhile.
fn size_of_files(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .filter_map(|entry| entry.ok()?.metadata().ok())
        .filter(fs::Metadata::is_file)
        .map(|metadata| metadata.len())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_keeps_apt_out_of_the_system() {
        let text = configuration(Path::new("/store/.packages"), Architecture::Host)
            .expect("configuration");
        for line in [
            "Dir::State \"/store/.packages\";",
            "Dir::Cache \"/store/.packages/cache\";",
            "Dir::State::status \"/store/.packages/status\";",
            "APT::Sandbox::User \"root\";",
            "#clear APT::Update::Post-Invoke;",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}");
        }
        assert!(!text.contains("Dir::Etc"));
    }

    #[test]
    fn paths_that_apt_cannot_quote_are_refused() {
        for path in ["/a\"b", "/a\nb", "/a\\b"] {
            let error = configuration(Path::new(path), Architecture::Host).expect_err(path);
            assert!(error.to_string().contains("apt cannot use"), "{error}");
        }
    }

    #[test]
    fn only_sources_of_debian_count() {
        let line = "Debian\thttp://a/debian/\tbookworm\tmain";
        let source = debian_source(line).expect("a source");
        assert_eq!((source.release.as_str(), source.component.as_str()), ("bookworm", "main"));
        for line in ["Other\thttp://a/\tx\tmain", "Debian\thttp://a/", "Debian\ta b\tc\td"] {
            assert_eq!(debian_source(line), None, "{line}");
        }
    }

    #[test]
    fn a_download_is_found_by_its_package() {
        let folder = tempfile::tempdir().expect("tempdir");
        let file = folder.path().join("busybox-static_1%3a1.35_amd64.deb");
        fs::write(&file, "x").expect("write");
        fs::write(folder.path().join("busybox-static_1.log"), "x").expect("write");
        let control = |package: &str| Control {
            package: package.to_owned(),
            version: "1:1.35".to_owned(),
            size: 1,
            depends: Vec::new(),
        };
        let package = locate(&control("busybox-static"), folder.path()).expect("found");
        assert_eq!(package.path, file);
        assert!(locate(&control("busybox"), folder.path()).is_err());
    }
}
