//! Root file systems of Debian, made by mmdebstrap(1) without root.
//!
//! mmdebstrap installs the packages as the root user of a user namespace, or of a pretended one, and
//! writes a tar archive. mke2fs(8) makes a file system of that, run in the same way, since only there
//! the files have their owners.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::host;
use crate::{Error, Progress, Result};

/// Where programs of the administrator are: not every user's `PATH` has them.
const SBIN: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Makes the file system; see the comment there.
const MAKE_EXT4: &str = include_str!("debian/make-ext4");

/// What is started at boot besides what packages have started themselves.
const SERVICES: &str = "systemd-networkd systemd-resolved take-meta-data";

const WAY_OUT: &str = "the host needs some 2 GB of space in its folder for temporary files \
                       ($TMPDIR), which all users can enter, and its package sources";

/// What mmdebstrap says of a script that failed, after what the script itself said.
const HELPER: [&str; 2] = ["E: system failed", "E: unshared command failed"];

/// How one gets to be root where files are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// This user is.
    Root,
    /// In a user namespace.
    Unshare,
    /// By libraries that make programs believe it.
    Fakechroot,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Unshare => "unshare",
            Self::Fakechroot => "fakechroot",
        }
    }
}

/// What a root file system is made of.
pub(crate) struct RootFs<'a> {
    pub mode: Mode,
    /// The release.
    pub suite: &'a str,
    /// Lines of a `sources.list`.
    pub sources: &'a [String],
    /// Packages besides the essential ones.
    pub packages: &'a [String],
    /// Lines of an `apt.conf`.
    pub apt: &'a [String],
    /// A tar archive of files that are there before those of `packages`.
    pub files: &'a Path,
}

/// What this host and user can.
///
/// # Errors
/// [`Error::Missing`] when a program is not installed.
pub(crate) fn mode() -> Result<Mode> {
    for (program, package) in [("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs")] {
        if !is_installed(program) {
            return Err(Error::Missing { what: program, package });
        }
    }
    if rustix::process::geteuid().is_root() {
        return Ok(Mode::Root);
    }
    if is_installed("newuidmap") && has_subordinate_ids() {
        return Ok(Mode::Unshare);
    }
    if is_installed("fakechroot") && is_installed("fakeroot") {
        return Ok(Mode::Fakechroot);
    }
    Err(Error::Missing {
        what: "newuidmap with a range of user IDs for this user in /etc/subuid, or else fakechroot,",
        package: "uidmap",
    })
}

fn is_installed(program: &str) -> bool {
    let path = search_path();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn search_path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::env::split_paths(&path).chain(SBIN.map(PathBuf::from));
    // Nothing in it has a colon that did not come from one.
    std::env::join_paths(all).unwrap_or(path)
}

/// Whether /etc/subuid has a range for this user, by name or number (subuid(5)).
fn has_subordinate_ids() -> bool {
    let id = rustix::process::getuid().as_raw().to_string();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == id).then_some(name)
    });
    let ranges = fs::read_to_string("/etc/subuid").unwrap_or_default();
    let owners = ranges.lines().filter_map(|line| line.split(':').next()).collect::<Vec<_>>();
    // Other sources of users (nsswitch.conf) may have subordinate IDs of their own.
    name.is_none() || owners.iter().any(|owner| Some(*owner) == name || *owner == id)
}

/// Makes the root file system `root` as a tar archive at `archive`.
///
/// # Errors
/// [`Error::Command`] with mmdebstrap's reason.
pub(crate) fn make(
    root: &RootFs<'_>,
    archive: &Path,
    scratch: &Path,
    progress: &dyn Progress,
) -> Result<()> {
    progress.step("Fetching package lists");
    let mut command = command(root, archive)?;
    let mut log = Log::new(scratch, progress);
    host::run(&mut command, scratch, &mut || log.follow())?.ok_or(WAY_OUT)?;
    Ok(())
}

fn command(root: &RootFs<'_>, archive: &Path) -> Result<Command> {
    // Hooks are words of a shell.
    let files = root.files.to_str().filter(|path| !path.contains('\''));
    let files = files.ok_or_else(|| Error::StoreNotWritable {
        path: root.files.to_owned(),
        source: std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "mmdebstrap cannot use a path with quotes",
        ),
    })?;
    let mut command = Command::new("mmdebstrap");
    command
        .env("PATH", search_path())
        .current_dir("/")
        .args(["--verbose", "--variant=apt", "--format=tar"])
        .arg(format!("--mode={}", root.mode.name()))
        .arg(format!("--include={}", root.packages.join(",")))
        .arg(format!("--essential-hook=tar-in '{files}' /"))
        .arg(format!("--customize-hook=chroot \"$1\" systemctl enable {SERVICES}"))
        .args(root.apt.iter().map(|line| format!("--aptopt={line}")))
        // Lists of packages are in English, and without pictures.
        .args(["--aptopt=Acquire::Languages \"none\";", "--dpkgopt=force-confold"])
        .arg(root.suite)
        .arg(archive)
        .args(root.sources);
    Ok(command)
}

/// Writes an ext4 file system of `size` bytes, with what is in the tar archive `archive`, to the new
/// file `disk`, in a folder that only this user can enter.
///
/// # Errors
/// [`Error::Command`] with the reason of tar or mke2fs.
pub(crate) fn write_ext4(
    mode: Mode,
    archive: &Path,
    disk: &Path,
    size: u64,
    scratch: &Path,
    progress: &dyn Progress,
) -> Result<()> {
    progress.step("Writing the file system");
    let input = File::open(archive).map_err(Error::io("open", archive))?;
    let total = input.metadata().map_err(Error::io("read", archive))?.len();
    let create = || -> std::io::Result<File> {
        let file = File::options().read(true).write(true).create_new(true).open(disk)?;
        file.set_len(size)?;
        // Opened anew by the script, which is another user in a user namespace. For everybody else the
        // folder is in the way.
        file.set_permissions(Permissions::from_mode(0o666))?;
        Ok(file)
    };
    let output = create().map_err(Error::io("create", disk))?;
    let mut command = match mode {
        Mode::Root => Command::new("sh"),
        Mode::Unshare => {
            let mut command = Command::new("mmdebstrap");
            command.args(["--unshare-helper", "sh"]);
            command
        }
        Mode::Fakechroot => {
            let mut command = Command::new("fakeroot");
            command.args(["--", "sh"]);
            command
        }
    };
    command.env("PATH", search_path()).current_dir("/").args(["-c", MAKE_EXT4, "make-ext4"]);
    command.arg((size >> 10).to_string());
    let mut tick = || {
        let written = fs::metadata(disk).map_or(0, |metadata| metadata.blocks() * 512);
        progress.bytes(written.min(total), Some(total));
    };
    let finished = host::run_through(&mut command, input, output, scratch, &mut tick)?;
    finished.named("tar and mke2fs").without(&HELPER).ok_or(WAY_OUT)?;
    fs::set_permissions(disk, Permissions::from_mode(0o644)).map_err(Error::io("change", disk))
}

/// The steps of mmdebstrap, from what it and apt say.
struct Log<'a> {
    path: PathBuf,
    at: u64,
    /// The beginning of a line whose end is not there yet.
    rest: String,
    done: u64,
    total: u64,
    progress: &'a dyn Progress,
}

impl<'a> Log<'a> {
    fn new(scratch: &Path, progress: &'a dyn Progress) -> Self {
        let path = scratch.join(host::STDERR);
        Self { path, at: 0, rest: String::new(), done: 0, total: 0, progress }
    }

    /// Takes what is new. A log that cannot be read only means a bar that stands still.
    fn follow(&mut self) {
        let mut new = Vec::new();
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.at))?;
            file.read_to_end(&mut new)
        });
        let Ok(len) = read else { return };
        self.at += len as u64;
        let text = std::mem::take(&mut self.rest) + &String::from_utf8_lossy(&new);
        let (whole, rest) = text.rsplit_once('\n').unwrap_or(("", &text));
        rest.clone_into(&mut self.rest);
        whole.lines().for_each(|line| self.line(line));
    }

    fn line(&mut self, line: &str) {
        let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| line.starts_with(prefix));
        if let Some(step) = step_of(line) {
            (self.done, self.total) = (0, 0);
            self.progress.step(step);
        } else if let Some(count) = line
            .split_once(" newly installed")
            .and_then(|(before, _)| before.rsplit(' ').next()?.parse::<u64>().ok())
        {
            // Each is fetched, unpacked and set up.
            self.total += 3 * count;
        } else if starts(&["Get:", "Unpacking ", "Setting up "]) {
            self.done += 1;
            if self.total > 0 {
                self.progress.share(self.done.min(self.total), self.total);
            }
        }
    }
}

/// The step that begins with a line of mmdebstrap.
fn step_of(line: &str) -> Option<&'static str> {
    let steps = [
        ("I: downloading packages", "Installing the base system"),
        ("I: installing remaining packages", "Installing packages"),
        ("update-initramfs: Generating", "Making the initramfs"),
        ("I: creating tarball", "Packing the files"),
    ];
    steps.iter().find(|(said, _)| line.starts_with(said)).map(|(_, step)| *step)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Seen(Mutex<Vec<String>>);

    impl Seen {
        fn push(&self, text: String) {
            self.0.lock().expect("mutex").push(text);
        }
    }

    impl Progress for Seen {
        fn step(&self, name: &str) {
            self.push(name.to_owned());
        }
        fn bytes(&self, _done: u64, _total: Option<u64>) {}
        fn share(&self, done: u64, total: u64) {
            self.push(format!("{done}/{total}"));
        }
        fn message(&self, _text: &str) {}
    }

    #[test]
    fn what_apt_says_is_shown_as_progress() {
        let scratch = tempfile::tempdir().expect("tempdir");
        let mut file = File::create(scratch.path().join(host::STDERR)).expect("log");
        let seen = Seen::default();
        let mut log = Log::new(scratch.path(), &seen);
        write!(file, "I: downloading packages with apt...\n0 upgraded, 1 newly ins")
            .expect("write");
        log.follow();
        write!(file, "talled, 0 to remove.\nGet:1 http://x\nUnpacking a\nSett").expect("write");
        log.follow();
        write!(file, "ing up a\nI: installing remaining packages inside\n").expect("write");
        log.follow();
        let seen = seen.0.into_inner().expect("mutex");
        let expected = ["Installing the base system", "1/3", "2/3", "3/3", "Installing packages"];
        assert_eq!(seen, expected);
    }

    #[test]
    fn the_command_line_has_every_choice() {
        let strings = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        let mut root = RootFs {
            mode: Mode::Unshare,
            suite: "bookworm",
            sources: &strings(&["deb http://a bookworm main"]),
            packages: &strings(&["a", "b"]),
            apt: &strings(&["Acquire::Check-Date \"false\";"]),
            files: Path::new("/store/ours.tar"),
        };
        let line = host::command_line(&command(&root, Path::new("/store/root.tar")).expect("fine"));
        for part in [
            "--mode=unshare",
            "--include=a,b",
            "tar-in '/store/ours.tar' /",
            "--aptopt=Acquire::Check-Date \"false\";",
            "bookworm /store/root.tar deb http://a bookworm main",
        ] {
            assert!(line.contains(part), "no {part} in {line}");
        }
        root.files = Path::new("/it's");
        assert!(command(&root, Path::new("/x")).is_err());
    }
}
