//! Rust files that nothing includes.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Problem, Repository, SourceFile};
use crate::workspace::{relative, without_parents};

/// Folders whose files are roots without cargo knowing it: rustc builds the guest programs by
/// themselves, and `fuzz/` is a workspace of its own.
const OTHER_ROOTS: [&str; 5] = [
    "guests/kit/lib.rs",
    "guests/programs",
    "guests/stress/main.rs",
    "guests/micro/main.rs",
    "fuzz/fuzz_targets",
];

/// Every Rust file is reached from a target of some package by `mod` declarations.
pub(super) fn orphans(repository: &Repository) -> Vec<Problem> {
    let mut reached = BTreeSet::new();
    let targets = repository.workspace.packages.iter().flat_map(|package| &package.targets);
    for target in targets {
        follow(repository, Path::new(&relative(&target.src_path)), &mut reached);
    }
    for file in repository.rust_files("").filter(|file| is_other_root(&file.path)) {
        follow(repository, Path::new(&file.path), &mut reached);
    }
    repository
        .rust_files("")
        .filter(|file| !reached.contains(&file.path))
        .map(|file| format!("{}: no module declares it: declare or delete it", file.path))
        .collect()
}

fn is_other_root(path: &str) -> bool {
    OTHER_ROOTS.iter().any(|root| {
        let Some(rest) = path.strip_prefix(root) else { return false };
        // name.rs or name/main.rs directly below the folder, or the file itself.
        rest.is_empty() || rest.matches('/').count() == 1 || rest.ends_with("/main.rs")
    })
}

/// Adds the file at `path` and what it declares. Its modules lie beside it when it is the root of
/// a target or a `mod.rs`, else in the folder of its name.
fn follow(repository: &Repository, path: &Path, reached: &mut BTreeSet<String>) {
    let own = path.parent().unwrap_or(Path::new("")).to_owned();
    visit(repository, path, &own, reached);
}

fn visit(repository: &Repository, path: &Path, folder: &Path, reached: &mut BTreeSet<String>) {
    let name = path.display().to_string();
    let Some(file) = repository.file(&name) else { return };
    if !reached.insert(name) {
        return;
    }
    let beside = path.parent().unwrap_or(Path::new(""));
    for child in declared(file) {
        match child {
            Child::Named(module) => {
                visit(
                    repository,
                    &folder.join(format!("{module}.rs")),
                    &folder.join(module),
                    reached,
                );
                visit(
                    repository,
                    &folder.join(module).join("mod.rs"),
                    &folder.join(module),
                    reached,
                );
            }
            Child::At(place) => {
                follow(repository, &without_parents(&beside.join(place)), reached);
            }
        }
    }
}

/// Something that a file includes.
#[derive(Debug, PartialEq, Eq)]
enum Child<'a> {
    /// `mod name;`
    Named(&'a str),
    /// `#[path = "place"]` or `include!("place")`, from the file's folder.
    At(&'a str),
}

fn declared(file: &SourceFile) -> impl Iterator<Item = Child<'_>> {
    file.text.lines().filter_map(child)
}

fn child(line: &str) -> Option<Child<'_>> {
    let line = line.trim();
    for opening in ["#[path = \"", "include!(\""] {
        if let Some((_, rest)) = line.split_once(opening) {
            return rest.split('"').next().map(Child::At);
        }
    }
    let declaration = line.strip_suffix(';')?;
    let (before, module) = declaration.rsplit_once("mod ").unwrap_or(("x", ""));
    let visibility = before.is_empty() || before.starts_with("pub");
    let is_name = module.chars().all(|c| c.is_alphanumeric() || c == '_');
    (visibility && is_name && !module.is_empty()).then_some(Child::Named(module))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_are_read() {
        assert_eq!(child("mod a;"), Some(Child::Named("a")));
        assert_eq!(child("pub(crate) mod a_b;"), Some(Child::Named("a_b")));
        assert_eq!(child("#[path = \"../x.rs\"]"), Some(Child::At("../x.rs")));
        assert_eq!(child("mod a {"), None);
        assert_eq!(child("let x = b;"), None);
        assert_eq!(child("// see mod a;"), None);
    }
}
