//! Files and folders that the process can open from now on: Landlock (landlock(7)).

use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};

use crate::{Done, IsolationError, threads};

/// The newest version whose rights are asked for. The next ones would add a right to connect to
/// Unix sockets by name, which switches need.
const NEWEST: ABI = ABI::V6;

/// Files of the host that every VM's process reads: random numbers, its own statistics.
const HOST_READ: [&str; 5] =
    ["/dev/urandom", "/proc/self", "/proc/meminfo", "/proc/cpuinfo", "/sys/devices/system/cpu"];
/// Files of the host that it also writes to.
const HOST_WRITE: [&str; 2] = ["/dev/null", "/dev/kvm"];

/// What the process opens by name from now on. What is not there is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Files that are read, and folders whose files are.
    pub read: Vec<PathBuf>,
    /// Files and block devices that are written as well.
    pub write: Vec<PathBuf>,
    /// Folders in which everything may be done but executing.
    pub folders: Vec<PathBuf>,
}

/// Restricts what the process can open to `files`, and its signals to processes that it forks.
///
/// Landlock belongs to threads: this must come before the process has a second one.
///
/// # Errors
/// [`IsolationError::TooManyThreads`], [`IsolationError::Refused`].
pub fn restrict_files(files: &Files) -> Result<Done, IsolationError> {
    let Some(version) = version() else {
        return Ok(Done::Not("this kernel has no Landlock".to_owned()));
    };
    match threads() {
        0 | 1 => {}
        more => return Err(IsolationError::TooManyThreads(more)),
    }
    let status = restrict(files).map_err(IsolationError::refused("Landlock"))?;
    Ok(match status {
        RulesetStatus::FullyEnforced => Done::Whole,
        RulesetStatus::PartiallyEnforced => {
            Done::Partly(format!("this kernel has version {version} of Landlock, which lacks some"))
        }
        RulesetStatus::NotEnforced => Done::Not("this kernel's Landlock does nothing".to_owned()),
    })
}

/// The version of this kernel's Landlock, up to [`NEWEST`]; none where it is not there or is
/// switched off.
pub(crate) fn version() -> Option<u8> {
    let versions = [(6, ABI::V6), (5, ABI::V5), (4, ABI::V4), (3, ABI::V3), (2, ABI::V2)];
    let mut versions = versions.into_iter().chain([(1, ABI::V1)]);
    versions.find(|(_, abi)| has(*abi)).map(|(version, _)| version)
}

/// Whether the kernel has all rights of a version; makes a set of rules and drops it.
fn has(abi: ABI) -> bool {
    let rules = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let rules = rules.handle_access(AccessFs::from_all(abi));
    let rules = rules.and_then(|rules| match Scope::from_all(abi) {
        scope if scope.is_empty() => Ok(rules),
        scope => rules.scope(scope),
    });
    rules.and_then(Ruleset::create).is_ok()
}

fn restrict(files: &Files) -> Result<RulesetStatus, Box<dyn std::error::Error>> {
    let all = AccessFs::from_all(NEWEST);
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    let writing = (AccessFs::from_file(NEWEST) & !AccessFs::Execute) | reading;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    for path in HOST_READ.iter().map(Path::new).chain(files.read.iter().map(|p| &**p)) {
        rules = allow(rules, path, reading)?;
    }
    for path in HOST_WRITE.iter().map(Path::new).chain(files.write.iter().map(|p| &**p)) {
        rules = allow(rules, path, writing)?;
    }
    for path in &files.folders {
        rules = allow(rules, path, all & !(AccessFs::Execute | AccessFs::IoctlDev))?;
    }
    Ok(rules.restrict_self()?.ruleset)
}

/// Allows `rights` for a file, or below a folder.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    rights: BitFlags<AccessFs>,
) -> Result<RulesetCreated, Box<dyn std::error::Error>> {
    let Ok(metadata) = path.metadata() else { return Ok(rules) };
    // Of a file there is nothing to list.
    let rights = if metadata.is_dir() { rights } else { rights & AccessFs::from_file(NEWEST) };
    match PathFd::new(path) {
        Ok(open) => Ok(rules.add_rule(PathBeneath::new(open, rights))?),
        // Gone meanwhile, or not to be found by this user: nothing that could be opened later.
        Err(_) if path.metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) => Ok(rules),
        Err(error) => Err(error.into()),
    }
}
