//! Every dependency is used, and has its reason in docs/dependencies.md.

use std::collections::BTreeSet;

use super::{Problem, Repository};
use crate::workspace::relative;

const DOCUMENT: &str = "docs/dependencies.md";

/// Dependencies that no source names, and why they are there.
const UNNAMED: [(&str, &str, &str); 0] = [];

/// What a manifest declares is named in the package's source, and what the workspace offers is
/// declared by a package.
pub(super) fn unused(repository: &Repository) -> Vec<Problem> {
    let mut problems = Vec::new();
    for package in &repository.workspace.packages {
        let folder = relative(package.folder());
        for dependency in &package.dependencies {
            let name = dependency.identifier();
            let allowed =
                UNNAMED.iter().any(|(p, d, _)| *p == package.name && *d == dependency.name);
            let used = repository.rust_files(&folder).any(|file| has_word(&file.text, &name));
            if !used && !allowed {
                problems.push(format!("{} declares {} without using it", package.name, name));
            }
        }
    }
    let declared: BTreeSet<&str> = declared(repository).map(|(name, _)| name).collect();
    for name in offered(repository).filter(|name| !declared.contains(name)) {
        problems.push(format!("Cargo.toml offers {name}, which no package declares"));
    }
    problems
}

/// The table has one row for each dependency from outside, and no others.
pub(super) fn documented(repository: &Repository) -> Vec<Problem> {
    let Some(document) = repository.file(DOCUMENT) else {
        return vec![format!("{DOCUMENT} is missing")];
    };
    let rows: BTreeSet<&str> = document
        .text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    let external: BTreeSet<&str> = declared(repository)
        .filter(|(_, external)| *external)
        .map(|(name, _)| name)
        .chain(fuzz_dependencies(repository))
        .collect();
    let missing = external.difference(&rows).map(|name| format!("{DOCUMENT}: add {name}"));
    let stale = rows.difference(&external).map(|name| format!("{DOCUMENT}: {name} is not used"));
    missing.chain(stale).collect()
}

/// Names of all declared dependencies, and whether they come from outside.
fn declared(repository: &Repository) -> impl Iterator<Item = (&str, bool)> {
    let packages = repository.workspace.packages.iter();
    packages.flat_map(|p| &p.dependencies).map(|d| (d.name.as_str(), d.source.is_some()))
}

/// The keys of `[workspace.dependencies]`.
fn offered(repository: &Repository) -> impl Iterator<Item = &str> {
    keys(repository, "Cargo.toml", "[workspace.dependencies]")
}

/// The fuzz targets are a workspace of their own; what they use is documented all the same.
fn fuzz_dependencies(repository: &Repository) -> impl Iterator<Item = &str> {
    let ours = |name: &&str| *name != "fuzz-bodies";
    keys(repository, "fuzz/Cargo.toml", "[dependencies]").filter(ours)
}

/// The keys of a table of a manifest that is written as one line for each.
fn keys<'a>(
    repository: &'a Repository,
    path: &str,
    table: &'a str,
) -> impl Iterator<Item = &'a str> {
    let text = repository.file(path).map_or("", |file| file.text.as_str());
    text.lines()
        .skip_while(move |line| line.trim() != table)
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| Some(line.split_once('=')?.0.split('.').next()?.trim()))
}

fn has_word(text: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_whole() {
        assert!(has_word("use state::Section;", "state"));
        assert!(!has_word("use saved_state::Section;", "state"));
        assert!(!has_word("statement", "state"));
    }
}
