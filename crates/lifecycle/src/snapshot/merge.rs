//! Removing a snapshot without losing those that are based on it.
//!
//! The pages of the removed snapshot that a difference to it lacks are written into a copy of that
//! difference, which then takes its place in one step. Interrupted at any moment, every snapshot is
//! there, whole, before or after its own step.

use std::fs;

use ::memory::PAGE_SIZE;

use super::memory::{self, SavedMemory};
use super::{
    Layer, MEMORY, Manifest, Opened, PageSet, PendingSnapshot, SnapshotError, SnapshotTree, finish,
    open_one,
};

impl SnapshotTree {
    /// Removes the snapshot `name`. Snapshots that are differences to it get its pages, and its
    /// place in the tree is closed.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`]; every error of reading snapshots that are to be merged, and of
    /// writing: the tree is whole then, and `name` still there.
    pub fn remove(&self, name: &str) -> Result<(), SnapshotError> {
        self.path(name)?;
        // One that is damaged or unfinished has nothing to give.
        if let Ok(manifest) = self.manifest(name) {
            for child in self.names()? {
                let Ok(child_manifest) = self.manifest(&child) else { continue };
                let based = child_manifest.base.as_ref().is_some_and(|base| base.name == name);
                if based {
                    self.merge_into(name, &manifest, &child)?;
                } else if child_manifest.parent.as_deref() == Some(name) {
                    let parent = manifest.parent.clone();
                    let dir = self.open_alone(&child)?;
                    dir.write_manifest(&Manifest { parent, ..child_manifest })?;
                }
            }
        }
        let _held = self.lock()?;
        self.discard(name)
    }

    /// Writes the snapshot `name` as one that is a difference to none, under no name.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`], and every error of reading and writing.
    pub fn flatten(&self, name: &str) -> Result<PendingSnapshot, SnapshotError> {
        let Opened { manifest, archive, layers } = Opened::open(&self.snapshot(name)?)?;
        let pending = self.pending()?;
        let dir = pending.dir()?;
        let bytes = layers[0].saved.bytes();
        let pages = layers.iter().map(|layer| layer.saved.layer(bytes));
        let pages = pages.collect::<Result<Vec<_>, _>>()?;
        let saved = dir.create_file(MEMORY, |file| {
            file.set_len(bytes)?;
            for (layer, pages) in layers.iter().zip(&pages) {
                memory::copy_over(&layer.file, file, pages)?;
            }
            memory::describe(file, bytes, &PageSet::full((bytes / PAGE_SIZE) as usize))
        })?;
        self.link_disks(name, &manifest, &pending)?;
        finish(&dir, Manifest { base: None, ..manifest }, archive, &saved)?;
        Ok(pending)
    }

    /// Gives a snapshot that is being made the disks of `name`.
    fn link_disks(
        &self,
        name: &str,
        manifest: &Manifest,
        pending: &PendingSnapshot,
    ) -> Result<(), SnapshotError> {
        let folder = self.path(name)?;
        for disk in &manifest.disks {
            let file = format!("disk{}", disk.index);
            fs::hard_link(folder.join(&file), pending.path().join(&file))
                .map_err(|e| SnapshotError::io("link", &file, e))?;
        }
        Ok(())
    }

    /// Replaces `child` by one that also has the pages of `name`.
    fn merge_into(&self, name: &str, from: &Manifest, child: &str) -> Result<(), SnapshotError> {
        let (_, _, lower) = open_one(&self.open_alone(name)?)?;
        let (manifest, archive, upper) = open_one(&self.open_alone(child)?)?;
        let pending = self.pending()?;
        let dir = pending.dir()?;
        let saved = dir.create_file(MEMORY, |file| Ok(merge(&lower, &upper, file)))??;
        self.link_disks(child, &manifest, &pending)?;
        let merged = Manifest { parent: from.parent.clone(), base: from.base.clone(), ..manifest };
        finish(&dir, merged, archive, &saved)?;
        let _held = self.lock()?;
        self.replace(pending, child)
    }
}

/// Writes the pages of both, those of `upper` where it has them.
fn merge(lower: &Layer, upper: &Layer, to: &fs::File) -> Result<SavedMemory, SnapshotError> {
    lower.saved.verify(&lower.file)?;
    upper.saved.verify(&upper.file)?;
    let bytes = upper.saved.bytes();
    let (below, above) = (lower.saved.layer(bytes)?, upper.saved.layer(bytes)?);
    let mut all = below.clone();
    all.insert_all(&above);
    let io = |e| SnapshotError::io("write", MEMORY, e);
    memory::copy(&lower.file, to, &below.without(&above)).map_err(io)?;
    memory::copy(&upper.file, to, &above).map_err(io)?;
    memory::describe(to, bytes, &all).map_err(io)
}
