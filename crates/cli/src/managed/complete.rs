//! Completion of the names of VMs and snapshots.

use std::ffi::OsStr;

use clap_complete::engine::CompletionCandidate;
use lifecycle::SnapshotTree;
use vms::{Store, member};

/// The VMs whose names begin with `begin`. What cannot be read completes to nothing.
pub fn vms(begin: &OsStr) -> Vec<CompletionCandidate> {
    let names = Store::open_default().and_then(|store| store.names()).unwrap_or_default();
    matching(names, begin)
}

/// The snapshots of any VM whose names begin with `begin`: which VM is meant is not known here.
pub fn snapshots(begin: &OsStr) -> Vec<CompletionCandidate> {
    let Ok(store) = Store::open_default() else { return Vec::new() };
    let of_vm = |name: &String| {
        let vm = store.vm(name).ok()?;
        SnapshotTree::open(vm.path(member::SNAPSHOTS)).ok()?.names().ok()
    };
    let mut names: Vec<String> =
        store.names().unwrap_or_default().iter().filter_map(of_vm).flatten().collect();
    names.sort();
    names.dedup();
    matching(names, begin)
}

/// The images whose names begin with `begin`.
pub fn images(begin: &OsStr) -> Vec<CompletionCandidate> {
    let listing = images::Store::open_default().and_then(|store| store.list());
    let names = listing.map(|list| list.images.iter().map(|i| i.name.to_string()).collect());
    matching(names.unwrap_or_default(), begin)
}

fn matching(names: Vec<String>, begin: &OsStr) -> Vec<CompletionCandidate> {
    let begin = begin.to_string_lossy();
    let matching = names.into_iter().filter(|name| name.starts_with(&*begin));
    matching.map(CompletionCandidate::new).collect()
}
