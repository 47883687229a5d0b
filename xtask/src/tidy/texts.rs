//! Checks of every text file: nothing of one machine in it, no merge left half-done, and links that
//! lead somewhere.

use std::path::Path;

use super::{Problem, Repository, SourceFile};
use crate::workspace::{root, without_parents};

/// Parts of paths and names that hold on one machine only, or that the host's own configuration
/// is to decide: package sources come from the host. Assembled, so that this file is not found.
const MACHINE_NAMES: [&str; 8] = [
    concat!("/wo", "rk/"),
    concat!("/works", "pace/"),
    concat!("/Us", "ers/"),
    concat!("/root", "/."),
    concat!("crates", ".io"),
    concat!("deb.deb", "ian.org"),
    concat!("security.deb", "ian.org"),
    concat!("archive.ubu", "ntu.com"),
];

/// Written by cargo, which names its registry in it.
const LOCK_FILE: &str = "Cargo.lock";

pub(super) fn machine_names(repository: &Repository) -> Vec<Problem> {
    let files = repository.files.iter().filter(|file| !file.path.ends_with(LOCK_FILE));
    files.flat_map(names_in).collect()
}

fn names_in(file: &SourceFile) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        for name in MACHINE_NAMES.iter().filter(|name| line.contains(**name)) {
            problems.push(format!("{}:{}: names {name}", file.path, index + 1));
        }
    }
    problems
}

/// What a merge leaves in a file where both sides changed the same lines.
pub(super) fn conflicts(repository: &Repository) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in &repository.files {
        for (index, _) in file.text.lines().enumerate().filter(|(_, line)| is_marker(line)) {
            problems.push(format!("{}:{}: a merge conflict is left here", file.path, index + 1));
        }
    }
    problems
}

fn is_marker(line: &str) -> bool {
    ["<<<<<<< ", ">>>>>>> ", "||||||| "].iter().any(|marker| line.starts_with(marker))
        || line == "======="
}

/// Relative links of Markdown files lead to files.
pub(super) fn links(repository: &Repository) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in repository.files.iter().filter(|file| file.path.ends_with(".md")) {
        for target in targets(&file.text) {
            let beside = Path::new(&file.path).parent().unwrap_or(Path::new(""));
            let place = root().join(without_parents(&beside.join(target)));
            if !place.exists() {
                problems.push(format!("{}: links to {target}, which is not there", file.path));
            }
        }
    }
    problems
}

/// Targets of `[text](target)` that are paths, without their fragments.
fn targets(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| {
        let target = rest.split_once(')')?.0;
        let path = target.split('#').next()?;
        let is_path = !path.is_empty() && !target.contains("://") && !target.contains(' ');
        is_path.then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conflict_markers_are_found() {
        let text = "a\n<<<<<<< HEAD\nb\n=======\nc\n>>>>>>> main\n << d\n=====\n";
        assert_eq!(text.lines().filter(|line| is_marker(line)).count(), 3);
    }

    #[test]
    fn links_to_files_are_found() {
        let text = "[a](docs/a.md#part), [b](https://x.y/z), [c](#here) and [d](../d)";
        assert_eq!(targets(text).collect::<Vec<_>>(), ["docs/a.md", "../d"]);
    }
}
