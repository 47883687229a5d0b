//! Snapshots on disk.
//!
//! A snapshot is a directory: `manifest.json` says what was saved and can be read alone
//! ([`Manifest`]); `state` holds the sections of devices and vCPUs (`state::Archive`); `memory` is
//! guest RAM, byte for byte at its offset in RAM, with holes where it is zero, or where it is as in
//! the snapshot's base; `disk0` and so on are the content of disks, where it was saved too.
//!
//! Every file is written under another name, synced and renamed, the manifest last: a directory
//! without a manifest is an unfinished snapshot, and a finished one is never overwritten. The
//! snapshots of one VM form a [`SnapshotTree`].
//!
//! What is read may be damaged or hostile: sizes and checksums are compared before anything is
//! used, names of other snapshots cannot lead out of the tree, and errors name the file or section
//! and the cause. Only the checksums of a memory file that is mapped are left to
//! [`SnapshotDir::verify`], since comparing them means reading all of it.

mod directory;
mod error;
mod live;
mod manifest;
mod memory;
mod merge;
mod pages;
mod tree;

use std::fs::File;
use std::io::Write;

use ::memory::GuestRam;
use state::{Archive, Section};

pub use directory::SnapshotDir;
pub use error::SnapshotError;
pub(crate) use live::LiveMemory;
pub use manifest::{BaseEntry, CpuEntry, DiskEntry, FileEntry, Manifest, SectionEntry};
use memory::SavedMemory;
pub(crate) use pages::PageSet;
pub(crate) use tree::random_id;
pub use tree::{PendingSnapshot, SnapshotTree};

const MANIFEST: &str = "manifest.json";
const STATE: &str = "state";
const MEMORY: &str = "memory";

/// Writes a snapshot of parked vCPUs. `manifest` lacks only what is known when the files are
/// written.
pub(crate) fn write(
    dir: &SnapshotDir,
    manifest: Manifest,
    archive: Archive,
    ram: &GuestRam,
) -> Result<(), SnapshotError> {
    dir.expect_unfinished()?;
    let saved = dir.create_file(MEMORY, |file| memory::write(ram, file))?;
    finish(dir, manifest, archive, &saved)
}

/// Begins a snapshot whose memory is written behind the running guest: makes its file.
pub(crate) fn begin_memory(dir: &SnapshotDir) -> Result<File, SnapshotError> {
    dir.expect_unfinished()?;
    dir.begin_file(MEMORY)
}

/// Ends such a snapshot, all of whose memory is in the file.
pub(crate) fn finish_live(
    dir: &SnapshotDir,
    manifest: Manifest,
    archive: Archive,
    live: &LiveMemory,
) -> Result<(), SnapshotError> {
    let saved = live.describe().map_err(|e| dir.io("write", MEMORY, e))?;
    dir.finish_file(MEMORY, live.file())?;
    finish(dir, manifest, archive, &saved)
}

/// Writes `state` and `manifest.json`.
fn finish(
    dir: &SnapshotDir,
    mut manifest: Manifest,
    mut archive: Archive,
    saved: &SavedMemory,
) -> Result<(), SnapshotError> {
    archive.push(Section::encode("0", saved)?)?;
    manifest.sections = archive.sections().iter().map(SectionEntry::of).collect();
    let mut encoded = Vec::new();
    archive.write_to(&mut encoded)?;
    manifest.state = FileEntry::of(&encoded);
    dir.create_file(STATE, |mut file| file.write_all(&encoded))?;
    dir.write_manifest(&manifest)?;
    dir.sync()
}

impl SnapshotDir {
    fn write_manifest(&self, manifest: &Manifest) -> Result<(), SnapshotError> {
        let text = manifest.encode()?;
        self.create_file(MANIFEST, |mut file| file.write_all(&text))
    }

    /// Compares the checksums of memory, also of the snapshots that this one is a difference to.
    /// Reads all of it.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] and every error of opening it.
    pub fn verify(&self) -> Result<(), SnapshotError> {
        Opened::open(self)?.layers.iter().try_for_each(|layer| layer.saved.verify(&layer.file))
    }
}

/// The memory of one snapshot.
pub(super) struct Layer {
    saved: SavedMemory,
    file: File,
}

/// A snapshot that was opened and checked, but for its memory.
pub(crate) struct Opened {
    pub(crate) manifest: Manifest,
    pub(crate) archive: Archive,
    /// Its memory and that of the snapshots that it is a difference to: the first has all pages.
    layers: Vec<Layer>,
}

impl Opened {
    /// Reads manifest and state.
    pub(crate) fn open(dir: &SnapshotDir) -> Result<Self, SnapshotError> {
        let (manifest, archive, layer) = open_one(dir)?;
        let mut layers = vec![layer];
        let mut next = dir.base();
        while let Some(base) = next {
            layers.push(open_one(base)?.2);
            next = base.base();
        }
        layers.reverse();
        match layers.first() {
            Some(first) if first.saved.is_full() => Ok(Self { manifest, archive, layers }),
            _ => Err(SnapshotError::damaged(MEMORY, "the first of its bases is a difference too")),
        }
    }

    /// The file to map as the first content of RAM.
    pub(crate) fn file_to_map(&self) -> Result<File, SnapshotError> {
        self.layers[0].saved.check_size(&self.layers[0].file)?;
        self.layers[0].file.try_clone().map_err(|e| SnapshotError::io("open", MEMORY, e))
    }

    /// Fills `ram`, and checks that nothing of the snapshot was left over. RAM is fresh, or, with
    /// `mapped`, has the content of [`Opened::file_to_map`].
    pub(crate) fn finish(self, ram: &GuestRam, mapped: bool) -> Result<(), SnapshotError> {
        self.archive.finish()?;
        for layer in self.layers.iter().skip(usize::from(mapped)) {
            if !mapped {
                layer.saved.verify(&layer.file)?;
            }
            layer.saved.check_size(&layer.file)?;
            memory::fill(ram, &layer.file, &layer.saved.layer(ram.size())?)?;
        }
        Ok(())
    }
}

/// Opens one snapshot without its bases.
fn open_one(dir: &SnapshotDir) -> Result<(Manifest, Archive, Layer), SnapshotError> {
    let manifest = dir.manifest()?;
    let encoded = dir.read_file(STATE, manifest.state.bytes)?;
    if FileEntry::of(&encoded) != manifest.state {
        return Err(SnapshotError::damaged(STATE, "it is not what the manifest lists"));
    }
    let mut archive = Archive::read_from(&encoded[..])?;
    let saved: SavedMemory = archive.take_decoded("0")?;
    let file = dir.open_file(MEMORY)?;
    Ok((manifest, archive, Layer { saved, file }))
}
