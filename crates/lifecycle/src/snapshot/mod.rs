//! Snapshots on disk.
//!
//! A snapshot is a directory with three files: `manifest.json` says what was saved and can be read
//! alone ([`Manifest`]); `state` holds the sections of devices and vCPUs (`state::Archive`);
//! `memory` is guest RAM, byte for byte at its offset in RAM, with holes where it is zero.
//!
//! Every file is written under another name, synced and renamed, the manifest last: a directory
//! without a manifest is an unfinished snapshot, and a finished one is never overwritten.
//!
//! What is read may be damaged or hostile: sizes and checksums are compared before anything is
//! used, and errors name the file or section and the cause.

mod directory;
mod error;
mod manifest;
mod memory;

use ::memory::GuestRam;
use state::Archive;

pub use directory::SnapshotDir;
pub use error::SnapshotError;
pub use manifest::{CpuEntry, FileEntry, Manifest, SectionEntry};

const MANIFEST: &str = "manifest.json";
const STATE: &str = "state";
const MEMORY: &str = "memory";

/// Writes a snapshot. `manifest` lacks only what is known when the files are written.
pub(crate) fn write(
    dir: &SnapshotDir,
    mut manifest: Manifest,
    mut archive: Archive,
    ram: &GuestRam,
) -> Result<(), SnapshotError> {
    dir.expect_unfinished()?;
    let saved = dir.create_file(MEMORY, |file| memory::write(ram, file))?;
    archive.push(state::Section::encode("0", &saved)?)?;
    manifest.sections = archive.sections().iter().map(SectionEntry::of).collect();
    let mut encoded = Vec::new();
    archive.write_to(&mut encoded)?;
    manifest.state = FileEntry::of(&encoded);
    dir.create_file(STATE, |file| std::io::Write::write_all(&mut &*file, &encoded))?;
    let text = manifest.encode()?;
    dir.create_file(MANIFEST, |file| std::io::Write::write_all(&mut &*file, &text))?;
    dir.sync()
}

/// A snapshot that was opened and checked, but for its memory.
pub(crate) struct Opened<'a> {
    dir: &'a SnapshotDir,
    pub(crate) manifest: Manifest,
    pub(crate) archive: Archive,
}

impl<'a> Opened<'a> {
    /// Reads manifest and state.
    pub(crate) fn open(dir: &'a SnapshotDir) -> Result<Self, SnapshotError> {
        let manifest = dir.manifest()?;
        let encoded = dir.read_file(STATE, manifest.state.bytes)?;
        if FileEntry::of(&encoded) != manifest.state {
            return Err(SnapshotError::damaged(STATE, "it is not what the manifest lists"));
        }
        let archive = Archive::read_from(&encoded[..])?;
        Ok(Self { dir, manifest, archive })
    }

    /// Fills `ram`, which is fresh, and checks that nothing of the snapshot was left over.
    pub(crate) fn finish(mut self, ram: &GuestRam) -> Result<(), SnapshotError> {
        let saved = self.archive.take_decoded("0")?;
        self.archive.finish()?;
        let file = self.dir.open_file(MEMORY)?;
        memory::read(&saved, &file, ram)
    }
}
