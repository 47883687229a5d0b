//! Tests of the repository itself: what the compiler does not check.
//!
//! Each check returns one line for each problem, with the file and the way out. They run as
//! `cargo xtask tidy` and as a test of this package, so that continuous integration cannot miss
//! them. The exceptions that a check allows are tables beside it, each with its reason; an
//! exception that is no longer needed is a problem too.

mod dependencies;
mod layers;
mod modules;
mod sources;
mod texts;

use anyhow::{Result, bail};

use crate::workspace::{self, Workspace, relative};

/// A problem in words: where, what, and what to do.
type Problem = String;

/// A file of the repository, read once for all checks.
struct SourceFile {
    /// Path from the root of the workspace.
    path: String,
    /// Content; what is not UTF-8 is left out of the list of files.
    text: String,
}

/// What the checks look at.
struct Repository {
    workspace: Workspace,
    files: Vec<SourceFile>,
}

impl Repository {
    fn load() -> Result<Self> {
        let workspace = Workspace::load()?;
        let mut files = Vec::new();
        for path in workspace::files()? {
            // A file may go while others work in the same checkout.
            let Ok(bytes) = std::fs::read(&path) else { continue };
            if let Ok(text) = String::from_utf8(bytes) {
                files.push(SourceFile { path: relative(&path), text });
            }
        }
        Ok(Self { workspace, files })
    }

    /// The file at `path`.
    fn file(&self, path: &str) -> Option<&SourceFile> {
        self.files.iter().find(|file| file.path == path)
    }

    /// Rust files below `folder` (empty: all).
    fn rust_files(&self, folder: &str) -> impl Iterator<Item = &SourceFile> {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        self.files
            .iter()
            .filter(move |file| file.path.starts_with(&prefix) && file.path.ends_with(".rs"))
    }
}

type Check = fn(&Repository) -> Vec<Problem>;

/// Every check, by the name it reports under.
const CHECKS: [(&str, Check); 12] = [
    ("layers", layers::check),
    ("lints", sources::lints),
    ("unsafe policy", sources::unsafe_policy),
    ("unsafe comments", sources::unsafe_comments),
    ("file length", sources::file_length),
    ("ignored tests", sources::ignored_tests),
    ("orphan files", modules::orphans),
    ("unused dependencies", dependencies::unused),
    ("documented dependencies", dependencies::documented),
    ("machine paths and registries", texts::machine_names),
    ("merge conflicts", texts::conflicts),
    ("links", texts::links),
];

fn problems() -> Result<Vec<Problem>> {
    let repository = Repository::load()?;
    let found = CHECKS.iter().flat_map(|(name, check)| {
        check(&repository).into_iter().map(move |problem| format!("{name}: {problem}"))
    });
    Ok(found.collect())
}

/// Prints the problems; an error when there are any.
pub fn run() -> Result<()> {
    let problems = problems()?;
    for problem in &problems {
        println!("{problem}");
    }
    if !problems.is_empty() {
        bail!("{} tidy problems", problems.len());
    }
    println!("tidy: {} checks passed", CHECKS.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_repository_is_tidy() {
        let problems = super::problems().expect("the repository can be read");
        assert!(problems.is_empty(), "\n{}", problems.join("\n"));
    }
}
