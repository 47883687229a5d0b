//! Snapshots of a VM that runs, and switching engines.

use std::sync::Arc;
use std::time::{Duration, Instant};

use memory::Gpa;
use tempfile::TempDir;

use crate::testing::{FakeEngine, Step, config};
use crate::{
    BaseEntry, Policy, RestoreOptions, SnapshotError, SnapshotOrder, SnapshotTree, Vm, VmConfig,
    VmError,
};

/// Two counters on different pages: the first is never behind, and at most one ahead.
const FIRST: u64 = 0x20_0000;
const SECOND: u64 = 0x40_0000;
/// Pages that are written once, before the counters.
const OTHERS: [u64; 2] = [0x60_0000, 0x60_1000];

fn script() -> Vec<Step> {
    let mut script: Vec<_> = OTHERS.map(Step::Count).to_vec();
    script.extend([Step::Count(FIRST), Step::Count(SECOND), Step::Jump(2)]);
    script
}

fn start() -> Vm {
    Vm::start(config(&script(), Policy::default()).0).unwrap()
}

/// On an engine that writes without hooks and tells afterwards.
fn start_logging() -> Vm {
    let engine = Arc::new(FakeEngine { script: script(), logs: true });
    let (config, _) = config(&script(), Policy::default());
    Vm::start(VmConfig { engine, ..config }).unwrap()
}

fn tree() -> (TempDir, SnapshotTree) {
    let folder = tempfile::tempdir().unwrap();
    let tree = SnapshotTree::open(folder.path().join("snapshots")).unwrap();
    (folder, tree)
}

/// Takes the snapshot `name` of a VM that has gone on from `base`.
fn take(vm: &Vm, tree: &SnapshotTree, name: &str, base: Option<&BaseEntry>) -> BaseEntry {
    let pending = tree.begin(name).unwrap();
    let order = SnapshotOrder {
        base: base.cloned(),
        parent: base.map(|base| base.name.clone()),
        ..SnapshotOrder::default()
    };
    let taken = vm.snapshot(&pending.dir().unwrap(), order).unwrap();
    assert!(taken.paused < Duration::from_secs(1));
    tree.commit(pending, name).unwrap();
    BaseEntry { name: name.to_owned(), id: taken.manifest.id }
}

fn restore(tree: &SnapshotTree, name: &str, map: bool) -> Vm {
    let options = RestoreOptions { map, ..RestoreOptions::default() };
    let dir = tree.snapshot(name).unwrap();
    dir.verify().unwrap();
    Vm::restore_with(&dir, config(&script(), Policy::default()).0, options).unwrap()
}

fn counter(vm: &Vm, address: u64) -> u64 {
    let mut bytes = [0; 8];
    vm.machine().ram().read(Gpa(address), &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

fn counters(vm: &Vm) -> (u64, u64) {
    for page in OTHERS {
        assert_eq!(counter(vm, page), 1);
    }
    let (first, second) = (counter(vm, FIRST), counter(vm, SECOND));
    assert!(first == second || first == second + 1, "{first} and {second} are of two moments");
    (first, second)
}

fn wait_for_progress(vm: &Vm) {
    let (start, before) = (Instant::now(), counter(vm, FIRST));
    while counter(vm, FIRST) < before + 1000 {
        assert!(start.elapsed() < Duration::from_secs(20), "the guest does not run");
        std::thread::yield_now();
    }
}

#[test]
fn snapshots_of_a_running_vm_are_of_one_moment_and_form_a_tree() {
    three_snapshots(start());
}

#[test]
fn snapshots_are_right_when_only_afterwards_is_known_what_was_written() {
    three_snapshots(start_logging());
}

fn three_snapshots(vm: Vm) {
    let (_folder, tree) = tree();
    let mut last = None;
    let mut seen = Vec::new();
    for name in ["a", "b", "c"] {
        wait_for_progress(&vm);
        last = Some(take(&vm, &tree, name, last.as_ref()));
        assert!(vm.is_running().unwrap());
    }
    drop(vm);
    for name in tree.names().unwrap() {
        let manifest = tree.manifest(&name).unwrap();
        assert_eq!(manifest.base.is_some(), name != "a");
        let (read, mapped) = (restore(&tree, &name, false), restore(&tree, &name, true));
        seen.push(counters(&read));
        assert_eq!(counters(&mapped), *seen.last().unwrap());
        mapped.resume().unwrap();
        wait_for_progress(&mapped);
        mapped.pause().unwrap();
        counters(&mapped);
    }
    assert!(seen.is_sorted() && seen[0].0 < seen[1].0);
    assert!(tree.size("b").unwrap() < tree.size("a").unwrap() + 65536);

    // The middle one goes, and then the first: the last stays what it was.
    tree.remove("b").unwrap();
    let manifest = tree.manifest("c").unwrap();
    assert_eq!(manifest.base.map(|base| base.name), Some("a".to_owned()));
    assert_eq!(manifest.parent.as_deref(), Some("a"));
    assert_eq!(counters(&restore(&tree, "c", true)), seen[2]);
    tree.remove("a").unwrap();
    assert!(tree.manifest("c").unwrap().base.is_none());
    assert_eq!(counters(&restore(&tree, "c", true)), seen[2]);
    assert_eq!(tree.names().unwrap(), ["c"]);
}

#[test]
fn a_branch_is_a_difference_to_where_it_began() {
    let (_folder, tree) = tree();
    let vm = start();
    wait_for_progress(&vm);
    let root = take(&vm, &tree, "root", None);
    drop(vm);
    let mut ends = Vec::new();
    for name in ["left", "right"] {
        let branch = restore(&tree, "root", true);
        branch.resume().unwrap();
        wait_for_progress(&branch);
        take(&branch, &tree, name, Some(&root));
        ends.push(counters(&restore(&tree, name, true)));
    }
    tree.remove("root").unwrap();
    let again = ["left", "right"].map(|name| counters(&restore(&tree, name, false)));
    assert_eq!(again[..], ends);
}

#[test]
fn a_reset_makes_the_next_snapshot_full() {
    a_reset_between_snapshots(&start());
    a_reset_between_snapshots(&start_logging());
}

fn a_reset_between_snapshots(vm: &Vm) {
    let (_folder, tree) = tree();
    wait_for_progress(vm);
    let base = take(vm, &tree, "a", None);
    vm.reset().unwrap();
    take(vm, &tree, "b", Some(&base));
    assert!(tree.manifest("b").unwrap().base.is_none());
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let (_folder, tree) = tree();
    let vm = start();
    let a = take(&vm, &tree, "a", None);
    take(&vm, &tree, "b", Some(&a));
    assert!(matches!(tree.begin("a"), Err(SnapshotError::BadName { .. })));
    assert!(matches!(tree.begin("../a"), Err(SnapshotError::BadName { .. })));
    assert!(matches!(tree.snapshot("none"), Err(SnapshotError::NotFound { .. })));
    assert!(tree.can_be_base("a", &a.id) && !tree.can_be_base("a", "other"));
    // Another snapshot under the name of the base is not the base.
    tree.discard_for_test("a");
    assert!(matches!(tree.snapshot("b"), Err(SnapshotError::NoBase { .. })));
    take(&vm, &tree, "a", None);
    assert!(matches!(tree.snapshot("b"), Err(SnapshotError::NoBase { .. })));
    // Removing it cannot be a loss.
    tree.remove("b").unwrap();
    assert_eq!(tree.names().unwrap(), ["a"]);
}

#[test]
fn a_failed_snapshot_leaves_nothing_and_the_vm_runs() {
    let (folder, tree) = tree();
    let vm = start();
    let pending = tree.begin("a").unwrap();
    let fail = || Err(SnapshotError::NotFound { name: "disk".to_owned() });
    let order = SnapshotOrder { while_parked: Some(Box::new(fail)), ..SnapshotOrder::default() };
    let error = vm.snapshot(&pending.dir().unwrap(), order).unwrap_err();
    assert!(matches!(error, VmError::Snapshot(SnapshotError::NotFound { .. })), "{error}");
    drop(pending);
    wait_for_progress(&vm);
    assert_eq!(std::fs::read_dir(folder.path().join("snapshots")).unwrap().count(), 0);
}

#[test]
fn unfinished_snapshots_are_swept_unless_somebody_works_on_them() {
    let (folder, tree) = tree();
    let pending = tree.begin("a").unwrap();
    for left in [".new-x", ".gone-y"] {
        std::fs::create_dir(folder.path().join("snapshots").join(left)).unwrap();
    }
    tree.sweep().unwrap();
    assert_eq!(std::fs::read_dir(folder.path().join("snapshots")).unwrap().count(), 1);
    drop(pending);
    assert!(tree.names().unwrap().is_empty());
}

#[test]
fn a_vm_goes_on_under_another_engine() {
    let vm = start();
    for _ in 0..20 {
        wait_for_progress(&vm);
        vm.hop(Arc::new(FakeEngine { logs: false, script: script() })).unwrap();
    }
    wait_for_progress(&vm);
    vm.pause().unwrap();
    counters(&vm);
    vm.hop(Arc::new(FakeEngine { logs: false, script: script() })).unwrap();
    assert!(!vm.is_running().unwrap(), "a paused VM stays paused");
}

#[test]
fn time_passes_for_the_guest_while_it_is_paused() {
    let policy = Policy { catch_up: true, ..Policy::default() };
    let vm = Vm::start(config(&script(), policy).0).unwrap();
    vm.pause().unwrap();
    let before = vm.machine().guest_time();
    std::thread::sleep(Duration::from_millis(30));
    vm.resume().unwrap();
    assert!(vm.machine().guest_time() >= before + 30_000_000);
}
