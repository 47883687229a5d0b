//! Snapshots of a managed VM, with its disks.

use std::time::Instant;

use api::{SnapshotInfo, SnapshotRequest, SnapshotResult};
use lifecycle::{
    BaseEntry, DiskEntry, PendingSnapshot, SnapshotError, SnapshotOrder, SnapshotTree, WhileParked,
};

use crate::disks::copy_open_file;
use crate::guest::{Guest, micros};
use crate::{ControlError, DiskSource};

impl Guest {
    /// Takes a snapshot.
    ///
    /// # Errors
    /// What keeps it from being written: there is no such snapshot then, and the VM goes on.
    pub fn snapshot(&self, request: &SnapshotRequest) -> Result<SnapshotResult, ControlError> {
        let _turn = self.turn();
        let start = Instant::now();
        self.tree.sweep()?;
        let pending = self.tree.begin(&request.name)?;
        // A failure leaves no base: what was written meanwhile is no longer known.
        let base = self.base().take();
        let can_be_base = |base: &BaseEntry| self.tree.can_be_base(&base.name, &base.id);
        let order = SnapshotOrder {
            description: request.description.clone(),
            parent: self.state().current.clone(),
            base: base.filter(|base| !request.full && can_be_base(base)),
            while_parked: self.copy_disks(&pending)?,
        };
        let taken = self.vm.snapshot(&pending.dir()?, order)?;
        self.tree.commit(pending, &request.name)?;
        let (name, id) = (request.name.clone(), taken.manifest.id.clone());
        *self.base() = Some(BaseEntry { name, id });
        self.write_state(|record| record.current = Some(request.name.clone()))?;
        let snapshot = info(&self.tree, &request.name)?;
        let (paused_us, total_us) = (micros(taken.paused), micros(start.elapsed()));
        Ok(SnapshotResult { snapshot, paused_us, total_us })
    }

    /// What copies the disks that the guest can write to, once it stands still.
    fn copy_disks(&self, pending: &PendingSnapshot) -> Result<Option<WhileParked>, ControlError> {
        let writable = self.disks.iter().filter(|disk| !disk.read_only);
        let open = |disk: &DiskSource| Ok::<_, ControlError>((disk.index, disk.open()?));
        let disks = writable.map(open).collect::<Result<Vec<_>, _>>()?;
        let folder = pending.path().to_owned();
        let copy = move || {
            let one = |(index, file)| {
                let name = format!("disk{index}");
                let copied = copy_open_file(&file, &folder.join(&name));
                let copied = copied.and_then(|copy| Ok((copy.metadata()?.len(), copy)));
                let (bytes, _copy) = copied.map_err(|cause| SnapshotError::Io {
                    action: "copy a disk to",
                    file: name,
                    cause,
                })?;
                Ok(DiskEntry { index, bytes })
            };
            disks.into_iter().map(one).collect()
        };
        let none = self.disks.iter().all(|disk| disk.read_only);
        Ok((!none).then(|| Box::new(copy) as WhileParked))
    }
}

/// What `snapshot ls` shows: the snapshots of a VM, oldest first, and what is wrong with those that
/// cannot be read.
///
/// # Errors
/// [`SnapshotError::Io`].
pub fn list_snapshots(
    tree: &SnapshotTree,
) -> Result<(Vec<SnapshotInfo>, Vec<String>), SnapshotError> {
    let (mut list, mut damaged) = (Vec::new(), Vec::new());
    for name in tree.names()? {
        match info(tree, &name) {
            Ok(info) => list.push(info),
            // Removed meanwhile.
            Err(SnapshotError::NotFound { .. }) => {}
            Err(error) => damaged.push(format!("snapshot {name}: {error}")),
        }
    }
    list.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
    Ok((list, damaged))
}

fn info(tree: &SnapshotTree, name: &str) -> Result<SnapshotInfo, SnapshotError> {
    let manifest = tree.manifest(name)?;
    Ok(SnapshotInfo {
        name: name.to_owned(),
        parent: manifest.parent,
        description: manifest.description,
        created: manifest.created,
        kind: if manifest.base.is_some() { "difference" } else { "full" }.to_owned(),
        size: tree.size(name)?,
        engine: manifest.engine,
    })
}
