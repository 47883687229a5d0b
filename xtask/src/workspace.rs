//! The workspace: its packages, its files, and cargo.

use std::env;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// Folders that hold nothing of ours: build output, fuzz findings, repository data.
const SKIPPED: [&str; 4] = ["target", "fuzz/artifacts", "fuzz/corpus", ".git"];

/// What `cargo metadata` says, as far as it is needed here.
#[derive(Deserialize)]
pub struct Workspace {
    /// The packages of this workspace.
    pub packages: Vec<Package>,
}

/// One package of the workspace.
#[derive(Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its declared dependencies, of every kind.
    pub dependencies: Vec<Dependency>,
    /// Its libraries, binaries, tests and build script.
    pub targets: Vec<Target>,
    manifest_path: PathBuf,
}

/// A declared dependency.
#[derive(Deserialize)]
pub struct Dependency {
    /// The package's name.
    pub name: String,
    /// `None` for a normal one, else `dev` or `build`.
    pub kind: Option<String>,
    /// Another name in the source.
    pub rename: Option<String>,
    /// Where it comes from; `None` for a path, that is, for one of ours.
    pub source: Option<String>,
}

impl Dependency {
    /// Its name in Rust source.
    pub fn identifier(&self) -> String {
        self.rename.as_ref().unwrap_or(&self.name).replace('-', "_")
    }
}

/// Something that cargo builds.
#[derive(Deserialize)]
pub struct Target {
    /// `lib`, `bin`, `test`, `custom-build` and so on.
    pub kind: Vec<String>,
    /// Its root module.
    pub src_path: PathBuf,
}

impl Package {
    /// The package's folder.
    pub fn folder(&self) -> &Path {
        self.manifest_path.parent().expect("a manifest lies in a folder")
    }

    /// Its Cargo.toml.
    pub fn manifest(&self) -> &Path {
        &self.manifest_path
    }
}

impl Workspace {
    /// Asks cargo.
    pub fn load() -> Result<Self> {
        let output = cargo()
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .output()
            .context("cannot start cargo")?;
        if !output.status.success() {
            bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        serde_json::from_slice(&output.stdout).context("cannot read what cargo metadata says")
    }
}

/// The folder of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// The cargo that runs this, in the workspace's folder.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a command that reports for itself.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
    if !status.success() {
        let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy()).collect();
        let program = command.get_program().to_string_lossy();
        bail!("{program} {} ended with {status}", arguments.join(" "));
    }
    Ok(())
}

/// Whether a program is on the PATH.
pub fn has_program(name: &str) -> bool {
    let paths = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&paths).any(|folder| folder.join(name).is_file())
}

/// The release build of `ringfence`, built now if it is not up to date.
pub fn ringfence() -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
    }
    let output = cargo()
        .args(["build", "--release", "--package", "ringfence", "--bin", "ringfence"])
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("ringfence does not build");
    }
    String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok()?.executable)
        .next_back()
        .context("cargo names no ringfence executable")
}

/// Every file of the repository that is ours, sorted.
pub fn files() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    collect(root(), &mut found)?;
    found.sort();
    Ok(found)
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?
    {
        let entry = entry?;
        let path = entry.path();
        // The type of the entry itself: links are not followed.
        let kind = entry.file_type()?;
        if kind.is_dir() && !SKIPPED.iter().any(|skipped| path.ends_with(skipped)) {
            collect(&path, found)?;
        } else if kind.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

/// A path as messages name it: relative to the workspace.
pub fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// The path with every `..` resolved by its letters: what lies on the way need not exist.
pub fn without_parents(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut out, part| {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            part => out.push(part),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_resolved() {
        assert_eq!(without_parents(Path::new("a/b/../c.rs")), Path::new("a/c.rs"));
    }

    #[test]
    fn files_are_ours_only() {
        let files = files().expect("files");
        let names: Vec<String> = files.iter().map(|file| relative(file)).collect();
        assert!(names.iter().any(|name| name == "xtask/src/workspace.rs"));
        assert!(!names.iter().any(|name| name.starts_with("target/") || name.starts_with(".git/")));
    }

    #[test]
    fn cargo_knows_this_package() {
        let workspace = Workspace::load().expect("metadata");
        let xtask = workspace.packages.iter().find(|p| p.name == "xtask").expect("xtask");
        assert!(xtask.dependencies.iter().any(|d| d.name == "clap" && d.source.is_some()));
        assert!(xtask.dependencies.iter().any(|d| d.name == "boot" && d.source.is_none()));
    }
}
