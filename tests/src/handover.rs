//! Saves a VM and goes on in a fresh machine, of another engine if wanted, as if nothing had
//! happened.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use engine::Engine;
use lifecycle::{ConsoleOutput as _, SnapshotDir};
use tempfile::TempDir;

use crate::vm::{Guest, Transcript};

/// A folder for snapshots, in memory where there is such a file system.
fn folder() -> TempDir {
    let shm = Path::new("/dev/shm");
    let made = if shm.is_dir() { TempDir::new_in(shm) } else { TempDir::new() };
    made.expect("a temporary folder")
}

/// Saves the paused guest below `folder`.
fn save(guest: &Guest, folder: &Path) -> SnapshotDir {
    let dir = SnapshotDir::create(folder).expect("a fresh folder");
    guest.vm.save(dir).expect("a paused VM can be saved");
    SnapshotDir::open(folder).expect("it was made")
}

/// Hands the paused guest over to a fresh machine on `engine`, which is saved again to compare; with
/// the folder that has the snapshot below `first`.
///
/// # Panics
/// When it cannot be saved or restored, or differs when saved again.
pub fn hand_over(guest: Guest, engine: Arc<dyn Engine>) -> (Guest, TempDir) {
    let folder = folder();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let snapshot = save(&guest, &first);
    let console = Arc::clone(&guest.console);
    drop(guest);
    let restored = Guest::restore(&snapshot, engine, console).expect("it was just saved");
    save(&restored, &second);
    let state = |at: &Path| fs::read(at.join("state")).expect("a snapshot has a state");
    assert!(state(&first) == state(&second), "saved, restored and saved again: {}", {
        differing_sections(&first, &second)
    });
    fs::remove_dir_all(&second).expect("it was made");
    (restored, folder)
}

/// The sections that differ between two snapshots.
fn differing_sections(first: &Path, second: &Path) -> String {
    let manifest = |at: &Path| {
        let dir = SnapshotDir::open(at).expect("a snapshot");
        dir.manifest().expect("a finished one")
    };
    let (first, second) = (manifest(first), manifest(second));
    let differing: Vec<String> = first
        .sections
        .iter()
        .filter(|section| !second.sections.contains(section))
        .map(|section| format!("{}/{}", section.kind, section.instance))
        .collect();
    differing.join(", ")
}

/// A console that already has `text`.
pub fn console_with(text: &str) -> Arc<Transcript> {
    let console = Arc::new(Transcript::default());
    console.write(text.as_bytes());
    console
}
