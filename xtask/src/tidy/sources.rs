//! Checks of Rust source: lints, the unsafe policy, file lengths, ignored tests.

use std::fs;

use super::{Problem, Repository, SourceFile};
use crate::workspace::{Package, relative};

/// Crates that may hold unsafe code, and why they must. All others forbid it.
const UNSAFE_CRATES: [(&str, &str); 7] = [
    ("memory", "maps guest RAM and accesses it while others do"),
    ("hostexec", "runs instructions on the host CPU"),
    ("direct", "traces the processes that execute guest user code"),
    ("translator", "runs translated guest code on the host CPU"),
    ("kvm", "gives the kernel guest memory, shares its run page, interrupts it by signals"),
    ("storage", "gives the kernel buffers by io_uring"),
    ("oracle", "runs instruction sequences natively in a child process"),
];

/// Files that may be longer than [`MAX_LINES`], and why.
const LONG_FILES: [(&str, &str); 0] = [];

/// A file is one room; what is longer is split by concern.
const MAX_LINES: usize = 800;

/// Tests that `cargo test` leaves out: file, test, and the command that runs them.
const IGNORED_TESTS: [(&str, &str, &str); 10] = [
    ("crates/cli/tests/cli/disk_images.rs", "debian_from_nothing", "cargo xtask test --long"),
    (
        "crates/cli/tests/cli/durability.rs",
        "flushed_records_survive_100_kills",
        "cargo xtask test --long",
    ),
    (
        "crates/cli/tests/cli/faults.rs",
        "killing_a_vm_at_200_moments_leaves_its_snapshots_whole",
        "cargo xtask test --long",
    ),
    (
        "tests/tests/kvm_engine.rs",
        "stock_kernels_come_up_on_several_vcpus",
        "cargo xtask test --long",
    ),
    ("tests/tests/lockstep.rs", "nothing_changes_for_a_long_time", "cargo xtask test --long"),
    (
        "tests/tests/multiboot.rs",
        "xen_boots_a_bzimage_on_the_interpreter",
        "cargo xtask test --long",
    ),
    (
        "tests/tests/stock_kernels.rs",
        "large_kernels_boot_on_several_vcpus",
        "cargo xtask test --long",
    ),
    ("tests/tests/stock_kernels.rs", "the_32_bit_kernel_boots", "cargo xtask test --long"),
    (
        "tests/tests/stock_kernels.rs",
        "the_common_kernel_boots_as_bzimage",
        "cargo xtask test --long",
    ),
    (
        "tests/tests/stock_kernels.rs",
        "the_realtime_kernel_boots_as_bzimage",
        "cargo xtask test --long",
    ),
];

/// How far from unsafe code its reason may stand.
const COMMENT_LINES: usize = 8;

// The needles are assembled so that this file does not find itself.
const FORBID: &str = concat!("#![forbid(", "unsafe_code)]");
const UNSAFE_FN: &str = concat!("unsafe", " fn ");
const UNSAFE_FORMS: [&str; 3] = [concat!("unsafe", " {"), UNSAFE_FN, concat!("unsafe", " impl")];
const IGNORE: &str = concat!("#[ig", "nore");

/// Every package takes the workspace's lints.
pub(super) fn lints(repository: &Repository) -> Vec<Problem> {
    let mut problems = Vec::new();
    for package in &repository.workspace.packages {
        let manifest = fs::read_to_string(package.manifest()).unwrap_or_default();
        if !manifest.contains("[lints]\nworkspace = true") {
            problems.push(format!("{}: add [lints] workspace = true", package.name));
        }
    }
    problems
}

/// Every crate forbids unsafe code, except the listed ones, which need it.
pub(super) fn unsafe_policy(repository: &Repository) -> Vec<Problem> {
    let mut problems = Vec::new();
    for package in &repository.workspace.packages {
        let folder = relative(package.folder());
        let listed = UNSAFE_CRATES.iter().any(|(name, _)| *name == package.name);
        if !listed {
            problems.extend(roots_without_forbid(repository, package));
        } else if !repository.rust_files(&folder).any(|file| unsafe_lines(file).next().is_some()) {
            problems.push(format!("{}: has no unsafe code: forbid it", package.name));
        }
    }
    problems
}

/// Libraries and binaries; test and build roots have the lints of the compiler.
fn roots_without_forbid(repository: &Repository, package: &Package) -> Vec<Problem> {
    let roots = package.targets.iter().filter(|t| t.kind.iter().any(|k| k == "lib" || k == "bin"));
    let paths = roots.map(|target| relative(&target.src_path));
    paths
        .filter(|path| !repository.file(path).is_some_and(|file| file.text.contains(FORBID)))
        .map(|path| format!("{path}: add {FORBID}"))
        .collect()
}

/// Every unsafe block, function and implementation says why it is sound.
pub(super) fn unsafe_comments(repository: &Repository) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in repository.rust_files("") {
        let lines: Vec<&str> = file.text.lines().collect();
        for at in unsafe_lines(file) {
            // What an unsafe function asks of its callers may stand where it relies on it.
            let below = if lines[at].contains(UNSAFE_FN) { COMMENT_LINES } else { 0 };
            let end = lines.len().min(at + below + 1);
            let near = &lines[at.saturating_sub(COMMENT_LINES)..end];
            if !near.iter().any(|line| line.to_lowercase().contains("safety")) {
                problems.push(format!("{}:{}: no SAFETY comment", file.path, at + 1));
            }
        }
    }
    problems
}

/// Indexes of the lines with unsafe code.
fn unsafe_lines(file: &SourceFile) -> impl Iterator<Item = usize> {
    let lines = file.text.lines().enumerate();
    lines.filter(|(_, line)| is_unsafe(line)).map(|(index, _)| index)
}

fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    // Neither a function pointer's type nor a declaration needs a reason; its caller does.
    UNSAFE_FORMS.iter().any(|form| code.contains(form))
}

pub(super) fn file_length(repository: &Repository) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in repository.rust_files("") {
        let lines = file.text.lines().count();
        let listed = LONG_FILES.iter().any(|(path, _)| *path == file.path);
        if lines > MAX_LINES && !listed {
            problems.push(format!(
                "{}: {lines} lines, at most {MAX_LINES}: split it by concern",
                file.path
            ));
        }
        if lines <= MAX_LINES && listed {
            problems.push(format!("{}: is short: take it out of LONG_FILES", file.path));
        }
    }
    for (path, _) in LONG_FILES {
        if repository.file(path).is_none() {
            problems.push(format!("{path}: is gone: take it out of LONG_FILES"));
        }
    }
    problems
}

/// Every test that is left out is listed with the command that runs it, and says why.
pub(super) fn ignored_tests(repository: &Repository) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut found = Vec::new();
    for file in repository.rust_files("") {
        let lines: Vec<&str> = file.text.lines().collect();
        for (index, line) in lines.iter().enumerate().filter(|(_, line)| line.contains(IGNORE)) {
            let at = format!("{}:{}", file.path, index + 1);
            if !line.contains(" = \"") {
                problems.push(format!("{at}: say why the test is left out"));
            }
            let name = lines[index..].iter().find_map(|line| function_name(line));
            let name = name.unwrap_or_default();
            if !IGNORED_TESTS.iter().any(|(path, test, _)| *path == file.path && *test == name) {
                problems.push(format!("{at}: list {name} in IGNORED_TESTS with what runs it"));
            }
            found.push((file.path.as_str(), name));
        }
    }
    for (path, test, _) in IGNORED_TESTS {
        if !found.contains(&(path, test)) {
            problems.push(format!("{path}: {test} is not left out: take it out of IGNORED_TESTS"));
        }
    }
    problems
}

fn function_name(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("fn ")?;
    rest.split(['(', '<']).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_code_is_told_from_words_about_it() {
        assert!(is_unsafe(concat!("let x = unsafe", " { f() };")));
        assert!(is_unsafe(concat!("pub unsafe", " fn f();")));
        assert!(!is_unsafe(concat!("// an unsafe", " { block }")));
        assert!(!is_unsafe(concat!("entry: unsafe", " fn(u64),")));
        assert!(!is_unsafe("#![forbid(unsafe_code)]"));
    }

    #[test]
    fn names_of_functions() {
        assert_eq!(function_name("    fn boots_debian() {"), Some("boots_debian"));
        assert_eq!(function_name("let x = 1;"), None);
    }
}
