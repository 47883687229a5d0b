//! `--stats FILE`: what a VM did, as JSON.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lifecycle::VmStats;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// Where the statistics go, and when they began.
pub struct Stats {
    path: PathBuf,
    start: Instant,
}

/// What is written. Fields are only added.
#[derive(Serialize)]
struct Document<'a> {
    name: Option<&'a str>,
    status: u8,
    outcome: &'a str,
    wall_seconds: f64,
    cpu_seconds: f64,
    #[serde(flatten)]
    vm: &'a VmStats,
}

impl Stats {
    /// Statistics for `path`, beginning now.
    ///
    /// # Errors
    /// When it is plain that the file cannot be made.
    pub fn new(path: &Path) -> anyhow::Result<Self> {
        check_target(path, "statistics")?;
        Ok(Self { path: path.to_owned(), start: Instant::now() })
    }

    /// Writes the statistics of a VM that ended with `status` and `outcome`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(
        &self,
        name: Option<&str>,
        status: u8,
        outcome: &str,
        vm: &VmStats,
    ) -> anyhow::Result<()> {
        let (wall, cpu) = (self.start.elapsed(), cpu_time());
        let document = Document {
            name,
            status,
            outcome,
            wall_seconds: wall.as_secs_f64(),
            cpu_seconds: cpu.as_secs_f64(),
            vm,
        };
        let text = serde_json::to_string_pretty(&document)? + "\n";
        replace(&self.path, text.as_bytes())
            .with_context(|| format!("cannot write statistics to {}", self.path.display()))
    }
}

/// Finds out whether a file for `what` can be made, as far as that is plain.
///
/// # Errors
/// When it cannot.
pub fn check_target(path: &Path, what: &str) -> anyhow::Result<()> {
    if path.is_dir() {
        bail!("cannot write {what} to {}: it is a directory", path.display());
    }
    if !folder(path).is_dir() {
        bail!("cannot write {what} to {}: there is no such folder", path.display());
    }
    Ok(())
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// CPU time of all threads of this process.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// Writes a file anew and renames it into place, so that nobody sees half of it. A device or pipe
/// is written as it is.
///
/// # Errors
/// Those of the host.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        return fs::write(path, content);
    }
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut new = std::ffi::OsString::from(".");
    new.push(name);
    new.push(format!(".{}", std::process::id()));
    let new = folder(path).join(new);
    fs::write(&new, content).and_then(|()| fs::rename(&new, path)).inspect_err(|_| {
        // The first failure is what counts.
        let _ = fs::remove_file(&new);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_replaces_an_older_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stats.json");
        fs::write(&path, "old").unwrap();
        let vm = VmStats { engine: "interpreter".to_owned(), ..VmStats::default() };
        let stats = Stats::new(&path).unwrap();
        stats.write(Some("vm"), 3, "triple fault", &vm).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["status"], 3);
        assert_eq!(value["engine"], "interpreter");
        assert!(value["wall_seconds"].is_f64() && value["cpu_seconds"].is_f64());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "something was left over");
    }

    #[test]
    fn impossible_files_are_refused_before_the_vm_runs() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Stats::new(folder.path()).is_err());
        assert!(Stats::new(&folder.path().join("none/stats")).is_err());
        assert!(Stats::new(Path::new("stats.json")).is_ok());
    }

    #[test]
    fn a_device_stays_a_device() {
        let stats = Stats::new(Path::new("/dev/null")).unwrap();
        stats.write(None, 0, "", &VmStats::default()).unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }
}
